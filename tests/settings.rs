//! Settings in the environment, their documentation, and features that the system refuses. A
//! malformed setting costs one line of warning and nothing else; a refused feature costs not even
//! that.

use std::collections::BTreeSet;
use std::env;
use std::ffi::CStr;
use std::fs;
use std::io;
use std::process;
use std::thread;

use hayloft_core::cpu;
use hayloft_core::settings::{Setting, TABLE};
use tests::entry_points::Hayloft;
use tests::scenario::{Scenario, describe};

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// Starts the CPUs and uses the heap for a while. Returns the number of bytes that it formatted.
fn use_the_heap() -> usize {
    cpu::start();
    let words: Vec<_> = (0..1000).map(|number| number.to_string()).collect();
    words.concat().len()
}

/// Names of the settings, and well-formed values. `HAYLOFT_STATS` is in `reports.rs`,
/// `HAYLOFT_FAULT` in `faults.rs`.
const SETTINGS: [(&str, &[&str]); 13] = [
    ("HAYLOFT_BACKEND", &["rseq", "fallback"]),
    ("HAYLOFT_THP", &["auto", "always", "never"]),
    ("HAYLOFT_IRQ", &["hard", "threaded", "none"]),
    ("HAYLOFT_IRQ_SIGNAL", &["40", "64"]),
    ("HAYLOFT_DECAY_MS", &["0", "500", "3600000"]),
    ("HAYLOFT_BACKGROUND", &["0", "1"]),
    ("HAYLOFT_GUARD", &["0", "1", "1000000000"]),
    ("HAYLOFT_LIMIT", &["64M", "32m:1GiB", "100000000"]),
    ("HAYLOFT_PRESSURE", &["0", "1", "/proc/pressure/memory"]),
    ("HAYLOFT_PAGE_SIZE", &["65536"]),
    ("HAYLOFT_SYSFS", &["/sys"]),
    ("HAYLOFT_STATS_SHM", &["0", "1"]),
    // With 1 it writes a line.
    ("HAYLOFT_VERBOSE", &["0"]),
];

/// Returns the row of the table of settings.
fn setting(name: &str) -> &'static Setting {
    TABLE.iter().find(|setting| setting.name == name).expect("it is in the table")
}

