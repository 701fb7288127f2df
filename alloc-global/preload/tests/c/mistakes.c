/* One mistake for each name. Each check prints the misused address first. The process must not run
 * to its end. */
#include "check.h"
#include <malloc.h>

/* Prints the address that is misused next, and returns it. */
static void *wrong(void *address)
{
    printf("address %p\n", address);
    fflush(stdout);
    return (void *)hidden((size_t)address);
}

static void twice(void)
{
    void *block = wrong(malloc(100));
    free(block);
    free(block);
}

static void twice_around_another(void)
{
    void *block = wrong(malloc(100)), *other = malloc(100);
    free(block);
    free(other);
    free(block);
}

/* 5000 frees fill the sheaf and flush it several times in between. */
static void twice_after_many(void)
{
    static void *blocks[5000];
    for (int i = 0; i < 5000; i++)
        blocks[i] = malloc(100);
    for (int i = 0; i < 5000; i++)
        free(blocks[i]);
    free(wrong(blocks[4999]));
}

static void inside(void)
{
    char *block = malloc(64);
    free(wrong(block + 16));
}

/* The object size is not a power of two. */
static void inside_odd(void)
{
    char *block = malloc(112);
    free(wrong(block + 96));
}

static void inside_long(void)
{
    char *block = malloc(30000);
    free(wrong(block + 1024));
}

static void resized_inside(void)
{
    char *block = malloc(1000);
    CHECK(!realloc(wrong(block + 16), 2000));
}

static void size_inside(void)
{
    char *block = malloc(1000);
    CHECK(!malloc_usable_size(wrong(block + 16)));
}

static void of_a_static(void)
{
    static char bytes[100];
    free(wrong(bytes + 16));
}

static void of_the_stack(void)
{
    char bytes[100];
    free(wrong(bytes + 16));
}

static void of_no_memory(void)
{
    free(wrong((void *)16));
}

static void of_the_last_memory(void)
{
    free(wrong((void *)-16));
}

static void resized_static(void)
{
    static char bytes[100];
    CHECK(!realloc(wrong(bytes + 16), 200));
}

static void by_another_name(void)
{
    void (*libc_free)(void *) = (void (*)(void *))dlsym(RTLD_DEFAULT, "__libc_free");
    void *block = wrong(malloc(100));
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

static void free_many(hayloft_cache *owner, hayloft_cache *other, size_t offset)
{
    for (int i = 0; i < MANY; i++)
        CHECK((objects[i] = cache_alloc(owner)));
    wrong(objects[0]);
    for (int i = 0; i < MANY; i++)
        cache_free(other, (char *)objects[i] + offset);
}

static void many_of_another_cache(void)
{
    free_many(make("owner", 40), make("other", 400), 0);
}

static void many_inside(void)
{
    hayloft_cache *owner = make("owner", 40);
    free_many(owner, owner, 8);
}

static void many_of_no_cache(void)
{
    static char bytes[MANY * 40];
    hayloft_cache *owner = make("owner", 40);
    wrong(bytes);
    for (int i = 0; i < MANY; i++)
        cache_free(owner, bytes + i * 40);
}

#define ENTRY(name) {#name, name}
int main(int argc, char **argv)
{
    static const struct check checks[] = {
        ENTRY(twice), ENTRY(twice_around_another), ENTRY(twice_after_many), ENTRY(inside),
        ENTRY(inside_odd), ENTRY(inside_long), ENTRY(resized_inside), ENTRY(size_inside),
        ENTRY(of_a_static), ENTRY(of_the_stack), ENTRY(of_no_memory), ENTRY(of_the_last_memory),
        ENTRY(resized_static), ENTRY(by_another_name), ENTRY(many_of_another_cache), ENTRY(many_inside),
        ENTRY(many_of_no_cache),
    };
    return run_checks(checks, sizeof checks / sizeof *checks, argc, argv);
}
