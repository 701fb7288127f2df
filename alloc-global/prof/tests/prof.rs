//! Tests `hayloft-prof` on profiles that the engine's writer made: of fixed addresses that are
//! nowhere, and of functions in this program. Go's `pprof` must agree, where it is installed.

use std::arch::asm;
use std::env;
use std::ffi::CString;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use hayloft_core::profile::pprof::{self, Description, HEAP_TYPES, Label, LabelValue, Writer};

#[global_allocator]
static GLOBAL: hayloft::Hayloft = hayloft::Hayloft;

const PROF: &str = env!("CARGO_BIN_EXE_hayloft-prof");

/// Environment variable with the file that [`write_as_child`] writes.
const FILE: &str = "PROF_FILE";

/// A folder that is removed when this is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("hayloft-prof-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Folder(path)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn write(path: &str, samples: impl FnOnce(&mut Writer<'_>)) {
    let description = Description {
        types: &HEAP_TYPES,
        default_type: "inuse_space",
        period: 512 << 10,
        time: 1_700_000_000_000_000_000,
        duration: 2_500_000_000,
        comments: &["hayloft, in a test"],
    };
    let mut file = fs::File::create(path).unwrap();
    let mut sink = |bytes: &[u8]| file.write_all(bytes).is_ok();
    assert!(pprof::write(&description, &mut sink, samples));
}

/// Writes a profile of addresses that are nowhere.
fn write_fixed(path: &str) {
    write(path, |writer| {
        let tag = |text| [Label { key: "tag", value: LabelValue::Text(text) }];
        writer.sample(&[0x1001, 0x2001, 0x3001], &[10, 640, 2, 128], &tag("index"));
        writer.sample(&[0x1101, 0x2001, 0x3001], &[1, 1 << 20, 1, 1 << 20], &tag("cache"));
        let size = Label { key: "bytes", value: LabelValue::Number(64, "bytes") };
        writer.sample(&[0x1201, 0x3001], &[100, 6400, 1, 64], &[size]);
    });
}

/// Lifetimes are those of the blocks that were freed.
#[test]
fn lifetimes_are_means() {
    let folder = Folder::new();
    let file = folder.file("lifetimes.pb.gz");
    let description = Description {
        types: &hayloft::profile::TYPES,
        default_type: "inuse_space",
        period: 1,
        time: 0,
        duration: 0,
        comments: &[],
    };
    let mut to = fs::File::create(&file).unwrap();
    let mut sink = |bytes: &[u8]| to.write_all(bytes).is_ok();
    assert!(pprof::write(&description, &mut sink, |writer| {
        writer.sample(&[0x1001, 0x3001], &[100, 1000, 20, 200, 0, 0, 4000], &[]);
        writer.sample(&[0x2001, 0x3001], &[20, 200, 0, 0, 0, 0, 5], &[]);
        writer.sample(&[0x4001], &[7, 70, 7, 70, 0, 0, 0], &[]);
        writer.named_sample("object cache a", &[1000, 8000, 0, 0, 0, 0, 0]);
    }));
    check(
        &["lifetimes", &file],
        "\
100 of 127 blocks were freed (78.7%), after 40ms on average

FREED  LIFETIME  CUM  LIFETIME  FUNCTION
   80      50ms   80      50ms  0x1000
   20     0.2ms   20     0.2ms  0x2000
    0         -  100      40ms  0x3000
",
    );
    assert!(output_of(&["top", &file, "--by", "lifetime"]).contains("4.0s"));
    assert_eq!(error_of(2, &["lifetimes", &file, "--by", "peak"]), "lifetimes has no --by");
}

