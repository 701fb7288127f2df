/*
 * What Hayloft has beyond malloc and free: to be used with libhayloft.so or libhayloft.a, which have the functions of the C
 * standard, POSIX and glibc as well, under their names.
 *
 * Unless it says otherwise, a function that allocates answers null and sets errno where it fails. Blocks and objects that any of
 * these allocates may be freed by free().
 *
 * Variables of the environment set how it behaves: see the table in README.md, https://github.com/hayloft-alloc/hayloft#settings
 */
#ifndef HAYLOFT_H
#define HAYLOFT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Allocates and frees without ever waiting for a lock: for code that must not wait, though it interrupted nothing. In a signal
 * handler malloc() and free() do this by themselves. */
void *hayloft_alloc_nolock(size_t size);
void hayloft_free_nolock(void *block);

/* Gives all memory back to the system that no block in use needs; how many bytes it got. Not for signal handlers. */
size_t hayloft_trim(void);

/* Waits until all that was freed before, in whatever context, is free in earnest. Starts threads, as hayloft_cache_create() does.
 * Not for signal handlers. */
void hayloft_barrier(void);

/* Numbers of the whole allocator, each as it was at some time. In any context, a signal handler included. */
struct hayloft_stats {
    size_t held;              /* bytes handed out, or kept for what may come */
    size_t free;              /* of these, free */
    size_t unneeded;          /* of these, in pages that nobody needs */
    size_t in_slabs;          /* bytes of slabs */
    size_t large;             /* bytes of blocks that are too large for slabs */
    size_t resident;          /* bytes that the process has in memory */
    size_t limit;             /* bytes that may be held; 0 without a limit */
    uint64_t decommitted;     /* bytes given back to the system */
    uint64_t nolock_tries;    /* allocations that no CPU's own objects could serve, where nothing might be waited for */
    uint64_t nolock_failures; /* of these, without memory */
    uint64_t deferred;        /* frees that could not be done where they were asked for */
    uint64_t flushed;         /* of these, done since */
    uint64_t irq_works;       /* works queued for CPUs */
};
/* In C++ `struct` must be written before the name of a type that a function has as well; these names need none. */
typedef struct hayloft_stats hayloft_stats_t;
void hayloft_stats(hayloft_stats_t *to);

/* Writes all statistics to an open file, in any context; 0, or -1 and errno where the file takes no more (EIO) or there is no such
 * format (EINVAL). */
#define HAYLOFT_SLABINFO 0u    /* as /proc/slabinfo */
#define HAYLOFT_OPENMETRICS 1u /* as Prometheus reads it */
#define HAYLOFT_JSON 2u
#define HAYLOFT_TABLE 3u       /* for people */
int hayloft_stats_write(int file, unsigned format);

/* A cache of objects of one kind. */
typedef struct hayloft_cache hayloft_cache;

#define HAYLOFT_CACHE_NO_MERGE 1u      /* shares its slabs with no other cache */
#define HAYLOFT_CACHE_ZERO 2u          /* objects read as zero when they are allocated */
#define HAYLOFT_CACHE_HWCACHE_ALIGN 4u /* objects start on a cache line, or the part of one that they fill */
#define HAYLOFT_CACHE_PANIC_ON_LEAK 8u /* hayloft_cache_destroy() ends the process if objects are in use */

/* Makes a cache of objects of this size and alignment (0 for that of a pointer). The name is copied. The first cache starts a
 * thread, asleep unless frees had to be deferred, which then makes one for the CPU that is to do them, pinned to it, with all
 * signals blocked but one real-time signal. Not for signal handlers. Where it fails errno is
 *
 *     EEXIST  where another cache has the name, or it begins with "kmalloc-", as those of size classes do;
 *     EINVAL  where the size is 0 or above 32 KiB less 8 bytes, the alignment above 4096 or no power of two, a flag unknown, or
 *             the name empty or not UTF-8;
 *     ENOSPC  where there are 255 already, those that share slabs counted as one;
 *     ENOMEM  where there is no memory. */
hayloft_cache *hayloft_cache_create(const char *name, size_t size, size_t align, unsigned flags);

/* Destroys a cache that nobody uses: 0; or -1 and EBUSY if objects of it are in use, and then it is as it was. Not for signal
 * handlers. */
int hayloft_cache_destroy(hayloft_cache *cache);

/* In any context. A null pointer may be freed. */
void *hayloft_cache_alloc(const hayloft_cache *cache);
void *hayloft_cache_alloc_nolock(const hayloft_cache *cache);
void hayloft_cache_free(const hayloft_cache *cache, void *object);
void hayloft_cache_free_nolock(const hayloft_cache *cache, void *object);

/* Allocates as many objects as are wanted; how many there were. None that is freed so may be null. */
size_t hayloft_cache_alloc_bulk(const hayloft_cache *cache, void **to, size_t count);
void hayloft_cache_free_bulk(const hayloft_cache *cache, void *const *objects, size_t count);

/* Gives memory back that no object in use needs; how many bytes. Not for signal handlers. */
size_t hayloft_cache_shrink(const hayloft_cache *cache);

/* What there is of a cache, and of those that it shares its slabs with. In any context. */
struct hayloft_cache_stats {
    char name[32];           /* without a null byte if it is that long, or longer */
    size_t object_size;      /* bytes of an object */
    size_t stride;           /* bytes from one object to the next */
    size_t objects_per_slab;
    size_t slab_size;        /* bytes of a slab */
    size_t sheaf_capacity;   /* most objects that a CPU keeps */
    size_t slabs;
    size_t partial_slabs;    /* slabs with free objects */
    size_t in_use;           /* objects that the program has */
    size_t in_sheaves;       /* free objects that CPUs keep */
    size_t in_barns;         /* free objects that nodes keep */
    size_t sharers;          /* caches that share the slabs, this one included */
    uint64_t hits;           /* objects allocated from a CPU's own; counted with the feature `counters` only */
    uint64_t refills;        /* allocations that found none there */
    uint64_t flushes;        /* frees that found no room there */
    uint64_t barn_empty;     /* refills that the node had nothing for */
    uint64_t barn_full;      /* flushes that the node had no room for */
    uint64_t new_slabs;      /* slabs made */
};
typedef struct hayloft_cache_stats hayloft_cache_stats_t;
void hayloft_cache_stats(const hayloft_cache *cache, hayloft_cache_stats_t *to);

#ifdef __cplusplus
}
#endif

#endif
