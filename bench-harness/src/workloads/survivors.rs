//! Threads that exit and leave live blocks behind. Shows the fate of a thread's cache, and of
//! blocks whose thread no longer exists.

use std::thread;

use crate::blocks::Block;
use crate::prng::Prng;
use crate::run::Run;

pub(super) fn run(run: &mut Run) {
    let threads: u64 = run.pick(1200, 80, 3);
    let blocks: u64 = run.pick(4000, 4000, 100);
    run.time(threads * blocks, || {
        let mut survivors = Vec::new();
        for seed in 0..threads {
            // Moved into the new thread, which frees the blocks.
            let inherited = survivors;
            let life = thread::spawn(move || live(seed, blocks, inherited));
            survivors = life.join().expect("a thread panicked");
        }
    });
}

/// Allocates `count` blocks and returns every other one; frees the rest, and meanwhile the
/// `inherited` ones.
fn live(seed: u64, count: u64, mut inherited: Vec<Block>) -> Vec<Block> {
    let mut prng = Prng::new(seed);
    let mut left = Vec::with_capacity(count as usize / 2);
    for _ in 0..count / 2 {
        let short_lived = Block::new(1 + prng.below(1000));
        left.push(Block::new(1 + prng.below(500)));
        drop(inherited.pop());
        drop(short_lived);
    }
    left
}
