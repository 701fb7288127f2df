//! Tests the writer of profiles where a program has little: no `/proc`, no system call to read its
//! own memory, no heap.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::io::Read as _;
use std::{env, fs};

use hayloft_core::profile::pprof::{self, Description, HEAP_TYPES};
use tests::entry_points::Hayloft;
use tests::scenario::Scenario;

/// The allocator, which counts the calls of each thread.
struct Counting;

thread_local! {
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: Hayloft fulfils the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: the caller's guarantees are passed on.
        unsafe { Hayloft.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: the caller's guarantees are passed on.
        unsafe { Hayloft.dealloc(block, layout) }
    }
}

#[global_allocator]
static GLOBAL: Counting = Counting;

/// Environment variable with the build ID of this program.
const BUILD_ID: &str = "TEST_BUILD_ID";

/// Writes a profile with many addresses to `sink`.
fn write(sink: &mut dyn FnMut(&[u8]) -> bool) -> bool {
    let description = Description {
        types: &HEAP_TYPES,
        default_type: "inuse_space",
        period: 1,
        time: pprof::now(),
        duration: 0,
        comments: &[],
    };
    pprof::write(&description, sink, |writer| {
        for frame in 1..10_000 {
            writer.sample(&[frame << 8, frame << 4], &[1, 1, 1, 1], &[]);
        }
    })
}

/// Returns a profile of this process, without its compression.
fn profile() -> Vec<u8> {
    let mut file = Vec::new();
    let mut sink = |bytes: &[u8]| {
        file.extend_from_slice(bytes);
        true
    };
    assert!(write(&mut sink));
    let mut message = Vec::new();
    flate2::read::GzDecoder::new(file.as_slice()).read_to_end(&mut message).unwrap();
    message
}

/// Returns the string that follows `path` in a profile: the build ID of its file. `None` if the
/// path is not there.
fn build_id(profile: &[u8], path: &[u8]) -> Option<String> {
    /// Tag of a string.
    const STRING: u8 = 6 << 3 | 2;
    let start = profile.windows(path.len()).position(|part| part == path)? + path.len();
    let &[STRING, len, ref rest @ ..] = &profile[start..] else { return Some(String::new()) };
    Some(String::from_utf8(rest[..len.into()].to_vec()).unwrap())
}

fn own_build_id() -> Option<String> {
    build_id(&profile(), env::current_exe().unwrap().to_str().unwrap().as_bytes())
}

#[test]
fn build_ids_are_found_without_proc_and_system_calls() {
    let expected = own_build_id().expect("the program has a mapping");
    if expected.len() != 40 {
        eprintln!("skipped: the linker writes no build IDs");
        return;
    }
    let path = env::current_exe().unwrap();
    for (label, has_call, has_files) in
        [("call", true, false), ("files", false, true), ("nothing", false, false)]
    {
        let path = path.to_str().unwrap();
        let scenario = Scenario::new(label, move || {
            if !has_files {
                // Files cannot be opened: as if there were no /proc.
                let most = libc::rlimit { rlim_cur: 3, rlim_max: 3 };
                // SAFETY: the call only reads the limit.
                assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const most) }, 0);
                assert!(fs::read("/proc/self/maps").is_err());
            }
            let profile = profile();
            let expected = env::var(BUILD_ID).unwrap();
            assert_eq!(build_id(&profile, path.as_bytes()), Some(expected));
            assert_eq!(build_id(&profile, b"[vdso]").map(|id| id.len()), Some(40));
            assert_eq!(build_id(&profile, b"libc.so.6").is_some(), has_files);
        });
        let scenario = scenario.env(BUILD_ID, &expected);
        match has_call {
            true => scenario.succeeds(),
            false => scenario.refuse_system_call(libc::SYS_process_vm_readv).succeeds(),
        }
    }
}

#[test]
fn a_profile_is_written_without_the_heap() {
    let mut len = 0;
    // The first call of a thread may do more.
    for _ in 0..2 {
        let before = CALLS.get();
        let done = write(&mut |bytes| {
            len += bytes.len();
            true
        });
        assert!(done && len > 1000);
        assert_eq!(CALLS.get(), before, "the writer allocates");
    }
}

/// Profiles may be written by a handler's thread with a small stack.
#[test]
fn a_profile_is_written_on_a_small_stack() {
    let stack = 16 << 10;
    let thread = std::thread::Builder::new().stack_size(stack);
    let written = thread.spawn(|| write(&mut |_| true)).unwrap();
    assert!(written.join().unwrap());
}

#[test]
fn profiles_written_at_once_do_not_mix() {
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..4).map(|_| scope.spawn(profile)).collect();
        for thread in all {
            let profile = thread.join().unwrap();
            let path = env::current_exe().unwrap();
            assert!(build_id(&profile, path.to_str().unwrap().as_bytes()).is_some());
        }
    });
}
