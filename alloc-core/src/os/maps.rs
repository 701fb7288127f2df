//! Lines of `/proc/self/maps`, and the numbers in the files that they name.

/// A line of `/proc/self/maps`.
pub(crate) struct MapsLine<'a> {
    /// Address of the first byte, and of the first one after it.
    pub(crate) start: usize,
    pub(crate) limit: usize,
    pub(crate) is_executable: bool,
    /// Whether it can be read as well as written.
    pub(crate) is_writable: bool,
    /// Offset in the file of the first byte.
    pub(crate) offset: u64,
    /// Device and inode number.
    pub(crate) file: (&'a [u8], &'a [u8]),
    /// Path of the file, a name in brackets, or empty.
    pub(crate) path: &'a [u8],
}

impl MapsLine<'_> {
    /// Parses `START-LIMIT RIGHTS OFFSET DEVICE INODE [PATH]`.
    pub(crate) fn parse(line: &mut [u8]) -> Option<MapsLine<'_>> {
        let len = unescape(line);
        let line = line.get(..len)?;
        let mut fields = line.splitn(6, |byte| *byte == b' ');
        let range = fields.next()?;
        let dash = range.iter().position(|byte| *byte == b'-')?;
        let rights = fields.next()?;
        let mut line = MapsLine {
            start: hexadecimal(range.get(..dash)?)? as usize,
            limit: hexadecimal(range.get(dash + 1..)?)? as usize,
            is_executable: rights.get(2) == Some(&b'x'),
            is_writable: rights.starts_with(b"rw"),
            offset: hexadecimal(fields.next()?)?,
            file: (fields.next()?, fields.next()?),
            path: fields.next().unwrap_or_default().trim_ascii_start(),
        };
        // A file that was removed after it was mapped.
        line.path = line.path.strip_suffix(b" (deleted)").unwrap_or(line.path);
        Some(line)
    }

    /// Returns whether a file is mapped.
    pub(crate) fn has_file(&self) -> bool {
        self.file.1 != b"0"
    }
}

/// Replaces what the kernel writes for a line feed in a path. Returns the bytes that are left.
fn unescape(line: &mut [u8]) -> usize {
    const LINE_FEED: &[u8] = b"\\012";
    let (mut from, mut to) = (0, 0);
    while let Some(byte) = line.get(from).copied() {
        let is_escape = line.get(from..).is_some_and(|rest| rest.starts_with(LINE_FEED));
        if let Some(place) = line.get_mut(to) {
            *place = if is_escape { b'\n' } else { byte };
        }
        from += if is_escape { LINE_FEED.len() } else { 1 };
        to += 1;
    }
    to
}

fn hexadecimal(digits: &[u8]) -> Option<u64> {
    u64::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()
}

/// Returns the number in `len` bytes at `at`, as ELF files have it on machines of this byte order.
/// Missing bytes count as 0.
pub(crate) fn number_in(bytes: &[u8], at: usize, len: usize) -> u64 {
    let bytes = bytes.get(at..).unwrap_or_default().iter().take(len);
    bytes.rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_parsed() {
        let text = b"7fbb1dbe2000-7fbb1dc08000 r-xp 00001000 fe:00 325843    /a\\012b c (deleted)";
        let mut text = text.to_vec();
        let line = MapsLine::parse(&mut text).unwrap();
        assert_eq!((line.start, line.limit), (0x7fbb_1dbe_2000, 0x7fbb_1dc0_8000));
        assert_eq!((line.path, line.offset), (&b"/a\nb c"[..], 0x1000));
        assert!(line.is_executable && !line.is_writable && line.has_file());
        let mut anonymous = b"7fbb1dbe2000-7fbb1dc08000 rwxp 00000000 00:00 0 ".to_vec();
        let line = MapsLine::parse(&mut anonymous).unwrap();
        assert!(line.path.is_empty() && line.is_executable && line.is_writable);
        assert!(!line.has_file());
        for wrong in ["", "x", "1-2", "1-2 r-xp", "g-h r-xp 0 0 0", "1-2 r-xp 0"] {
            assert!(MapsLine::parse(&mut wrong.as_bytes().to_vec()).is_none(), "{wrong}");
        }
    }
}
