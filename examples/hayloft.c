/*
 * Hayloft in C: the functions of hayloft.h beyond malloc and free. A timer's signal handler
 * allocates events while the program is in an allocation storm. Then the program allocates objects
 * in batches, fails to destroy a cache that is in use, and releases memory to the system.
 *
 *     cargo build --release -p libhayloft
 *     cc -Ialloc-global/preload/include examples/hayloft.c target/release/libhayloft.a \
 *         -lgcc_s -lpthread -ldl -lm
 *
 * For the shared library, use `-Ltarget/release -lhayloft` and LD_LIBRARY_PATH=target/release
 * instead. The exit code is 0 if all checks passed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

#include "hayloft.h"

enum { EVENTS = 200, BATCH = 1000, HELD = 500, LARGE = 8 << 20 };

struct event {
    struct event *next;
    unsigned number;
    char *text;
};

static hayloft_cache *events;
/* The list of events from the handler, newest first. */
static struct event *_Atomic arrived;
static atomic_uint missed;

static void fail(const char *what)
{
    fprintf(stderr, "failed: %s\n", what);
    exit(1);
}

/* Allocates an event without waiting, whatever the signal interrupted. */
static void on_timer(int signal)
{
    static unsigned count;
    struct event *event = hayloft_cache_alloc_nolock(events);
    /* malloc() would do as well: it detects that it interrupted the allocator. */
    char *text = hayloft_alloc_nolock(100);

    (void)signal;
    if (!event || !text) {
        hayloft_cache_free_nolock(events, event);
        hayloft_free_nolock(text);
        atomic_fetch_add(&missed, 1);
        return;
    }
    event->number = count++;
    memset(text, 'a' + event->number % 26, 99);
    text[99] = 0;
    event->text = text;
    event->next = atomic_load(&arrived);
    while (!atomic_compare_exchange_weak(&arrived, &event->next, event))
        ;
}

static void set_timer(long microseconds)
{
    struct itimerval timer = { { 0, microseconds }, { 0, microseconds } };

    if (setitimer(ITIMER_REAL, &timer, NULL) != 0)
        fail("setitimer");
}

/* Checks and frees the events that have arrived. Returns their number. */
static unsigned take_events(void)
{
    struct event *event = atomic_exchange(&arrived, NULL);
    unsigned count = 0;

    while (event) {
        struct event *next = event->next;

        if (strspn(event->text, (char[]){ 'a' + event->number % 26, 0 }) != 99)
            fail("the text of an event");
        free(event->text);
        hayloft_cache_free(events, event);
        event = next;
        count++;
    }
    return count;
}

static void storm(void)
{
    struct sigaction action = { .sa_handler = on_timer, .sa_flags = SA_RESTART };
    void *held[HELD] = { NULL };
    unsigned taken = 0;
    unsigned long rounds = 0;

    events = hayloft_cache_create("events", sizeof(struct event), 0, HAYLOFT_CACHE_NO_MERGE);
    if (!events || sigaction(SIGALRM, &action, NULL) != 0)
        fail("events");
    set_timer(500);
    while (taken < EVENTS) {
        void **block = &held[rounds * 7919 % HELD];

        free(*block);
        *block = malloc(rounds++ * 31 % 70000);
        if (!*block)
            fail("malloc");
        if (rounds % 100 == 0)
            taken += take_events();
    }
    set_timer(0);
    taken += take_events();
    for (unsigned i = 0; i < HELD; i++)
        free(held[i]);
    if (hayloft_cache_destroy(events) != 0)
        fail("destroying the cache of events");
    printf("%u events from handlers amid %lu rounds, %u missed\n", taken, rounds, atomic_load(&missed));
}

static void batch(void)
{
    hayloft_cache *cache = hayloft_cache_create("lines", 192, 64, HAYLOFT_CACHE_ZERO);
    struct hayloft_cache_stats stats;
    void *objects[BATCH];

    if (!cache || hayloft_cache_create("lines", 192, 64, 0) || errno != EEXIST)
        fail("a name that is taken");
    if (hayloft_cache_alloc_bulk(cache, objects, BATCH) != BATCH)
        fail("bulk");
    for (unsigned i = 0; i < BATCH; i++) {
        static const char zeros[192];

        if ((uintptr_t)objects[i] % 64 != 0 || memcmp(objects[i], zeros, 192) != 0)
            fail("an object that is aligned and zero");
        memset(objects[i], 0xff, 192);
    }
    hayloft_cache_stats(cache, &stats);
    printf("%zu objects of %zu bytes in %zu slabs\n", stats.in_use, stats.object_size, stats.slabs);
    if (stats.in_use != BATCH || stats.object_size != 192)
        fail("statistics of a cache");

    hayloft_cache_free_bulk(cache, objects, BATCH - 1);
    if (hayloft_cache_destroy(cache) == 0 || errno != EBUSY)
        fail("a cache that is in use");
    hayloft_cache_free(cache, objects[BATCH - 1]);
    if (hayloft_cache_destroy(cache) != 0)
        fail("destroying a cache that is not in use");
}

static void trim(void)
{
    struct hayloft_stats before, after;
    char *block = malloc(LARGE);
    size_t returned;

    if (!block)
        fail("malloc");
    memset(block, 1, LARGE);
    hayloft_stats(&before);
    free(block);
    returned = hayloft_trim();
    hayloft_barrier();
    hayloft_stats(&after);
    printf("%zu bytes held, %zu given back, then %zu held; %llu frees were deferred\n", before.held, returned,
           after.held, (unsigned long long)after.deferred);
    if (after.held + LARGE > before.held)
        fail("it was not given back");
    if (after.deferred != after.flushed)
        fail("a free that was deferred, and not done");
}

int main(void)
{
    storm();
    batch();
    trim();
    puts("all as it should be");
    return 0;
}
