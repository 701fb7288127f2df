/* Checks the rules of the C standard, POSIX and glibc, one check for each. */
#include "check.h"
#include <malloc.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <wchar.h>

#define TOO_LARGE (hidden((size_t)PTRDIFF_MAX) + 1)

/* The C library that this program is linked with may lack these. */
#pragma weak cfree
#pragma weak free_sized
#pragma weak free_aligned_sized
void cfree(void *);
void free_sized(void *, size_t);
void free_aligned_sized(void *, size_t, size_t);

/* The functions that the program calls are those of Hayloft. */
static void functions_are_hayloft(void)
{
    void *functions[] = {(void *)malloc, (void *)free, (void *)realloc, (void *)malloc_usable_size};
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        Dl_info info;
        CHECK(dladdr(functions[i], &info) && strstr(info.dli_fname, "hayloft"));
    }
}

/* Constructors of the library run before those of the C library, which still finds the
 * environment. */
static void environment(void)
{
    CHECK(getenv("LD_PRELOAD") && getenv("HAYLOFT_BACKEND"));
}

static void alignment(void)
{
    for (size_t size = 0; size < 300000; size += size < 600 ? 1 : 997) {
        char *block = malloc(size), *zeroed = calloc(1, size), *moved = realloc(malloc(1), size + 1);
        CHECK(block && zeroed && moved);
        CHECK(is_aligned(block, 16) && is_aligned(zeroed, 16) && is_aligned(moved, 16));
        free(block);
        free(zeroed);
        free(moved);
    }
}

static void empty_blocks_are_unique(void)
{
    void *blocks[1000];
    for (int i = 0; i < 1000; i++) {
        CHECK((blocks[i] = i % 2 ? malloc(0) : calloc(0, 10)));
        for (int j = 0; j < i; j++)
            CHECK(blocks[i] != blocks[j]);
    }
    for (int i = 0; i < 1000; i++)
        free(blocks[i]);
}

static void oversized_requests_fail(void)
{
    errno = 0;
    CHECK(!malloc(TOO_LARGE) && errno == ENOMEM);
    errno = 0;
    CHECK(!malloc(hidden(SIZE_MAX)) && errno == ENOMEM);
    errno = 0;
    CHECK(!calloc(1, TOO_LARGE) && errno == ENOMEM);
    void *block = malloc(10);
    errno = 0;
    CHECK(!realloc(block, TOO_LARGE) && errno == ENOMEM);
    errno = 0;
    CHECK(!realloc(block, hidden(SIZE_MAX)) && errno == ENOMEM);
    errno = 0;
    CHECK(!aligned_alloc(16, TOO_LARGE) && errno == ENOMEM);
    errno = 0;
    CHECK(!memalign(64, hidden(SIZE_MAX)) && errno == ENOMEM);
    errno = 0;
    CHECK(!valloc(hidden(SIZE_MAX)) && errno == ENOMEM);
    errno = 0;
    CHECK(!pvalloc(hidden(SIZE_MAX)) && errno == ENOMEM);
    /* More than the system has, but less than PTRDIFF_MAX. */
    errno = 0;
    CHECK(!malloc(hidden((size_t)1 << 55)) && errno == ENOMEM);
    free(block);
}

static void calloc_overflow(void)
{
    errno = 0;
    CHECK(!calloc(hidden(SIZE_MAX / 2), 3) && errno == ENOMEM);
    errno = 0;
    CHECK(!calloc(hidden((size_t)1 << 32), (size_t)1 << 32) && errno == ENOMEM);
}

static void calloc_is_zero(void)
{
    for (size_t size = 1; size < 3000000; size = size * 3 / 2 + 1) {
        for (int round = 0; round < 3; round++) {
            unsigned char *dirty = malloc(size);
            memset(dirty, 0xff, size);
            free(dirty);
            unsigned char *zeroed = calloc(size, 1);
            for (size_t i = 0; i < size; i++)
                CHECK(zeroed[i] == 0);
            free(zeroed);
        }
    }
}

static void realloc_of_null(void)
{
    char *block = realloc(NULL, 100);
    CHECK(block && malloc_usable_size(block) >= 100);
    free(block);
    CHECK((block = realloc(NULL, 0)));
    free(block);
}

static void realloc_to_zero_frees(void)
{
    errno = 42;
    CHECK(!realloc(malloc(100), hidden(0)) && errno == 42);
}

