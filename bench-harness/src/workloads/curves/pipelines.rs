//! Threads in a row: what one allocates the next frees, for as long as a minute.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use super::mix::{BUFFERS, Mix, RECORDS, SMALL};
use crate::blocks::Block;
use crate::engine::{Gauge, Run};
use crate::prng::Prng;

/// How many rows of three threads there are.
const PIPELINES: u64 = 2;
/// Blocks sent at once.
const BATCH: usize = 200;
/// Batches that may be on their way from a thread to the next.
const DEPTH: usize = 16;
/// How many MiB a consumer holds, one after the other, for as long each: now it lags behind, now it has caught up.
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
        // Threads are gone, and nothing is live.
        thread::sleep(idle);
    });
}

/// Allocates, until the time is over.
fn produce(gauge: &Gauge, pipeline: u64, span: Duration, next: SyncSender<Batch>) {
    let mut prng = Prng::new(73 + pipeline);
    let start = Instant::now();
    while start.elapsed() < span {
        // Now and then a few large messages.
        let (mix, count) =
            if prng.below(100) == 0 { (&BUFFERS, BATCH / 20) } else { (&SMALL, BATCH) };
        next.send(Batch::new(gauge, &mut prng, mix, count)).expect("the transformer waits for it");
    }
}

/// Makes blocks of another size out of each batch, and frees those it got.
fn transform(gauge: &Gauge, pipeline: u64, from: Receiver<Batch>, next: SyncSender<Batch>) {
    let mut prng = Prng::new(79 + pipeline);
    for batch in from {
        let mix = if prng.below(2) == 0 { &RECORDS } else { &SMALL };
        let made = Batch::new(gauge, &mut prng, mix, BATCH);
        batch.free(gauge);
        next.send(made).expect("the consumer waits for it");
    }
}

/// Holds what it got for a while, and frees it.
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
