//! NUMA nodes: each has its own memory, blocks freed elsewhere return to it, and no allocation is
//! refused while another node has memory.
//!
//! The nodes are made up, so the tests check which arena a block comes from: the nodes' arenas are
//! 256 GiB apart. The test code itself uses the system's allocator, so that nothing else is in the
//! heap.

use std::alloc::GlobalAlloc;
use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::mpsc;
use std::thread;

use hayloft_core::cache::{Cache, CacheFlags};
use hayloft_core::{cpu, nolock};
use tests::entry_points::Hayloft;
use tests::pattern;
use tests::process::{Limit, status_bytes};
use tests::scenario::{Scenario, describe};
use tests::sizes::{GIB, MIB, layout};
use tests::skipped;
use tests::sysfs::{SYSFS, Tree, pin_to, two_cpus};

/// Sizes of small classes, of middle classes, and of a run.
const SIZES: [usize; 9] = [8, 64, 1000, 5000, 30_000, 40_000, 100_000, 700_000, 3 * MIB];

/// More objects than sheaves and a barn ever keep of a class.
const KEPT: usize = 4096;
/// As [`KEPT`], for the smaller middle sizes.
const KEPT_OF_MIDDLE: usize = 500;

/// Number of nodes that the allocator distinguishes.
const MAX_NODES: usize = 8;
/// A CPU number beyond those of this machine.
const NO_CPU: usize = 4000;

/// A filled block, checked and freed when dropped.
struct Block {
    address: NonNull<u8>,
    size: usize,
}

// SAFETY: a block is not tied to a thread.
unsafe impl Send for Block {}

impl Block {
    fn new(size: usize) -> Option<Block> {
        // SAFETY: the size is not zero.
        let address = NonNull::new(unsafe { Hayloft.alloc(layout(size, 8)) })?;
        let block = Block { address, size };
        block.fill();
        Some(block)
    }

    fn many(size: usize, count: usize) -> Vec<Block> {
        (0..count).map(|_| Block::new(size).expect("memory")).collect()
    }

    fn at(&self) -> usize {
        self.address.addr().get()
    }

    fn fill(&self) {
        // SAFETY: the block is live and `size` bytes long.
        unsafe { pattern::fill(self.address.as_ptr(), 0, self.size, self.at() as u64) };
    }

    /// Checks the first `len` bytes, which were written when the block was at `address`.
    fn check(&self, len: usize, address: usize) {
        // SAFETY: the block is live, filled and at least `len` bytes long.
        let mismatch =
            unsafe { pattern::find_mismatch(self.address.as_ptr(), len, address as u64) };
        assert_eq!(
            mismatch, None,
            "the contents of a block of {} bytes at {:p} changed",
            self.size, self.address
        );
    }

    fn resize(&mut self, size: usize) {
        let (at, old) = (self.at(), self.size);
        // SAFETY: the block is live with this layout, and the new size is valid.
        let new = unsafe { Hayloft.realloc(self.address.as_ptr(), layout(old, 8), size) };
        self.address = NonNull::new(new).expect("memory");
        self.size = size;
        self.check(old.min(size), at);
        self.fill();
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.check(self.size, self.at());
        // SAFETY: the block is live with this layout, and dropping it is its last use.
        unsafe { Hayloft.dealloc(self.address.as_ptr(), layout(self.size, 8)) };
    }
}

/// Returns whether two addresses are in one arena. The tests use only a small part of each.
fn in_one_arena(one: usize, other: usize) -> bool {
    one.abs_diff(other) < 32 * GIB
}

/// Runs `body` in a child process on each backend, with the nodes of `tree`. Each must exit with
/// code 0.
fn on_both_backends<F: Fn()>(label: &str, tree: &Tree, body: F) {
    for backend in ["rseq", "fallback"] {
        Scenario::new(format!("{label}-{backend}"), &body)
            .env("HAYLOFT_BACKEND", backend)
            .env(SYSFS, tree.path())
            .succeeds();
    }
}

/// Returns two CPUs, and a tree in which they are on the nodes that the kernel numbers 0 and 8.
fn two_nodes() -> Option<([usize; 2], Tree)> {
    let cpus = two_cpus();
    if cpus.is_none() {
        skipped("nodes", "this process may use one CPU only");
    }
    cpus.map(|cpus| {
        let [near, far] = cpus.map(|cpu| cpu.to_string());
        (cpus, Tree::new([(0, &*near), (8, &*far)]))
    })
}