static void realloc_keeps_contents(void)
{
    size_t sizes[] = {1, 16, 17, 100, 60, 1000, 40000, 70000, 800000, 9000000, 20000000, 3000000, 66000, 30000, 5};
    size_t old = 1;
    unsigned char *block = malloc(old);
    block[0] = 0;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        size_t size = sizes[i];
        CHECK((block = realloc(block, size)));
        for (size_t at = 0; at < (old < size ? old : size); at++)
            CHECK(block[at] == (unsigned char)(at * 7));
        for (size_t at = 0; at < size; at++)
            block[at] = (unsigned char)(at * 7);
        old = size;
    }
    /* A failed realloc leaves the block unchanged. */
    CHECK(!realloc(block, TOO_LARGE));
    for (size_t at = 0; at < old; at++)
        CHECK(block[at] == (unsigned char)(at * 7));
    free(block);
}

static void reallocarray_overflow(void)
{
    char *block = reallocarray(NULL, 10, 10);
    CHECK(block && malloc_usable_size(block) >= 100);
    strcpy(block, "kept");
    errno = 0;
    CHECK(!reallocarray(block, hidden(SIZE_MAX / 2), 3) && errno == ENOMEM);
    CHECK(strcmp(block, "kept") == 0);
    CHECK((block = reallocarray(block, 1000, 1000)) && strcmp(block, "kept") == 0);
    free(block);
}

static void aligned_blocks(void)
{
    for (size_t align = 1; align <= (size_t)4 << 20; align *= 2) {
        size_t sizes[] = {0, 1, 24, align, 3 * align, 5000, 100000};
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            char *first = aligned_alloc(align, sizes[i]), *second = memalign(align, sizes[i]);
            void *third = NULL;
            CHECK(first && is_aligned(first, align) && malloc_usable_size(first) >= sizes[i]);
            CHECK(second && is_aligned(second, align) && second != first);
            int wanted = align < sizeof(void *) ? EINVAL : 0;
            CHECK(posix_memalign(&third, align, sizes[i]) == wanted);
            CHECK(!third == !!wanted && is_aligned(third, align));
            memset(first, 1, sizes[i]);
            memset(second, 2, sizes[i]);
            CHECK((first = realloc(first, sizes[i] + 1)) && (sizes[i] == 0 || first[0] == 1));
            free(first);
            free_aligned_sized(second, align, sizes[i]);
            free(third);
        }
    }
}

static void bad_alignments(void)
{
    size_t bad[] = {0, 3, 24, 48, SIZE_MAX};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        errno = 0;
        CHECK(!aligned_alloc(hidden(bad[i]), 100) && errno == EINVAL);
        void *block = &block;
        errno = 42;
        CHECK(posix_memalign(&block, hidden(bad[i]), 100) == EINVAL);
        CHECK(block == &block && errno == 42);
    }
    void *block = &block;
    errno = 42;
    CHECK(posix_memalign(&block, 4, 100) == EINVAL && block == &block && errno == 42);
    CHECK(posix_memalign(&block, 64, TOO_LARGE) == ENOMEM && block == &block && errno == 42);
    /* memalign rounds alignments up. */
    CHECK((block = memalign(hidden(48), 100)) && is_aligned(block, 64));
    free(block);
    errno = 0;
    CHECK(!memalign(hidden(SIZE_MAX), 100) && errno == EINVAL);
}

static void page_aligned_blocks(void)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    void *one = valloc(10), *two = pvalloc(page + 1), *three = pvalloc(0);
    CHECK(one && two && three);
    CHECK(is_aligned(one, page) && is_aligned(two, page) && is_aligned(three, page));
    CHECK(malloc_usable_size(two) >= 2 * page && malloc_usable_size(three) >= page);
    free(one);
    free(two);
    free(three);
}

static void free_keeps_errno(void)
{
    static void *blocks[20000];
    for (size_t size = 1; size < 2000000; size *= 5) {
        int count = size > 10000 ? 20 : 20000;
        for (int i = 0; i < count; i++)
            CHECK((blocks[i] = malloc(size)));
        errno = 42;
        for (int i = 0; i < count; i++)
            free(blocks[i]);
        CHECK(errno == 42);
    }
    free(NULL);
    cfree(NULL);
    CHECK(errno == 42);
}

static void success_keeps_errno(void)
{
    errno = 42;
    for (int i = 0; i < 10000; i++)
        free(malloc((size_t)i * 11));
    CHECK(errno == 42);
}

