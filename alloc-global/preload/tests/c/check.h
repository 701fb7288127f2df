/* A program of named checks. With a name as its argument it runs that check; without, it prints all
 * names, one per line. */
#ifndef CHECK_H
#define CHECK_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A size beyond all size classes: the allocator serves it from its pages, under a lock of theirs. */
enum { LARGE = 2000000 };

#define CHECK(condition)                                                                \
    do {                                                                                \
        if (!(condition)) {                                                             \
            fprintf(stderr, "%s:%d: %s (errno %d)\n", __FILE__, __LINE__, #condition, errno); \
            _Exit(1);                                                                   \
        }                                                                               \
    } while (0)

struct check {
    const char *name;
    void (*body)(void);
};

static int run_checks(const struct check *checks, size_t count, int argc, char **argv)
{
    for (size_t i = 0; i < count; i++) {
        if (argc < 2) {
            puts(checks[i].name);
        } else if (strcmp(argv[1], checks[i].name) == 0) {
            checks[i].body();
            return 0;
        }
    }
    return argc < 2 ? 0 : 2;
}

/* Hides a value from the compiler. */
static inline size_t hidden(size_t value)
{
    __asm__ volatile("" : "+r"(value));
    return value;
}

static inline int is_aligned(const void *block, size_t align)
{
    return (uintptr_t)block % align == 0;
}

#endif
