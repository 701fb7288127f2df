// A program that loses some blocks and holds others when it ends. With the argument `nothing` it
// loses none, and with `thread` another thread holds a block on its stack.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct node {
    struct node *next;
    char content[200];
};

struct node *held;
static int ready[2];
// The compiler does not know the number, and unrolls no loop.
static volatile int many = 3;

// Three blocks, to which nothing leads.
__attribute__((noinline)) void lose(void) {
    for (int number = 0; number < many; number++) {
        volatile char *block = malloc(1000);
        block[0] = 1;
    }
}

// A list of three nodes: nothing leads to the first one.
__attribute__((noinline)) void lose_list(void) {
    struct node *list = NULL;
    for (int number = 0; number < many; number++) {
        struct node *node = malloc(sizeof *node);
        node->next = list;
        list = node;
    }
    volatile struct node *seen = list;
    (void)seen;
}

// A list of two nodes and a large one behind them, held by a variable: the second one by an address
// within it.
__attribute__((noinline)) void hold(void) {
    struct node *large = calloc(1, 3 << 20), *second = malloc(sizeof *second);
    held = malloc(sizeof *held);
    held->next = (struct node *)&second->content[50];
    second->next = large;
    // The last block is held by one of the middle sizes.
    void **middle = calloc(1, 100000);
    middle[9999] = malloc(77);
    large->next = (struct node *)middle;
}

static void *wait_for_ever(void *unused) {
    (void)unused;
    struct node *volatile local = malloc(sizeof *local);
    if (write(ready[1], "x", 1) != 1 || !local)
        abort();
    for (;;)
        pause();
}

// Overwrites what calls left on the stack.
__attribute__((noinline)) void scrub(void) {
    volatile char room[65536];
    memset((void *)room, 0, sizeof room);
}

int main(int arguments, char **argument) {
    hold();
    if (arguments > 1 && !strcmp(argument[1], "thread")) {
        pthread_t thread;
        char byte;
        if (pipe(ready) || pthread_create(&thread, NULL, wait_for_ever, NULL)
            || read(ready[0], &byte, 1) != 1)
            return 1;
    } else if (arguments == 1) {
        lose();
        lose_list();
    }
    scrub();
    return 0;
}