/// Objects of caches are in profiles under the names of the caches, with exact numbers.
#[test]
fn object_caches_are_shown_by_name() {
    use hayloft::cache::{Cache, CacheFlags};

    let folder = Folder::new();
    let file = folder.file("caches.pb.gz");
    let layout = std::alloc::Layout::from_size_align(320, 64).unwrap();
    let build = |name| Cache::builder(name, layout).flags(CacheFlags::NO_MERGE).build().unwrap();
    let (packets, unused) = (build("packets in flight"), build("unused"));
    let objects: Vec<_> = (0..1000).map(|_| packets.alloc().unwrap()).collect();
    for object in &objects[300..] {
        // SAFETY: the object was allocated above, and is freed once.
        unsafe { packets.free(*object) };
    }
    let mut to = fs::File::create(&file).unwrap();
    assert!(hayloft::profile::write(&mut |bytes| to.write_all(bytes).is_ok()));
    let shown = |by| {
        let table = output_of(&["top", &file, "--by", by]);
        assert!(!table.contains("unused"), "{table}");
        let row = table.lines().find(|row| row.ends_with("object cache packets in flight"));
        row.unwrap_or_else(|| panic!("{table}")).split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!((shown("objects"), shown("alloc_objects")), ("300".into(), "1000".into()));
    // 300 objects of 320 bytes.
    assert_eq!(shown("inuse"), "94K");
    let arguments = ["-top", "-sample_index=inuse_objects", "-symbolize=none", &file];
    if let Some(table) = go(&folder, &arguments) {
        assert!(table.contains("object cache packets in flight"), "{table}");
    }
    for object in &objects[..300] {
        // SAFETY: as above.
        unsafe { packets.free(*object) };
    }
    packets.destroy().unwrap();
    unused.destroy().unwrap();
}

#[inline(never)]
extern "C" fn builds_index() -> usize {
    allocates_node()
}

#[inline(never)]
extern "C" fn fills_cache() -> usize {
    // Not the same code as the other function.
    std::hint::black_box(allocates_node()) ^ std::hint::black_box(0)
}

/// Returns an address in its own code, which becomes a part of the caller's.
#[inline(always)]
fn allocates_node() -> usize {
    let address: usize;
    // SAFETY: the instruction only computes an address.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        asm!("lea {}, [rip]", out(reg) address, options(nomem, nostack));
        #[cfg(target_arch = "aarch64")]
        asm!("adr {}, .", out(reg) address, options(nomem, nostack));
    }
    address
}

/// Writes a profile of functions in this program.
fn write_real(path: &str) {
    let main = (main_of_all as extern "C" fn()) as usize + 1;
    write(path, |writer| {
        writer.sample(&[builds_index() + 1, main], &[4, 4000, 3, 3000], &[]);
        writer.sample(&[fills_cache() + 1, main], &[2, 2000, 1, 1000], &[]);
    });
}

#[inline(never)]
extern "C" fn main_of_all() {
    std::hint::black_box(());
}

#[test]
#[ignore = "run as a child by the other tests"]
fn write_as_child() {
    if let Ok(path) = env::var(FILE) {
        write_real(&path);
    }
}

