//! A crash reporter that allocates: its handler of `SIGSEGV` and similar signals parses, collects
//! and formats like any other code.
//!
//! With an allocator that is not async-signal-safe, such a handler may find the heap half changed,
//! or wait forever for a lock that the interrupted code holds. Other reporters fork, or make do
//! with buffers of their own. This handler reads `/proc/self/maps` into a `BTreeMap`, searches the
//! stack for addresses of code, and formats the report with `String`. Then it raises the signal
//! again with its default action, so that the process ends as it would have without the handler.
//!
//! `cargo run --release -p examples --bin crash_reporter` runs children that crash on a thread in
//! an allocation storm, ten times in each way, and checks their reports. With `--crash write`,
//! `--crash overflow` or `--crash kill` the program itself crashes.
//!
//! Besides the allocator, the handler calls thin wrappers of system calls in the C library (`open`,
//! `read`, `write`, `close`, `prctl`, `gettid`, `pause`, `signal`, `raise`), and parts of the
//! standard library that only compute (strings, collections, formatting). It does not use
//! `println!` or `eprintln!`, which lock, or `std::fs`, which looks functions up with `dlsym`.

use std::collections::BTreeMap;
use std::env;
use std::error::Error;
use std::ffi::{CStr, c_int, c_void};
use std::fmt::Write;
use std::hint::black_box;
use std::iter;
use std::mem;
use std::os::unix::process::ExitStatusExt;
use std::os::unix::thread::JoinHandleExt;
use std::process::{self, Command, Stdio};
use std::ptr;
use std::str;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

#[global_allocator]
static GLOBAL: hayloft::Hayloft = hayloft::Hayloft;

const SIGNALS: [(c_int, &str); 5] = [
    (libc::SIGSEGV, "SIGSEGV"),
    (libc::SIGBUS, "SIGBUS"),
    (libc::SIGILL, "SIGILL"),
    (libc::SIGFPE, "SIGFPE"),
    (libc::SIGABRT, "SIGABRT"),
];
/// Bytes of the stack that a handler runs on. A thread that overflowed its own stack has none left.
const HANDLER_STACK: usize = 128 * 1024;
const KINDS: [&str; 3] = ["write", "overflow", "kill"];
/// Crashes of each kind.
const ROUNDS: usize = 10;
const THREADS: usize = 4;
/// An address where nothing is mapped.
const NOWHERE: usize = 0xDEAD0;
const LAST_LINE: &str = "end of report";

// The handler and the functions that it calls.

extern "C" fn on_crash(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    static REPORTING: AtomicBool = AtomicBool::new(false);
    if REPORTING.swap(true, Ordering::AcqRel) {
        // Another thread crashed before, and will end the process.
        loop {
            // SAFETY: `pause` has no preconditions.
            unsafe { libc::pause() };
        }
    }
    // SAFETY: the kernel passed `info` and `context` to this handler, which has `SA_SIGINFO`.
    let report = unsafe { report(signal, &*info, &registers(context)) };
    write_all(libc::STDERR_FILENO, report.as_bytes());
    // SAFETY: `signal` is one of `SIGNALS`. It stays blocked until this handler returns.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

/// Returns the report: everything that is known about the crash.
///
/// # Safety
/// `info` is the kernel's information on this signal.
unsafe fn report(
    signal: c_int,
    info: &libc::siginfo_t,
    registers: &BTreeMap<&str, usize>,
) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    // SAFETY: the caller guarantees that `info` comes from the kernel.
    let _ = unsafe { write_report(&mut text, signal, info, registers) };
    text
}

