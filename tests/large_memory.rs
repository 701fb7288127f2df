//! How much memory large blocks take, and of what kind: reused holes, tables of zeros, room to
//! grow, huge pages, core files, locked memory.

use std::alloc::{GlobalAlloc, Layout};
use std::fs;

use hayloft_core::{by_address, heap, stats};
use tests::entry_points::Hayloft;
use tests::process::status_bytes;
use tests::scenario::{Scenario, on_both_backends};
use tests::sizes::{LARGE, MIB, PAGES, layout};
use tests::sysfs::pin_here;

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// Allocates a block and writes all of its bytes.
fn filled(layout: Layout) -> *mut u8 {
    // SAFETY: the size is not zero, and the block is that long.
    unsafe {
        let block = Hayloft.alloc(layout);
        assert!(!block.is_null());
        block.write_bytes(1, layout.size());
        block
    }
}

/// A hole of exactly the wanted length and alignment is reused.
#[test]
fn aligned_blocks_reuse_holes() {
    on_both_backends(|| {
        for bytes in [2 * PAGES, 2 * MIB] {
            let layout = layout(bytes, bytes);
            let blocks = [(); 20].map(|()| filled(layout));
            for block in blocks {
                // SAFETY: the block is live with this layout, and freed once.
                unsafe { Hayloft.dealloc(block, layout) };
                assert_eq!(filled(layout), block);
            }
        }
    });
}

/// New slabs of two units take the places of freed ones.
#[test]
fn slabs_reuse_holes() {
    on_both_backends(|| {
        let object = layout(20_000, 16);
        let mut objects: Vec<_> = (0..6000).map(|_| filled(object)).collect();
        let mut freed = 0;
        // Frees the objects of every second slab.
        objects.retain(|object_of_slab| {
            let is_kept = (object_of_slab.addr() / (2 * PAGES)).is_multiple_of(2);
            if !is_kept {
                freed += 1;
                // SAFETY: the block is live with this layout, and freed once.
                unsafe { Hayloft.dealloc(*object_of_slab, object) };
            }
            is_kept
        });
        let resident = status_bytes("VmRSS");
        objects.extend((0..freed).map(|_| filled(object)));
        let more = status_bytes("VmRSS").saturating_sub(resident);
        assert!(more < freed * 20_000 / 4, "{more} bytes of new memory for {freed} objects");
    });
}

/// A zeroed table takes memory only where it is written, whatever the memory held before.
#[test]
fn zeroed_tables_stay_sparse() {
    on_both_backends(|| {
        let layout = layout(64 * MIB, 16);
        let before = status_bytes("VmRSS");
        for _ in 0..3 {
            let block = filled(layout);
            // SAFETY: the blocks are freed once, and the table is as long as its layout.
            unsafe {
                Hayloft.dealloc(block, layout);
                let table = Hayloft.alloc_zeroed(layout);
                for at in (0..64 * MIB).step_by(MIB) {
                    assert_eq!(*table.add(at + 77), 0);
                    *table.add(at) = 1;
                }
                let more = status_bytes("VmRSS").saturating_sub(before);
                assert!(more < 8 * MIB, "{more} bytes resident for 64 written pages");
                Hayloft.dealloc(table, layout);
            }
        }
    });
}

/// A block that grows gets room to grow further. The room takes no memory, or at most as much as
/// the block. Shrinking the block releases it.
#[test]
fn growing_blocks_get_room_to_grow() {
    on_both_backends(|| {
        let grown = || {
            let block = filled(layout(2 * LARGE, 16));
            let behind = filled(layout(LARGE, 16));
            // SAFETY: the block is live with this layout, and the new size is valid.
            let block = unsafe { Hayloft.realloc(block, layout(2 * LARGE, 16), 4 * LARGE) };
            // SAFETY: the block is live with this layout, and freed once.
            unsafe { Hayloft.dealloc(behind, layout(LARGE, 16)) };
            block
        };
        // SAFETY: the blocks are live with these layouts, and each is freed once.
        unsafe {
            let block = grown();
            assert_eq!(
                by_address::usable_size(block),
                16 * LARGE,
                "bytes of the block with its room"
            );
            assert_eq!(Hayloft.realloc(block, layout(4 * LARGE, 16), 4 * LARGE - 1), block);
            assert_eq!(by_address::usable_size(block), 4 * LARGE);
            Hayloft.dealloc(block, layout(4 * LARGE - 1, 16));
            // The room takes memory where the heap has dirty memory.
            Hayloft.dealloc(filled(layout(100 * MIB, 16)), layout(100 * MIB, 16));
            let block = grown();
            assert_eq!(by_address::usable_size(block), 8 * LARGE);
            Hayloft.dealloc(block, layout(4 * LARGE, 16));
        }
    });
}

