//! Stacks captured by Hayloft: complete and right on code of all kinds, in every context.
//!
//! They are compared with those of the C library's `backtrace`, which reads the same tables.
#![cfg(all(target_env = "gnu", any(target_arch = "x86_64", target_arch = "aarch64")))]

use std::ffi::{CString, c_int, c_void};
use std::hint::black_box;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::{fmt, mem, ptr, thread};

use hayloft_core::stack;
use tests::entry_points::Hayloft;
use tests::fork::{exit_child, fork, wait_for};
use tests::process::this_thread;
use tests::scenario::Scenario;
use tests::skipped;

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// Most frames that are captured.
const MOST: usize = 64;

unsafe extern "C" {
    fn backtrace(frames: *mut *mut c_void, room: c_int) -> c_int;
}

/// A stack, as one of the two sees it.
#[derive(Clone, Copy)]
struct Stack {
    frames: [usize; MOST],
    len: usize,
}

impl Stack {
    /// Captures the stack by Hayloft. Like [`Stack::by_c_library`], it is inlined, so that both see
    /// the same frames, except for the innermost.
    #[inline(always)]
    fn captured() -> Stack {
        let mut frames = [0; MOST];
        let len = stack::capture(&mut frames);
        Stack { frames, len }
    }

    #[inline(always)]
    fn by_c_library() -> Stack {
        let mut frames = [ptr::null_mut(); MOST];
        // SAFETY: `frames` has room for as many frames as the call says.
        let len = unsafe { backtrace(frames.as_mut_ptr(), MOST as c_int) } as usize;
        Stack { frames: frames.map(|frame: *mut c_void| frame.addr()), len }
    }

    fn frames(&self) -> &[usize] {
        &self.frames[..self.len]
    }

    fn outermost(&self) -> usize {
        self.frames().last().copied().unwrap_or(0)
    }

    /// Returns whether a captured stack is the same as one of the C library's, which has the
    /// address of the next instruction for code that was interrupted.
    fn agrees_with(&self, theirs: &Stack) -> bool {
        let agree = |(own, theirs): (&usize, &usize)| *own == *theirs || *own == *theirs + 1;
        self.len == theirs.len && self.frames().iter().zip(theirs.frames()).skip(1).all(agree)
    }
}

impl fmt::Debug for Stack {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_list().entries(self.frames().iter().map(|frame| format!("{frame:#x}"))).finish()
    }
}

/// Checks that both agree on the stack from here on, and that it has at least some depth. Returns
/// the captured one.
#[inline(never)]
#[track_caller]
fn check(least: usize) -> Stack {
    // The second time the rules are remembered.
    for _ in 0..2 {
        let (own, theirs) = (Stack::captured(), Stack::by_c_library());
        assert!(own.agrees_with(&theirs), "captured {own:#?}, expected {theirs:#?}");
        assert!(own.len >= least, "only {} frames: {own:?}", own.len);
    }
    Stack::captured()
}

#[inline(never)]
fn recurse(depth: usize, last: &mut dyn FnMut()) -> usize {
    if depth == 0 {
        last();
        return 0;
    }
    black_box(recurse(depth - 1, last)) + 1
}

#[test]
fn rust_frames_are_found() {
    check(3);
    recurse(30, &mut || {
        check(33);
    });
    thread::spawn(|| check(3)).join().expect("both agree in a new thread");
}

#[test]
fn innermost_frames_of_a_deep_stack_are_found() {
    recurse(200, &mut || {
        let all = check(MOST);
        let mut few = [0; 10];
        assert_eq!(stack::capture(&mut few), 10);
        assert_eq!(few[1..], all.frames[2..11]);
    });
}

type Call = unsafe extern "C" fn(*mut c_void);
type CallWith = unsafe extern "C" fn(Call, *mut c_void);
type CallWithLength = unsafe extern "C" fn(Call, *mut c_void, usize);
type CallDeep =
    unsafe extern "C" fn(Call, *mut c_void, c_int, c_int, c_int, c_int, c_int, c_int) -> c_int;

