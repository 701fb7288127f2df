//! Middle sizes, from 33 KiB to 1 MiB: buffers of networks and files, images, columns of tables.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use parking_lot::Mutex;

use crate::blocks::Block;
use crate::prng::Prng;
use crate::run::Run;

/// Sizes of the churned blocks: 33 to 512 KiB.
const MIDDLE: (usize, usize) = (33 << 10, 512 << 10);
/// Sizes of the passed buffers: 64 KiB to 1 MiB.
const BUFFERS: (usize, usize) = (64 << 10, 1 << 20);
/// Live blocks per thread.
const SLOTS: usize = 64;
/// Bytes written to a block that is not filled: a message in a buffer.
const MESSAGE: usize = 4096;

/// Runs one thread per core.
pub(super) fn two_threads(run: &mut Run) {
    threads(run, 2);
}

/// Runs more threads than cores.
pub(super) fn sixteen_threads(run: &mut Run) {
    threads(run, 16);
}

/// Runs far more threads than cores.
pub(super) fn sixty_four_threads(run: &mut Run) {
    threads(run, 64);
}

/// Returns a block of a random size, of which the first `MESSAGE` bytes are written.
fn buffer(prng: &mut Prng, (smallest, largest): (usize, usize)) -> Block {
    let mut block = Block::new(smallest + prng.below(largest - smallest));
    block.fill_first(MESSAGE);
    block
}

/// Replaces a random one of each thread's blocks.
fn threads(run: &mut Run, threads: usize) {
    let total: u64 = run.pick(1_600_000, 160_000, 640);
    run.time_threads(
        threads,
        total,
        |index| {
            let mut prng = Prng::new(index as u64 * 91 + 3);
            let slots: Vec<Block> = (0..SLOTS).map(|_| buffer(&mut prng, MIDDLE)).collect();
            (slots, prng)
        },
        |(slots, prng)| {
            for _ in 0..total / threads as u64 {
                let slot = prng.below(SLOTS);
                slots[slot] = buffer(prng, MIDDLE);
            }
        },
    );
}

/// The end of the channel that a thread holds.
enum Role {
    /// Allocates buffers, writes a message into each, and sends them.
    Producer(SyncSender<Block>, Prng),
    /// Frees the buffers in order, holding back up to sixteen until the end of the repetition.
    Consumer(Receiver<Block>),
}

/// Allocates buffers in one thread and frees them in another a little later.
pub(super) fn pass(run: &mut Run) {
    let count: u64 = run.pick(400_000, 40_000, 100);
    let (sender, receiver) = sync_channel(32);
    let ends = Mutex::new(vec![Role::Producer(sender, Prng::new(23)), Role::Consumer(receiver)]);
    run.time_threads(
        2,
        count,
        |_| ends.lock().pop().expect("two threads, two roles"),
        |role| match role {
            Role::Producer(sender, prng) => {
                for _ in 0..count {
                    sender.send(buffer(prng, BUFFERS)).expect("the consumer waits for it");
                }
            }
            Role::Consumer(receiver) => {
                let mut kept = VecDeque::with_capacity(17);
                for _ in 0..count {
                    kept.push_back(receiver.recv().expect("the producer sends it"));
                    if kept.len() > 16 {
                        kept.pop_front();
                    }
                }
            }
        },
    );
}

/// Exchanges buffers through the slots of a pool. Most buffers are freed by another thread than the
/// one that allocated them, as in a pool whose tasks migrate between threads.
pub(super) fn pool(run: &mut Run) {
    const THREADS: usize = 4;
    let total: u64 = run.pick(1_000_000, 100_000, 400);
    let pool: Vec<Mutex<Option<Block>>> = (0..4 * SLOTS).map(|_| Mutex::new(None)).collect();
    run.time_threads(
        THREADS,
        total,
        |index| Prng::new(index as u64 + 37),
        |prng| {
            for _ in 0..total / THREADS as u64 {
                let mut new = Block::new(prng.geometric(16 << 10, 256 << 10));
                new.fill_first(MESSAGE);
                // Freed after the slot is unlocked.
                let old = pool[prng.below(pool.len())].lock().replace(new);
                drop(old);
            }
        },
    );
}

/// Appends pages of values to the columns of a table in turn. A column that has grown to its bound
/// is replaced by a new one with every third of its values.
pub(super) fn columns(run: &mut Run) {
    const COLUMNS: usize = 16;
    let pages: usize = run.pick(100_000, 10_000, 64);
    let mut prng = Prng::new(41);
    let bounds: [usize; COLUMNS] = std::array::from_fn(|_| prng.geometric(8 << 10, 512 << 10));
    let mut table: [Vec<u64>; COLUMNS] = [const { Vec::new() }; COLUMNS];
    let page: [u64; MESSAGE / 8] = std::array::from_fn(|index| index as u64);
    run.time(pages as u64, || {
        for appended in 0..pages {
            let column = appended % COLUMNS;
            table[column].extend_from_slice(&page);
            if table[column].len() * 8 > bounds[column] {
                table[column] = table[column].iter().copied().step_by(3).collect();
            }
        }
    });
}

/// Allocates images of 4 to 20 MiB and writes every page. Like a filter, drops each image once the
/// next is allocated.
pub(super) fn images(run: &mut Run) {
    let count: u64 = run.pick(400, 40, 2);
    let mut prng = Prng::new(29);
    let mut image = Block::new(4 << 20);
    run.time(count, || {
        for _ in 0..count {
            image = Block::new((4 << 20) + prng.below(16 << 20));
            image.touch_pages();
        }
    });
}

/// Runs eight rounds of blocks of 40 KiB. In each round every twentieth block survives.
pub(super) fn survivors(run: &mut Run) {
    let blocks: u64 = run.pick(4000, 500, 40);
    let rounds = 8;
    let mut kept: Vec<Block> = Vec::new();
    run.time(blocks * rounds, || {
        for _ in 0..rounds {
            let all: Vec<Block> = (0..blocks)
                .map(|_| {
                    let mut block = Block::new(40 << 10);
                    block.touch_pages();
                    block
                })
                .collect();
            kept.extend(all.into_iter().step_by(20));
        }
    });
}

/// Allocates sparse zeroed tables of 1 to 16 MiB, and writes one page in sixteen.
pub(super) fn sparse(run: &mut Run) {
    let count: u64 = run.pick(2000, 200, 4);
    let mut prng = Prng::new(31);
    let mut slots: [Option<Block>; 4] = [const { None }; 4];
    run.time(count, || {
        for _ in 0..count {
            let mut table = Block::zeroed(prng.geometric(1 << 20, 16 << 20));
            table.touch_every(16 * MESSAGE);
            slots[prng.below(4)] = Some(table);
        }
    });
}