fn prof(arguments: &[&str]) -> Output {
    Command::new(PROF).args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// Returns the output of a run that succeeds without a warning.
fn output_of(arguments: &[&str]) -> String {
    let output = prof(arguments);
    assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the line on standard error, without the name of the program, of a run that fails with
/// `code`.
fn error_of(code: i32, arguments: &[&str]) -> String {
    let output = prof(arguments);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
    assert!(output.stdout.is_empty(), "{arguments:?}: {output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    text.strip_prefix("hayloft-prof: ").unwrap_or(&text).trim().to_owned()
}

#[track_caller]
fn check(arguments: &[&str], expected: &str) {
    let output = output_of(arguments);
    assert_eq!(output, expected, "{arguments:?}:\n{output}");
}

#[test]
fn top_shows_what_functions_hold() {
    let folder = Folder::new();
    let file = folder.file("fixed.pb.gz");
    write_fixed(&file);
    check(
        &["top", &file],
        "\
inuse_space: 1.0M; 2023-11-14T22:13:20Z; a sample every 512K of space

FLAT   FLAT%   CUM    CUM%  FUNCTION
1.0M  100.0%  1.0M  100.0%  0x1100
128B    0.0%  128B    0.0%  0x1000
 64B    0.0%   64B    0.0%  0x1200
  0B    0.0%  1.0M  100.0%  0x3000
  0B    0.0%  1.0M  100.0%  0x2000
",
    );
    check(
        &["top", &file, "--by", "alloc_objects", "-n", "2", "--cum"],
        "\
alloc_objects: 111; 2023-11-14T22:13:20Z; a sample every 512K of space
2 of 5 functions

FLAT  FLAT%  CUM    CUM%  FUNCTION
   0   0.0%  111  100.0%  0x3000
 100  90.1%  100   90.1%  0x1200
",
    );
    check(
        &["top", &file, "--by", "objects", "--focus", "0x2000", "--tag", "index"],
        "\
inuse_objects: 2 of 4 (50.0%); 2023-11-14T22:13:20Z; a sample every 512K of space

FLAT  FLAT%  CUM   CUM%  FUNCTION
   2  50.0%    2  50.0%  0x1000
   0   0.0%    2  50.0%  0x2000
   0   0.0%    2  50.0%  0x3000
",
    );
    let by_label = output_of(&["collapsed", &file, "--tag", "bytes=64"]);
    assert_eq!(by_label, "0x3000;0x1200 64\n");
}

#[test]
fn growth_is_by_function() {
    let folder = Folder::new();
    let (before, after) = (folder.file("before"), folder.file("after"));
    write_fixed(&before);
    write(&after, |writer| {
        writer.sample(&[0x1001, 0x2001, 0x3001], &[10, 640, 3, 192], &[]);
        writer.sample(&[0x1201, 0x3001], &[100, 6400, 1, 64], &[]);
        writer.sample(&[0x1301, 0x3001], &[1, 2048, 1, 2048], &[]);
    });
    check(
        &["diff", &before, &after],
        "\
inuse_space: -1022K, from 1.0M to 2.2K

 FLAT     CUM  BEFORE  AFTER  FUNCTION
-1.0M   -1.0M    1.0M     0B  0x1100
+2.0K   +2.0K      0B   2.0K  0x1300
 +64B    +64B    128B   192B  0x1000
   0B   -1.0M      0B     0B  0x2000
   0B  -1022K      0B     0B  0x3000
",
    );
}

#[test]
fn calls_are_shown_as_a_tree_and_in_lines() {
    let folder = Folder::new();
    let file = folder.file("fixed.pb.gz");
    write_fixed(&file);
    check(
        &["tree", &file, "--by", "alloc", "--min", "0"],
        "\
alloc_space: 1.0M; 2023-11-14T22:13:20Z; a sample every 512K of space

     CUM   CUM%     FLAT  CALLS
    1.0M 100.0%       0B  0x3000
    1.0M  99.4%       0B    0x2000
    1.0M  99.3%     1.0M      0x1100
    640B   0.1%     640B      0x1000
    6.2K   0.6%     6.2K    0x1200
",
    );
    let collapsed = "0x3000;0x1200 64\n0x3000;0x2000;0x1000 128\n0x3000;0x2000;0x1100 1048576\n";
    let mut lines: Vec<_> = collapsed.lines().collect();
    let output = output_of(&["collapsed", &file]);
    let mut found: Vec<_> = output.lines().collect();
    lines.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, lines);
}

#[test]
fn functions_of_this_program_are_found() {
    let folder = Folder::new();
    let file = folder.file("real.pb.gz");
    write_real(&file);
    let collapsed = output_of(&["collapsed", &file]);
    // The inlined function is told apart from its callers.
    let expected = [
        "prof::main_of_all;prof::builds_index;prof::allocates_node 3000",
        "prof::main_of_all;prof::fills_cache;prof::allocates_node 1000",
    ];
    assert_eq!(collapsed.lines().collect::<Vec<_>>(), expected);
    let lines = output_of(&["top", &file, "--lines"]);
    assert!(lines.contains("prof::allocates_node ") && lines.contains("tests/prof.rs:"), "{lines}");
    let info = output_of(&["info", &file]);
    let program = env::current_exe().unwrap();
    for line in [
        "samples    2",
        "duration   2.50s",
        "comment    hayloft, in a test",
        "  inuse_space      3.9K, shown by default",
        &format!("found: {}", program.display()),
    ] {
        assert!(info.contains(line), "{line} is not in:\n{info}");
    }
}

/// Environment variable that makes [`leak_as_child`] leak.
const LEAKS: &str = "PROF_LEAKS";

#[inline(never)]
fn leaks_a_block() {
    std::mem::forget(std::hint::black_box(vec![1_u8; 20_000]));
}

#[test]
#[ignore = "run as a child by the test below"]
fn leak_as_child() {
    if env::var_os(LEAKS).is_some() {
        leaks_a_block();
        std::process::exit(0);
    }
}

/// A report of leaks of a program in Rust gets its functions and lines, without the allocator's.
#[test]
fn reports_of_leaks_get_functions_and_lines() {
    let folder = Folder::new();
    let report = folder.file("leaks.txt");
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", "leak_as_child", "--ignored", "--nocapture"])
        .envs([("HAYLOFT_LEAKS", format!("{report},mean=1")), (LEAKS, "1".into())])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = output_of(&["leaks", &report]);
    let stack = text.split("\n\n").find(|stack| stack.starts_with("In use: 20480 byte(s) in 1 "));
    let stack = stack.unwrap_or_else(|| panic!("{text}"));
    let named =
        |line: &&str| line.contains(" in prof::leaks_a_block ") && line.contains("/prof.rs:");
    let at = stack.lines().skip(1).position(|line| named(&line));
    // Before it there is only `Vec`.
    assert!(at.is_some_and(|at| at < 8) && !stack.contains("hayloft_core::"), "{stack}");
    let all = output_of(&["leaks", "--all-frames", &report]);
    assert!(all.contains("hayloft_core::sampling::record"), "{all}");
    let error = error_of(1, &["leaks", &folder.file("none")]);
    assert!(error.contains("No such file"), "{error}");
}

#[test]
fn symbolised_profiles_need_no_files() {
    let folder = Folder::new();
    let [file, named, again] = ["real", "named", "again"].map(|name| folder.file(name));
    write_real(&file);
    assert_eq!(output_of(&["symbolise", &file, "-o", &named]), "");
    assert_eq!(output_of(&["symbolize", &named, "--output", &again]), "");
    let info = output_of(&["info", &again]);
    assert!(info.contains("functions are in the profile"), "{info}");
    assert!(info.contains("locations  3, 3 of them with functions"), "{info}");
    for arguments in [&["top"][..], &["tree"], &["top", "--lines"]] {
        let shown = |file: &str| output_of(&[arguments, &[file]].concat());
        assert_eq!(shown(&again), shown(&file));
    }
    // To and from a pipe.
    let output = Command::new("sh")
        .args(["-c", "\"$0\" symbolise - -o - < \"$1\" | \"$0\" collapsed -", PROF, &file])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), output_of(&["collapsed", &file]));
}

