/* Checks threads that exchange blocks, and forks while they run. */
#include "check.h"
#include <pthread.h>
#include <sched.h>
#include <spawn.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

enum { THREADS = 8, SLOTS = 256, ROUNDS = 60000 };

static void *slots[SLOTS];
static int stop;

static unsigned next(unsigned *state)
{
    *state = *state * 1664525 + 1013904223;
    return *state >> 8;
}

/* Returns a block of random size that stores its size, and is filled with a byte derived from
 * it. */
static unsigned char *new_block(unsigned *state)
{
    unsigned kind = next(state) % 1024;
    size_t size = sizeof(size_t) + next(state) % (kind == 0 ? 2 * LARGE : kind % 64 == 0 ? 200000 : 600);
    unsigned char *block = malloc(size);
    CHECK(block);
    memcpy(block, &size, sizeof size);
    memset(block + sizeof size, (int)(size * 31), size - sizeof size);
    return block;
}

/* Checks the contents of a block, and frees it. */
static void free_block(unsigned char *block)
{
    size_t size;
    if (!block)
        return;
    memcpy(&size, block, sizeof size);
    for (size_t at = sizeof size; at < size; at++)
        CHECK(block[at] == (unsigned char)(size * 31));
    free(block);
}

static void *exchange(void *argument)
{
    unsigned state = (unsigned)(uintptr_t)argument * 7919 + 1;
    for (int i = 0; i < ROUNDS && !__atomic_load_n(&stop, __ATOMIC_RELAXED); i++) {
        void *block = new_block(&state);
        free_block(__atomic_exchange_n(&slots[next(&state) % SLOTS], block, __ATOMIC_ACQ_REL));
    }
    return NULL;
}

static void pin_to_cpu(int cpu)
{
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    CHECK(sched_setaffinity(0, sizeof one, &one) == 0);
}

static void *exit_at_once(void *argument)
{
    return argument;
}

/* The C library frees the thread-locals of threads with stacks of their own while it holds the lock
 * under which it creates threads. If the threads end on another CPU than the one they were created
 * on, these frees miss the sheaf. */
static void threads_joined_on_another_cpu(void)
{
    enum { JOINED = 64, STACK = 64 << 10 };
    static char stacks[JOINED][STACK] __attribute__((aligned(4096)));
    cpu_set_t all;
    int first = -1, last = -1;
    CHECK(sched_getaffinity(0, sizeof all, &all) == 0);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &all)) {
            first = first < 0 ? cpu : first;
            last = cpu;
        }
    for (int i = 0; i < 64; i++) {
        void *block = malloc(512 << 10);
        CHECK(block);
        memset(block, 1, 512 << 10);
    }
    for (int round = 0; round < 8; round++) {
        pthread_t threads[JOINED];
        pin_to_cpu(first);
        for (int i = 0; i < JOINED; i++) {
            pthread_attr_t attributes;
            CHECK(pthread_attr_init(&attributes) == 0);
            CHECK(pthread_attr_setstack(&attributes, stacks[i], STACK) == 0);
            CHECK(pthread_create(&threads[i], &attributes, exit_at_once, NULL) == 0);
        }
        pin_to_cpu(last);
        for (int i = 0; i < JOINED; i++)
            CHECK(pthread_join(threads[i], NULL) == 0);
    }
}

static void run(void (*meanwhile)(void))
{
    pthread_t threads[THREADS];
    for (uintptr_t i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, exchange, (void *)i) == 0);
    meanwhile();
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    for (int i = 0; i < SLOTS; i++)
        free_block(slots[i]);
}

static void do_nothing(void) {}

static void threads_exchange_blocks(void)
{
    run(do_nothing);
}

static void *allocate(void *size)
{
    return malloc((size_t)size);
}

/* Thousands of short-lived threads. */
static void short_lived_threads(void)
{
    for (int i = 0; i < 3000; i++) {
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, allocate, (void *)(uintptr_t)(i * 3)) == 0);
        void *block;
        CHECK(pthread_join(thread, &block) == 0 && block);
        free(block);
    }
}

