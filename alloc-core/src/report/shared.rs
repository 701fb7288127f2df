//! The page that a process shows its statistics on, and how others read it.
//!
//! With `HAYLOFT_STATS_SHM=1` it is the file `/dev/shm/hayloft-PID-NAMESPACE`, which the process has mapped and its user may read. It
//! starts with who wrote it, in which version of this layout, and a sequence number that is odd while it is being written; who
//! reads looks at that before and after. It is gone at the end of the process; one that was killed leaves it behind, and the next
//! to look for processes takes it away.
//!
//! Containers may have the folder in common, and numbers of processes are those of a PID namespace: so that namespace is in the name, and
//! nobody judges pages of another one.

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
use crate::stats::{self, CacheStats, CpuStats, MAX, NodeStats, Stats};

const MAGIC: [u8; 8] = *b"HAYLOFT\0";
/// Of the layout. To be raised with every change of what lies in [`Page`].
const VERSION: u32 = 3;

const FOLDER: &str = "/dev/shm";
const PREFIX: &str = "hayloft-";

/// Who wrote a page, and how.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Header {
    /// Zero before the rest is there.
    magic: [u8; 8],
    version: u32,
    /// Bytes of the page: programs for other machines may have words of other sizes.
    size: u32,
    process: u32,
    /// Odd while the page is written.
    sequence: u32,
    /// The PID namespace that the number of the process is of.
    namespace: u64,
    /// When the process began: see [`start_time`]. Another may have its number later.
    start_time: u64,
    /// Milliseconds of the monotonic clock at which it was last written.
    time: u64,
}

/// What follows it. Any bytes are one.
#[derive(Clone, Copy)]
#[repr(C)]
struct Body {
    stats: Stats,
    /// How many there are of what follows.
    caches: usize,
    cpus: usize,
    nodes: usize,
    all_caches: [CacheStats; MAX.caches],
    all_cpus: [CpuStats; MAX.cpus],
    all_nodes: [NodeStats; MAX.nodes],
}

#[repr(C)]
struct Page {
    header: Header,
    body: Body,
}

/// The page of this process; null if it shows nothing, or not yet, in the child of a fork.
static PAGE: AtomicPtr<Page> = AtomicPtr::new(ptr::null_mut());

/// The process that shows its statistics, or has to; 0 for none. Relaxed: a number that guards nothing.
static SHOWN: AtomicI32 = AtomicI32::new(0);

/// The name of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Name {
    process: u32,
    namespace: u64,
}

impl Name {
    /// That of a process in the namespace of this one.
    fn here(process: u32) -> Name {
        Name { process, namespace: os::pid_namespace() }
    }

    /// What it is that a file is called like.
    fn parse(text: &str) -> Option<Name> {
        let (process, namespace) = text.strip_prefix(PREFIX)?.split_once('-')?;
        Some(Name { process: process.parse().ok()?, namespace: namespace.parse().ok()? })
    }
}

/// The path.
impl fmt::Display for Name {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{FOLDER}/{PREFIX}{}-{}", self.process, self.namespace)
    }
}

/// Makes the page of this process; false, and it says so, where that cannot be done.
pub(super) fn open() -> bool {
    let process = os::process_id();
    let name = Name::here(process as u32);
    let Some(memory) = os::share(format_args!("{name}"), size_of::<Page>()) else {
        os::warn(format_args!("statistics cannot be shown in {FOLDER}"));
        return false;
    };
    let page: *mut Page = memory.as_ptr().cast();
    // SAFETY: mapped just now, and long enough; others only read.
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
        // Release: who reads this finds all before it. They read by system calls, in order.
        let magic = AtomicU64::from_ptr(&raw mut (*header).magic as *mut u64);
        magic.store(u64::from_ne_bytes(MAGIC), Ordering::Release);
    }
    SHOWN.store(process, Ordering::Relaxed);
    // Release: pairs with the Acquire in `page`.
    PAGE.store(page, Ordering::Release);
    true
}

/// As [`open`], in the child of a process that showed its statistics; in others it does nothing.
pub(super) fn open_again() -> bool {
    SHOWN.load(Ordering::Relaxed) != 0 && open()
}

/// Whether there is a page.
pub(super) fn is_open() -> bool {
    !page().is_null()
}

fn page() -> *mut Page {
    // Acquire: pairs with the Release in `open`: the page is mapped.
    PAGE.load(Ordering::Acquire)
}

