//! Traces: the requests that each thread of a program makes to its allocator, in order.
//!
//! A trace identifies blocks by numbers. So the same thread frees the same block, whichever
//! allocator serves the trace. A thread that frees another thread's block waits until that block is
//! allocated. The order between threads is kept where it matters, and only there.
//!
//! Rules make traces for any number of threads, like the workloads of the same names. Other traces
//! are recorded from a program (`record`), and then repeated by as many groups of threads as
//! needed.

use std::io::{Read, Write};

use hayloft_core::size_class::{CLASSES, Class, class_of};
use serde::{Deserialize, Serialize};

use crate::prng::Prng;

/// An operation of a thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    /// Allocates the block of this number.
    Alloc(u32),
    /// Frees the block of this number.
    Free(u32),
    /// Waits until the block of this number is freed.
    Await(u32),
}

/// An [`Op`] in one word: the two highest bits hold the operation, the others the number of the
/// block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Packed(u32);

const NUMBER_BITS: u32 = 30;

impl From<Op> for Packed {
    fn from(op: Op) -> Self {
        let (kind, number) = match op {
            Op::Alloc(number) => (0, number),
            Op::Free(number) => (1, number),
            Op::Await(number) => (2, number),
        };
        assert!(number < 1 << NUMBER_BITS, "a trace of too many blocks");
        Self(kind << NUMBER_BITS | number)
    }
}

impl Packed {
    /// Returns the operation.
    #[inline(always)]
    pub fn op(self) -> Op {
        let number = self.0 & ((1 << NUMBER_BITS) - 1);
        match self.0 >> NUMBER_BITS {
            0 => Op::Alloc(number),
            1 => Op::Free(number),
            _ => Op::Await(number),
        }
    }
}

/// The operations of one thread.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Thread {
    /// All operations.
    pub ops: Vec<Packed>,
    /// Number of operations before the timed part. All threads wait for each other there.
    pub mark: usize,
}

/// The operations of all threads.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Trace {
    /// Threads.
    pub threads: Vec<Thread>,
    /// Size class of each block, by its number.
    pub classes: Vec<u8>,
}

impl Trace {
    /// Returns the number of pairs of an allocation and a free in the timed part: half of its
    /// operations.
    pub fn pairs(&self) -> f64 {
        let timed = |thread: &Thread| {
            let is_real = |op: &&Packed| !matches!(op.op(), Op::Await(_));
            thread.ops[thread.mark..].iter().filter(is_real).count()
        };
        self.threads.iter().map(timed).sum::<usize>() as f64 / 2.0
    }

    /// Returns the same trace for `groups` groups of threads that are independent of each other.
    pub fn repeated(&self, groups: usize) -> Self {
        let blocks = self.classes.len() as u32;
        let shifted = |group: u32| {
            self.threads.iter().map(move |thread| {
                let shift = |packed: &Packed| {
                    Packed::from(match packed.op() {
                        Op::Alloc(number) => Op::Alloc(number + group * blocks),
                        Op::Free(number) => Op::Free(number + group * blocks),
                        Op::Await(number) => Op::Await(number + group * blocks),
                    })
                };
                Thread { ops: thread.ops.iter().map(shift).collect(), mark: thread.mark }
            })
        };
        Self {
            threads: (0..groups as u32).flat_map(shifted).collect(),
            classes: self.classes.repeat(groups),
        }
    }

    /// Writes the trace in a compact form.
    ///
    /// # Errors
    ///
    /// Describes the failure to serialise or to write.
    pub fn save(&self, to: &mut impl Write) -> Result<(), String> {
        let bytes = postcard::to_stdvec(self).map_err(|error| error.to_string())?;
        to.write_all(&bytes).map_err(|error| error.to_string())
    }

    /// Reads a trace that [`save`](Self::save) wrote.
    ///
    /// # Errors
    ///
    /// Describes why the content is no valid trace, or a failure to read.
    pub fn load(from: &mut impl Read) -> Result<Self, String> {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        let trace: Self = postcard::from_bytes(&bytes).map_err(|error| error.to_string())?;
        trace.check()?;
        Ok(trace)
    }

    /// Checks that each block is allocated once, and freed at most once.
    fn check(&self) -> Result<(), String> {
        let mut seen = vec![(false, false); self.classes.len()];
        for thread in &self.threads {
            if thread.mark > thread.ops.len() {
                return Err("a mark beyond the end".to_owned());
            }
            for packed in &thread.ops {
                let (Op::Alloc(number) | Op::Free(number) | Op::Await(number)) = packed.op();
                let Some((allocated, freed)) = seen.get_mut(number as usize) else {
                    return Err(format!("block {number} has no class"));
                };
                let again = match packed.op() {
                    Op::Alloc(_) => std::mem::replace(allocated, true),
                    Op::Free(_) => std::mem::replace(freed, true),
                    Op::Await(_) => false,
                };
                if again {
                    return Err(format!("block {number} is allocated or freed twice"));
                }
            }
        }
        if self.classes.iter().any(|class| usize::from(*class) >= CLASSES) {
            return Err("a class that there is not".to_owned());
        }
        match seen.iter().position(|(allocated, freed)| *freed && !allocated) {
            Some(number) => Err(format!("block {number} is freed and never allocated")),
            None => Ok(()),
        }
    }
}

