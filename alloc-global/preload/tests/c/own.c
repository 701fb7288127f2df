/* What is Hayloft's own, by its header. */
#include "check.h"
#include <hayloft.h>

static void blocks(void)
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

static void bad_caches(void)
{
    struct {
        const char *name;
        size_t size, align;
        unsigned flags;
    } bad[] = {{"none", 0, 0, 0}, {"", 10, 0, 0}, {"odd", 10, 3, 0}, {"large", 1 << 20, 0, 0},
               {"\xff", 10, 0, 0}, {"flags", 10, 0, 1u << 20}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        errno = 0;
        CHECK(!hayloft_cache_create(bad[i].name, bad[i].size, bad[i].align, bad[i].flags));
        CHECK(errno == EINVAL);
    }
    hayloft_cache *cache = hayloft_cache_create("twice", 10, 0, 0);
    errno = 0;
    CHECK(cache && !hayloft_cache_create("twice", 20, 0, 0) && errno == EEXIST);
    errno = 0;
    CHECK(!hayloft_cache_create("kmalloc-64", 64, 0, 0) && errno == EEXIST);
    CHECK(hayloft_cache_destroy(cache) == 0);
}

static void whole(void)
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

#define ENTRY(name) {#name, name}
int main(int argc, char **argv)
{
    static const struct check checks[] = {
        ENTRY(blocks), ENTRY(caches), ENTRY(bad_caches), ENTRY(whole),
    };
    return run_checks(checks, sizeof checks / sizeof *checks, argc, argv);
}