/// Writes the report to `to`.
///
/// # Safety
/// As for [`report`].
unsafe fn write_report(
    to: &mut String,
    signal: c_int,
    info: &libc::siginfo_t,
    registers: &BTreeMap<&str, usize>,
) -> Result<(), std::fmt::Error> {
    let name =
        SIGNALS.iter().find(|(number, _)| *number == signal).map_or("signal", |known| known.1);
    // SAFETY: the kernel fills in an address if the code is positive, and otherwise the sender.
    // Both are plain numbers.
    let cause = unsafe {
        match info.si_code > 0 {
            true => format!("at address {:#x}", info.si_addr() as usize),
            false => format!("sent by process {}", info.si_pid()),
        }
    };
    let (number, thread) = this_thread();
    writeln!(to, "{name} {cause} on thread {number} {thread:?}")?;
    let mappings = Mappings::read();
    writeln!(to, "code, and what on the stack may be its callers:")?;
    // SAFETY: this is the stack pointer of the interrupted thread, which now runs this handler on
    // another stack.
    let words = unsafe { mappings.stack(registers["sp"]) };
    let code = iter::once(registers["pc"]).chain(words);
    for place in code.filter_map(|address| mappings.code(address)).take(16) {
        writeln!(to, "  {place}")?;
    }
    writeln!(to, "{} registers:", registers.len())?;
    for (name, value) in registers {
        writeln!(to, "  {name:<4}{value:#018x} {}", mappings.describe(*value))?;
    }
    writeln!(to, "{} mappings:", mappings.0.len())?;
    for Mapping { start, end, permissions, offset, path } in mappings.0.values() {
        writeln!(to, "  {start:x}-{end:x} {permissions} {offset:08x} {path}")?;
    }
    writeln!(to, "{LAST_LINE}")
}

/// Returns the interrupted thread's registers by name; `pc` and `sp` are among them.
///
/// # Safety
/// `context` is the last argument of a handler that is running.
unsafe fn registers(context: *mut c_void) -> BTreeMap<&'static str, usize> {
    // SAFETY: the caller guarantees that `context` comes from the kernel.
    let machine = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext };
    #[cfg(target_arch = "x86_64")]
    return [
        ("pc", libc::REG_RIP),
        ("sp", libc::REG_RSP),
        ("rbp", libc::REG_RBP),
        ("rax", libc::REG_RAX),
        ("rbx", libc::REG_RBX),
        ("rcx", libc::REG_RCX),
        ("rdx", libc::REG_RDX),
        ("rsi", libc::REG_RSI),
        ("rdi", libc::REG_RDI),
    ]
    .map(|(name, index)| (name, machine.gregs[index as usize] as usize))
    .into();
    #[cfg(target_arch = "aarch64")]
    return [
        ("pc", machine.pc),
        ("sp", machine.sp),
        ("x0", machine.regs[0]),
        ("x1", machine.regs[1]),
        ("x29", machine.regs[29]),
        ("x30", machine.regs[30]),
    ]
    .map(|(name, value)| (name, value as usize))
    .into();
}

/// Returns the kernel's number and name of this thread.
fn this_thread() -> (c_int, String) {
    let mut name = [0u8; 16];
    // SAFETY: `name` has the 16 bytes that `PR_GET_NAME` writes.
    let number = unsafe {
        libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr());
        libc::gettid()
    };
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    (number, String::from_utf8_lossy(&name[..end]).into_owned())
}

/// A line of `/proc/self/maps`.
struct Mapping {
    start: usize,
    end: usize,
    permissions: String,
    /// The file offset of its first byte.
    offset: usize,
    path: String,
}

impl Mapping {
    fn parse(line: &str) -> Option<Mapping> {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let hexadecimal = |field| usize::from_str_radix(field, 16).ok();
        Some(Mapping {
            start: hexadecimal(start)?,
            end: hexadecimal(end)?,
            permissions: fields.next()?.into(),
            offset: hexadecimal(fields.next()?)?,
            // The path may contain blanks, or be missing.
            path: line.find(['/', '[']).map_or("", |start| &line[start..]).into(),
        })
    }
}

/// All mappings, by start.
struct Mappings(BTreeMap<usize, Mapping>);

impl Mappings {
    fn read() -> Mappings {
        let text = read_file(c"/proc/self/maps");
        let lines = text.split(|byte| *byte == b'\n');
        let mappings = lines.filter_map(|line| Mapping::parse(str::from_utf8(line).ok()?));
        Mappings(mappings.map(|mapping| (mapping.start, mapping)).collect())
    }

    fn find(&self, address: usize) -> Option<&Mapping> {
        let (_, mapping) = self.0.range(..=address).next_back()?;
        (address < mapping.end).then_some(mapping)
    }

    /// Describes an address by its file and the offset there, or by the permissions of a mapping
    /// without a file.
    fn describe(&self, address: usize) -> String {
        match self.find(address) {
            None => String::new(),
            Some(mapping) if mapping.path.is_empty() => mapping.permissions.clone(),
            Some(mapping) => {
                format!("{}+{:#x}", mapping.path, address - mapping.start + mapping.offset)
            }
        }
    }

