//! Walking a stack, from each frame to its caller's.

use super::cache;
use super::expression::evaluate;
use super::images::{self, Image};
use super::memory::Memory;
use super::registers::{Registers, Stop};
use super::rules::{End, Rule, Rules, Short};
use super::tables::{Function, Tables};
use crate::arch::frames::{self, CODE, FRAME, PRESERVED, REGISTERS, SIGNAL_FRAME, STACK};

/// Which registers a walk follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Follow {
    /// Those that nearly all frames are described by: the stack and the frame pointer.
    Few,
    /// All that can be known.
    All,
}

/// Writes the return addresses above the frame with these registers. Returns their number. The
/// frame may have been interrupted (`is_exact`), or else called a function.
///
/// # Errors
/// If the walk does not follow all registers and needs one of the others.
pub(super) fn walk(
    registers: &[usize; REGISTERS],
    is_exact: bool,
    follow: Follow,
    to: &mut [usize],
) -> Result<usize, Stop> {
    let known = PRESERVED | 1 << STACK | 1 << CODE;
    let mut frame = Frame {
        registers: Registers::new(registers, known),
        floor: registers[STACK],
        is_exact,
        memory: Memory::new(registers[STACK]),
        image: None,
    };
    let mut count = 0;
    for to in to {
        match frame.leave(follow) {
            Ok(()) => {}
            Err(Stop::Lost) if follow == Follow::Few => return Err(Stop::Lost),
            Err(_) => break,
        }
        *to = frame.registers.code().wrapping_add(frame.is_exact.into());
        count += 1;
    }
    Ok(count)
}

struct Frame {
    registers: Registers,
    /// The stack pointer, or an address below it.
    floor: usize,
    /// Whether the instruction pointer is that of the next instruction. Otherwise it is a return
    /// address, which may lie behind the end of the function that made the call.
    is_exact: bool,
    memory: Memory,
    /// The image that the last address was found in.
    image: Option<Image>,
}

impl Frame {
    /// Moves on to the caller's frame.
    fn leave(&mut self, follow: Follow) -> Result<(), Stop> {
        let code = self.registers.code();
        let inside = code.wrapping_sub((!self.is_exact).into());
        let Some(tables) = self.tables(inside) else { return self.leave_without_tables() };
        if follow == Follow::Few
            && !self.is_exact
            && let Some(rules) = cache::get(code, &tables)
        {
            return self.leave_by_short(rules);
        }
        let mut rules = Rules::new();
        let Some((place, function)) = rules.find(inside, &tables) else {
            return self.leave_without_tables();
        };
        self.memory.set_code(function.code.clone());
        if function.is_signal_frame {
            // The tables have an expression for each register, which takes longer.
            if self.is_signal_return() {
                return self.leave_signal_frame();
            }
        } else if !self.is_exact
            && let Some(short) = Short::new(&rules, function.return_address)
        {
            cache::set(code, &tables, place, short);
        }
        self.leave_by_rules(&rules, &function, &tables)
    }

    /// Returns the tables of the image that this address in code lies in.
    fn tables(&mut self, inside: usize) -> Option<Tables> {
        if !self.image.as_ref().is_some_and(|image| image.range.contains(&inside)) {
            self.image = images::find(inside);
        }
        self.image.as_ref()?.tables
    }

    fn leave_by_short(&mut self, rules: Short) -> Result<(), Stop> {
        let Short::Caller { from_frame_pointer, end, code, frame_pointer } = rules else {
            return Err(Stop::End);
        };
        let at = |base: usize, distance: i32| base.wrapping_add(distance as usize);
        let base = if from_frame_pointer { FRAME } else { STACK };
        let end = at(self.registers.get(base)?, end);
        let code = self.memory.read(at(end, code)).ok_or(Stop::End)?;
        if let Some(distance) = frame_pointer {
            let value = self.memory.read(at(end, distance)).ok_or(Stop::End)?;
            self.registers.set(FRAME, value);
        }
        self.registers.keep(1 << STACK | 1 << FRAME | 1 << CODE);
        self.enter(self.registers.code(), code, end, false)
    }

