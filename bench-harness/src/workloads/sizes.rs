//! A sweep over sizes: uses every size class, and none more than the others.

use crate::blocks::Block;
use crate::run::Run;

const LARGEST: usize = 32 * 1024;
const BLOCKS: usize = 64;

pub(super) fn run(run: &mut Run) {
    let sweeps = run.pick(200, 15, 1);
    let sizes = sizes();
    let mut blocks = Vec::with_capacity(BLOCKS);
    run.time((sweeps * sizes.len() * BLOCKS) as u64, || {
        for _ in 0..sweeps {
            for &size in &sizes {
                blocks.extend((0..BLOCKS).map(|_| Block::new(size)));
                blocks.clear();
            }
        }
    });
}

/// Returns sizes from 1 byte to 32 KiB. Each is larger than the previous one by a fifth, and by at
/// least one byte.
fn sizes() -> Vec<usize> {
    let mut sizes: Vec<usize> =
        std::iter::successors(Some(1), |size| Some((size * 6 / 5).max(size + 1)))
            .take_while(|&size| size < LARGEST)
            .collect();
    sizes.push(LARGEST);
    sizes
}
