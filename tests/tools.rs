//! Lists the tools that other tests lacked. As the last test it repeats their lines, which are far
//! up in the output by then.

use std::env;

use tests::skipped;

#[test]
fn missing_tools_are_listed() {
    let path = env::var_os("PATH").unwrap_or_default();
    for (tool, what) in [
        ("gdb", "probes under a debugger"),
        ("tmux", "hayloft-top in a terminal"),
        ("c++", "operators new and delete, and the header in C++"),
    ] {
        if !env::split_paths(&path).any(|folder| folder.join(tool).is_file()) {
            skipped(what, &format!("{tool} is not installed"));
        }
    }
}
