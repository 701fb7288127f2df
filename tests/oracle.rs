//! Random traces against the naive model: blocks never overlap, are aligned and keep their
//! contents, and zeroed memory is zero.

use std::alloc::{GlobalAlloc, Layout};
use std::thread;

use proptest::prelude::*;
use proptest::test_runner::{FileFailurePersistence, TestRunner};
use tests::entry_points::{Hayloft, Registered};
use tests::model::Model;
use tests::scenario::{with_decay, with_larger_pages};

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// A step of a trace. `pick` selects a live block, whatever their number.
#[derive(Clone, Debug)]
enum Step {
    Alloc(Layout),
    AllocZeroed(Layout),
    Realloc { pick: prop::sample::Index, size: usize },
    Free { pick: prop::sample::Index },
}

/// Generates sizes, biased towards the borders of size classes.
fn size() -> impl Strategy<Value = usize> {
    let near = |border: usize| border - 1..=border + 1;
    prop_oneof![
        30 => 1..=1024_usize,
        30 => (1..=640_usize).prop_flat_map(move |eights| near(8 * eights)),
        20 => (1..=17_u32).prop_flat_map(move |power| near(1 << power)),
        20 => 1..=200_usize << 10,
        1 => 200_usize << 10..=3 << 20,
    ]
}

/// Generates alignments from 1 to 64 KiB, mostly those of ordinary types.
fn align() -> impl Strategy<Value = usize> {
    prop_oneof![6 => 0..=4_u32, 2 => 5..=12_u32, 1 => 13..=16_u32].prop_map(|power| 1 << power)
}

fn layout() -> impl Strategy<Value = Layout> {
    (size(), align())
        .prop_map(|(size, align)| Layout::from_size_align(size, align).expect("a valid layout"))
}

fn step() -> impl Strategy<Value = Step> {
    let pick = any::<prop::sample::Index>;
    prop_oneof![
        4 => layout().prop_map(Step::Alloc),
        2 => layout().prop_map(Step::AllocZeroed),
        3 => (pick(), size()).prop_map(|(pick, size)| Step::Realloc { pick, size }),
        4 => pick().prop_map(|pick| Step::Free { pick }),
    ]
}

fn trace() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 1..300)
}

/// Plays a trace through one entry point. The model panics on a wrong result.
fn play(allocator: impl GlobalAlloc, salt: u64, trace: &[Step]) {
    let mut model = Model::new(allocator, salt);
    for step in trace {
        match step {
            Step::Alloc(layout) => model.alloc(*layout),
            Step::AllocZeroed(layout) => model.alloc_zeroed(*layout),
            // No block is live.
            Step::Realloc { .. } | Step::Free { .. } if model.is_empty() => {}
            Step::Realloc { pick, size } => model.realloc(pick.index(model.len()), *size),
            Step::Free { pick } => model.free(pick.index(model.len())),
        }
    }
    model.check_all();
}

/// Runs `property` on random traces. Failing seeds are saved beside this file and tried first.
fn for_all_traces(cases: u32, property: impl Fn(&[Step])) {
    let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/oracle.regressions");
    let config = ProptestConfig {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(seeds))),
        ..ProptestConfig::default()
    };
    let outcome = TestRunner::new(config).run(&trace(), |trace| {
        property(&trace);
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

#[test]
fn traces_match_the_model_through_std_alloc() {
    with_decay(|| for_all_traces(200, |trace| play(Registered, 1, trace)));
}

#[test]
fn traces_match_the_model_through_the_methods() {
    with_decay(|| for_all_traces(200, |trace| play(Hayloft, 2, trace)));
}

#[test]
fn traces_match_the_model_on_larger_pages() {
    with_larger_pages(None, || {
        for_all_traces(50, |trace| {
            play(Registered, 3, trace);
            hayloft::trim();
        });
    });
}

/// Four threads play one trace at once. Their patterns differ, so a block handed out twice is
/// detected.
#[test]
fn traces_match_the_model_on_threads() {
    with_decay(|| {
        for_all_traces(40, |trace| {
            thread::scope(|scope| {
                for salt in 10..14 {
                    scope.spawn(move || play(Registered, salt, trace));
                }
            });
        });
    });
}