    /// Describes an address as [`Mappings::describe`] does, if code is mapped there.
    fn code(&self, address: usize) -> Option<String> {
        self.find(address)
            .filter(|mapping| mapping.permissions.contains('x'))
            .map(|_| self.describe(address))
    }

    /// Returns the words of a stack from `pointer` up, at most 64 KiB. If an overflow moved
    /// `pointer` beyond the end of the stack, starts at the end.
    ///
    /// # Safety
    /// The stack belongs to this thread, which now runs on another one.
    unsafe fn stack(&self, pointer: usize) -> Vec<usize> {
        let readable =
            |mapping: &&Mapping| mapping.end > pointer && mapping.permissions.starts_with('r');
        let Some(mapping) = self.0.values().find(readable) else { return Vec::new() };
        let start = pointer.max(mapping.start).next_multiple_of(size_of::<usize>());
        let count = ((mapping.end - start) / size_of::<usize>()).min(8192);
        let words = ptr::with_exposed_provenance::<usize>(start);
        // SAFETY: the words are mapped, readable and aligned. Their thread runs on another stack,
        // so nothing writes them meanwhile.
        (0..count).map(|index| unsafe { words.add(index).read_volatile() }).collect()
    }
}

/// Returns as much of a file as can be read.
fn read_file(path: &CStr) -> Vec<u8> {
    let mut contents = Vec::new();
    let mut chunk = [0u8; 4096];
    // SAFETY: `path` is null-terminated.
    let file = unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    // SAFETY: `chunk` has as many bytes as are read. `read` fails if `open` did.
    while let count @ 1.. = unsafe { libc::read(file, chunk.as_mut_ptr().cast(), chunk.len()) } {
        contents.extend_from_slice(&chunk[..count as usize]);
    }
    // SAFETY: this function opened `file`, or it is -1.
    unsafe { libc::close(file) };
    contents
}

fn write_all(file: c_int, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        // SAFETY: `bytes` is a valid slice.
        let written = unsafe { libc::write(file, bytes.as_ptr().cast(), bytes.len()) };
        // An error cannot be reported anywhere. No signal interrupts the write, as all are blocked.
        let Ok(written @ 1..) = usize::try_from(written) else { return };
        bytes = &bytes[written..];
    }
}

// The program that crashes.

/// Installs the handler for all `SIGNALS`.
fn install() -> Result<(), Box<dyn Error>> {
    for (signal, name) in SIGNALS {
        // SAFETY: `on_crash` has the type of a handler with `SA_SIGINFO`. All functions that it
        // calls are async-signal-safe: see the top of this file.
        let failed = unsafe {
            let mut action: libc::sigaction = mem::zeroed();
            action.sa_sigaction = on_crash as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            // Blocks all signals in the handler: if another handler interrupted this one, that
            // crash would be reported, but this handler would never finish.
            libc::sigfillset(&mut action.sa_mask);
            libc::sigaction(signal, &action, ptr::null_mut())
        };
        if failed != 0 {
            return Err(format!("{name} cannot be handled").into());
        }
    }
    Ok(())
}

/// Gives this thread a signal stack that is never freed. The one from the standard library has
/// 8 KiB, too little for a report.
fn provide_stack() {
    let stack = Box::leak(vec![0u8; HANDLER_STACK].into_boxed_slice());
    let stack =
        libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: HANDLER_STACK };
    // SAFETY: only this thread uses the stack, and it is never freed.
    let failed = unsafe { libc::sigaltstack(&stack, ptr::null_mut()) };
    assert_eq!(failed, 0, "a stack that is large enough is taken");
}

/// Allocates and frees blocks of up to 128 KiB until the process ends. Calls `then` every 5000
/// rounds.
fn storm(mut seed: usize, start: &Barrier, then: impl Fn()) {
    provide_stack();
    start.wait();
    let mut held = vec![Vec::<u8>::new(); 1000];
    for round in 0.. {
        seed = seed.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
        let place = (seed >> 33) % held.len();
        held[place] = Vec::with_capacity(1 << ((seed >> 50) % 18));
        if round % 5000 == 4999 {
            then();
        }
    }
}

#[inline(never)]
fn overflow(depth: usize) -> usize {
    let frame = black_box([depth; 100]);
    if depth == usize::MAX { 0 } else { overflow(depth + 1) + frame[depth % 100] }
}

