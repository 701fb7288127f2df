//! How much memory large blocks take, and of what kind: holes that are used again, tables that are zero, room to grow, huge pages,
//! memory that is locked.

use std::alloc::{GlobalAlloc, Layout};
use std::fs;

use alloc_core::{by_address, cache, stats};
use tests::process::status_bytes;
use tests::routes::Hayloft;
use tests::scenario::{Scenario, on_both_backends};

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

const MIB: usize = 1 << 20;
/// More than any class has.
const UNIT: usize = 20 * PAGES;
/// What runs are made of.
const PAGES: usize = 64 << 10;

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes, 16).expect("a layout")
}

/// A block whose bytes are all written.
fn filled(layout: Layout) -> *mut u8 {
    // SAFETY: the size is not zero; the block is that long.
    unsafe {
        let block = Hayloft.alloc(layout);
        assert!(!block.is_null());
        block.write_bytes(1, layout.size());
        block
    }
}

/// A hole that has just the length that is wanted, and starts where it should, is used.
#[test]
fn aligned_blocks_use_holes_again() {
    on_both_backends(|| {
        for bytes in [2 * PAGES, 2 * MIB] {
            let layout = Layout::from_size_align(bytes, bytes).expect("a layout");
            let blocks = [(); 20].map(|()| filled(layout));
            for block in blocks {
                // SAFETY: in use, and freed once.
                unsafe { Hayloft.dealloc(block, layout) };
                assert_eq!(filled(layout), block);
            }
        }
    });
}

/// Slabs of two units that are made again take the places of those that were freed.
#[test]
fn slabs_use_holes_again() {
    on_both_backends(|| {
        let object = layout(20_000);
        let mut objects: Vec<_> = (0..6000).map(|_| filled(object)).collect();
        let mut freed = 0;
        // Of every second slab.
        objects.retain(|object_of_slab| {
            let is_kept = (object_of_slab.addr() / (2 * PAGES)).is_multiple_of(2);
            if !is_kept {
                freed += 1;
                // SAFETY: in use, and freed once.
                unsafe { Hayloft.dealloc(*object_of_slab, object) };
            }
            is_kept
        });
        let resident = status_bytes("VmRSS");
        objects.extend((0..freed).map(|_| filled(object)));
        let more = status_bytes("VmRSS").saturating_sub(resident);
        assert!(more < freed * 20_000 / 4, "{more} bytes more for {freed} objects");
    });
}

/// A table of zeros takes memory where it is written only, whatever was there before.
#[test]
fn sparse_tables_of_zeros() {
    on_both_backends(|| {
        let layout = layout(64 * MIB);
        let before = status_bytes("VmRSS");
        for _ in 0..3 {
            let block = filled(layout);
            // SAFETY: freed once; the table is as long as the block.
            unsafe {
                Hayloft.dealloc(block, layout);
                let table = Hayloft.alloc_zeroed(layout);
                for at in (0..64 * MIB).step_by(MIB) {
                    assert_eq!(*table.add(at + 77), 0);
                    *table.add(at) = 1;
                }
                let more = status_bytes("VmRSS").saturating_sub(before);
                assert!(more < 8 * MIB, "{more} bytes for 64 pages");
                Hayloft.dealloc(table, layout);
            }
        }
    });
}

/// A block that grows gets room to grow further, which takes no memory, or as much as the block at most; a smaller one does not keep
/// it.
#[test]
fn room_to_grow() {
    on_both_backends(|| {
        let grown = || {
            let block = filled(layout(2 * UNIT));
            let behind = filled(layout(UNIT));
            // SAFETY: a block of that layout.
            let block = unsafe { Hayloft.realloc(block, layout(2 * UNIT), 4 * UNIT) };
            // SAFETY: in use, and freed once.
            unsafe { Hayloft.dealloc(behind, layout(UNIT)) };
            block
        };
        // SAFETY: blocks in use, of these layouts; each is freed once.
        unsafe {
            let block = grown();
            assert_eq!(by_address::usable_size(block), 16 * UNIT, "there is no room");
            assert_eq!(Hayloft.realloc(block, layout(4 * UNIT), 4 * UNIT - 1), block);
            assert_eq!(by_address::usable_size(block), 4 * UNIT);
            Hayloft.dealloc(block, layout(4 * UNIT - 1));
            // Where there is memory that was in use before, room takes some.
            Hayloft.dealloc(filled(layout(100 * MIB)), layout(100 * MIB));
            let block = grown();
            assert_eq!(by_address::usable_size(block), 8 * UNIT);
            Hayloft.dealloc(block, layout(4 * UNIT));
        }
    });
}

