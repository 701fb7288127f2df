//! The standard collections, with keys and values that own memory themselves.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::hint::black_box;

use crate::prng::Prng;
use crate::run::Run;

/// The standard hasher with a fixed seed: all runs do the same work.
type FixedSeed = BuildHasherDefault<DefaultHasher>;

/// Maintains an index from words to the places where they occur.
pub(super) fn hash_map(run: &mut Run) {
    let steps: u64 = run.pick(600_000, 60_000, 1000);
    let keys = run.pick(50_000, 50_000, 100);
    let mut prng = Prng::new(29);
    let mut index: HashMap<String, Vec<u32>, FixedSeed> = HashMap::default();
    run.time(steps, || {
        for step in 0..steps {
            let key = format!("key-{:x}", prng.below(keys) * 2_654_435);
            match prng.below(4) {
                0 => drop(index.remove(&key)),
                1 => {
                    black_box(index.get(&key).map(Vec::len));
                }
                _ => index.entry(key).or_default().push(step as u32),
            }
        }
    });
}

/// Maintains an ordered store of values of many sizes, and reads it by range.
pub(super) fn btree_map(run: &mut Run) {
    let steps: u64 = run.pick(400_000, 40_000, 1000);
    let keys = run.pick(50_000, 50_000, 100);
    let mut prng = Prng::new(31);
    let mut store: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    run.time(steps, || {
        for _ in 0..steps {
            let key = format!("{:012}", prng.below(keys) * 2_654_435);
            match prng.below(4) {
                0 => drop(store.remove(&key)),
                1 => {
                    let next: Vec<String> =
                        store.range(key..).take(4).map(|(key, _)| key.clone()).collect();
                    black_box(next);
                }
                _ => drop(store.insert(key, vec![1; 1 + prng.below(300)])),
            }
        }
    });
}

/// Splits lines of text into words and fields, and joins them again.
pub(super) fn strings(run: &mut Run) {
    let lines: u64 = run.pick(150_000, 10_000, 100);
    let mut prng = Prng::new(37);
    let mut recent: Vec<String> = vec![String::new(); 256];
    run.time(lines, || {
        for number in 0..lines {
            let line = format!(
                "{number},{},{:>8},{:.3},some words to be split",
                prng.next(),
                prng.below(9999),
                prng.below(100) as f64 / 7.0
            );
            let fields: Vec<String> = line.split(',').map(str::trim).map(str::to_owned).collect();
            let words: Vec<String> = fields[4].split(' ').map(str::to_uppercase).collect();
            let mut joined = fields[..4].join(";");
            joined.push_str(&words.join("-").replace('O', "00"));
            let slot = prng.below(recent.len());
            recent[slot] = joined;
        }
    });
    black_box(recent);
}
