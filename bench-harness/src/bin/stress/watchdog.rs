//! The watchdog: ends a run in which something is stuck, and prints what is stuck.
//!
//! It counts its own rounds instead of reading a clock. So it does not mistake a machine that is
//! itself suspended for a run that is stuck. Once it watches, it needs neither the heap nor a lock.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::failure;
use crate::pulse::Pulse;

/// Length of a round.
const SECOND: Duration = Duration::from_secs(1);

/// Rounds without progress after which an activity counts as stuck. On a busy machine seconds may
/// pass before a thread runs; a stuck thread never continues.
pub(crate) const PATIENCE: u32 = 30;

/// An activity under watch.
#[derive(Debug)]
pub(crate) struct Watched<'a> {
    name: String,
    pulse: &'a Pulse,
    beats: u64,
    silent: u32,
}

impl<'a> Watched<'a> {
    pub(crate) fn new(name: impl Into<String>, pulse: &'a Pulse) -> Self {
        Self { name: name.into(), pulse, beats: 0, silent: 0 }
    }

    /// Looks at the activity once, and returns whether it is stuck.
    fn look(&mut self) -> bool {
        let beats = self.pulse.beats();
        let goes_on = beats != self.beats || self.pulse.is_over();
        self.silent = if goes_on { 0 } else { self.silent + 1 };
        self.beats = beats;
        self.silent >= PATIENCE
    }
}

/// Runs `body` and watches the activities meanwhile.
pub(crate) fn watch<R>(mut watched: Vec<Watched<'_>>, body: impl FnOnce() -> R) -> R {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watchdog = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                look(&mut watched);
                thread::park_timeout(SECOND);
            }
        });
        let result = body();
        over.store(true, Ordering::Relaxed);
        watchdog.thread().unpark();
        result
    })
}

/// Looks at all activities once, and ends the process if one is stuck.
fn look(watched: &mut [Watched<'_>]) {
    let stuck = watched.iter_mut().map(Watched::look).fold(false, |any, stuck| any | stuck);
    if stuck {
        for watched in watched.iter().filter(|watched| watched.silent > 0) {
            let Watched { name, beats, silent, .. } = watched;
            failure::say(format_args!("stress: {name} at {beats}, silent for {silent} s"));
        }
        failure::give_up(format_args!("STUCK"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silent_thread_counts_as_stuck() {
        let pulse = Pulse::new();
        let mut watched = Watched::new("", &pulse);
        let mut rounds_until_stuck = || (1..1000).find(|_| watched.look());
        assert_eq!(rounds_until_stuck(), Some(PATIENCE));
        pulse.beat();
        assert_eq!(rounds_until_stuck(), Some(PATIENCE + 1));
        pulse.end();
        assert_eq!(rounds_until_stuck(), None);
    }
}
