//! What the whole-program tests share.
//!
//! Each test file beside this folder is a program of its own with Hayloft as its global allocator.
//! Hayloft settles once per process which backend it uses, and some scenarios end the process or
//! starve it of memory, so most test bodies run in a child process: see [`scenario`].
//!
//! | module       | what it is                                                        |
//! |--------------|-------------------------------------------------------------------|
//! | [`scenario`] | this test again, in a child process, on a chosen backend          |
//! | [`model`]    | the naive model: every live block, in a table outside the heap    |
//! | [`pattern`]  | contents that can be worked out again from a number               |
//! | [`everywhere`] | blocks that come to every slow path, in any context                  |
//! | [`hoard`]    | as many blocks as there may be                                    |
//! | [`routes`]   | the two ways into the allocator                                   |
//! | [`sizes`]    | the sizes where something changes                                 |
//! | [`sysfs`]    | nodes that this machine does not have, CPUs that it has           |
//! | [`cgroup`]   | cgroups that keep a process to some CPUs, or to so much memory    |
//! | [`process`]  | what the kernel says about this process, and limits put on it     |

use std::io::{self, Write as _};

/// Says what is not tested here, and why: past what captures the output of a test, so that everybody sees it.
pub fn skipped(what: &str, why: &str) {
    // Who sees nothing of it misses nothing else.
    let _ = writeln!(io::stderr(), "skipped: {what}: {why}");
}

pub mod cgroup;
pub mod everywhere;
pub mod hoard;
pub mod model;
pub mod pattern;
pub mod process;
pub mod routes;
pub mod scenario;
pub mod sizes;
pub mod sysfs;
