//! Misuse of large blocks, which are runs of their own. Freeing one twice, or at an address inside
//! it, ends the process with a message, in every build and before anything else is damaged. This
//! holds for frees with a layout and without.

use std::alloc::{GlobalAlloc, Layout};
use std::env;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Output;

use hayloft_core::by_address;
use tests::entry_points::Hayloft;
use tests::scenario::{Scenario, describe, on_both_backends};
use tests::sizes::{LARGE, PAGES, layout};
use tests::sysfs::pin_here;

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// The two entry points for a free: by layout, and by address alone.
#[derive(Clone, Copy, Debug)]
enum EntryPoint {
    Layout,
    Address,
}

impl EntryPoint {
    /// Returns the entry point that this process uses.
    fn from_env() -> EntryPoint {
        let is_address =
            env::var_os("ENTRY_POINT").is_some_and(|entry_point| entry_point == "address");
        if is_address { EntryPoint::Address } else { EntryPoint::Layout }
    }

    /// Frees `block` of `bytes` bytes.
    ///
    /// # Safety
    ///
    /// `block` must be live and of `bytes` bytes, or else the call must not return.
    unsafe fn free(self, block: *mut u8, bytes: usize) {
        // SAFETY: the caller guarantees that `block` is live and of `bytes` bytes, or that the call
        // does not return.
        unsafe {
            match self {
                EntryPoint::Layout => Hayloft.dealloc(block, layout(bytes, 16)),
                EntryPoint::Address => by_address::free(block),
            }
        }
    }
}

/// Allocates adjacent blocks, each a multiple of `LARGE` long.
fn adjacent_blocks<const COUNT: usize>(units: [usize; COUNT]) -> [*mut u8; COUNT] {
    let all: usize = units.iter().sum();
    // SAFETY: the sizes are not zero, and the freed block is not used again.
    unsafe {
        // Makes a gap in which they fit, between two blocks that stay live.
        let places = [(); 2].map(|()| Hayloft.alloc(layout(all * LARGE, 16)));
        Hayloft.alloc(layout(LARGE, 16));
        Hayloft.dealloc(places[1], layout(all * LARGE, 16));
        let blocks = units.map(|units| Hayloft.alloc(layout(units * LARGE, 16)));
        for (index, block) in blocks.into_iter().enumerate() {
            let before: usize = units[..index].iter().sum();
            assert_eq!(
                block.addr(),
                places[1].addr() + before * LARGE,
                "the blocks are not adjacent"
            );
        }
        blocks
    }
}

/// Frees `address`, at which no block of `bytes` bytes is live. Must be the scenario's last step.
fn free_wrongly(entry_point: EntryPoint, address: *mut u8, bytes: usize) {
    println!("address {address:p}");
    // SAFETY: the contract is broken on purpose, so the call must not return.
    unsafe { entry_point.free(address, bytes) };
}

fn assert_found(output: &Output, words: &str) {
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let all = describe(output);
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{all}");
    let mut addresses = stdout.lines().filter_map(|line| line.strip_prefix("address "));
    let message = stderr.lines().find(|line| line.starts_with("hayloft[")).unwrap_or_default();
    assert!(
        addresses.all(|address| message.contains(address)),
        "the message lacks the address: {all}"
    );
    assert!(message.contains(words), "the message lacks `{words}`: {all}");
}

/// Runs `body` with both entry points. Each time the process must abort with a message that
/// contains `words`.
fn assert_misuse_is_found<F: Fn()>(words: &str, body: F) {
    for entry_point in ["layout", "address"] {
        Scenario::new(entry_point, &body)
            .env("ENTRY_POINT", entry_point)
            .run(|output| assert_found(output, words));
    }
}

#[test]
fn double_free_is_found() {
    assert_misuse_is_found("double free, among 5242880 free bytes", || {
        let entry_point = EntryPoint::from_env();
        let [block, _] = adjacent_blocks([4, 1]);
        // SAFETY: the block is live, and freed for the first time.
        unsafe { entry_point.free(block, 4 * LARGE) };
        free_wrongly(entry_point, block, 4 * LARGE);
    });
}