/// Calls a closure from C.
unsafe extern "C" fn call<F: FnMut()>(with: *mut c_void) {
    // SAFETY: the functions below pass a pointer to the closure.
    unsafe { (*with.cast::<F>())() }
}

/// `frames.c`, compiled in some way and loaded.
struct Library(*mut c_void);

// SAFETY: a handle of `dlopen` may be used by any thread.
unsafe impl Send for Library {}

impl Library {
    /// Compiles the library. Returns its path, or `None` without a compiler.
    fn compile(name: &str, flags: &[&str]) -> Option<CString> {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("libframes_{name}.so"));
        let output = Command::new("cc")
            .args(["-shared", "-fPIC", "-Wall", "-o"])
            .args([path.as_os_str(), concat!(env!("CARGO_MANIFEST_DIR"), "/frames.c").as_ref()])
            .args(flags)
            .output();
        let Ok(output) = output else {
            skipped("code of a C compiler", "there is no `cc`");
            return None;
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(CString::new(path.as_os_str().as_bytes()).expect("a path"))
    }

    fn load(path: &CString) -> Library {
        // SAFETY: the path ends in a null byte; the library has no constructors.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        assert!(!handle.is_null(), "{path:?} cannot be loaded");
        Library(handle)
    }

    fn function(&self, name: &str) -> *mut c_void {
        let name = CString::new(name).expect("a name");
        // SAFETY: the handle is open, and the name ends in a null byte.
        let found = unsafe { libc::dlsym(self.0, name.as_ptr()) };
        assert!(!found.is_null(), "the library lacks {name:?}");
        found
    }

    /// Calls `last` by one of the functions.
    fn call<F: FnMut()>(&self, name: &str, mut last: F) {
        let with = (&raw mut last).cast();
        let function = self.function(name);
        // SAFETY: the functions of this name have these types; `last` outlives the calls.
        unsafe {
            match name {
                "frames_deep" => {
                    let deep = mem::transmute::<*mut c_void, CallDeep>(function);
                    deep(call::<F>, with, 20, 1, 2, 3, 4, 5);
                }
                "frames_variable" | "frames_aligned" => {
                    let function = mem::transmute::<*mut c_void, CallWithLength>(function);
                    function(call::<F>, with, black_box(100));
                }
                _ => mem::transmute::<*mut c_void, CallWith>(function)(call::<F>, with),
            }
        }
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // SAFETY: the handle is open, and no code of the library is running.
        assert_eq!(unsafe { libc::dlclose(self.0) }, 0);
    }
}

const FUNCTIONS: [&str; 5] =
    ["frames_deep", "frames_variable", "frames_aligned", "frames_sorted", "frames_sized"];

#[test]
fn c_frames_are_found() {
    let ways: [(&str, &[&str]); 4] = [
        ("plain", &["-O0"]),
        ("without_pointers", &["-O2", "-fomit-frame-pointer"]),
        ("with_pointers", &["-O2", "-fno-omit-frame-pointer"]),
        ("small", &["-Os", "-fomit-frame-pointer"]),
    ];
    for (name, flags) in ways {
        let Some(path) = Library::compile(name, flags) else { return };
        let library = Library::load(&path);
        for function in FUNCTIONS {
            library.call(function, || {
                check(5);
            });
        }
        // All kinds in one stack.
        library.call("frames_variable", || {
            library.call("frames_sorted", || {
                library.call("frames_aligned", || {
                    library.call("frames_deep", || {
                        check(30);
                    });
                });
            });
        });
    }
}

