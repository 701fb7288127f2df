//! Misuse of large blocks, which are runs of their own. Freeing one twice, or at an address inside
//! it, ends the process with a message, in every build and before anything else is damaged. This
//! holds for frees with a layout and without.

use std::alloc::{GlobalAlloc, Layout};
use std::env;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Output;

use hayloft_core::by_address;
use tests::routes::Hayloft;
use tests::scenario::{Scenario, describe, on_both_backends};
use tests::sysfs::pin_here;

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// Unit of the blocks here, longer than every size class.
const UNIT: usize = 20 * PAGES;
/// Bytes of a unit of runs.
const PAGES: usize = 64 << 10;

/// The two entry points for a free: by layout, and by address alone.
#[derive(Clone, Copy, Debug)]
enum Door {
    Layout,
    Address,
}

impl Door {
    /// Returns the entry point that this process uses.
    fn of_scenario() -> Door {
        let is_address = env::var_os("DOOR").is_some_and(|door| door == "address");
        if is_address { Door::Address } else { Door::Layout }
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
                Door::Layout => Hayloft.dealloc(block, layout(bytes)),
                Door::Address => by_address::free(block),
            }
        }
    }
}

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes, 16).expect("a layout")
}

/// Allocates adjacent blocks, each a multiple of `UNIT` long.
fn row<const COUNT: usize>(units: [usize; COUNT]) -> [*mut u8; COUNT] {
    let all: usize = units.iter().sum();
    // SAFETY: the sizes are not zero, and the freed block is not used again.
    unsafe {
        // Makes a gap in which they fit, between two blocks that stay live.
        let places = [(); 2].map(|()| Hayloft.alloc(layout(all * UNIT)));
        Hayloft.alloc(layout(UNIT));
        Hayloft.dealloc(places[1], layout(all * UNIT));
        let blocks = units.map(|units| Hayloft.alloc(layout(units * UNIT)));
        for (index, block) in blocks.into_iter().enumerate() {
            let before: usize = units[..index].iter().sum();
            assert_eq!(block.addr(), places[1].addr() + before * UNIT, "they are in no row");
        }
        blocks
    }
}

/// Frees `address`, at which no block of `bytes` bytes is live. Must be the scenario's last step.
fn free_wrongly(door: Door, address: *mut u8, bytes: usize) {
    println!("address {address:p}");
    // SAFETY: the contract is broken on purpose, so the call must not return.
    unsafe { door.free(address, bytes) };
}

fn assert_found(output: &Output, words: &str) {
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let all = describe(output);
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{all}");
    let mut addresses = stdout.lines().filter_map(|line| line.strip_prefix("address "));
    let message = stderr.lines().find(|line| line.starts_with("hayloft[")).unwrap_or_default();
    assert!(addresses.all(|address| message.contains(address)), "no address: {all}");
    assert!(message.contains(words), "not `{words}`: {all}");
}

/// Runs `body` with both entry points. Each time the process must end with a message that contains
/// `words`.
fn is_found<F: Fn()>(words: &str, body: F) {
    for door in ["layout", "address"] {
        Scenario::new(door, &body).env("DOOR", door).run(|output| assert_found(output, words));
    }
}

#[test]
fn twice() {
    is_found("double free, among 5242880 free bytes", || {
        let door = Door::of_scenario();
        let [block, _] = row([4, 1]);
        // SAFETY: the block is live, and freed for the first time.
        unsafe { door.free(block, 4 * UNIT) };
        free_wrongly(door, block, 4 * UNIT);
    });
}

/// The block merged with a free one below it, so no run starts at its address.
#[test]
fn twice_after_a_merge_below() {
    is_found("double free, among 6553600 free bytes", || {
        let door = Door::of_scenario();
        let [below, block, _] = row([1, 4, 1]);
        // SAFETY: the blocks are live, and freed for the first time.
        unsafe {
            door.free(below, UNIT);
            door.free(block, 4 * UNIT);
        }
        free_wrongly(door, block, 4 * UNIT);
    });
}

#[test]
fn twice_after_a_merge_above() {
    is_found("double free, among 9175040 free bytes", || {
        let door = Door::of_scenario();
        let [block, above, _] = row([4, 3, 1]);
        // SAFETY: the blocks are live, and freed for the first time.
        unsafe {
            door.free(block, 4 * UNIT);
            door.free(above, 3 * UNIT);
        }
        free_wrongly(door, above, 3 * UNIT);
    });
}

/// The former block lies in the middle of a block that replaced it.
#[test]
fn in_a_block_that_took_its_place() {
    is_found("in the midst of a block of 9175040 bytes", || {
        let door = Door::of_scenario();
        let [one, other, _] = row([4, 3, 1]);
        // SAFETY: the blocks are live and freed for the first time, and the new size is not zero.
        unsafe {
            door.free(one, 4 * UNIT);
            door.free(other, 3 * UNIT);
            assert_eq!(Hayloft.alloc(layout(7 * UNIT)), one);
        }
        free_wrongly(door, other, 3 * UNIT);
    });
}

/// The former block lies inside a block that grew over it.
#[test]
fn in_a_block_that_grew() {
    is_found("in the midst of a block of 9175040 bytes", || {
        let door = Door::of_scenario();
        let [one, other, _] = row([4, 3, 1]);
        // SAFETY: the blocks are live with these layouts, and the new size is valid.
        unsafe {
            door.free(other, 3 * UNIT);
            assert_eq!(Hayloft.realloc(one, layout(4 * UNIT), 7 * UNIT), one);
        }
        free_wrongly(door, other, 3 * UNIT);
    });
}

