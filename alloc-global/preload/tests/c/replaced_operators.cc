// A program that replaces only the basic new and delete. Its versions put a header in front of each
// block.
#include "check.h"

#include <memory>
#include <new>
#include <string>
#include <vector>

namespace {

struct alignas(16) Header {
    size_t size, mark;
};

const size_t MARK = 0x5eed;
size_t live;

} // namespace

void *operator new(size_t size)
{
    auto *header = static_cast<Header *>(malloc(size + sizeof(Header)));
    if (!header)
        throw std::bad_alloc();
    *header = {size, MARK};
    live++;
    return header + 1;
}

void operator delete(void *block) noexcept
{
    if (!block)
        return;
    Header *header = static_cast<Header *>(block) - 1;
    CHECK(header->mark == MARK);
    header->mark = 0;
    live--;
    free(header);
}

namespace {

void every_form_of_new_and_delete()
{
    for (size_t size = 0; size < 100000; size = size * 3 / 2 + 1) {
        size_t before = live;
        operator delete(operator new(size), size);
        operator delete[](operator new[](size));
        operator delete[](operator new[](size), size);
        operator delete(operator new(size, std::nothrow), std::nothrow);
        operator delete[](operator new[](size, std::nothrow), std::nothrow);
        CHECK(live == before);
    }
}

void standard_library()
{
    std::vector<std::string> texts;
    for (int i = 0; i < 1000; i++)
        texts.push_back(std::string(static_cast<size_t>(i), 'x'));
    auto shared = std::make_shared<std::vector<int>>(1000);
    CHECK(live > 900);
}

} // namespace

#define ENTRY(name) {#name, name}
int main(int argc, char **argv)
{
    static const struct check checks[] = {
        ENTRY(every_form_of_new_and_delete),
        ENTRY(standard_library),
    };
    return run_checks(checks, sizeof checks / sizeof *checks, argc, argv);
}