/// Where there are no tables, frame pointers lead on, and without these the walk ends.
#[test]
fn c_frames_without_tables_are_walked_by_frame_pointers() {
    let none = ["-O1", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables", "-fno-exceptions"];
    let with = |flag| none.iter().copied().chain([flag]).collect::<Vec<_>>();
    let Some(path) = Library::compile("no_tables", &with("-fno-omit-frame-pointer")) else {
        return;
    };
    let library = Library::load(&path);
    let outermost = Stack::captured().outermost();
    for function in ["frames_deep", "frames_variable", "frames_aligned", "frames_sized"] {
        library.call(function, || {
            let captured = Stack::captured();
            assert_eq!(captured.outermost(), outermost, "{function}: {captured:?}");
            let least = if function == "frames_deep" { 21 } else { 1 };
            assert!(captured.len > least, "{function}: {captured:?}");
        });
    }
    let Some(path) = Library::compile("nothing", &with("-fomit-frame-pointer")) else { return };
    let library = Library::load(&path);
    for function in FUNCTIONS {
        // The frame of `call`, and what a stray frame pointer leads to.
        library.call(function, || assert!(Stack::captured().len > 1));
    }
}

/// Of two libraries at one address, the second one's rules are used.
#[test]
fn rules_of_a_library_that_is_gone_are_not_used() {
    Scenario::new("", || {
        let compile = |size: &str| {
            let flags = ["-O2", "-fno-toplevel-reorder", &format!("-DSIZE={size}")];
            Library::compile(&format!("sized_{size}"), &flags)
        };
        let (Some(small), Some(large)) = (compile("160"), compile("224")) else { return };
        let mut places = Vec::new();
        for path in [&small, &large].into_iter().cycle().take(50) {
            let library = Library::load(path);
            places.push(library.function("frames_sized").addr());
            library.call("frames_sized", || {
                check(5);
            });
            library.call("frames_deep", || {
                check(25);
            });
        }
        let is_same = places.windows(2).filter(|places| places[0] == places[1]).count();
        assert!(is_same > 10, "the libraries were loaded at different addresses: {places:x?}");
    })
    .succeeds();
}

#[test]
fn fork_children_capture_their_stack() {
    let body = || {
        let before = check(3);
        let child = fork();
        if child == 0 {
            assert_eq!(check(3).outermost(), before.outermost());
            exit_child();
        }
        wait_for(child);
        before
    };
    let before = body();
    thread::spawn(body).join().expect("a fork child of a thread captures its stack");
    let outermost = AtomicUsize::new(0);
    // SAFETY: the child, which borrows this thread's memory, only captures its stack and leaves.
    unsafe {
        let child = vfork();
        if child == 0 {
            outermost.store(Stack::captured().outermost(), Ordering::Relaxed);
            libc::_exit(0);
        }
        assert!(child > 0 && libc::waitpid(child, ptr::null_mut(), 0) == child);
    }
    assert_eq!(outermost.into_inner(), before.outermost());
}

unsafe extern "C" {
    fn vfork() -> libc::pid_t;
}

/// Signals of a storm.
const MOST_SIGNALS: usize = 5000;

/// Results of the handler below.
static HANDLED: AtomicUsize = AtomicUsize::new(0);
static TRUNCATED: AtomicUsize = AtomicUsize::new(0);
static WRONG: AtomicUsize = AtomicUsize::new(0);
/// The stack of the interrupted thread ends here.
static OUTERMOST: AtomicUsize = AtomicUsize::new(0);
/// The first stack that was wrong.
static BAD: [AtomicUsize; MOST] = [const { AtomicUsize::new(0) }; MOST];

extern "C" fn interrupted(_signal: c_int) {
    let (own, theirs) = (Stack::captured(), Stack::by_c_library());
    let outermost = OUTERMOST.load(Ordering::Relaxed);
    // Not all code has tables: the first and the last function of a library have none.
    let is_wrong = theirs.outermost() == outermost && !own.agrees_with(&theirs);
    if own.outermost() != outermost {
        TRUNCATED.fetch_add(1, Ordering::Relaxed);
    }
    if is_wrong && WRONG.fetch_add(1, Ordering::Relaxed) == 0 {
        for (to, frame) in BAD.iter().zip(own.frames()) {
            to.store(*frame, Ordering::Relaxed);
        }
    }
    // The next one comes after 10 to 100 microseconds of progress.
    let handled = HANDLED.fetch_add(1, Ordering::Relaxed);
    if handled < MOST_SIGNALS {
        set_timer(10_000 + (handled as libc::c_long * 7919) % 90_000);
    }
}

fn handle(signal: c_int, flags: c_int) {
    // SAFETY: `backtrace` has loaded what it needs, so that the handler calls nothing that is not
    // allowed there.
    unsafe {
        Stack::by_c_library();
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = interrupted as *const () as usize;
        action.sa_flags = flags | libc::SA_RESTART;
        assert_eq!(libc::sigaction(signal, &raw const action, ptr::null_mut()), 0);
    }
}

/// The timer that sends the signals.
static TIMER: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

/// Lets the timer send a signal soon, at no particular instruction.
fn set_timer(after: libc::c_long) {
    // SAFETY: a struct of numbers may be zero; the timer exists.
    unsafe {
        let mut time: libc::itimerspec = mem::zeroed();
        time.it_value.tv_nsec = after;
        libc::timer_settime(TIMER.load(Ordering::Relaxed), 0, &raw const time, ptr::null_mut());
    }
}

/// Runs `work` again and again, while a storm of signals interrupts it, until enough of them are
/// handled.
fn storm(flags: c_int, mut work: impl FnMut()) {
    handle(libc::SIGPROF, flags);
    OUTERMOST.store(Stack::captured().outermost(), Ordering::Relaxed);
    // SAFETY: the structs are filled before their use. The stack is never freed, and no handler
    // runs on it now. That of std is too small for this handler without optimisation.
    unsafe {
        let stack = vec![0u8; 64 << 10].leak();
        let mut alternate: libc::stack_t = mem::zeroed();
        alternate.ss_sp = stack.as_mut_ptr().cast();
        alternate.ss_size = stack.len();
        assert_eq!(libc::sigaltstack(&raw const alternate, ptr::null_mut()), 0);
        let mut event: libc::sigevent = mem::zeroed();
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = libc::SIGPROF;
        event.sigev_notify_thread_id = this_thread();
        let mut timer = ptr::null_mut();
        let clock = libc::CLOCK_MONOTONIC;
        assert_eq!(libc::timer_create(clock, &raw mut event, &raw mut timer), 0);
        TIMER.store(timer, Ordering::Relaxed);
    }
    set_timer(1);
    while HANDLED.load(Ordering::Relaxed) < MOST_SIGNALS {
        work();
    }
    let [truncated, wrong] = [&TRUNCATED, &WRONG].map(|count| count.load(Ordering::Relaxed));
    let bad = BAD.each_ref().map(|frame| frame.load(Ordering::Relaxed));
    println!("{truncated} incomplete, {wrong} wrong of {}", HANDLED.load(Ordering::Relaxed));
    if wrong > 0 {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc is mounted");
        panic!("{bad:x?}\n{maps}");
    }
}

/// Allocates, captures stacks, sorts, asks the kernel's functions for the time.
fn busy() {
    let mut words: Vec<String> = (0..20).map(|word| format!("{}", word * 7 % 11)).collect();
    words.sort();
    black_box(&words);
    recurse(5, &mut || {
        black_box(Stack::captured());
    });
    black_box(std::time::Instant::now());
    let mut large = vec![1u8; 3 << 20];
    large.shrink_to(1 << 20);
    black_box(large);
}

#[test]
fn storm_of_signals_captures_complete_stacks() {
    Scenario::new("", || storm(0, busy)).succeeds();
}

#[test]
fn storm_of_signals_on_an_alternate_stack_captures_complete_stacks() {
    Scenario::new("", || storm(libc::SA_ONSTACK, busy)).succeeds();
}

/// A handler captures the stack of a thread that is in the loader.
#[test]
fn storm_of_signals_interrupts_the_loader() {
    Scenario::new("", || {
        let Some(path) = Library::compile("loader", &["-O2"]) else { return };
        storm(0, || {
            let library = Library::load(&path);
            library.call("frames_deep", || {
                check(20);
            });
        });
    })
    .succeeds();
}

/// Another thread loads and unloads libraries, one at the address of another.
#[test]
fn libraries_come_and_go_while_stacks_are_captured() {
    let Some(one) = Library::compile("one", &["-O2", "-DSIZE=160"]) else { return };
    let Some(other) = Library::compile("other", &["-O2", "-DSIZE=224"]) else { return };
    static IS_OVER: AtomicBool = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for path in [&one, &other].into_iter().cycle().take(300) {
                let library = Library::load(path);
                library.call("frames_sized", || {
                    check(4);
                });
            }
            IS_OVER.store(true, Ordering::Relaxed);
        });
        while !IS_OVER.load(Ordering::Relaxed) {
            recurse(20, &mut || {
                check(20);
            });
        }
    });
}

