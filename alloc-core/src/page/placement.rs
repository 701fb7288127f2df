//! The choice of the arena that serves a request.
//!
//! The arenas of the request's node come first. If they have no address space left and there are
//! several nodes, a new arena of the node is made. Then come the arenas of other nodes, and last
//! the reserves, those of the node before those of others. If all that fails and no arena has
//! address space left, a new arena is made.

use core::num::NonZero;

use super::arena::Arena;
use super::arenas::{arenas, arenas_beside, arenas_of, claimed};
use super::limit;
use super::make::{self, make_arena};
use super::runs::Allocation;
use crate::node;
use crate::sync::Context;

/// Allocates a run of `units` units whose address is a multiple of `align` units, a power of two.
/// Its memory is of `node` if that node has some. Returns `None` when out of memory. Does not trim
/// when the soft limit is exceeded.
pub(super) fn alloc_without_trim(
    context: Context,
    node: usize,
    units: usize,
    align: usize,
) -> Option<Allocation> {
    let len = NonZero::new(u32::try_from(units).ok()?)?;
    let align = NonZero::new(u32::try_from(align).ok()?)?;
    let need = len.checked_add(align.get())?.get();
    let mut has_made = false;
    loop {
        let claimed = claimed();
        let mut found = arenas_of(node).find_map(|arena| arena.alloc(context, len, align));
        // Prefer a new arena of this node to the arenas of other nodes.
        if found.is_none()
            && !has_made
            && node::count() > 1
            && !limit::forbids(len.get())
            && make::may_succeed(need)
            && !arenas_of(node).any(|arena| arena.has_room(need))
            && let Some(made) = make_arena(context, node, need, claimed)
        {
            has_made = made;
            continue;
        }
        let mut with_reserves = arenas_of(node).chain(arenas_beside(node));
        found = found
            .or_else(|| arenas_beside(node).find_map(|arena| arena.alloc(context, len, align)))
            .or_else(|| with_reserves.find_map(|arena| arena.alloc_reserved(len, align)));
        if found.is_some() {
            return found;
        }
        // Another arena does not help where an arena still has address space: then memory ran out,
        // or the limit is reached.
        let is_in_vain = |arena: &Arena| arena.has_room(need) && arena.may_be_had(context);
        if has_made || limit::forbids(len.get()) || arenas().any(is_in_vain) {
            return None;
        }
        has_made = make_arena(context, node, need, claimed)?;
    }
}

/// Allocates a run that is longer than its block has to be. It comes from the existing arenas of
/// `node` only, never from a reserve, another node or a new arena, and only while the heap is far
/// below its limit.
pub(crate) fn alloc_room(context: Context, node: usize, units: usize) -> Option<Allocation> {
    let len = NonZero::new(u32::try_from(units).ok()?)?;
    if !limit::allows_room(len.get()) {
        return None;
    }
    arenas_of(node).find_map(|arena| arena.alloc(context, len, NonZero::<u32>::MIN))
}

/// Returns whether a run of `units` units that was refused might be allocated after decommitting
/// all idle memory. Units that the system refuses to commit now, it would refuse to commit then.
pub(crate) fn may_have(units: usize) -> bool {
    let is_limited = u32::try_from(units).is_ok_and(limit::forbids);
    let is_committed = |arena: &Arena| arena.units.committed() as usize > units;
    units <= limit::hard() && (is_limited || arenas().any(is_committed))
}
