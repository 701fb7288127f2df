//! Limits of the system other than that on address space (see `exhaustion.rs`): on mappings, on what may be committed, on
//! the memory of a cgroup.

use std::alloc::{GlobalAlloc, Layout};
use std::env;
use std::fs;
use std::path::Path;
use std::ptr;

use tests::cgroup::{self, Cgroup};
use tests::pattern;
use tests::process::{machine_bytes, status_bytes};
use tests::routes::Hayloft;
use tests::scenario::{Scenario, on_both_backends};
use tests::skipped;

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

const MIB: usize = 1 << 20;

/// A number in a file of `/proc`.
fn number(path: &str) -> usize {
    let text = fs::read_to_string(path).expect("/proc is mounted");
    text.trim().parse().expect("a number")
}

/// A block, if there was memory for it.
#[derive(Clone, Copy)]
struct Block {
    address: *mut u8,
    layout: Layout,
    id: u64,
}

impl Block {
    fn new(size: usize, id: u64) -> Block {
        let layout = Layout::from_size_align(size, 8).expect("a valid layout");
        // SAFETY: the size is not zero; the block is this long.
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
            // SAFETY: a block of this layout.
            let found =
                unsafe { pattern::find_mismatch(self.address, self.layout.size(), self.id) };
            assert_eq!(found, None, "{:?}", self.layout);
        }
    }

    /// Whether there was memory for it.
    fn resize(&mut self, size: usize) -> bool {
        if self.address.is_null() {
            return false;
        }
        self.check();
        // SAFETY: a block of this layout.
        let address = unsafe { Hayloft.realloc(self.address, self.layout, size) };
        if address.is_null() {
            self.check();
            return false;
        }
        let kept = size.min(self.layout.size());
        // SAFETY: the block is this long now.
        unsafe {
            assert_eq!(pattern::find_mismatch(address, kept, self.id), None);
            pattern::fill(address, kept, size, self.id);
        }
        self.address = address;
        self.layout = Layout::from_size_align(size, 8).expect("a valid layout");
        true
    }

    fn free(self) {
        self.check();
        if !self.address.is_null() {
            // SAFETY: a block of this layout, which is not used any more.
            unsafe { Hayloft.dealloc(self.address, self.layout) };
        }
    }
}

/// Sizes of every kind: objects of sheaves of all lengths, runs, runs that are moved by remapping.
const SIZES: [usize; 9] = [16, 100, 700, 3000, 9000, 30_000, 100_000, 3 * MIB, 12 * MIB];

/// Allocates, resizes, gives back and frees blocks of all sizes; how many of them there was no memory for.
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
    alloc_global::trim();
    blocks.iter_mut().filter_map(Option::take).for_each(Block::free);
    alloc_global::trim();
    refused
}

/// Mappings that use up what a process may have of them: pages of alternating rights.
struct Mappings {
    address: *mut libc::c_void,
    page: usize,
    pages: usize,
    /// The last page that has rights.
    last: usize,
}

impl Mappings {
    /// Leaves no mapping to anybody.
    fn use_up() -> Mappings {
        // SAFETY: a number only.
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
            assert!(mappings.last < pages, "there is no limit");
        }
        mappings
    }

    fn protect(&self, number: usize, rights: libc::c_int) -> bool {
        assert!(number < self.pages);
        // SAFETY: a page of this mapping, whose rights nobody relies on.
        unsafe { libc::mprotect(self.address.byte_add(number * self.page), self.page, rights) == 0 }
    }

    fn give_two_back(&mut self) {
        self.last -= 2;
        assert!(self.protect(self.last, libc::PROT_NONE), "two mappings less");
    }

    fn give_all_back(self) {
        // SAFETY: a mapping of that length, which nobody uses.
        assert_eq!(unsafe { libc::munmap(self.address, self.pages * self.page) }, 0);
    }
}

/// Where no further mapping is to be had, or few are, memory may be refused, but nothing is damaged; and afterwards it is
/// all to be had.
#[test]
fn mappings_are_used_up() {
    on_both_backends(|| {
        for before in [false, true] {
            if before {
                assert_eq!(use_memory(), 0);
            }
            let mut mappings = Mappings::use_up();
            let refused = [(); 6].map(|()| {
                let refused = use_memory();
                mappings.give_two_back();
                refused
            });
            mappings.give_all_back();
            assert_eq!(use_memory(), 0);
            println!("{refused:?} refused");
        }
    });
}

