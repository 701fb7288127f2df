//! No stacks: another architecture, or Miri or loom.

/// Returns zero: no return address is known.
pub fn capture(_to: &mut [usize]) -> usize {
    0
}

/// Registers that [`store_registers`] stores: none.
#[cfg(not(loom))]
pub(crate) const REGISTERS: usize = 0;

/// Stores nothing: which registers there are is not known.
#[cfg(not(loom))]
pub(crate) fn store_registers(_to: &mut [usize; REGISTERS]) {}

/// Calls `line` with nothing: there are no stacks.
pub(crate) fn describe(_frames: &[usize], _line: &mut dyn FnMut(core::fmt::Arguments<'_>)) {}

/// Returns zero: no return address is known.
pub(crate) unsafe fn capture_interrupted(
    _context: *const core::ffi::c_void,
    _to: &mut [usize],
) -> usize {
    0
}
