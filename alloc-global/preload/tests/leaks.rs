//! Leaks at exit, of programs with the library preloaded: exact numbers and places, what is
//! reachable, suppressions, bad settings.
#![cfg(all(target_env = "gnu", any(target_arch = "x86_64", target_arch = "aarch64")))]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use common::{BACKENDS, FOLDER, compile, output_of, preloaded, text_of};

/// Returns the program.
fn program() -> &'static Path {
    static COMPILED: OnceLock<std::path::PathBuf> = OnceLock::new();
    COMPILED.get_or_init(|| compile("cc", "leaks.c", "leaks", ["-no-pie", "-fno-pie"]))
}

/// Runs the program and returns what is on standard error.
fn stderr_of(backend: &str, setting: &str, argument: Option<&str>) -> String {
    let mut command = preloaded(program(), backend);
    let output = output_of(command.env("HAYLOFT_LEAKS", setting).args(argument));
    String::from_utf8(output.stderr).expect("the output is text")
}

/// The blocks of a site: what is said of them, bytes, their number, and the function that allocated
/// them.
type Site = (String, u64, u64, String);

/// Returns the first line of a report, without the number of the process, and the sites.
fn parse(report: &str) -> (String, Vec<Site>) {
    let (first, rest) = report.split_once('\n').expect("there is a line");
    let (start, first) = first.split_once("]: ").expect("the line begins with the process");
    assert!(start.starts_with("hayloft["), "{report}");
    let sites = rest.split("\n\n").filter(|part| !part.trim().is_empty()).map(|part| {
        let mut lines = part.trim_start().lines();
        let words: Vec<_> = lines.next().expect("a line").split(' ').collect();
        let at = words.iter().position(|word| *word == "byte(s)").expect("bytes");
        let number = |at: usize| words[at].parse().expect("a number");
        let mut frames = lines.map(|line| {
            let (file, rest) =
                line.split_once('(').expect("a file").1.split_once("+0x").expect("+");
            let address = rest.split_once(')').expect("an address").0;
            (file.to_owned(), address.to_owned())
        });
        let (file, address) = frames.next().expect("a frame");
        assert_eq!(Path::new(&file), program(), "{report}");
        let mut resolve = Command::new("addr2line");
        let names = text_of(resolve.arg("-fe").arg(file).arg(format!("0x{address}")));
        let function = names.lines().next().expect("a name").to_owned();
        // `main` is among its callers.
        assert!(frames.count() >= 2, "{report}");
        (words[..at - 1].join(" "), number(at - 1), number(at + 2), function)
    });
    (first.to_owned(), sites.collect())
}

/// With `mean=1` all that is in use is there, exactly, the largest first. Sizes are those of size
/// classes.
#[test]
fn all_that_is_in_use_is_listed() {
    for backend in BACKENDS {
        let report = stderr_of(backend, "1,mean=1", None);
        let (first, sites) = parse(&report);
        assert_eq!(first, "leaks: 3256416 bytes in 11 blocks in use, allocated at 7 sites");
        let site = |bytes, blocks, function: &str| {
            (String::from("In use:"), bytes, blocks, String::from(function))
        };
        let expected = [
            site(3 << 20, 1, "hold"),
            site(106_496, 1, "hold"),
            site(3072, 3, "lose"),
            site(624, 3, "lose_list"),
            site(208, 1, "hold"),
            site(208, 1, "hold"),
            site(80, 1, "hold"),
        ];
        assert_eq!(sites, expected, "{report}");
    }
}

/// With `reachable=1` what variables, blocks and stacks lead to is left out, also by an address
/// within a block. What is lost with another block is told apart.
#[test]
fn what_the_program_can_reach_is_no_leak() {
    for backend in BACKENDS {
        let report = stderr_of(backend, "1,mean=1,reachable=1", None);
        let (first, sites) = parse(&report);
        assert_eq!(first, "leaks: 3696 bytes in 6 blocks lost, allocated at 3 sites");
        let site = |how: &str, bytes, blocks, function: &str| {
            (format!("{how} leak of"), bytes, blocks, String::from(function))
        };
        let expected = [
            site("Direct", 3072, 3, "lose"),
            site("Indirect", 416, 2, "lose_list"),
            site("Direct", 208, 1, "lose_list"),
        ];
        assert_eq!(sites, expected, "{report}");
        for argument in ["nothing", "thread"] {
            let report = stderr_of(backend, "1,mean=1,reachable=1", Some(argument));
            assert_eq!(
                parse(&report),
                (String::from("leaks: none"), vec![]),
                "{argument}: {report}"
            );
        }
    }
}

