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