static void usable_size(void)
{
    CHECK(malloc_usable_size(NULL) == 0);
    enum { COUNT = 300 };
    unsigned char *blocks[COUNT];
    size_t sizes[COUNT];
    for (int i = 0; i < COUNT; i++) {
        size_t size = (size_t)i * i * i / 50;
        CHECK((blocks[i] = malloc(size)));
        sizes[i] = malloc_usable_size(blocks[i]);
        CHECK(sizes[i] >= size);
        memset(blocks[i], i, sizes[i]);
    }
    for (int i = 0; i < COUNT; i++) {
        for (size_t at = 0; at < sizes[i]; at++)
            CHECK(blocks[i][at] == (unsigned char)i);
        /* The program may use all of these bytes, and realloc keeps them. */
        CHECK((blocks[i] = realloc(blocks[i], sizes[i] + 100000)));
        for (size_t at = 0; at < sizes[i]; at++)
            CHECK(blocks[i][at] == (unsigned char)i);
        free(blocks[i]);
    }
}

static void sized_frees(void)
{
    for (size_t size = 0; size < 100000; size = size * 2 + 1) {
        free_sized(malloc(size), size);
        cfree(malloc(size));
    }
    free_sized(NULL, 10);
    free_aligned_sized(NULL, 64, 10);
}

static void foreign_addresses_have_no_usable_bytes(void)
{
    static char bytes[100];
    char *mapped = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *foreign[] = {bytes + 16, mapped, mapped + 4096, (char *)16, (char *)-16};
    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++)
        CHECK(malloc_usable_size((char *)hidden((size_t)foreign[i])) == 0);
}

/* Other names of the C library for the same functions. */
void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void *__libc_reallocarray(void *, size_t, size_t);
void *__libc_memalign(size_t, size_t);
void *__libc_valloc(size_t);
void *__libc_pvalloc(size_t);
void __libc_free(void *);
int __posix_memalign(void **, size_t, size_t);
/* In the C library these are private; the preloaded library exports them. */
#pragma weak __libc_reallocarray
#pragma weak __posix_memalign

static void libc_aliases(void)
{
    void *aligned = NULL;
    CHECK(__libc_reallocarray && __posix_memalign);
    CHECK(__posix_memalign(&aligned, 256, 100) == 0 && is_aligned(aligned, 256));
    void *blocks[] = {__libc_malloc(100), __libc_calloc(10, 10), __libc_realloc(NULL, 100), aligned,
        __libc_reallocarray(NULL, 10, 10), __libc_memalign(64, 100), __libc_valloc(100), __libc_pvalloc(100)};
    for (size_t i = 0; i < sizeof blocks / sizeof *blocks; i++) {
        CHECK(blocks[i] && malloc_usable_size(blocks[i]) >= 100);
        strcpy(blocks[i], "contents");
        CHECK((blocks[i] = (i % 2 ? realloc : __libc_realloc)(blocks[i], 100000)));
        CHECK(strcmp(blocks[i], "contents") == 0);
        (i % 2 ? __libc_free : free)(blocks[i]);
    }
    errno = 0;
    CHECK(!__libc_malloc(TOO_LARGE) && errno == ENOMEM);
    size_t before = mallinfo2().arena;
    for (int i = 0; i < 1000000; i++)
        free(__libc_malloc(16 + (size_t)i % 200));
    CHECK(mallinfo2().arena < before + (16 << 20));
}

