/* Checks that a program survives a filter that kills for all but a few system calls, with the
 * settings that docs/settings.md names for that. */
#include "check.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <malloc.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { THREADS = 4, SLOTS = 64, ROUNDS = 4000 };

static void *slots[SLOTS];
/* All threads reach each step together. */
static pthread_barrier_t step;

/* Returns whether the filter is in force, for all threads. */
static int filter_all_threads(void)
{
    static const int allowed[] = {
        SYS_mmap, SYS_munmap, SYS_mprotect, SYS_madvise, SYS_mremap, SYS_futex,
        /* Where the kernel maps no function for them. */
        SYS_clock_gettime, SYS_getcpu,
        /* Of this program: to idle, to report a failure, and to end. */
        SYS_clock_nanosleep, SYS_write, SYS_exit_group,
    };
    enum { COUNT = sizeof allowed / sizeof *allowed };
    struct sock_filter code[COUNT + 3];
    code[0] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (int i = 0; i < COUNT; i++)
        code[1 + i] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[i], COUNT - i, 0);
    code[COUNT + 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    code[COUNT + 2] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {COUNT + 3, code};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
        && syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) == 0;
}

/* Allocates, resizes and frees blocks of all kinds, some of them of other threads. */
static void use_memory(unsigned state)
{
    static const size_t sizes[] = {20, 300, 5000, 40000, 700000, LARGE, 9 << 20};
    for (int i = 0; i < ROUNDS; i++) {
        state = state * 1664525 + 1013904223;
        size_t size = sizes[(state >> 8) % (i % 64 ? 4 : 7)];
        char *block = malloc(size);
        CHECK(block);
        memset(block, 1, size);
        CHECK((block = realloc(block, size + size / 2)));
        CHECK(block[0] == 1 && block[size - 1] == 1);
        free(__atomic_exchange_n(&slots[(state >> 16) % SLOTS], block, __ATOMIC_ACQ_REL));
    }
}

/* Grows the heap by many small blocks, and frees them. */
static void burst(void)
{
    enum { COUNT = 100000 };
    void **blocks = malloc(COUNT * sizeof *blocks);
    CHECK(blocks);
    for (int i = 0; i < COUNT; i++)
        CHECK((blocks[i] = calloc(1, 16 + (size_t)i % 500)));
    for (int i = 0; i < COUNT; i++)
        free(blocks[i]);
    free(blocks);
}

static void *work(void *number)
{
    unsigned state = (unsigned)(uintptr_t)number;
    /* Threads start and end by other calls than those allowed: this one has started. */
    pthread_barrier_wait(&step);
    /* The filter is in force. */
    pthread_barrier_wait(&step);
    use_memory(state);
    burst();
    pthread_barrier_wait(&step);
    /* The program was idle. */
    pthread_barrier_wait(&step);
    use_memory(state + THREADS);
    pthread_barrier_wait(&step);
    /* The process ends. */
    pthread_barrier_wait(&step);
    return number;
}

static void threads_survive_a_strict_filter(void)
{
    pthread_t threads[THREADS];
    CHECK(pthread_barrier_init(&step, NULL, THREADS + 1) == 0);
    for (uintptr_t i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, work, (void *)i) == 0);
    pthread_barrier_wait(&step);
    if (!filter_all_threads()) {
        fprintf(stderr, "skipped: strict filters: they are not permitted here\n");
        _Exit(0);
    }
    pthread_barrier_wait(&step);
    pthread_barrier_wait(&step);
    /* Longer than all windows until idle memory has returned. */
    usleep(1000000);
    burst();
    malloc_trim(0);
    pthread_barrier_wait(&step);
    use_memory(2 * THREADS);
    burst();
    pthread_barrier_wait(&step);
    _Exit(0);
}

#define ENTRY(name) {#name, name}
int main(int argc, char **argv)
{
    static const struct check checks[] = {ENTRY(threads_survive_a_strict_filter)};
    return run_checks(checks, sizeof checks / sizeof *checks, argc, argv);
}