/// Allocates blocks of all sizes on a CPU and checks that all are in one arena. Returns an address
/// in it and the blocks.
fn on_cpu(cpu: usize) -> (usize, Vec<Block>) {
    pin_to(cpu);
    let some = |size| Block::many(size, (8 * MIB / size).clamp(3, 200));
    let blocks: Vec<_> = SIZES.into_iter().flat_map(some).collect();
    let first = blocks[0].at();
    assert!(
        blocks.iter().all(|block| in_one_arena(block.at(), first)),
        "blocks of CPU {cpu} are in several arenas"
    );
    (first, blocks)
}

/// Returns the memory policy at an address, as the kernel prints it.
fn policy_at(address: usize) -> Option<String> {
    let maps = fs::read_to_string("/proc/self/numa_maps").ok()?;
    let mut found = None;
    for line in maps.lines() {
        let mut words = line.split(' ');
        if usize::from_str_radix(words.next()?, 16).ok()? > address {
            break;
        }
        found = words.next().map(str::to_owned);
    }
    found
}

/// Returns whether the kernel lets this process choose node 0 for its memory.
fn may_bind() -> bool {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: the mapping is fresh, and the mask is as long as `bits` says.
    unsafe {
        let memory = libc::mmap(ptr::null_mut(), MIB, protection, flags, -1, 0);
        let first = 1_u64;
        let (prefer, bits, flags) = (libc::MPOL_PREFERRED as usize, 64_usize, 0_usize);
        libc::syscall(libc::SYS_mbind, memory, MIB, prefer, &raw const first, bits, flags) == 0
    }
}

#[test]
fn nodes_allocate_from_their_own_memory() {
    let Some((cpus, tree)) = two_nodes() else { return };
    on_both_backends("two", &tree, || {
        let [(near, mut of_near), (far, of_far)] = cpus.map(on_cpu);
        assert!(!in_one_arena(near, far), "both nodes use one arena");
        // A thread that moves gets memory of the node on which it runs now.
        for (cpu, node) in [(cpus[0], near), (cpus[1], far), (cpus[0], near)] {
            pin_to(cpu);
            let block = Block::new(2 * MIB).expect("memory");
            assert!(in_one_arena(block.at(), node), "a block of another node");
        }
        // Moved pages stay on their node.
        let mut block = Block::new(9 * MIB).expect("memory");
        pin_to(cpus[1]);
        for size in [40 * MIB, 100 * MIB] {
            block.resize(size);
            assert!(in_one_arena(block.at(), near), "moved pages left their node");
        }
        // Copied pages do not.
        let mut block = of_near.pop().expect("one of 3 MiB");
        block.resize(7 * MIB);
        let moved = block.at();
        drop((of_near, of_far));
        assert!(in_one_arena(moved, far), "copied pages are not on the current node");
        if may_bind() && policy_at(near).is_some() {
            assert_eq!(policy_at(near).as_deref(), Some("prefer:0"));
            // The kernel has no node 8.
            assert_eq!(policy_at(far).as_deref(), Some("default"));
        } else {
            skipped("memory policies of nodes", "the kernel does not let this process choose");
        }
    });
}

/// `numactl` and the like determine where all memory of a program is, so their policy is kept.
#[test]
fn memory_policy_of_the_process_is_kept() {
    let Some((cpus, tree)) = two_nodes() else { return };
    on_both_backends("two", &tree, || {
        let (nodes, bits) = (1_u64, 64_usize);
        // SAFETY: the mask is as long as `bits` says.
        let set = unsafe {
            let interleave = libc::MPOL_INTERLEAVE as usize;
            libc::syscall(libc::SYS_set_mempolicy, interleave, &raw const nodes, bits)
        };
        let [(near, _near), (far, _far)] = cpus.map(on_cpu);
        assert!(!in_one_arena(near, far), "both nodes use one arena");
        if set == 0
            && let Some(policy) = policy_at(near)
        {
            assert!(!policy.starts_with("prefer"), "the policy is {policy}");
        }
    });
}