/// Crashes in the way `kind`, on a thread in an allocation storm.
fn crash(kind: &str) -> Result<(), Box<dyn Error>> {
    install()?;
    provide_stack();
    let start = Arc::new(Barrier::new(THREADS + 1));
    let storms = (0..THREADS).map(|number| {
        let crash: fn() = match kind {
            _ if number > 0 => || (),
            "write" => || {
                // SAFETY: there is none: this write is the crash.
                unsafe { ptr::without_provenance_mut::<u8>(NOWHERE).write_volatile(1) }
            },
            "overflow" => || {
                black_box(overflow(0));
            },
            _ => || (),
        };
        let start = start.clone();
        thread::Builder::new()
            .name(format!("storm-{number}"))
            .spawn(move || storm(number, &start, crash))
    });
    let storms = storms.collect::<Result<Vec<_>, _>>()?;
    start.wait();
    if kind == "kill" {
        // The signal comes from outside, wherever the thread is, which is often in the allocator.
        thread::sleep(Duration::from_micros(2000 + u64::from(process::id()) * 37 % 5000));
        // SAFETY: the thread never ends, so its id is valid.
        unsafe { libc::pthread_kill(storms[0].as_pthread_t() as libc::pthread_t, libc::SIGSEGV) };
    }
    for storm in storms {
        storm.join().map_err(|_| "a thread panicked")?;
    }
    Ok(())
}

// The program that checks.

/// Returns whether the innermost code of the program in the report belongs to the allocator, or
/// `None` if the report has no code. The child that crashed ran this executable, so the symbols of
/// this process resolve its addresses.
fn in_allocator(report: &str, executable: &str) -> Option<bool> {
    let (_, offset) = report.split_once(&format!("{executable}+0x"))?;
    let (offset, _) = offset.split_once('\n')?;
    let offset = usize::from_str_radix(offset, 16).ok()?;
    let mappings = Mappings::read();
    let of_file = |mapping: &&Mapping| {
        mapping.path == executable
            && (mapping.offset..mapping.offset + mapping.end - mapping.start).contains(&offset)
    };
    let mapping = mappings.0.values().find(of_file)?;
    let mut found = false;
    backtrace::resolve((mapping.start + offset - mapping.offset) as *mut c_void, |symbol| {
        found |= symbol.name().is_some_and(|name| name.to_string().contains("hayloft_core"));
    });
    Some(found)
}

/// Runs a child that crashes, and checks its report. Returns whether it crashed in the allocator.
fn check(kind: &str) -> Result<bool, Box<dyn Error>> {
    let executable = env::current_exe()?;
    let child = Command::new(&executable).args(["--crash", kind]).stderr(Stdio::piped()).spawn()?;
    let id = child.id();
    let output = child.wait_with_output()?;
    let report = String::from_utf8(output.stderr)?;
    let executable = executable.to_str().ok_or("a path that is not UTF-8")?;
    let first = match kind {
        "write" => format!("SIGSEGV at address {NOWHERE:#x} on thread"),
        "overflow" => "SIGSEGV at address".to_owned(),
        _ => format!("SIGSEGV sent by process {id} on thread"),
    };
    let lines: Vec<_> = report.lines().collect();
    let whole = output.status.signal() == Some(libc::SIGSEGV)
        && lines
            .first()
            .is_some_and(|line| line.starts_with(&first) && line.ends_with("\"storm-0\""))
        && lines.last() == Some(&LAST_LINE)
        && lines.iter().any(|line| line.contains("r-xp") && line.contains(executable));
    match in_allocator(&report, executable) {
        Some(found) if whole => Ok(found),
        _ => Err(format!("{kind}: {} after the report\n{report}", output.status).into()),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => (),
        ["--crash", kind] if KINDS.contains(&kind) => return crash(kind),
        _ => return Err("usage: crash_reporter [--crash write|overflow|kill]".into()),
    }
    for kind in KINDS {
        let mut in_allocator = 0;
        for _ in 0..ROUNDS {
            in_allocator += usize::from(check(kind)?);
        }
        println!(
            "{kind}: {ROUNDS} crashes, {ROUNDS} whole reports, {in_allocator} from amid the allocator"
        );
    }
    Ok(())
}
