//! Forks, all the time: whatever the other threads are doing, the child has an allocator that works.

use std::thread;
use std::time::Duration;

use alloc_core::cache;

use crate::draw::Rng;
use crate::failure::{self, Actor, Role};
use crate::visit::Visit;
use crate::watchdog;
use crate::{caches, irq};

/// Between two forks, for the others to get their pages back.
const PAUSE: Duration = Duration::from_millis(5);

/// Forks once, and waits for the child.
pub(crate) fn cycle(rng: &mut Rng, actor: Actor) -> u64 {
    let visits = rng.log_uniform(1, 1000);
    // SAFETY: the child does what it may after a fork with threads around: it allocates by Hayloft, has
    // it start threads, and ends.
    match unsafe { libc::fork() } {
        0 => live(rng, Actor { role: Role::Child, ..actor }, visits),
        child => wait_for(child),
    }
    thread::sleep(PAUSE);
    1
}

/// The life of a child.
fn live(rng: &mut Rng, actor: Actor, visits: usize) -> ! {
    extern "C" fn out_of_time(_: libc::c_int) {
        failure::give_up(format_args!("STUCK: the child of a fork"));
    }
    // SAFETY: the handler may do what it does in any context.
    unsafe {
        libc::signal(libc::SIGALRM, out_of_time as *const () as usize);
        // Before the parent's watchdog finds that there are no forks.
        libc::alarm(watchdog::PATIENCE - 5);
    }
    for _ in 0..visits {
        Visit::new(Role::Child, 0, 0).run();
    }
    // From here on it has CPUs.
    cache::barrier();
    for _ in 0..visits {
        let mut visit = Visit::new(Role::Child, 0, 0);
        visit.run();
        irq::queue(&mut visit.rng);
    }
    caches::cycle(rng, actor, true);
    irq::settle();
    cache::barrier();
    // SAFETY: ends the process; exit handlers are the parent's.
    unsafe { libc::_exit(0) }
}

/// Waits for a child, which must end well.
fn wait_for(child: libc::pid_t) {
    let mut status = 0;
    // SAFETY: the status is ours to be written. Signals do not end the call.
    let ended = unsafe { libc::waitpid(child, &raw mut status, 0) };
    if ended != child || status != 0 {
        failure::give_up(format_args!("the child of a fork failed: {ended}, status {status:#x}"));
    }
}