/// Nodes without CPUs do not count. Nodes beyond the first eight share with these. For a CPU that
/// no node lists, the kernel is asked.
#[test]
fn cpus_belong_to_the_nodes_that_list_them() {
    let Some((cpus, _)) = two_nodes() else { return };
    let [one, other] = cpus.map(|cpu| cpu.to_string());
    let nowhere: Vec<_> =
        (0..MAX_NODES).map(|number| (number, (NO_CPU + number).to_string())).collect();
    let some = |count: usize| nowhere.iter().take(count).map(|(number, cpus)| (*number, &**cpus));
    let share = || {
        let [(one, _one), (other, _other)] = cpus.map(on_cpu);
        assert!(in_one_arena(one, other), "the CPUs use two arenas");
    };
    let both = format!("{one},{other}");
    on_both_backends("same", &Tree::new([(0, &*both)]), share);
    on_both_backends("without CPUs", &Tree::new([(0, ""), (1, &*both), (5, "")]), share);
    let many = some(MAX_NODES).skip(1).chain([(0, &*one), (MAX_NODES, &*other)]);
    on_both_backends("one too many", &Tree::new(many), share);
    on_both_backends("unknown", &Tree::new([(0, &*one), (1, "4000-9999")]), share);

    let apart = || {
        let [(one, _one), (other, _other)] = cpus.map(on_cpu);
        assert!(!in_one_arena(one, other), "the CPUs use one arena");
    };
    let many = some(MAX_NODES - 1).skip(1).chain([(0, &*one), (MAX_NODES - 1, &*other)]);
    on_both_backends("just as many", &Tree::new(many), apart);
    // Longer than any buffer into which the list might be read.
    let long: String = (NO_CPU..NO_CPU + 2000).step_by(2).map(|cpu| format!("{cpu},")).collect();
    let (one, other) = (format!("{one},{long}"), format!("{long}{other}"));
    on_both_backends("long", &Tree::new([(3, &*one), (1000, &*other)]), apart);
}

/// A malformed tree costs one line of warning and results in one node.
#[test]
fn malformed_trees_yield_one_node_and_a_warning() {
    let Some((cpus, _)) = two_nodes() else { return };
    let [one, other] = cpus.map(|cpu| cpu.to_string());
    let many = "long/".repeat(60);
    for (label, tree) in [
        ("not a list", Tree::with_online("quux")),
        ("an empty list", Tree::with_online("")),
        ("too high a number", Tree::with_online("0-5000")),
        ("no such nodes", Tree::with_online("0-1")),
        ("half a range", Tree::new([(0, &*one), (1, &format!("{other}-"))])),
        ("a range backwards", Tree::new([(0, &*one), (1, "9-3")])),
        ("not a number", Tree::new([(0, &*one), (1, "all")])),
        ("no CPUs at all", Tree::new([(0, ""), (1, "")])),
        ("nothing there", Tree::with_online("")),
        ("a long path", Tree::with_online("")),
    ] {
        let path = match label {
            "nothing there" => Path::new("/nonexistent"),
            "a long path" => Path::new(&*many),
            _ => tree.path(),
        };
        let body = || {
            let [(one, _one), (other, _other)] = cpus.map(on_cpu);
            assert!(in_one_arena(one, other), "the CPUs use two arenas");
        };
        Scenario::new(label, body).env(SYSFS, path).run(|output| {
            let all = describe(output);
            assert!(output.status.success(), "{all}");
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(stderr.lines().count(), 1, "{all}");
            assert!(stderr.contains("]: HAYLOFT_SYSFS="), "{all}");
        });
    }
}

/// Blocks freed on another node stay there as far as its barn has room, and beyond that return to
/// their own node.
#[test]
fn blocks_return_to_their_node() {
    let Some((cpus, tree)) = two_nodes() else { return };
    on_both_backends("two", &tree, || {
        for (size, count, kept) in [
            (64, 40_000, KEPT),
            (1000, 20_000, KEPT),
            (5000, 8000, KEPT),
            (40_000, 2000, KEPT_OF_MIDDLE),
            (300_000, 300, KEPT_OF_MIDDLE / 4),
        ] {
            pin_to(cpus[0]);
            let blocks = Block::many(size, count);
            let all: HashSet<usize> = blocks.iter().map(Block::at).collect();
            let near = blocks[0].at();
            pin_to(cpus[1]);
            drop(blocks);
            let of_far = Block::many(size, count);
            let foreign = of_far.iter().filter(|block| in_one_arena(block.at(), near)).count();
            assert!(
                foreign <= kept,
                "{foreign} of {count} blocks of {size} bytes are on the wrong node"
            );
            pin_to(cpus[0]);
            let again = Block::many(size, count - kept);
            let new = again.iter().filter(|block| !all.contains(&block.at())).count();
            assert!(new <= kept, "{new} of {count} blocks of {size} bytes are new");
            // The same in the other direction.
            drop(of_far);
            let more = Block::many(size, count);
            let foreign = more.iter().filter(|block| !in_one_arena(block.at(), near)).count();
            assert!(
                foreign <= kept,
                "{foreign} of {count} blocks of {size} bytes are on the wrong node"
            );
        }
        // Runs return to their node at once. After the trim there is no other dirty memory.
        hayloft::trim();
        pin_to(cpus[0]);
        let runs = Block::many(2_000_000, 50);
        let near = runs[0].at();
        let all: HashSet<usize> = runs.iter().map(Block::at).collect();
        pin_to(cpus[1]);
        drop(runs);
        let of_far = Block::many(2_000_000, 50);
        let is_far = of_far.iter().all(|run| !in_one_arena(run.at(), near));
        assert!(is_far, "a freed run stayed on the other node");
        drop(of_far);
        pin_to(cpus[0]);
        let again = Block::many(2_000_000, 50);
        let reused = again.iter().filter(|run| all.contains(&run.at())).count();
        assert!(reused > 40, "only {reused} of 50 runs were reused");
    });
}

