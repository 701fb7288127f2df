/* Measures what malloc and free need on their deepest paths: little stack, as threads and handlers
 * may have little; and no thread-locals from the loader, which may allocate or wait for them. */
#include "check.h"
#include <limits.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { STACK = 256 << 10, MOST = 4 << 10, PAINT = 0xa5 };

static unsigned char *stack;
static void (*operation)(void);
static size_t depth;

__attribute__((noinline)) static void paint(unsigned char *to)
{
    for (unsigned char *at = stack; at < to; at++)
        *(volatile unsigned char *)at = PAINT;
}

static void *measure(void *none)
{
    unsigned char *here = __builtin_frame_address(0);
    paint(here - 512);
    operation();
    unsigned char *lowest = stack;
    while (*lowest == PAINT)
        lowest++;
    depth = (size_t)(here - lowest);
    return none;
}

/* Runs `body` on a thread whose stack was painted before, and checks how much of the stack it
 * used. */
static void check_depth(const char *name, void (*body)(void))
{
    pthread_attr_t attributes;
    pthread_t thread;
    operation = body;
    CHECK(posix_memalign((void **)&stack, 4096, STACK) == 0);
    CHECK(pthread_attr_init(&attributes) == 0);
    CHECK(pthread_attr_setstack(&attributes, stack, STACK) == 0);
    CHECK(pthread_create(&thread, &attributes, measure, NULL) == 0 && pthread_join(thread, NULL) == 0);
    free(stack);
    fprintf(stderr, "%s: %zu bytes\n", name, depth);
    CHECK(depth <= MOST);
}

static void *blocks[300000];

static int allocate(size_t size, int most)
{
    for (int i = 0; i < most; i++) {
        if (!(blocks[i] = malloc(size)))
            return i;
        *(char *)blocks[i] = 1;
    }
    return most;
}

static void free_all(int count)
{
    for (int i = 0; i < count; i++)
        free(blocks[i]);
}

static void sleep_ms(long ms)
{
    struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&time, NULL);
}

/* Allocates until there is no memory left. That makes the allocator flush the sheaves of all CPUs
 * to their slabs. */
static void exhaust_memory(void)
{
    static const size_t sizes[] = {100, 1000, 20000, 100000, LARGE};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int count = allocate(sizes[i], 300000);
        CHECK(count < 300000);
        CHECK(!realloc(blocks[0], 1 << 30) && !calloc(1, 1 << 30));
        free_all(count);
    }
}

/* Some of these frees end a decay window, and decommit idle memory. */
static void end_windows(void)
{
    for (int round = 0; round < 6; round++) {
        int count = allocate(100 + 300 * (size_t)round, 10000);
        free_all(count);
        sleep_ms(30);
        void *block = malloc(LARGE);
        free(block);
    }
}

static void grow_and_shrink(void)
{
    char *block = NULL;
    for (size_t size = 1; size < 10 << 20; size = size * 3 / 2 + 1)
        CHECK((block = realloc(block, size)));
    for (size_t size = 10 << 20; size > 10; size /= 2)
        CHECK((block = realloc(block, size)));
    free(block);
}

static void trim(void)
{
    free_all(allocate(300, 20000));
    malloc_trim(0);
}

static void deepest_paths(void)
{
    check_depth("exhaust_memory", exhaust_memory);
    check_depth("end_windows", end_windows);
    check_depth("grow_and_shrink", grow_and_shrink);
    check_depth("trim", trim);
}

/* Runs on the smallest stack that threads may have, and on one as small as handlers commonly
 * have. */
static void *run_on_small_stack(void *none)
{
    exhaust_memory();
    end_windows();
    return none;
}

static volatile int handled;

static void handler(int signal)
{
    (void)signal;
    exhaust_memory();
    end_windows();
    handled = 1;
}

static void small_stacks(void)
{
    pthread_attr_t attributes;
    pthread_t thread;
    CHECK(pthread_attr_init(&attributes) == 0);
    CHECK(pthread_attr_setstacksize(&attributes, (size_t)sysconf(_SC_THREAD_STACK_MIN)) == 0);
    CHECK(pthread_create(&thread, &attributes, run_on_small_stack, NULL) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    /* Room for the processor state that the kernel stores, and 8 KiB. */
    size_t size = (size_t)sysconf(_SC_MINSIGSTKSZ) + (8 << 10);
    stack_t small = {.ss_sp = malloc(size), .ss_size = size};
    CHECK(sigaltstack(&small, NULL) == 0);
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    raise(SIGUSR1);
    CHECK(handled);
}

static volatile int asked;

/* Called in place of the loader's function, by code whose thread-locals have no fixed place. */
void *__tls_get_addr(void *index)
{
    static void *(*volatile next)(void *);
    if (!next)
        next = (void *(*)(void *))dlsym(RTLD_NEXT, "__tls_get_addr");
    asked++;
    return next(index);
}

static void *run_and_count(void *none)
{
    asked = 0;
    exhaust_memory();
    end_windows();
    grow_and_shrink();
    trim();
    CHECK(asked == 0);
    pid_t child = fork();
    if (child == 0)
        _exit(asked);
    int status;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
    return none;
}

/* No slow path asks the loader for a thread-local, not even the first one of a thread, nor does the
 * child of a fork. */
static void no_loaded_thread_locals(void)
{
    run_and_count(NULL);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, run_and_count, NULL) == 0 && pthread_join(thread, NULL) == 0);
}

#define ENTRY(name) {#name, name}
int main(int argc, char **argv)
{
    static const struct check checks[] = {
        ENTRY(deepest_paths), ENTRY(small_stacks), ENTRY(no_loaded_thread_locals)};
    return run_checks(checks, sizeof checks / sizeof *checks, argc, argv);
}
