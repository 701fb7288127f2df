// Checks every form of new and delete, and failures in C++.
#include "check.h"

#include <map>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <vector>

namespace {

const std::align_val_t LINE{64}, PAGE{4096};
const size_t TOO_LARGE = static_cast<size_t>(PTRDIFF_MAX) - 64;

void every_form_of_new_and_delete()
{
    for (size_t size = 0; size < 100000; size = size * 3 / 2 + 1) {
        void *blocks[8] = {
            operator new(size),
            operator new[](size),
            operator new(size, std::nothrow),
            operator new[](size, std::nothrow),
            operator new(size, LINE),
            operator new[](size, PAGE),
            operator new(size, LINE, std::nothrow),
            operator new[](size, PAGE, std::nothrow),
        };
        for (int i = 0; i < 8; i++) {
            CHECK(blocks[i] && is_aligned(blocks[i], i < 4 ? 16 : i % 2 ? 4096 : 64));
            memset(blocks[i], i, size);
        }
        operator delete(blocks[0]);
        operator delete[](blocks[1]);
        operator delete(blocks[2], std::nothrow);
        operator delete[](blocks[3], std::nothrow);
        operator delete(blocks[4], LINE);
        operator delete[](blocks[5], PAGE);
        operator delete(blocks[6], LINE, std::nothrow);
        operator delete[](blocks[7], PAGE, std::nothrow);
        operator delete(operator new(size), size);
        operator delete[](operator new[](size), size);
        operator delete(operator new(size, LINE), size, LINE);
        operator delete[](operator new[](size, LINE), size, LINE);
        // new with free, and malloc with delete.
        free(operator new(size));
        operator delete(malloc(size));
    }
    operator delete(nullptr);
}

void operators_are_hayloft()
{
    for (void *function : {reinterpret_cast<void *>(static_cast<void *(*)(size_t)>(operator new)),
                           reinterpret_cast<void *>(static_cast<void (*)(void *)>(operator delete))}) {
        Dl_info info;
        CHECK(dladdr(function, &info) && strstr(info.dli_fname, "hayloft"));
    }
}

void failure_throws()
{
    int caught = 0;
    for (int form = 0; form < 4; form++) {
        try {
            switch (form) {
            case 0: operator new(hidden(TOO_LARGE)); break;
            case 1: operator new[](hidden(TOO_LARGE)); break;
            case 2: operator new(hidden(TOO_LARGE), LINE); break;
            case 3: operator new[](hidden(TOO_LARGE), PAGE); break;
            }
        } catch (const std::bad_alloc &) {
            caught++;
        }
    }
    CHECK(caught == 4);
}

void nothrow_returns_null()
{
    CHECK(!operator new(hidden(TOO_LARGE), std::nothrow));
    CHECK(!operator new[](hidden(TOO_LARGE), std::nothrow));
    CHECK(!operator new(hidden(TOO_LARGE), LINE, std::nothrow));
    CHECK(!operator new[](hidden(TOO_LARGE), PAGE, std::nothrow));
}

int handled;

void new_handler_is_called()
{
    std::set_new_handler([] {
        if (++handled == 3)
            std::set_new_handler(nullptr);
    });
    try {
        operator new(hidden(TOO_LARGE));
        CHECK(false);
    } catch (const std::bad_alloc &) {
    }
    CHECK(handled == 3);
}

void nothrow_calls_the_new_handler()
{
    std::set_new_handler([] {
        handled++;
        throw std::bad_alloc();
    });
    CHECK(!operator new(hidden(TOO_LARGE), std::nothrow));
    CHECK(!operator new[](hidden(TOO_LARGE), std::nothrow));
    CHECK(handled == 2);
}

struct HandlerError : std::bad_alloc {};

void new_handler_may_throw()
{
    std::set_new_handler([] { throw HandlerError(); });
    for (int i = 0; i < 100; i++) {
        try {
            operator new(hidden(TOO_LARGE));
            CHECK(false);
        } catch (const HandlerError &) {
            handled++;
        }
    }
    CHECK(handled == 100);
}

struct alignas(128) Wide {
    char bytes[300];
};

void standard_library()
{
    std::vector<std::thread> threads;
    for (int number = 0; number < 4; number++) {
        threads.emplace_back([number] {
            std::map<int, std::string> names;
            std::vector<std::unique_ptr<Wide>> wide;
            for (int i = 0; i < 20000; i++) {
                names[i * 7919 % 5000] = std::string(static_cast<size_t>(i % 300), 'a' + number);
                wide.push_back(std::make_unique<Wide>());
                CHECK(is_aligned(wide.back().get(), 128));
                if (i % 3 == 0)
                    wide.erase(wide.begin() + static_cast<long>(wide.size() / 2));
                try {
                    if (i % 50 == 0)
                        throw std::string("an exception has memory, too");
                } catch (const std::string &text) {
                    CHECK(text.size() == 28);
                }
            }
            for (const auto &name : names)
                CHECK(name.second.find_first_not_of(static_cast<char>('a' + number)) == std::string::npos);
        });
    }
    for (auto &thread : threads)
        thread.join();
}

} // namespace

#define ENTRY(name) {#name, name}
int main(int argc, char **argv)
{
    static const struct check checks[] = {
        ENTRY(every_form_of_new_and_delete),
        ENTRY(operators_are_hayloft),
        ENTRY(failure_throws),
        ENTRY(nothrow_returns_null),
        ENTRY(new_handler_is_called),
        ENTRY(nothrow_calls_the_new_handler),
        ENTRY(new_handler_may_throw),
        ENTRY(standard_library),
    };
    return run_checks(checks, sizeof checks / sizeof *checks, argc, argv);
}
