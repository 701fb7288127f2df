//! Shared libraries that contain Hayloft. They can be linked and loaded into a running process,
//! which may contain a second Hayloft. When they are closed, they stay mapped, with the blocks that
//! are in use.
#![cfg(target_env = "gnu")]

use std::env::consts::ARCH;
use std::ffi::{CStr, CString, c_void};
use std::fs;
use std::mem::{self, MaybeUninit};
use std::process::Command;
use std::ptr;
use std::thread;

use tests::routes::Hayloft;
use tests::scenario::{Scenario, on_both_backends};

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// Builds the library `tests-shared`. Returns its path.
fn library() -> CString {
    let folder = concat!(env!("CARGO_TARGET_TMPDIR"), "/shared");
    let target = format!("{ARCH}-unknown-linux-gnu");
    let mut command = Command::new(env!("CARGO"));
    command
        .args(["build", "--locked", "--package", "tests-shared", "--target", &target])
        .args(["--target-dir", folder])
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = command.output().expect("cargo can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    CString::new(format!("{folder}/{target}/debug/libtests_shared.so")).expect("a path")
}

/// A handle of the loaded library.
struct Loaded(*mut c_void);

// SAFETY: a handle of `dlopen` may be used by any thread.
unsafe impl Send for Loaded {}

/// The library's functions. An object of the library is passed as its address.
struct Functions {
    use_it: extern "C" fn() -> usize,
    make: extern "C" fn() -> usize,
    end: extern "C" fn(usize) -> bool,
    go_on: extern "C" fn(),
}

impl Loaded {
    fn new(path: &CStr) -> Loaded {
        // SAFETY: the path ends in a null byte, and the string of `dlerror` is read at once.
        unsafe {
            let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
            assert!(!handle.is_null(), "{:?}", CStr::from_ptr(libc::dlerror()));
            Loaded(handle)
        }
    }

    fn function(&self, name: &CStr) -> *mut c_void {
        // SAFETY: the handle is open, and the name ends in a null byte.
        let found = unsafe { libc::dlsym(self.0, name.as_ptr()) };
        assert!(!found.is_null(), "{name:?}");
        found
    }

    fn functions(&self) -> Functions {
        // SAFETY: the library's functions have these types. That they stay callable is what this
        // file tests.
        unsafe {
            Functions {
                use_it: mem::transmute::<*mut c_void, extern "C" fn() -> usize>(
                    self.function(c"shared_use"),
                ),
                make: mem::transmute::<*mut c_void, extern "C" fn() -> usize>(
                    self.function(c"shared_make"),
                ),
                end: mem::transmute::<*mut c_void, extern "C" fn(usize) -> bool>(
                    self.function(c"shared_end"),
                ),
                go_on: mem::transmute::<*mut c_void, extern "C" fn()>(
                    self.function(c"shared_go_on"),
                ),
            }
        }
    }

    fn close(self) {
        // SAFETY: the handle is open and is not used again. The library stays mapped by its own
        // choice.
        assert_eq!(unsafe { libc::dlclose(self.0) }, 0);
    }
}

fn is_mapped() -> bool {
    fs::read_to_string("/proc/self/maps").expect("/proc is mounted").contains("libtests_shared.so")
}

/// Loads, uses and closes the library at `path`, and checks that it stays usable.
fn load_use_and_close(path: &CStr) {
    assert!(!is_mapped());
    let library = Loaded::new(path);
    let Functions { use_it, make, end, go_on } = library.functions();
    // Threads other than the one that loaded the library use its heap.
    let made: Vec<_> = thread::scope(|scope| {
        let made: Vec<_> = (0..4).map(|_| scope.spawn(|| make())).collect();
        made.into_iter().map(|thread| thread.join().expect("it is made")).collect()
    });
    assert_eq!(use_it(), 1);
    go_on();
    library.close();
    assert!(is_mapped());
    for made in made {
        assert!(thread::spawn(move || end(made)).join().expect("it is ended"));
    }
    assert_eq!(use_it(), 2);
    assert!(end(make()));

    let again = Loaded::new(path);
    assert_eq!(again.function(c"shared_use"), use_it as *mut c_void);
    assert_eq!(use_it(), 3, "it is the same library, in the same state");
    again.close();
    assert_eq!(use_it(), 4);
}

#[test]
fn a_library_that_was_closed_stays() {
    let path = library();
    on_both_backends(|| load_use_and_close(&path));
}

/// Of two Haylofts that would register the threads for restartable sequences, one does.
#[test]
fn rseq_left_to_us() {
    let path = library();
    Scenario::new("", || load_use_and_close(&path))
        .env("GLIBC_TUNABLES", "glibc.pthread.rseq=0")
        .succeeds();
}

/// Runs `body` in a thread that the program's Hayloft has not seen before.
fn in_bare_thread<F: FnOnce() + Send>(body: F) {
    extern "C" fn start<F: FnOnce()>(body: *mut c_void) -> *mut c_void {
        // SAFETY: `body` points to the option below, which no other thread uses until the join.
        let body = unsafe { &mut *body.cast::<Option<F>>() };
        if let Some(body) = body.take() {
            body();
        }
        ptr::null_mut()
    }
    let mut body = Some(body);
    // SAFETY: the thread is joined before the option goes out of scope.
    unsafe {
        let mut thread = MaybeUninit::uninit();
        let body = (&raw mut body).cast();
        assert_eq!(libc::pthread_create(thread.as_mut_ptr(), ptr::null(), start::<F>, body), 0);
        assert_eq!(libc::pthread_join(thread.assume_init(), ptr::null_mut()), 0);
    }
    assert!(body.is_none());
}

/// A thread can be registered once for restartable sequences. Of two Haylofts that would register
/// it, the first one to run on it does. The other one serves this thread without them, and uses
/// them in the threads on which it ran first.
#[test]
fn each_registers_the_threads_it_comes_to_first() {
    let path = library();
    let scenario = || {
        // The program's Hayloft has decided on its backend already, on another thread. On this
        // thread the library's Hayloft runs first, in its constructor.
        let mut library = None;
        in_bare_thread(|| library = Some(Loaded::new(&path)));
        let library = library.expect("it is loaded");
        let Functions { use_it, make, end, go_on } = library.functions();
        go_on();
        let own = |round: usize| (0..1000).map(|word| Box::new(word + round)).collect::<Vec<_>>();
        let mut kept = Vec::new();
        for round in 0..40 {
            in_bare_thread(|| {
                let theirs_first = (round % 2 == 0).then(|| make());
                let ours = own(round);
                let theirs = theirs_first.unwrap_or_else(|| make());
                // Blocks of the previous thread, on which the other Hayloft ran first.
                if let Some((ours, theirs)) = kept.pop() {
                    assert_eq!(ours, own(round - 1));
                    assert!(end(theirs));
                }
                kept.push((ours, theirs));
            });
        }
        assert_eq!(use_it(), 1);
    };
    Scenario::new("", scenario)
        .env("GLIBC_TUNABLES", "glibc.pthread.rseq=0")
        .env("HAYLOFT_BACKEND", "rseq")
        .succeeds();
}

/// As above, but without a process of its own, which an emulator cannot start.
#[test]
#[ignore = "the others do the same"]
fn in_this_process() {
    load_use_and_close(&library());
}
