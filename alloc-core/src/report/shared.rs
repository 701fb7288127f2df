//! The page on which a process shows its statistics, and its readers.
//!
//! With `HAYLOFT_STATS_SHM=1` the page is the file `/dev/shm/hayloft-PID-NAMESPACE`. The process
//! has it mapped, and its user may read it. The page begins with its writer, the version of this
//! layout, and a sequence number that is odd while the page is being written. Readers check that
//! number before and after. The page is removed at the end of the process. A killed process leaves
//! its page behind, and the next program that looks for processes removes it.
//!
//! Containers may share the folder, while process numbers belong to a PID namespace. So the name
//! contains the namespace, and a process does not judge whether pages of other namespaces are
//! stale.

extern crate std;

use core::fmt;
use core::mem;
use core::ptr;
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering, fence};
use std::boxed::Box;
use std::fs;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek};
use std::os::unix::fs::OpenOptionsExt as _;
use std::string::ToString as _;
use std::vec::Vec;

use crate::os;
use crate::stats::{self, CacheStats, CpuStats, MAX, NodeStats, SiteStats, Stats, TagStats};

const MAGIC: [u8; 8] = *b"HAYLOFT\0";
/// Version of the layout. Increment with every change to the contents of [`Page`].
const VERSION: u32 = 8;

const FOLDER: &str = "/dev/shm";
const PREFIX: &str = "hayloft-";

/// The writer of a page, and its state.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Header {
    /// Zero until the rest is initialised.
    magic: [u8; 8],
    version: u32,
    /// Bytes of the page: programs for other processors may have words of another size.
    size: u32,
    process: u32,
    /// Odd while the page is being written.
    sequence: u32,
    /// The PID namespace of the process number.
    namespace: u64,
    /// Start time of the process, see [`start_time`]: another process may get its number later.
    start_time: u64,
    /// Time of the last update, in milliseconds of the monotonic clock.
    time: u64,
}

/// The contents behind the header. Every bit pattern is valid.
#[derive(Clone, Copy)]
#[repr(C)]
struct Body {
    stats: Stats,
    /// Number of valid items in `all_caches`.
    caches: usize,
    cpus: usize,
    nodes: usize,
    sites: usize,
    tags: usize,
    all_caches: [CacheStats; MAX.caches],
    all_cpus: [CpuStats; MAX.cpus],
    all_nodes: [NodeStats; MAX.nodes],
    all_sites: [SiteStats; MAX.sites],
    all_tags: [TagStats; MAX.tags],
}

#[repr(C)]
struct Page {
    header: Header,
    body: Body,
}

/// The page of this process. Null if there is none; in a fork child, null until the child creates
/// its own.
static PAGE: AtomicPtr<Page> = AtomicPtr::new(ptr::null_mut());

/// The process that last created a page, which may be an ancestor of this one; 0 for none. Relaxed:
/// the number guards no other memory.
static SHOWN: AtomicI32 = AtomicI32::new(0);

/// The name of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Name {
    process: u32,
    namespace: u64,
}

impl Name {
    /// Returns the name of a process's page in the PID namespace of this process.
    fn here(process: u32) -> Name {
        Name { process, namespace: os::pid_namespace() }
    }

    /// Parses a page's file name.
    fn parse(text: &str) -> Option<Name> {
        let (process, namespace) = text.strip_prefix(PREFIX)?.split_once('-')?;
        Some(Name { process: process.parse().ok()?, namespace: namespace.parse().ok()? })
    }
}

/// Formats the path.
impl fmt::Display for Name {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{FOLDER}/{PREFIX}{}-{}", self.process, self.namespace)
    }
}

