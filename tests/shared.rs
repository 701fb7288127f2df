//! Shared libraries with Hayloft in them: that they can be linked, and loaded into a running process, in which there may be a
//! second Hayloft; and that they stay when they are closed, with what they have in use.
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

/// Builds the library `tests-shared`; its path.
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

/// The library, loaded.
struct Loaded(*mut c_void);

// SAFETY: any thread may use a handle.
unsafe impl Send for Loaded {}

/// What it has for this test. What it makes is named by its address.
struct Functions {
    use_it: extern "C" fn() -> usize,
    make: extern "C" fn() -> usize,
    end: extern "C" fn(usize) -> bool,
    go_on: extern "C" fn(),
}

impl Loaded {
    fn new(path: &CStr) -> Loaded {
        // SAFETY: the path ends in a null byte, and what `dlerror` says is read at once.
        unsafe {
            let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
            assert!(!handle.is_null(), "{:?}", CStr::from_ptr(libc::dlerror()));
            Loaded(handle)
        }
    }

    fn function(&self, name: &CStr) -> *mut c_void {
        // SAFETY: a handle, and a name that ends in a null byte.
        let found = unsafe { libc::dlsym(self.0, name.as_ptr()) };
        assert!(!found.is_null(), "{name:?}");
        found
    }

    fn functions(&self) -> Functions {
        // SAFETY: functions of these types, which stay callable as is tested here.
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
        // SAFETY: a handle that is not used any more; the library says that it stays.
        assert_eq!(unsafe { libc::dlclose(self.0) }, 0);
    }
}

fn is_mapped() -> bool {
    fs::read_to_string("/proc/self/maps").expect("/proc is mounted").contains("libtests_shared.so")
}

/// Loads, uses, and closes the library; it stays. `path` is that of [`library`].
fn load_use_and_close(path: &CStr) {
    assert!(!is_mapped());
    let library = Loaded::new(path);
    let Functions { use_it, make, end, go_on } = library.functions();
    // The first to use its heap is now this thread, now another.
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

/// Of two Hayloft that would register the threads, one does.
#[test]
fn rseq_left_to_us() {
    let path = library();
    Scenario::new("", || load_use_and_close(&path))
        .env("GLIBC_TUNABLES", "glibc.pthread.rseq=0")
        .succeeds();
}

/// Runs something in a thread in which the program's Hayloft has not been before.
fn in_bare_thread<F: FnOnce() + Send>(body: F) {
    extern "C" fn start<F: FnOnce()>(body: *mut c_void) -> *mut c_void {
        // SAFETY: the option below, which nobody else uses meanwhile.
        let body = unsafe { &mut *body.cast::<Option<F>>() };
        if let Some(body) = body.take() {
            body();
        }
        ptr::null_mut()
    }
    let mut body = Some(body);
    // SAFETY: the thread is joined before the option ends.
    unsafe {
        let mut thread = MaybeUninit::uninit();
        let body = (&raw mut body).cast();
        assert_eq!(libc::pthread_create(thread.as_mut_ptr(), ptr::null(), start::<F>, body), 0);
        assert_eq!(libc::pthread_join(thread.assume_init(), ptr::null_mut()), 0);
    }
    assert!(body.is_none());
}

/// A thread is registered once for restartable sequences. Of two Hayloft that would register it, the first one does; the other one
/// serves it without, and the threads that it came to first with.
#[test]
fn each_registers_the_threads_it_comes_to_first() {
    let path = library();
    let scenario = || {
        // The program's has decided already, on another thread. Here the library's comes first, in its constructor.
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
                // Those of the thread before, to which the other one came first.
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

/// As above, without a process of its own, which an emulator cannot start.
#[test]
#[ignore = "the others do the same"]
fn in_this_process() {
    load_use_and_close(&library());
}
