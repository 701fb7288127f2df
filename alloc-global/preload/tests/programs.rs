//! Checks that installed programs print the same with the library preloaded as without it.
#![cfg(target_env = "gnu")]

mod common;

use std::process::Command;

use common::{BACKENDS, is_installed, output_of, preloaded};

fn assert_same_output(program: &str, arguments: &[&str]) {
    if !is_installed(program) {
        return;
    }
    let plain = output_of(Command::new(program).args(arguments));
    assert!(!plain.stdout.is_empty(), "{program} prints nothing");
    for backend in BACKENDS {
        let output = output_of(preloaded(program, backend).args(arguments));
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&plain.stdout),
            "{program} on {backend}"
        );
        assert_eq!(
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&plain.stderr),
            "{program} on {backend}"
        );
    }
}

#[test]
fn ls_prints_the_same() {
    assert_same_output("ls", &["-lR", concat!(env!("CARGO_MANIFEST_DIR"), "/src")]);
}

#[test]
fn sort_prints_the_same() {
    assert_same_output(
        "sort",
        &["--parallel=4", "-S", "1M", concat!(env!("CARGO_MANIFEST_DIR"), "/src/malloc.rs")],
    );
}

#[test]
fn bash_prints_the_same() {
    let script = "declare -A seen; for i in $(seq 1 3000); do seen[k$((i * 7919 % 1009))]=$i; done; \
        echo ${#seen[@]} ${seen[k5]}; (echo sub shell | tr a-z A-Z) & wait; x=$(printf '%s' {1..500}); echo ${#x}";
    assert_same_output("bash", &["-c", script]);
}

#[test]
fn perl_prints_the_same() {
    let script = "my %h; $h{$_ % 1009} .= chr(65 + $_ % 26) for 1..100000; \
        print join(',', map { length $h{$_} } sort keys %h), qq{\\n}; my $s = 'x' x 5000000; $s =~ s/x/yy/g; print length $s";
    assert_same_output("perl", &["-e", script]);
}

#[test]
fn python_prints_the_same() {
    let script = "import hashlib, json, re, threading\n\
        def work(n, out):\n    \
            d = {str(i): [i] * (i % 50) for i in range(20000)}\n    \
            out[n] = hashlib.sha256(json.dumps(d).encode()).hexdigest()\n\
        out = {}\n\
        ts = [threading.Thread(target=work, args=(n, out)) for n in range(4)]\n\
        [t.start() for t in ts]; [t.join() for t in ts]\n\
        print(sorted(out.items()), len(re.sub('a+', 'b', 'xaay' * 100000)), 2 ** 20000 % 10 ** 50)\n";
    assert_same_output("python3", &["-c", script]);
    // All allocations of the interpreter go through `malloc`, none through its own allocator.
    if is_installed("python3") {
        for backend in BACKENDS {
            let mut command = preloaded("python3", backend);
            output_of(command.env("PYTHONMALLOC", "malloc").args(["-c", script]));
        }
    }
}

#[test]
fn git_prints_the_same() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    // The sources may be a copy that is not a repository.
    let is_repository = Command::new("git").args(["-C", folder, "rev-parse"]).output();
    if is_repository.is_ok_and(|output| output.status.success()) {
        assert_same_output("git", &["-C", folder, "log", "--stat", "-n", "30"]);
    }
}

#[test]
fn cc_prints_the_same() {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/c/standards.c");
    assert_same_output("cc", &["-O2", "-S", "-w", "-o", "-", source]);
}
