//! Constant forks. Whatever the other threads are doing, the allocator must work in the child.

use std::thread;
use std::time::Duration;

use hayloft_core::heap;

use crate::draw::Rng;
use crate::failure::{self, Actor, Role};
use crate::visit::Visit;
use crate::watchdog;
use crate::{caches, irq};

/// Pause between two forks, in which the other threads fault their copy-on-write pages back in.
const PAUSE: Duration = Duration::from_millis(5);

/// Forks once and waits for the child.
pub(crate) fn cycle(rng: &mut Rng, actor: Actor) -> u64 {
    let visits = rng.log_uniform(1, 1000);
    // SAFETY: the child does only what is allowed after a fork of a threaded process: it allocates
    // from Hayloft, which starts its own threads, and exits.
    match unsafe { libc::fork() } {
        0 => live(rng, Actor { role: Role::Child, ..actor }, visits),
        child => wait_for(child),
    }
    thread::sleep(PAUSE);
    1
}

/// Runs the life of a child.
fn live(rng: &mut Rng, actor: Actor, visits: usize) -> ! {
    extern "C" fn out_of_time(_: libc::c_int) {
        failure::give_up(format_args!("STUCK: the child of a fork"));
    }
    // SAFETY: the handler only calls `give_up`, which works in any context.
    unsafe {
        libc::signal(libc::SIGALRM, out_of_time as *const () as usize);
        // Expires before the parent's watchdog reports that forks have stopped.
        libc::alarm(watchdog::PATIENCE - 5);
    }
    for _ in 0..visits {
        Visit::new(Role::Child, 0, 0).run();
    }
    // From here on the child has CPU threads.
    heap::barrier();
    for _ in 0..visits {
        let mut visit = Visit::new(Role::Child, 0, 0);
        visit.run();
        irq::queue(&mut visit.rng);
    }
    caches::cycle(rng, actor, true);
    irq::settle();
    heap::barrier();
    // SAFETY: `_exit` has no preconditions. Exit handlers are left to the parent.
    unsafe { libc::_exit(0) }
}

/// Waits for a child, and gives up unless it exits with status 0.
fn wait_for(child: libc::pid_t) {
    let mut status = 0;
    // SAFETY: `status` is valid for the write. The signals' `SA_RESTART` keeps the call from ending
    // early.
    let ended = unsafe { libc::waitpid(child, &raw mut status, 0) };
    if ended != child || status != 0 {
        failure::give_up(format_args!("the child of a fork failed: {ended}, status {status:#x}"));
    }
}