static void fork_repeatedly(void)
{
    for (int i = 0; i < 50; i++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            unsigned state = (unsigned)i;
            for (int j = 0; j < 2000; j++)
                free_block(new_block(&state));
            /* exit runs its handlers, and flushes stdio. */
            exit(0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
    }
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
}

static void forks_amid_threads(void)
{
    run(fork_repeatedly);
}

/* Fork handlers may allocate, whether they were registered before Hayloft's or after. They do not
 * allocate much: handlers that run after Hayloft's `prepare` run while all locks are held, and
 * without restartable sequences each of their frees is deferred. */
static int handling, handled;

static void handler(void)
{
    unsigned state = 5;
    if (!handling)
        return;
    for (int i = 0; i < 100; i++)
        free_block(new_block(&state));
    handled++;
}

__attribute__((constructor)) static void add_handlers(void)
{
    pthread_atfork(handler, handler, handler);
}

static void fork_handlers_can_allocate(void)
{
    pthread_atfork(handler, handler, handler);
    handling = 1;
    run(fork_repeatedly);
    CHECK(handled == 200);
}

/* Children of vfork have their own memory, and may allocate while other threads of the parent
 * do. */
static volatile int parents_value = 1;

static int vfork_repeatedly(int turn)
{
    unsigned state = (unsigned)turn;
    for (int i = 0; i < 30; i++) {
        pid_t child = vfork();
        CHECK(child >= 0);
        if (child == 0) {
            parents_value = 2;
            for (int j = 0; j < 300; j++)
                free_block(new_block(&state));
            _exit(3);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 3);
        CHECK(parents_value == 1);
    }
    return 0;
}

static void *vfork_thread(void *argument)
{
    vfork_repeatedly((int)(intptr_t)argument);
    return NULL;
}

static void vfork_children_have_their_own_memory(void)
{
    pthread_t threads[3];
    for (intptr_t i = 0; i < 3; i++)
        CHECK(pthread_create(&threads[i], NULL, vfork_thread, (void *)(i + 1)) == 0);
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
}

/* Starts programs in every way there is. */
static void programs_can_be_started(void)
{
    extern char **environ;
    int status;
    pid_t child = vfork();
    if (child == 0) {
        execl("/bin/sh", "sh", "-c", "exit 5", (char *)NULL);
        _exit(1);
    }
    CHECK(waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 5);
    child = vfork();
    if (child == 0) {
        execlp("/there/is/none", "none", (char *)NULL);
        _exit(errno == ENOENT ? 6 : 1);
    }
    CHECK(waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 6);
    char *arguments[] = {"sh", "-c", "exit 7", NULL};
    CHECK(posix_spawn(&child, "/bin/sh", NULL, NULL, arguments, environ) == 0);
    CHECK(waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 7);
    CHECK(posix_spawn(&child, "/there/is/none", NULL, NULL, arguments, environ) == ENOENT);
    CHECK(WEXITSTATUS(system("exit 8")) == 8);
    FILE *pipe = popen("echo said", "r");
    char line[10] = "";
    CHECK(pipe && fgets(line, sizeof line, pipe) && strcmp(line, "said\n") == 0);
    CHECK(pclose(pipe) == 0);
}

static volatile sig_atomic_t forked;

static void fork_once(int signal)
{
    (void)signal;
    int error = errno;
    pid_t child = fork();
    if (child == 0) {
        free(malloc(LARGE));
        _exit(0);
    }
    int status;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    forked++;
    errno = error;
}

/* A signal handler forks. It may have interrupted another fork, at any instruction. */
static void handlers_can_fork_during_a_fork(void)
{
    struct sigaction action = {.sa_handler = fork_once, .sa_flags = SA_RESTART};
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    struct itimerval often = {{0, 1500}, {0, 1500}}, never = {{0, 0}, {0, 0}};
    static void *blocks[97];
    CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
    for (unsigned i = 0; forked < 500; i++) {
        free(blocks[i % 97]);
        blocks[i % 97] = malloc(i % 4 ? i * 7919 % 70000 : LARGE);
        if (i % 3 == 0) {
            pid_t child = fork();
            CHECK(child >= 0);
            if (child == 0)
                _exit(0);
            while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
                ;
        }
    }
    CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
}

#define ENTRY(name) {#name, name}
int main(int argc, char **argv)
{
    static const struct check checks[] = {
        ENTRY(threads_exchange_blocks),
        ENTRY(short_lived_threads),
        ENTRY(forks_amid_threads),
        ENTRY(fork_handlers_can_allocate),
        ENTRY(threads_joined_on_another_cpu),
        ENTRY(handlers_can_fork_during_a_fork),
        ENTRY(vfork_children_have_their_own_memory),
        ENTRY(programs_can_be_started),
    };
    return run_checks(checks, sizeof checks / sizeof *checks, argc, argv);
}
