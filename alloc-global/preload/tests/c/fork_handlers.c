/* Checks forks together with others that take locks around a fork: a library with fork handlers,
 * and the C library's streams. */
#include "check.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

void allocate_locked(void);

enum { FORKS = 300 };
static atomic_int over;

static void *allocate(void *argument)
{
    while (!over)
        allocate_locked();
    return argument;
}

static void *read_lines(void *argument)
{
    FILE *file = fopen(argument, "r");
    CHECK(file);
    while (!over) {
        char *line = NULL;
        size_t room = 0;
        rewind(file);
        CHECK(getline(&line, &room, file) > 0);
        free(line);
    }
    fclose(file);
    return NULL;
}

static void *flush(void *argument)
{
    while (!over)
        fflush(NULL);
    return argument;
}

static void fork_often(void)
{
    for (int i = 0; i < FORKS; i++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            free(malloc(100000));
            _exit(0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
    }
    over = 1;
}

/* If the library's handlers were registered before the allocator's, they would run while the
 * allocator holds its locks. */
static void handlers_of_libraries(void)
{
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, allocate, NULL) == 0);
    fork_often();
    CHECK(pthread_join(thread, NULL) == 0);
}

/* glibc bug 19431: a thread that flushes all streams waits for a stream whose reader allocates. */
static void streams(void)
{
    char path[] = "/tmp/hayloft-line-XXXXXX";
    FILE *file = fdopen(mkstemp(path), "w");
    CHECK(file);
    for (int i = 0; i < 50000; i++)
        fputc('x', file);
    fputc('\n', file);
    fclose(file);
    pthread_t threads[3];
    CHECK(pthread_create(&threads[0], NULL, read_lines, path) == 0);
    CHECK(pthread_create(&threads[1], NULL, read_lines, path) == 0);
    CHECK(pthread_create(&threads[2], NULL, flush, NULL) == 0);
    fork_often();
    for (int i = 0; i < 3; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    unlink(path);
}

/* The child of a fork may use streams immediately, and the list of streams. */
static void streams_of_a_child(void)
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
        ENTRY(handlers_of_libraries), ENTRY(streams), ENTRY(streams_of_a_child),
    };
    return run_checks(checks, sizeof checks / sizeof *checks, argc, argv);
}
