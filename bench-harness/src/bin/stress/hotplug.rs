//! CPUs that go and come back, all the time.

use std::mem;
use std::thread;
use std::time::Duration;

use alloc_core::{cache, cpu};

use crate::draw::Rng;

/// Takes one CPU away and brings it back; how many CPUs that was.
pub(crate) fn cycle(rng: &mut Rng) -> u64 {
    let online: Vec<_> = cpu::read_lock().online().collect();
    if online.len() < 2 {
        // The last one cannot go.
        thread::sleep(Duration::from_millis(10));
        return 0;
    }
    let cpu = online[rng.below(online.len())];
    let by_affinity = rng.below(8) == 0;
    if by_affinity {
        let before = affinity();
        let mut without = before;
        // SAFETY: the set is whole, and the number of a CPU lies in it.
        unsafe { libc::CPU_CLR(cpu, &mut without) };
        set_affinity(&without);
        cpu::refresh().expect("the CPU can go");
        set_affinity(&before);
    } else {
        cpu::down(cpu).expect("the CPU can go");
    }
    assert!(!cpu::is_online(cpu));
    if rng.below(2) == 0 {
        cache::barrier();
    }
    if by_affinity {
        cpu::refresh().expect("the CPU can come back");
    } else {
        cpu::up(cpu).expect("the CPU can come back");
    }
    assert!(cpu::is_online(cpu));
    1
}

/// The CPUs that the main thread may run on, which are those of the process.
fn affinity() -> libc::cpu_set_t {
    // SAFETY: a zeroed set is a valid one; the set is ours to be written, and its size is given.
    unsafe {
        let mut set = mem::zeroed();
        let result = libc::sched_getaffinity(libc::getpid(), size_of_val(&set), &raw mut set);
        assert_eq!(result, 0, "the kernel has no more CPUs than the set");
        set
    }
}

fn set_affinity(set: &libc::cpu_set_t) {
    // SAFETY: the set is whole, and its size is given.
    let result = unsafe { libc::sched_setaffinity(libc::getpid(), size_of_val(set), set) };
    assert_eq!(result, 0, "the set has a CPU");
}
