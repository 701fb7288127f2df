//! Growth by `realloc`: vectors and buffers that do not know how large they will become.

use std::hint::black_box;

use crate::engine::Run;
use crate::prng::Prng;

/// Many vectors grow in turn, so none can grow in place for ever.
pub(super) fn vectors(run: &mut Run) {
    let rounds: usize = run.pick(10, 2, 1);
    let vectors: usize = run.pick(1000, 1000, 10);
    // Lengths from 16 to 4096 elements, known beforehand so that they are not part of the time.
    let mut prng = Prng::new(7);
    let lengths: Vec<usize> = (0..vectors).map(|_| prng.geometric(16, 4096)).collect();
    let pushes = rounds * lengths.iter().sum::<usize>();
    run.time(pushes as u64, || {
        for _ in 0..rounds {
            let mut grown: Vec<Vec<u64>> = vec![Vec::new(); vectors];
            // Sixteen elements each per turn.
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

/// What [`bytes`] and [`extend_one`] append at once.
const PIECE: [u8; 4096] = [0x5a; 4096];

/// A few buffers grow far: where `mremap` can save the copies.
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

/// One vector grows as far as one does in a program with much memory, byte by byte.
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

/// The same, page by page.
pub(super) fn extend_one(run: &mut Run) {
    let pieces = far(run) / PIECE.len();
    run.time_once(pieces as u64, || {
        let mut grown = Vec::new();
        for _ in 0..pieces {
            black_box(&mut grown).extend_from_slice(&PIECE);
        }
    });
}

/// How far one vector grows.
fn far(run: &Run) -> usize {
    run.pick(1 << 30, 64 << 20, 64 << 10)
}
