//! Shared helpers of the whole-program tests.
//!
//! Each test file beside this folder is a program of its own, with Hayloft as its global allocator.
//! Hayloft decides on a backend once per process, and some scenarios end the process or exhaust its
//! memory. Most test bodies therefore run in a child process: see [`scenario`].
//!
//! | module           | contents                                                         |
//! |------------------|------------------------------------------------------------------|
//! | [`scenario`]     | reruns the current test in a child process, on a chosen backend  |
//! | [`model`]        | the naive model: every live block, in a table outside the heap   |
//! | [`pattern`]      | block contents that are recomputed from a number                 |
//! | [`slow_paths`]   | allocation patterns that reach every slow path, in any context   |
//! | [`fork`]         | a checked `fork`, and work for parent and child after it         |
//! | [`block_stack`]  | stacks of as many blocks as memory allows                        |
//! | [`caches`]       | caches of their own class, and objects with checked contents     |
//! | [`entry_points`] | `std::alloc` and the methods of `GlobalAlloc`                    |
//! | [`sizes`]        | sizes and layouts, among them all boundaries of size classes     |
//! | [`sysfs`]        | made-up NUMA nodes, and pinning to CPUs                          |
//! | [`cgroup`]       | cgroups that confine a process to some CPUs or limit its memory  |
//! | [`process`]      | the kernel's figures on this process, and limits on it           |
//! | [`reclaim`]      | bursts of memory, and waiting for it to return to the system     |
//! | [`temporary`]    | files and folders that are removed after a test                  |

use std::io::{self, Write as _};

/// Reports that `what` is not tested here, and `why`. Bypasses the capture of test output, so that
/// the line always appears.
pub fn skipped(what: &str, why: &str) {
    // A closed standard error is no reason to fail the test.
    let _ = writeln!(io::stderr(), "skipped: {what}: {why}");
}

pub mod block_stack;
pub mod caches;
pub mod cgroup;
pub mod entry_points;
pub mod fork;
pub mod model;
pub mod pattern;
pub mod process;
pub mod reclaim;
pub mod scenario;
pub mod sizes;
pub mod slow_paths;
pub mod sysfs;
pub mod temporary;