/// In the child of a fork, where the page is not mapped: whether there was to be one.
pub(super) fn in_child() -> bool {
    PAGE.store(ptr::null_mut(), Ordering::Relaxed);
    SHOWN.load(Ordering::Relaxed) != 0
}

/// When a process began, in the kernel's ticks since the machine did; `None` if there is none, or only its parent has not
/// asked for its end yet.
fn start_time(process: u32) -> Option<u64> {
    let mut room = [0; 1024];
    let text = os::read_bytes(format_args!("/proc/{process}/stat"), &mut room)?;
    // What is in the parentheses is the name, which may be anything.
    let name_end = text.iter().rposition(|byte| *byte == b')')?;
    let mut words = core::str::from_utf8(text.get(name_end + 1..)?).ok()?.split_ascii_whitespace();
    let state = words.next()?;
    if matches!(state, "Z" | "X") { None } else { words.nth(18)?.parse().ok() }
}

/// Writes what there is now; by one thread only.
pub(super) fn update() {
    let page = page();
    if page.is_null() {
        return;
    }
    // SAFETY: mapped, and written by this thread only; others read it through files.
    unsafe {
        let sequence = AtomicU32::from_ptr(&raw mut (*page).header.sequence);
        let odd = sequence.load(Ordering::Relaxed) | 1;
        sequence.store(odd, Ordering::Relaxed);
        // Release: who reads any of what follows finds the number odd, or changed. They read by system calls, in order.
        fence(Ordering::Release);
        let stats = stats::gather();
        let body = &raw mut (*page).body;
        (*body).caches = fill(&raw mut (*body).all_caches, stats.caches());
        (*body).cpus = fill(&raw mut (*body).all_cpus, stats.cpus());
        (*body).nodes = fill(&raw mut (*body).all_nodes, stats.nodes());
        (*body).stats = stats;
        (*page).header.time = os::milliseconds();
        sequence.store(odd.wrapping_add(1), Ordering::Release);
    }
}

/// Writes items as far as there is room for them; how many.
///
/// # Safety
/// The room is writable.
unsafe fn fill<T, const N: usize>(room: *mut [T; N], items: impl Iterator<Item = T>) -> usize {
    let room: *mut T = room.cast();
    // SAFETY: below the length of the room.
    items.take(N).enumerate().map(|(at, item)| unsafe { room.add(at).write(item) }).count()
}

/// Takes the page away, if it is this process's. A child whose fork ran no handlers does not have it mapped.
pub(super) fn close() {
    let process = os::process_id();
    if SHOWN.load(Ordering::Relaxed) == process && is_open() {
        os::remove(format_args!("{}", Name::here(process as u32)));
    }
}

/// Why a process's statistics cannot be read.
#[derive(Debug)]
#[non_exhaustive]
pub enum AttachError {
    /// There is no such process, or no more.
    Gone(u32),
    /// It shows none: it does not use Hayloft, or was started without `HAYLOFT_STATS_SHM=1`.
    ShowsNothing(u32),
    /// It is another user's.
    Denied(u32),
    /// There is a page of a process that has this number in another PID namespace; only from there it can be told whether it is alive.
    Elsewhere(u32),
    /// The file is none of Hayloft's, or of one built for another machine.
    Foreign(u32),
    /// It uses another version of Hayloft: that of its page, and ours.
    OtherVersion(u32, u32, u32),
    /// The process did not write for so many milliseconds: it is stopped, or became another program by `exec`. Where they are few, it
    /// was stopped while it wrote.
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

/// The statistics of another process, as they were at some time.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Snapshot {
    /// The process.
    pub process: u32,
    /// Milliseconds of the monotonic clock.
    pub time: u64,
    /// Numbers of the whole.
    pub stats: Stats,
    /// As [`Stats::caches`].
    pub caches: Vec<CacheStats>,
    /// As [`Stats::cpus`].
    pub cpus: Vec<CpuStats>,
    /// As [`Stats::nodes`].
    pub nodes: Vec<NodeStats>,
}

/// Reads the statistics of a process that was started with `HAYLOFT_STATS_SHM=1`.
#[derive(Debug)]
pub struct Reader {
    process: u32,
    file: File,
}

/// Attempts to read while the process writes.
const ATTEMPTS: usize = 100;
/// Milliseconds after which a process that does not write is silent.
const PATIENCE: u64 = 3000;

impl Reader {
    /// Finds what the process shows.
    ///
    /// # Errors
    /// See [`AttachError`]; whether it is silent is seen by [`Reader::read`].
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