/// Runs a copy of this program in `folder`, which writes the profile `file`.
fn write_by_copy(copy: &Path, file: &str) {
    fs::copy(env::current_exe().unwrap(), copy).unwrap();
    let status = Command::new(copy)
        .args(["--exact", "write_as_child", "--ignored"])
        .env(FILE, file)
        .stdout(Stdio::null())
        .status();
    assert!(status.unwrap().success());
}

#[test]
fn programs_count_only_with_their_build_id() {
    let folder = Folder::new();
    let (file, copy, elsewhere) = (folder.file("profile"), folder.0.join("copy"), Folder::new());
    write_by_copy(&copy, &file);
    if !output_of(&["info", &file]).contains(&format!("found: {}", copy.display())) {
        panic!("the copy is not found");
    }
    fs::rename(&copy, elsewhere.0.join("copy")).unwrap();
    let output = prof(&["collapsed", &file]);
    let error = String::from_utf8(output.stderr).unwrap();
    let name = copy.display();
    assert_eq!(error, format!("hayloft-prof: no functions of {name}: not on this machine\n"));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.starts_with("copy+0x"), "{text}");
    let folder_option = elsewhere.0.to_str().unwrap();
    let found = output_of(&["collapsed", &file, "--symbols", folder_option]);
    assert!(found.starts_with("prof::main_of_all;prof::builds_index"), "{found}");
    // Another program at the same place.
    fs::copy(PROF, &copy).unwrap();
    let output = prof(&["collapsed", &file]);
    let error = String::from_utf8(output.stderr).unwrap();
    let expected = format!("hayloft-prof: no functions of {name}: the file has another build ID\n");
    assert_eq!(error, expected, "do the programs have build IDs?");
    fs::write(&copy, "no program").unwrap();
    let error = String::from_utf8(prof(&["collapsed", &file]).stderr).unwrap();
    assert!(
        error.starts_with(&format!("hayloft-prof: no functions of {name}: {name}: ")),
        "{error}"
    );
}

