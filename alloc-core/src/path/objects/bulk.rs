//! Allocates and frees many objects at once, in batches.

use super::alloc::take_batch;
use super::lookup::move_event;
use super::put::put_away;
use super::slow_path;
use crate::batch::Batch;
use crate::node;
use crate::percpu;
use crate::size_class::Class;
use crate::watch;

/// Allocates up to `len` objects into `to`, after this CPU's sheaf had fewer. Returns the number of
/// objects allocated.
///
/// # Safety
/// `to` is writable for `len` pointers.
pub(crate) unsafe fn alloc_bulk(class: Class, to: *mut *mut u8, len: usize) -> usize {
    slow_path::alloc(|context| {
        let backend = percpu::backend(context);
        let node = node::current();
        let mut batch = Batch::new();
        let mut count = 0;
        backend.count_anew(class, len);
        while count < len {
            backend.drain(class, &mut batch, len - count);
            if batch.len() == 0
                && (take_batch(context, class, node, &mut batch, percpu::batch_len(class)).is_err()
                    || batch.len() == 0)
            {
                break;
            }
            watch::refill(|| move_event(class, batch.len(), percpu::cpu()));
            while let Some(object) = (count < len).then(|| batch.pop_last()).flatten() {
                // SAFETY: `count` is below `len`, for which `to` is writable.
                unsafe { to.add(count).write(object) };
                count += 1;
            }
            // SAFETY: the batch has just left a sheaf, the barn or a slab, so this thread alone
            // holds its objects.
            unsafe {
                backend.fill(class, &mut batch);
                put_away(context, backend, class, node, &mut batch);
            }
        }
        percpu::count_beyond(class, count);
        count
    })
}

/// Frees objects for which this CPU's sheaf had no room.
///
/// # Safety
/// The objects are of `class`, and nobody uses them.
pub(crate) unsafe fn free_bulk(class: Class, objects: &[*mut u8]) {
    slow_path::free(|context| {
        let backend = percpu::backend(context);
        let node = node::current();
        let mut batch = Batch::new();
        for objects in objects.chunks(percpu::batch_len(class).max(1)) {
            batch.fill(objects);
            watch::flush(|| move_event(class, batch.len(), percpu::cpu()));
            // SAFETY: the caller guarantees objects of `class` that nobody uses.
            unsafe { put_away(context, backend, class, node, &mut batch) };
        }
    });
}
