//! Shared libraries with Hayloft in them: that they can be linked, and loaded into a running process, in which there may be a
//! second Hayloft; and that they stay when they are closed, with what they have in use.
#![cfg(target_env = "gnu")]

use std::env::consts::ARCH;
use std::ffi::{CStr, CString, c_void};
use std::fs;
use std::process::Command;
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
    // SAFETY: functions of these types, which stay callable as is tested here.
    let (use_it, make, end, go_on) = unsafe {
        (
            std::mem::transmute::<*mut c_void, extern "C" fn() -> usize>(
                library.function(c"shared_use"),
            ),
            std::mem::transmute::<*mut c_void, extern "C" fn() -> *mut c_void>(
                library.function(c"shared_make"),
            ),
            std::mem::transmute::<*mut c_void, extern "C" fn(*mut c_void) -> bool>(
                library.function(c"shared_end"),
            ),
            std::mem::transmute::<*mut c_void, extern "C" fn()>(library.function(c"shared_go_on")),
        )
    };
    // The first to use its heap is now this thread, now another.
    let made: Vec<_> = thread::scope(|scope| {
        let made: Vec<_> = (0..4).map(|_| scope.spawn(|| make() as usize)).collect();
        made.into_iter().map(|thread| thread.join().expect("it is made")).collect()
    });
    assert_eq!(use_it(), 1);
    go_on();
    library.close();
    assert!(is_mapped());
    for made in made {
        assert!(thread::spawn(move || end(made as *mut c_void)).join().expect("it is ended"));
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

/// As above, without a process of its own, which an emulator cannot start.
#[test]
#[ignore = "the others do the same"]
fn in_this_process() {
    load_use_and_close(&library());
}
