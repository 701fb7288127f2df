/* Checks forks beside other code that takes locks around a fork: a library with fork handlers, and
 * the C library's streams. */
#include "check.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

void allocate_locked(void);

static atomic_int done;

static void *allocate_repeatedly(void *argument)
{
    while (!done)
        allocate_locked();
    return argument;
}

static void *read_lines(void *argument)
{
    FILE *file = fopen(argument, "r");
    CHECK(file);
    while (!done) {
        char *line = NULL;
        size_t room = 0;
        rewind(file);
        CHECK(getline(&line, &room, file) > 0);
        free(line);
    }
    fclose(file);
    return NULL;
}

static void *flush_streams(void *argument)
{
    while (!done)
        fflush(NULL);
    return argument;
}

static void fork_repeatedly(int forks)
{
    for (int i = 0; i < forks; i++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            free(malloc(LARGE));
            _exit(0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
    }
    done = 1;
}

/* If the library's handlers were registered before the allocator's, they would run while the
 * allocator holds its locks. */
static void handlers_of_libraries_can_wait_for_allocations(void)
{
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, allocate_repeatedly, NULL) == 0);
    fork_repeatedly(300);
    CHECK(pthread_join(thread, NULL) == 0);
}

/* glibc bug 19431: a thread that flushes all streams waits for a stream whose reader allocates. */
static void forks_amid_stream_io(void)
{
    char path[] = "/tmp/hayloft-line-XXXXXX";
    FILE *file = fdopen(mkstemp(path), "w");
    CHECK(file);
    for (int i = 0; i < LARGE; i++)
        fputc('x', file);
    fputc('\n', file);
    fclose(file);
    pthread_t threads[3];
    CHECK(pthread_create(&threads[0], NULL, read_lines, path) == 0);
    CHECK(pthread_create(&threads[1], NULL, read_lines, path) == 0);
    CHECK(pthread_create(&threads[2], NULL, flush_streams, NULL) == 0);
    /* Each fork takes as long as reading some lines. */
    fork_repeatedly(30);
    for (int i = 0; i < 3; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    unlink(path);
}

/* The child of a fork may use streams immediately, and the list of streams. */
static void child_can_use_streams(void)
{
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        FILE *file = fopen("/dev/null", "w");
        CHECK(file && fprintf(file, "x") == 1 && fclose(file) == 0 && fflush(NULL) == 0);
        exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(fflush(NULL) == 0);
}

#define ENTRY(name) {#name, name}
int main(int argc, char **argv)
{
    static const struct check checks[] = {
        ENTRY(handlers_of_libraries_can_wait_for_allocations),
        ENTRY(forks_amid_stream_io),
        ENTRY(child_can_use_streams),
    };
    return run_checks(checks, sizeof checks / sizeof *checks, argc, argv);
}
