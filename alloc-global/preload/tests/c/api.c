/* Checks the functions that the header declares. */
#include "check.h"
#include <hayloft.h>

#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void nolock_blocks(void)
{
    for (size_t size = 0; size < 1000000; size = size * 2 + 1) {
        char *block = hayloft_alloc_nolock(size);
        CHECK(block && is_aligned(block, 16));
        memset(block, 1, size);
        hayloft_free_nolock(block);
        hayloft_free_nolock(malloc(size));
        free(hayloft_alloc_nolock(size));
    }
    hayloft_free_nolock(NULL);
    errno = 0;
    CHECK(!hayloft_alloc_nolock(hidden(SIZE_MAX)) && errno == ENOMEM);
}

static void caches(void)
{
    enum { COUNT = 1000 };
    void *objects[COUNT];
    hayloft_cache *cache = hayloft_cache_create("objects", 100, 0, HAYLOFT_CACHE_NO_MERGE);
    hayloft_cache *zero =
        hayloft_cache_create("zero", 200, 64, HAYLOFT_CACHE_ZERO | HAYLOFT_CACHE_HWCACHE_ALIGN);
    CHECK(cache && zero);
    for (int i = 0; i < COUNT; i++) {
        CHECK((objects[i] = i % 2 ? hayloft_cache_alloc(cache) : hayloft_cache_alloc_nolock(cache)));
        memset(objects[i], i, 100);
    }
    struct hayloft_cache_stats stats;
    hayloft_cache_stats(cache, &stats);
    CHECK(stats.object_size == 100 && stats.stride >= 100 && stats.sharers == 1);
    CHECK(stats.in_use == COUNT && stats.slabs > 0);
    errno = 0;
    CHECK(hayloft_cache_destroy(cache) == -1 && errno == EBUSY);
    for (int i = 0; i < COUNT; i++) {
        CHECK(*(unsigned char *)objects[i] == (unsigned char)i);
        switch (i % 3) {
        case 0: hayloft_cache_free(cache, objects[i]); break;
        case 1: hayloft_cache_free_nolock(cache, objects[i]); break;
        case 2: free(objects[i]); break;
        }
    }
    CHECK(hayloft_cache_alloc_bulk(zero, objects, COUNT) == COUNT);
    for (int i = 0; i < COUNT; i++) {
        for (int at = 0; at < 200; at++)
            CHECK(((char *)objects[i])[at] == 0);
        CHECK(is_aligned(objects[i], 64));
        memset(objects[i], 1, 200);
    }
    hayloft_cache_free_bulk(zero, objects, COUNT);
    hayloft_cache_free(zero, NULL);
    CHECK(hayloft_cache_shrink(zero) > 0);
    CHECK(hayloft_cache_destroy(cache) == 0 && hayloft_cache_destroy(zero) == 0);
}

static void invalid_caches(void)
{
    struct {
        const char *name;
        size_t size, align;
        unsigned flags;
    } invalid[] = {{"none", 0, 0, 0}, {"", 10, 0, 0}, {"odd", 10, 3, 0}, {"large", 1 << 20, 0, 0},
               {"\xff", 10, 0, 0}, {"flags", 10, 0, 1u << 20}};
    for (size_t i = 0; i < sizeof invalid / sizeof *invalid; i++) {
        errno = 0;
        CHECK(!hayloft_cache_create(invalid[i].name, invalid[i].size, invalid[i].align, invalid[i].flags));
        CHECK(errno == EINVAL);
    }
    hayloft_cache *cache = hayloft_cache_create("twice", 10, 0, 0);
    errno = 0;
    CHECK(cache && !hayloft_cache_create("twice", 20, 0, 0) && errno == EEXIST);
    errno = 0;
    CHECK(!hayloft_cache_create("kmalloc-64", 64, 0, 0) && errno == EEXIST);
    CHECK(hayloft_cache_destroy(cache) == 0);
}

_Static_assert(sizeof(struct hayloft_stats) == 176, "as in src/api.rs");
_Static_assert(sizeof(struct hayloft_cache_stats) == 184, "as in src/api.rs");

static void statistics_of_caches(void)
{
    hayloft_cache *cache = hayloft_cache_create("counted", 40, 0, HAYLOFT_CACHE_NO_MERGE);
    void *objects[10];
    CHECK(cache && hayloft_cache_alloc_bulk(cache, objects, 10) == 10);
    struct hayloft_cache_stats stats;
    hayloft_cache_stats(cache, &stats);
    CHECK(stats.allocs == 10 && stats.in_use == 10 && stats.new_slabs == 1);
    hayloft_cache_free_bulk(cache, objects, 10);
    CHECK(hayloft_cache_destroy(cache) == 0);
}

static void *profile_blocks[1000];

static void profiles(void)
{
    CHECK(hayloft_profile_start(100) == 0);
    for (size_t i = 0; i < 1000; i++)
        CHECK((profile_blocks[i] = malloc(i)));
    int file = open("/dev/null", O_WRONLY);
    CHECK(file >= 0 && hayloft_profile_write(file) == 0);
    unsigned mark = hayloft_profile_mark();
    CHECK(mark > 0 && hayloft_profile_mark() > mark);
    CHECK(hayloft_profile_write_growth(mark, file) == 0);
    close(file);
    errno = 0;
    CHECK(hayloft_profile_write(file) == -1 && errno == EIO);
    errno = 0;
    CHECK(hayloft_profile_write_growth(mark, file) == -1 && errno == EIO);
    hayloft_profile_stop();
    for (size_t i = 0; i < 1000; i++) {
        CHECK(malloc_usable_size(profile_blocks[i]) >= i);
        profile_blocks[i] = realloc(profile_blocks[i], 2 * i + 1);
        free(profile_blocks[i]);
    }
}

