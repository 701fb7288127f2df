//! Heap profiles.
//!
//! | module | holds |
//! |---|---|
//! | [`pprof`] | the file format: samples, locations, strings, in a stream |
//! | `mappings` | executable mappings of the process, with build IDs |
//! | `gzip` | compression |
//! | `scratch` | memory for the duration of a call |
//!
//! A module imports only from lower rows.
//!
//! [`pprof::write`] is complete in itself: it takes what to write as arguments and keeps no state
//! between calls, so it may run in any context, also in several threads and interrupted by itself.

mod gzip;
mod mappings;
pub mod pprof;
mod scratch;
