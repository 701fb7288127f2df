/* Loads the library into a program that already has blocks in the C library's heap, as a plugin
 * may. Code that is bound to the library then frees and resizes blocks that are not the library's
 * own. */
#include "check.h"
#include <malloc.h>

static void *library;

static void *function(const char *name)
{
    void *found = dlsym(library, name);
    CHECK(found);
    return found;
}

static void load_library(void)
{
    CHECK((library = dlopen("libhayloft.so", RTLD_NOW | RTLD_LOCAL)));
}

static void foreign_blocks_can_be_freed(void)
{
    void *block = malloc(200000 + 1), *small = malloc(3000);
    load_library();
    void (*other_free)(void *) = (void (*)(void *))function("free");
    CHECK(other_free != free);
    size_t before = mallinfo2().uordblks + mallinfo2().hblkhd;
    other_free(block);
    other_free(small);
    CHECK(mallinfo2().uordblks + mallinfo2().hblkhd + 203000 <= before);
    other_free(((void *(*)(size_t))function("malloc"))(100));
}

static void foreign_blocks_can_be_resized(void)
{
    char *block = strdup("contents");
    load_library();
    void *(*other_realloc)(void *, size_t) = (void *(*)(void *, size_t))function("realloc");
    CHECK((block = other_realloc(block, 100000)) && strcmp(block, "contents") == 0);
    CHECK((block = other_realloc(block, 9)) && strcmp(block, "contents") == 0);
    CHECK(((size_t (*)(void *))function("malloc_usable_size"))(block) >= 9);
    free(block);
}

#define ENTRY(name) {#name, name}
int main(int argc, char **argv)
{
    static const struct check checks[] = {
        ENTRY(foreign_blocks_can_be_freed),
        ENTRY(foreign_blocks_can_be_resized),
    };
    return run_checks(checks, sizeof checks / sizeof *checks, argc, argv);
}