/// A block that grows by one page at a time, beside others, is not copied each time, with a layout
/// or without.
#[test]
fn growth_in_small_steps_copies_little() {
    on_both_backends(|| {
        const FIRST: usize = 64 << 10;
        const LAST: usize = 48 * MIB;
        type Realloc = unsafe fn(*mut u8, usize, usize) -> *mut u8;
        // SAFETY: the caller passes a live block, its layout's size, and a valid new size.
        let by_layout: Realloc =
            |block, old, new| unsafe { Hayloft.realloc(block, layout(old, 16), new) };
        // SAFETY: the caller passes a live block and a valid new size.
        let by_address: Realloc = |block, _, new| unsafe { by_address::realloc(block, new) };
        for (entry_point, realloc) in [("layout", by_layout), ("address", by_address)] {
            let (mut block, mut copied) = (filled(layout(FIRST, 16)), 0);
            let mut neighbours = Vec::new();
            for size in (FIRST..LAST).step_by(4096) {
                // SAFETY: the block is live and of `size` bytes, and its new bytes are written
                // before they are read.
                unsafe {
                    let grown = realloc(block, size, size + 4096);
                    assert!(!grown.is_null(), "{} bytes were refused", size + 4096);
                    assert!(*grown == 1 && *grown.add(size - 1) == 1, "contents changed");
                    grown.add(size).write_bytes(1, 4096);
                    assert!(by_address::usable_size(grown) >= size + 4096);
                    copied += if grown == block { 0 } else { size };
                    block = grown;
                }
                if size.is_multiple_of(256 << 10) {
                    neighbours.push(filled(layout(2 * MIB, 16)));
                }
            }
            // Moving pages, which starts at 8 MiB, costs far less than copying them.
            assert!(copied < 6 * LAST, "realloc by {entry_point} copied or moved {copied} bytes");
            // SAFETY: the blocks are live with these layouts, and each is freed once.
            unsafe {
                assert!((0..LAST).step_by(4096).all(|at| *block.add(at) == 1), "contents changed");
                Hayloft.dealloc(block, layout(LAST, 16));
                neighbours.iter().for_each(|block| Hayloft.dealloc(*block, layout(2 * MIB, 16)));
            }
        }
    });
}

/// The middle-size blocks that a CPU keeps are bounded in bytes, although their frees need not
/// reach a slow path.
#[test]
fn cpus_keep_few_middle_blocks() {
    on_both_backends(|| {
        const SIZES: usize = 40;
        // The least bound of a CPU, a sixteenth of it until the next check, and a block.
        const KEPT: usize = (64 << 10) + (4 << 10) + MIB;
        let of = |number: usize| layout(((9 + number % 8) << 12) << (number / 8), 16);
        // Returns the most bytes that one CPU keeps, since the thread may run on several.
        let check = || {
            let stats = stats::gather();
            let kept = stats.cpus().map(|cpu| cpu.bytes).max().unwrap_or(0);
            // Or half of the heap, and a sixteenth of that.
            assert!(
                kept <= KEPT.max(stats.held / 2 + stats.held / 32),
                "a CPU keeps {kept} bytes of {}",
                stats.held
            );
        };
        let mut blocks = Vec::with_capacity(16 * SIZES);
        for _ in 0..3 {
            for number in 0..16 * SIZES {
                // SAFETY: the size is not zero.
                blocks.push((unsafe { Hayloft.alloc(of(number / 16)) }, of(number / 16)));
            }
            // SAFETY: the blocks are live with these layouts, and each is freed once.
            blocks.drain(..).for_each(|(block, layout)| unsafe { Hayloft.dealloc(block, layout) });
            check();
        }
        heap::trim();
        for number in 0..16 * SIZES {
            // SAFETY: the size is not zero, and the block is freed once, with the same layout.
            unsafe { Hayloft.dealloc(Hayloft.alloc(of(number % SIZES)), of(number % SIZES)) };
        }
        check();
    });
}

/// A program that allocates and frees one middle-size block in turns stays on the fast path.
#[test]
fn the_last_middle_block_stays_in_its_sheaf() {
    on_both_backends(|| {
        pin_here();
        let refills = || stats::gather().cpus().map(|cpu| cpu.events.refills).sum::<u64>();
        for size in [40 << 10, 100 << 10, 250 << 10].map(|size| layout(size, 16)) {
            let before = refills();
            for _ in 0..1000 {
                // SAFETY: the size is not zero, and the block is freed once, with the same layout.
                unsafe { Hayloft.dealloc(Hayloft.alloc(size), size) };
            }
            // The sheaf may be emptied at the end of a window.
            let refills = refills() - before;
            assert!(refills <= 20, "{refills} refills for 1000 blocks of {} bytes", size.size());
        }
    });
}

