//! The reason to stop.

use std::io;

use hayloft::report::AttachError;

/// The reason to stop, printed in one line.
#[derive(Debug)]
pub(crate) enum Failure {
    /// An error of the process.
    Attach(AttachError),
    /// An error of the terminal, or of the file that the output goes to.
    Output(io::Error),
    /// Any other error, in words.
    Other(String),
}

impl From<AttachError> for Failure {
    fn from(error: AttachError) -> Failure {
        Failure::Attach(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Output(error)
    }
}
