//! Checks the probes for tracers: the library has those of samples, and if it was built with the
//! feature `usdt`, those of each block. They report correct arguments.
#![cfg(target_env = "gnu")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use common::{
    BACKENDS, FOLDER, build, compile, is_installed, libraries, output_of, preloaded, text_of,
};

/// Each probe of the feature `usdt`, and the number of its arguments.
const PROBES: [(&str, usize); 5] =
    [("alloc", 2), ("flush", 3), ("free", 1), ("refill", 3), ("slab", 3)];

/// The probes of samples, with their arguments: unsigned numbers of 8 bytes, in the registers of a
/// call.
const OF_SAMPLES: [(&str, &str); 2] = if cfg!(target_arch = "x86_64") {
    [("alloc", "8@%rdi 8@%rsi 8@%rdx"), ("free", "8@%rdi")]
} else {
    [("alloc", "8@x0 8@x1 8@x2"), ("free", "8@x0")]
};

/// Builds the library with probes and returns its folder.
fn with_probes() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build("preload-usdt", "usdt"))
}

/// A note.
#[derive(Clone, Default, Debug)]
struct Note {
    arguments: String,
    /// Address of the semaphore, as text.
    semaphore: String,
}

/// Returns the notes that `readelf` finds in a library, by provider and name.
fn notes(library: &Path) -> BTreeMap<(String, String), Vec<Note>> {
    let text = text_of(Command::new("readelf").args(["--notes", "--wide"]).arg(library));
    let mut found: BTreeMap<_, Vec<Note>> = BTreeMap::new();
    let (mut provider, mut name, mut note) = (String::new(), String::new(), Note::default());
    for line in text.lines().map(str::trim) {
        if let Some((_, word)) = line.split_once("Provider: ") {
            word.clone_into(&mut provider);
        } else if let Some(word) = line.strip_prefix("Name: ") {
            word.clone_into(&mut name);
        } else if let Some((_, word)) = line.split_once("Semaphore: ") {
            word.clone_into(&mut note.semaphore);
        } else if let Some(arguments) = line.strip_prefix("Arguments: ") {
            arguments.clone_into(&mut note.arguments);
            found.entry((provider.clone(), name.clone())).or_default().push(note.clone());
        }
    }
    found
}

/// Returns the notes of samples, after checking that there is one for each probe.
fn notes_of_samples(library: &Path) -> Vec<Note> {
    let mut found = notes(library);
    let of_samples = OF_SAMPLES.map(|(name, arguments)| {
        let of_probe = found.remove(&("otel_memory".into(), name.into())).unwrap_or_default();
        let [note] = of_probe.try_into().expect("one note");
        assert_eq!(note.arguments, arguments);
        note
    });
    of_samples.into()
}

#[test]
fn notes_name_all_probes() {
    let of_feature = |library: &Path| -> Vec<_> {
        let of_hayloft =
            notes(library).into_iter().filter(|((provider, _), _)| provider == "hayloft");
        of_hayloft
            .map(|((_, name), notes)| {
                let count = notes[0].arguments.split_whitespace().count();
                (name, count)
            })
            .collect()
    };
    let [with, without] = [with_probes(), libraries()].map(|folder| folder.join("libhayloft.so"));
    assert_eq!(of_feature(&with), PROBES.map(|(name, count)| (name.to_owned(), count)));
    assert_eq!(of_feature(&without), []);
    for library in [with, without] {
        notes_of_samples(&library);
    }
}

/// The semaphore of samples is one number in the file, which a kernel can write.
#[test]
fn probes_of_samples_share_a_semaphore() {
    let library = libraries().join("libhayloft.so");
    let [alloc, free] = notes_of_samples(&library).try_into().expect("two notes");
    assert_eq!(alloc.semaphore, free.semaphore);
    let sections = text_of(Command::new("readelf").args(["--sections", "--wide"]).arg(&library));
    let section = sections.lines().find(|line| line.contains(" .probes ")).expect("a section");
    let words: Vec<_> = section.split_whitespace().collect();
    assert!(words.contains(&"PROGBITS") && words.iter().any(|word| word.starts_with("WA")));
    let address = alloc.semaphore.trim_start_matches("0x");
    assert!(words.contains(&address), "{address}: {section}");
}

