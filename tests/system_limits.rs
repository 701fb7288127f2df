//! System limits other than the one on address space (see `exhaustion.rs`): on mappings, on
//! committed memory, and on a cgroup's memory.

use std::alloc::{GlobalAlloc, Layout};
use std::env;
use std::fs;
use std::path::Path;
use std::ptr;

use hayloft_core::stats;
use tests::cgroup::{self, Cgroup};
use tests::entry_points::Hayloft;
use tests::pattern;
use tests::process::{meminfo_bytes, status_bytes};
use tests::scenario::{Scenario, on_both_backends};
use tests::sizes::{MIB, layout};
use tests::skipped;
use tests::sysfs::pin_here;

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// Reads a number from a file of `/proc`.
fn number(path: &str) -> usize {
    let text = fs::read_to_string(path).expect("/proc is mounted");
    text.trim().parse().expect("a number")
}

/// A filled block, or null if its allocation was refused.
#[derive(Clone, Copy)]
struct Block {
    address: *mut u8,
    layout: Layout,
    id: u64,
}

impl Block {
    fn new(size: usize, id: u64) -> Block {
        let layout = layout(size, 8);
        // SAFETY: the size is not zero, and the block is `size` bytes long.
        unsafe {
            let address = Hayloft.alloc(layout);
            if !address.is_null() {
                pattern::fill(address, 0, size, id);
            }
            Block { address, layout, id }
        }
    }

    fn check(&self) {
        if !self.address.is_null() {
            // SAFETY: the block is live, filled and of this layout.
            let found =
                unsafe { pattern::find_mismatch(self.address, self.layout.size(), self.id) };
            assert_eq!(found, None, "{:?}", self.layout);
        }
    }

    /// Resizes the block. Returns whether there was memory for it.
    fn resize(&mut self, size: usize) -> bool {
        if self.address.is_null() {
            return false;
        }
        self.check();
        // SAFETY: the block is live with this layout, and the new size is valid.
        let address = unsafe { Hayloft.realloc(self.address, self.layout, size) };
        if address.is_null() {
            self.check();
            return false;
        }
        let kept = size.min(self.layout.size());
        // SAFETY: the block is `size` bytes long, of which the first `kept` are filled.
        unsafe {
            assert_eq!(pattern::find_mismatch(address, kept, self.id), None);
            pattern::fill(address, kept, size, self.id);
        }
        self.address = address;
        self.layout = layout(size, 8);
        true
    }

    fn free(self) {
        self.check();
        if !self.address.is_null() {
            // SAFETY: the block is live with this layout, and this is its last use.
            unsafe { Hayloft.dealloc(self.address, self.layout) };
        }
    }
}

/// Sizes of classes with sheaves of all lengths, of a run, and of a run that moves by remapping.
const SIZES: [usize; 9] = [16, 100, 700, 3000, 9000, 30_000, 100_000, 3 * MIB, 12 * MIB];

/// Allocates, resizes and frees blocks of all sizes, and trims. Returns the number of refusals.
fn use_memory() -> usize {
    let mut refused = 0;
    let mut blocks = [None::<Block>; SIZES.len() * 6];
    for (index, slot) in blocks.iter_mut().enumerate() {
        let block = Block::new(SIZES[index % SIZES.len()], index as u64);
        refused += usize::from(block.address.is_null());
        *slot = Some(block);
    }
    for block in blocks.iter_mut().flatten().skip(1).step_by(2) {
        let size = block.layout.size();
        refused += usize::from(!block.resize(size * 3)) + usize::from(!block.resize(size / 2));
    }
    blocks.iter_mut().step_by(3).filter_map(Option::take).for_each(Block::free);
    hayloft::trim();
    blocks.iter_mut().filter_map(Option::take).for_each(Block::free);
    hayloft::trim();
    refused
}

/// Mappings that exhaust the process's limit: pages with alternating rights.
struct Mappings {
    address: *mut libc::c_void,
    page: usize,
    pages: usize,
    /// Last page that has rights.
    last: usize,
}

