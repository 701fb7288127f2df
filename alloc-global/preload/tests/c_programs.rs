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
    BACKENDS, FOLDER, compile, is_installed, libraries, output_of, preloaded, skipped, text_of,
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
fn functions_follow_their_standards() {
    check_preloaded(&compile("cc", "standards.c", "standards", NOTHING));
}

/// Checks that each mistake ends the process by SIGABRT, with one message that names the address
/// and the mistake.
#[test]
fn mistakes_abort_with_one_message() {
    let program = compile("cc", "mistakes.c", "mistakes", NOTHING);
    let names = text_of(Command::new(&program).env("LD_LIBRARY_PATH", libraries()));
    assert!(names.lines().count() > 10, "{names}");
    for (backend, name) in
        BACKENDS.iter().flat_map(|backend| names.lines().map(move |name| (backend, name)))
    {
        let output = preloaded(&program, backend).arg(name).output().expect("the program starts");
        let stdout = String::from_utf8_lossy(&output.stdout);
        let message = String::from_utf8_lossy(&output.stderr);
        let all = format!("{name} ({backend}): {}\n{stdout}{message}", output.status);
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{all}");
        let address =
            stdout.lines().find_map(|line| line.strip_prefix("address ")).expect("an address");
        let words: &[&str] = match name {
            _ if name.starts_with("double_free") => &["double free", "class 112"],
            "many_frees_to_another_cache" => &["as one of a cache", "it is one of a cache"],
            "many_frees_inside" => &["no object starts", "a cache of objects of 48"],
            "many_frees_of_foreign_objects" => &["foreign address", "a cache of objects of 48"],
            "free_inside" => &["no object starts there", "class 64"],
            "free_inside_odd_size" => &["no object starts there", "class 112"],
            "free_inside_long" => &["no object starts there", "class 30720"],
            "realloc_inside" | "usable_size_inside" => &["no object starts there", "class 1024"],
            _ => &["foreign"],
        };
        // Of many misused objects, any may be the one that is found.
        let address = if name.starts_with("many") { "0x" } else { address };
        for word in words.iter().chain([&address]) {
            assert!(message.contains(word), "the message lacks `{word}`: {all}");
        }
        assert_eq!(message.lines().count(), 1, "{all}");
    }
}

/// Checks that each mistake with a guarded block is reported, with the functions that allocated and
/// freed the block and the one that made the mistake.
#[test]
fn mistakes_with_guarded_blocks_are_reported() {
    let program = compile("cc", "guarded.c", "guarded", ["-O1", "-rdynamic"]);
    let names = text_of(&mut Command::new(&program));
    assert!(names.lines().count() >= 12, "{names}");
    for (backend, name) in
        BACKENDS.iter().flat_map(|backend| names.lines().map(move |name| (backend, name)))
    {
        let mut command = preloaded(&program, backend);
        let output = command.env("HAYLOFT_GUARD", "1").arg(name).output().expect("it starts");
        let report = String::from_utf8_lossy(&output.stderr);
        let all = format!("{name} ({backend}): {}\n{report}", output.status);
        let signal = output.status.signal();
        assert!(signal == Some(libc::SIGABRT) || signal == Some(libc::SIGSEGV), "{all}");
        let kind = match name {
            _ if name.starts_with("overflow") => "buffer overflow: ",
            _ if name.starts_with("underflow") => "buffer underflow: ",
            "read_beyond" => "buffer overflow: read at ",
            "read_after_free" | "use_after_realloc" => "use after free: read at ",
            "write_after_free" => "use after free: write at ",
            "invalid_free" => "invalid free: ",
            "realloc_after_free" => "use after free: realloc",
            _ => "double free: ",
        };
        assert!(report.contains(kind) && report.contains("a block of 112 bytes"), "{all}");
        let section = |start: &str| {
            let lines = report.lines().skip_while(|line| !line.contains(start)).skip(1);
            lines.take_while(|line| line.contains(" #")).collect::<String>()
        };
        assert!(section("  allocated by thread").contains("make_block"), "{all}");
        if name.contains("after_free") || name.starts_with("double_free") {
            assert!(section("  freed by thread").contains("drop_block"), "{all}");
        }
        let culprit = match name {
            "realloc_after_free" => "main",
            "double_free" | "double_free_later" | "invalid_free" => "drop_block",
            _ if report.contains("found at the free") => "drop_block",
            _ => "touch",
        };
        assert!(section("  the ").contains(culprit), "{all}");
    }
}