/// Returns the text of a file of the repository.
fn text_of(path: &str) -> String {
    let path = format!("{}/../{path}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(path).expect("the file is there")
}

/// Returns the text in Markdown without the marks of code.
fn plain(text: &str) -> String {
    text.trim().replace('`', "")
}

/// The tests above have each setting, and `docs/settings.md` has the meaning, the default and the
/// values of each, and no other.
#[test]
fn the_page_of_settings_matches_the_table() {
    let page = text_of("docs/settings.md");
    let rows: Vec<[String; 4]> = page
        .lines()
        .filter(|line| line.starts_with("| `HAYLOFT_"))
        .map(|line| {
            let cells: Vec<_> = line.trim_matches('|').split('|').map(plain).collect();
            cells.try_into().expect("a row has four cells")
        })
        .collect();
    let names: BTreeSet<_> = rows.iter().map(|[name, ..]| name.as_str()).collect();
    let tested = SETTINGS.map(|(name, _)| name);
    let tested = tested.into_iter().chain([
        "HAYLOFT_STATS",
        "HAYLOFT_PROFILE",
        "HAYLOFT_LEAKS",
        "HAYLOFT_FAULT",
    ]);
    assert_eq!(names, TABLE.iter().map(|setting| setting.name).collect());
    assert_eq!(names, tested.collect());
    assert_eq!(rows.len(), TABLE.len());
    for [name, meaning, default, accepted] in &rows {
        let setting = setting(name);
        assert!(meaning.starts_with(setting.meaning), "{name}: {meaning}");
        assert_eq!(default, setting.default, "{name}");
        assert_eq!(accepted, setting.accepted, "{name}");
    }
}

/// The list in the documentation of the crate `hayloft` has the meaning of each setting, and no
/// other.
#[test]
fn the_list_of_the_crate_matches_the_table() {
    let source = text_of("alloc-global/src/lib.rs");
    let lines = source.lines().map_while(|line| line.strip_prefix("//!"));
    let doc = plain(&lines.map(str::trim).collect::<Vec<_>>().join(" "));
    let items: Vec<_> = doc.split("- HAYLOFT_").skip(1).collect();
    assert_eq!(items.len(), TABLE.len());
    for setting in &TABLE {
        let start = format!("{}: {}", setting.name.trim_start_matches("HAYLOFT_"), setting.meaning);
        assert!(items.iter().any(|item| item.starts_with(&start)), "no item {start}");
    }
}

/// The manual page names each setting, and no other.
#[test]
fn the_manual_page_matches_the_table() {
    let page = text_of("alloc-global/preload/hayloft.7");
    let words = page.split(|letter: char| !(letter.is_ascii_uppercase() || letter == '_'));
    let names: BTreeSet<_> = words.filter(|word| word.starts_with("HAYLOFT_")).collect();
    assert_eq!(names, TABLE.iter().map(|setting| setting.name).collect());
}

/// No page names a variable that does not exist.
#[test]
fn pages_name_only_settings_of_the_table() {
    let header = text_of("alloc-global/preload/include/hayloft.h");
    let folder = fs::read_dir(format!("{}/../docs", env!("CARGO_MANIFEST_DIR")));
    let pages = folder.expect("the folder is there").map(|entry| {
        let name = entry.expect("the entry can be read").file_name();
        format!("docs/{}", name.to_str().expect("the name is text"))
    });
    let readmes = ["README.md", "alloc-global/README.md", "alloc-core/README.md"];
    let mut seen = BTreeSet::new();
    for page in pages.filter(|page| page.ends_with(".md")).chain(readmes.map(String::from)) {
        let text = text_of(&page);
        for (at, _) in text.match_indices("HAYLOFT_") {
            let is_part = |letter: char| letter.is_ascii_uppercase() || letter == '_';
            let name: String = text[at..].chars().take_while(|letter| is_part(*letter)).collect();
            // `HAYLOFT_...` and the like stand for any.
            let is_known = name.ends_with('_')
                || TABLE.iter().any(|setting| setting.name == name)
                || header.contains(&format!("#define {name}"));
            assert!(is_known, "{page} has {name}");
            seen.insert(name);
        }
    }
    assert!(seen.len() > TABLE.len(), "the scan found only {seen:?}");
}

/// A malformed value is reported by one line that names the variable, the accepted values, and what
/// is used instead, and the program goes on.
#[test]
fn malformed_values_cost_one_warning() {
    for (name, _) in SETTINGS {
        for value in ["quux", "rseq,auto", "\u{1F344}"] {
            let scenario = || println!("{} bytes\nprocess {}", use_the_heap(), process::id());
            Scenario::new(format!("{name}={value}"), scenario).env(name, value).run(|output| {
                let all = describe(output);
                assert!(output.status.success(), "{all}");
                assert!(String::from_utf8_lossy(&output.stdout).contains("2890 bytes"), "{all}");
                let stderr = String::from_utf8_lossy(&output.stderr);
                let lines: Vec<_> = stderr.lines().collect();
                assert_eq!(lines.len(), 1, "{all}");
                let process = String::from_utf8_lossy(&output.stdout);
                let process = process.lines().find_map(|line| line.strip_prefix("process "));
                let start = format!(
                    "hayloft[{}]: {name}={value}: ",
                    process.expect("the child prints its number")
                );
                let end = format!("; accepted: {}; used instead: ", setting(name).accepted);
                assert!(lines[0].starts_with(&start) && lines[0].contains(&end), "{all}");
            });
        }
    }
}

/// A well-formed or empty value is not reported.
#[test]
fn well_formed_values_cause_no_warning() {
    for (name, values) in SETTINGS {
        for value in values.iter().chain([&""]) {
            let scenario = || println!("{} bytes", use_the_heap());
            Scenario::new(format!("{name}={value}"), scenario).env(name, value).run(|output| {
                let all = describe(output);
                assert!(output.status.success(), "{all}");
                assert!(String::from_utf8_lossy(&output.stdout).contains("2890 bytes"), "{all}");
                assert!(output.stderr.is_empty(), "{all}");
            });
        }
    }
}

/// An unknown variable that begins like a setting is reported, with the setting that it resembles,
/// if any.
#[test]
fn unknown_settings_are_reported_with_the_nearest_name() {
    for (name, line) in [
        ("HAYLOFT_STAT", "HAYLOFT_STAT: no such setting; HAYLOFT_STATS is one"),
        ("HAYLOFT_LIMTI", "HAYLOFT_LIMTI: no such setting; HAYLOFT_LIMIT is one"),
        ("HAYLOFT_MESH", "HAYLOFT_MESH: no such setting"),
        ("HAYLOFT_DECAY", "HAYLOFT_DECAY: no such setting; HAYLOFT_DECAY_MS is one"),
        ("HAYLOFT_QUUX_MODE", "HAYLOFT_QUUX_MODE: no such setting"),
        ("HAYLOFTS", ""),
    ] {
        Scenario::new(name, || assert_eq!(use_the_heap(), 2890)).env(name, "1").run(|output| {
            let all = describe(output);
            assert!(output.status.success(), "{all}");
            let stderr = String::from_utf8_lossy(&output.stderr);
            let message = stderr.trim_end().split_once("]: ").map_or("", |(_, message)| message);
            assert_eq!(message, line, "{all}");
        });
    }
}

/// The warning about a limit states what is wrong with it.
#[test]
fn malformed_limits_are_reported_with_the_reason() {
    for (value, why) in [
        ("600M:500M", "the soft limit, which comes first, is above the hard one"),
        ("10K", "a limit of less than 1M"),
        ("12 parsecs", "no number of bytes"),
    ] {
        let scenario = Scenario::new(value, || assert_eq!(use_the_heap(), 2890));
        scenario.env("HAYLOFT_LIMIT", value).run(|output| {
            let stderr = String::from_utf8_lossy(&output.stderr);
            let start = format!("]: HAYLOFT_LIMIT={value}: {why}; accepted: [SOFT:]HARD, in bytes");
            assert!(stderr.contains(&start), "{}", describe(output));
            assert!(stderr.ends_with("; used instead: none\n"), "{}", describe(output));
        });
    }
}

/// Settings keep their values from the start, even if the program overwrites its environment in
/// place or sets variables.
#[test]
fn settings_keep_their_values_from_the_start() {
    Scenario::new("", || {
        // Some programs overwrite their environment to change what `ps` shows, others set variables
        // while threads run.
        // SAFETY: `environ` points to the initial, null-terminated environment, which no other
        // thread accesses.
        unsafe {
            unsafe extern "C" {
                static environ: *const *mut libc::c_char;
            }
            let mut variable = environ;
            while !(*variable).is_null() {
                if CStr::from_ptr(*variable).to_bytes().starts_with(b"HAYLOFT_") {
                    (*variable).write(b'X' as libc::c_char);
                }
                variable = variable.add(1);
            }
            env::set_var("HAYLOFT_IRQ_SIGNAL", "41");
        }
        // Here the setting is used for the first time.
        cpu::start();
        assert!(has_handler(40) && !has_handler(41));
    })
    .env("HAYLOFT_IRQ_SIGNAL", "40")
    .succeeds();
}

fn has_handler(signal: libc::c_int) -> bool {
    // SAFETY: a null action only queries, and `action` is valid for the write.
    unsafe {
        let mut action = std::mem::zeroed::<libc::sigaction>();
        assert_eq!(libc::sigaction(signal, std::ptr::null(), &raw mut action), 0);
        action.sa_sigaction != libc::SIG_DFL
    }
}

/// Uses the heap in `count` threads at once, three times over with new threads.
fn use_the_heap_in_threads(count: usize) {
    for _ in 0..3 {
        let threads: Vec<_> = (0..count).map(|_| thread::spawn(use_the_heap)).collect();
        for thread in threads {
            assert_eq!(thread.join().expect("the thread does not panic"), 2890);
        }
    }
}

/// `HAYLOFT_VERBOSE=1` writes one line, with the backend that is in force and the settings, and
/// children of forks do not repeat it.
#[test]
fn settings_in_force_are_written_once() {
    for (settings, refuses, backend, limit) in [
        (&[("HAYLOFT_BACKEND", "fallback")][..], false, "fallback", "none"),
        (&[("HAYLOFT_LIMIT", "24M:512M")], false, "", "512 MiB"),
        (&[("HAYLOFT_THP", "auto"), ("HAYLOFT_IRQ", "none")], true, "fallback", "none"),
    ] {
        let scenario = || {
            use_the_heap();
            // SAFETY: the child only allocates and exits, and the parent waits for it.
            unsafe {
                if libc::fork() == 0 {
                    process::exit((use_the_heap() != 2890).into());
                }
                let mut status = 0;
                assert!(libc::wait(&raw mut status) > 0 && status == 0, "{status}");
            }
        };
        let scenario = Scenario::new(format!("{settings:?}"), scenario).env("HAYLOFT_VERBOSE", "1");
        // Without the C library's registration, the allocator makes the call that is refused.
        let scenario = scenario.env("GLIBC_TUNABLES", "glibc.pthread.rseq=0");
        let scenario = if refuses { scenario.refuse_system_call(libc::SYS_rseq) } else { scenario };
        settings.iter().fold(scenario, |scenario, (name, value)| scenario.env(name, value)).run(
            |output| {
                let all = describe(output);
                assert!(output.status.success(), "{all}");
                let stderr = String::from_utf8_lossy(&output.stderr);
                assert_eq!(stderr.lines().count(), 1, "{all}");
                let version = env!("CARGO_PKG_VERSION");
                let start = format!("]: active, version {version}; backend: {backend}");
                assert!(stderr.contains(&start), "{all}");
                assert!(stderr.contains(&format!("; limit: {limit}; environment: ")), "{all}");
                for (name, value) in settings.iter().chain(&[("HAYLOFT_VERBOSE", "1")]) {
                    let is_changed = setting(name).default != *value;
                    assert_eq!(stderr.contains(&format!("{name}={value}")), is_changed, "{all}");
                }
            },
        );
    }
}

/// Returns whether this thread is registered for restartable sequences, or `None` where the kernel
/// has none.
fn is_registered() -> Option<bool> {
    const UNREGISTER: libc::c_int = 1;
    const SIGNATURE: libc::c_int = 1;

    #[repr(C, align(32))]
    struct Area([u32; 8]);
    let mut area = Area([0; 8]);
    let mut register = |flags: libc::c_int| {
        let (area, len) = (&raw mut area, size_of::<Area>() as libc::c_uint);
        // SAFETY: the area has that length, and the second call unregisters it before it goes out
        // of scope.
        unsafe { libc::syscall(libc::SYS_rseq, area, len, flags, SIGNATURE) }
    };
    if register(0) == 0 {
        assert_eq!(register(UNREGISTER), 0);
        return Some(false);
    }
    let error = io::Error::last_os_error().raw_os_error();
    (error != Some(libc::ENOSYS)).then_some(true)
}

/// Where the C library does not register threads for restartable sequences, as musl does not, the
/// allocator does, unless it must use the fallback.
#[test]
fn threads_are_registered_for_rseq_where_the_c_library_does_not() {
    for (backend, registers) in [("rseq", true), ("fallback", false)] {
        let scenario = || {
            use_the_heap_in_threads(4);
            let in_thread = thread::spawn(|| {
                use_the_heap();
                is_registered()
            });
            for is_registered in
                [is_registered(), in_thread.join().expect("the thread does not panic")]
            {
                let is_right = is_registered.is_none_or(|is_registered| is_registered == registers);
                assert!(is_right, "registered: {is_registered:?}, expected: {registers}");
            }
        };
        Scenario::new(backend, scenario)
            .env("HAYLOFT_BACKEND", backend)
            .env("GLIBC_TUNABLES", "glibc.pthread.rseq=0")
            .succeeds();
    }
}

/// Where the kernel refuses restartable sequences, the allocator uses the fallback.
#[test]
fn fallback_is_used_where_rseq_is_refused() {
    Scenario::new("threads", || use_the_heap_in_threads(4))
        .refuse_system_call(libc::SYS_rseq)
        .succeeds();
}
