//! Files: reading, and sharing memory through a mapped file.

use core::ffi::{c_int, c_uint};
use core::fmt::{self, Write as _};
use core::ptr::{self, NonNull};

use super::super::list::List;
use super::system_call::{SavedErrno, call, word};
use crate::text::Line;

/// A path for the kernel, with its terminating null byte.
pub(in super::super) struct CPath(pub(in super::super) [u8; CPath::ROOM]);

impl CPath {
    /// Bytes of the longest path, with its null byte.
    const ROOM: usize = 512;

    /// Formats a path. Returns `None` if it is too long or contains a null byte.
    pub(in super::super) fn new(path: fmt::Arguments<'_>) -> Option<CPath> {
        let mut line = Line::<{ CPath::ROOM }>::new();
        line.write_fmt(path).ok()?;
        let text = line.as_bytes();
        let fits = text.len() < CPath::ROOM && !text.contains(&0);
        fits.then(|| CPath(line.into_bytes()))
    }
}

/// An open file. It is opened, read, written and closed by bare system calls. The C library's
/// functions are cancellation points (`pthread_cancel`), and no thread may be cancelled within a
/// slow path.
pub(crate) struct File(pub(in super::super) c_int);

impl File {
    /// Opens a file for reading.
    pub(crate) fn to_read(path: fmt::Arguments<'_>) -> Option<File> {
        File::open(&CPath::new(path)?, libc::O_RDONLY, 0).ok()
    }

    /// Opens a file. If that creates the file, it gets the permissions `rights`.
    ///
    /// # Errors
    /// The kernel's error number.
    pub(in super::super) fn open(
        path: &CPath,
        flags: c_int,
        rights: c_uint,
    ) -> Result<File, c_int> {
        let (flags, path) = (flags | libc::O_CLOEXEC, path.0.as_ptr().expose_provenance());
        let arguments = [word(libc::AT_FDCWD), path, word(flags), rights as usize];
        // SAFETY: the path ends in a null byte.
        unsafe { call(libc::SYS_openat, arguments) }.map(|file| File(file as c_int))
    }

    /// Reads as many bytes as `room` has from a position of the file.
    pub(crate) fn read_at(&self, room: &mut [u8], position: usize) -> bool {
        let to = room.as_mut_ptr().expose_provenance();
        // SAFETY: `room` is writable for its length.
        let len = unsafe { call(libc::SYS_pread64, [word(self.0), to, room.len(), position]) };
        len == Ok(room.len())
    }

    /// Reads the next bytes into `room`. Returns the part of `room` that was filled, empty at the
    /// end of the file.
    fn read<'a>(&self, room: &'a mut [u8]) -> Option<&'a [u8]> {
        let arguments = [word(self.0), room.as_mut_ptr().expose_provenance(), room.len()];
        // SAFETY: `room` is writable for its length.
        let len = unsafe { call(libc::SYS_read, arguments) };
        len.ok().and_then(|len| room.get(..len))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // SAFETY: this owns the descriptor.
        let _ = unsafe { call(libc::SYS_close, [word(self.0)]) };
    }
}

/// Returns the text of a file, as far as `room` has space for it. `None` if the file cannot be read
/// or is not text.
pub(crate) fn read<'a>(path: fmt::Arguments<'_>, room: &'a mut [u8]) -> Option<&'a str> {
    core::str::from_utf8(read_bytes(path, room)?).ok()
}

/// As [`read`], for a file that need not be text.
pub(crate) fn read_bytes<'a>(path: fmt::Arguments<'_>, room: &'a mut [u8]) -> Option<&'a [u8]> {
    File::to_read(path)?.read(room)
}

/// Calls `each` with the first and last number of every range in a file that holds a list of
/// numbers, such as `/sys/devices/system/cpu/possible`. Returns `None` if the file cannot be read
/// or does not hold a list; `each` may have been called for some ranges by then.
pub(crate) fn list(path: fmt::Arguments<'_>, mut each: impl FnMut(usize, usize)) -> Option<()> {
    let file = File::to_read(path)?;
    let mut list = List::default();
    loop {
        let mut room = [0u8; 256];
        let text = file.read(&mut room)?;
        if text.is_empty() {
            return list.end(&mut each);
        }
        text.iter().try_for_each(|byte| list.push(*byte, &mut each))?;
    }
}