/// Checks a program that loads the library late and already has blocks from the C library.
#[test]
fn late_loaded_library_passes_foreign_blocks_on() {
    let program = compile("cc", "late_load.c", "late_load", ["-ldl"]);
    check_linked(&program);
}

/// Checks that no slow path takes more than 4 KiB of stack, or asks the loader for thread-locals.
/// That includes the frees that decommit memory when there is no thread for it.
#[test]
fn slow_paths_need_little_stack_and_no_loader() {
    // With lazy binding, the first call of each function would resolve it, on the measured stack.
    let arguments = ["-Wl,-z,now", "-rdynamic", "-ldl"];
    let program = compile("cc", "stack_depth.c", "stack_depth", arguments);
    run_checks(&program, |backend| {
        let mut command = preloaded(&program, backend);
        command.env("HAYLOFT_LIMIT", "0:24M").env("HAYLOFT_BACKGROUND", "0");
        command.env("HAYLOFT_DECAY_MS", "20");
        command
    });
}

#[test]
fn threads_and_forks_work_preloaded() {
    check_preloaded(&compile("cc", "threads.c", "threads", NOTHING));
}

/// Checks that the library's constructors, which run before all others, leave the environment
/// intact and find the settings in it.
#[test]
fn constructors_leave_the_environment_intact() {
    for backend in BACKENDS {
        let environment = text_of(preloaded("env", backend).env("TEST_VARIABLE", "1"));
        let has = |line: &str| environment.lines().any(|other| other == line);
        assert!(
            has(&format!("HAYLOFT_BACKEND={backend}")) && has("TEST_VARIABLE=1"),
            "{environment}"
        );
    }
    let output = output_of(preloaded("env", "quux").env("HAYLOFT_STATS", "1"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("]: HAYLOFT_BACKEND=quux: "), "{stderr}");
    assert!(stderr.contains("slabinfo - version"), "{stderr}");
}

/// Checks that the library announces itself once in a program that does nothing.
#[test]
fn verbose_library_writes_one_line() {
    for backend in BACKENDS {
        let output = output_of(preloaded("true", backend).env("HAYLOFT_VERBOSE", "1"));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.contains(&format!("; backend: {backend}")), "{stderr}");
    }
}

/// Checks that programs can use namespaces, signals and limits as they do with other allocators.
#[test]
fn process_features_work_beside_the_allocator() {
    check_preloaded(&compile("cc", "process.c", "process", ["-rdynamic", "-ldl"]));
}

/// Checks that the allocator's threads start in programs with many thread-locals: nearly as many as
/// such a thread has stack beside them, and far more.
#[test]
fn service_threads_start_beside_many_thread_locals() {
    for bytes in [246 << 10, 8 << 20] {
        let define = format!("-DTHREAD_LOCALS={bytes}");
        let folder = format!("-L{}", libraries().display());
        let arguments = [define.as_str(), folder.as_str(), "-lhayloft"];
        let name = format!("thread_locals-{bytes}");
        let program = compile("cc", "thread_locals.c", &name, arguments);
        run_checks(&program, |backend| {
            let mut command = Command::new(&program);
            command.env("HAYLOFT_BACKEND", backend).env("LD_LIBRARY_PATH", libraries());
            command.env("HAYLOFT_BACKGROUND", "1");
            command
        });
    }
}

/// Checks that the settings in `docs/settings.md` leave the system calls that the page names, and
/// no others.
#[test]
fn programs_survive_a_strict_filter() {
    let program = compile("cc", "filter.c", "filter", NOTHING);
    let mut command = preloaded(&program, "fallback");
    output_of(command.env("HAYLOFT_BACKGROUND", "0").arg("threads_survive_a_strict_filter"));
}

/// Checks forks in a program with a library whose fork handlers wait for threads that allocate, and
/// forks while streams are in use.
#[test]
fn forks_work_beside_other_fork_handlers() {
    let linked = |name: &str| {
        let here = format!("-Wl,-rpath,{FOLDER}");
        [format!("-L{FOLDER}"), format!("-l{name}"), here].map(PathBuf::from)
    };
    compile("cc", "fork_handlers_lib.c", "libforkhandlers.so", ["-shared", "-fPIC"]);
    let program = "fork_handlers.c";
    check_preloaded(&compile("cc", program, "fork_handlers", linked("forkhandlers")));
    // The constructors of a program run after those of its libraries, so there the first allocation
    // has to register the allocator's handlers.
    let flags = ["-shared", "-fPIC", "-DALLOCATES"];
    compile("cc", "fork_handlers_lib.c", "liballocatingforkhandlers.so", flags);
    let linked = linked("allocatingforkhandlers").into_iter().chain(archive());
    check_linked(&compile("cc", program, "fork_handlers-archive", linked));
}

