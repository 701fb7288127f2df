// A program whose sampled allocations a debugger observes. It prints the addresses and sizes of its
// blocks, for comparison. With an argument it allocates and frees 200 blocks of 2 MiB instead, of
// which a sampler with the default mean takes nearly all.
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>

enum { SMALL = 4321, MIDDLE = 54321, LARGE = 3 << 20, GROWN = 5 << 20, MANY = 200, BLOCK = 2 << 20 };

int main(int arguments, char **argument) {
    (void)argument;
    if (arguments > 1) {
        for (int index = 0; index < MANY; index++)
            free(malloc(BLOCK));
        return 0;
    }
    char *small = malloc(SMALL), *middle = malloc(MIDDLE), *large = calloc(1, LARGE);
    printf("alloc %p %zu\n", (void *)small, malloc_usable_size(small));
    printf("alloc %p %zu\n", (void *)middle, malloc_usable_size(middle));
    printf("alloc %p %d\n", (void *)large, LARGE);
    printf("free %p\nfree %p\nfree %p\n", (void *)small, (void *)middle, (void *)large);
    free(small);
    free(middle);
    large = realloc(large, GROWN);
    printf("alloc %p %d\nfree %p\n", (void *)large, GROWN, (void *)large);
    free(large);
    return 0;
}
