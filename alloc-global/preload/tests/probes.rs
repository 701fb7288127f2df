//! Checks the probes for tracers: the library has them if it was built with the feature `usdt`, and
//! they report correct arguments.
#![cfg(target_env = "gnu")]

mod common;

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use common::{BACKENDS, FOLDER, build, compile, is_installed, libraries, text_of};

/// Each probe and the number of its arguments.
const PROBES: [(&str, usize); 5] =
    [("alloc", 2), ("flush", 3), ("free", 1), ("refill", 3), ("slab", 3)];

/// Builds the library with probes and returns its folder.
fn with_probes() -> &'static Path {
    static BUILT: OnceLock<std::path::PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build("preload-usdt", "usdt"))
}

/// Returns the probes that `readelf` finds in a library: the provider, the name and the number of
/// arguments of each.
fn probes(library: &Path) -> HashSet<(String, String, usize)> {
    let notes = text_of(Command::new("readelf").args(["--notes", "--wide"]).arg(library));
    let mut found = HashSet::new();
    let (mut provider, mut name) = (String::new(), String::new());
    for line in notes.lines().map(str::trim) {
        if let Some((_, word)) = line.split_once("Provider: ") {
            word.clone_into(&mut provider);
        } else if let Some(word) = line.strip_prefix("Name: ") {
            word.clone_into(&mut name);
        } else if let Some(arguments) = line.strip_prefix("Arguments: ") {
            let count = arguments.split_whitespace().count();
            found.insert((provider.clone(), name.clone(), count));
        }
    }
    found
}

#[test]
fn notes_name_all_probes() {
    let expected = PROBES.map(|(name, arguments)| ("hayloft".into(), name.into(), arguments));
    assert_eq!(probes(&with_probes().join("libhayloft.so")), HashSet::from(expected));
    assert_eq!(probes(&libraries().join("libhayloft.so")), HashSet::new());
}

/// Lets gdb stop at each probe and print its arguments, and compares them with the program's own
/// output.
#[test]
fn probes_report_correct_arguments() {
    if !is_installed("gdb") {
        return;
    }
    let program = compile("cc", "probes.c", "probes", [""; 0]);
    for backend in BACKENDS {
        let mut script = format!(
            "set pagination off\nset confirm off\nset startup-with-shell off\n\
             set disable-randomization off\nset print thread-events off\n\
             set environment LD_PRELOAD {}\nset environment HAYLOFT_BACKEND {backend}\n\
             break main\nrun\n",
            with_probes().join("libhayloft.so").display()
        );
        for (name, arguments) in PROBES {
            let (format, values) = match arguments {
                1 => ("%p", "$_probe_arg0"),
                2 => ("%p %d", "$_probe_arg0, $_probe_arg1"),
                _ => ("%#lx %d %d", "$_probe_arg0, $_probe_arg1, $_probe_arg2"),
            };
            script += &format!(
                "break -probe-stap hayloft:{name}\ncommands\nsilent\n\
                 printf \"seen {name} {format}\\n\", {values}\ncontinue\nend\n"
            );
        }
        script += "continue\n";
        let path = format!("{FOLDER}/probes-{backend}.gdb");
        fs::write(&path, script).expect("the script can be written");
        let text =
            text_of(Command::new("gdb").args(["-nx", "-q", "-batch", "-x", &path]).arg(&program));
        let seen: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("seen ")).collect();
        let is_printed = |line: &&str| line.starts_with("alloc 0x") || line.starts_with("free 0x");
        let printed: Vec<_> = text.lines().filter(is_printed).collect();
        assert_eq!(printed.len(), 6, "{text}");
        for line in printed {
            assert!(seen.contains(&line), "{backend}: no probe reported `{line}`: {text}");
        }
        let of = |name: &str| -> Vec<Vec<u64>> {
            let lines = seen.iter().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            let number = |word: &str| match word.strip_prefix("0x") {
                Some(digits) => u64::from_str_radix(digits, 16).expect("a number"),
                None => word.parse().expect("a number"),
            };
            lines.map(|line| line.split(' ').map(number).collect()).collect()
        };
        assert!(of("alloc").iter().filter(|block| block[1] == 48).count() >= 2000);
        let (refill, flush, slab) = (of("refill"), of("flush"), of("slab"));
        let objects = |moves: &[Vec<u64>]| -> u64 {
            moves.iter().filter(|made| made[0] == 48).map(|made| made[1]).sum()
        };
        assert!(objects(&refill) >= 2000, "{refill:?}");
        // Up to 256 objects stay in the sheaf and are not flushed.
        assert!(objects(&flush) >= 2000 - 256, "{flush:?}");
        // 2000 objects of 48 bytes fill two units.
        let new: Vec<_> = slab.iter().filter(|slab| slab[2] == 1).collect();
        assert!(new.len() >= 4 && new.iter().all(|slab| slab[0] % 65536 == 0), "{slab:?}");
        assert!(slab.iter().all(|slab| slab[1] % 65536 == 0 && slab[1] > 0 && slab[2] < 2));
    }
}
