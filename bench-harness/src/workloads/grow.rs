//! Growth by `realloc`: vectors and buffers whose final size is unknown.

use std::hint::black_box;

use crate::prng::Prng;
use crate::run::Run;

/// Grows many vectors in turn. Sooner or later each one's neighbours prevent growth in place.
pub(super) fn vectors(run: &mut Run) {
    let rounds: usize = run.pick(10, 2, 1);
    let vectors: usize = run.pick(1000, 1000, 10);
    // Lengths of 16 to 4096 elements, drawn beforehand so that drawing them is not timed.
    let mut prng = Prng::new(7);
    let lengths: Vec<usize> = (0..vectors).map(|_| prng.geometric(16, 4096)).collect();
    let pushes = rounds * lengths.iter().sum::<usize>();
    run.time(pushes as u64, || {
        for _ in 0..rounds {
            let mut grown: Vec<Vec<u64>> = vec![Vec::new(); vectors];
            // Each vector grows by sixteen elements per turn.
            let mut unfinished = true;
            while std::mem::take(&mut unfinished) {
                for (vector, &length) in grown.iter_mut().zip(&lengths) {
                    for _ in vector.len()..length.min(vector.len() + 16) {
                        vector.push(length as u64);
                    }
                    unfinished |= vector.len() < length;
                }
            }
            black_box(&grown);
        }
    });
}

/// The bytes that [`bytes`] and [`extend_one`] append at once.
const PIECE: [u8; 4096] = [0x5a; 4096];

/// Grows a few buffers to a large size, where `mremap` can save the copies.
pub(super) fn bytes(run: &mut Run) {
    let rounds: usize = run.pick(8, 1, 1);
    let pieces: usize = run.pick(2000, 2000, 10);
    let buffers = 4;
    run.time((rounds * buffers * pieces) as u64, || {
        for _ in 0..rounds {
            let mut grown: Vec<Vec<u8>> = vec![Vec::new(); buffers];
            for _ in 0..pieces {
                for buffer in &mut grown {
                    buffer.extend_from_slice(&PIECE);
                }
            }
            black_box(&grown);
        }
    });
}

/// Grows one vector byte by byte, to the size of the largest vectors in programs with much memory.
pub(super) fn push_one(run: &mut Run) {
    let length = far(run);
    run.time_once(length as u64, || {
        let mut grown = Vec::new();
        for index in 0..length {
            // Without the black box the compiler would know the capacity and reserve ahead.
            black_box(&mut grown).push(index as u8);
        }
    });
}

/// Grows the same vector page by page.
pub(super) fn extend_one(run: &mut Run) {
    let pieces = far(run) / PIECE.len();
    run.time_once(pieces as u64, || {
        let mut grown = Vec::new();
        for _ in 0..pieces {
            black_box(&mut grown).extend_from_slice(&PIECE);
        }
    });
}

/// Returns the final size of the one vector, in bytes.
fn far(run: &Run) -> usize {
    run.pick(1 << 30, 64 << 20, 64 << 10)
}