    #[inline(never)]
    fn leave_by_rules(
        &mut self,
        rules: &Rules,
        function: &Function,
        tables: &Tables,
    ) -> Result<(), Stop> {
        let callee = self.registers.clone();
        let Frame { registers: caller, memory, .. } = self;
        let block = |distance: i32| tables.header.wrapping_add(distance as usize);
        let end = match rules.end {
            End::Offset(number, distance) => {
                callee.get(number.into())?.wrapping_add(distance as usize)
            }
            End::Expression(place) => evaluate(block(place), None, &callee, memory)?,
            End::Unspecified => return Err(Stop::End),
        };
        caller.keep(PRESERVED);
        caller.set(STACK, end);
        for (number, rule) in rules.registers.iter().enumerate() {
            let at = |distance: i32| end.wrapping_add(distance as usize);
            let value = match *rule {
                Rule::Unspecified => continue,
                Rule::Undefined => Err(Stop::End),
                Rule::Same => callee.get(number),
                Rule::Offset(distance) => memory.read(at(distance)).ok_or(Stop::End),
                Rule::ValueOffset(distance) => Ok(at(distance)),
                Rule::Register(other) => callee.get(other.into()),
                Rule::Expression(place) => {
                    match evaluate(block(place), Some(end), &callee, memory) {
                        Ok(address) => memory.read(address).ok_or(Stop::End),
                        Err(stop) => Err(stop),
                    }
                }
                Rule::ValueExpression(place) => evaluate(block(place), Some(end), &callee, memory),
            };
            match value {
                Ok(value) => caller.set(number, value),
                Err(stop) if number == function.return_address => return Err(stop),
                Err(_) => caller.keep(!(1 << number)),
            }
        }
        let (code, end) = (caller.get(function.return_address)?, caller.get(STACK)?);
        self.enter(callee.code(), code, end, function.is_signal_frame)
    }

    /// Moves on from the instruction pointer `before` to a frame with these two registers.
    fn enter(
        &mut self,
        before: usize,
        code: usize,
        stack: usize,
        is_exact: bool,
    ) -> Result<(), Stop> {
        let code = frames::strip(code);
        // A frame ends above its callee's. A function without a frame may have been interrupted.
        // A signal handler may have a stack of its own.
        let is_progress = stack > self.floor
            || (stack == self.floor && code != before)
            || is_exact
            || !self.memory.is_on_stack(stack);
        if code == 0 || !is_progress {
            return Err(Stop::End);
        }
        self.registers.set(CODE, code);
        self.registers.set(STACK, stack);
        self.is_exact = is_exact;
        self.memory.move_to(self.floor, stack);
        self.floor = stack;
        Ok(())
    }

    /// Moves on from code that no table describes: code to which a signal handler returns, code
    /// that was interrupted before it made a frame, or code with a frame pointer.
    #[cold]
    fn leave_without_tables(&mut self) -> Result<(), Stop> {
        if self.is_signal_return() {
            return self.leave_signal_frame();
        }
        self.leave_without_frame().or_else(|_| self.leave_by_frame_pointer())
    }

    /// Returns whether the code is that to which signal handlers return.
    fn is_signal_return(&self) -> bool {
        let code = self.registers.code();
        // It is longer than a word by a byte at most.
        let ends = [8, frames::SIGNAL_RETURN.len()];
        let [start, end] = ends.map(|end| self.memory.before(code.wrapping_add(end)));
        start.is_some_and(|start| frames::SIGNAL_RETURN.starts_with(&start))
            && end.is_some_and(|end| frames::SIGNAL_RETURN.ends_with(&end))
    }

    fn leave_signal_frame(&mut self) -> Result<(), Stop> {
        let stack = self.registers.get(STACK)?;
        let mut registers = Registers::new(&[0; REGISTERS], 0);
        for (number, distance) in SIGNAL_FRAME.into_iter().enumerate() {
            let value = self.memory.read(stack.wrapping_add(distance.into())).ok_or(Stop::End)?;
            registers.set(number, value);
        }
        let (before, now) = (self.registers.code(), registers.code());
        let stack = registers.get(STACK)?;
        self.registers = registers;
        self.enter(before, now, stack, true)
    }

    /// Moves on from a function that was interrupted where it has no frame, as in a linker's stub
    /// for a call of a library.
    fn leave_without_frame(&mut self) -> Result<(), Stop> {
        if !self.is_exact {
            return Err(Stop::End);
        }
        let stack = self.registers.get(STACK)?;
        #[cfg(target_arch = "x86_64")]
        let (code, stack) = (self.memory.read(stack).ok_or(Stop::End)?, stack.wrapping_add(8));
        #[cfg(target_arch = "aarch64")]
        let code = frames::strip(self.registers.get(frames::LINK)?);
        self.check_call(code)?;
        self.enter(self.registers.code(), code, stack, false)
    }

    fn leave_by_frame_pointer(&mut self) -> Result<(), Stop> {
        let frame = self.registers.get(FRAME)?;
        if frame < self.floor {
            return Err(Stop::End);
        }
        let caller = self.memory.read(frame).ok_or(Stop::End)?;
        let code = self.memory.read(frame.wrapping_add(8)).ok_or(Stop::End)?;
        let code = frames::strip(code);
        self.check_call(code)?;
        self.registers.keep(1 << STACK | 1 << CODE);
        self.registers.set(FRAME, caller);
        self.enter(self.registers.code(), code, frame.wrapping_add(16), false)?;
        if !frames::RECORD_IS_TOP {
            // The frame ends somewhere above its record.
            self.registers.keep(!(1 << STACK));
        }
        Ok(())
    }

    /// Checks that `code` is the address after a call. A word on the stack that is not a return
    /// address rarely is.
    fn check_call(&self, code: usize) -> Result<(), Stop> {
        let is_call = self.memory.before(code).is_some_and(frames::is_call);
        if is_call { Ok(()) } else { Err(Stop::End) }
    }
}