/// Creates the page of this process. If that fails, warns and returns false.
pub(super) fn open() -> bool {
    let process = os::process_id();
    let name = Name::here(process as u32);
    let Some(memory) = os::share(format_args!("{name}"), size_of::<Page>()) else {
        os::warn(format_args!("statistics cannot be shown in {FOLDER}"));
        return false;
    };
    let page: *mut Page = memory.as_ptr().cast();
    // SAFETY: the page was mapped just now, with its full length. Other processes only read it.
    unsafe {
        let header = &raw mut (*page).header;
        header.write(Header {
            magic: [0; 8],
            version: VERSION,
            size: size_of::<Page>() as u32,
            process: process as u32,
            sequence: 1,
            namespace: name.namespace,
            start_time: start_time(process as u32).unwrap_or(0),
            time: os::milliseconds(),
        });
        // Release: a reader that sees the magic number sees everything before it. Readers use
        // system calls, in order.
        let magic = AtomicU64::from_ptr(&raw mut (*header).magic as *mut u64);
        magic.store(u64::from_ne_bytes(MAGIC), Ordering::Release);
    }
    SHOWN.store(process, Ordering::Relaxed);
    // Release: pairs with the Acquire in `page`.
    PAGE.store(page, Ordering::Release);
    true
}

/// As [`open`], in a fork child of a process that showed its statistics. Returns false in other
/// processes.
pub(super) fn open_again() -> bool {
    SHOWN.load(Ordering::Relaxed) != 0 && open()
}

/// Returns whether there is a page.
pub(super) fn is_open() -> bool {
    !page().is_null()
}

fn page() -> *mut Page {
    // Acquire: pairs with the Release in `open`: the page is mapped.
    PAGE.load(Ordering::Acquire)
}

/// Forgets the page in a fork child, where it is not mapped. Returns whether an ancestor created
/// one, so that the child must do so too.
pub(super) fn in_child() -> bool {
    PAGE.store(ptr::null_mut(), Ordering::Relaxed);
    SHOWN.load(Ordering::Relaxed) != 0
}

/// Returns the start time of a process in the kernel's ticks since boot. `None` if there is no such
/// process, or only a zombie.
fn start_time(process: u32) -> Option<u64> {
    let mut room = [0; 1024];
    let text = os::read_bytes(format_args!("/proc/{process}/stat"), &mut room)?;
    // The text in parentheses is the name, which may contain anything.
    let name_end = text.iter().rposition(|byte| *byte == b')')?;
    let mut words = core::str::from_utf8(text.get(name_end + 1..)?).ok()?.split_ascii_whitespace();
    let state = words.next()?;
    if matches!(state, "Z" | "X") { None } else { words.nth(18)?.parse().ok() }
}

/// Writes the current statistics to the page. Only one thread may call it.
pub(super) fn update() {
    let page = page();
    if page.is_null() {
        return;
    }
    // SAFETY: the page is mapped, and only this thread writes it; other processes read it through
    // files.
    unsafe {
        let sequence = AtomicU32::from_ptr(&raw mut (*page).header.sequence);
        let odd = sequence.load(Ordering::Relaxed) | 1;
        sequence.store(odd, Ordering::Relaxed);
        // Release: a reader that sees any of the following stores finds the number odd, or changed.
        // Readers use system calls, in order.
        fence(Ordering::Release);
        let stats = stats::gather();
        let now = os::milliseconds();
        let since = now.saturating_sub((*page).header.time);
        let body = &raw mut (*page).body;
        (*body).caches = fill(&raw mut (*body).all_caches, stats.caches());
        (*body).cpus = fill(&raw mut (*body).all_cpus, stats.cpus());
        (*body).nodes = fill(&raw mut (*body).all_nodes, stats.nodes());
        (*body).sites = fill(&raw mut (*body).all_sites, stats::top_sites(since));
        (*body).tags = fill(&raw mut (*body).all_tags, stats.tags());
        (*body).stats = stats;
        (*page).header.time = now;
        sequence.store(odd.wrapping_add(1), Ordering::Release);
    }
}