#[test]
fn at_the_last_unit() {
    is_found("in the midst of a block of 5242880 bytes", || {
        let door = Door::of_scenario();
        let [block, _] = row([4, 1]);
        println!("address {block:p}");
        free_wrongly(door, block.wrapping_add(3 * UNIT), UNIT);
    });
}

#[test]
fn within_the_first_unit() {
    is_found("in the midst of a block of 5242880 bytes", || {
        let door = Door::of_scenario();
        let [block, _] = row([4, 1]);
        free_wrongly(door, block.wrapping_add(16), 4 * UNIT);
    });
}

/// The units cut off from a block that shrank belong to no block.
#[test]
fn behind_a_block_that_shrank() {
    is_found("double free, among 2621440 free bytes", || {
        let door = Door::of_scenario();
        let [block, _] = row([4, 1]);
        // SAFETY: the block is live with this layout, and the new size is valid.
        unsafe { assert_eq!(Hayloft.realloc(block, layout(4 * UNIT), 2 * UNIT), block) };
        free_wrongly(door, block.wrapping_add(2 * UNIT), UNIT);
    });
}

/// A decommitted run counts as free, too.
#[test]
fn twice_after_it_went_back() {
    is_found("double free, among", || {
        let door = Door::of_scenario();
        let [below, block, _] = row([1, 4, 1]);
        // SAFETY: the blocks are live, and freed for the first time.
        unsafe {
            door.free(below, UNIT);
            door.free(block, 4 * UNIT);
        }
        hayloft::trim();
        free_wrongly(door, block, 4 * UNIT);
    });
}

/// A layout of another length does not match the block.
#[test]
fn with_too_long_a_layout() {
    let scenario = || {
        let [block, _] = row([4, 1]);
        free_wrongly(Door::Layout, block, 9 * UNIT);
    };
    Scenario::new("layout", scenario).run(|output| assert_found(output, "11796480 bytes"));
}

/// A slab is a run as well, but not a block.
#[test]
fn an_object_as_a_large_block() {
    let scenario = || {
        // SAFETY: the size is not zero.
        let objects = [(); 5000].map(|()| unsafe { Hayloft.alloc(Layout::new::<[u64; 8]>()) });
        let first = objects.into_iter().find(|object| object.addr().is_multiple_of(PAGES));
        free_wrongly(Door::Layout, first.expect("the first object of a slab"), UNIT);
    };
    Scenario::new("layout", scenario).run(|output| assert_found(output, "in a run of 65536"));
}

/// Middle-size blocks are objects of slabs. Their misuse is found as well, even if other blocks
/// were freed since.
#[test]
fn a_middle_block_twice() {
    for size in [40_000, 100_000, 1 << 20] {
        is_found("double free of", || {
            let door = Door::of_scenario();
            // SAFETY: the size is not zero.
            let blocks = [(); 8].map(|()| unsafe { Hayloft.alloc(layout(size)) });
            // SAFETY: the block is live, and freed for the first time.
            blocks.into_iter().for_each(|block| unsafe { door.free(block, size) });
            free_wrongly(door, blocks[0], size);
        });
    }
}

#[test]
fn in_a_middle_block() {
    for offset in [16, 4096, 64 << 10] {
        is_found("no object starts", || {
            let door = Door::of_scenario();
            // SAFETY: the size is not zero.
            let block = unsafe { Hayloft.alloc(layout(300_000)) };
            free_wrongly(door, block.wrapping_add(offset), 300_000);
        });
    }
}

/// A block that was freed is not resized, even if its size class stays the same.
#[test]
fn a_freed_middle_block_is_not_resized() {
    for door in ["layout", "address"] {
        let scenario = || {
            // SAFETY: the size is not zero; the last call breaks the contract, as it should be
            // found.
            unsafe {
                let block = Hayloft.alloc(layout(100_000));
                Hayloft.dealloc(block, layout(100_000));
                if door == "layout" {
                    Hayloft.realloc(block, layout(100_000), 99_000);
                } else {
                    let _ = by_address::realloc(block, 99_000);
                }
            }
        };
        Scenario::new(door, scenario).run(|output| assert_found(output, "double free"));
    }
}

/// A request whose class has no free object takes one of the next three classes.
#[test]
fn larger_neighbours_serve_middle_sizes() {
    on_both_backends(|| {
        pin_here();
        // Of the classes 36, 40, 44, 48 and 52 KiB.
        let sizes = [36, 40, 44, 48, 52].map(|kib| layout(kib << 10));
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
                assert!(bytes.iter().all(|byte| *byte == 0));
                bytes.fill(1);
                Hayloft.dealloc(block, nearer);
            }
            Hayloft.dealloc(far, sizes[0]);
        }
    });
}

#[test]
fn a_middle_block_of_another_size() {
    let scenario = || {
        // SAFETY: the size is not zero.
        let block = unsafe { Hayloft.alloc(layout(300_000)) };
        free_wrongly(Door::Layout, block, 500_000);
    };
    Scenario::new("layout", scenario)
        .run(|output| assert_found(output, "it is one of class 327680"));
}
