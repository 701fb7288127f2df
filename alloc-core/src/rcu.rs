//! Read-copy-update: readers that take no lock, and frees that wait until all earlier readers are
//! gone.
//!
//! A reader lasts from [`read_lock`] to the drop of its guard. It never waits for anything, so it
//! may be in a signal handler. A thread that took an object out of a structure passes it to
//! [`Cache::free_rcu`](crate::cache::Cache::free_rcu), which frees it after all readers are gone
//! that might have found it there.
//!
//! *Waiting objects* go on this CPU's rcu sheaf. As for all sheaves, a push is one restartable
//! sequence and does not touch the object, which readers may still look at. The contents of a full
//! sheaf are linked into a list, through words behind the objects that readers do not see. So there
//! is room for any number of them in any context. The list waits for a grace period as a whole.
//! Then its objects are freed, while the next list gathers. (`kfree_rcu` of `mm/slub.c` and its
//! sheaves.)
//!
//! *Why not `crossbeam-epoch`.* Its participants, its bags of garbage and the closures in them are
//! allocated, and readers take part through a thread-local with a destructor. Under an allocator
//! each of these may recurse into the code that it serves. None of them works in a handler that
//! interrupted the same code. And a thread that exits frees what others may be walking over.

use core::marker::PhantomData;
use core::mem;
use core::sync::atomic::{AtomicUsize, Ordering, compiler_fence};

use crate::arch;
use crate::batch::Batch;
use crate::fault::{self, Place};
use crate::front::instrument::object_taken_back;
use crate::path::deferred::Block;
use crate::path::objects::{self, slow_path};
use crate::percpu;
use crate::size_class::Class;
use crate::slab;
use crate::sync::{
    Backoff, Context, ControlMutex, Grace, Llist, Lock, LockClass, RawLock, Taken, Ticket, forks,
    witness,
};
use crate::watch;

/// Slots for readers; higher CPU numbers alias modulo this.
const SLOTS: usize = 64;

static GRACE: Grace<SLOTS> = Grace::new();

/// Returns the number of readers on this thread, by side.
fn own() -> [usize; 2] {
    arch::locals().readers.each_ref().map(|own| own.load(Ordering::Relaxed))
}

/// Adds `change`, 1 or -1, to this thread's own count of readers; `step` changes the count that all
/// threads see.
///
/// A handler may interrupt this between the two changes and fork. The child then computes the
/// number of lost readers, those on threads that it does not have, from counts that differ by one.
/// So it computes that number again when both counts are changed. Until the handler returns, the
/// child has a single thread.
#[inline]
fn count(ticket: Ticket, change: isize, step: impl FnOnce()) {
    let before = forks();
    // Towards handlers on this thread, here and below.
    compiler_fence(Ordering::SeqCst);
    let count_own = || {
        let own = &arch::locals().readers[ticket.side() & 1];
        own.store(own.load(Ordering::Relaxed).wrapping_add_signed(change), Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
    };
    if change > 0 {
        count_own();
        fault::point(Place::ReaderEntering);
        step();
    } else {
        step();
        fault::point(Place::ReaderLeaving);
        count_own();
    }
    compiler_fence(Ordering::SeqCst);
    if forks() != before {
        // SAFETY: the process was forked since, and its child has one thread until the handler that
        // forked returns to this one.
        unsafe { reset_in_child() };
    }
}

/// Discounts the readers of other threads, in the child of a fork.
///
/// # Safety
/// The process is the child of a fork, and has one thread.
#[cold]
unsafe fn reset_in_child() {
    // SAFETY: the caller guarantees that this thread, with its readers, is the only one.
    unsafe { GRACE.reset_in_child(own()) };
}

/// A reader, until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct ReadGuard {
    ticket: Ticket,
    /// Stays on its thread, which is the one that survives a fork.
    _thread: PhantomData<*const ()>,
}

