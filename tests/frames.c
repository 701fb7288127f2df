/* Functions with frames of many kinds, for the test `stacks`. Each calls `call(with)`. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#ifndef SIZE
#define SIZE 100
#endif

typedef void Call(void *with);

/* The compiler must not turn a last call into a jump. */
#define END __asm__ volatile("" ::: "memory")

/* The first function: it is at the same address in libraries that differ in SIZE alone. */
void frames_sized(Call *call, void *with) {
    volatile char room[SIZE];
    room[0] = 1;
    call(with);
    END;
}

/* Uses registers that a function preserves for its caller. */
int frames_deep(Call *call, void *with, int depth, int a, int b, int c, int d, int e) {
    volatile char room[SIZE];
    room[depth % SIZE] = (char)a;
    int sum = depth == 0 ? (call(with), 0) : frames_deep(call, with, depth - 1, b, c, d, e, a);
    return sum + a * b + c * d + e + room[depth % SIZE];
}

/* The length of the frame is known only when it runs. */
void frames_variable(Call *call, void *with, size_t length) {
    volatile char room[length];
    memset((char *)room, 1, length);
    call(with);
    END;
}

/* The frame is aligned to more than the stack. */
void frames_aligned(Call *call, void *with, size_t length) {
    volatile char room[64] __attribute__((aligned(256)));
    volatile char more[length];
    memset((char *)room, 1, sizeof room);
    memset((char *)more, 1, length);
    call(with);
    END;
}

static Call *sorted_call;
static void *sorted_with;

static int compare(const void *one, const void *other) {
    if (sorted_call)
        sorted_call(sorted_with);
    sorted_call = NULL;
    return *(const int *)one - *(const int *)other;
}

/* Calls from a callback of the C library. */
void frames_sorted(Call *call, void *with) {
    int numbers[] = {3, 1, 2};
    sorted_call = call;
    sorted_with = with;
    qsort(numbers, 3, sizeof *numbers, compare);
    END;
}