#[test]
fn operators_work_preloaded() {
    if is_installed("c++") {
        check_preloaded(&compile("c++", "operators.cc", "operators", CXX));
    }
}

#[test]
fn replaced_operators_are_called() {
    if is_installed("c++") {
        let arguments = [CXX[0], "-Wno-sized-deallocation"];
        check_preloaded(&compile("c++", "replaced_operators.cc", "replaced_operators", arguments));
    }
}

/// Returns the path of `libhayloft.a`, and the system libraries that Rust's standard library needs.
fn archive() -> [PathBuf; 5] {
    let library = libraries().join("libhayloft.a");
    [library, "-lgcc_s".into(), "-lpthread".into(), "-ldl".into(), "-lm".into()]
}

#[test]
fn header_functions_work_linked() {
    let folder = format!("-L{}", libraries().display());
    check_linked(&compile("cc", "api.c", "api-shared", [folder.as_str(), "-lhayloft"]));
    check_linked(&compile("cc", "api.c", "api-archive", archive()));
    // Once more with the thread of `HAYLOFT_STATS_SHM`.
    let published = compile("cc", "api.c", "api-published", [folder.as_str(), "-lhayloft"]);
    run_checks(&published, |backend| {
        let mut command = Command::new(&published);
        command.env("HAYLOFT_BACKEND", backend).env("LD_LIBRARY_PATH", libraries());
        command.env("HAYLOFT_STATS_SHM", "1");
        command
    });
    check_linked(&compile("cc", "threads.c", "threads-archive", archive()));
}

#[test]
fn header_works_in_cxx() {
    if is_installed("c++") {
        let arguments = [PathBuf::from(CXX[0])].into_iter().chain(archive());
        let output = output_of(&mut Command::new(compile("c++", "header.cc", "header", arguments)));
        let table = String::from_utf8_lossy(&output.stderr);
        assert!(table.contains(" held: ") && table.contains("\nCACHE "), "{table}");
    }
}

/// Checks that a set-uid program ignores the settings of the user who starts it, here its memory
/// limit.
#[test]
fn set_uid_programs_ignore_settings() {
    let program = compile("cc", "api.c", "api-set-uid", archive());
    let with_limit = || {
        let mut command = Command::new(&program);
        command.arg("statistics_and_trim").env("HAYLOFT_LIMIT", "1M").env("HAYLOFT_VERBOSE", "1");
        let output = command.output().expect("the program starts");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), stderr.contains("]: active, "))
    };
    assert_eq!(with_limit(), (false, true), "20 MiB were allocated under a limit of 1 MiB");
    let nobody = 65534;
    let status = fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    if status.contains("NoNewPrivs:\t1") || chown(&program, Some(nobody), None).is_err() {
        return skipped(
            "settings of set-uid programs",
            "set-uid is not permitted, or the owner cannot be changed",
        );
    }
    let own = with_settings("settings-set-uid", "limit=8M verbose=1", &archive());
    chown(&own, Some(nobody), None).expect("that of the other program was changed");
    for program in [&program, &own] {
        fs::set_permissions(program, Permissions::from_mode(0o4755))
            .expect("this test created the file");
    }
    assert_eq!(with_limit(), (true, false), "a set-uid program obeyed its user's environment");
    // Its own settings are in force, but its user is not told of them.
    assert_eq!(run_with_settings(&own, false, true), (false, String::new()));
}

/// Compiles a program with settings of its own.
fn with_settings(name: &str, settings: &str, arguments: &[PathBuf]) -> PathBuf {
    let settings = PathBuf::from(format!("-DSETTINGS=\"{settings}\""));
    compile("cc", "settings.c", name, [settings].iter().chain(arguments))
}

/// Runs such a program, with `HAYLOFT_LIMIT=512M` if `has_limit`. Returns whether it could allocate
/// 20 MiB, and the lines of its standard error without the number of the process.
fn run_with_settings(program: &Path, is_preloaded: bool, has_limit: bool) -> (bool, String) {
    let mut command = Command::new(program);
    command.env("LD_LIBRARY_PATH", libraries());
    if is_preloaded {
        command.env("LD_PRELOAD", libraries().join("libhayloft.so"));
    }
    if has_limit {
        command.env("HAYLOFT_LIMIT", "512M");
    }
    let output = command.output().expect("the program starts");
    let lines = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<_> = lines.lines().filter_map(|line| line.split_once("]: ")).collect();
    let lines = lines.into_iter().map(|(_, line)| line).collect::<Vec<_>>().join("\n");
    (output.status.success(), lines)
}

