//! Parser for lists of numbers in the kernel's format: `0-3,8-11`.

/// State of a list that is read byte by byte, since it may be longer than any buffer.
#[derive(Default)]
pub(super) struct List {
    /// The first number of a range whose last number is being read.
    first: Option<usize>,
    number: Option<usize>,
}

impl List {
    /// Consumes the next byte. Passes the first and last number of each completed range to `each`.
    /// Returns `None` if the input is not a list.
    pub(super) fn push(&mut self, byte: u8, each: &mut dyn FnMut(usize, usize)) -> Option<()> {
        match byte {
            b'0'..=b'9' => {
                let number = self.number.unwrap_or(0).checked_mul(10)?;
                self.number = Some(number.checked_add(usize::from(byte - b'0'))?);
            }
            b'-' if self.first.is_none() => self.first = Some(self.number.take()?),
            b',' | b'\n' => self.end(each)?,
            _ => return None,
        }
        Some(())
    }

    /// Ends a range or the whole list. An empty list is valid: a node without CPUs has one.
    pub(super) fn end(&mut self, each: &mut dyn FnMut(usize, usize)) -> Option<()> {
        match (self.first.take(), self.number.take()) {
            (None, None) => Some(()),
            (first, last) => {
                let last = last?;
                let first = first.unwrap_or(last);
                (first <= last).then(|| each(first, last))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::List;
    use std::vec::Vec;

    fn ranges(text: &str) -> Option<Vec<(usize, usize)>> {
        let (mut list, mut ranges) = (List::default(), Vec::new());
        let mut each = |first, last| ranges.push((first, last));
        text.bytes().try_for_each(|byte| list.push(byte, &mut each))?;
        list.end(&mut each)?;
        Some(ranges)
    }

    #[test]
    fn cpu_lists_are_parsed() {
        assert_eq!(ranges("0\n").unwrap(), [(0, 0)]);
        assert_eq!(ranges("0-3,8-127\n").unwrap(), [(0, 3), (8, 127)]);
        assert_eq!(ranges("2,4,10-11").unwrap(), [(2, 2), (4, 4), (10, 11)]);
        assert_eq!(ranges("\n").unwrap(), []);
        for wrong in ["a", "1-", "-1", "1-2-3", "3-2", "1 2", "99999999999999999999999", "0x3"] {
            assert_eq!(ranges(wrong), None, "{wrong}");
        }
    }
}