/// Blocks that are not sampled lead to others, as all memory does. With this mean the largest block
/// is always a sample. The blocks that lead to it are seldom.
#[test]
fn blocks_that_are_no_samples_count_as_reachable() {
    let settings = ["1,mean=64K", "stderr,mean=64K,reachable=1"];
    let [all, lost] = settings.map(|setting| stderr_of("rseq", setting, None));
    assert!(all.contains("\nIn use: 3145728 byte(s) in 1 object(s)"), "{all}");
    assert!(!lost.contains(" 3145728 byte(s)"), "{lost}");
}

#[test]
fn known_leaks_are_suppressed() {
    let file = format!("{FOLDER}/known.supp");
    let run = |patterns: &str| {
        fs::write(&file, patterns).expect("the file can be written");
        stderr_of("rseq", &format!("1,mean=1,reachable=1,suppress={file}"), None)
    };
    let report = run("# ours\nleak:^*tmp/leaks$\nleak:nothing\n");
    let all = "leaks: none; suppressed: 3696 bytes in 6 blocks";
    assert_eq!(parse(&report), (all.into(), vec![]), "{report}");
    let report = run("leak:libnothing\nleak:leaks*leaks*leaks\n");
    assert_eq!(parse(&report).0, "leaks: 3696 bytes in 6 blocks lost, allocated at 3 sites");
}

/// Functions that a program or a library exports have their names, which suppressions may have.
#[test]
fn exported_functions_have_names() {
    let program = compile("cc", "leaks.c", "leaks-exported", ["-rdynamic"]);
    let file = format!("{FOLDER}/functions.supp");
    let run = |patterns: &str| {
        fs::write(&file, patterns).expect("the file can be written");
        let setting = format!("1,mean=1,reachable=1,suppress={file}");
        let output = output_of(preloaded(&program, "rseq").env("HAYLOFT_LEAKS", setting));
        String::from_utf8(output.stderr).expect("the output is text")
    };
    let report = run("leak:^lose_list$\n");
    let first = "leaks: 3072 bytes in 3 blocks lost, allocated at 1 sites; \
                 suppressed: 624 bytes in 3 blocks\n";
    assert!(report.contains(first), "{report}");
    let frame = |number: usize, name: &str| {
        let start = format!("    #{number} 0x");
        let rest = format!(" in {name} (");
        report.lines().any(|line| line.starts_with(&start) && line.contains(&rest))
    };
    assert!(frame(0, "lose") && frame(1, "main") && frame(3, "__libc_start_main"), "{report}");
    assert!(run("leak:^lose$\nleak:^lose_list$\n").contains("]: leaks: none; suppressed: "));
}

/// Bad settings cost one line each, and the program goes on.
#[test]
fn bad_settings_are_reported() {
    let bad = format!("{FOLDER}/bad.supp");
    fs::write(&bad, "leak:x\nrace:y\n").expect("the file can be written");
    for (setting, why) in [
        ("1,mean=0".to_owned(), "after mean= come bytes"),
        ("1,reachable=maybe".into(), "after reachable= comes 0 or 1"),
        ("leaks".into(), "neither stderr"),
        ("1,suppress=/nowhere/at.all".into(), "/nowhere/at.all cannot be read"),
        (format!("1,suppress={bad}"), "is not leak:PATTERN"),
    ] {
        let text = stderr_of("rseq", &setting, Some("nothing"));
        let reported: BTreeSet<_> =
            text.lines().filter(|line| line.contains("HAYLOFT_LEAKS=")).collect();
        assert!(reported.len() == 1 && text.contains(why), "{setting}: {text}");
        // Without suppressions there is a report still.
        assert_eq!(text.contains("]: leaks: "), setting.contains("suppress"), "{setting}: {text}");
    }
    let text = stderr_of("rseq", "/nowhere/%p.txt", Some("nothing"));
    assert!(text.ends_with("leaks cannot be written to /nowhere/%p.txt\n"), "{text}");
    assert_eq!(stderr_of("rseq", "0", None), "");
}

/// A report and a profile share the samples of the smaller mean.
#[test]
fn leaks_and_profiles_share_samples() {
    let profile = format!("{FOLDER}/leaks.pb.gz");
    for (mean_of_profile, mean_of_leaks) in [("512K", "1"), ("1", "512K")] {
        let mut command = preloaded(program(), "rseq");
        command.env("HAYLOFT_PROFILE", format!("{profile},mean={mean_of_profile}"));
        let output = output_of(command.env("HAYLOFT_LEAKS", format!("1,mean={mean_of_leaks}")));
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("leaks: 3256416 bytes in 11 blocks in use"), "{text}");
        assert!(fs::metadata(&profile).is_ok_and(|file| file.len() > 100));
    }
}
