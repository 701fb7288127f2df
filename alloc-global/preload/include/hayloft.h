/*
 * The functions of Hayloft beyond malloc and free, in libhayloft.so and libhayloft.a. The two
 * libraries also export the allocation functions of the C standard, POSIX and glibc, under their
 * own names.
 *
 * Unless noted otherwise, a function that allocates returns null and sets errno when it fails.
 * free() accepts the blocks and objects that these functions allocate.
 *
 * Environment variables configure the allocator: see the table in docs/settings.md, and hayloft_conf
 * below.
 */
#ifndef HAYLOFT_H
#define HAYLOFT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Settings that a program has built in. A program that wants some defines this variable:
 *
 *     const char *hayloft_conf = "limit=512M decay_ms=0";
 *
 * The names are those of the environment variables without HAYLOFT_, in lower case. The environment
 * overrides them, unless "environment=0" is among them. The variable is read before main(), so its
 * initialiser has to be a constant. If the library is preloaded, the program has to export the
 * variable (-rdynamic). */
extern const char *hayloft_conf;

/* Allocates and frees without ever waiting for a lock, for code that must not wait although it
 * interrupted nothing. In a signal handler that interrupted the allocator, malloc() and free() do
 * this by themselves. */
void *hayloft_alloc_nolock(size_t size);
void hayloft_free_nolock(void *block);

/* Releases all idle memory to the system. Returns the number of bytes. Must not be called in signal
 * handlers. */
size_t hayloft_trim(void);

/* Waits until all earlier frees, in any context, are completed, so that none is deferred. Starts
 * threads, as hayloft_cache_create() does. Must not be called in signal handlers. */
void hayloft_barrier(void);

/* Statistics of the whole allocator. Each number is read at a time of its own, so they form no
 * consistent snapshot. May be read in any context, signal handlers included. */
struct hayloft_stats {
    size_t held;              /* bytes handed out, or kept for later use */
    size_t free;              /* free bytes of these */
    size_t unneeded;          /* bytes of these in idle pages */
    size_t in_slabs;          /* bytes of slabs */
    size_t large;             /* bytes of blocks too large for slabs */
    size_t resident;          /* resident bytes of the process */
    size_t limit;             /* most bytes that may be held; 0 without a limit */
    uint64_t decommitted;     /* bytes returned to the system */
    uint64_t nolock_tries;    /* allocations that missed the sheaf and must not wait */
    uint64_t nolock_failures; /* failed ones of these */
    uint64_t deferred;        /* frees that had to be deferred */
    uint64_t flushed;         /* completed ones of these */
    uint64_t irq_works;       /* works queued for CPUs */
    uint64_t decommits;       /* system calls that returned memory */
    uint64_t decommit_nanoseconds; /* time in such calls */
    uint64_t faults;          /* minor page faults of the process */
    uint64_t collapses;       /* huge pages made of memory in use */
    uint64_t collapse_failures; /* those that the system refused to make */
    uint64_t collapse_nanoseconds; /* time in calls to make them */
    uint64_t collapse_splits; /* those made that were split, as a part returned to the system */
    uint64_t guarded;         /* blocks that were guarded against misuse */
    uint64_t guarded_in_use;  /* those in use */
};
/* A function has the same name as the type, so C++ requires `struct` before the type's name. The
 * typedef does without. */
typedef struct hayloft_stats hayloft_stats_t;
void hayloft_stats(hayloft_stats_t *to);

/* Writes all statistics to an open file descriptor. May be called in any context. Returns 0, or -1
 * with errno EIO (writing failed) or EINVAL (unknown format). */
#define HAYLOFT_SLABINFO 0u    /* the format of /proc/slabinfo */
#define HAYLOFT_OPENMETRICS 1u /* for Prometheus */
#define HAYLOFT_JSON 2u
#define HAYLOFT_TABLE 3u       /* for people */
int hayloft_stats_write(int file, unsigned format);

/* Heap profiles. From the start on, one block in `mean` bytes is sampled at random: 1 samples all, 0
 * stands for 512 KiB. Returns 0, or -1 with errno ENOMEM. Not for signal handlers. HAYLOFT_PROFILE
 * does the same without code. */
int hayloft_profile_start(size_t mean);
void hayloft_profile_stop(void);
/* Writes the profile of all samples so far to an open file descriptor, in the format of pprof. May
 * be called in any context. Returns 0, or -1 with errno EIO. */
int hayloft_profile_write(int file);
/* hayloft_profile_mark marks a moment. hayloft_profile_write_growth writes what was allocated after
 * a mark and is in use. Both may be called in any context. */
unsigned hayloft_profile_mark(void);
int hayloft_profile_write_growth(unsigned mark, int file);

