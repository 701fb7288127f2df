//! Loom models of the state that several CPUs share.
//!
//! Run by `RUSTFLAGS="--cfg loom" cargo test -p hayloft-core --release --lib models`. Constants are
//! small here, so that edge cases are reached. Some models show what this project must not do: they
//! pass when loom finds the fault.

mod grace;
mod irq_work;
mod reserve;
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

/// Runs `body` on `count` threads at once, with numbers from 1 on.
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

/// Runs a model in which loom must find a fault: the model dies with `expected` in its message. It
/// runs in a process of its own, since unwinding out of loom may panic once more and abort.
fn loom_finds(expected: &str, test: &str, model: impl Fn() + Sync + Send + 'static) {
    const CHILD: &str = "HAYLOFT_BROKEN_MODEL";
    if std::env::var_os(CHILD).is_some() {
        return loom::model(model);
    }
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    // Three preemptions are enough for every fault that a model shows.
    child.args(["--exact", "--nocapture", test]).env(CHILD, "").env("LOOM_MAX_PREEMPTIONS", "3");
    let output = child.output().unwrap();
    let stderr = std::string::String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && stderr.contains(expected),
        "loom did not find {expected:?}: {stderr}"
    );
}
