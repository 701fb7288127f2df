//! Checks the library itself: its exported symbols, and the instructions of the fast paths of
//! `malloc`, `free`, `new` and `delete`.
#![cfg(target_env = "gnu")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use common::{PACKAGE, libraries, text_of};

/// The exported names of the C standard, POSIX, glibc (including its internal names) and C++ (all
/// forms of `new` and `delete` lead to these). The functions of the header come in addition.
const STANDARD: &str = "malloc calloc realloc reallocarray free aligned_alloc posix_memalign memalign valloc pvalloc \
    malloc_usable_size malloc_trim mallinfo mallinfo2 malloc_info malloc_stats mallopt cfree free_sized free_aligned_sized \
    __libc_malloc __libc_calloc __libc_realloc __libc_reallocarray __libc_free __libc_memalign __libc_valloc __libc_pvalloc \
    __posix_memalign vfork setrlimit setrlimit64 prlimit prlimit64 \
    _Znwm _Znam _ZdlPv _ZdaPv _ZdlPvm _ZdaPvm";

/// Returns the names of the functions that the header declares.
fn declared() -> Vec<String> {
    let header =
        fs::read_to_string(format!("{PACKAGE}/include/hayloft.h")).expect("the header can be read");
    let code = header.split("/*").map(|part| part.split("*/").last().unwrap_or_default());
    let code: String = code.collect();
    let name = |before: &str| {
        before
            .rsplit(|letter: char| !(letter.is_alphanumeric() || letter == '_'))
            .next()
            .map(str::to_owned)
    };
    let calls = code.split('(').filter_map(name);
    calls.filter(|name| name.starts_with("hayloft_")).collect()
}

#[test]
fn exports_are_the_header_and_the_standard_names() {
    let library = libraries().join("libhayloft.so");
    let symbols =
        text_of(Command::new("nm").args(["-D", "--defined-only", "--format=posix"]).arg(library));
    let exported: BTreeSet<_> =
        symbols.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
    let declared = declared();
    assert!(declared.len() > 10, "{declared:?}");
    let wanted: BTreeSet<_> =
        STANDARD.split_whitespace().map(str::to_owned).chain(declared).collect();
    assert_eq!(exported, wanted);
}

/// Returns the instructions of the hit path of the function at `address`, up to its `ret`.
/// Conditional branches on the path are not taken. An unconditional jump leads to the miss path, so
/// the last branch before it is taken instead.
#[cfg(target_arch = "x86_64")]
fn hit_path(disassembly: &str, address: usize) -> Vec<String> {
    let parse = |line: &str| {
        let (at, instruction) = line.trim().split_once(":\t")?;
        Some((usize::from_str_radix(at, 16).ok()?, instruction.trim().to_owned()))
    };
    let lines = disassembly.lines().filter_map(parse).skip_while(|(at, _)| *at != address);
    let lines: Vec<_> = lines.take(60).collect();
    let mut path: Vec<String> = Vec::new();
    let mut at = 0;
    while let Some((_, instruction)) = lines.get(at) {
        if instruction.starts_with("jmp") {
            // The hit path takes the last branch.
            let branch = path
                .iter()
                .rposition(|instruction| instruction.starts_with('j'))
                .expect("a branch");
            let target = path[branch].split_whitespace().nth(1).expect("a target");
            let target = usize::from_str_radix(target, 16).expect("an address");
            path.truncate(branch + 1);
            at = lines
                .iter()
                .position(|(at, _)| *at == target)
                .expect("the target is among the lines");
            continue;
        }
        path.push(instruction.clone());
        if instruction.starts_with("ret") {
            return path;
        }
        at += 1;
    }
    panic!("no ret: {path:#?}");
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_hit_paths_are_short() {
    let library = libraries().join("libhayloft.so");
    let symbols =
        text_of(Command::new("nm").args(["-D", "--defined-only", "--format=posix"]).arg(&library));
    let disassembly = text_of(
        Command::new("objdump").args(["-d", "--no-show-raw-insn", "-M", "intel"]).arg(&library),
    );
    for (function, most) in [("malloc", 25), ("free", 30), ("_Znwm", 25), ("_ZdlPv", 30)] {
        let symbol =
            symbols.lines().find_map(|line| line.strip_prefix(function)?.strip_prefix(" T "));
        let address =
            symbol.and_then(|symbol| symbol.split(' ').next()).expect("the function is exported");
        let address = usize::from_str_radix(address, 16).expect("an address");
        let path = hit_path(&disassembly, address);
        println!("{function}: {} instructions", path.len());
        assert!(path.len() <= most, "{function}: {path:#?}");
        let starting = |prefix| path.iter().filter(|line| line.starts_with(prefix)).count();
        assert_eq!(starting("call") + starting("lock") + starting("push"), 0, "{path:#?}");
    }
}