/* Tags: which part of the program allocates. Profiles and statistics have the memory that was
 * allocated in each tag, estimated from the samples of a profile. hayloft_tag_enter() makes this
 * thread be in the tag of that name, or in none if the name is null or empty, and returns what
 * hayloft_tag_leave() takes to go back:
 *
 *     unsigned before = hayloft_tag_enter("index");
 *     build_index();
 *     hayloft_tag_leave(before);
 *
 * The name is copied, up to 32 bytes of UTF-8; there are up to 1024 names. Any context. */
unsigned hayloft_tag_enter(const char *name);
void hayloft_tag_leave(unsigned before);

/* Return the bytes that the calling thread has allocated or freed so far, as estimated from the
 * samples of a profile: 0 without samples. Store the standard error of that number at `error`,
 * unless it is null. Any context. */
uint64_t hayloft_thread_allocated(uint64_t *error);
uint64_t hayloft_thread_freed(uint64_t *error);

/* A cache of objects of one size and kind. */
typedef struct hayloft_cache hayloft_cache;

#define HAYLOFT_CACHE_NO_MERGE 1u      /* shares no slabs with other caches */
#define HAYLOFT_CACHE_ZERO 2u          /* zeroes objects when they are allocated */
#define HAYLOFT_CACHE_HWCACHE_ALIGN 4u /* aligns objects to cache lines, or small ones to parts */
#define HAYLOFT_CACHE_PANIC_ON_LEAK 8u /* destroying a cache in use ends the process */

/* Creates a cache of objects of the given size and alignment (0 for the alignment of a pointer).
 * The name is copied. The first cache starts a thread, which sleeps unless frees had to be
 * deferred. It then creates another thread for the CPU that has to complete them, pinned to that
 * CPU, with all signals blocked except one real-time signal. Must not be called in signal handlers.
 * On failure returns null, and errno is
 *
 *     EEXIST  if another cache has the name, or it begins with "kmalloc-", the prefix of size
 *             classes;
 *     EINVAL  if the size is 0 or above 32 KiB less 8 bytes, the alignment above 4096 or not a
 *             power of two, a flag unknown, or the name empty or not UTF-8;
 *     ENOSPC  if there are 255 caches already, where caches that share slabs count as one;
 *     ENOMEM  if there is no memory. */
hayloft_cache *hayloft_cache_create(const char *name, size_t size, size_t align, unsigned flags);

/* Destroys a cache, which no other thread may use during the call. Returns 0, or -1 with errno
 * EBUSY if objects are in use; the cache is then unchanged. Must not be called in signal
 * handlers. */
int hayloft_cache_destroy(hayloft_cache *cache);

/* Allocate and free one object, in any context. A null pointer may be freed. */
void *hayloft_cache_alloc(const hayloft_cache *cache);
void *hayloft_cache_alloc_nolock(const hayloft_cache *cache);
void hayloft_cache_free(const hayloft_cache *cache, void *object);
void hayloft_cache_free_nolock(const hayloft_cache *cache, void *object);

/* Allocate and free many objects at once. Allocating stores up to `count` objects at `to` and
 * returns their number. None of the objects to free may be null. */
size_t hayloft_cache_alloc_bulk(const hayloft_cache *cache, void **to, size_t count);
void hayloft_cache_free_bulk(const hayloft_cache *cache, void *const *objects, size_t count);

/* Frees the empty slabs of a cache, after flushing the objects that CPUs and nodes keep. Returns
 * the bytes of these slabs. Must not be called in signal handlers. */
size_t hayloft_cache_shrink(const hayloft_cache *cache);

/* Statistics of a cache together with the caches that share its slabs. May be read in any
 * context. */
struct hayloft_cache_stats {
    char name[32];           /* not null-terminated if it has 32 bytes or more */
    size_t object_size;      /* bytes of an object */
    size_t stride;           /* bytes from one object to the next */
    size_t objects_per_slab;
    size_t slab_size;        /* bytes of a slab */
    size_t sheaf_capacity;   /* most objects that the sheaf of a CPU holds */
    size_t slabs;
    size_t partial_slabs;    /* slabs with free objects */
    size_t in_use;           /* objects held by the program */
    size_t sampled;          /* sampled blocks in use, apart from the slabs */
    size_t in_sheaves;       /* free objects in the sheaves of CPUs */
    size_t in_barns;         /* free objects in the barns of nodes */
    size_t sharers;          /* caches that share the slabs, this one included */
    uint64_t allocs;         /* objects allocated: exact when nobody allocates */
    uint64_t hits;           /* allocations of these that a sheaf served */
    uint64_t refills;        /* allocations that found the sheaf empty */
    uint64_t flushes;        /* frees that found the sheaf full */
    uint64_t barn_empty;     /* refills that found the barn empty */
    uint64_t barn_full;      /* flushes that found the barn full */
    uint64_t new_slabs;      /* slabs made */
};
typedef struct hayloft_cache_stats hayloft_cache_stats_t;
void hayloft_cache_stats(const hayloft_cache *cache, hayloft_cache_stats_t *to);

#ifdef __cplusplus
}
#endif

#endif
