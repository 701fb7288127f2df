// A program whose blocks probes tell of: it says where they are, for who looks on to compare.
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SMALL = 4321, LARGE = 765432, GROWN = 1765432, MANY = 2000 };

int main(void) {
    static void *many[MANY];
    // On one CPU: how many objects leave sheaves depends on how many sheaves there are.
    cpu_set_t here;
    CPU_ZERO(&here);
    CPU_SET(sched_getcpu(), &here);
    sched_setaffinity(0, sizeof here, &here);
    char *small = malloc(SMALL), *large = calloc(1, LARGE);
    printf("alloc %p %d\nalloc %p %d\n", (void *)small, SMALL, (void *)large, LARGE);
    printf("free %p\nfree %p\n", (void *)small, (void *)large);
    free(small);
    large = realloc(large, GROWN);
    printf("alloc %p %d\nfree %p\n", (void *)large, GROWN, (void *)large);
    free(large);
    for (int index = 0; index < MANY; index++)
        memset(many[index] = malloc(48), 1, 48);
    for (int index = 0; index < MANY; index++)
        free(many[index]);
    return 0;
}