static void tags(void)
{
    CHECK(hayloft_profile_start(1) == 0);
    unsigned none = hayloft_tag_enter("outer");
    CHECK(none == 0);
    unsigned outer = hayloft_tag_enter("inner \xff not UTF-8");
    CHECK(outer != 0);
    void *block = malloc(1024);
    unsigned inner = hayloft_tag_enter(NULL);
    CHECK(inner != 0 && inner != outer && hayloft_tag_enter("outer") == 0);
    hayloft_tag_leave(inner);
    hayloft_tag_leave(outer);
    CHECK(hayloft_tag_enter("") == outer);
    hayloft_tag_leave(none);
    char text[1 << 18];
    FILE *file = tmpfile();
    CHECK(file && hayloft_stats_write(fileno(file), HAYLOFT_OPENMETRICS) == 0);
    ssize_t bytes = pread(fileno(file), text, sizeof text - 1, 0);
    CHECK(bytes > 0);
    text[bytes] = 0;
    CHECK(strstr(text, "hayloft_tag_bytes{tag=\"inner \"} 1024\n"));
    fclose(file);
    hayloft_profile_stop();
    free(block);
}

static void *other_thread(void *to)
{
    *(uint64_t *)to = hayloft_thread_allocated(NULL);
    return NULL;
}

static void threads(void)
{
    uint64_t allocated = hayloft_thread_allocated(NULL), freed = hayloft_thread_freed(NULL);
    CHECK(allocated == 0 && freed == 0);
    CHECK(hayloft_profile_start(1) == 0);
    free(malloc(20 << 20));
    uint64_t error = 1;
    CHECK(hayloft_thread_allocated(&error) >= 20 << 20 && error == 0);
    error = 1;
    CHECK(hayloft_thread_freed(&error) >= 20 << 20 && error == 0);
    pthread_t thread;
    uint64_t other = 1 << 30;
    CHECK(pthread_create(&thread, NULL, other_thread, &other) == 0);
    CHECK(pthread_join(thread, NULL) == 0 && other < 1 << 20);
    hayloft_profile_stop();
}

static void statistics_and_trim(void)
{
    struct hayloft_stats before, after;
    char *block = malloc(20 << 20);
    memset(block, 1, 20 << 20);
    hayloft_stats(&before);
    CHECK(before.held >= 20 << 20 && before.held >= before.free && before.free >= before.unneeded);
    free(block);
    hayloft_barrier();
    CHECK(hayloft_trim() > 0);
    hayloft_stats(&after);
    CHECK(after.held < before.held && after.unneeded == 0 && after.deferred == after.flushed);
}

/* Runs in a thread that outlives the main thread: the library still works, without threads of its
 * own. */
static void *outlive(void *main_thread)
{
    CHECK(pthread_join(*(pthread_t *)main_thread, NULL) == 0);
    struct hayloft_cache *cache = hayloft_cache_create("late", 64, 0, 0);
    CHECK(cache);
    void *object = hayloft_cache_alloc(cache);
    CHECK(object);
    hayloft_cache_free(cache, object);
    hayloft_barrier();
    CHECK(hayloft_cache_destroy(cache) == 0);
    return NULL;
}

static int ready[2];

static void *outlive_and_wait(void *main_thread)
{
    outlive(main_thread);
    CHECK(write(ready[1], "", 1) == 1);
    for (;;)
        pause();
}

/* Ends the main thread while `other` runs. The process must end with its last thread. */
static void end_main(void *(*other)(void *))
{
    static pthread_t main_thread;
    pthread_t thread;
    /* A limit, in case the process hangs. */
    alarm(300);
    struct hayloft_cache *cache = hayloft_cache_create("early", 64, 0, 0);
    CHECK(cache);
    hayloft_barrier();
    main_thread = pthread_self();
    CHECK(pthread_create(&thread, NULL, other, &main_thread) == 0);
    pthread_exit(NULL);
}

static void main_ends_first(void)
{
    end_main(outlive);
}

static void main_of_a_forked_child_ends_first(void)
{
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0)
        end_main(outlive);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

/* A signal still ends a process whose main thread has ended. */
static void signal_ends_a_process_without_main_thread(void)
{
    char byte;
    CHECK(pipe(ready) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0)
        end_main(outlive_and_wait);
    CHECK(read(ready[0], &byte, 1) == 1);
    CHECK(kill(child, SIGTERM) == 0);
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
}

#define ENTRY(name) {#name, name}
int main(int argc, char **argv)
{
    static const struct check checks[] = {
        ENTRY(nolock_blocks),
        ENTRY(caches),
        ENTRY(invalid_caches),
        ENTRY(statistics_of_caches),
        ENTRY(profiles),
        ENTRY(tags),
        ENTRY(threads),
        ENTRY(statistics_and_trim),
        ENTRY(main_ends_first),
        ENTRY(main_of_a_forked_child_ends_first),
        ENTRY(signal_ends_a_process_without_main_thread),
    };
    return run_checks(checks, sizeof checks / sizeof *checks, argc, argv);
}
