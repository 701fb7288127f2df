//! Frees of foreign addresses and double frees: debug builds detect them, print a message and
//! abort.

#![cfg(debug_assertions)]

use std::alloc::{GlobalAlloc, Layout};
use std::os::unix::process::ExitStatusExt as _;
use std::process::Output;

use hayloft_core::cache::{Cache, CacheFlags};
use tests::entry_points::Hayloft;
use tests::scenario::{BACKENDS, Scenario, describe};
use tests::sizes::layout;

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// A layout whose size equals that of its class.
const LAYOUT: Layout = Layout::new::<[u64; 8]>();

/// Reports to the parent the address that is about to be misused.
fn print_address(address: *const u8) {
    println!("address {address:p}");
}

/// Checks that the child printed an address, aborted, and wrote a message that contains all
/// of `words` and that address.
fn assert_abort(output: &Output, words: &[&str]) {
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let all = describe(output);
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{all}");
    let address = stdout.lines().find_map(|line| line.strip_prefix("address "));
    let address = address.unwrap_or_else(|| panic!("the child printed no address: {all}"));
    let message = stderr.lines().find(|line| line.starts_with("hayloft["));
    let message = message.unwrap_or_else(|| panic!("the child wrote no message: {all}"));
    for word in words.iter().chain([&address]) {
        assert!(message.contains(word), "`{word}` is not in `{message}`");
    }
}

/// Frees a block, runs `between`, and frees the block again.
fn free_twice(between: impl Fn()) {
    // SAFETY: the second free breaks the contract on purpose, so it must not return.
    unsafe {
        let address = Hayloft.alloc(LAYOUT);
        print_address(address);
        Hayloft.dealloc(address, LAYOUT);
        between();
        Hayloft.dealloc(address, LAYOUT);
    }
}

#[test]
fn double_free() {
    for backend in BACKENDS {
        Scenario::new(backend, || free_twice(|| {}))
            .env("HAYLOFT_BACKEND", backend)
            .run(|output| assert_abort(output, &["double free", "class", "64"]));
    }
}

/// The block is still in a sheaf, below a few others.
#[test]
fn double_free_under_other_frees() {
    for backend in BACKENDS {
        let scenario = || {
            // SAFETY: the size is not zero, and each block is freed once.
            let others: [*mut u8; 4] = std::array::from_fn(|_| unsafe { Hayloft.alloc(LAYOUT) });
            free_twice(|| {
                // SAFETY: each block is live with this layout, and freed once.
                others.iter().for_each(|&other| unsafe { Hayloft.dealloc(other, LAYOUT) });
            });
        };
        Scenario::new(backend, scenario)
            .env("HAYLOFT_BACKEND", backend)
            .run(|output| assert_abort(output, &["double free", "class", "64"]));
    }
}

/// Frees an address that does not come from the heap.
fn free_foreign(address: *mut u8) {
    print_address(address);
    // SAFETY: the contract is broken on purpose, so the call must not return.
    unsafe { Hayloft.dealloc(address, LAYOUT) };
}

#[test]
fn free_of_a_static() {
    static mut FOREIGN: [u64; 8] = [0; 8];
    for backend in BACKENDS {
        Scenario::new(backend, || free_foreign((&raw mut FOREIGN).cast()))
            .env("HAYLOFT_BACKEND", backend)
            .run(|output| assert_abort(output, &["foreign"]));
    }
}

#[test]
fn free_of_a_stack_address() {
    for backend in BACKENDS {
        let scenario = || {
            let mut foreign = [0_u64; 8];
            free_foreign((&raw mut foreign).cast());
        };
        Scenario::new(backend, scenario)
            .env("HAYLOFT_BACKEND", backend)
            .run(|output| assert_abort(output, &["foreign"]));
    }
}

#[test]
fn free_of_a_mapping() {
    for backend in BACKENDS {
        let scenario = || {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            // SAFETY: a fresh mapping touches no other memory.
            let foreign =
                unsafe { libc::mmap(std::ptr::null_mut(), 1 << 20, protection, flags, -1, 0) };
            assert_ne!(foreign, libc::MAP_FAILED);
            free_foreign(foreign.cast());
        };
        Scenario::new(backend, scenario)
            .env("HAYLOFT_BACKEND", backend)
            .run(|output| assert_abort(output, &["foreign"]));
    }
}