/// Writes items until `room` is full. Returns their number.
///
/// # Safety
/// `room` is writable.
unsafe fn fill<T, const N: usize>(room: *mut [T; N], items: impl Iterator<Item = T>) -> usize {
    let room: *mut T = room.cast();
    // SAFETY: `at` is below the length of `room`, which the caller guarantees to be writable.
    items.take(N).enumerate().map(|(at, item)| unsafe { room.add(at).write(item) }).count()
}

/// Removes the page if it belongs to this process. In a child whose fork ran no handlers the page
/// is not mapped.
pub(super) fn close() {
    let process = os::process_id();
    if SHOWN.load(Ordering::Relaxed) == process && is_open() {
        os::remove(format_args!("{}", Name::here(process as u32)));
    }
}

/// The reason why the statistics of a process cannot be read.
#[derive(Debug)]
#[non_exhaustive]
pub enum AttachError {
    /// The process does not exist, or no longer.
    Gone(u32),
    /// The process shows no statistics: it does not use Hayloft, or was started without
    /// `HAYLOFT_STATS_SHM=1`.
    ShowsNothing(u32),
    /// The process belongs to another user.
    Denied(u32),
    /// The only page for this process number is of another PID namespace. Only processes there can
    /// find out whether its writer is alive.
    Elsewhere(u32),
    /// The file is not Hayloft's, or was written on another architecture.
    Foreign(u32),
    /// The process uses another version of Hayloft. The numbers are the version of its page, and of
    /// this program's.
    OtherVersion(u32, u32, u32),
    /// The process has not written for this number of milliseconds: it is stopped, or became
    /// another program by `exec`. If the number is small, the process was stopped while it wrote.
    Silent(u32, u64),
    /// The file cannot be read.
    Unreadable(u32, io::Error),
}

impl fmt::Display for AttachError {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AttachError::Gone(process) => write!(to, "there is no process {process}"),
            AttachError::ShowsNothing(process) => write!(
                to,
                "process {process} shows no statistics: is Hayloft its allocator, and was it started with HAYLOFT_STATS_SHM=1?"
            ),
            AttachError::Denied(process) => write!(to, "process {process} is another user's"),
            AttachError::Elsewhere(process) => write!(
                to,
                "process {process} that shows statistics in {FOLDER} is of another PID namespace: look from there"
            ),
            AttachError::Foreign(process) => {
                write!(to, "{} is no page of statistics for this machine", Name::here(*process))
            }
            AttachError::OtherVersion(process, its, ours) => write!(
                to,
                "process {process} shows version {its} of the statistics, and this program reads version {ours}"
            ),
            AttachError::Silent(process, milliseconds) if *milliseconds <= PATIENCE => {
                write!(
                    to,
                    "process {process} does not come to an end with its statistics: stopped?"
                )
            }
            AttachError::Silent(process, milliseconds) => {
                write!(
                    to,
                    "process {process} has been silent for {}.{} s: stopped, or another program by now?",
                    milliseconds / 1000,
                    milliseconds / 100 % 10
                )
            }
            AttachError::Unreadable(process, error) => {
                write!(to, "the statistics of process {process} cannot be read: {error}")
            }
        }
    }
}

impl core::error::Error for AttachError {}

/// The statistics of another process at some time.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Snapshot {
    /// Number of the process.
    pub process: u32,
    /// Time of the update, in milliseconds of the monotonic clock.
    pub time: u64,
    /// Totals.
    pub stats: Stats,
    /// As [`Stats::caches`].
    pub caches: Vec<CacheStats>,
    /// As [`Stats::cpus`].
    pub cpus: Vec<CpuStats>,
    /// As [`Stats::nodes`].
    pub nodes: Vec<NodeStats>,
    /// The sites with most bytes in use, and those that allocate most. None if the process never
    /// took [profiles](crate::profile).
    pub sites: Vec<SiteStats>,
    /// As [`Stats::tags`].
    pub tags: Vec<TagStats>,
}