/// Runs `body` in a thread with a stack of the least size, filled with a pattern. Returns the
/// number of bytes that were used.
fn in_small_stack<F: FnMut() + Send>(mut body: F) -> usize {
    const SIZE: usize = 64 << 10;
    const PATTERN: u8 = 0xa5;
    extern "C" fn start<F: FnMut()>(body: *mut c_void) -> *mut c_void {
        // SAFETY: the closure below, which no other thread uses until the join.
        unsafe { (*body.cast::<F>())() };
        ptr::null_mut()
    }
    // SAFETY: the stack is mapped, and unmapped when its thread has ended.
    unsafe {
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let stack = libc::mmap(ptr::null_mut(), SIZE, rights, flags, -1, 0).cast::<u8>();
        assert!(!stack.is_null() && stack.addr() != usize::MAX);
        stack.write_bytes(PATTERN, SIZE);
        let (mut attributes, mut thread) = (mem::zeroed(), mem::zeroed());
        libc::pthread_attr_init(&raw mut attributes);
        assert_eq!(libc::pthread_attr_setstack(&raw mut attributes, stack.cast(), SIZE), 0);
        let argument = (&raw mut body).cast();
        let error =
            libc::pthread_create(&raw mut thread, &raw const attributes, start::<F>, argument);
        assert_eq!(error, 0);
        assert_eq!(libc::pthread_join(thread, ptr::null_mut()), 0);
        let unused = (0..SIZE).take_while(|at| stack.add(*at).read() == PATTERN).count();
        libc::munmap(stack.cast(), SIZE);
        SIZE - unused
    }
}

