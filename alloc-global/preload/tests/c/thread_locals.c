/* Checks a program with THREAD_LOCALS bytes of thread-locals. The C library places them on the stack
 * of each thread, so the threads of the allocator need stacks that are long enough. */
#include "check.h"
#include "hayloft.h"

#include <dirent.h>
#include <unistd.h>

enum { TIMEOUT = 300, MIB = 1 << 20 };

static __thread volatile char locals[THREAD_LOCALS];

/* Returns whether this process has a thread of that name. */
static int has_thread(const char *name)
{
    int found = 0;
    DIR *tasks = opendir("/proc/self/task");
    for (struct dirent *entry; tasks && (entry = readdir(tasks));) {
        char path[300], text[32] = "";
        snprintf(path, sizeof path, "/proc/self/task/%s/comm", entry->d_name);
        FILE *file = entry->d_name[0] == '.' ? NULL : fopen(path, "r");
        if (file && fgets(text, sizeof text, file))
            found |= strncmp(text, name, strlen(name)) == 0;
        if (file)
            fclose(file);
    }
    closedir(tasks);
    return found;
}

static long resident_mib(void)
{
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    CHECK(file && fscanf(file, "%*d %ld", &pages) == 1);
    fclose(file);
    return pages * (sysconf(_SC_PAGESIZE) / 1024) / 1024;
}

/* The thread that makes those of CPUs starts. */
static void cpu_threads_start(void)
{
    hayloft_barrier();
    /* A thread names itself. */
    while (!has_thread("hayloft/cpus"))
        usleep(10000);
}

/* The thread that returns memory starts, and returns it. */
static void reclaim_thread_starts(void)
{
    enum { BLOCKS = 64 };
    long before = resident_mib();
    void *blocks[BLOCKS];
    for (int i = 0; i < BLOCKS; i++)
        memset(blocks[i] = malloc(MIB), 1, MIB);
    for (int i = 0; i < BLOCKS; i++)
        free(blocks[i]);
    while (resident_mib() > before + 16)
        usleep(10000);
}

#define ENTRY(name) {#name, name}
int main(int argc, char **argv)
{
    static const struct check checks[] = {ENTRY(cpu_threads_start), ENTRY(reclaim_thread_starts)};
    locals[hidden(sizeof locals - 1)] = 1;
    alarm(TIMEOUT);
    return run_checks(checks, sizeof checks / sizeof *checks, argc, argv);
}