/// `strip` keeps the notes, and the library works without them.
#[test]
fn probes_of_samples_survive_strip() {
    let (stripped, bare) = (format!("{FOLDER}/stripped.so"), format!("{FOLDER}/bare.so"));
    let library = libraries().join("libhayloft.so");
    output_of(Command::new("strip").arg("-o").arg(&stripped).arg(&library));
    notes_of_samples(Path::new(&stripped));
    output_of(
        Command::new("objcopy").arg("--remove-section=.note.stapsdt").arg(&library).arg(&bare),
    );
    assert!(notes(Path::new(&bare)).is_empty());
    let program = compile("cc", "samples.c", "samples-bare", [""; 0]);
    for (library, backend) in [(&stripped, "rseq"), (&bare, "rseq"), (&bare, "fallback")] {
        let profile = format!("{FOLDER}/samples-bare.pb.gz,mean=1");
        let mut command = preloaded(&program, backend);
        let text = text_of(command.env("LD_PRELOAD", library).env("HAYLOFT_PROFILE", profile));
        assert_eq!(text.lines().count(), 8, "{text}");
    }
}

/// Runs a program under gdb up to `main`, with the library preloaded, then the commands.
fn debugged(program: &Path, name: &str, before: &str, after: &str) -> String {
    let library = libraries().join("libhayloft.so");
    let script = format!(
        "set pagination off\nset confirm off\nset startup-with-shell off\n\
         set disable-randomization off\nset print thread-events off\n\
         set environment LD_PRELOAD {}\n{before}break main\nrun\n{after}continue\n",
        library.display()
    );
    let path = format!("{FOLDER}/{name}.gdb");
    fs::write(&path, script).expect("the script can be written");
    text_of(Command::new("gdb").args(["-nx", "-q", "-batch", "-x", &path]).arg(program))
}

/// Commands that print the arguments of both probes of samples.
const SEE_SAMPLES: &str = "\
    break -probe-stap otel_memory:alloc\ncommands\nsilent\n\
    printf \"seen alloc %#lx %lu %lu\\n\", $_probe_arg0, $_probe_arg1, $_probe_arg2\ncontinue\nend\n\
    break -probe-stap otel_memory:free\ncommands\nsilent\n\
    printf \"seen free %#lx\\n\", $_probe_arg0\ncontinue\nend\n";

/// With a mean of one byte each block is a sample that stands for itself: gdb sees all blocks of
/// the program, in order, with their sizes and as many weighted bytes.
#[test]
fn probes_report_each_sample() {
    if !is_installed("gdb") {
        return;
    }
    let program = compile("cc", "samples.c", "samples", [""; 0]);
    for backend in BACKENDS {
        let name = format!("samples-{backend}");
        let before = format!(
            "set environment HAYLOFT_BACKEND {backend}\n\
             set environment HAYLOFT_PROFILE {FOLDER}/{name}.pb.gz,mean=1\n"
        );
        let text = debugged(&program, &name, &before, SEE_SAMPLES);
        let mut seen = text.lines().filter_map(|line| line.strip_prefix("seen "));
        let is_printed = |line: &&str| line.starts_with("alloc 0x") || line.starts_with("free 0x");
        let printed: Vec<_> = text.lines().filter(is_printed).collect();
        assert_eq!(printed.len(), 8, "{text}");
        for line in printed {
            // A sample of weight 1.
            let line = match line.split_once(' ') {
                Some(("alloc", block)) => {
                    let (_, bytes) = block.split_once(' ').expect("an address and a size");
                    format!("{line} {bytes}")
                }
                _ => line.to_owned(),
            };
            assert!(seen.any(|other| other == line), "{backend}: `{line}` not in order: {text}");
        }
    }
}

/// A tracer that attaches to the probes switches the sampler on, and each sample stands for the
/// bytes that its probability says. So none is seen in a program that it does not attach to.
#[test]
fn tracers_switch_sampling_on() {
    if !is_installed("gdb") {
        return;
    }
    let program = compile("cc", "samples.c", "samples-traced", [""; 0]);
    for backend in BACKENDS {
        let before = format!("set args many\nset environment HAYLOFT_BACKEND {backend}\n");
        let text = debugged(&program, &format!("traced-{backend}"), &before, SEE_SAMPLES);
        let seen: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("seen ")).collect();
        // Each of 200 blocks is hit with probability 1 - e^-4.
        let allocs: Vec<_> = seen.iter().filter(|line| line.starts_with("alloc")).collect();
        assert!(allocs.len() > 150, "{text}");
        assert_eq!(seen.len(), 2 * allocs.len(), "{text}");
        // Weights have 16 bits behind the point.
        let block = f64::from(2 << 20);
        let expected = block / (1.0 - (-4.0_f64).exp());
        for line in allocs {
            let words: Vec<_> = line.split(' ').collect();
            let weighted: f64 = words[3].parse().expect("a number");
            assert_eq!(words[2], "2097152", "{line}");
            assert!((weighted / expected - 1.0).abs() < 1e-4, "{line}");
        }
    }
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
