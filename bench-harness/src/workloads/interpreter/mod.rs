//! A tree-walking interpreter of a small Lisp: boxed syntax trees, reference-counted values, and a
//! hash map of variables for every call. Scripting languages inside Rust programs allocate like
//! this.
//!
//! | module | holds |
//! |---|---|
//! | `eval` `parse` | evaluating a syntax tree; parsing text to one |
//! | `tree` | syntax trees |

mod eval;
mod parse;
mod tree;

use self::eval::{Environment, Interpreter};
use crate::run::Run;

/// Programs that use recursion, lists, strings and closures. Each refers to a number `n`.
const PROGRAMS: [&str; 4] = [
    "(let fib (fn (self n)
        (if (< n 2) n (+ (self self (- n 1)) (self self (- n 2)))))
      (fib fib n))",
    "(let range (fn (self n) (if (< n 1) nil (pair n (self self (- n 1)))))
      (let map (fn (self f list)
          (if (= list nil) nil (pair (f (first list)) (self self f (rest list)))))
        (let sum (fn (self list) (if (= list nil) 0 (+ (first list) (self self (rest list)))))
          (sum sum (map map (fn (x) (* x x)) (map map (fn (x) (+ x n)) (range range (* n 20))))))))",
    "(let repeat (fn (self n text)
        (if (< n 1) text (self self (- n 1) (join \"<\" (join text \">\")))))
      (length (repeat repeat (* n 10) \"nested\")))",
    "(let compose (fn (f g) (fn (x) (g (f x))))
      (let power (fn (self f n) (if (< n 1) (fn (x) x) (compose f (self self f (- n 1)))))
        ((power power (fn (x) (+ x 1)) (* n 20)) 0)))",
];

pub(super) fn run(run: &mut Run) {
    let rounds: u64 = run.pick(100, 10, 1);
    // Counted once, since every round makes the same number of calls.
    let mut counter = Interpreter::default();
    execute_all(&mut counter);
    let calls = counter.calls();
    run.time(rounds * calls, || {
        for _ in 0..rounds {
            execute_all(&mut Interpreter::default());
        }
    });
}

/// Parses and runs all programs.
fn execute_all(interpreter: &mut Interpreter) -> Vec<i64> {
    let execute = |source: &&str| {
        let program = parse::parse(source);
        let globals = Environment::global("n", 15);
        interpreter.evaluate(&program, &globals).number()
    };
    PROGRAMS.iter().map(execute).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Results of the programs for `n` = 15.
    const RESULTS: [i64; 4] = [610, 10_467_050, 306, 300];

    #[test]
    fn programs_compute_the_expected_results() {
        assert_eq!(execute_all(&mut Interpreter::default()), RESULTS);
    }
}
