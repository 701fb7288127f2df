//! Irq work and the CPU threads that run it. The table lists the modules from top to bottom. A
//! module imports only from lower rows:
//!
//! | module | holds |
//! |---|---|
//! | [`work`] | work for a CPU, queued from any context |
//! | `thread` | the CPU threads: real threads, each pinned to a CPU |

#[cfg(not(loom))]
pub(crate) mod thread;
pub mod work;