#[test]
fn pictures_and_pages_are_written() {
    let folder = Folder::new();
    let [file, picture, page] = ["real", "flame.svg", "page.html"].map(|name| folder.file(name));
    write_real(&file);
    assert_eq!(output_of(&["flame", &file, "-o", &picture]), "");
    assert_eq!(output_of(&["html", &file, "-o", &page]), "");
    for written in [&picture, &page] {
        let text = fs::read_to_string(written).unwrap();
        let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
        roxmltree::Document::parse_with_options(&text, options).unwrap();
        assert!(text.contains("prof::builds_index"));
    }
    assert!(output_of(&["html", &file, "-o", "-"]).starts_with("<!DOCTYPE html>"));
    let nothing = folder.file("nothing");
    write(&nothing, |_| ());
    let error = error_of(1, &["flame", &nothing, "-o", &picture]);
    assert_eq!(error, format!("{nothing}: there are no samples to draw"));
    assert!(output_of(&["html", &nothing, "-o", "-"]).contains("There are no samples"));
    assert_eq!(output_of(&["collapsed", &nothing]), "");
    let error = error_of(1, &["html", &file, "-o", "/nowhere/page.html"]);
    assert!(error.starts_with("/nowhere/page.html: No such file"), "{error}");
}

#[test]
fn other_files_are_refused() {
    let folder = Folder::new();
    let (file, wrong) = (folder.file("fixed"), folder.file("wrong"));
    write_fixed(&file);
    let good = fs::read(&file).unwrap();
    let error = |bytes: &[u8]| {
        fs::write(&wrong, bytes).unwrap();
        let error = error_of(1, &["top", &wrong]);
        error.strip_prefix(&format!("{wrong}: ")).unwrap_or(&error).to_owned()
    };
    assert_eq!(error(b""), "this is no profile in pprof's format");
    assert!(error(b"what is this?").starts_with("this is no profile in pprof's format"));
    let text = error(b"heap profile:      1:      64 [     1:      64] @ heap_v2/524288\n");
    assert!(text.starts_with("this is the text format of gperftools or jemalloc"), "{text}");
    for len in [3, 10, 20, good.len() / 2, good.len() - 9, good.len() - 1] {
        assert_eq!(error(&good[..len]), "the file is cut off", "{len} bytes");
    }
    let mut damaged = good.clone();
    let last = damaged.len() - 6;
    damaged[last] ^= 1;
    assert!(error(&damaged).starts_with("the compressed data is damaged"));
    assert!(error_of(1, &["top", "/nowhere"]).starts_with("/nowhere: No such file"));
    assert!(error_of(1, &["info", "/"]).starts_with("/: Is a directory"));
    let by = error_of(2, &["top", &file, "--by", "colour"]);
    let types = "alloc_objects, alloc_space, inuse_objects, inuse_space";
    assert_eq!(by, format!("{file} has no values `colour`, but {types}"));
    for arguments in [&["top"][..], &["flame", &file], &["top", &file, "--focus", "("], &["x"], &[]]
    {
        assert_eq!(prof(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

/// Bytes that decode as a profile by chance, with wrong numbers everywhere, must do no harm.
#[test]
fn damaged_profiles_end_no_program() {
    let folder = Folder::new();
    let (fixed, real, wrong) = (folder.file("fixed"), folder.file("real"), folder.file("wrong"));
    write_fixed(&fixed);
    write_real(&real);
    let plain = [&fixed, &real].map(|file| {
        let packed = Command::new("gzip").args(["-dc", file]).output();
        packed.expect("gzip is installed").stdout
    });
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    for round in 0..22 {
        // The real one is slow, as it reads this program's debug information.
        let mut bytes = plain[usize::from(round % 10 == 9)].clone();
        for _ in 0..1 + random() % 8 {
            let at = random() % bytes.len();
            bytes[at] = random() as u8;
        }
        fs::write(&wrong, &bytes).unwrap();
        for command in ["top", "tree", "collapsed", "info"] {
            let output = prof(&[command, &wrong]);
            assert!(matches!(output.status.code(), Some(0 | 1)), "{command}: {output:?}");
        }
    }
}

#[test]
fn closed_output_is_not_a_failure() {
    let folder = Folder::new();
    let file = folder.file("fixed");
    write(&file, |writer| {
        for frame in 1..20_000 {
            writer.sample(&[frame << 8, 0x3001], &[1, 1, 1, 1], &[]);
        }
    });
    let mut command = Command::new(PROF);
    command.args(["collapsed", &file]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

/// Runs Go's `pprof`. Returns `None` if it is not installed.
fn go(folder: &Folder, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new("go");
    command.args(["tool", "pprof"]).args(arguments);
    command.env("HOME", &folder.0).env("PPROF_TMPDIR", &folder.0).env("GOTOOLCHAIN", "local");
    let Ok(output) = command.output() else {
        // Bypasses the capture of a test's output.
        let _ = writeln!(std::io::stderr(), "skipped: Go's pprof is not installed");
        return None;
    };
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    Some(String::from_utf8(output.stdout).unwrap())
}

/// Returns the lines of a text, with single spaces.
fn lines(text: &str) -> Vec<String> {
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn go_reads_the_numbers() {
    let folder = Folder::new();
    let file = folder.file("fixed.pb.gz");
    write_fixed(&file);
    let Some(raw) = go(&folder, &["-raw", "-symbolize=none", &file]) else { return };
    let lines = lines(&raw);
    for line in [
        "PeriodType: space bytes",
        "Period: 524288",
        "alloc_objects/count alloc_space/bytes inuse_objects/count inuse_space/bytes[dflt]",
        "10 640 2 128: 1 2 3",
        "tag:[index]",
        "1 1048576 1 1048576: 4 2 3",
        "100 6400 1 64: 5 3",
        "bytes:[64 bytes]",
        "1: 0x1000",
        "5: 0x1200",
    ] {
        assert!(lines.iter().any(|found| found.starts_with(line)), "{line} is not in:\n{raw}");
    }
    // The main program comes first.
    let program = env::current_exe().unwrap();
    let first = lines.iter().find(|line| line.starts_with("1: 0x") && line.contains('/'));
    assert!(first.is_some_and(|line| line.contains(program.to_str().unwrap())), "{raw}");
}

#[test]
fn go_shows_the_functions() {
    let folder = Folder::new();
    let (file, named) = (folder.file("real.pb.gz"), folder.file("named.pb.gz"));
    write_real(&file);
    output_of(&["symbolise", &file, "-o", &named]);
    let arguments = ["-top", "-cum", "-unit=B", "-symbolize=none", &named];
    let Some(top) = go(&folder, &arguments) else { return };
    for (function, cum) in [("main_of_all", 4000), ("builds_index", 3000), ("fills_cache", 1000)] {
        let line = top.lines().find(|line| line.contains(function));
        let line = line.unwrap_or_else(|| panic!("{function} is not in:\n{top}"));
        assert!(line.contains(&format!(" {cum}B ")), "{top}");
    }
}

/// Functions of a library in C are found by this program and by Go's `pprof`. (Go 1.19 expects that
/// code begins on a page boundary of the file. GNU's linker does that, but not LLVM's, which links
/// this program.)
#[test]
fn functions_of_a_library_are_found() {
    const SOURCE: &str = "int grows_table(int size) { return size + 1; }\n\
                          int fills_table(int size) { return grows_table(size) + 2; }\n";
    let folder = Folder::new();
    let (source, library) = (folder.file("table.c"), folder.file("lib table.so"));
    let file = folder.file("library.pb.gz");
    fs::write(&source, SOURCE).unwrap();
    let flags = ["-g", "-O0", "-shared", "-fPIC", "-Wl,--build-id", "-o", &library, &source];
    assert!(Command::new("cc").args(flags).status().unwrap().success());
    let path = CString::new(library.clone()).unwrap();
    // SAFETY: the library runs no code when it is loaded, and stays loaded.
    let [grows, fills] = unsafe {
        let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
        assert!(!library.is_null());
        [c"grows_table", c"fills_table"].map(|name| libc::dlsym(library, name.as_ptr()) as usize)
    };
    assert!(grows != 0 && fills != 0);
    // Within the functions, as return addresses are.
    write(&file, |writer| {
        writer.sample(&[grows + 5, fills + 5], &[1, 512, 1, 512], &[]);
    });
    assert_eq!(output_of(&["collapsed", &file]), "fills_table;grows_table 512\n");
    assert!(output_of(&["info", &file]).contains(&format!("found: {library}")));
    let with_lines = output_of(&["collapsed", &file, "--lines"]);
    let expected = format!("fills_table {source}:2;grows_table {source}:1 512\n");
    assert_eq!(with_lines, expected);
    let arguments = ["-top", "-unit=B", "-symbolize=local", &file];
    let Some(top) = go(&folder, &arguments) else { return };
    for expected in ["512B 100% 100% 512B 100% grows_table", "0 0% 100% 512B 100% fills_table"] {
        assert!(lines(&top).iter().any(|line| line.starts_with(expected)), "{top}");
    }
}