/// Large blocks that grow and are moved, again and again, do not use up the mappings that a process may have: there are some for
/// each block in use. However many were moved before, they still are.
#[test]
fn moving_blocks_uses_up_no_mappings() {
    on_both_backends(|| {
        let mappings = || fs::read_to_string("/proc/self/maps").expect("/proc is mounted");
        let mut count = 0;
        let mut below = |bound: usize| {
            count += 1;
            pattern::mix(count) as usize % bound
        };
        let layout = |size| Layout::from_size_align(size, 8).expect("a valid layout");
        let mut sizes = [8 * MIB; 100];
        // SAFETY: the sizes are not zero.
        let mut blocks = sizes.map(|size| unsafe { Hayloft.alloc(layout(size)) });
        let mut moves = 0;
        for most in [2000, 10_000] {
            while moves < most {
                let picked = below(blocks.len());
                let (block, size) = (blocks[picked], sizes[picked]);
                let new_size = size + below(8 * MIB);
                // SAFETY: a block of that size, the first byte of which is written.
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
            // What was moved is a mapping of its own.
            let is_moved = |block: &&*mut u8| mappings.contains(&format!("\n{:x}-", block.addr()));
            let moved = blocks.iter().filter(is_moved).count();
            assert!(moved > blocks.len() / 4, "{moved} blocks are where they were moved");
        }
    });
}

/// Where the kernel counts all that could be written, and refuses what the machine may not have: the address space that is
/// reserved does not count, blocks do, and the last of them is null.
#[test]
#[ignore = "for a machine with vm.overcommit_memory=2: see .ci/limits"]
fn strict_overcommit() {
    assert_eq!(number("/proc/sys/vm/overcommit_memory"), 2);
    on_both_backends(|| {
        const LARGE: usize = 64 * MIB;
        let layout = Layout::from_size_align(LARGE, 8).expect("a valid layout");
        let most = machine_bytes("CommitLimit");
        assert!(status_bytes("VmSize") > most, "all that is reserved could not be committed");
        for _ in 0..2 {
            let mut blocks = [ptr::null_mut::<u8>(); 4096];
            let mut count = 0;
            loop {
                assert!(count * LARGE < most, "never refused");
                // SAFETY: the size is not zero.
                let block = unsafe { Hayloft.alloc(layout) };
                if block.is_null() {
                    break;
                }
                // No more, so that it is soon over: meanwhile others on this machine may be refused, too.
                // SAFETY: the block is longer than that.
                unsafe { pattern::fill(block, 0, 1000, count as u64) };
                blocks[count] = block;
                count += 1;
            }
            assert_ne!(count, 0);
            // SAFETY: blocks of this layout, each of which is freed once.
            unsafe {
                assert!(Hayloft.realloc(blocks[0], layout, 2 * LARGE).is_null());
                for (id, block) in blocks[..count].iter().enumerate() {
                    assert_eq!(pattern::find_mismatch(*block, 1000, id as u64), None);
                    Hayloft.dealloc(*block, layout);
                }
            }
        }
        assert_eq!(use_memory(), 0);
    });
}

/// A list of blocks, each of which holds the address of the next.
struct Chain {
    layout: Layout,
    first: *mut *mut u8,
}

impl Chain {
    /// As many blocks of a size as there are in so many bytes, all written.
    fn new(size: usize, bytes: usize) -> Chain {
        let mut chain = Chain {
            layout: Layout::from_size_align(size, 8).expect("a valid layout"),
            first: ptr::null_mut(),
        };
        for _ in 0..bytes / size {
            // SAFETY: the size is not zero, and a block is long enough for an address.
            unsafe {
                let block = Hayloft.alloc(chain.layout);
                assert!(!block.is_null());
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
            // SAFETY: a block of the chain, which is not used any more.
            unsafe {
                let next = self.first.read().cast();
                Hayloft.dealloc(self.first.cast(), self.layout);
                self.first = next;
            }
        }
    }
}

/// Bursts of blocks of one size after those of another, each of which takes two thirds of what the cgroup has: what was freed serves
/// the next burst, or the kernel would kill the process.
#[test]
fn bursts_in_a_cgroup() {
    const PATH: &str = "TEST_CGROUP";
    // Made by the parent, and used by its children.
    let group = env::var_os(PATH).is_none().then(|| Cgroup::of_memory(136 * MIB)).flatten();
    let path = group.as_ref().map(|group| group.path().into()).or_else(|| env::var_os(PATH));
    let Some(path) = path else {
        skipped("bursts in a cgroup", "no cgroup can be made here");
        return;
    };
    for backend in ["rseq", "fallback"] {
        let bursts = || {
            let group = env::var_os(PATH).expect("a path");
            cgroup::join(Path::new(&group)).expect("a cgroup of ours");
            for size in [64, 9000, 300, 130_000, 1000, 3 * MIB, 200, 20_000, 6 * MIB, 5000] {
                drop(Chain::new(size, 90 * MIB));
            }
        };
        Scenario::new(backend, bursts).env("HAYLOFT_BACKEND", backend).env(PATH, &path).succeeds();
    }
}