/// A block that grows by a page at a time beside others is not copied each time, with a layout or without.
#[test]
fn growth_in_small_steps_copies_little() {
    on_both_backends(|| {
        const FIRST: usize = 64 << 10;
        const LAST: usize = 48 * MIB;
        type Realloc = unsafe fn(*mut u8, usize, usize) -> *mut u8;
        // SAFETY: as `realloc`, of a block of that layout.
        let by_layout: Realloc =
            |block, old, new| unsafe { Hayloft.realloc(block, layout(old), new) };
        // SAFETY: as above.
        let by_address: Realloc = |block, _, new| unsafe { by_address::realloc(block, new) };
        for (door, realloc) in [("layout", by_layout), ("address", by_address)] {
            let (mut block, mut copied) = (filled(layout(FIRST)), 0);
            let mut neighbours = Vec::new();
            for size in (FIRST..LAST).step_by(4096) {
                // SAFETY: a block of that size; what is new of it is written.
                unsafe {
                    let grown = realloc(block, size, size + 4096);
                    assert!(!grown.is_null() && *grown == 1 && *grown.add(size - 1) == 1);
                    grown.add(size).write_bytes(1, 4096);
                    assert!(by_address::usable_size(grown) >= size + 4096);
                    copied += if grown == block { 0 } else { size };
                    block = grown;
                }
                if size.is_multiple_of(256 << 10) {
                    neighbours.push(filled(layout(2 * MIB)));
                }
            }
            // Moving pages, from 8 MiB on, costs far less than copying them.
            assert!(copied < 6 * LAST, "by {door}: {copied} bytes copied or moved");
            // SAFETY: in use, and freed once.
            unsafe {
                assert!((0..LAST).step_by(4096).all(|at| *block.add(at) == 1));
                Hayloft.dealloc(block, layout(LAST));
                neighbours.iter().for_each(|block| Hayloft.dealloc(*block, layout(2 * MIB)));
            }
        }
    });
}

/// What CPUs keep of middle sizes is bounded by bytes, though no block of a program need come to a slow path when it is freed.
#[test]
fn cpus_keep_few_middle_blocks() {
    on_both_backends(|| {
        const SIZES: usize = 40;
        const KEPT: usize = 4 * MIB / 4 * 5 + MIB;
        let of = |number: usize| layout(((9 + number % 8) << 12) << (number / 8));
        // The most that one keeps: the thread may come to several.
        let check = || {
            let stats = stats::gather();
            let kept = stats.cpus().map(|cpu| cpu.bytes).max().unwrap_or(0);
            // Half of the heap, and a quarter of that until the sheaves are looked at again.
            assert!(kept <= KEPT.max(stats.held / 3 * 2), "{kept} bytes kept of {}", stats.held);
            kept
        };
        let mut blocks = Vec::with_capacity(16 * SIZES);
        for _ in 0..3 {
            for number in 0..16 * SIZES {
                // SAFETY: the size is not zero.
                blocks.push((unsafe { Hayloft.alloc(of(number / 16)) }, of(number / 16)));
            }
            // SAFETY: in use, and freed once.
            blocks.drain(..).for_each(|(block, layout)| unsafe { Hayloft.dealloc(block, layout) });
            check();
        }
        cache::trim();
        for number in 0..16 * SIZES {
            // SAFETY: in use, and freed once.
            unsafe { Hayloft.dealloc(Hayloft.alloc(of(number % SIZES)), of(number % SIZES)) };
        }
        assert!(check() >= MIB);
    });
}

/// What the kernel was told of the mapping that an address lies in: two letters each.
fn flags_at(address: *mut u8) -> Vec<String> {
    let smaps = fs::read_to_string("/proc/self/smaps").expect("/proc is mounted");
    let mut is_there = false;
    for line in smaps.lines() {
        if let Some((from, to)) = line.split(' ').next().and_then(|range| range.split_once('-'))
            && let (Ok(from), Ok(to)) =
                (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16))
        {
            is_there = (from..to).contains(&address.addr());
        } else if let Some(flags) = line.strip_prefix("VmFlags:").filter(|_| is_there) {
            return flags.split_whitespace().map(str::to_owned).collect();
        }
    }
    panic!("{address:p} is not mapped");
}