/// A reader of the statistics of a process that was started with `HAYLOFT_STATS_SHM=1`.
#[derive(Debug)]
pub struct Reader {
    process: u32,
    file: File,
}

/// Attempts to read while the process writes.
const ATTEMPTS: usize = 100;
/// Milliseconds without an update after which a process counts as silent.
const PATIENCE: u64 = 3000;

impl Reader {
    /// Finds the page of a process.
    ///
    /// # Errors
    /// See [`AttachError`]. Only [`Reader::read`] detects that a process is silent.
    pub fn attach(process: u32) -> Result<Reader, AttachError> {
        let opened = Reader::open(process);
        if opened.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound)
            && pages().any(|page| page.process == process)
        {
            return Err(AttachError::Elsewhere(process));
        }
        if start_time(process).is_none() {
            return Err(AttachError::Gone(process));
        }
        let mut reader = opened.map_err(|error| match error.kind() {
            ErrorKind::NotFound => AttachError::ShowsNothing(process),
            ErrorKind::PermissionDenied => AttachError::Denied(process),
            _ => AttachError::Unreadable(process, error),
        })?;
        let header = reader.header()?;
        reader.writer_lives(&header)?;
        Ok(reader)
    }

    /// Opens the file that has the name of a process's page.
    fn open(process: u32) -> io::Result<Reader> {
        // Anybody may create a pipe of that name, and the open must not block until it has a
        // writer.
        let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
        let path = Name::here(process).to_string();
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        Ok(Reader { process, file })
    }

    /// Checks that the process that wrote the page still exists, and not another process with its
    /// number.
    fn writer_lives(&self, header: &Header) -> Result<(), AttachError> {
        match start_time(self.process) {
            None => Err(AttachError::Gone(self.process)),
            Some(start_time) if start_time != header.start_time => {
                Err(AttachError::ShowsNothing(self.process))
            }
            Some(_) => Ok(()),
        }
    }

    fn header(&mut self) -> Result<Header, AttachError> {
        let process = self.process;
        // SAFETY: every bit pattern is a valid `Header`.
        let header: Header = unsafe { self.bytes(0)? };
        if header.magic == [0; 8] {
            return Err(AttachError::ShowsNothing(process));
        }
        if header.magic != MAGIC {
            return Err(AttachError::Foreign(process));
        }
        if header.version != VERSION {
            return Err(AttachError::OtherVersion(process, header.version, VERSION));
        }
        let name = Name { process: header.process, namespace: header.namespace };
        if header.size as usize != size_of::<Page>() || name != Name::here(process) {
            return Err(AttachError::Foreign(process));
        }
        Ok(header)
    }

    /// Reads a `T` at an offset of the file.
    ///
    /// # Safety
    /// Every bit pattern is a valid `T`.
    unsafe fn bytes<T: Copy>(&mut self, at: usize) -> Result<T, AttachError> {
        let mut room: Box<mem::MaybeUninit<T>> = Box::new(mem::MaybeUninit::zeroed());
        // SAFETY: the room is zeroed, and has the length of a `T`.
        let bytes = unsafe {
            core::slice::from_raw_parts_mut(room.as_mut_ptr().cast::<u8>(), size_of::<T>())
        };
        let read = self.file.seek(io::SeekFrom::Start(at as u64));
        match read.and_then(|_| self.file.read_exact(bytes)) {
            // SAFETY: the caller guarantees that every bit pattern is a valid `T`.
            Ok(()) => Ok(unsafe { *room.assume_init() }),
            // An empty file may be about to be filled.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                let is_empty = self.file.metadata().is_ok_and(|data| data.len() == 0);
                Err(if is_empty { AttachError::ShowsNothing } else { AttachError::Foreign }(
                    self.process,
                ))
            }
            Err(error) => Err(AttachError::Unreadable(self.process, error)),
        }
    }

    /// Reads the current statistics.
    ///
    /// # Errors
    /// See [`AttachError`].
    pub fn read(&mut self) -> Result<Snapshot, AttachError> {
        let process = self.process;
        let mut age = 0;
        for _ in 0..ATTEMPTS {
            let before = self.header()?;
            age = os::milliseconds().saturating_sub(before.time);
            // SAFETY: every bit pattern is a valid `Body`.
            let body: Body = unsafe { self.bytes(mem::offset_of!(Page, body))? };
            let after = self.header()?;
            self.writer_lives(&after)?;
            if before.sequence % 2 == 1 || before.sequence != after.sequence {
                os::sleep_microseconds(1000);
                continue;
            }
            if age > PATIENCE {
                return Err(AttachError::Silent(process, age));
            }
            return Ok(Snapshot {
                process,
                time: after.time,
                stats: body.stats,
                caches: first(&body.all_caches, body.caches),
                cpus: first(&body.all_cpus, body.cpus),
                nodes: first(&body.all_nodes, body.nodes),
                sites: first(&body.all_sites, body.sites),
                tags: first(&body.all_tags, body.tags),
            });
        }
        Err(AttachError::Silent(process, age))
    }
}

