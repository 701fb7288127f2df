//! Tests of free runs: runs are allocated, resized, freed and taken to be decommitted at random,
//! and the whole arena is checked in between.

use core::ptr;
use std::boxed::Box;
use std::vec::Vec;

use super::*;
use crate::page::arrays::Arrays;
use crate::page::chunks::CHUNK;
use crate::page::descriptor::Run;
use crate::page::{self, Unit};
use crate::sync::Context;

/// Checks the boundary tags of all runs of an arena, the bins, and the number of dirty units.
fn validate(units: &Units, runs: &FreeRuns) {
    let mut found = [0, 0];
    let (mut at, mut before) = (1, RunState::Silent);
    while at < units.committed() {
        // SAFETY: `at` is the first unit of a run, below `committed`; the lock is held.
        let (state, len) = unsafe { units.tag(at) };
        assert!(len > 0 && at + len <= units.committed(), "run at {at} of {len} units");
        match state {
            RunState::Dirty | RunState::Clean => {
                assert_ne!(before, state, "neighbours of one state are merged: unit {at}");
                // SAFETY: the last unit of the run is committed; the lock is held.
                assert_eq!(unsafe { units.tag(at + len - 1) }, (state, len), "last unit of {at}");
                found[usize::from(state == RunState::Dirty)] += len;
            }
            RunState::Used | RunState::Leaving => {}
            RunState::Silent => panic!("no run starts at unit {at}"),
        }
        (at, before) = (at + len, state);
    }
    assert_eq!(at, units.committed());
    for (bins, state) in [(&runs.clean_bins, RunState::Clean), (&runs.dirty_bins, RunState::Dirty)]
    {
        let mut length = 0;
        let mut next = bins.first_from(0);
        while let Some(bin) = next {
            let (mut start, mut previous) = (bins.head(bin), NONE);
            while start != NONE {
                // SAFETY: a free run starts at `start`; the lock is held.
                let run = unsafe { units.run(start).read() };
                assert_eq!(
                    (run.state, run.previous, Bins::holding(run.len)),
                    (state, previous, bin)
                );
                length += run.len;
                (previous, start) = (start, run.next);
            }
            next = bins.first_from(bin + 1);
        }
        assert_eq!(length, found[usize::from(state == RunState::Dirty)], "units in bins");
    }
    assert_eq!(units.dirty(), found[1]);
    assert!(runs.least_dirty <= found[1] && runs.unneeded <= found[1]);
}

/// Returns numbers that look random (xorshift), always the same ones.
fn numbers() -> impl Iterator<Item = usize> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    core::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) as usize
    })
}

