//! Out of memory: null, never an abort or a panic, and nothing lost.
//!
//! A child process under `RLIMIT_AS` allocates blocks of one size until it is refused, finds all of
//! them whole, frees them, and gets memory again.

use std::alloc::{GlobalAlloc, Layout};
use std::ptr;
use std::slice;

use tests::pattern;
use tests::process::{Limit, status_bytes};
use tests::routes::Hayloft;
use tests::scenario::{Scenario, on_both_backends, on_both_backends_within, with_larger_pages};

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

const MIB: usize = 1 << 20;

/// A stack of addresses in memory of its own, since the heap is about to be exhausted.
struct Addresses {
    table: &'static mut [*mut u8],
    len: usize,
}

impl Addresses {
    fn new(capacity: usize) -> Self {
        let bytes = capacity * size_of::<*mut u8>();
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a fresh mapping touches no other memory.
        let table = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, -1, 0) };
        assert_ne!(table, libc::MAP_FAILED);
        // SAFETY: the mapping is this long, zeroed, page-aligned and never unmapped; zeroed memory
        // is a null pointer.
        let table = unsafe { slice::from_raw_parts_mut(table.cast(), capacity) };
        Self { table, len: 0 }
    }

    fn push(&mut self, address: *mut u8) {
        self.table[self.len] = address;
        self.len += 1;
    }

    fn pop(&mut self) -> Option<*mut u8> {
        self.len = self.len.checked_sub(1)?;
        Some(self.table[self.len])
    }

    fn is_full(&self) -> bool {
        self.len == self.table.len()
    }
}

/// Allocates and fills blocks until it is refused or there is no room for addresses.
fn fill_up(layout: Layout, addresses: &mut Addresses) {
    while !addresses.is_full() {
        // SAFETY: the size is not zero.
        let address = unsafe { Hayloft.alloc(layout) };
        if address.is_null() {
            break;
        }
        // SAFETY: the block is this long.
        unsafe { pattern::fill(address, 0, layout.size(), addresses.len as u64) };
        addresses.push(address);
    }
}

/// Checks and frees every block.
fn free_all(layout: Layout, addresses: &mut Addresses) {
    while let Some(address) = addresses.pop() {
        let id = addresses.len as u64;
        // SAFETY: the block is live, this long and filled; it is freed once.
        unsafe {
            let mismatch = pattern::find_mismatch(address, layout.size(), id);
            assert_eq!(mismatch, None, "block {id} of {layout:?} at {address:p}");
            Hayloft.dealloc(address, layout);
        }
    }
}

/// Exhausts memory twice with blocks of `size` bytes. A table of `within` bytes' worth of blocks can
/// never be full.
fn exhaust(size: usize, within: usize) {
    let layout = Layout::from_size_align(size, 16).expect("a valid layout");
    let mut addresses = Addresses::new(within / size);
    fill_up(layout, &mut addresses);
    let first = addresses.len;
    assert!(!addresses.is_full(), "never refused");
    assert_ne!(first, 0, "no block of {size} bytes in {within} bytes of address space");
    // Refused again, in all three ways to ask, with every block still whole.
    let last = addresses.table[first - 1];
    let large = Layout::from_size_align(within, 16).expect("a valid layout");
    // SAFETY: the sizes are not zero; the last block is live with this layout.
    unsafe {
        assert!(Hayloft.realloc(last, layout, large.size()).is_null());
        assert!(Hayloft.alloc(large).is_null());
        assert!(Hayloft.alloc_zeroed(large).is_null());
    }
    free_all(layout, &mut addresses);

    fill_up(layout, &mut addresses);
    let second = addresses.len;
    assert!(second >= first / 2, "{first} blocks the first time, then {second}");
    free_all(layout, &mut addresses);
}

#[test]
fn blocks_of_64_bytes() {
    on_both_backends_within(160 * MIB, || exhaust(64, 160 * MIB));
}

#[test]
fn blocks_of_a_page() {
    on_both_backends_within(320 * MIB, || exhaust(4096, 320 * MIB));
}

#[test]
fn blocks_of_a_mebibyte() {
    on_both_backends_within(320 * MIB, || exhaust(MIB, 320 * MIB));
}

#[test]
fn blocks_of_a_hundred_mebibytes() {
    on_both_backends_within(320 * MIB, || exhaust(100 * MIB, 320 * MIB));
}

#[test]
fn larger_pages() {
    with_larger_pages(Some(160 * MIB), || {
        exhaust(5000, 160 * MIB);
        alloc_global::trim();
        assert_eq!(vec![7_u8; 20 * MIB].len(), 20 * MIB);
    });
}

/// Where the kernel has address space but no memory, more address space is no help, and is not asked for.
#[test]
fn no_memory_is_no_want_of_address_space() {
    for backend in ["rseq", "fallback"] {
        Scenario::new(backend, || {
            let reserved = status_bytes("VmSize");
            for size in [64, MIB] {
                exhaust(size, 320 * MIB);
            }
            let now = status_bytes("VmSize");
            assert!(now < reserved + 1024 * MIB, "{reserved} bytes reserved, now {now}");
        })
        .env("HAYLOFT_BACKEND", backend)
        .limit(Limit::Data, 256 * MIB)
        .succeeds();
    }
}

/// The limit comes when the heap is in use, address space possibly reserved: memory may then last
/// beyond the limit, but whatever is refused is refused with null.
#[test]
fn a_limit_set_late() {
    on_both_backends(|| {
        let layout = Layout::from_size_align(10_000, 16).expect("a valid layout");
        let mut addresses = Addresses::new(600 * MIB / layout.size());
        drop(vec![1_u8; 3 * MIB]);
        for (limit, figure) in [(Limit::AddressSpace, "VmSize"), (Limit::Data, "VmData")] {
            limit.set(status_bytes(figure) + 300 * MIB).expect("the limit can be lowered");
        }
        for _ in 0..2 {
            fill_up(layout, &mut addresses);
            assert_ne!(addresses.len, 0);
            free_all(layout, &mut addresses);
        }
    });
}

/// A vector that cannot grow says so and keeps its elements.
#[test]
fn a_vector_that_cannot_grow() {
    on_both_backends_within(320 * MIB, || {
        let mut vector: Vec<u64> = (0..1000).collect();
        while vector.try_reserve(vector.len()).is_ok() {
            vector.extend_from_within(..);
        }
        assert!(vector.iter().enumerate().all(|(index, value)| *value == index as u64 % 1000));
        let len = vector.len();
        assert!(vector.try_reserve(isize::MAX as usize / 8 - len).is_err());
        drop(vector);
        assert_eq!(vec![7_u8; MIB].len(), MIB);
    });
}