/// Allocates with [`LAYOUT`], prints the address that `of` derives from the block, and frees that
/// address.
fn free_instead(of: impl Fn(*mut u8) -> (*mut u8, Layout)) {
    // SAFETY: the free breaks the contract on purpose, so it must not return.
    unsafe {
        let (address, layout) = of(Hayloft.alloc(LAYOUT));
        print_address(address);
        Hayloft.dealloc(address, layout);
    }
}

#[test]
fn free_of_the_middle_of_a_block() {
    for backend in BACKENDS {
        Scenario::new(backend, || free_instead(|block| (block.wrapping_add(8), LAYOUT)))
            .env("HAYLOFT_BACKEND", backend)
            .run(|output| assert_abort(output, &["no object starts", "64"]));
    }
}

#[test]
fn free_with_the_layout_of_another_class() {
    for backend in BACKENDS {
        Scenario::new(backend, || free_instead(|block| (block, Layout::new::<[u64; 10]>())))
            .env("HAYLOFT_BACKEND", backend)
            .run(|output| assert_abort(output, &["one of class 80", "one of class 64"]));
    }
}

#[test]
fn double_free_of_a_large_block() {
    let layout = Layout::new::<[u8; 1 << 20]>();
    for backend in BACKENDS {
        let scenario = || {
            // SAFETY: the second free breaks the contract on purpose, so it must not return.
            unsafe {
                let address = Hayloft.alloc(layout);
                print_address(address);
                Hayloft.dealloc(address, layout);
                Hayloft.dealloc(address, layout);
            }
        };
        Scenario::new(backend, scenario)
            .env("HAYLOFT_BACKEND", backend)
            .run(|output| assert_abort(output, &["double free", "1048576"]));
    }
}

/// Creates a cache of objects of 40 bytes.
fn cache(name: &str) -> Cache {
    let layout = layout(40, 8);
    Cache::builder(name, layout).flags(CacheFlags::NO_MERGE).build().expect("a cache")
}

#[test]
fn free_to_another_cache() {
    for backend in BACKENDS {
        let scenario = || {
            let (owner, other) = (cache("owner"), cache("other"));
            let object = owner.alloc().expect("memory");
            print_address(object.as_ptr());
            // SAFETY: the contract is broken on purpose, so the call must not return.
            unsafe { other.free(object) };
        };
        Scenario::new(backend, scenario)
            .env("HAYLOFT_BACKEND", backend)
            .run(|output| assert_abort(output, &["as one of a cache of objects of 48"]));
    }
}

#[test]
fn double_free_to_a_cache() {
    for backend in BACKENDS {
        let scenario = || {
            let cache = cache("twice");
            let object = cache.alloc().expect("memory");
            print_address(object.as_ptr());
            // SAFETY: the second free breaks the contract on purpose, so it must not return.
            unsafe {
                cache.free_rcu(object);
                cache.free(object);
            }
        };
        Scenario::new(backend, scenario)
            .env("HAYLOFT_BACKEND", backend)
            .run(|output| assert_abort(output, &["double free", "a cache of objects of 48"]));
    }
}

#[test]
fn free_of_a_static_to_a_cache() {
    static FOREIGN: [u64; 5] = [0; 5];
    for backend in BACKENDS {
        let scenario = || {
            let cache = cache("foreign");
            print_address(FOREIGN.as_ptr().cast());
            // SAFETY: the contract is broken on purpose, so the call must not return.
            unsafe { cache.free(std::ptr::NonNull::from(&FOREIGN).cast()) };
        };
        Scenario::new(backend, scenario)
            .env("HAYLOFT_BACKEND", backend)
            .run(|output| assert_abort(output, &["foreign", "a cache of objects of 48"]));
    }
}

/// A reader that waits for readers would wait for itself forever.
#[test]
fn reader_that_waits_for_readers_is_reported() {
    Scenario::new("reader", || {
        let _reading = hayloft_core::rcu::read_lock();
        hayloft_core::rcu::synchronize();
    })
    .run(|output| {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let is_reported = stderr.contains("a reader waits for itself");
        assert!(!output.status.success() && is_reported, "{}", describe(output));
    });
}
