//! The rules that lead from a frame to its caller's: where the frame ends, and where each register
//! of the caller is saved. They are the result of executing a function's instructions up to an
//! address in its code.

use super::tables::{Bytes, Function, Tables};
use crate::arch::frames::{CODE, FRAME, REGISTERS, STACK};

/// How to find the caller's value of a register. Numbers are distances in bytes; an expression is
/// named by the distance of its block from the header of the tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rule {
    /// The tables do not say. A register that functions preserve is unchanged.
    Unspecified,
    /// It is not known.
    Undefined,
    /// It is unchanged.
    Same,
    /// It is at this distance from the end of the frame.
    Offset(i32),
    /// It is the address at this distance from the end of the frame.
    ValueOffset(i32),
    /// It is in another register.
    Register(u8),
    /// It is where the expression says.
    Expression(i32),
    /// It is the value of the expression.
    ValueExpression(i32),
}

/// How to find the end of a frame: the stack pointer at the call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    Unspecified,
    /// At this distance from the address in a register.
    Offset(u8, i32),
    /// The value of the expression.
    Expression(i32),
}

#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) end: End,
    pub(super) registers: [Rule; REGISTERS],
}

/// An instruction.
enum Instruction {
    Nothing,
    /// What follows applies to code that begins this many bytes further on.
    Advance(usize),
    /// What follows applies to code from this address on.
    MoveTo(usize),
    Rule(usize, Rule),
    /// The rule of a register is again that at the start of the function.
    Initial(usize),
    End(End),
    EndRegister(usize),
    EndOffset(i32),
    /// Remembers the rules, until the matching [`Instruction::Recall`].
    Remember,
    Recall,
}

/// Decodes the next instruction. `header` is the address of the tables' header.
fn decode(from: &mut Bytes, function: &Function, header: usize) -> Option<Instruction> {
    let code = from.u8()?;
    let low = usize::from(code & 0x3f);
    // The operands: a register in many instructions, then a number, an address, or a block.
    let register = match code {
        0x05..=0x09 | 0x0c | 0x0d | 0x10..=0x12 | 0x14..=0x16 | 0x2f => from.unsigned()?,
        _ => low,
    };
    let number = match code {
        0x01 => function.address(from)?,
        0x02 => from.u8()?.into(),
        0x03 => from.u16()?.into(),
        0x04 => from.u32()? as usize,
        0x1d => from.u64()? as usize,
        0x05 | 0x09 | 0x0c | 0x0e | 0x14 | 0x2e | 0x2f | 0x80..0xc0 => from.unsigned()?,
        0x11..=0x13 | 0x15 => from.signed()? as usize,
        0x0f | 0x10 | 0x16 => from.block()?.wrapping_sub(header),
        _ => low,
    };
    let plain = number as isize;
    let scaled = plain.wrapping_mul(function.data_factor);
    let offset = i32::try_from(scaled);
    let place = i32::try_from(plain);
    Some(match code {
        0x02..=0x04 | 0x1d | 0x40..0x80 => {
            Instruction::Advance(number.wrapping_mul(function.code_factor))
        }
        0x01 => Instruction::MoveTo(number),
        0x05 | 0x11 | 0x80..0xc0 => Instruction::Rule(register, Rule::Offset(offset.ok()?)),
        0x2f => Instruction::Rule(register, Rule::Offset(offset.ok()?.checked_neg()?)),
        0x14 | 0x15 => Instruction::Rule(register, Rule::ValueOffset(offset.ok()?)),
        0x07 => Instruction::Rule(register, Rule::Undefined),
        0x08 => Instruction::Rule(register, Rule::Same),
        0x09 => Instruction::Rule(register, Rule::Register(number.try_into().ok()?)),
        0x10 => Instruction::Rule(register, Rule::Expression(place.ok()?)),
        0x16 => Instruction::Rule(register, Rule::ValueExpression(place.ok()?)),
        0x06 | 0xc0.. => Instruction::Initial(register),
        0x0c => Instruction::End(End::Offset(register.try_into().ok()?, place.ok()?)),
        0x12 => Instruction::End(End::Offset(register.try_into().ok()?, offset.ok()?)),
        0x0d => Instruction::EndRegister(register),
        0x0e => Instruction::EndOffset(place.ok()?),
        0x13 => Instruction::EndOffset(offset.ok()?),
        0x0f => Instruction::End(End::Expression(place.ok()?)),
        0x0a => Instruction::Remember,
        0x0b => Instruction::Recall,
        // The size of the arguments on the stack matters to exceptions only.
        0x00 | 0x2e => Instruction::Nothing,
        // AArch64: whether the return address is signed. It is stripped in any case.
        0x2c | 0x2d if cfg!(target_arch = "aarch64") => Instruction::Nothing,
        _ => return None,
    })
}