/// Checks that settings built into a program are found however the library comes into it, that the
/// environment overrides them, and that a program can forbid that.
#[test]
fn programs_have_settings_of_their_own() {
    let folder = PathBuf::from(format!("-L{}", libraries().display()));
    let shared = [folder, "-lhayloft".into()];
    let exported = ["-rdynamic".into()];
    let fixed = ["-no-pie".into(), shared[0].clone(), shared[1].clone()];
    let static_pie = |kind: &str| {
        let archive = libraries().join("libhayloft.a");
        [kind.into(), archive, "-lgcc_eh".into(), "-w".into()]
    };
    let ways: [(&str, &[PathBuf]); 6] = [
        ("preloaded", &exported),
        ("shared", &shared),
        ("shared-fixed", &fixed),
        ("archive", &archive()),
        ("static", &static_pie("-static")),
        ("static-pie", &static_pie("-static-pie")),
    ];
    for (way, arguments) in ways {
        let is_preloaded = way == "preloaded";
        let program = with_settings(&format!("settings-{way}"), "limit=8M verbose=1", arguments);
        let (has_more, lines) = run_with_settings(&program, is_preloaded, false);
        assert!(!has_more, "{way}: {lines}");
        assert!(lines.starts_with("active, version "), "{way}: {lines}");
        assert!(lines.ends_with("; program: limit=8M, verbose=1"), "{way}: {lines}");
        let (has_more, lines) = run_with_settings(&program, is_preloaded, true);
        assert!(has_more, "{way}: {lines}");
        let end = "; environment: HAYLOFT_LIMIT=512M; program: verbose=1";
        assert!(lines.ends_with(end), "{way}: {lines}");
    }
    let forbids = with_settings("settings-forbids", "environment=0 limit=8M", &archive());
    assert_eq!(run_with_settings(&forbids, false, true), (false, String::new()));
    let none = with_settings("settings-none", " ", &archive());
    assert_eq!(run_with_settings(&none, false, false), (true, String::new()));
    let invalid = "limit=x limti=1G quux environment=2 limit=2M thp= enviroment=0";
    let (has_more, lines) =
        run_with_settings(&with_settings("settings-invalid", invalid, &archive()), false, false);
    let lines: Vec<_> = lines.lines().collect();
    assert!(has_more && lines.len() == 5, "{lines:?}");
    for (line, start) in lines.iter().zip([
        "hayloft_conf: limit=x: no number of bytes; accepted: [SOFT:]HARD, ",
        "hayloft_conf: limti: no such setting; limit is one",
        "hayloft_conf: quux: not NAME=VALUE",
        "hayloft_conf: environment=2: none of the accepted words; accepted: 0, 1; used instead: 1",
        "hayloft_conf: enviroment: no such setting; environment is one",
    ]) {
        assert!(line.starts_with(start), "{lines:?}");
    }
}

#[test]
fn operators_work_from_the_archive() {
    if is_installed("c++") {
        let program = compile(
            "c++",
            "operators.cc",
            "operators-archive",
            CXX.map(PathBuf::from).into_iter().chain(archive()),
        );
        for name in [
            "every_form_of_new_and_delete",
            "failure_throws",
            "new_handler_is_called",
            "new_handler_may_throw",
            "nothrow_calls_the_new_handler",
            "standard_library",
        ] {
            output_of(Command::new(&program).arg(name));
        }
    }
}

/// Checks static programs, which have no loader.
#[test]
fn static_programs_work() {
    let library = libraries().join("libhayloft.a");
    let arguments = ["-static".into(), library, "-lgcc_eh".into(), "-w".into()];
    let program = compile("cc", "api.c", "api-static", &arguments);
    for name in ["nolock_blocks", "caches", "invalid_caches", "statistics_and_trim"] {
        output_of(Command::new(&program).arg(name));
    }
    let program = compile("cc", "threads.c", "threads-static", &arguments);
    for name in [
        "threads_exchange_blocks",
        "short_lived_threads",
        "forks_amid_threads",
        "fork_handlers_can_allocate",
        "threads_joined_on_another_cpu",
    ] {
        output_of(Command::new(&program).arg(name));
    }
}
