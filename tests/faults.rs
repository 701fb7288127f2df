//! System calls that fail, injected by `HAYLOFT_FAULT` or refused by a filter: allocations may be
//! refused, but no allocated block is lost or damaged, and sheaves keep their objects.
//!
//! The test code itself uses the system's allocator, which does not fail.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::mem;
use std::path::Path;
use std::ptr::NonNull;

use hayloft_core::cache::{Cache, CacheFlags};
use hayloft_core::cpu::{self, CpuError};
use hayloft_core::fault::{self, Place};
use tests::caches::{alloc_filled, check_and_free, unmerged};
use tests::entry_points::Hayloft;
use tests::pattern;
use tests::process::{has_rseq, refuse_system_call};
use tests::scenario::{Scenario, describe};
use tests::sizes::layout;
use tests::skipped;
use tests::sysfs::{SYSFS, Tree, affinity, pin_here, pin_to, set_affinity, two_cpus};

/// A random number generator (xorshift64*) with a fixed seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as usize % bound
    }

    /// Returns sizes of all orders of magnitude, small ones more often.
    fn size(&mut self) -> usize {
        let largest = [100, 1000, 30_000, 300_000, 10_000_000][self.below(30).saturating_sub(25)];
        1 + self.below(largest)
    }
}

struct Block {
    address: *mut u8,
    layout: Layout,
    id: u64,
}

impl Block {
    fn new(random: &mut Random, id: u64) -> Option<Block> {
        let layout = layout(random.size(), 1 << random.below(8));
        // SAFETY: the size is not zero, and the block is as long as the layout.
        unsafe {
            let zeroed = random.below(4) == 0;
            let address = if zeroed { Hayloft.alloc_zeroed(layout) } else { Hayloft.alloc(layout) };
            if address.is_null() {
                return None;
            }
            let bytes = std::slice::from_raw_parts(address, if zeroed { layout.size() } else { 0 });
            assert!(bytes.iter().all(|byte| *byte == 0), "zeroed memory is not zero");
            pattern::fill(address, 0, layout.size(), id);
            Some(Block { address, layout, id })
        }
    }

    fn check(&self, len: usize) {
        // SAFETY: the block is filled and at least `len` bytes long.
        let mismatch = unsafe { pattern::find_mismatch(self.address, len, self.id) };
        assert_eq!(mismatch, None, "block {} of {:?}", self.id, self.layout);
    }

    /// Resizes the block. Returns whether there was memory for it.
    fn resize(&mut self, size: usize) -> bool {
        self.check(self.layout.size());
        // SAFETY: the block is live with this layout, and the new size is valid.
        let address = unsafe { Hayloft.realloc(self.address, self.layout, size) };
        if address.is_null() {
            self.check(self.layout.size());
            return false;
        }
        self.address = address;
        self.check(size.min(self.layout.size()));
        self.layout = layout(size, self.layout.align());
        // SAFETY: the block is `size` bytes long.
        unsafe { pattern::fill(address, 0, size, self.id) };
        true
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.check(self.layout.size());
        // SAFETY: the block is live with this layout, and dropping it is its last use.
        unsafe { Hayloft.dealloc(self.address, self.layout) };
    }
}

/// Allocates, resizes and frees at random. Returns the number of refusals.
fn use_memory(random: &mut Random) -> usize {
    let mut blocks: Vec<Block> = Vec::new();
    let mut refused = 0;
    for number in 0..6000u64 {
        match random.below(8) {
            0..4 if blocks.len() < 400 => match Block::new(random, number) {
                Some(block) => blocks.push(block),
                None => refused += 1,
            },
            4 if !blocks.is_empty() => {
                let (index, size) = (random.below(blocks.len()), random.size());
                refused += usize::from(!blocks[index].resize(size));
            }
            _ if !blocks.is_empty() => drop(blocks.swap_remove(random.below(blocks.len()))),
            _ => {}
        }
        if number % 1000 == 999 {
            hayloft::trim();
        }
    }
    refused
}

