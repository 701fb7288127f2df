//! Memcheck on programs with Hayloft: it finds each mistake by name, and nothing in a correct
//! program. Needs the feature `valgrind`.

use std::process::{Command, Output};

#[global_allocator]
static GLOBAL: hayloft::Hayloft = hayloft::Hayloft;

const FOUND: i32 = 99;

/// Runs `mistakes` under memcheck. Returns `None` if valgrind is not installed.
fn memcheck(mistake: &str) -> Option<Output> {
    let mut command = Command::new("valgrind");
    // Memcheck calls the C library's memory for threads that never end, such as CPU threads,
    // possibly lost. Only definite leaks are errors here.
    command.args(["--leak-check=full", "--errors-for-leak-kinds=definite", "--num-callers=30"]);
    command.arg(format!("--error-exitcode={FOUND}"));
    match command.args([env!("CARGO_BIN_EXE_mistakes"), mistake]).output() {
        Ok(output) => Some(output),
        Err(error) => {
            tests::skipped("memcheck", &error.to_string());
            None
        }
    }
}

#[test]
fn memcheck_finds_nothing_in_a_correct_program() {
    if let Some(output) = memcheck("clean") {
        let report = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{report}");
        assert!(report.contains("ERROR SUMMARY: 0 errors"), "{report}");
        assert!(
            report.contains("definitely lost: 0 bytes") || report.contains("no leaks"),
            "{report}"
        );
    }
}

/// Each mistake is found: one report contains the words and the function that makes the mistake.
#[test]
fn memcheck_finds_each_mistake() {
    let mistakes = [
        ("leak", "1,234 bytes in 1 blocks are definitely lost", "lose"),
        ("leak-of-cache", "567 bytes in 1 blocks are definitely lost", "lose_object"),
        ("use-after-free", "inside a block of size 100 free'd", "use_after_free"),
        ("use-after-free-large", "inside a block of size 2,000,000 free'd", "use_after_free"),
        ("double-free", "Invalid free()", "double_free"),
        ("overrun", "0 bytes after a block of size 61 alloc'd", "overrun"),
        ("overrun-large", "0 bytes after a block of size 2,000,000 alloc'd", "overrun"),
        ("uninitialised", "depends on uninitialised value", "uninitialised"),
    ];
    for (mistake, words, function) in mistakes {
        let Some(output) = memcheck(mistake) else { return };
        let report = String::from_utf8_lossy(&output.stderr);
        let is_reported = report
            .split("== \n")
            .any(|part| part.contains(words) && part.contains(&format!("mistakes::{function} ")));
        assert!(is_reported, "{mistake} is not reported: {report}");
        // After a double free, the rest of the run depends on the build.
        assert!(
            mistake == "double-free" || output.status.code() == Some(FOUND),
            "{mistake}: {report}"
        );
    }
}