/// `trim` decommits the memory of all nodes, on whichever node it is called.
#[test]
fn trim_decommits_memory_of_all_nodes() {
    let Some((cpus, tree)) = two_nodes() else { return };
    on_both_backends("two", &tree, || {
        let before = status_bytes("VmRSS");
        let [of_near, of_far] = cpus.map(|cpu| {
            pin_to(cpu);
            let mut blocks = Block::many(1000, 40_000);
            blocks.extend(Block::many(2 * MIB, 10));
            blocks
        });
        // Some blocks are freed on their own node, others elsewhere.
        drop(of_near);
        pin_to(cpus[1]);
        drop(of_far);
        let full = status_bytes("VmRSS");
        assert!(full > before + 100 * MIB, "{before} bytes resident before, {full} at the peak");
        let trimmed = hayloft::trim();
        assert!(trimmed > 80 * MIB, "{trimmed} bytes were decommitted");
        let after = status_bytes("VmRSS");
        assert!(
            after < before + 8 * MIB,
            "{before} bytes resident before, {full} at the peak, {after} after"
        );
    });
}

/// Allocates until an allocation is refused. Returns the blocks.
fn exhaust(size: usize, most: usize) -> Vec<Block> {
    let mut blocks = Vec::with_capacity(most);
    while let Some(block) = Block::new(size) {
        assert!(blocks.len() < most, "no allocation was refused");
        blocks.push(block);
    }
    blocks
}

/// A node whose arenas cannot grow uses memory of other nodes: runs, and objects of slabs that
/// exist already.
#[test]
fn exhausted_node_uses_memory_of_others() {
    let Some((cpus, tree)) = two_nodes() else { return };
    for backend in ["rseq", "fallback"] {
        let body = || {
            let most = 700 * MIB;
            pin_to(cpus[0]);
            let of_near = exhaust(MIB, most / MIB).len();
            pin_to(cpus[1]);
            let of_far = exhaust(MIB, most / MIB).len();
            assert!(
                of_far >= of_near * 3 / 4,
                "{of_near} MiB fit on one node, {of_far} on the other"
            );

            for [one, other] in [cpus, [cpus[1], cpus[0]]] {
                pin_to(one);
                let mut blocks = exhaust(4000, most / 4000);
                // Every slab stays partial, so none becomes a free run.
                let mut number = 0;
                blocks.retain(|_| {
                    number += 1;
                    number % 2 == 0
                });
                pin_to(other);
                let others = exhaust(4000, most / 4000).len();
                assert!(
                    others > blocks.len() / 2,
                    "{others} blocks fit where {} were freed",
                    blocks.len()
                );
            }
        };
        Scenario::new(backend, body)
            .env("HAYLOFT_BACKEND", backend)
            .env(SYSFS, tree.path())
            .limit(Limit::AddressSpace, 700 * MIB)
            .succeeds();
    }
}

/// Allocations and frees that must not wait.
#[test]
fn nolock_allocates_from_its_node() {
    let Some((cpus, tree)) = two_nodes() else { return };
    on_both_backends("two", &tree, || {
        let [near, far] = cpus.map(|cpu| {
            pin_to(cpu);
            let blocks: Vec<_> = SIZES
                .iter()
                .flat_map(|size| (0..100).map(|_| (*size, nolock::alloc(layout(*size, 8)))))
                .map(|(size, address)| Block { address: address.expect("memory"), size })
                .collect();
            blocks.iter().for_each(Block::fill);
            blocks
        });
        let (of_near, of_far) = (near[0].at(), far[0].at());
        assert!(!in_one_arena(of_near, of_far), "both nodes use one arena");
        for (blocks, node) in [(&near, of_near), (&far, of_far)] {
            let is_own = blocks.iter().all(|block| in_one_arena(block.at(), node));
            assert!(is_own, "a block of another node");
        }
        // Each block is freed on the other node.
        for (cpu, blocks) in [(cpus[1], near), (cpus[0], far)] {
            pin_to(cpu);
            for block in blocks {
                block.check(block.size, block.at());
                // SAFETY: the block is live with this layout, and `forget` prevents a second free.
                unsafe { nolock::free(block.address, layout(block.size, 8)) };
                std::mem::forget(block);
            }
        }
        for (cpu, node) in [(cpus[0], of_near), (cpus[1], of_far)] {
            pin_to(cpu);
            let blocks = Block::many(64, 10_000);
            let foreign = blocks.iter().filter(|block| !in_one_arena(block.at(), node)).count();
            assert!(foreign <= KEPT, "{foreign} blocks are of the other node");
        }
    });
}