/// The block merged with a free one below it, so no run starts at its address.
#[test]
fn double_free_after_a_merge_below_is_found() {
    assert_misuse_is_found("double free, among 6553600 free bytes", || {
        let entry_point = EntryPoint::from_env();
        let [below, block, _] = adjacent_blocks([1, 4, 1]);
        // SAFETY: the blocks are live, and freed for the first time.
        unsafe {
            entry_point.free(below, LARGE);
            entry_point.free(block, 4 * LARGE);
        }
        free_wrongly(entry_point, block, 4 * LARGE);
    });
}

#[test]
fn double_free_after_a_merge_above_is_found() {
    assert_misuse_is_found("double free, among 9175040 free bytes", || {
        let entry_point = EntryPoint::from_env();
        let [block, above, _] = adjacent_blocks([4, 3, 1]);
        // SAFETY: the blocks are live, and freed for the first time.
        unsafe {
            entry_point.free(block, 4 * LARGE);
            entry_point.free(above, 3 * LARGE);
        }
        free_wrongly(entry_point, above, 3 * LARGE);
    });
}

/// The former block lies in the middle of a block that replaced it.
#[test]
fn stale_free_inside_a_replacement_is_found() {
    assert_misuse_is_found("in the midst of a block of 9175040 bytes", || {
        let entry_point = EntryPoint::from_env();
        let [one, other, _] = adjacent_blocks([4, 3, 1]);
        // SAFETY: the blocks are live and freed for the first time, and the new size is not zero.
        unsafe {
            entry_point.free(one, 4 * LARGE);
            entry_point.free(other, 3 * LARGE);
            assert_eq!(Hayloft.alloc(layout(7 * LARGE, 16)), one);
        }
        free_wrongly(entry_point, other, 3 * LARGE);
    });
}

/// The former block lies inside a block that grew over it.
#[test]
fn stale_free_inside_a_grown_block_is_found() {
    assert_misuse_is_found("in the midst of a block of 9175040 bytes", || {
        let entry_point = EntryPoint::from_env();
        let [one, other, _] = adjacent_blocks([4, 3, 1]);
        // SAFETY: the blocks are live with these layouts, and the new size is valid.
        unsafe {
            entry_point.free(other, 3 * LARGE);
            assert_eq!(Hayloft.realloc(one, layout(4 * LARGE, 16), 7 * LARGE), one);
        }
        free_wrongly(entry_point, other, 3 * LARGE);
    });
}

#[test]
fn free_at_the_last_unit_is_found() {
    assert_misuse_is_found("in the midst of a block of 5242880 bytes", || {
        let entry_point = EntryPoint::from_env();
        let [block, _] = adjacent_blocks([4, 1]);
        println!("address {block:p}");
        free_wrongly(entry_point, block.wrapping_add(3 * LARGE), LARGE);
    });
}

#[test]
fn free_within_the_first_unit_is_found() {
    assert_misuse_is_found("in the midst of a block of 5242880 bytes", || {
        let entry_point = EntryPoint::from_env();
        let [block, _] = adjacent_blocks([4, 1]);
        free_wrongly(entry_point, block.wrapping_add(16), 4 * LARGE);
    });
}

/// The units cut off from a block that shrank belong to no block.
#[test]
fn free_behind_a_shrunk_block_is_found() {
    assert_misuse_is_found("double free, among 2621440 free bytes", || {
        let entry_point = EntryPoint::from_env();
        let [block, _] = adjacent_blocks([4, 1]);
        // SAFETY: the block is live with this layout, and the new size is valid.
        unsafe { assert_eq!(Hayloft.realloc(block, layout(4 * LARGE, 16), 2 * LARGE), block) };
        free_wrongly(entry_point, block.wrapping_add(2 * LARGE), LARGE);
    });
}

/// A decommitted run counts as free, too.
#[test]
fn double_free_after_decommit_is_found() {
    assert_misuse_is_found("double free, among", || {
        let entry_point = EntryPoint::from_env();
        let [below, block, _] = adjacent_blocks([1, 4, 1]);
        // SAFETY: the blocks are live, and freed for the first time.
        unsafe {
            entry_point.free(below, LARGE);
            entry_point.free(block, 4 * LARGE);
        }
        hayloft::trim();
        free_wrongly(entry_point, block, 4 * LARGE);
    });
}

