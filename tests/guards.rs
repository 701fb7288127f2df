//! Guarded blocks: mistakes with them are reported with both stacks, and right programs do not
//! notice them.

use std::alloc::{GlobalAlloc, Layout};
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use hayloft_core::{by_address, stats};
use tests::entry_points::Hayloft;
use tests::fork;
use tests::scenario::{BACKENDS, Scenario};

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// The setting, and its value that guards each allocation as long as there is room.
const GUARD: &str = "HAYLOFT_GUARD";
const ALL: &str = "1";

fn planted(backend: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_planted"));
    command.env("HAYLOFT_BACKEND", backend).env(GUARD, ALL);
    command
}

/// Returns the words of a report of a mistake: alternatives, as a block may lie at either end of
/// its page.
fn words(mistake: &str) -> &'static [&'static str] {
    match mistake {
        _ if mistake.starts_with("overflow") => &["buffer overflow: "],
        _ if mistake.starts_with("underflow") => &["buffer underflow: "],
        "read_beyond" => &["buffer overflow: read at "],
        "read_after_free" | "use_after_realloc" => &["use after free: read at "],
        "write_after_free" => &["use after free: write at "],
        "invalid_free" => &["invalid free: "],
        _ => &["double free: "],
    }
}

#[test]
fn each_mistake_is_reported_with_the_functions_that_made_it() {
    let names = planted("rseq").env_remove(GUARD).output().unwrap().stdout;
    // Asked without an argument, the program lists its mistakes.
    let names = String::from_utf8(names).unwrap();
    assert!(names.lines().count() >= 12, "{names}");
    for (backend, name) in
        BACKENDS.iter().flat_map(|backend| names.lines().map(move |name| (backend, name)))
    {
        let output = planted(backend).arg(name).output().unwrap();
        let report = String::from_utf8_lossy(&output.stderr);
        let all = format!("{name} ({backend}): {}\n{report}", output.status);
        let signal = output.status.signal();
        assert!(signal == Some(libc::SIGABRT) || signal == Some(libc::SIGSEGV), "{all}");
        assert!(words(name).iter().any(|words| report.contains(words)), "{all}");
        assert!(report.contains("a block of 101 bytes at 0x"), "{all}");
        let section = |start: &str| {
            let lines = report.lines().skip_while(|line| !line.contains(start)).skip(1);
            lines.take_while(|line| line.contains(" #")).collect::<String>()
        };
        assert!(section("  allocated by thread").contains("make_block"), "{all}");
        if name.contains("after_free") || name.starts_with("double_free") {
            assert!(section("  freed by thread").contains("drop_block"), "{all}");
        }
        let culprit = match name {
            _ if name.contains("free") && !name.contains("after") => "drop_block",
            _ if report.contains("found at the free") => "drop_block",
            _ => "touch",
        };
        let mistake = section("  the ");
        assert!(mistake.contains(culprit), "{all}");
    }
}

/// Runs a part of this test on both backends with all allocations guarded.
macro_rules! guarded {
    ($body:expr) => {
        for backend in BACKENDS {
            Scenario::new(backend, $body)
                .env("HAYLOFT_BACKEND", backend)
                .env(GUARD, ALL)
                .succeeds();
        }
    };
}

