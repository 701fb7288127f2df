//! Compiles and runs small programs in C and C++ that check each rule of each function, on both
//! backends, with the library preloaded and linked.
#![cfg(target_env = "gnu")]

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{
    BACKENDS, FOLDER, compile, is_there, libraries, output_of, preloaded, skipped, text_of,
};

const NOTHING: [&str; 0] = [];
/// Compiler flags for C++. The tests of a failing `new` ignore its result.
const CXX: [&str; 2] = ["-std=c++17", "-Wno-unused-result"];

/// Runs each check of `program` on both backends, with the command that `command` makes for a
/// backend.
fn run_checks(program: &Path, command: impl Fn(&str) -> Command) {
    let names = text_of(Command::new(program).env("LD_LIBRARY_PATH", libraries()));
    assert!(names.lines().count() > 1, "{names}");
    for backend in BACKENDS {
        for name in names.lines() {
            output_of(command(backend).arg(name));
        }
    }
}

fn check_preloaded(program: &Path) {
    run_checks(program, |backend| preloaded(program, backend));
}

/// Runs each check of `program` on both backends, without preloading. The library is linked, or is
/// found by `dlopen`.
fn check_linked(program: &Path) {
    run_checks(program, |backend| {
        let mut command = Command::new(program);
        command.env("HAYLOFT_BACKEND", backend).env("LD_LIBRARY_PATH", libraries());
        command
    });
}

#[test]
fn rules() {
    check_preloaded(&compile("cc", "rules.c", "rules", NOTHING));
}

/// Checks that each mistake ends the process by SIGABRT, with one message that names the address
/// and the mistake.
#[test]
fn mistakes() {
    let program = compile("cc", "mistakes.c", "mistakes", NOTHING);
    let names = text_of(Command::new(&program).env("LD_LIBRARY_PATH", libraries()));
    assert!(names.lines().count() > 10, "{names}");
    for (backend, name) in
        BACKENDS.iter().flat_map(|backend| names.lines().map(move |name| (backend, name)))
    {
        let output = preloaded(&program, backend).arg(name).output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stdout);
        let message = String::from_utf8_lossy(&output.stderr);
        let all = format!("{name} ({backend}): {}\n{said}{message}", output.status);
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{all}");
        let address =
            said.lines().find_map(|line| line.strip_prefix("address ")).expect("it is told");
        let words: &[&str] = match name {
            _ if name.starts_with("twice") => &["double free", "class 112"],
            "by_another_name" => &["double free", "class 112"],
            "many_of_another_cache" => &["as one of a cache", "it is one of a cache"],
            "many_inside" => &["no object starts", "a cache of objects of 48"],
            "many_of_no_cache" => &["foreign address", "a cache of objects of 48"],
            "inside" => &["no object starts there", "class 64"],
            "inside_odd" => &["no object starts there", "class 112"],
            "inside_long" => &["no object starts there", "class 30720"],
            "resized_inside" | "size_inside" => &["no object starts there", "class 1024"],
            _ => &["foreign"],
        };
        // Of many misused objects, any may be the one that is found.
        let address = if name.starts_with("many") { "0x" } else { address };
        for word in words.iter().chain([&address]) {
            assert!(message.contains(word), "no `{word}`: {all}");
        }
        assert_eq!(message.lines().count(), 1, "{all}");
    }
}

/// Checks a program that loads the library late and already has blocks from the C library.
#[test]
fn blocks_from_before() {
    let program = compile("cc", "late.c", "late", ["-ldl"]);
    check_linked(&program);
}

/// Checks that no slow path takes more than 4 KiB of stack. That includes the frees that decommit
/// memory when there is no thread for it.
#[test]
fn stacks() {
    // With lazy binding, the first call of each function would resolve it, on the measured stack.
    let program = compile("cc", "stacks.c", "stacks", ["-Wl,-z,now"]);
    run_checks(&program, |backend| {
        let mut command = preloaded(&program, backend);
        command.env("HAYLOFT_LIMIT", "0:24M").env("HAYLOFT_BACKGROUND", "0");
        command.env("HAYLOFT_DECAY_MS", "20");
        command
    });
}

#[test]
fn threads_and_forks() {
    check_preloaded(&compile("cc", "threads.c", "threads", NOTHING));
}