fn first<T: Clone>(all: &[T], count: usize) -> Vec<T> {
    all.iter().take(count).cloned().collect()
}

/// Returns the names of all pages, of every PID namespace.
fn pages() -> impl Iterator<Item = Name> {
    let name = |entry: io::Result<fs::DirEntry>| Name::parse(entry.ok()?.file_name().to_str()?);
    fs::read_dir(FOLDER).into_iter().flatten().filter_map(name)
}

/// Returns whether a page may still be in use: by the process that exists under its number, or by
/// another that has written it recently.
fn is_needed(process: u32) -> bool {
    let header = Reader::open(process).ok().and_then(|mut reader| reader.header().ok());
    match header {
        // The page may be about to be initialised.
        None => start_time(process).is_some(),
        Some(header) => {
            start_time(process) == Some(header.start_time)
                || os::milliseconds().saturating_sub(header.time) <= PATIENCE
        }
    }
}

/// Returns the numbers of the processes that show their statistics, in ascending order, in the PID
/// namespace of this process. Removes pages that killed processes left behind.
#[must_use]
pub fn processes() -> Vec<u32> {
    let namespace = os::pid_namespace();
    let ours = pages().filter(|page| page.namespace == namespace);
    let mut found: Vec<u32> = ours.map(|page| page.process).collect();
    found.retain(|process| match Reader::attach(*process) {
        // There is a page, so the process that created it existed.
        Err(AttachError::Gone(_) | AttachError::ShowsNothing(_)) => {
            if !is_needed(*process) {
                // Another user's page stays, since its removal fails.
                let _ = fs::remove_file(Name::here(*process).to_string());
            }
            false
        }
        other => other.is_ok(),
    });
    found.sort_unstable();
    found
}

/// Returns the number of pages of processes in other PID namespaces, alive or not.
#[must_use]
pub fn elsewhere() -> usize {
    let namespace = os::pid_namespace();
    pages().filter(|page| page.namespace != namespace).count()
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    use std::format;
    use std::process::Command;

    #[test]
    fn start_time_exists_only_for_live_processes() {
        let this = std::process::id();
        assert!(start_time(this).is_some() && start_time(this) == start_time(this));
        assert_eq!(start_time(u32::MAX), None);
        let mut child = Command::new("true").spawn().unwrap();
        while start_time(child.id()).is_some() {
            os::sleep_microseconds(1000);
        }
        assert!(fs::exists(format!("/proc/{}", child.id())).unwrap(), "the child was waited for");
        child.wait().unwrap();
    }

    #[test]
    fn attaching_without_a_page_is_an_error() {
        let this = std::process::id();
        assert!(matches!(Reader::attach(this), Err(AttachError::ShowsNothing(_))));
        assert!(matches!(Reader::attach(u32::MAX), Err(AttachError::Gone(_))));
        assert!(!processes().contains(&this));
    }
}