#[test]
fn capture_takes_little_stack() {
    let mut frames = [0; MOST];
    let idle = in_small_stack(|| {
        black_box(&mut frames);
    });
    let mut len = 0;
    let used = in_small_stack(|| len = stack::capture(&mut frames));
    let most = if cfg!(debug_assertions) { 4608 } else { 1536 };
    println!("{} bytes of stack", used - idle);
    assert!(len > 1);
    assert!(used - idle <= most, "a capture took {} bytes of stack", used - idle);
}

/// Where the kernel refuses to read memory for a thread, the stacks of threads are captured all the
/// same.
#[test]
fn stacks_are_captured_without_permission_to_read_memory() {
    let body = || {
        check(3);
        thread::spawn(|| check(3)).join().expect("both agree in a new thread");
        in_own_stack(&mut || {
            // The end of this stack is not known.
            black_box(Stack::captured());
        });
    };
    let scenario = Scenario::new("", body);
    scenario.refuse_system_call(libc::SYS_process_vm_readv).succeeds();
}

/// Runs `body` on a stack that belongs to no thread.
fn in_own_stack(mut body: &mut dyn FnMut()) {
    extern "C" fn start(low: u32, high: u32) {
        let body = ptr::with_exposed_provenance_mut::<&mut dyn FnMut()>(
            (high as usize) << 32 | low as usize,
        );
        // SAFETY: the closure below.
        unsafe { (*body)() };
    }
    // SAFETY: the stack and the contexts outlive their use; the function takes two numbers.
    unsafe {
        let mut stack = vec![0u8; 256 << 10];
        let (mut own, mut caller): (libc::ucontext_t, libc::ucontext_t) =
            (mem::zeroed(), mem::zeroed());
        assert_eq!(libc::getcontext(&raw mut own), 0);
        own.uc_stack.ss_sp = stack.as_mut_ptr().cast();
        own.uc_stack.ss_size = stack.len();
        own.uc_link = &raw mut caller;
        let argument = (&raw mut body).expose_provenance();
        let function = mem::transmute::<extern "C" fn(u32, u32), extern "C" fn()>(start);
        libc::makecontext(&raw mut own, function, 2, argument as u32, (argument >> 32) as u32);
        assert_eq!(libc::swapcontext(&raw mut caller, &raw const own), 0);
    }
}