/// Begins a reader: objects that readers can find now stay until the guard is dropped. May be
/// called in any context, also inside other readers. (`srcu_read_lock`.)
#[inline]
pub fn read_lock() -> ReadGuard {
    let ticket = GRACE.ticket(percpu::cpu());
    count(ticket, 1, || GRACE.enter(ticket));
    ReadGuard { ticket, _thread: PhantomData }
}

impl Drop for ReadGuard {
    #[inline]
    fn drop(&mut self) {
        count(self.ticket, -1, || GRACE.leave(self.ticket));
    }
}

/// Blocks until all readers are gone that existed at the call. Must not be called by a reader, nor
/// by a handler, which may have interrupted a reader. (`synchronize_srcu`.)
///
/// # Panics
/// In debug builds, if a reader calls it.
pub fn synchronize() {
    witness::may_sleep();
    debug_assert!(own() == [0; 2], "a reader waits for itself");
    let end = GRACE.begin();
    // Most readers are short.
    let mut backoff = Backoff::new();
    while !GRACE.is_over(end) {
        backoff.pause();
    }
}

/// Objects that will wait for the next grace period.
static NEXT: Llist<Block> = Llist::new();

/// Objects that wait for a grace period.
struct Waiting {
    blocks: Taken<Block>,
    /// The epoch that ends the grace period.
    end: usize,
}

static WAITING: Lock<Waiting> =
    Lock::new(LockClass::Waiting, Waiting { blocks: Taken::NONE, end: 0 });

/// Frees an object of a cache's class once all readers that exist now are gone. Does not wait; may
/// be called in any context.
///
/// # Safety
/// The object is of that class, and nobody but readers uses it.
#[inline]
pub(crate) unsafe fn free(class: Class, object: *mut u8) {
    object_taken_back(object, class);
    // The object is free, but readers may still look at it.
    watch::make_accessible(object, objects::size(class), true);
    // SAFETY: the caller guarantees that only readers use the object; the sheaf holds pointers of
    // any class.
    unsafe {
        if !percpu::push(Class::RCU, object) {
            free_slow(object);
        }
    }
}

/// # Safety
/// As [`free`].
#[cold]
#[inline(never)]
unsafe extern "C" fn free_slow(object: *mut u8) {
    objects::at_end_of_window(end_window);
    slow_path::free(|context| {
        let backend = percpu::backend(context);
        // SAFETY: the caller guarantees that only readers use the object.
        if unsafe { backend.push(Class::RCU, object) } {
            return;
        }
        setting_aside(|| {
            let mut batch = Batch::new();
            backend.drain(Class::RCU, &mut batch, percpu::capacity(Class::RCU));
            // SAFETY: the objects have just left an rcu sheaf, so this thread alone holds them.
            unsafe { set_aside(&mut batch) };
            batch.push_first(object);
            // SAFETY: the batch holds `object` alone, and the caller guarantees that only readers
            // use it. `fill` opens the sheaf if it was closed.
            unsafe {
                backend.fill(Class::RCU, &mut batch);
                set_aside(&mut batch);
            }
        });
        free_waiting(context);
    });
}

/// Frees objects that waited long enough, for programs that free nothing further by rcu. Returns
/// whether any object still waits.
fn end_window(context: Context) -> bool {
    /// Number of objects in all rcu sheaves at the end of the last window.
    static HELD: AtomicUsize = AtomicUsize::new(0);
    let cpus = || (0..percpu::regions()).filter(|cpu| percpu::held(*cpu, Class::RCU) > 0);
    let held = cpus().map(|cpu| percpu::held(cpu, Class::RCU)).sum();
    // Sheaves in use are left alone. Relaxed: a guess.
    if held > 0 && HELD.swap(held, Ordering::Relaxed) == held {
        setting_aside(|| {
            for cpu in cpus() {
                flush_sheaf(context, cpu);
            }
        });
    }
    free_waiting(context);
    let waiting = WAITING.acquire(Context::TRYING);
    held > 0 || !NEXT.is_empty() || waiting.is_none_or(|waiting| !waiting.blocks.is_empty())
}