impl Mappings {
    /// Creates mappings until the process may have no others.
    fn exhaust() -> Mappings {
        // SAFETY: `sysconf` takes a number only.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let pages = number("/proc/sys/vm/max_map_count") + 2;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a fresh mapping touches no other memory.
        let address =
            unsafe { libc::mmap(ptr::null_mut(), pages * page, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(address, libc::MAP_FAILED);
        let mut mappings = Mappings { address, page, pages, last: 1 };
        while mappings.protect(mappings.last, libc::PROT_READ) {
            mappings.last += 2;
            assert!(mappings.last < pages, "the kernel has no limit on mappings");
        }
        mappings
    }

    fn protect(&self, number: usize, rights: libc::c_int) -> bool {
        assert!(number < self.pages);
        // SAFETY: the page belongs to this mapping, and nothing relies on its rights.
        unsafe { libc::mprotect(self.address.byte_add(number * self.page), self.page, rights) == 0 }
    }

    fn release_two(&mut self) {
        self.last -= 2;
        assert!(self.protect(self.last, libc::PROT_NONE), "two mappings cannot be merged");
    }

    fn release_all(self) {
        // SAFETY: the mapping has that length, and nothing uses it.
        assert_eq!(unsafe { libc::munmap(self.address, self.pages * self.page) }, 0);
    }
}

/// While the process may create no or few mappings, allocations may be refused, but no block is
/// damaged. Afterwards none is refused.
#[test]
fn exhausted_mappings_damage_no_blocks() {
    on_both_backends(|| {
        for before in [false, true] {
            if before {
                assert_eq!(use_memory(), 0, "allocations refused");
            }
            let mut mappings = Mappings::exhaust();
            let refused = [(); 6].map(|()| {
                let refused = use_memory();
                mappings.release_two();
                refused
            });
            mappings.release_all();
            assert_eq!(use_memory(), 0, "allocations refused");
            println!("{refused:?} refused");
        }
    });
}

/// Grows a block that has a neighbour from 12 MiB to 40 MiB. Returns whether its pages were moved
/// instead of copied, which makes a mapping of their own.
fn growth_moves_pages() -> bool {
    let mut block = Block::new(12 * MIB, 1);
    let neighbour = Block::new(12 * MIB, 2);
    assert!(block.resize(40 * MIB), "memory was refused");
    let start = format!("\n{:x}-", block.address.addr());
    let is_moved =
        fs::read_to_string("/proc/self/maps").expect("/proc is mounted").contains(&start);
    neighbour.free();
    block.free();
    is_moved
}

/// Asserts that no block of 12 MiB or more is in use.
fn assert_none_lost() {
    let stats = stats::gather();
    assert!(stats.held - stats.unneeded < 12 * MIB, "memory was lost: {stats:?}");
}

/// While the kernel does not move pages, large blocks that grow are copied. That costs no memory,
/// and afterwards they move again.
#[test]
fn blocks_are_copied_for_lack_of_mappings() {
    on_both_backends(|| {
        assert!(growth_moves_pages());
        let mappings = Mappings::exhaust();
        for _ in 0..3 {
            assert!(!growth_moves_pages(), "pages were moved without a mapping for them");
        }
        mappings.release_all();
        assert_none_lost();
        assert!(growth_moves_pages(), "blocks are copied although there are mappings");
    });
    let refused = || {
        for _ in 0..3 {
            assert!(!growth_moves_pages());
        }
        assert_none_lost();
    };
    Scenario::new("refused", refused).env("HAYLOFT_FAULT", "mremap:1/1").succeeds();
    // Moved pages cannot be mapped anew when they are freed, and are reused nonetheless.
    let kept = || {
        for _ in 0..3 {
            growth_moves_pages();
        }
        assert!(stats::gather().held < 120 * MIB, "memory was lost");
        assert_none_lost();
    };
    Scenario::new("kept", kept).env("HAYLOFT_FAULT", "mmap:1/2,4711").succeeds();
}

/// Large blocks that grow and move repeatedly do not exhaust the process's mappings, since their
/// number depends only on the blocks in use. Blocks still move, however many moved before.
#[test]
fn moving_blocks_does_not_exhaust_mappings() {
    on_both_backends(|| {
        let mappings = || fs::read_to_string("/proc/self/maps").expect("/proc is mounted");
        let mut count = 0;
        let mut below = |bound: usize| {
            count += 1;
            pattern::mix(count) as usize % bound
        };
        let layout = |size| layout(size, 8);
        let mut sizes = [8 * MIB; 100];
        // SAFETY: the sizes are not zero.
        let mut blocks = sizes.map(|size| unsafe { Hayloft.alloc(layout(size)) });
        let mut moves = 0;
        for most in [2000, 10_000] {
            while moves < most {
                let picked = below(blocks.len());
                let (block, size) = (blocks[picked], sizes[picked]);
                let new_size = size + below(8 * MIB);
                // SAFETY: the block is live with this layout, the new sizes are valid, and its
                // first byte is written before it is read.
                unsafe {
                    if new_size > 24 * MIB {
                        Hayloft.dealloc(block, layout(size));
                        sizes[picked] = 8 * MIB + below(8 * MIB);
                        blocks[picked] = Hayloft.alloc(layout(sizes[picked]));
                    } else {
                        block.write(picked as u8);
                        sizes[picked] = new_size;
                        blocks[picked] = Hayloft.realloc(block, layout(size), new_size);
                        assert_eq!(blocks[picked].read(), picked as u8);
                        moves += usize::from(blocks[picked] != block);
                    }
                }
            }
            let mappings = mappings();
            let count = mappings.lines().count();
            assert!(count < 3 * blocks.len() + 200, "{count} mappings after {most} moves");
            // A moved block is a mapping of its own.
            let is_moved = |block: &&*mut u8| mappings.contains(&format!("\n{:x}-", block.addr()));
            let moved = blocks.iter().filter(is_moved).count();
            assert!(moved > blocks.len() / 4, "only {moved} blocks are mappings of their own");
        }
    });
}

/// Under strict overcommit the kernel counts all writable memory and refuses more than the limit.
/// Reserved address space does not count, blocks do, and the allocation beyond the limit is null.
#[test]
#[ignore = "needs vm.overcommit_memory=2: see .ci/limits"]
fn strict_overcommit_counts_blocks_only() {
    assert_eq!(number("/proc/sys/vm/overcommit_memory"), 2);
    on_both_backends(|| {
        const LARGE: usize = 64 * MIB;
        let layout = layout(LARGE, 8);
        let most = meminfo_bytes("CommitLimit");
        assert!(
            status_bytes("VmSize") > most,
            "the reserved address space is within the commit limit"
        );
        for _ in 0..2 {
            let mut blocks = [ptr::null_mut::<u8>(); 4096];
            let mut count = 0;
            loop {
                assert!(count * LARGE < most, "no allocation was refused");
                // SAFETY: the size is not zero.
                let block = unsafe { Hayloft.alloc(layout) };
                if block.is_null() {
                    break;
                }
                // Only the start is written, so that the test is short: meanwhile the kernel may
                // refuse memory to other processes.
                // SAFETY: the block is longer than 1000 bytes.
                unsafe { pattern::fill(block, 0, 1000, count as u64) };
                blocks[count] = block;
                count += 1;
            }
            assert_ne!(count, 0, "no block fits");
            // SAFETY: the blocks are live with this layout, and each is freed once.
            unsafe {
                assert!(
                    Hayloft.realloc(blocks[0], layout, 2 * LARGE).is_null(),
                    "realloc succeeded"
                );
                for (id, block) in blocks[..count].iter().enumerate() {
                    assert_eq!(pattern::find_mismatch(*block, 1000, id as u64), None);
                    Hayloft.dealloc(*block, layout);
                }
            }
        }
        assert_eq!(use_memory(), 0, "allocations refused");
    });
}

/// A list of blocks, each of which holds the address of the next.
struct Chain {
    layout: Layout,
    first: *mut *mut u8,
}

impl Chain {
    /// Allocates as many blocks of `size` bytes as `bytes` can hold, and writes all of them.
    fn new(size: usize, bytes: usize) -> Chain {
        let mut chain = Chain { layout: layout(size, 8), first: ptr::null_mut() };
        for _ in 0..bytes / size {
            // SAFETY: the size is not zero, and a block has room for an address.
            unsafe {
                let block = Hayloft.alloc(chain.layout);
                assert!(!block.is_null(), "{size} bytes were refused");
                block.write_bytes(1, size);
                let block: *mut *mut u8 = block.cast();
                block.write(chain.first.cast());
                chain.first = block;
            }
        }
        chain
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        while !self.first.is_null() {
            // SAFETY: the block is live with this layout, and freed once.
            unsafe {
                let next = self.first.read().cast();
                Hayloft.dealloc(self.first.cast(), self.layout);
                self.first = next;
            }
        }
    }
}

/// Bursts of blocks follow each other, each of another size and two thirds of the cgroup's memory.
/// Freed memory must serve the next burst, or the kernel kills the process.
#[test]
fn bursts_fit_in_a_cgroup() {
    const PATH: &str = "TEST_CGROUP";
    // The parent creates the cgroup, its children use it.
    let group = env::var_os(PATH).is_none().then(|| Cgroup::with_memory_limit(136 * MIB)).flatten();
    let path = group.as_ref().map(|group| group.path().into()).or_else(|| env::var_os(PATH));
    let Some(path) = path else {
        skipped("bursts in a cgroup", "cgroups cannot be created here");
        return;
    };
    for backend in ["rseq", "fallback"] {
        let bursts = || {
            let group = env::var_os(PATH).expect("a path");
            cgroup::join(Path::new(&group)).expect("this test created the cgroup");
            // The sheaves of a CPU that the thread leaves keep their blocks until a window ends.
            pin_here();
            for size in [64, 9000, 300, 130_000, 1000, 3 * MIB, 200, 20_000, 6 * MIB, 5000] {
                drop(Chain::new(size, 90 * MIB));
            }
        };
        Scenario::new(backend, bursts).env("HAYLOFT_BACKEND", backend).env(PATH, &path).succeeds();
    }
}