#[test]
fn stacks_of_the_program_s_own_making_are_captured() {
    let body = || {
        in_own_stack(&mut || {
            recurse(20, &mut || {
                check(20);
            });
        });
    };
    body();
    thread::spawn(body).join().expect("both agree in a new thread");
}

#[cfg(target_arch = "x86_64")]
mod assembly {
    use super::*;
    use std::arch::{asm, global_asm};

    // Without directives for tables, these have none.
    global_asm!(
        ".pushsection .text.frames, \"ax\", @progbits",
        ".globl frames_without_table, frames_with_pointer",
        ".hidden frames_without_table, frames_with_pointer",
        "frames_without_table:",
        "push rbp",
        "mov rbp, rdx",
        "mov rax, rdi",
        "mov rdi, rsi",
        "call rax",
        "pop rbp",
        "ret",
        "frames_with_pointer:",
        "push rbp",
        "mov rbp, rsp",
        "mov rax, rdi",
        "mov rdi, rsi",
        "call rax",
        "pop rbp",
        "ret",
        ".popsection",
    );

    unsafe extern "C" {
        /// Calls `call(with)`, with `frame_pointer` in that register.
        #[link_name = "frames_without_table"]
        fn without_table(call: Call, with: *mut c_void, frame_pointer: usize);
        /// Calls `call(with)`, with a frame pointer.
        #[link_name = "frames_with_pointer"]
        fn with_frame_pointer(call: Call, with: *mut c_void);
    }

    fn through<F: FnMut()>(frame_pointer: usize, mut last: F) {
        // SAFETY: `last` outlives the call.
        unsafe { without_table(call::<F>, (&raw mut last).cast(), frame_pointer) };
    }

    #[test]
    fn any_frame_pointer_may_be_met() {
        let outermost = Stack::captured().outermost();
        let mut on_stack = [0usize; 4];
        let heap = Box::new([0usize; 4]);
        let place = on_stack.as_ptr().addr();
        let code = check as *const () as usize;
        on_stack = [place, code + 5, place - 8, place];
        let here = [place, place + 8, place + 16, place + 24, place + 1];
        let there = [0, 1, 8, 4096, heap.as_ptr().addr(), code, code + 1, 1 << 47, 1 << 63];
        let beyond = [usize::MAX, usize::MAX - 7, usize::MAX - 15, 0xffff_8000_0000_0000];
        let top = {
            // SAFETY: the call takes and returns only numbers.
            unsafe { libc::getauxval(libc::AT_RANDOM) as usize & !7 }
        };
        let ends = [top, top - 8, top - 16, top + 8, top + (1 << 20)];
        let body = || {
            for frame_pointer in here.into_iter().chain(there).chain(beyond).chain(ends) {
                through(frame_pointer, || {
                    let captured = Stack::captured();
                    assert!((2..10).contains(&captured.len), "{frame_pointer:#x}: {captured:?}");
                });
            }
        };
        body();
        thread::scope(|scope| scope.spawn(body).join().expect("the same in a new thread"));
        black_box(on_stack);
        // SAFETY: the closure outlives the call.
        unsafe {
            let mut last = || assert_eq!(Stack::captured().outermost(), outermost);
            let with = (&raw mut last).cast();
            fn of<F: FnMut()>(_: &F) -> Call {
                call::<F>
            }
            with_frame_pointer(of(&last), with);
        }
        // A frame pointer of a caller leads on from there.
        let mut frame_pointer: usize;
        // SAFETY: copies a register.
        unsafe { asm!("mov {}, rbp", out(reg) frame_pointer, options(nomem, nostack)) };
        through(frame_pointer, || {
            black_box(Stack::captured());
        });
    }
}
