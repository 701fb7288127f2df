//! A program with phases: a burst of one size, most of it freed, then a burst of another size. Can
//! memory that was cut for one size serve the next? One block in a hundred survives its phase and
//! pins the memory around it, which then cannot return to the system.

use crate::blocks::Block;
use crate::run::Run;

const SIZES: [usize; 5] = [32, 192, 1024, 80, 4096];
/// Blocks per survivor of a phase.
const SURVIVES: usize = 100;

pub(super) fn run(run: &mut Run) {
    let bytes = run.pick(64_000_000, 8_000_000, 100_000);
    let operations: usize = SIZES.iter().map(|size| bytes / size).sum();
    run.time(operations as u64, || {
        let mut survivors = Vec::new();
        for size in SIZES {
            let burst: Vec<Block> = (0..bytes / size).map(|_| Block::new(size)).collect();
            for (index, block) in burst.into_iter().enumerate() {
                if index % SURVIVES == 0 {
                    survivors.push(block);
                }
            }
        }
    });
}