/// A trace under construction.
pub struct Maker(Trace);

impl Maker {
    /// Starts a trace of `threads` threads.
    pub fn new(threads: usize) -> Self {
        Self(Trace { threads: vec![Thread::default(); threads], classes: Vec::new() })
    }

    /// Adds an allocation of a class on a thread, and returns the number of the block.
    pub fn alloc(&mut self, thread: usize, class: Class) -> u32 {
        let number = self.0.classes.len() as u32;
        self.0.classes.push(class.index() as u8);
        self.0.threads[thread].ops.push(Op::Alloc(number).into());
        number
    }

    /// Adds a free of a block on a thread.
    pub fn free(&mut self, thread: usize, number: u32) {
        self.0.threads[thread].ops.push(Op::Free(number).into());
    }

    /// Adds a wait on a thread, until a block is freed.
    pub fn wait_for(&mut self, thread: usize, number: u32) {
        self.0.threads[thread].ops.push(Op::Await(number).into());
    }

    /// Starts the timed part of a thread here.
    pub fn mark(&mut self, thread: usize) {
        self.0.threads[thread].mark = self.0.threads[thread].ops.len();
    }

    /// Returns the trace.
    pub fn finish(self) -> Trace {
        self.0
    }
}

/// Returns the class of a block of `size` bytes, at most
/// [`MAX_MIDDLE`](hayloft_core::size_class::MAX_MIDDLE).
pub fn class_of_size(size: usize) -> Class {
    let layout = std::alloc::Layout::from_size_align(size, 8).expect("a size that a class serves");
    class_of(layout).expect("a size that a class serves")
}

/// A rule that makes traces.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Name in arguments and tables.
    pub name: &'static str,
    /// Description of one line.
    pub about: &'static str,
    /// Size of a group of threads. The number of threads is a multiple of it, or one.
    pub group: usize,
    /// Makes a trace of this number of threads.
    pub make: fn(usize) -> Trace,
}

/// All rules.
#[rustfmt::skip]
pub static RULES: &[Rule] = &[
    Rule { name: "pair", group: 1, make: pair, about: "allocate and free 64 B" },
    Rule { name: "churn", group: 1, make: churn, about: "replace a random one of 5000 blocks of 1 to 1000 B per thread" },
    Rule { name: "batch", group: 1, make: batch, about: "allocate 10 000 × 64 B, free the last first" },
    Rule { name: "phases", group: 1, make: phases, about: "fill 2 MB per thread with one size, free 99 %, then the next size" },
    Rule { name: "handoff", group: 2, make: handoff, about: "pairs of threads: one allocates 64 B, the other frees it" },
    Rule { name: "exchange", group: 1, make: exchange, about: "all threads swap blocks through 2500 shared slots per thread" },
];

/// Returns the rule called `name`.
///
/// # Errors
///
/// Lists the known names if `name` is not among them.
pub fn rule(name: &str) -> Result<&'static Rule, String> {
    RULES.iter().find(|rule| rule.name == name).ok_or_else(|| {
        let names: Vec<&str> = RULES.iter().map(|rule| rule.name).collect();
        format!("no rule is called {name}; there are: {}", names.join(", "))
    })
}

fn pair(threads: usize) -> Trace {
    let mut maker = Maker::new(threads);
    for thread in 0..threads {
        for pair in 0..30_000 {
            if pair == 10_000 {
                maker.mark(thread);
            }
            let number = maker.alloc(thread, class_of_size(64));
            maker.free(thread, number);
        }
    }
    maker.finish()
}

fn churn(threads: usize) -> Trace {
    const SLOTS: usize = 5000;
    const LARGEST: usize = 1000;
    let mut maker = Maker::new(threads);
    for thread in 0..threads {
        let mut prng = Prng::new(thread as u64 * 77 + 5);
        let block = |maker: &mut Maker, prng: &mut Prng| {
            maker.alloc(thread, class_of_size(1 + prng.below(LARGEST)))
        };
        let mut slots: Vec<u32> = (0..SLOTS).map(|_| block(&mut maker, &mut prng)).collect();
        // The replacements before the mark shuffle the slots, which filling left in order.
        for replacement in 0..40_000 {
            if replacement == 15_000 {
                maker.mark(thread);
            }
            let slot = prng.below(SLOTS);
            let number = block(&mut maker, &mut prng);
            maker.free(thread, std::mem::replace(&mut slots[slot], number));
        }
    }
    maker.finish()
}

fn batch(threads: usize) -> Trace {
    bursts(threads, class_of_size(64), 10_000, 1, 4)
}