/// Blocks have their contents and alignment, and the sizes that are promised.
#[test]
fn right_programs_do_not_notice() {
    guarded!(|| {
        let before = stats::gather_own();
        let mut blocks = Vec::new();
        for size in [0, 1, 8, 24, 100, 1000, 4096, 5000, 40_000] {
            for align in [1, 8, 16, 64, 4096] {
                let layout = Layout::from_size_align(size, align).unwrap();
                // SAFETY: a size of 0 is served, too; the block has its size, and reads as zero.
                unsafe {
                    let block = GLOBAL.alloc_zeroed(layout);
                    assert!(!block.is_null() && block.addr().is_multiple_of(align), "{layout:?}");
                    assert!((0..size).all(|at| *block.add(at) == 0), "{layout:?}");
                    block.write_bytes(size as u8, size);
                    assert!(by_address::usable_size(block) >= size, "{layout:?}");
                    blocks.push((block, layout));
                }
            }
        }
        let now = stats::gather_own();
        assert!(
            now.guarded_in_use > before.guarded_in_use && now.guarded > before.guarded,
            "{now:?}"
        );
        for (block, layout) in blocks {
            for new_size in [layout.size() + 1, 2 * layout.size() + 1, layout.size() / 2 + 1] {
                // SAFETY: the block is live and has the layout; it is freed with its last one.
                unsafe {
                    let block = GLOBAL.alloc(layout);
                    block.write_bytes(3, layout.size());
                    let new = GLOBAL.realloc(block, layout, new_size);
                    let kept = layout.size().min(new_size);
                    assert!((0..kept).all(|at| *new.add(at) == 3), "{layout:?} to {new_size}");
                    assert!(new.addr().is_multiple_of(layout.align()));
                    new.write_bytes(4, new_size);
                    let new_layout = Layout::from_size_align(new_size, layout.align()).unwrap();
                    GLOBAL.dealloc(new, new_layout);
                }
            }
            // SAFETY: as above.
            unsafe { GLOBAL.dealloc(block, layout) };
        }
        let c = by_address::alloc(100);
        // SAFETY: the blocks are live; all of their usable bytes may be written.
        unsafe {
            c.write_bytes(1, by_address::usable_size(c));
            let c = by_address::realloc(c, 90);
            let c = by_address::realloc(c, 100);
            let c = by_address::realloc(c, 3000);
            assert!((0..90).all(|at| *c.add(at) == 1));
            by_address::free(c);
        }
    });
}

/// Nothing is guarded without a setting. With one, blocks are, and few enough.
#[test]
fn setting_decides_how_many_are_guarded() {
    let work = || {
        let layout = Layout::from_size_align(100, 8).unwrap();
        for _ in 0..1_000_000 {
            // SAFETY: the block was just allocated, and is freed once.
            unsafe { GLOBAL.dealloc(GLOBAL.alloc(layout), layout) };
        }
    };
    Scenario::new("none", || {
        work();
        assert_eq!(stats::gather_own().guarded, 0);
    })
    .succeeds();
    Scenario::new("one in a thousand", || {
        let start = std::time::Instant::now();
        while stats::gather_own().guarded < 3 {
            work();
        }
        // At most a hundred a second.
        let most = 1 + start.elapsed().as_millis() as u64 / 10 + 1;
        assert!(stats::gather_own().guarded <= most, "{most} {:?}", stats::gather_own());
    })
    .env(GUARD, "1000")
    .succeeds();
}

/// Exact statistics count guarded blocks, and a child of a fork frees those of its parent.
#[test]
fn guarded_blocks_are_counted_and_survive_forks() {
    guarded!(|| {
        let layout = Layout::from_size_align(100, 8).unwrap();
        // SAFETY: each block is used within its size and freed once in each process.
        let blocks: Vec<_> = (0..20).map(|_| unsafe { GLOBAL.alloc(layout) }).collect();
        let in_use = || stats::gather_own().guarded_in_use;
        let full = in_use();
        let child = fork::fork();
        for block in blocks {
            // SAFETY: as above.
            unsafe {
                block.write_bytes(1, 100);
                GLOBAL.dealloc(block, layout);
            }
        }
        // Frees are seen by slow paths, to which the next allocations lead.
        (0..1000).for_each(|_| drop(std::hint::black_box(vec![0u8; 100])));
        assert!(in_use() < full, "{} of {full}", in_use());
        if child == 0 {
            fork::exit_child();
        }
        fork::wait_for(child);
    });
}

/// A fault elsewhere is the program's, as is a signal that a process sends.
#[test]
fn faults_of_the_program_go_to_its_handler() {
    guarded!(|| {
        extern "C" fn handler(_: libc::c_int) {
            // SAFETY: ends the process.
            unsafe { libc::_exit(0) };
        }
        let action: extern "C" fn(libc::c_int) = handler;
        // SAFETY: the handler only ends the process. The address is never mapped.
        unsafe {
            libc::signal(libc::SIGSEGV, action as libc::sighandler_t);
            drop(std::hint::black_box(Box::new([0u8; 100])));
            std::ptr::without_provenance_mut::<u8>(64).write_volatile(1);
        }
        std::process::exit(1);
    });
    Scenario::new("default action", || {
        drop(std::hint::black_box(Box::new([0u8; 100])));
        // The handler of the standard library, where it has one, reverts to the default action.
        loop {
            // SAFETY: ends the process by the signal.
            unsafe { libc::kill(libc::getpid(), libc::SIGSEGV) };
        }
    })
    .env(GUARD, ALL)
    .run(|output| assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{output:?}"));
}
