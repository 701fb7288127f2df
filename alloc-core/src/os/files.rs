//! Files written for other programs to read: replaced as a whole, or written through a descriptor
//! that was open at the start.

use core::ffi::c_int;
use core::fmt;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicU32, Ordering};

use super::linux::{CPath, File, SavedErrno};
use crate::text::process_id;

/// The identity of a file: its device and inode number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Identity {
    device: libc::dev_t,
    number: libc::ino_t,
}

fn status(ask: impl FnOnce(*mut libc::stat) -> c_int) -> Option<libc::stat> {
    let mut status = MaybeUninit::zeroed();
    // SAFETY: the struct was zeroed, and on success the call has filled it.
    (ask(status.as_mut_ptr()) == 0).then(|| unsafe { status.assume_init() })
}

fn status_of(file: c_int) -> Option<libc::stat> {
    // SAFETY: `to` points to a `stat` of the caller's that the call may write.
    status(|to| unsafe { libc::fstat(file, to) })
}

fn is_regular(status: &libc::stat) -> bool {
    status.st_mode & libc::S_IFMT == libc::S_IFREG
}

/// Returns the identity of the file behind a descriptor; `None` if the descriptor is not open.
pub(crate) fn identity(file: c_int) -> Option<Identity> {
    let _errno = SavedErrno::new();
    let status = status_of(file)?;
    Some(Identity { device: status.st_dev, number: status.st_ino })
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
impl File {
    /// Returns the inode number.
    pub(crate) fn inode(&self) -> Option<u64> {
        let _errno = SavedErrno::new();
        status_of(self.0).map(|status| status.st_ino)
    }
}

/// Duplicates a descriptor. The copy has a number of at least `least` and is closed on `exec`.
pub(crate) fn duplicate(file: c_int, least: c_int) -> Option<c_int> {
    let _errno = SavedErrno::new();
    // SAFETY: `fcntl` is passed only numbers.
    let copy = unsafe { libc::fcntl(file, libc::F_DUPFD_CLOEXEC, least) };
    (copy >= 0).then_some(copy)
}

/// Closes a descriptor that [`duplicate`] returned.
pub(crate) fn close(file: c_int) {
    drop(File(file));
}

/// Returns the number of this process's PID namespace; 0 if the kernel does not report it.
pub(crate) fn pid_namespace() -> u64 {
    let _errno = SavedErrno::new();
    // SAFETY: the path ends in a null byte, and `to` points to a `stat` that the call may write.
    let found = status(|to| unsafe { libc::stat(c"/proc/self/ns/pid".as_ptr(), to) });
    found.map_or(0, |status| status.st_ino)
}

/// Opens a file for writing.
fn open(path: &CPath, flags: c_int) -> Result<File, c_int> {
    File::open(path, flags | libc::O_WRONLY | libc::O_NOCTTY, 0o644)
}

/// Opens an existing file that is not a regular file: a pipe with a reader, or a terminal.
fn open_device(path: &CPath) -> Option<File> {
    // `O_NONBLOCK` for the open only: do not block until a pipe has a reader, but do block while
    // writing to it.
    let file = open(path, libc::O_NONBLOCK).ok()?;
    // Another file may have taken its place since the caller looked.
    let is_device = status_of(file.0).is_some_and(|status| !is_regular(&status));
    // SAFETY: `fcntl` is passed only numbers.
    (is_device && unsafe { libc::fcntl(file.0, libc::F_SETFL, 0) } == 0).then_some(file)
}

/// Replaces the file at `path` with a new one, which `write` fills. A concurrent reader finds
/// either the old or the new file, whole. A symbolic link is replaced, not followed, unless it
/// leads to something other than a regular file, which is written to in place. Returns false on
/// failure.
pub(crate) fn replace(path: fmt::Arguments<'_>, write: impl FnOnce(c_int) -> bool) -> bool {
    /// Makes the temporary name unique in this process, also against a writer that this one
    /// interrupted.
    static WRITERS: AtomicU32 = AtomicU32::new(0);
    /// Temporary names to try: a process with the same PID may have been killed while it wrote.
    const ATTEMPTS: usize = 8;
    let Some(place) = CPath::new(path) else { return false };
    let _errno = SavedErrno::new();
    let to = place.0.as_ptr().cast();
    // SAFETY: the path ends in a null byte, and `found` points to a `stat` that the call may write.
    let (there, behind_links) =
        unsafe { (status(|found| libc::lstat(to, found)), status(|found| libc::stat(to, found))) };
    if behind_links.is_some_and(|status| !is_regular(&status)) {
        return open_device(&place).is_some_and(|file| write(file.0));
    }
    for _ in 0..ATTEMPTS {
        // Relaxed: only uniqueness matters; the number guards no other memory.
        let writer = WRITERS.fetch_add(1, Ordering::Relaxed);
        let name = CPath::new(format_args!("{path}.{}-{writer}.tmp", process_id()));
        let Some(temporary) = name else { return false };
        let file = match open(&temporary, libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW) {
            Ok(file) => file,
            Err(libc::EEXIST) => continue,
            Err(_) => return false,
        };
        let from = temporary.0.as_ptr().cast();
        // The new file keeps the permissions of the old one.
        if let Some(old) = there.filter(is_regular) {
            // SAFETY: `fchmod` is passed only numbers.
            unsafe { libc::fchmod(file.0, old.st_mode & 0o777) };
        }
        // SAFETY: both paths end in a null byte.
        let done = write(file.0) && unsafe { libc::rename(from, to) } == 0;
        if !done {
            // SAFETY: the path ends in a null byte.
            unsafe { libc::unlink(from) };
        }
        return done;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::write_all;
    use std::format;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::path::PathBuf;

    /// A directory that is removed when this is dropped.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("hayloft-{name}-{}", process_id()));
            fs::create_dir(&path).unwrap();
            Folder(path)
        }

        fn count(&self) -> usize {
            fs::read_dir(&self.0).unwrap().count()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn files_are_replaced_atomically() {
        let folder = Folder::new("replaced");
        let path = folder.0.join("file");
        let replace = |text: &str, success: bool| {
            let path = path.display();
            replace(format_args!("{path}"), |file| write_all(file, text.as_bytes()) && success)
        };
        assert!(replace("one", true));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(replace("two", true));
        assert!(!replace("three", false));
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(folder.count(), 1, "a temporary file is left in the folder");
        assert!(!super::replace(format_args!("/nowhere/at/all"), |_| true));
        assert!(!super::replace(format_args!("{}", folder.0.display()), |_| true));
    }

    #[test]
    fn only_links_to_devices_are_followed() {
        let folder = Folder::new("links");
        let (path, other) = (folder.0.join("link"), folder.0.join("other"));
        let replace = || replace(format_args!("{}", path.display()), |file| write_all(file, b"x"));
        fs::write(&other, "precious").unwrap();
        symlink(&other, &path).unwrap();
        assert!(replace());
        assert_eq!(fs::read_to_string(&other).unwrap(), "precious");
        assert_eq!(fs::read_to_string(&path).unwrap(), "x");
        for (device, succeeds) in [("/dev/null", true), ("/dev/full", false)] {
            fs::remove_file(&path).unwrap();
            symlink(device, &path).unwrap();
            assert_eq!(replace(), succeeds, "writing to {device}");
            assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
        }
        assert_eq!(folder.count(), 2);
    }

    #[test]
    fn identity_distinguishes_files() {
        let (one, other) =
            (fs::File::open("/dev/null").unwrap(), fs::File::open("/dev/zero").unwrap());
        let number = |file: &fs::File| std::os::fd::AsRawFd::as_raw_fd(file);
        let copy = duplicate(number(&one), 200).unwrap();
        assert!(copy >= 200 && identity(copy) == identity(number(&one)));
        assert_ne!(identity(copy), identity(number(&other)));
        close(copy);
        assert_eq!(identity(copy), None);
        assert!(pid_namespace() > 0);
    }
}
