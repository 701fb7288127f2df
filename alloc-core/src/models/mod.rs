//! Loom models of the state that several CPUs share.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p alloc-core --release --lib models`; constants are small here, so that edges are hit.
//! A model of what this project must not do passes when loom finds what is wrong with it.

mod grace;
mod irq_work;
mod slabs;
mod sync;

use loom::sync::Arc;
use loom::thread;
use std::vec::Vec;

fn address(number: usize) -> *mut u8 {
    core::ptr::without_provenance_mut(number)
}

/// Runs `body` on two threads at once.
fn race(body: impl Fn(usize) + Send + Sync + 'static) {
    race_of(2, body);
}

/// Runs `body` on some threads at once, numbered from 1 on.
fn race_of(count: usize, body: impl Fn(usize) + Send + Sync + 'static) {
    let body = Arc::new(body);
    let threads: Vec<_> = (1..=count)
        .map(|number| {
            let body = body.clone();
            thread::spawn(move || body(number))
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

/// Runs a model in which loom must find something wrong: it dies of `expected`. In a process of its own, since what loom
/// unwinds may panic once more and abort.
fn loom_finds(expected: &str, test: &str, model: impl Fn() + Sync + Send + 'static) {
    const CHILD: &str = "HAYLOFT_BROKEN_MODEL";
    if std::env::var_os(CHILD).is_some() {
        return loom::model(model);
    }
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    // What is found with few preemptions is found.
    child.args(["--exact", "--nocapture", test]).env(CHILD, "").env("LOOM_MAX_PREEMPTIONS", "3");
    let output = child.output().unwrap();
    let said = std::string::String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains(expected), "loom found nothing: {said}");
}