/// A layout of another length does not match the block.
#[test]
fn free_with_a_longer_layout_is_found() {
    let scenario = || {
        let [block, _] = adjacent_blocks([4, 1]);
        free_wrongly(EntryPoint::Layout, block, 9 * LARGE);
    };
    Scenario::new("layout", scenario).run(|output| assert_found(output, "11796480 bytes"));
}

/// A slab is a run as well, but not a block.
#[test]
fn free_of_an_object_as_a_large_block_is_found() {
    let scenario = || {
        // SAFETY: the size is not zero.
        let objects = [(); 5000].map(|()| unsafe { Hayloft.alloc(Layout::new::<[u64; 8]>()) });
        let first = objects.into_iter().find(|object| object.addr().is_multiple_of(PAGES));
        free_wrongly(EntryPoint::Layout, first.expect("the first object of a slab"), LARGE);
    };
    Scenario::new("layout", scenario).run(|output| assert_found(output, "in a run of 65536"));
}

/// Middle-size blocks are objects of slabs. Their misuse is found as well, even if other blocks
/// were freed since.
#[test]
fn double_free_of_a_middle_block_is_found() {
    for size in [40_000, 100_000, 1 << 20] {
        assert_misuse_is_found("double free of", || {
            let entry_point = EntryPoint::from_env();
            // SAFETY: the size is not zero.
            let blocks = [(); 8].map(|()| unsafe { Hayloft.alloc(layout(size, 16)) });
            // SAFETY: the block is live, and freed for the first time.
            blocks.into_iter().for_each(|block| unsafe { entry_point.free(block, size) });
            free_wrongly(entry_point, blocks[0], size);
        });
    }
}

#[test]
fn free_inside_a_middle_block_is_found() {
    for offset in [16, 4096, 64 << 10] {
        assert_misuse_is_found("no object starts", || {
            let entry_point = EntryPoint::from_env();
            // SAFETY: the size is not zero.
            let block = unsafe { Hayloft.alloc(layout(300_000, 16)) };
            free_wrongly(entry_point, block.wrapping_add(offset), 300_000);
        });
    }
}

/// A block that was freed is not resized, even if its size class stays the same.
#[test]
fn realloc_of_a_freed_middle_block_is_found() {
    for entry_point in ["layout", "address"] {
        let scenario = || {
            // SAFETY: the size is not zero; the last call breaks the contract, as it should be
            // found.
            unsafe {
                let block = Hayloft.alloc(layout(100_000, 16));
                Hayloft.dealloc(block, layout(100_000, 16));
                if entry_point == "layout" {
                    Hayloft.realloc(block, layout(100_000, 16), 99_000);
                } else {
                    let _ = by_address::realloc(block, 99_000);
                }
            }
        };
        Scenario::new(entry_point, scenario).run(|output| assert_found(output, "double free"));
    }
}

/// A request whose class has no free object takes one of the next three classes.
#[test]
fn larger_neighbours_serve_middle_sizes() {
    on_both_backends(|| {
        pin_here();
        // Of the classes 36, 40, 44, 48 and 52 KiB.
        let sizes = [36, 40, 44, 48, 52].map(|kib| layout(kib << 10, 16));
        // SAFETY: the sizes are not zero, and each block is freed with the layout of its request.
        unsafe {
            let largest = Hayloft.alloc(sizes[4]);
            Hayloft.dealloc(largest, sizes[4]);
            let far = Hayloft.alloc(sizes[0]);
            assert_ne!(far, largest);
            for nearer in [sizes[1], sizes[2], sizes[3], sizes[4]] {
                let block = Hayloft.alloc_zeroed(nearer);
                assert_eq!(block, largest);
                let bytes = std::slice::from_raw_parts_mut(block, nearer.size());
                assert!(bytes.iter().all(|byte| *byte == 0), "zeroed memory is not zero");
                bytes.fill(1);
                Hayloft.dealloc(block, nearer);
            }
            Hayloft.dealloc(far, sizes[0]);
        }
    });
}

#[test]
fn free_of_a_middle_block_with_another_size_is_found() {
    let scenario = || {
        // SAFETY: the size is not zero.
        let block = unsafe { Hayloft.alloc(layout(300_000, 16)) };
        free_wrongly(EntryPoint::Layout, block, 500_000);
    };
    Scenario::new("layout", scenario)
        .run(|output| assert_found(output, "it is one of class 327680"));
}
