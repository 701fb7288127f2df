/* Checks what a program can do with its process under other allocators: namespaces, threads,
 * signals, memory. An alarm ends a check that hangs. */
#include "check.h"

#include <dirent.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

enum { TIMEOUT = 300, MIB = 1 << 20 };

/* Returns a number of /proc/self/statm in MiB: the address space for 0, resident memory for 1. */
static long mib_of(int which)
{
    long pages[2] = {0, 0};
    FILE *file = fopen("/proc/self/statm", "r");
    CHECK(file && fscanf(file, "%ld %ld", &pages[0], &pages[1]) == 2);
    fclose(file);
    return pages[which] * (sysconf(_SC_PAGESIZE) / 1024) / 1024;
}

static long address_space_mib(void) { return mib_of(0); }
static long resident_mib(void) { return mib_of(1); }

static int threads(void)
{
    int count = 0;
    DIR *tasks = opendir("/proc/self/task");
    for (struct dirent *entry; tasks && (entry = readdir(tasks));)
        count += entry->d_name[0] != '.';
    closedir(tasks);
    return count;
}

/* Allocates `mib` MiB of small blocks, and frees them. */
static void *burst(void *mib)
{
    size_t count = (size_t)(intptr_t)mib * MIB / 128;
    void **blocks = malloc(count * sizeof *blocks);
    for (size_t i = 0; i < count; i++)
        memset(blocks[i] = malloc(120), 1, 120);
    for (size_t i = 0; i < count; i++)
        free(blocks[i]);
    free(blocks);
    return NULL;
}

/* Waits for a child, which must exit with 0. */
static void wait_for_child(pid_t child)
{
    int status = 1;
    while (waitpid(child, &status, 0) < 0)
        CHECK(errno == EINTR);
    CHECK(status == 0);
}

static int may_have_user_namespaces(void)
{
    pid_t child = fork();
    if (child == 0)
        _exit(unshare(CLONE_NEWUSER) != 0);
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    if (status != 0)
        fprintf(stderr, "skipped: user namespaces: they are not permitted here\n");
    return status == 0;
}

/* A program of one thread may enter a user namespace, so the allocator must not have made a thread.
 * The kernel refuses that to programs with several threads. */
static void single_threaded_program_enters_user_namespace(void)
{
    if (!may_have_user_namespaces())
        return;
    burst((void *)64);
    CHECK(threads() == 1);
    CHECK(unshare(CLONE_NEWUSER) == 0);
}

/* The same becomes possible again once the program's threads have ended and the allocator's thread
 * has no work left. */
static void user_namespace_after_threads_ended(void)
{
    if (!may_have_user_namespaces())
        return;
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, burst, (void *)64) == 0 && pthread_join(thread, NULL) == 0);
    while (unshare(CLONE_NEWUSER) != 0)
        usleep(10000);
}

static void *exit_later(void *nothing)
{
    burst((void *)16);
    usleep(100000);
    return nothing;
}

/* A process ends with its last thread, even if the main thread ended earlier. */
static void process_ends_with_its_last_thread(void)
{
    pid_t child = fork();
    if (child == 0) {
        alarm(TIMEOUT);
        burst((void *)64);
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, exit_later, NULL) == 0);
        pthread_exit(NULL);
    }
    wait_for_child(child);
}

static int may_create_threads = 1;

/* Called in place of the C library's function. */
int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*body)(void *),
                   void *argument)
{
    CHECK(may_create_threads);
    typeof(pthread_create) *create = (typeof(create))dlsym(RTLD_NEXT, "pthread_create");
    return create(thread, attributes, body, argument);
}

/* The child of a fork returns memory by a thread that the C library does not create: creating one
 * takes locks of the loader, and a thread of the parent may have held them, as in dlopen. */
static void forked_child_returns_memory_without_loader_locks(void)
{
    pid_t child = fork();
    if (child == 0) {
        alarm(TIMEOUT);
        may_create_threads = 0;
        long before = resident_mib();
        burst((void *)400);
        while (resident_mib() > before + 32)
            usleep(10000);
        _exit(0);
    }
    wait_for_child(child);
}

static void *wait_for_signal(void *set)
{
    int signal;
    CHECK(sigwait(set, &signal) == 0 && signal == SIGHUP);
    return NULL;
}

/* Memory still returns to the system when signals are blocked in all threads and one thread takes
 * them by sigwait. */
static void memory_returns_with_signals_blocked(void)
{
    static sigset_t set;
    sigfillset(&set);
    sigdelset(&set, SIGALRM);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, wait_for_signal, &set) == 0);
    long before = resident_mib();
    burst((void *)400);
    while (resident_mib() > before + 32)
        usleep(10000);
    kill(getpid(), SIGHUP);
    CHECK(pthread_join(thread, NULL) == 0);
}

/* A large zeroed table takes memory only where it is written, even if a block of that size was
 * freed just before. */
static void zeroed_tables_stay_sparse(void)
{
    const size_t size = 256 * MIB;
    long before = resident_mib();
    char *block = malloc(hidden(size));
    memset(block, 1, size);
    free(block);
    CHECK((block = calloc(1, hidden(size))));
    for (size_t at = 0; at < size; at += MIB)
        CHECK(block[at]++ == 0);
    CHECK(resident_mib() <= before + 40);
    for (size_t at = 0; at < size; at += 4096)
        CHECK(block[at] == (at % MIB == 0));
    free(block);
}

/* Requests that cannot be met are refused, and use up no address space. */
static void refused_requests_use_no_address_space(void)
{
    long before = address_space_mib();
    for (size_t i = 0; i < 200; i++)
        CHECK(!malloc(hidden(((size_t)240 << 30) + (i << 26))));
    char *block = malloc(hidden(400 * MIB));
    CHECK(block);
    memset(block, 1, 400 * MIB);
    CHECK(address_space_mib() - before < 1 << 20);
    free(block);
}

#define ENTRY(name) {#name, name}
int main(int argc, char **argv)
{
    static const struct check checks[] = {
        ENTRY(single_threaded_program_enters_user_namespace),
        ENTRY(user_namespace_after_threads_ended),
        ENTRY(process_ends_with_its_last_thread),
        ENTRY(forked_child_returns_memory_without_loader_locks),
        ENTRY(memory_returns_with_signals_blocked),
        ENTRY(zeroed_tables_stay_sparse),
        ENTRY(refused_requests_use_no_address_space),
    };
    alarm(TIMEOUT);
    return run_checks(checks, sizeof checks / sizeof *checks, argc, argv);
}