/// Creates, uses and destroys caches while CPUs go offline and come online, as far as the faults
/// permit.
fn use_caches(random: &mut Random) {
    cpu::start();
    for number in 0..40 {
        let layout = layout(random.size() % 4000 + 1, 8);
        let built =
            Cache::builder(&format!("{number}"), layout).flags(CacheFlags::NO_MERGE).build();
        let Ok(cache) = built else { continue };
        let objects: Vec<NonNull<u8>> = (0..500).filter_map(|_| cache.alloc().ok()).collect();
        if let Some(last) = cpu::online().nth(1) {
            let _ = cpu::down(last);
            let _ = cpu::up(last);
        }
        for (index, object) in objects.into_iter().enumerate() {
            // SAFETY: the object belongs to this cache, has no readers, and is freed once.
            unsafe { if index % 2 == 0 { cache.free(object) } else { cache.free_rcu(object) } };
        }
        // Where other CPUs' sheaves cannot be flushed, `destroy` may need several attempts.
        let mut result = cache.destroy();
        for _ in 0..200 {
            let Err(error) = result else { break };
            assert_eq!(error.live(), 0, "{error}");
            result = error.into_cache().destroy();
        }
    }
}

#[test]
fn failed_system_calls_lose_no_blocks() {
    // `mbind` is called only where there are several nodes.
    let tree = Tree::new([(0, "0"), (1, "1-1000")]);
    for backend in ["rseq", "fallback"] {
        for call in [
            "mmap",
            "munmap",
            "mprotect",
            "madvise",
            "mbind",
            "mremap",
            "membarrier",
            "rseq",
            "tgkill",
            "clone",
        ] {
            for share in ["9/10", "1/20"] {
                let fault = format!("{call}:{share},4711");
                let body = || {
                    let mut random = Random(42);
                    let refused = use_memory(&mut random);
                    use_caches(&mut random);
                    println!("{refused} refused");
                };
                Scenario::new(format!("{backend}-{fault}"), body)
                    .env("HAYLOFT_BACKEND", backend)
                    .env("HAYLOFT_FAULT", &fault)
                    .env(SYSFS, if call == "mbind" { tree.path() } else { Path::new("/sys") })
                    .run(|output| {
                        let all = describe(output);
                        assert!(output.status.success(), "{all}");
                        // Allocations are refused if nine in ten commits fail. No other fault
                        // refuses any.
                        let stdout = String::from_utf8_lossy(&output.stdout);
                        assert_eq!(
                            stdout.contains("\n0 refused"),
                            fault != "mprotect:9/10,4711",
                            "{all}"
                        );
                    });
            }
        }
    }
}

/// Lack of memory for sheaves is reported once.
#[test]
fn lack_of_memory_for_sheaves_is_reported_once() {
    let scenario = || {
        for _ in 0..3 {
            assert!(Block::new(&mut Random(7), 1).is_none(), "memory was granted");
        }
    };
    Scenario::new("", scenario).env("HAYLOFT_FAULT", "mprotect:1/1").run(|output| {
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}", describe(output));
        let lines = stderr.lines().filter(|line| line.contains("no memory for sheaves"));
        assert_eq!(lines.count(), 1, "{}", describe(output));
    });
}

/// The system calls by which sections of another CPU are restarted.
const RESTARTS: [libc::c_long; 2] = [libc::SYS_membarrier, libc::SYS_sched_setaffinity];

/// Returns whether the kernel has sections that can be restarted. Otherwise reports that a test is
/// skipped.
fn has_sections() -> bool {
    if !has_rseq() {
        skipped("restarts of sections", "the kernel has no restartable sequences");
    }
    has_rseq()
}

/// Allocates `count` objects and frees them. Returns the number of objects in sheaves.
fn use_objects(cache: &Cache, count: usize) -> usize {
    check_and_free(cache, &alloc_filled(cache, count), |object| {
        // SAFETY: the object belongs to this cache and is freed once, after its last use.
        unsafe { cache.free(object) };
    });
    cache.stats().in_sheaves
}

/// Fails to destroy a cache whose objects are all free, `held` of them in sheaves. Returns the
/// cache.
fn refused_destruction(cache: Cache, held: usize) -> Cache {
    let error = cache.destroy().expect_err("sections were restarted");
    assert_eq!(error.live(), 0, "objects in use");
    let cache = error.into_cache();
    assert_eq!(cache.stats().in_sheaves, held, "objects in sheaves");
    cache
}