/// An address in the code, which the instructions move forward.
#[derive(Clone, Copy)]
struct Place(usize);

impl Place {
    /// Follows an instruction. Returns false if it leads beyond `target`.
    fn follow(&mut self, instruction: &Instruction, target: usize) -> bool {
        match instruction {
            Instruction::Advance(bytes) => self.0 = self.0.wrapping_add(*bytes),
            Instruction::MoveTo(address) => self.0 = *address,
            _ => {}
        }
        self.0 <= target
    }
}

impl Rules {
    pub(super) fn new() -> Rules {
        Rules { end: End::Unspecified, registers: [Rule::Unspecified; REGISTERS] }
    }

    /// Sets the rules to those at an address in code. Returns the function there, and its place in
    /// the index. `None` if the tables have none, or in a form that is not known here.
    #[inline(never)]
    pub(super) fn find(&mut self, address: usize, tables: &Tables) -> Option<(usize, Function)> {
        let place = tables.search(address)?;
        let function = tables.function(place)?;
        if !function.code.contains(&address) {
            return None;
        }
        self.execute(function.initial, usize::MAX, &function, tables.header)?;
        self.execute(function.instructions, address, &function, tables.header)?;
        Some((place, function))
    }

    /// Executes instructions up to those for code beyond `target`.
    ///
    /// Remembered rules are not stored anywhere. What happens between remembering and recalling is
    /// skipped, unless the target is in between; then the rules will never be recalled.
    fn execute(
        &mut self,
        mut from: Bytes,
        target: usize,
        function: &Function,
        header: usize,
    ) -> Option<()> {
        let mut place = Place(function.code.start);
        while !from.is_empty() {
            let instruction = decode(&mut from, function, header)?;
            if !place.follow(&instruction, target) {
                break;
            }
            match instruction {
                Instruction::Nothing | Instruction::Advance(_) | Instruction::MoveTo(_) => {}
                Instruction::Rule(number, rule) => self.set(number, rule),
                Instruction::Initial(number) => {
                    let rule = initial(number, function, header)?;
                    self.set(number, rule);
                }
                Instruction::End(end) => self.end = end,
                Instruction::EndRegister(number) => {
                    let End::Offset(register, _) = &mut self.end else { return None };
                    *register = number.try_into().ok()?;
                }
                Instruction::EndOffset(distance) => {
                    let End::Offset(_, offset) = &mut self.end else { return None };
                    *offset = distance;
                }
                Instruction::Remember => {
                    if let Some(after) = after_recall(from, place, target, function, header)? {
                        (from, place) = after;
                    }
                }
                Instruction::Recall => return None,
            }
        }
        Some(())
    }

    /// Sets the rule of a register. Those that no caller's frame depends on have none.
    fn set(&mut self, number: usize, rule: Rule) {
        if let Some(to) = self.registers.get_mut(number) {
            *to = rule;
        }
    }

    /// Returns the rule of a register.
    pub(super) fn get(&self, number: usize) -> Rule {
        self.registers.get(number).copied().unwrap_or(Rule::Unspecified)
    }
}