/// Checks that the library's constructors, which run before all others, leave the environment
/// intact and find the settings in it.
#[test]
fn the_environment_is_there() {
    for backend in BACKENDS {
        let environment = text_of(preloaded("env", backend).env("OF_THE_TEST", "1"));
        let has = |line: &str| environment.lines().any(|other| other == line);
        assert!(
            has(&format!("HAYLOFT_BACKEND={backend}")) && has("OF_THE_TEST=1"),
            "{environment}"
        );
    }
    let output = output_of(preloaded("env", "quux").env("HAYLOFT_STATS", "1"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("]: HAYLOFT_BACKEND=quux: "), "{said}");
    assert!(said.contains("slabinfo - version"), "{said}");
}

/// Checks how other programs use the process that they share with the allocator.
#[test]
fn strangers() {
    check_preloaded(&compile("cc", "strangers.c", "strangers", NOTHING));
}

/// Checks forks in a program with a library whose fork handlers wait for threads that allocate, and
/// forks while streams are in use.
#[test]
fn forks_and_their_neighbours() {
    compile("cc", "fork_handlers_lib.c", "libneighbour.so", ["-shared", "-fPIC"]);
    let linked = [format!("-L{FOLDER}"), "-lneighbour".into(), format!("-Wl,-rpath,{FOLDER}")];
    check_preloaded(&compile("cc", "fork_neighbours.c", "fork_neighbours", linked));
}

#[test]
fn operators() {
    if is_there("c++") {
        check_preloaded(&compile("c++", "operators.cc", "operators", CXX));
    }
}

#[test]
fn operators_that_the_program_replaces() {
    if is_there("c++") {
        let arguments = [CXX[0], "-Wno-sized-deallocation"];
        check_preloaded(&compile("c++", "replaced.cc", "replaced", arguments));
    }
}

/// Returns the path of `libhayloft.a`, and the system libraries that Rust's standard library needs.
fn archive() -> [PathBuf; 5] {
    let library = libraries().join("libhayloft.a");
    [library, "-lgcc_s".into(), "-lpthread".into(), "-ldl".into(), "-lm".into()]
}

#[test]
fn header() {
    let folder = format!("-L{}", libraries().display());
    check_linked(&compile("cc", "own.c", "own-shared", [folder.as_str(), "-lhayloft"]));
    check_linked(&compile("cc", "own.c", "own-archive", archive()));
    // Once more with the thread of `HAYLOFT_STATS_SHM`.
    let shown = compile("cc", "own.c", "own-shown", [folder.as_str(), "-lhayloft"]);
    run_checks(&shown, |backend| {
        let mut command = Command::new(&shown);
        command.env("HAYLOFT_BACKEND", backend).env("LD_LIBRARY_PATH", libraries());
        command.env("HAYLOFT_STATS_SHM", "1");
        command
    });
    check_linked(&compile("cc", "threads.c", "threads-archive", archive()));
}

#[test]
fn header_in_cxx() {
    if is_there("c++") {
        let arguments = [PathBuf::from(CXX[0])].into_iter().chain(archive());
        let output = output_of(&mut Command::new(compile("c++", "header.cc", "header", arguments)));
        let table = String::from_utf8_lossy(&output.stderr);
        assert!(table.contains(" held: ") && table.contains("\nCACHE "), "{table}");
    }
}

/// Checks that a set-uid program ignores the settings of the user who starts it, here its memory
/// limit.
#[test]
fn settings_of_set_uid_programs() {
    let program = compile("cc", "own.c", "own-set-uid", archive());
    let with_limit = || {
        let mut command = Command::new(&program);
        command.arg("whole").env("HAYLOFT_LIMIT", "1M");
        command.output().expect("it starts").status.success()
    };
    assert!(!with_limit(), "it has room for 20 MiB in 1");
    let nobody = 65534;
    let status = fs::read_to_string("/proc/self/status").expect("there is a /proc");
    if status.contains("NoNewPrivs:\t1") || chown(&program, Some(nobody), None).is_err() {
        return skipped(
            "settings of set-uid programs",
            "there are none here, or nobody to own them",
        );
    }
    fs::set_permissions(&program, Permissions::from_mode(0o4755)).expect("it is ours");
    assert!(with_limit(), "a set-uid program obeys its user's environment");
}

#[test]
fn operators_of_the_archive() {
    if is_there("c++") {
        let program = compile(
            "c++",
            "operators.cc",
            "operators-archive",
            CXX.map(PathBuf::from).into_iter().chain(archive()),
        );
        for name in [
            "every_form",
            "failure_throws",
            "handler_is_asked",
            "handler_may_throw",
            "nothrow_asks",
            "library",
        ] {
            output_of(Command::new(&program).arg(name));
        }
    }
}

/// Checks static programs, which have no loader.
#[test]
fn without_shared_libraries() {
    let library = libraries().join("libhayloft.a");
    let arguments = ["-static".into(), library, "-lgcc_eh".into(), "-w".into()];
    let program = compile("cc", "own.c", "own-static", &arguments);
    for name in ["blocks", "caches", "bad_caches", "whole"] {
        output_of(Command::new(&program).arg(name));
    }
    let program = compile("cc", "threads.c", "threads-static", &arguments);
    for name in ["exchanges", "short_lives", "forks", "fork_handlers", "joined_elsewhere"] {
        output_of(Command::new(&program).arg(name));
    }
}