/// Where the kernel refuses to restart sections, sheaves cannot be flushed and CPUs cannot go
/// offline. Everything else works.
#[test]
fn sheaves_keep_their_objects_where_sections_cannot_be_restarted() {
    if !has_sections() {
        return;
    }
    let refused = || {
        let cache = unmerged("refused", 64);
        let held = use_objects(&cache, 50);
        assert!(held > 0, "the sheaf is empty");
        let cache = refused_destruction(cache, held);
        let online: Vec<_> = cpu::online().collect();
        for cpu in &online {
            let error = if online.len() > 1 { CpuError::Unsupported } else { CpuError::Last };
            assert_eq!(cpu::down(*cpu), Err(error));
            assert!(cpu::is_online(*cpu), "CPU {cpu} is offline");
        }
        use_objects(&cache, 500);
        mem::forget(cache);
    };
    RESTARTS
        .into_iter()
        .fold(
            Scenario::new("", refused).env("HAYLOFT_BACKEND", "rseq"),
            Scenario::refuse_system_call,
        )
        .succeeds();
}

thread_local! {
    /// Number of steps of a closing after which the kernel refuses to restart sections.
    static STEPS: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// The kernel begins to refuse while sheaves are being closed. They are as before, objects and
/// width included.
#[test]
fn sheaves_reopen_where_sections_can_no_longer_be_restarted() {
    fn at_fault_point(place: Place) {
        if place != Place::SheavesClosing {
            return;
        }
        STEPS.set(STEPS.get() - 1);
        if STEPS.get() == 0 {
            // The filter is this thread's only, and stays.
            RESTARTS.into_iter().try_for_each(refuse_system_call).expect("a filter is permitted");
        }
    }
    if !has_sections() {
        return;
    }
    // First the ends of the sheaves are stored, then the rest.
    for steps in [1, 2] {
        let refused = || {
            pin_here();
            let cache = unmerged("refused", 64);
            let held = use_objects(&cache, 50);
            assert!(held > 0, "the sheaf is empty");
            fault::set_hook(at_fault_point);
            STEPS.set(steps);
            let cache = refused_destruction(cache, held);
            // The sheaf serves all of these allocations and frees.
            assert_eq!(use_objects(&cache, held), held, "objects in the sheaf");
            mem::forget(cache);
        };
        Scenario::new(format!("{steps}"), refused).env("HAYLOFT_BACKEND", "rseq").succeeds();
    }
}

/// Without `membarrier`, a thread restarts the sections of a CPU by running there for a moment. It
/// has its own affinity afterwards, or the one that it was given meanwhile.
#[test]
fn restarting_sections_by_a_visit_keeps_the_affinity() {
    let Some([here, there]) = two_cpus() else {
        skipped("visits of CPUs", "this process may use only one");
        return;
    };
    if !has_sections() {
        return;
    }
    thread_local! {
        static VISITS: Cell<usize> = const { Cell::new(0) };
        static MOVES_TO: Cell<Option<usize>> = const { Cell::new(None) };
    }
    fn at_fault_point(place: Place) {
        if place == Place::CpuVisiting {
            VISITS.set(VISITS.get() + 1);
            MOVES_TO.take().into_iter().for_each(pin_to);
        }
    }
    for moves in [false, true] {
        let visit = || {
            let all = affinity(0);
            pin_to(here);
            let cache = unmerged("visited", 64);
            assert!(use_objects(&cache, 50) > 0, "the sheaf is empty");
            set_affinity(0, &all);
            fault::set_hook(at_fault_point);
            MOVES_TO.set(moves.then_some(there));
            cache.destroy().expect("no object is in use");
            assert!(VISITS.get() > 0, "no visit took place");
            assert_eq!(affinity(0), if moves { vec![there] } else { all });
        };
        Scenario::new(format!("{moves}"), visit)
            .env("HAYLOFT_BACKEND", "rseq")
            .refuse_system_call(libc::SYS_membarrier)
            .succeeds();
    }
}
