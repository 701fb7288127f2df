/* Each check makes one mistake. It prints the misused address first, and must not return. */
#include "check.h"
#include <malloc.h>

/* Prints the address that is misused next, and returns it. */
static void *misused(void *address)
{
    printf("address %p\n", address);
    fflush(stdout);
    return (void *)hidden((size_t)address);
}

static void double_free(void)
{
    void *block = misused(malloc(100));
    free(block);
    free(block);
}

static void double_free_around_another(void)
{
    void *block = misused(malloc(100)), *other = malloc(100);
    free(block);
    free(other);
    free(block);
}

/* 5000 frees fill the sheaf and flush it several times in between. */
static void double_free_after_many(void)
{
    static void *blocks[5000];
    for (int i = 0; i < 5000; i++)
        blocks[i] = malloc(100);
    for (int i = 0; i < 5000; i++)
        free(blocks[i]);
    free(misused(blocks[4999]));
}

static void free_inside(void)
{
    char *block = malloc(64);
    free(misused(block + 16));
}

/* The object size is not a power of two. */
static void free_inside_odd_size(void)
{
    char *block = malloc(112);
    free(misused(block + 96));
}

static void free_inside_long(void)
{
    char *block = malloc(30000);
    free(misused(block + 1024));
}

static void realloc_inside(void)
{
    char *block = malloc(1000);
    CHECK(!realloc(misused(block + 16), 2000));
}

static void usable_size_inside(void)
{
    char *block = malloc(1000);
    CHECK(!malloc_usable_size(misused(block + 16)));
}

static void free_of_a_static(void)
{
    static char bytes[100];
    free(misused(bytes + 16));
}

static void free_of_the_stack(void)
{
    char bytes[100];
    free(misused(bytes + 16));
}

static void free_of_an_unmapped_address(void)
{
    free(misused((void *)16));
}

static void free_of_the_highest_address(void)
{
    free(misused((void *)-16));
}

static void realloc_of_a_static(void)
{
    static char bytes[100];
    CHECK(!realloc(misused(bytes + 16), 200));
}

static void double_free_by_libc_free(void)
{
    void (*libc_free)(void *) = (void (*)(void *))dlsym(RTLD_DEFAULT, "__libc_free");
    void *block = misused(malloc(100));
    free(block);
    libc_free(block);
}

/* Caches check objects in slow paths only, as the Rust functions do. Of many mistakes, one is
 * found. */
typedef struct hayloft_cache hayloft_cache;
static hayloft_cache *(*create)(const char *, size_t, size_t, unsigned);
static void *(*cache_alloc)(hayloft_cache *);
static void (*cache_free)(hayloft_cache *, void *);

static hayloft_cache *make(const char *name, size_t size)
{
    create = (hayloft_cache *(*)(const char *, size_t, size_t, unsigned))dlsym(RTLD_DEFAULT, "hayloft_cache_create");
    cache_alloc = (void *(*)(hayloft_cache *))dlsym(RTLD_DEFAULT, "hayloft_cache_alloc");
    cache_free = (void (*)(hayloft_cache *, void *))dlsym(RTLD_DEFAULT, "hayloft_cache_free");
    CHECK(create && cache_alloc && cache_free);
    /* Not merged. */
    return create(name, size, 8, 1);
}

enum { MANY = 5000 };
static void *objects[MANY];

static void free_many_objects(hayloft_cache *owner, hayloft_cache *other, size_t offset)
{
    for (int i = 0; i < MANY; i++)
        CHECK((objects[i] = cache_alloc(owner)));
    misused(objects[0]);
    for (int i = 0; i < MANY; i++)
        cache_free(other, (char *)objects[i] + offset);
}

static void many_frees_to_another_cache(void)
{
    free_many_objects(make("owner", 40), make("other", 400), 0);
}

static void many_frees_inside(void)
{
    hayloft_cache *owner = make("owner", 40);
    free_many_objects(owner, owner, 8);
}

static void many_frees_of_foreign_objects(void)
{
    static char bytes[MANY * 40];
    hayloft_cache *owner = make("owner", 40);
    misused(bytes);
    for (int i = 0; i < MANY; i++)
        cache_free(owner, bytes + i * 40);
}

#define ENTRY(name) {#name, name}
int main(int argc, char **argv)
{
    static const struct check checks[] = {
        ENTRY(double_free),
        ENTRY(double_free_around_another),
        ENTRY(double_free_after_many),
        ENTRY(free_inside),
        ENTRY(free_inside_odd_size),
        ENTRY(free_inside_long),
        ENTRY(realloc_inside),
        ENTRY(usable_size_inside),
        ENTRY(free_of_a_static),
        ENTRY(free_of_the_stack),
        ENTRY(free_of_an_unmapped_address),
        ENTRY(free_of_the_highest_address),
        ENTRY(realloc_of_a_static),
        ENTRY(double_free_by_libc_free),
        ENTRY(many_frees_to_another_cache),
        ENTRY(many_frees_inside),
        ENTRY(many_frees_of_foreign_objects),
    };
    return run_checks(checks, sizeof checks / sizeof *checks, argc, argv);
}
