//! Calls `compare` on saved runs, and checks its output and exit codes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

/// Returns a run of two allocators and one workload in five rounds. Hayloft takes `nanoseconds`.
fn run(nanoseconds: f64) -> Value {
    let samples: Vec<Value> = (0..5)
        .flat_map(|round| [(round, "hayloft", nanoseconds), (round, "mimalloc", 4.0)])
        .map(|(round, allocator, nanoseconds)| {
            json!({
                "round": round,
                "allocator": allocator,
                "workload": "pair-const",
                "measured": {
                    "allocator": allocator,
                    "version": "1.2.3",
                    "workload": "pair-const",
                    "operations": 1000,
                    "nanoseconds": [nanoseconds + f64::from(round) / 100.0],
                    "peak_rss_kib": 2048,
                    "final_rss_kib": 2048,
                    "latency": null,
                    "curve": null,
                },
            })
        })
        .collect();
    let subject =
        |name: &str| json!({ "name": name, "version": null, "build": [], "warning": null });
    json!({
        "format": 1,
        "date": "2025-06-01T12:00:00Z",
        "command": "compare --save run.json",
        "machine": {
            "cpu": "a processor",
            "cpus": 2,
            "governor": "performance",
            "kernel": "6.18.0",
            "memory_mib": 1024,
            "transparent_hugepages": "madvise",
            "rustc": "rustc 1.88.0",
        },
        "rounds": 5,
        "scale": "quick",
        "profile": "release",
        "seconds": 1.5,
        "allocators": [subject("hayloft"), subject("mimalloc")],
        "samples": samples,
    })
}

/// Returns an empty directory for the files of one test.
fn directory(test: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).unwrap();
    directory
}

fn write(directory: &Path, name: &str, text: &str) {
    fs::write(directory.join(name), text).unwrap();
}

fn compare(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_compare"))
        .args(arguments)
        .current_dir(directory)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn saved_run_is_rendered_as_tables_and_page() {
    let here = directory("page");
    write(&here, "run.json", &run(2.0).to_string());
    let output = compare(&here, &["--from", "run.json", "--html", "page.html"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(text(&output.stdout).contains("pair-const") && output.stderr.is_empty(), "{output:?}");
    let page = fs::read_to_string(here.join("page.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("a processor"));
}

#[test]
fn unwritable_output_is_reported_before_measuring() {
    let here = directory("unwritable");
    for arguments in [["--html", "not/there.html"], ["--save", "not/there.json"], ["--save", "."]] {
        let output = compare(&here, &arguments);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(text(&output.stderr).contains("directory"), "{output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
    }
}

#[test]
fn slower_run_fails_only_on_request() {
    let here = directory("slower");
    write(&here, "fast.json", &run(2.0).to_string());
    write(&here, "slow.json", &run(3.0).to_string());
    let slower = ["--from", "slow.json", "--baseline", "fast.json"];
    let output = compare(&here, &slower);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(text(&output.stdout).contains("1.50× slower"), "{output:?}");

    let output = compare(&here, &[&slower[..], &["--fail-on-slower"]].concat());
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).contains("pair-const (slower)"), "{output:?}");

    let faster = ["--from", "fast.json", "--baseline", "slow.json", "--fail-on-slower"];
    let output = compare(&here, &faster);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(text(&output.stdout).contains("0.67× faster"), "{output:?}");
}

#[test]
fn files_without_a_run_are_rejected_in_one_line() {
    let here = directory("refused");
    write(&here, "run.json", &run(2.0).to_string());
    let mut other = run(2.0);
    other["format"] = 7.into();
    write(&here, "other.json", &other.to_string());
    write(&here, "cut.json", &run(2.0).to_string()[..500]);
    write(&here, "empty.json", "");
    let files = [
        ("other.json", "format 7"),
        ("cut.json", "--save"),
        ("empty.json", "--save"),
        ("missing.json", "No such file"),
        (".", "directory"),
    ];
    for (file, expected) in files {
        for arguments in [&["--from", file][..], &["--from", "run.json", "--baseline", file]] {
            let output = compare(&here, arguments);
            assert_eq!(output.status.code(), Some(2), "{file}: {output:?}");
            let error = text(&output.stderr);
            assert_eq!(error.lines().count(), 1, "{error}");
            assert!(error.contains(file) && error.contains(expected), "{error}");
            assert!(output.stdout.is_empty(), "{output:?}");
        }
    }
}

#[test]
fn contradictory_arguments_are_rejected() {
    let here = directory("arguments");
    for arguments in [&["--from", "run.json", "--quick"][..], &["--fail-on-slower"]] {
        let output = compare(&here, arguments);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
}