/// Returns the kernel's `VmFlags` of the mapping at `address`: two letters each.
fn flags_at(address: *mut u8) -> Vec<String> {
    let smaps = fs::read_to_string("/proc/self/smaps").expect("/proc is mounted");
    let mut is_found = false;
    for line in smaps.lines() {
        if let Some((from, to)) = line.split(' ').next().and_then(|range| range.split_once('-'))
            && let (Ok(from), Ok(to)) =
                (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16))
        {
            is_found = (from..to).contains(&address.addr());
        } else if let Some(flags) = line.strip_prefix("VmFlags:").filter(|_| is_found) {
            return flags.split_whitespace().map(str::to_owned).collect();
        }
    }
    panic!("{address:p} is not mapped");
}

/// Even where the system enables huge pages for every mapping, only long blocks use them, unless
/// the setting says otherwise.
#[test]
fn huge_pages_follow_the_setting() {
    for (setting, of_small, of_large) in
        [("auto", "nh", "hg"), ("always", "hg", "hg"), ("never", "nh", "nh")]
    {
        Scenario::new(setting, || {
            // The long block may begin in memory that was committed earlier.
            let blocks =
                [filled(layout(100, 16)), filled(layout(64 * MIB, 16)).wrapping_add(32 * MIB)];
            for (block, flag) in blocks.into_iter().zip([of_small, of_large]) {
                let flags = flags_at(block);
                assert!(flags.iter().any(|other| other == flag), "expected {flag} in {flags:?}");
            }
        })
        .env("HAYLOFT_THP", setting)
        .succeeds();
    }
}

/// Returns the bytes of mappings that a core file includes.
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

/// Core files exclude memory that is not in use. Some debuggers write it as zeros.
#[test]
fn core_files_contain_only_memory_in_use() {
    on_both_backends(|| {
        let dumped_at = |block: *mut u8| !flags_at(block).iter().any(|flag| flag == "dd");
        let before = dumped_bytes();
        assert!(before < 512 * MIB, "{before} bytes in a core file");
        for _ in 0..2 {
            let (block, behind) = (filled(layout(64 * MIB, 16)), filled(layout(LARGE, 16)));
            for at in (0..64 * MIB).step_by(4 * MIB) {
                let is_dumped = dumped_at(block.wrapping_add(at)) && dumped_at(behind);
                assert!(is_dumped, "a core file lacks memory in use");
            }
            // SAFETY: the blocks are live with these layouts, and each is freed once.
            unsafe {
                Hayloft.dealloc(block, layout(64 * MIB, 16));
                hayloft::trim();
                let now = dumped_bytes();
                assert!(
                    now < before + 32 * MIB,
                    "{before} bytes in a core file before, {now} after"
                );
                assert!(dumped_at(behind), "a core file lacks memory in use");
                let small = filled(layout(MIB, 16));
                assert!(dumped_at(small), "a core file lacks memory in use");
                Hayloft.dealloc(small, layout(MIB, 16));
                Hayloft.dealloc(behind, layout(LARGE, 16));
            }
        }
    });
}

/// The same holds for small blocks, whose memory is decommitted a little at a time.
#[test]
fn core_files_exclude_freed_small_blocks() {
    on_both_backends(|| {
        let before = dumped_bytes();
        let blocks: Vec<_> = (0..64_000).map(|_| filled(layout(1000, 16))).collect();
        for (number, block) in blocks.into_iter().enumerate() {
            if number >= 4000 {
                // SAFETY: the block is live with this layout, and freed once.
                unsafe { Hayloft.dealloc(block, layout(1000, 16)) };
            }
            if number % 1000 == 0 {
                hayloft::trim();
            }
        }
        hayloft::trim();
        let now = dumped_bytes();
        assert!(now < before + 32 * MIB, "{before} bytes in a core file before, {now} after");
    });
}

/// A process that locks its memory decommits idle memory all the same.
#[test]
fn locked_memory_is_decommitted() {
    on_both_backends(|| {
        assert!(!filled(layout(MIB, 16)).is_null());
        // SAFETY: `mlockall` takes flags only.
        if unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_ONFAULT) } != 0 {
            println!("skipped: memory cannot be locked");
            return;
        }
        let before = status_bytes("VmRSS");
        let block = filled(layout(64 * MIB, 16));
        // SAFETY: the block is live with this layout, and freed once.
        unsafe { Hayloft.dealloc(block, layout(64 * MIB, 16)) };
        hayloft::trim();
        let more = status_bytes("VmRSS").saturating_sub(before);
        assert!(more < 8 * MIB, "{more} bytes stay resident");
    });
}

/// Memory whose decommit the system refused is not tried again until something is freed.
#[test]
fn refused_decommits_are_not_repeated() {
    Scenario::new("refused", || {
        drop(vec![1_u8; 32 * MIB]);
        let windows = (0..20).take_while(|_| heap::end_window()).count();
        assert!(windows < 20, "each of 20 windows tried to decommit");
        assert!(hayloft_core::stats::gather_own().unneeded >= 32 * MIB);
    })
    .env("HAYLOFT_FAULT", "madvise:1/1")
    .env("HAYLOFT_DECAY_MS", "3600000")
    .succeeds();
}
