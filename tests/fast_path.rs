//! Golden test of the fast path: the instructions of `alloc` and `dealloc` for a layout known at
//! compile time.
//!
//! Builds `fast_path_probe` with release settings, disassembles it with `objdump`, and walks each
//! function as a hit executes it: straight on past conditional branches. No change can lengthen the
//! path unnoticed.
#![cfg(target_arch = "x86_64")]

use std::process::Command;

#[global_allocator]
static GLOBAL: hayloft::Hayloft = hayloft::Hayloft;

/// Functions of the probe, with the most instructions and jumps of each.
const FUNCTIONS: [(&str, usize, usize); 2] = [("golden_alloc", 20, 3), ("golden_dealloc", 18, 1)];

fn output_of(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("the output is text")
}

/// Returns the disassembled probe, one instruction a line.
fn disassembly() -> String {
    let target = concat!(env!("CARGO_TARGET_TMPDIR"), "/fast_path");
    output_of(
        Command::new(env!("CARGO"))
            .args([
                "build",
                "--release",
                "--locked",
                "--package",
                "tests",
                "--bin",
                "fast_path_probe",
            ])
            .args(["--target-dir", target])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env_remove("RUSTFLAGS"),
    );
    output_of(
        Command::new("objdump")
            .args(["--disassemble", "--no-show-raw-insn", "-M", "intel"])
            .arg(format!("{target}/release/fast_path_probe")),
    )
}

/// Returns the instructions from the start of `function` to its first `ret`, past conditional
/// branches.
fn hit_path<'a>(disassembly: &'a str, function: &str) -> Vec<&'a str> {
    let head = format!("<{function}>:");
    let mut lines = disassembly.lines().skip_while(|line| !line.ends_with(&head)).skip(1);
    let mut path = Vec::new();
    loop {
        let line = lines.next().filter(|line| !line.is_empty());
        let line = line.unwrap_or_else(|| panic!("no ret in {function}: {path:#?}"));
        let instruction = line.split_once(":\t").expect("an address and an instruction").1.trim();
        path.push(instruction);
        if instruction.starts_with("ret") {
            return path;
        }
    }
}

#[test]
fn the_hit_path_is_short() {
    let disassembly = disassembly();
    for (function, most, most_jumps) in FUNCTIONS {
        let path = hit_path(&disassembly, function);
        let starting = |prefix| path.iter().filter(|line| line.starts_with(prefix)).count();
        println!("{function}: {} instructions", path.len());
        assert!(path.len() <= most, "{function}: {path:#?}");
        // Counts every jump. `jmp` must not occur at all.
        assert!(starting("j") <= most_jumps, "{function}: {path:#?}");
        assert_eq!(starting("jmp") + starting("call") + starting("lock"), 0, "{path:#?}");
    }
}
