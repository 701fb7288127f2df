//! `HAYLOFT_VERBOSE=1`: a line on standard error at the start, which says that Hayloft is active
//! and what is in force.
//!
//! The loader runs this once for each program or library with Hayloft. So the children of forks do
//! not repeat the line, and even a program that allocates nothing writes it. The first slow path
//! would select the backend; this selects it earlier.

use core::fmt;

use crate::percpu::{self, Backend};
use crate::settings::{self, Name, NameIn, Origin};
use crate::stats::Bytes;
use crate::sync::Context;
use crate::text::{self, Shown};

/// Bytes of the longest line: room for all settings, with values as long as a message shows.
const ROOM: usize = 2048;

/// Writes the line, if it is requested.
#[cold]
pub(super) fn announce() {
    // The invoker of a privileged program learns nothing of its settings.
    if settings::flag(Name::Verbose) != Some(true) || settings::is_privileged() {
        return;
    }
    let version = env!("CARGO_PKG_VERSION");
    let backend = match Context::enter(percpu::backend) {
        Backend::Rseq => "rseq, registered by the C library",
        Backend::OwnRseq => "rseq, registered by Hayloft",
        Backend::Locked => "fallback",
        Backend::Undecided => "undecided",
    };
    let limit = Limit(settings::limit());
    text::write_line::<ROOM>(format_args!(
        "active, version {version}; backend: {backend}; limit: {limit}{}{}",
        Changed(Origin::Environment),
        Changed(Origin::Program),
    ));
}

/// Formats the hard limit.
struct Limit(Option<settings::Limit>);

impl fmt::Display for Limit {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(limit) => Bytes(limit.hard as usize).fmt(to),
            None => to.write_str("none"),
        }
    }
}

/// Formats the settings that are not at their defaults, with where they are set.
struct Changed(Origin);

impl fmt::Display for Changed {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = match self.0 {
            Origin::Environment => "; environment: ",
            Origin::Program => "; program: ",
        };
        settings::changed(self.0).try_for_each(|(setting, text)| {
            let name = NameIn(self.0, setting);
            write!(to, "{separator}{name}={}", Shown(text.as_bytes()))?;
            separator = ", ";
            Ok(())
        })
    }
}