/// Returns the rule of a register at the start of a function.
fn initial(number: usize, function: &Function, header: usize) -> Option<Rule> {
    let mut from = function.initial;
    let mut found = Rule::Unspecified;
    while !from.is_empty() {
        match decode(&mut from, function, header)? {
            Instruction::Rule(other, rule) if other == number => found = rule,
            _ => {}
        }
    }
    Some(found)
}

/// Returns where to continue after the instruction that recalls what was remembered just before
/// `from`. `None` in it if the target comes first.
fn after_recall(
    mut from: Bytes,
    mut place: Place,
    target: usize,
    function: &Function,
    header: usize,
) -> Option<Option<(Bytes, Place)>> {
    let mut depth = 1;
    while !from.is_empty() {
        let instruction = decode(&mut from, function, header)?;
        if !place.follow(&instruction, target) {
            break;
        }
        match instruction {
            Instruction::Remember => depth += 1,
            Instruction::Recall => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(Some((from, place)));
        }
    }
    Some(None)
}

/// The rules of most places at which a function calls another, in a word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Short {
    /// This is the outermost frame.
    Outermost,
    Caller {
        /// Whether the distance to the end of the frame is that from the frame pointer, not the
        /// stack pointer.
        from_frame_pointer: bool,
        end: i32,
        /// Distance of the return address from the end of the frame.
        code: i32,
        /// Distance of the caller's frame pointer from there. `None` if it is unchanged.
        frame_pointer: Option<i32>,
    },
}

impl Short {
    /// Distances are stored in words of 8 bytes.
    const BITS: u32 = 20;
    const OUTERMOST: u64 = 1 << 2;

    /// Returns the short form of rules. `None` if they are not of that kind.
    pub(super) fn new(rules: &Rules, return_address: usize) -> Option<Short> {
        let (register, end) = match (rules.end, rules.get(return_address)) {
            (_, Rule::Undefined) => return Some(Short::Outermost),
            (End::Offset(register, end), _) => (usize::from(register), end),
            _ => return None,
        };
        let from_frame_pointer = register == FRAME;
        let Rule::Offset(code) = rules.get(return_address) else { return None };
        let frame_pointer = match rules.get(FRAME) {
            Rule::Offset(distance) => Some(distance),
            Rule::Same | Rule::Unspecified => None,
            _ => return None,
        };
        let is_plain = (from_frame_pointer || register == STACK)
            && rules.get(STACK) == Rule::Unspecified
            && (return_address == CODE || rules.get(CODE) == Rule::Unspecified);
        is_plain.then_some(Short::Caller { from_frame_pointer, end, code, frame_pointer })
    }

    /// Returns the word. `None` if a distance does not fit.
    pub(super) fn pack(self) -> Option<u64> {
        let Short::Caller { from_frame_pointer, end, code, frame_pointer } = self else {
            return Some(Self::OUTERMOST);
        };
        let field = |distance: i32, index: u32| {
            let words = distance / 8;
            let limit = 1 << (Self::BITS - 1);
            let fits = distance % 8 == 0 && (-limit..limit).contains(&words);
            let bits = u64::from(words as u32 & ((1 << Self::BITS) - 1));
            fits.then_some(bits << (4 + Self::BITS * index))
        };
        let flags = u64::from(from_frame_pointer) | u64::from(frame_pointer.is_some()) << 1;
        Some(flags | field(end, 0)? | field(code, 1)? | field(frame_pointer.unwrap_or(0), 2)?)
    }

    #[inline]
    pub(super) fn unpack(word: u64) -> Short {
        if word & Self::OUTERMOST != 0 {
            return Short::Outermost;
        }
        let field = |index: u32| {
            let unused = u64::BITS - Self::BITS;
            let top = word << (unused - 4 - Self::BITS * index);
            (top as i64 >> unused) as i32 * 8
        };
        Short::Caller {
            from_frame_pointer: word & 1 != 0,
            end: field(0),
            code: field(1),
            frame_pointer: (word & 2 != 0).then(|| field(2)),
        }
    }
}
