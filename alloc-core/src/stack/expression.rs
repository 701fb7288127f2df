//! Expressions in tables of stack frames: programs for a small stack machine (*DWARF 5*, section
//! 2.5). Compilers use them where a frame's end is in memory, linkers for stubs of library calls,
//! and this allocator for the abort handlers of its restartable sequences.

use super::memory::Memory;
use super::registers::{Registers, Stop};
use super::tables::Bytes;

/// Most values on the machine's stack.
const ROOM: usize = 8;
/// Most operations of an expression, which might have a loop.
const MOST_OPERATIONS: usize = 200;

struct Values {
    values: [usize; ROOM],
    len: usize,
}

impl Values {
    fn push(&mut self, value: usize) -> Option<()> {
        *self.values.get_mut(self.len)? = value;
        self.len += 1;
        Some(())
    }

    fn pop(&mut self) -> Option<usize> {
        self.len = self.len.checked_sub(1)?;
        self.values.get(self.len).copied()
    }

    /// Returns the value at a depth; that on top has depth 0.
    fn peek(&mut self, depth: usize) -> Option<&mut usize> {
        let index = self.len.checked_sub(depth.checked_add(1)?)?;
        self.values.get_mut(index)
    }

    /// Replaces the two topmost values by one.
    fn combine(&mut self, with: impl FnOnce(usize, usize) -> usize) -> Option<()> {
        let second = self.pop()?;
        let first = self.pop()?;
        self.push(with(first, second))
    }
}

/// Evaluates the expression in a block, which begins with its length. `first` is on the stack
/// initially.
pub(super) fn evaluate(
    block: usize,
    first: Option<usize>,
    registers: &Registers,
    memory: &mut Memory,
) -> Result<usize, Stop> {
    // Longer than any length.
    let mut block = Bytes { at: block, end: block + 10 };
    let len = block.unsigned().ok_or(Stop::End)?;
    let start = block.at;
    let mut code = Bytes { at: start, end: start.checked_add(len).ok_or(Stop::End)? };
    let all = start..=code.end;
    let mut values = Values { values: [0; ROOM], len: 0 };
    if let Some(first) = first {
        values.push(first).ok_or(Stop::End)?;
    }
    for _ in 0..MOST_OPERATIONS {
        if code.is_empty() {
            return values.pop().ok_or(Stop::End);
        }
        // The value of a register may be unknown in a way that the caller can remedy.
        let register = match code.u8().ok_or(Stop::End)? {
            operation @ 0x70..0x90 => usize::from(operation - 0x70),
            0x92 => code.unsigned().ok_or(Stop::End)?,
            operation => {
                execute(operation, &mut code, &mut values, memory).ok_or(Stop::End)?;
                if !all.contains(&code.at) {
                    return Err(Stop::End);
                }
                continue;
            }
        };
        let offset = code.signed().ok_or(Stop::End)?;
        values.push(registers.get(register)?.wrapping_add_signed(offset)).ok_or(Stop::End)?;
    }
    Err(Stop::End)
}

/// Executes an operation other than those on registers.
fn execute(
    operation: u8,
    code: &mut Bytes,
    values: &mut Values,
    memory: &mut Memory,
) -> Option<()> {
    let truth = |is_true: bool| usize::from(is_true);
    match operation {
        0x03 | 0x0e | 0x0f => values.push(code.u64()? as usize),
        0x06 => {
            let address = values.pop()?;
            values.push(memory.read(address)?)
        }
        0x08 => values.push(code.u8()?.into()),
        0x09 => values.push(code.u8()? as i8 as usize),
        0x0a => values.push(code.u16()?.into()),
        0x0b => values.push(code.u16()? as i16 as usize),
        0x0c => values.push(code.u32()? as usize),
        0x0d => values.push(code.u32()? as i32 as usize),
        0x10 => values.push(code.unsigned()?),
        0x11 => values.push(code.signed()? as usize),
        0x12 => {
            let top = *values.peek(0)?;
            values.push(top)
        }
        0x13 => values.pop().map(drop),
        0x14 => {
            let second = *values.peek(1)?;
            values.push(second)
        }
        0x15 => {
            let picked = *values.peek(code.u8()?.into())?;
            values.push(picked)
        }
        0x16 => {
            let top = *values.peek(0)?;
            let second = core::mem::replace(values.peek(1)?, top);
            *values.peek(0)? = second;
            Some(())
        }
        0x1a => values.combine(|first, second| first & second),
        0x1c => values.combine(usize::wrapping_sub),
        0x1e => values.combine(usize::wrapping_mul),
        0x1f => values.peek(0).map(|top| *top = top.wrapping_neg()),
        0x20 => values.peek(0).map(|top| *top = !*top),
        0x21 => values.combine(|first, second| first | second),
        0x22 => values.combine(usize::wrapping_add),
        0x23 => {
            let more = code.unsigned()?;
            values.peek(0).map(|top| *top = top.wrapping_add(more))
        }
        0x24 => values.combine(|first, bits| first.checked_shl(bits as u32).unwrap_or(0)),
        0x25 => values.combine(|first, bits| first.checked_shr(bits as u32).unwrap_or(0)),
        0x26 => values.combine(|first, bits| (first as isize >> bits.min(63)) as usize),
        0x27 => values.combine(|first, second| first ^ second),
        0x28 => {
            let distance = code.u16()? as i16;
            if values.pop()? != 0 {
                code.at = code.at.checked_add_signed(distance.into())?;
            }
            Some(())
        }
        0x29 => values.combine(|first, second| truth(first == second)),
        0x2a => values.combine(|first, second| truth(first as isize >= second as isize)),
        0x2b => values.combine(|first, second| truth(first as isize > second as isize)),
        0x2c => values.combine(|first, second| truth(first as isize <= second as isize)),
        0x2d => values.combine(|first, second| truth((first as isize) < second as isize)),
        0x2e => values.combine(|first, second| truth(first != second)),
        0x2f => {
            let distance = code.u16()? as i16;
            code.at = code.at.checked_add_signed(distance.into())?;
            Some(())
        }
        0x30..0x50 => values.push(usize::from(operation - 0x30)),
        0x96 => Some(()),
        _ => None,
    }
}
