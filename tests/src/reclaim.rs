//! Bursts of memory, and waiting for it to return to the system.

use std::alloc::Layout;
use std::fs;
use std::ptr::NonNull;
use std::thread;
use std::time::{Duration, Instant};

use hayloft_core::nolock;

use crate::fork::{exit_child, fork, wait_for};
use crate::process::status_bytes;
use crate::sizes::MIB;

/// Bytes of a burst.
pub const BURST: usize = 96 * MIB;
/// Bytes of a burst that may stay resident.
pub const REST: usize = 8 * MIB;

/// Allocates and frees small blocks of many sizes, and some large ones. Returns the resident bytes
/// before and at the peak.
pub fn burst() -> (usize, usize) {
    let before = status_bytes("VmRSS");
    let mut blocks: Vec<Vec<u8>> = Vec::new();
    let mut bytes = 0;
    for number in 0.. {
        let size = if number % 5000 == 0 { 3 * MIB } else { 16 + number * 7919 % 3000 };
        blocks.push(vec![number as u8; size]);
        bytes += size;
        if bytes > BURST {
            break;
        }
    }
    let peak = status_bytes("VmRSS");
    drop(blocks);
    assert!(peak > before + BURST * 9 / 10, "{before} bytes resident before, {peak} at the peak");
    (before, peak)
}

/// Waits until at most `limit` bytes are resident, doing nothing but checking.
///
/// # Panics
///
/// If more are resident after a minute.
pub fn wait_until_resident(limit: usize) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while status_bytes("VmRSS") > limit {
        assert!(Instant::now() < deadline, "{} bytes stay resident", status_bytes("VmRSS"));
        thread::sleep(Duration::from_millis(20));
    }
}

/// Returns the number of threads of this process. Allocates nothing, since checking on an idle
/// program must not keep it busy.
pub fn threads() -> usize {
    // SAFETY: the path ends in a null byte, and `found` is valid for the write.
    unsafe {
        let mut found: libc::stat = std::mem::zeroed();
        assert_eq!(libc::stat(c"/proc/self/task".as_ptr(), &raw mut found), 0);
        // The folder has two links of its own, and one for each thread.
        found.st_nlink as usize - 2
    }
}

/// Waits until the process has `count` threads.
pub fn wait_for_threads(count: usize) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while threads() != count {
        assert!(Instant::now() < deadline, "{} threads, not {count}", threads());
        thread::sleep(Duration::from_millis(5));
    }
}

/// Name of the background thread that decommits memory.
pub const BACKGROUND_THREAD: &str = "hayloft/reclaim";

/// Returns the kernel's number of the thread with that name.
pub fn thread_named(name: &str) -> Option<libc::pid_t> {
    let tasks = fs::read_dir("/proc/self/task").expect("/proc is mounted");
    let mut paths = tasks.map(|task| task.expect("the folder can be read").path());
    let found = paths.find(|path| {
        // A thread may have ended meanwhile.
        fs::read_to_string(path.join("comm")).is_ok_and(|text| text.trim_end() == name)
    })?;
    found.file_name()?.to_str()?.parse().ok()
}

/// Runs `body` in the child of a fork, which has one thread, and waits for it to succeed.
pub fn in_child(body: impl FnOnce()) {
    let child = fork();
    if child == 0 {
        body();
        exit_child();
    }
    wait_for(child);
}

/// A burst whose blocks are freed by `nolock`, which never waits.
pub fn burst_freed_without_waiting() {
    const LAYOUT: Layout = Layout::new::<[u8; 3 * MIB]>();
    let blocks = [(); BURST / (3 * MIB)].map(|()| {
        let block = nolock::alloc(LAYOUT).expect("there is memory");
        // SAFETY: the block is of this layout.
        unsafe { block.write_bytes(1, LAYOUT.size()) };
        block
    });
    // SAFETY: the blocks are live and of this layout.
    blocks.into_iter().for_each(|block: NonNull<u8>| unsafe { nolock::free(block, LAYOUT) });
}

/// Setting by which any program has the background thread that decommits memory.
pub const WITH_BACKGROUND_THREAD: (&str, &str) = ("HAYLOFT_BACKGROUND", "1");

/// Frees blocks now and then until at most `limit` bytes are resident.
pub fn free_until_resident(limit: usize) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while status_bytes("VmRSS") > limit {
        assert!(Instant::now() < deadline, "{} bytes stay resident", status_bytes("VmRSS"));
        drop(vec![1u8; 2 * MIB]);
        thread::sleep(Duration::from_millis(20));
    }
}