#[test]
fn free_runs_stay_consistent() {
    let mut numbers = numbers();
    let mut number = move |below: usize| numbers.next().unwrap_or(0) % below;
    // The runs, and whether each is untouched.
    let mut live: Vec<(Unit, bool)> = Vec::new();
    // Units that are about to be decommitted, with a unit of their arena. As threads that purge do,
    // the test holds the lock only to take them and to put them back.
    let mut leaving: Option<(Unit, Leaving)> = None;
    for round in 0..if cfg!(miri) { 60 } else { 4000 } {
        Context::enter(|context| {
            let at = number(live.len().max(1));
            // SAFETY: the test owns the runs in `live`, and forgets those that it frees.
            unsafe {
                match number(4) {
                    _ if live.len() < 8 => {}
                    0 => page::shrink(context, live[at].0, 1 + number(8)),
                    1 => {
                        page::grow(context, live[at].0, 1 + number(40));
                        live[at].1 = false;
                    }
                    _ => {
                        let (unit, is_clean) = live.swap_remove(at);
                        let freed = if is_clean {
                            page::free_clean(context, unit)
                        } else {
                            page::free(context, unit)
                        };
                        assert!(freed);
                    }
                }
            }
            let (units, align) = (1 + number(30), 1 << number(4));
            if let Some(run) = page::alloc(context, 0, units, align) {
                let unit = Unit::of(run.address.as_ptr()).expect("the run lies in an arena");
                assert_eq!(run.address.addr().get() % (align * UNIT), 0);
                assert!(unit.run_len().is_some_and(|len| len == units));
                live.push((unit, run.zeroed));
            }
            if round % 4 == 0 {
                let unit = leaving.map_or(live[0].0, |(unit, _)| unit);
                let units = &unit.arena.units;
                let mut free = unit.arena.free_runs.acquire(context).expect("the context may wait");
                // SAFETY: both are of this arena. What was taken is put back once, as dirty.
                unsafe {
                    if let Some((_, taken)) = leaving.take() {
                        free.put_back(units, taken, RunState::Dirty);
                    } else {
                        let taken = free.take_dirty(units, 1 + number(50) as u32);
                        leaving = taken.map(|taken| (unit, taken));
                    }
                }
            }
            if round % 16 == 0 {
                live.iter().for_each(|(unit, _)| {
                    let runs = unit.arena.free_runs.acquire(context).expect("the context may wait");
                    validate(&unit.arena.units, &runs);
                });
            }
        });
        if live.len() > 60 {
            Context::enter(|context| {
                for (unit, _) in live.drain(20..) {
                    // SAFETY: the test owns the run, and `drain` removes it from the list.
                    assert!(unsafe { page::free(context, unit) });
                }
            });
        }
        if round % 500 == 499 {
            Context::enter(page::trim);
        }
    }
    Context::enter(|context| {
        for (unit, _) in live {
            // SAFETY: the test owns the run, which it forgets.
            assert!(unsafe { page::free(context, unit) });
        }
        if let Some((unit, taken)) = leaving {
            let mut free = unit.arena.free_runs.acquire(context).expect("the context may wait");
            // SAFETY: both are of this arena. What was taken is put back once, as dirty.
            unsafe { free.put_back(&unit.arena.units, taken, RunState::Dirty) };
            validate(&unit.arena.units, &free);
        }
    });
}

/// Free units in huge pages are used first and purged last, and otherwise those that were freed
/// last are used first.
#[test]
fn free_units_of_huge_pages_are_used_first_and_purged_last() {
    const COMMITTED: u32 = 4 * CHUNK;
    const HUGE: u32 = CHUNK + 8;
    const OTHER: u32 = 2 * CHUNK + 8;
    const THIRD: u32 = 3 * CHUNK + 8;
    let units = Units::new();
    // SAFETY: zeroed memory is an array of descriptors that describe no runs.
    let mut runs = unsafe { Box::<[Run; COMMITTED as usize]>::new_zeroed().assume_init() };
    let base = ptr::without_provenance_mut(1 << 40);
    let arrays = Arrays {
        base,
        entries: base,
        runs: runs.as_mut_ptr(),
        meta: base,
        reserve: COMMITTED,
        units: COMMITTED,
        node: 0,
    };
    // SAFETY: the test alone has these units, of which it uses only the descriptors.
    unsafe { units.set_arrays(arrays) };
    units.committed.store(COMMITTED, Ordering::Relaxed);
    units.chunks.set_huge(1);
    for (freed, used) in [
        ([HUGE, OTHER], [HUGE, OTHER]),
        ([OTHER, HUGE], [HUGE, OTHER]),
        ([OTHER, THIRD], [THIRD, OTHER]),
    ] {
        for is_purged in [false, true] {
            let mut free = FreeRuns::new();
            // SAFETY: the units are the test's, and are in no bin before they are inserted.
            unsafe {
                freed.iter().for_each(|start| free.insert(&units, *start, 1, RunState::Dirty));
                let found = if is_purged {
                    free.take_dirty(&units, 1).map(|leaving| leaving.start)
                } else {
                    free.find(&units, 1, 1, false).ok().map(|found| found.start)
                };
                let is_first = !is_purged || !used.contains(&HUGE);
                assert_eq!(found, Some(used[usize::from(!is_first)]), "{freed:?}");
            }
        }
    }
}