/// Where the system gives huge pages to everybody, too, they are used for long blocks only, or as the setting says.
#[test]
fn huge_pages() {
    for (setting, of_small, of_large) in
        [("auto", "nh", "hg"), ("always", "hg", "hg"), ("never", "nh", "nh")]
    {
        Scenario::new(setting, || {
            // The long one may begin with memory that was there before.
            let blocks = [filled(layout(100)), filled(layout(64 * MIB)).wrapping_add(32 * MIB)];
            for (block, flag) in blocks.into_iter().zip([of_small, of_large]) {
                let flags = flags_at(block);
                assert!(flags.iter().any(|other| other == flag), "no {flag} in {flags:?}");
            }
        })
        .env("HAYLOFT_THP", setting)
        .succeeds();
    }
}

/// Bytes of readable mappings that are for core files.
fn dumped_bytes() -> usize {
    let smaps = fs::read_to_string("/proc/self/smaps").expect("/proc is mounted");
    let (mut kib, mut sum) = (0, 0);
    for line in smaps.lines() {
        if let Some(size) = line.strip_prefix("Size:") {
            kib = size.trim().trim_end_matches(" kB").parse().expect("a number");
        } else if let Some(flags) = line.strip_prefix("VmFlags:") {
            sum += if flags.contains(" dd") { 0 } else { kib << 10 };
        }
    }
    sum
}

/// Memory that is not in use is not for core files, where some debuggers write it as zeros.
#[test]
fn core_files_have_what_is_in_use() {
    on_both_backends(|| {
        let dumped_at = |block: *mut u8| !flags_at(block).iter().any(|flag| flag == "dd");
        let before = dumped_bytes();
        assert!(before < 512 * MIB, "{before} bytes for a core file");
        for _ in 0..2 {
            let (block, behind) = (filled(layout(64 * MIB)), filled(layout(UNIT)));
            for at in (0..64 * MIB).step_by(4 * MIB) {
                assert!(dumped_at(block.wrapping_add(at)) && dumped_at(behind));
            }
            // SAFETY: in use; each is freed once.
            unsafe {
                Hayloft.dealloc(block, layout(64 * MIB));
                alloc_global::trim();
                let now = dumped_bytes();
                assert!(now < before + 32 * MIB, "{before} bytes for a core file, then {now}");
                assert!(dumped_at(behind));
                let small = filled(layout(MIB));
                assert!(dumped_at(small));
                Hayloft.dealloc(small, layout(MIB));
                Hayloft.dealloc(behind, layout(UNIT));
            }
        }
    });
}

/// So it is for small blocks, whose memory goes back a little at a time.
#[test]
fn core_files_have_few_small_blocks_that_were_freed() {
    on_both_backends(|| {
        let before = dumped_bytes();
        let blocks: Vec<_> = (0..64_000).map(|_| filled(layout(1000))).collect();
        for (number, block) in blocks.into_iter().enumerate() {
            if number >= 4000 {
                // SAFETY: in use, and freed once.
                unsafe { Hayloft.dealloc(block, layout(1000)) };
            }
            if number % 1000 == 0 {
                alloc_global::trim();
            }
        }
        alloc_global::trim();
        let now = dumped_bytes();
        assert!(now < before + 32 * MIB, "{before} bytes for a core file, then {now}");
    });
}

/// A process that locks its memory gives back what it does not need.
#[test]
fn locked_memory_goes_back() {
    on_both_backends(|| {
        assert!(!filled(layout(MIB)).is_null());
        // SAFETY: flags only.
        if unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_ONFAULT) } != 0 {
            println!("skipped: memory may not be locked");
            return;
        }
        let before = status_bytes("VmRSS");
        let block = filled(layout(64 * MIB));
        // SAFETY: freed once.
        unsafe { Hayloft.dealloc(block, layout(64 * MIB)) };
        alloc_global::trim();
        let more = status_bytes("VmRSS").saturating_sub(before);
        assert!(more < 8 * MIB, "{more} bytes are still there");
    });
}

/// What the system refuses to take is not offered again for as long as nothing is freed.
#[test]
fn what_is_refused_is_not_offered_for_ever() {
    Scenario::new("refused", || {
        drop(vec![1_u8; 32 * MIB]);
        let windows = (0..20).take_while(|_| cache::end_window()).count();
        assert!(windows < 20, "each window has more to give back");
        assert!(alloc_core::stats::gather_own().unneeded >= 32 * MIB);
    })
    .env("HAYLOFT_FAULT", "madvise:1/1")
    .env("HAYLOFT_DECAY_MS", "3600000")
    .succeeds();
}