/* The blocks that the C library allocates come from the preloaded library, too. */
static void blocks_of_the_c_library(void)
{
    char *copy = strdup("a string that is copied"), *part = strndup("a part of it", 6);
    CHECK(malloc_usable_size(copy) >= 24 && malloc_usable_size(part) >= 7);
    CHECK(strcmp(copy, "a string that is copied") == 0 && strcmp(part, "a part") == 0);
    char *printed = NULL;
    CHECK(asprintf(&printed, "%0500d", 7) == 500 && malloc_usable_size(printed) > 500);
    wchar_t *wide = wcsdup(L"wide");
    CHECK(malloc_usable_size(wide) >= 5 * sizeof(wchar_t) && wcscmp(wide, L"wide") == 0);
    char *path = realpath("/", NULL), *folder = getcwd(NULL, 0);
    CHECK(path && folder && malloc_usable_size(path) > 0 && malloc_usable_size(folder) > 0);
    char *line = NULL;
    size_t room = 0;
    FILE *file = fopen("/proc/self/maps", "r");
    CHECK(file);
    while (getline(&line, &room, file) > 0)
        CHECK(malloc_usable_size(line) >= room);
    fclose(file);
    char *memory = NULL;
    FILE *stream = open_memstream(&memory, &room);
    for (int i = 0; i < 10000; i++)
        fputs("more and more", stream);
    fclose(stream);
    CHECK(room == 130000 && malloc_usable_size(memory) > room);
    char *all[] = {copy, part, printed, (char *)wide, path, folder, line, memory};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

static void statistics_functions(void)
{
    char *block = malloc(10 << 20);
    memset(block, 1, 10 << 20);
    struct mallinfo2 info = mallinfo2();
    CHECK(info.arena >= info.uordblks && info.uordblks >= 10 << 20);
    CHECK(info.arena == info.uordblks + info.fordblks && info.keepcost <= info.fordblks);
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
    CHECK(mallinfo().uordblks >= 10 << 20);
    free(block);
    CHECK(mallinfo2().uordblks < info.uordblks);
    CHECK(malloc_trim(0) == 1);
    CHECK(mallinfo2().arena < info.arena);
    char *text = NULL;
    size_t length = 0;
    FILE *stream = open_memstream(&text, &length);
    CHECK(malloc_info(1, stream) == EINVAL && malloc_info(0, stream) == 0);
    fclose(stream);
    CHECK(strstr(text, "<malloc version=") == text && strstr(text, "</malloc>"));
    free(text);
    malloc_stats();
    CHECK(mallopt(M_MMAP_THRESHOLD, 1 << 20) == 1 && mallopt(M_ARENA_MAX, 1) == 1 && mallopt(77, 1) == 0);
}

/* Blocks that exit handlers and destructors free, after everything else was torn down. */
static void *kept[1000];

static void free_kept(void)
{
    for (int i = 0; i < 1000; i++) {
        free(kept[i]);
        kept[i] = malloc((size_t)i);
    }
}

__attribute__((destructor)) static void free_late(void)
{
    if (kept[0])
        free_kept();
}

static void frees_at_exit(void)
{
    CHECK(atexit(free_kept) == 0);
    for (int i = 0; i < 1000; i++)
        kept[i] = malloc((size_t)i * 50);
}

/* Reserved address space does not count towards a limit that the program sets for itself. */
static void address_space_limit_set_late(void)
{
    pid_t child = fork();
    if (child == 0) {
        struct rlimit limit = {300 << 20, 300 << 20};
        CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
        void *mapped = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(mapped != MAP_FAILED);
        size_t bytes = 0;
        while (bytes < 300u << 20 && malloc(1 << 20) != NULL)
            bytes += 1 << 20;
        CHECK(bytes > 50 << 20 && bytes < 300u << 20);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

static void double_free_of_a_large_block_aborts(void)
{
    char *block = malloc(1 << 20);
    pid_t child = fork();
    if (child == 0) {
        char *volatile again = block;
        free(block);
        free(again);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    free(block);
}

#define ENTRY(name) {#name, name}
int main(int argc, char **argv)
{
    static const struct check checks[] = {
        ENTRY(functions_are_hayloft),
        ENTRY(environment),
        ENTRY(alignment),
        ENTRY(empty_blocks_are_unique),
        ENTRY(oversized_requests_fail),
        ENTRY(calloc_overflow),
        ENTRY(calloc_is_zero),
        ENTRY(realloc_of_null),
        ENTRY(realloc_to_zero_frees),
        ENTRY(realloc_keeps_contents),
        ENTRY(reallocarray_overflow),
        ENTRY(aligned_blocks),
        ENTRY(bad_alignments),
        ENTRY(page_aligned_blocks),
        ENTRY(free_keeps_errno),
        ENTRY(success_keeps_errno),
        ENTRY(usable_size),
        ENTRY(sized_frees),
        ENTRY(foreign_addresses_have_no_usable_bytes),
        ENTRY(libc_aliases),
        ENTRY(blocks_of_the_c_library),
        ENTRY(statistics_functions),
        ENTRY(frees_at_exit),
        ENTRY(double_free_of_a_large_block_aborts),
        ENTRY(address_space_limit_set_late),
    };
    return run_checks(checks, sizeof checks / sizeof *checks, argc, argv);
}