/// Calls `each` with every line of a file, without its end. A line longer than `room` is cut.
/// Returns `None` if the file cannot be read; `each` may have been called for some lines by then.
pub(crate) fn lines(
    path: fmt::Arguments<'_>,
    room: &mut [u8],
    each: &mut dyn FnMut(&mut [u8]),
) -> Option<()> {
    let file = File::to_read(path)?;
    // Bytes of an incomplete line at the start of `room`.
    let mut len = 0;
    let mut is_cut = false;
    loop {
        let more = file.read(room.get_mut(len..)?)?.len();
        if more == 0 {
            match room.get_mut(..len) {
                Some(line @ [_, ..]) if !is_cut => each(line),
                _ => {}
            }
            return Some(());
        }
        let mut rest = room.get_mut(..len + more)?;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, after) = rest.split_at_mut(end);
            if !is_cut {
                each(line);
            }
            is_cut = false;
            rest = after.get_mut(1..)?;
        }
        let left = rest.len();
        if left == room.len() {
            if !is_cut {
                each(room);
            }
            is_cut = true;
            len = 0;
        } else {
            room.copy_within(len + more - left..len + more, 0);
            len = left;
        }
    }
}

/// Creates a file of `len` zero bytes and maps it. Its user may read it, this process may write it,
/// and fork children do not have it mapped. Returns `None` on failure. The mapping is never
/// removed.
pub(crate) fn share(path: fmt::Arguments<'_>, len: usize) -> Option<NonNull<u8>> {
    let path = CPath::new(path)?;
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
    let _errno = SavedErrno::new();
    // SAFETY: the path ends in a null byte.
    let unlink = || unsafe { libc::unlink(path.0.as_ptr().cast()) };
    // A process with the same PID may have left a file behind.
    unlink();
    let memory = map_all(&File::open(&path, flags, 0o600).ok()?, len);
    if memory.is_none() {
        unlink();
    }
    memory
}

/// Extends a new file to `len` bytes and maps it.
fn map_all(file: &File, len: usize) -> Option<NonNull<u8>> {
    let bytes = libc::off_t::try_from(len).ok()?;
    // Allocates all of the file's memory: if the file system were full, a store would end the
    // process by SIGBUS.
    // SAFETY: `posix_fallocate` takes only numbers.
    let reserve = || unsafe { libc::posix_fallocate(file.0, 0, bytes) };
    while let error @ 1.. = reserve() {
        if error != libc::EINTR {
            return None;
        }
    }
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the file is the caller's, and the kernel chooses an address that is free.
    unsafe {
        let address = libc::mmap(ptr::null_mut(), len, protection, libc::MAP_SHARED, file.0, 0);
        if address == libc::MAP_FAILED {
            return None;
        }
        // If the kernel refuses, a fork child has the mapping too, and leaves it alone.
        libc::madvise(address, len, libc::MADV_DONTFORK);
        NonNull::new(address.cast())
    }
}

/// Removes a file, if it exists.
pub(crate) fn remove(path: fmt::Arguments<'_>) {
    let Some(path) = CPath::new(path) else { return };
    let _errno = SavedErrno::new();
    // SAFETY: the path ends in a null byte.
    unsafe { libc::unlink(path.0.as_ptr().cast()) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::String;
    use std::vec::Vec;

    /// Returns the lines of a file with this text, read with `room` bytes.
    fn lines_of(text: &str, room: usize) -> Vec<String> {
        let name = std::format!("hayloft-lines-{}-{room}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).unwrap();
        let mut found = Vec::new();
        let mut each = |line: &mut [u8]| found.push(String::from_utf8(line.to_vec()).unwrap());
        let path_text = format_args!("{}", path.display());
        assert!(lines(path_text, &mut std::vec![0; room], &mut each).is_some());
        std::fs::remove_file(&path).unwrap();
        found
    }

    #[test]
    fn lines_are_whole_however_they_are_read() {
        for room in 7..40 {
            assert_eq!(lines_of("one\n\nthree\nfour", room), ["one", "", "three", "four"]);
            assert_eq!(lines_of("", room).len(), 0);
        }
    }

    #[test]
    fn long_lines_are_cut() {
        assert_eq!(lines_of("0123456789\nshort\n", 6), ["012345", "short"]);
        assert_eq!(lines_of("01234\n0123456789012345", 6), ["01234", "012345"]);
        assert!(lines(format_args!("/nowhere"), &mut [0; 9], &mut |_| {}).is_none());
    }
}