    /// Opens what is there by the name of a process's page.
    fn open(process: u32) -> io::Result<Reader> {
        // Anybody may put anything there: nobody is to wait for who opens the other end of a pipe.
        let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
        let path = Name::here(process).to_string();
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        Ok(Reader { process, file })
    }

    /// Whether the process that wrote the page is still there, and not only another of its number.
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
        // SAFETY: any bytes are a header.
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

    /// Reads a `T` at some place of the file.
    ///
    /// # Safety
    /// Any bytes are a `T`.
    unsafe fn bytes<T: Copy>(&mut self, at: usize) -> Result<T, AttachError> {
        let mut room: Box<mem::MaybeUninit<T>> = Box::new(mem::MaybeUninit::zeroed());
        // SAFETY: zeroed, so it is initialised; as long as a `T`.
        let bytes = unsafe {
            core::slice::from_raw_parts_mut(room.as_mut_ptr().cast::<u8>(), size_of::<T>())
        };
        let read = self.file.seek(io::SeekFrom::Start(at as u64));
        match read.and_then(|_| self.file.read_exact(bytes)) {
            // SAFETY: the caller's promise.
            Ok(()) => Ok(unsafe { *room.assume_init() }),
            // It may be about to be made.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                let is_empty = self.file.metadata().is_ok_and(|data| data.len() == 0);
                Err(if is_empty { AttachError::ShowsNothing } else { AttachError::Foreign }(
                    self.process,
                ))
            }
            Err(error) => Err(AttachError::Unreadable(self.process, error)),
        }
    }

    /// Reads what there is now.
    ///
    /// # Errors
    /// See [`AttachError`].
    pub fn read(&mut self) -> Result<Snapshot, AttachError> {
        let process = self.process;
        let mut age = 0;
        for _ in 0..ATTEMPTS {
            let before = self.header()?;
            age = os::milliseconds().saturating_sub(before.time);
            // SAFETY: any bytes are a body.
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
            });
        }
        Err(AttachError::Silent(process, age))
    }
}

fn first<T: Clone>(all: &[T], count: usize) -> Vec<T> {
    all.iter().take(count).cloned().collect()
}

/// Pages that there are, of whatever namespace.
fn pages() -> impl Iterator<Item = Name> {
    let name = |entry: io::Result<fs::DirEntry>| Name::parse(entry.ok()?.file_name().to_str()?);
    fs::read_dir(FOLDER).into_iter().flatten().filter_map(name)
}

/// Whether a process that is there, or another that writes its page, may need it.
fn is_needed(process: u32) -> bool {
    let header = Reader::open(process).ok().and_then(|mut reader| reader.header().ok());
    match header {
        // It may be about to be made.
        None => start_time(process).is_some(),
        Some(header) => {
            start_time(process) == Some(header.start_time)
                || os::milliseconds().saturating_sub(header.time) <= PATIENCE
        }
    }
}

/// Processes that show their statistics, in order of their numbers, in the PID namespace of this one. Takes away what processes left
/// behind that were killed.
#[must_use]
pub fn processes() -> Vec<u32> {
    let namespace = os::pid_namespace();
    let ours = pages().filter(|page| page.namespace == namespace);
    let mut found: Vec<u32> = ours.map(|page| page.process).collect();
    found.retain(|process| match Reader::attach(*process) {
        // There is a file, so that it is of a process that was there before.
        Err(AttachError::Gone(_) | AttachError::ShowsNothing(_)) => {
            if !is_needed(*process) {
                // Another user's stays.
                let _ = fs::remove_file(Name::here(*process).to_string());
            }
            false
        }
        other => other.is_ok(),
    });
    found.sort_unstable();
    found
}

/// How many pages are of processes in other PID namespaces, whether these are alive or not.
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
    fn births() {
        let this = std::process::id();
        assert!(start_time(this).is_some() && start_time(this) == start_time(this));
        assert_eq!(start_time(u32::MAX), None);
        let mut child = Command::new("true").spawn().unwrap();
        while start_time(child.id()).is_some() {
            os::sleep_microseconds(1000);
        }
        assert!(fs::exists(format!("/proc/{}", child.id())).unwrap(), "it was not waited for");
        child.wait().unwrap();
    }

    #[test]
    fn who_shows_nothing_is_said_so() {
        let this = std::process::id();
        assert!(matches!(Reader::attach(this), Err(AttachError::ShowsNothing(_))));
        assert!(matches!(Reader::attach(u32::MAX), Err(AttachError::Gone(_))));
        assert!(!processes().contains(&this));
    }
}