/// Makes a trace in which each thread allocates `count` blocks of a class and frees them in the
/// opposite order. It does so `warm` times untimed, then `timed` times.
pub fn bursts(threads: usize, class: Class, count: usize, warm: usize, timed: usize) -> Trace {
    let mut maker = Maker::new(threads);
    for thread in 0..threads {
        for burst in 0..warm + timed {
            if burst == warm {
                maker.mark(thread);
            }
            let numbers: Vec<u32> = (0..count).map(|_| maker.alloc(thread, class)).collect();
            numbers.into_iter().rev().for_each(|number| maker.free(thread, number));
        }
    }
    maker.finish()
}

/// Does the same as [`bursts`] for one thread, but frees in random order.
pub fn shuffled_bursts(class: Class, count: usize, warm: usize, timed: usize) -> Trace {
    let mut maker = Maker::new(1);
    let mut prng = Prng::new(7);
    for burst in 0..warm + timed {
        if burst == warm {
            maker.mark(0);
        }
        let mut numbers: Vec<u32> = (0..count).map(|_| maker.alloc(0, class)).collect();
        while !numbers.is_empty() {
            let number = numbers.swap_remove(prng.below(numbers.len()));
            maker.free(0, number);
        }
    }
    maker.finish()
}

fn phases(threads: usize) -> Trace {
    const SIZES: [usize; 5] = [32, 192, 1024, 80, 4096];
    const BYTES: usize = 2_000_000;
    let mut maker = Maker::new(threads);
    for thread in 0..threads {
        for round in 0..2 {
            if round == 1 {
                maker.mark(thread);
            }
            let mut survivors = Vec::new();
            for size in SIZES {
                let class = class_of_size(size);
                let burst: Vec<u32> =
                    (0..BYTES / size).map(|_| maker.alloc(thread, class)).collect();
                for (index, number) in burst.into_iter().enumerate() {
                    if index % 100 == 0 {
                        survivors.push(number);
                    } else {
                        maker.free(thread, number);
                    }
                }
            }
            survivors.into_iter().for_each(|number| maker.free(thread, number));
        }
    }
    maker.finish()
}

fn handoff(threads: usize) -> Trace {
    /// Blocks in a batch. `DEPTH` bounds the batches in transit.
    const BATCH: usize = 1000;
    const DEPTH: usize = 16;
    const BATCHES: usize = 60;
    let mut maker = Maker::new(threads);
    for producer in (0..threads).step_by(2) {
        // A thread without a partner consumes its own batches.
        let consumer = if producer + 1 < threads { producer + 1 } else { producer };
        let mut batches: Vec<Vec<u32>> = Vec::new();
        for batch in 0..BATCHES {
            if batch == BATCHES / 3 {
                maker.mark(producer);
                maker.mark(consumer);
            }
            if batch >= DEPTH {
                maker.wait_for(producer, batches[batch - DEPTH][BATCH - 1]);
            }
            let numbers: Vec<u32> =
                (0..BATCH).map(|_| maker.alloc(producer, class_of_size(64))).collect();
            numbers.iter().for_each(|number| maker.free(consumer, *number));
            batches.push(numbers);
        }
    }
    maker.finish()
}

fn exchange(threads: usize) -> Trace {
    let count = 2500 * threads;
    let mut maker = Maker::new(threads);
    let class = |slot: usize| class_of_size(16 + slot * 37 % 988);
    let mut prngs: Vec<Prng> = (0..threads).map(|thread| Prng::new(thread as u64 + 1)).collect();
    let mut slots: Vec<u32> =
        (0..count).map(|slot| maker.alloc(slot % threads, class(slot))).collect();
    for round in 0..40_000 {
        for (thread, prng) in prngs.iter_mut().enumerate() {
            if round == 15_000 {
                maker.mark(thread);
            }
            let slot = prng.below(count);
            let number = maker.alloc(thread, class(slot));
            maker.free(thread, std::mem::replace(&mut slots[slot], number));
        }
    }
    maker.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_make_valid_repeatable_traces() {
        for rule in RULES {
            for threads in [1, 2, 4] {
                let trace = (rule.make)(threads);
                assert_eq!(trace.check(), Ok(()), "{}", rule.name);
                assert_eq!(trace.threads.len(), threads);
                assert!(trace.pairs() > 1000.0, "{}", rule.name);
                assert!(trace == (rule.make)(threads), "{}", rule.name);
            }
        }
    }

    #[test]
    fn saved_trace_can_be_loaded() {
        let trace = handoff(2);
        let mut file = Vec::new();
        trace.save(&mut file).unwrap();
        assert!(Trace::load(&mut file.as_slice()).unwrap() == trace);
        assert!(Trace::load(&mut &file[..10]).is_err());
    }

    #[test]
    fn repeated_traces_share_no_blocks() {
        let trace = handoff(2).repeated(3);
        assert_eq!(trace.check(), Ok(()));
        assert_eq!(trace.threads.len(), 6);
    }
}
