//! The reason to stop.

use std::io;

/// The reason to stop, printed in one line.
#[derive(Debug)]
pub(crate) enum Failure {
    /// An error of standard output.
    Output(io::Error),
    /// An argument that does not suit the file, in words.
    Usage(String),
    /// Any other error, in words.
    Other(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Output(error)
    }
}
