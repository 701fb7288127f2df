//! Read-copy-update: readers that take no lock, and frees that wait until the readers of before are gone.
//!
//! A reader is between [`read_lock`] and the drop of its guard. It never waits, for nobody, so it may be in a signal handler.
//! Whoever took an object out of a structure that readers walk through gives it to
//! [`Cache::free_rcu`](crate::cache::Cache::free_rcu), and it is freed after all readers are gone that might have found it.
//!
//! *Frees that wait* go on this CPU's rcu sheaf, which like all sheaves takes one restartable sequence and does not touch the
//! object: readers may still look at it. A full sheaf is linked into a list, through words behind the objects that readers do
//! not see; so there is room for any number of them in any context. The list waits for a grace period as a whole, then its
//! objects are freed, while the next gathers. (`kfree_rcu` of `mm/slub.c` and its sheaves.)
//!
//! *Why not `crossbeam-epoch`.* Its participants, its bags of garbage and the closures in them are allocated, and readers take
//! part by a thread-local with a destructor. Under an allocator each of these may recurse into the code that it serves, none of
//! it can be had in a handler that interrupted the same, and a thread that exits frees what others may be walking over.
//!
//! This file may touch `objects` and what is below it, and `fault`.

use core::marker::PhantomData;
use core::mem;
use core::sync::atomic::{AtomicUsize, Ordering, compiler_fence};

use crate::arch;
use crate::batch::Batch;
use crate::deferred::Block;
use crate::fault::{self, Place};
use crate::objects;
use crate::percpu;
use crate::size_class::Class;
use crate::slab;
use crate::sync::{
    Backoff, Context, ControlMutex, Grace, Llist, Lock, LockClass, RawLock, Taken, Ticket, forks,
    witness,
};
use crate::watch;

/// Slots for readers; CPUs beyond share with the first ones.
const SLOTS: usize = 64;

static GRACE: Grace<SLOTS> = Grace::new();

/// Readers on this thread, by side.
fn own() -> [usize; 2] {
    arch::locals().readers.each_ref().map(|own| own.load(Ordering::Relaxed))
}

/// Counts a reader on this thread, which `step` counts for others, or counts it out.
///
/// A handler that interrupts this and forks finds one of both done, and takes the other number for that of readers that the child
/// does not have. So the child puts that right when both are done. It has one thread until its handler returns.
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
        reset_in_child();
    }
}

/// In the child of a fork: readers on other threads are no more.
#[cold]
fn reset_in_child() {
    GRACE.reset_in_child(own());
}

/// A reader, until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct ReadGuard {
    ticket: Ticket,
    /// Stays on its thread, which is the one that survives a fork.
    _thread: PhantomData<*const ()>,
}

/// Begins to read: what readers can find now stays until the guard is dropped. May be called in any context, in the midst of
/// other readers too. (`srcu_read_lock`.)
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

/// Waits until all readers are gone that were there when it was called. A reader must not call it, and a handler may have
/// interrupted one. (`synchronize_srcu`.)
///
/// # Panics
/// In debug builds if a reader calls it.
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

/// Objects that are to wait for the next grace period.
static NEXT: Llist<Block> = Llist::new();

/// Objects that wait for a grace period.
struct Waiting {
    blocks: Taken<Block>,
    /// What ends it.
    end: usize,
}

static WAITING: Lock<Waiting> =
    Lock::new(LockClass::Waiting, Waiting { blocks: Taken::NONE, end: 0 });

/// Frees an object of a class of a cache once all readers of before are gone. Does not wait, in any context.
///
/// # Safety
/// The object is of that class, and nobody but readers uses it.
#[inline]
pub(crate) unsafe fn free(class: Class, object: *mut u8) {
    objects::checked_in(object, class);
    // It is free, and may be read still.
    watch::make_accessible(object, objects::size(class), true);
    // SAFETY: the caller's promise; the sheaf holds pointers, of whatever class.
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
    Context::enter(|context| {
        let backend = percpu::backend(context);
        // SAFETY: the caller's promise.
        if unsafe { backend.push(Class::RCU, object) } {
            return;
        }
        setting_aside(|| {
            let mut batch = Batch::new();
            backend.drain(Class::RCU, &mut batch, percpu::capacity(Class::RCU));
            set_aside(&mut batch);
            batch.push_first(object);
            // SAFETY: as above. Opens the sheaf where it was not open yet.
            unsafe { backend.fill(Class::RCU, &mut batch) };
            set_aside(&mut batch);
        });
        free_waiting(context);
        objects::may_reclaim(context);
    });
}

/// Frees what waited long enough, in a program that frees nothing more for readers; returns whether
/// anything waits still.
fn end_window(context: Context) -> bool {
    /// Objects that rcu sheaves held at the end of the last window.
    static HELD: AtomicUsize = AtomicUsize::new(0);
    let cpus = || (0..percpu::regions()).filter(|cpu| percpu::held(*cpu, Class::RCU) > 0);
    let held = cpus().map(|cpu| percpu::held(cpu, Class::RCU)).sum();
    // Sheaves that are in use are left alone. Relaxed: a guess.
    if held > 0 && HELD.swap(held, Ordering::Relaxed) == held {
        setting_aside(|| {
            for cpu in cpus() {
                percpu::flush(context, cpu, Class::RCU, set_aside);
            }
        });
    }
    free_waiting(context);
    let waiting = WAITING.acquire(Context::TRYING);
    held > 0 || !NEXT.is_empty() || waiting.is_none_or(|waiting| !waiting.blocks.is_empty())
}

/// Runs what takes objects from rcu sheaves and sets them aside. In between they are nowhere else, so [`barrier`] waits for it
/// as it does for readers.
pub(crate) fn setting_aside<R>(body: impl FnOnce() -> R) -> R {
    let _reader = read_lock();
    body()
}

/// Moves a batch to those that wait for the next grace period: to be called by what [`setting_aside`] runs.
pub(crate) fn set_aside(batch: &mut Batch) {
    for &object in batch.objects() {
        // SAFETY: objects of caches that nobody but readers uses, which do not look at the link.
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

/// Frees what waited long enough, and lets the next begin to wait; nothing where somebody else is at that.
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
    blocks.map(<*mut Block>::cast).for_each(objects::free_block(context));
}

/// Callers of [`barrier`] take objects with them, for which the others have to wait as well.
static TURNS: ControlMutex = ControlMutex::new(LockClass::RcuBarrier);

/// Waits until all is free that [`Cache::free_rcu`](crate::cache::Cache::free_rcu) was given before. Not for readers or
/// handlers. (`kvfree_rcu_barrier`.)
pub fn barrier() {
    wait_for_all();
}

/// As [`barrier`]; false where rcu sheaves of other CPUs could not be emptied.
pub(crate) fn wait_for_all() -> bool {
    let _turn = TURNS.lock();
    let mut gathered = true;
    Context::enter(|context| {
        for cpu in (0..percpu::regions()).filter(|cpu| percpu::held(*cpu, Class::RCU) > 0) {
            gathered &= percpu::flush(context, cpu, Class::RCU, set_aside);
        }
    });
    // What others had taken from sheaves is set aside then.
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

/// Whether somebody waits for readers in [`barrier`], at the time of asking.
pub(crate) fn barrier_is_on() -> bool {
    TURNS.is_held()
}

/// Every lock of this module.
pub(crate) fn for_each_lock(visit: &dyn Fn(LockClass, &RawLock)) {
    visit(LockClass::Waiting, WAITING.raw());
}

/// In the child of a fork: what other threads were at is no more.
pub(crate) fn in_child() {
    reset_in_child();
    TURNS.reset_in_child();
}
