// Uses the header in C++, where a type is hidden by a function of the same name unless it is
// written with `struct`.
#include <cstdio>

#include <hayloft.h>

int main()
{
    hayloft_stats_t whole;
    hayloft_stats(&whole);
    struct hayloft_stats same = whole;
    hayloft_cache *cache = hayloft_cache_create("of C++", 100, 0, HAYLOFT_CACHE_NO_MERGE);
    hayloft_cache_stats_t stats;
    hayloft_cache_stats(cache, &stats);
    if (hayloft_stats_write(2, HAYLOFT_TABLE) != 0)
        return 1;
    return same.held != whole.held || stats.object_size != 100 || hayloft_cache_destroy(cache) != 0;
}
