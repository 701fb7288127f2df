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

use tests::entry_points::Hayloft;
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
    allocate: extern "C" fn() -> usize,
    make: extern "C" fn() -> usize,
    drop_object: extern "C" fn(usize) -> bool,
    start_threads: extern "C" fn(),
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
        assert!(!found.is_null(), "the library lacks {name:?}");
        found
    }

    fn functions(&self) -> Functions {
        // SAFETY: the library's functions have these types. That they stay callable is what this
        // file tests.
        unsafe {
            Functions {
                allocate: mem::transmute::<*mut c_void, extern "C" fn() -> usize>(
                    self.function(c"shared_allocate"),
                ),
                make: mem::transmute::<*mut c_void, extern "C" fn() -> usize>(
                    self.function(c"shared_make"),
                ),
                drop_object: mem::transmute::<*mut c_void, extern "C" fn(usize) -> bool>(
                    self.function(c"shared_drop"),
                ),
                start_threads: mem::transmute::<*mut c_void, extern "C" fn()>(
                    self.function(c"shared_start_threads"),
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
    assert!(!is_mapped(), "the library is mapped before it is loaded");
    let library = Loaded::new(path);
    let Functions { allocate, make, drop_object, start_threads } = library.functions();
    // Threads other than the one that loaded the library use its heap.
    let made: Vec<_> = thread::scope(|scope| {
        let made: Vec<_> = (0..4).map(|_| scope.spawn(|| make())).collect();
        made.into_iter().map(|thread| thread.join().expect("the object is created")).collect()
    });
    assert_eq!(allocate(), 1);
    start_threads();
    library.close();
    assert!(is_mapped(), "the closed library was unmapped");
    for made in made {
        assert!(thread::spawn(move || drop_object(made)).join().expect("the object is dropped"));
    }
    assert_eq!(allocate(), 2);
    assert!(drop_object(make()));

    let again = Loaded::new(path);
    assert_eq!(again.function(c"shared_allocate"), allocate as *mut c_void);
    assert_eq!(allocate(), 3, "the library was loaded a second time");
    again.close();
    assert_eq!(allocate(), 4);
}

#[test]
fn closed_library_stays_usable() {
    let path = library();
    on_both_backends(|| load_use_and_close(&path));
}

/// Of two Haylofts in one process, one registers the threads for restartable sequences.
#[test]
fn one_of_two_allocators_registers_threads_for_rseq() {
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

/// A thread can be registered once for restartable sequences. Of two Haylofts, the one that runs
/// first on a thread registers it. The other one serves this thread without restartable sequences.
#[test]
fn each_allocator_registers_the_threads_that_it_serves_first() {
    let path = library();
    let scenario = || {
        // The program's Hayloft has decided on its backend already, on another thread. On this
        // thread the library's Hayloft runs first, in its constructor.
        let mut library = None;
        in_bare_thread(|| library = Some(Loaded::new(&path)));
        let library = library.expect("the library is loaded");
        let Functions { allocate, make, drop_object, start_threads } = library.functions();
        start_threads();
        let own = |round: usize| (0..1000).map(|word| Box::new(word + round)).collect::<Vec<_>>();
        let mut kept = Vec::new();
        for round in 0..40 {
            in_bare_thread(|| {
                let made_first = (round % 2 == 0).then(|| make());
                let ours = own(round);
                let theirs = made_first.unwrap_or_else(|| make());
                // Blocks of the previous thread, on which the other Hayloft ran first.
                if let Some((ours, theirs)) = kept.pop() {
                    assert_eq!(ours, own(round - 1));
                    assert!(drop_object(theirs));
                }
                kept.push((ours, theirs));
            });
        }
        assert_eq!(allocate(), 1);
    };
    Scenario::new("", scenario)
        .env("GLIBC_TUNABLES", "glibc.pthread.rseq=0")
        .env("HAYLOFT_BACKEND", "rseq")
        .succeeds();
}

/// As above, but without a process of its own, which an emulator cannot start.
#[test]
#[ignore = "for an emulator; the other tests do the same in children"]
fn closed_library_stays_usable_without_a_child_process() {
    load_use_and_close(&library());
}
