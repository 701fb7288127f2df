//! CPUs that constantly go offline and come back.

use std::mem;
use std::thread;
use std::time::Duration;

use hayloft_core::{cpu, heap};

use crate::draw::Rng;

/// Takes one CPU offline and brings it back. Returns the number of CPUs cycled, which is zero or
/// one.
pub(crate) fn cycle(rng: &mut Rng) -> u64 {
    let online: Vec<_> = cpu::read_lock().online().collect();
    if online.len() < 2 {
        // The last CPU cannot go offline.
        thread::sleep(Duration::from_millis(10));
        return 0;
    }
    let cpu = online[rng.below(online.len())];
    let by_affinity = rng.below(8) == 0;
    if by_affinity {
        let before = affinity();
        let mut without = before;
        // SAFETY: the set is initialised, and the number of a CPU lies within it.
        unsafe { libc::CPU_CLR(cpu, &mut without) };
        set_affinity(&without);
        cpu::refresh().expect("the CPU can go");
        set_affinity(&before);
    } else {
        cpu::down(cpu).expect("the CPU can go");
    }
    assert!(!cpu::is_online(cpu));
    if rng.below(2) == 0 {
        heap::barrier();
    }
    if by_affinity {
        cpu::refresh().expect("the CPU can come back");
    } else {
        cpu::up(cpu).expect("the CPU can come back");
    }
    assert!(cpu::is_online(cpu));
    1
}

/// Returns the affinity of the main thread, which Hayloft uses as that of the process.
fn affinity() -> libc::cpu_set_t {
    // SAFETY: a zeroed set is valid. The call writes at most the size passed to it.
    unsafe {
        let mut set = mem::zeroed();
        let result = libc::sched_getaffinity(libc::getpid(), size_of_val(&set), &raw mut set);
        assert_eq!(result, 0, "the kernel has no more CPUs than the set");
        set
    }
}

fn set_affinity(set: &libc::cpu_set_t) {
    // SAFETY: the set is initialised, and the call reads at most the size passed to it.
    let result = unsafe { libc::sched_setaffinity(libc::getpid(), size_of_val(set), set) };
    assert_eq!(result, 0, "the set has a CPU");
}
