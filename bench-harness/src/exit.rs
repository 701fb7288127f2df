//! The end of a program: its exit code, and the error that it prints.

use std::process::ExitCode;

/// Converts the outcome of a `main` to its exit code, which is 1 for an error and for `Ok(false)`.
/// Prints the error.
pub(crate) fn code(outcome: Result<bool, String>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// Prints an error to standard error.
pub(crate) fn complain(error: &str) {
    eprintln!("{} {error}", console::style("error:").for_stderr().red().bold());
}
