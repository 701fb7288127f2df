//! Repeats, as the last test, which tools other tests lacked: their own lines are far up in the
//! output by then.

use std::env;

use tests::skipped;

#[test]
fn tools_that_are_not_installed() {
    let path = env::var_os("PATH").unwrap_or_default();
    for (tool, what) in [
        ("gdb", "probes as a debugger sees them"),
        ("tmux", "hayloft-top in a terminal"),
        ("c++", "operators new and delete, and the header in C++"),
    ] {
        if !env::split_paths(&path).any(|folder| folder.join(tool).is_file()) {
            skipped(what, &format!("{tool} is not installed"));
        }
    }
}
