// A program whose allocations a debugger observes through the probes. It prints the addresses of
// its blocks, for comparison.
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SMALL = 4321, LARGE = 765432, GROWN = 1765432, MANY = 2000 };

int main(void) {
    static void *many[MANY];
    // Stays on one CPU: the number of objects that leave sheaves depends on the number of sheaves.
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
