//! A dump of the allocator's state as text, for diagnosing a hang.
//!
//! Everything is read without a lock and without the heap, in any context: a stuck thread may hold
//! a lock or be inside the heap. The dump is not a consistent snapshot, since each item is read
//! separately.

use core::fmt;

use crate::irq::thread::{self, MAX_CPUS};
use crate::irq::work as irq_work;
use crate::path::objects;
use crate::sync::{LockClass, RawLock};
use crate::{cache, cpu, rcu};

/// Calls `line` with each line of a report. Reported are the CPUs that are online or have pending
/// work: the CPU thread, the queues of irq work, the item being run, and whether frees are deferred
/// there. The state of the control plane's locks follows, then every lock that is not free.
///
/// Owners of locks are identified by a token: an address in the thread-local storage of the thread.
///
/// ```
/// hayloft_core::dump::machine(&|line| eprintln!("{line}"));
/// ```
pub fn machine(line: &dyn Fn(fmt::Arguments<'_>)) {
    line(format_args!("irq work: {:?}", thread::mode()));
    (0..MAX_CPUS).for_each(|number| one_cpu(number, line));
    if objects::is_deferred_on(None) {
        line(format_args!("frees put off before there were CPUs"));
    }
    line(format_args!("hotplug lock: {}", cpu::lock_state()));
    line(format_args!("cache mutex: {}", if cache::mutex_is_held() { "held" } else { "free" }));
    line(format_args!("rcu barrier: {}", if rcu::barrier_is_on() { "on" } else { "off" }));
    let lock = |class: LockClass, lock: &RawLock| {
        if !lock.is_free() {
            line(format_args!("{class:?} {lock:?}"));
        }
    };
    rcu::for_each_lock(&lock);
    objects::for_each_lock(&lock);
}

fn one_cpu(number: usize, line: &dyn Fn(fmt::Arguments<'_>)) {
    let (online, thread) = (cpu::is_online(number), thread::id(number));
    let queued = irq_work::queued(number);
    let deferred = objects::is_deferred_on(Some(number));
    let idle = !queued.raised && !queued.threaded && queued.at.is_null() && !deferred;
    if !online && thread == 0 && idle {
        return;
    }
    let has = |something| if something { "something" } else { "nothing" };
    line(format_args!(
        "CPU {number}: {}, thread {thread}; {} for its handler, {} for its loop, at item {:p}; {} put off",
        if online { "online" } else { "offline" },
        has(queued.raised),
        has(queued.threaded),
        queued.at,
        has(deferred),
    ));
}