/// Objects of caches return to their nodes, even if CPUs go offline and come online with sheaves
/// full of them.
#[test]
fn cache_objects_return_to_their_nodes() {
    let Some((cpus, tree)) = two_nodes() else { return };
    on_both_backends("two", &tree, || {
        cpu::start();
        let cache = Cache::builder("nodes", layout(200, 8))
            .flags(CacheFlags::NO_MERGE)
            .build()
            .expect("a cache");
        let mut near_node = None;
        for round in 0..3 {
            let [near, far] = cpus.map(|cpu| {
                pin_to(cpu);
                let objects: Vec<_> = (0..20_000).map(|_| cache.alloc().expect("memory")).collect();
                objects
            });
            let near_node = *near_node.get_or_insert(near[0].addr().get());
            let strays = |objects: &[NonNull<u8>], stays: bool| {
                objects
                    .iter()
                    .filter(|object| in_one_arena(object.addr().get(), near_node) != stays)
                    .count()
            };
            let counts = [strays(&near, true), strays(&far, false)];
            assert!(counts.iter().all(|count| *count <= KEPT), "{counts:?} objects of other nodes");
            for (cpu, objects) in [(cpus[1], near), (cpus[0], far)] {
                pin_to(cpu);
                // SAFETY: the objects belong to this cache, and each is freed once.
                objects.into_iter().for_each(|object| unsafe { cache.free(object) });
            }
            let _ = cpu::down(cpus[round % 2]);
            let _ = cpu::up(cpus[round % 2]);
        }
        cache.destroy().expect("no object is in use");
    });
}

/// Threads of both nodes exchange blocks while another thread trims. Afterwards a child is forked.
#[test]
fn nodes_can_exchange_blocks() {
    let Some((cpus, tree)) = two_nodes() else { return };
    on_both_backends("two", &tree, || {
        let (to_far, from_near) = mpsc::sync_channel::<Block>(500);
        let (to_near, from_far) = mpsc::sync_channel::<Block>(500);
        let ends = [(cpus[0], to_far, from_far), (cpus[1], to_near, from_near)];
        let threads = ends.map(|(cpu, to, from)| {
            thread::spawn(move || {
                pin_to(cpu);
                let mut state = cpu as u64 + 1;
                let mut mine = Vec::new();
                for _ in 0..60_000 {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let random = (state >> 33) as usize;
                    let most = if random.is_multiple_of(100) { 300_000 } else { 2000 };
                    let block = Block::new(1 + random / 100 % most).expect("memory");
                    if let Err(error) = to.try_send(block)
                        && let mpsc::TrySendError::Full(block) = error
                    {
                        mine.push(block);
                    }
                    drop(from.try_recv());
                    if mine.len() > 200 {
                        mine.swap_remove(random % 200);
                    }
                }
                drop(to);
                from.iter().for_each(drop);
            })
        });
        while !threads.iter().all(thread::JoinHandle::is_finished) {
            hayloft::trim();
            thread::yield_now();
        }
        threads.into_iter().for_each(|thread| thread.join().expect("the thread does not panic"));
        let kept = Block::many(1000, 100);
        // SAFETY: the child relies only on what the allocator promises for it, and leaves by
        // `_exit`.
        unsafe {
            let child = libc::fork();
            if child == 0 {
                // Sheaves may hold objects of any node by now, but runs do not pass through
                // sheaves.
                let [one, other] = cpus.map(|cpu| {
                    pin_to(cpu);
                    let small: Option<Vec<_>> = SIZES.into_iter().map(Block::new).collect();
                    small.and_then(|_| Block::new(2_000_000))
                });
                let at = |block: Option<Block>| block.map_or(0, |block| block.at());
                libc::_exit(i32::from(in_one_arena(at(one), at(other))));
            }
            let mut status = 0;
            assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
            assert_eq!(status, 0, "the child failed");
        }
        drop(kept);
    });
}
