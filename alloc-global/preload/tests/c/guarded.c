/* Programs with one mistake each, named by the argument, to be run with guarded blocks. make_block,
 * drop_block and touch are the functions that reports must name. Without an argument, prints the
 * names. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A multiple of 16, to which blocks are aligned: they end where their page does. */
enum { SIZE = 112 };

static volatile char sink;

__attribute__((noinline)) char *make_block(void) {
    char *block = malloc(SIZE);
    memset(block, 1, SIZE);
    return block;
}

__attribute__((noinline)) void drop_block(char *block) {
    free(block);
    sink = 0; /* no tail call */
}

__attribute__((noinline)) void touch(char *block, long offset, int writes) {
    volatile char *place = block + offset;
    if (writes)
        *place = 7;
    else
        sink = *place;
}

static void write_beside(char *block, long offset) {
    touch(block, offset, 1);
    drop_block(block);
}

static void overflow_by_1(char *block) { write_beside(block, SIZE); }
static void overflow_by_8(char *block) { write_beside(block, SIZE + 7); }
static void overflow_by_64(char *block) { write_beside(block, SIZE + 63); }
static void underflow_by_1(char *block) { write_beside(block, -1); }
static void underflow_by_8(char *block) { write_beside(block, -8); }
static void underflow_by_64(char *block) { write_beside(block, -64); }

static void read_beyond(char *block) {
    touch(block, SIZE, 0);
    drop_block(block);
}

static void read_after_free(char *block) {
    drop_block(block);
    touch(block, 5, 0);
}

static void write_after_free(char *block) {
    drop_block(block);
    touch(block, 5, 1);
}

static void double_free(char *block) {
    drop_block(block);
    drop_block(block);
}

static void double_free_later(char *block) {
    drop_block(block);
    for (int round = 0; round < 100; round++)
        drop_block(make_block());
    drop_block(block);
}

static void invalid_free(char *block) { drop_block(block + 16); }

static void use_after_realloc(char *block) {
    char *larger = realloc(block, 5000);
    touch(block, 5, 0);
    free(larger);
}

static void realloc_after_free(char *block) {
    drop_block(block);
    sink = *(char *)realloc(block, 5000);
}

#define MISTAKE(name) {#name, name}
static const struct {
    const char *name;
    void (*make)(char *);
} mistakes[] = {
    MISTAKE(overflow_by_1),    MISTAKE(overflow_by_8),     MISTAKE(overflow_by_64),
    MISTAKE(underflow_by_1),   MISTAKE(underflow_by_8),    MISTAKE(underflow_by_64),
    MISTAKE(read_beyond),      MISTAKE(read_after_free),   MISTAKE(write_after_free),
    MISTAKE(double_free),      MISTAKE(double_free_later), MISTAKE(invalid_free),
    MISTAKE(use_after_realloc), MISTAKE(realloc_after_free),
};

int main(int count, char **arguments) {
    /* The first block of a process cannot be guarded. */
    free(malloc(1));
    for (unsigned each = 0; each < sizeof mistakes / sizeof *mistakes; each++) {
        if (count == 1)
            puts(mistakes[each].name);
        else if (strcmp(arguments[1], mistakes[each].name) == 0)
            /* A block lies at either end of its page at random. A read is found at one only. */
            for (int round = 0; round < 50; round++)
                mistakes[each].make(make_block());
    }
    return 0;
}
