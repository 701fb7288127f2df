//! Threads in a row: each frees the blocks that the previous one allocated, for up to a minute.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use super::mix::{BUFFERS, Mix, RECORDS, SMALL};
use crate::blocks::Block;
use crate::prng::Prng;
use crate::run::{Gauge, Run};

/// Rows of three threads.
const PIPELINES: u64 = 2;
/// Blocks in a batch.
const BATCH: usize = 200;
/// Batches that a channel between two threads can hold.
const DEPTH: usize = 16;
/// Bounds of a consumer's backlog in MiB, each in force for the same share of the time: the
/// consumer falls behind and catches up.
const BACKLOGS: [usize; 6] = [8, 48, 16, 96, 8, 32];

/// Blocks that go through a pipeline together.
struct Batch {
    blocks: Vec<Block>,
    bytes: usize,
}

impl Batch {
    fn new(gauge: &Gauge, prng: &mut Prng, mix: &Mix, count: usize) -> Self {
        let blocks: Vec<Block> = (0..count)
            .map(|_| {
                let mut block = Block::new(mix.size(prng));
                block.fill();
                block
            })
            .collect();
        let own = blocks.capacity() * size_of::<Block>();
        let bytes = own + blocks.iter().map(Block::size).sum::<usize>();
        gauge.grew(bytes);
        Self { blocks, bytes }
    }

    fn free(self, gauge: &Gauge) {
        gauge.shrank(self.bytes);
        drop(self.blocks);
    }
}

pub(in super::super) fn run(run: &mut Run) {
    let span = Duration::from_millis(run.pick(60_000, 10_000, 30));
    let idle = Duration::from_millis(run.pick(3000, 2500, 1));
    let megabyte = run.pick(1 << 20, 1 << 20, 1 << 10);
    run.watch(|gauge| {
        thread::scope(|scope| {
            for pipeline in 0..PIPELINES {
                let (to_transformer, from_producer) = sync_channel(DEPTH);
                let (to_consumer, from_transformer) = sync_channel(DEPTH);
                scope.spawn(move || produce(gauge, pipeline, span, to_transformer));
                scope.spawn(move || transform(gauge, pipeline, from_producer, to_consumer));
                scope.spawn(move || consume(gauge, span, megabyte, from_transformer));
            }
        });
        gauge.mark_freed();
        // All threads have exited, and nothing is live.
        thread::sleep(idle);
    });
}

/// Allocates batches until `span` is over.
fn produce(gauge: &Gauge, pipeline: u64, span: Duration, next: SyncSender<Batch>) {
    let mut prng = Prng::new(73 + pipeline);
    let start = Instant::now();
    while start.elapsed() < span {
        // One batch in a hundred consists of a few large messages.
        let (mix, count) =
            if prng.below(100) == 0 { (&BUFFERS, BATCH / 20) } else { (&SMALL, BATCH) };
        next.send(Batch::new(gauge, &mut prng, mix, count)).expect("the transformer waits for it");
    }
}

/// Allocates a batch of other sizes for each batch received, and frees the received one.
fn transform(gauge: &Gauge, pipeline: u64, from: Receiver<Batch>, next: SyncSender<Batch>) {
    let mut prng = Prng::new(79 + pipeline);
    for batch in from {
        let mix = if prng.below(2) == 0 { &RECORDS } else { &SMALL };
        let made = Batch::new(gauge, &mut prng, mix, BATCH);
        batch.free(gauge);
        next.send(made).expect("the consumer waits for it");
    }
}

/// Holds the received batches for a while, then frees them.
fn consume(gauge: &Gauge, span: Duration, megabyte: usize, from: Receiver<Batch>) {
    let start = Instant::now();
    let mut backlog = VecDeque::new();
    let mut held = 0;
    for batch in from {
        held += batch.bytes;
        backlog.push_back(batch);
        let step = start.elapsed().as_nanos() * BACKLOGS.len() as u128 / span.as_nanos();
        let bound = BACKLOGS[(step as usize).min(BACKLOGS.len() - 1)] * megabyte;
        while held > bound
            && let Some(oldest) = backlog.pop_front()
        {
            held -= oldest.bytes;
            oldest.free(gauge);
        }
    }
    backlog.into_iter().for_each(|batch| batch.free(gauge));
}