/// Runs `body`, which takes objects from rcu sheaves and sets them aside. In between nobody else
/// can find the objects, so [`barrier`] waits for `body` as for a reader.
pub(crate) fn setting_aside<R>(body: impl FnOnce() -> R) -> R {
    let _reader = read_lock();
    body()
}

/// Sets the objects of a CPU's rcu sheaf aside. Returns false if the sheaf could not be emptied.
fn flush_sheaf(context: Context, cpu: usize) -> bool {
    percpu::flush(context, cpu, Class::RCU, |batch| {
        // SAFETY: the objects have just left an rcu sheaf, so this thread alone holds them.
        unsafe { set_aside(batch) };
    })
}

/// Moves a batch to the objects that wait for the next grace period. Call inside [`setting_aside`].
///
/// # Safety
/// The objects are of caches, in no sheaf, barn or slab, and nobody but readers uses them.
pub(crate) unsafe fn set_aside(batch: &mut Batch) {
    for &object in batch.objects() {
        // SAFETY: the caller guarantees objects of caches that nobody but readers uses; readers do
        // not look at the link.
        unsafe {
            if let Some(class) = objects::class_of_object(object) {
                let link = object.add(slab::shape(class).link as usize);
                watch::make_accessible(link, size_of::<*mut u8>(), false);
                NEXT.add(link.cast());
            }
        }
    }
    batch.clear();
}

/// Frees the objects whose grace period is over, and begins one for the next list. Does nothing if
/// another thread is doing so.
fn free_waiting(context: Context) {
    let Some(mut waiting) = WAITING.acquire(Context::TRYING) else { return };
    while GRACE.is_over(waiting.end) {
        free_blocks(context, mem::replace(&mut waiting.blocks, Taken::NONE));
        if NEXT.is_empty() {
            return;
        }
        *waiting = Waiting { blocks: NEXT.take(), end: GRACE.begin() };
    }
}

fn free_blocks(context: Context, blocks: Taken<Block>) {
    // SAFETY: these are links of objects that were set aside, and their grace period is over.
    blocks.map(<*mut Block>::cast).for_each(unsafe { objects::free_block(context) });
}

/// Serialises callers of [`barrier`]: each takes objects off the lists, and the others must wait
/// for these as well.
static TURNS: ControlMutex = ControlMutex::new(LockClass::RcuBarrier);

/// Blocks until all objects are free that [`Cache::free_rcu`](crate::cache::Cache::free_rcu)
/// received before the call. Not for readers or handlers. (`kvfree_rcu_barrier`.)
pub fn barrier() {
    wait_for_all();
}

/// As [`barrier`]. Returns false if rcu sheaves of other CPUs could not be emptied.
pub(crate) fn wait_for_all() -> bool {
    let _turn = TURNS.lock();
    let mut gathered = true;
    Context::enter(|context| {
        for cpu in (0..percpu::regions()).filter(|cpu| percpu::held(*cpu, Class::RCU) > 0) {
            gathered &= flush_sheaf(context, cpu);
        }
    });
    // Objects that other threads had taken from sheaves are set aside after this.
    synchronize();
    let taken = Context::enter(|context| {
        let mut waiting = WAITING.acquire(context)?;
        Some([mem::replace(&mut waiting.blocks, Taken::NONE), NEXT.take()])
    });
    synchronize();
    Context::enter(|context| {
        taken.into_iter().flatten().for_each(|blocks| free_blocks(context, blocks));
    });
    gathered
}

/// Returns whether a thread is in [`barrier`] at the time of the call.
pub(crate) fn barrier_is_on() -> bool {
    TURNS.is_held()
}

/// Visits every lock of this module.
pub(crate) fn for_each_lock(visit: &dyn Fn(LockClass, &RawLock)) {
    visit(LockClass::Waiting, WAITING.raw());
}

/// Resets this module in a fork child: readers and barriers of other threads no longer exist.
///
/// # Safety
/// The process is the child of a fork, and has one thread.
pub(crate) unsafe fn in_child() {
    // SAFETY: the caller guarantees that this is the child of a fork, with one thread.
    unsafe {
        reset_in_child();
        TURNS.reset_in_child();
    }
}
