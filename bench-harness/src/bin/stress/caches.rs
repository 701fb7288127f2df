//! Object caches that are constantly created, used, shared and destroyed.
//!
//! A cycle is the life of one cache. Its flags are random, and its size is one of a few, so that
//! caches alive at the same time often share a class. Its objects are allocated and freed by every
//! entry point. Sometimes a second thread uses the cache as well, and signal handlers use the cache
//! of the thread that they interrupt. Meanwhile some objects are [published](crate::published) to
//! readers. Some caches still have live objects when their owner destroys them; that must fail.

use std::alloc::Layout;
use std::array;
use std::collections::BTreeSet;
use std::mem::{self, MaybeUninit};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering, compiler_fence};
use std::thread;

use hayloft_core::cache::{Cache, CacheFlags};
use parking_lot::Mutex;

use crate::draw::Rng;
use crate::failure::Actor;
use crate::object::{self, Object};
use crate::published::{self, Publisher};

/// Sizes of objects.
const SIZES: [usize; 7] = [32, 100, 104, 500, 1000, 6000, 30_000];

/// Bound on the bytes in the objects that a user holds.
const BYTES: usize = 1 << 20;

/// Bound on the objects allocated or freed by one bulk operation.
const BULK: usize = 64;

thread_local! {
    /// The cache that this thread uses, for its signal handlers.
    static CURRENT: AtomicPtr<Subject> = const { AtomicPtr::new(ptr::null_mut()) };
}

/// A cache under test.
struct Subject {
    cache: Cache,
    flags: CacheFlags,
    constructed: bool,
}

impl Subject {
    /// Creates a cache. Half of the caches have nothing special, so that they can share a class.
    fn new(rng: &mut Rng) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("stress {}", COUNT.fetch_add(1, Ordering::Relaxed));
        let layout = Layout::from_size_align(SIZES[rng.below(SIZES.len())], 8);
        let (mut flags, constructed) = match rng.below(8) {
            0 => (CacheFlags::default(), true),
            1 => (CacheFlags::TYPESAFE_BY_RCU, true),
            2 | 3 => (CacheFlags::NO_MERGE, false),
            _ => (CacheFlags::default(), false),
        };
        if !constructed && rng.below(4) == 0 {
            flags = flags | CacheFlags::ZERO;
        }
        if rng.below(4) == 0 {
            flags = flags | CacheFlags::HWCACHE_ALIGN;
        }
        let builder = Cache::builder(&name, layout.expect("a small layout")).flags(flags);
        let builder = if constructed { builder.ctor(object::construct) } else { builder };
        Self { cache: builder.build().expect("there are few caches"), flags, constructed }
    }

    /// Returns whether the cache shares its class with no other cache.
    fn is_special(&self) -> bool {
        self.constructed || self.flags.contains(CacheFlags::NO_MERGE)
    }

    /// Returns whether an object may be reused while a reader still reads it.
    fn is_typesafe(&self) -> bool {
        self.flags.contains(CacheFlags::TYPESAFE_BY_RCU)
    }

    fn filled(&self, address: NonNull<u8>, key: u64, actor: Actor) -> Object {
        let state = (self.flags.contains(CacheFlags::ZERO), self.constructed);
        Object::new(address, self.cache.layout(), key, state, actor)
    }

    /// Allocates an object. Callable in any context.
    fn alloc(&self, rng: &mut Rng, actor: Actor) -> Option<Object> {
        let address = match rng.below(3) {
            0 => self.cache.alloc_nolock(),
            _ => self.cache.alloc().ok(),
        };
        address.map(|address| self.filled(address, rng.next(), actor))
    }

    /// Frees an object that nothing else uses. Callable in any context.
    fn free(&self, rng: &mut Rng, object: Object, actor: Actor) {
        // SAFETY: `object` belongs to this cache, and the caller passes its only owner.
        unsafe {
            match rng.below(4) {
                0 | 1 => self.cache.free(object.into_checked(actor)),
                2 => self.cache.free_nolock(object.into_checked(actor)),
                _ => self.free_after_readers(rng, object, actor),
            }
        }
    }

    /// Frees an object that was published until now.
    fn free_published(&self, rng: &mut Rng, object: Object, actor: Actor) {
        if self.is_typesafe() {
            self.free(rng, object, actor);
        } else {
            self.free_after_readers(rng, object, actor);
        }
    }

    fn free_after_readers(&self, rng: &mut Rng, object: Object, actor: Actor) {
        let address = object.into_checked(actor);
        // SAFETY: `object` belongs to this cache and is no longer published: only readers that
        // found it earlier still use it.
        unsafe {
            match rng.below(2) {
                0 => self.cache.free_rcu(address),
                _ => self.cache.free_rcu_nolock(address),
            }
        }
    }
}

/// Allocates and frees objects in the cache that the interrupted thread uses, if it uses one.
/// Called by signal handlers.
pub(crate) fn interrupt(rng: &mut Rng, actor: Actor) {
    let current = CURRENT.with(|current| current.load(Ordering::Relaxed));
    // SAFETY: the cache outlives its time in `CURRENT`, since the thread that clears `CURRENT`
    // cannot continue before its handler returns.
    let Some(subject) = (unsafe { current.as_ref() }) else { return };
    let objects: [_; 3] = array::from_fn(|_| subject.alloc(rng, actor));
    objects.into_iter().flatten().for_each(|object| subject.free(rng, object, actor));
}

/// Runs the life of one cache and returns the number of caches destroyed, which is one. `alone`
/// prevents a second user: it is set in a fork child, which must not start threads of the standard
/// library.
pub(crate) fn cycle(rng: &mut Rng, actor: Actor, alone: bool) -> u64 {
    let subject = Subject::new(rng);
    let shared = Mutex::default();
    let user = |rng: &mut Rng| User {
        subject: &subject,
        shared: &shared,
        rng: Rng::of_key(rng.next()),
        actor,
        objects: Vec::new(),
        publisher: None,
    };
    let mut first = user(rng);
    first.publisher = Some(Publisher::new(actor.thread, subject.is_typesafe()));
    if alone || rng.below(4) > 0 {
        first.run();
    } else {
        let mut second = user(rng);
        thread::scope(|scope| {
            scope.spawn(|| second.run());
            first.run();
        });
        second.free_all_but(0);
    }
    let kept = first.free_all_but(if subject.is_special() { rng.below(10) } else { 0 });
    destroy(subject, rng, kept, actor);
    1
}

/// Destroys a cache. If `kept` is not empty, checks first that the destruction fails and reports
/// exactly these objects.
fn destroy(mut subject: Subject, rng: &mut Rng, kept: Vec<Object>, actor: Actor) {
    if !kept.is_empty() {
        let refusal = subject.cache.destroy().expect_err("objects are in use");
        let told: BTreeSet<_> = refusal.objects().iter().copied().collect();
        let known: BTreeSet<_> = kept.iter().map(Object::address).collect();
        assert_eq!((refusal.live(), told), (kept.len(), known), "{refusal}");
        subject.cache = refusal.into_cache();
        kept.into_iter().for_each(|object| subject.free(rng, object, actor));
    }
    subject.cache.destroy().expect("all objects are free");
}

/// A thread's use of a cache.
struct User<'a> {
    subject: &'a Subject,
    /// Where users of the same cache leave all their objects for each other.
    shared: &'a Mutex<Vec<Object>>,
    rng: Rng,
    actor: Actor,
    objects: Vec<Object>,
    /// Present only in the first user of a cache.
    publisher: Option<Publisher>,
}

impl User<'_> {
    /// Performs 1 to 1000 random operations on the cache.
    fn run(&mut self) {
        let set = |subject| CURRENT.with(|current| current.store(subject, Ordering::Relaxed));
        set(ptr::from_ref(self.subject).cast_mut());
        for _ in 0..self.rng.log_uniform(1, 1000) {
            self.step();
        }
        set(ptr::null_mut());
        // A barrier towards this thread's handlers: from here on they leave the cache alone.
        compiler_fence(Ordering::SeqCst);
    }

    fn step(&mut self) {
        match self.rng.below(1000) {
            0..400 => self.alloc(),
            400..750 => self.free(),
            750..820 => self.alloc_bulk(),
            820..890 => self.free_bulk(),
            890..940 => {
                let object = self.take();
                self.publish(object);
            }
            940..970 => published::read(&mut self.rng, self.actor),
            970..995 => self.exchange(),
            995..997 => drop(self.subject.cache.shrink()),
            _ => drop(self.subject.cache.stats()),
        }
    }

    fn alloc(&mut self) {
        let object = self.subject.alloc(&mut self.rng, self.actor);
        self.objects.extend(object);
        while self.objects.len() * self.subject.cache.layout().size() > BYTES {
            self.free();
        }
    }

    /// Removes a random object from those held.
    fn take(&mut self) -> Option<Object> {
        let index = self.rng.below(self.objects.len().max(1));
        (index < self.objects.len()).then(|| self.objects.swap_remove(index))
    }

    fn free(&mut self) {
        if let Some(object) = self.take() {
            self.subject.free(&mut self.rng, object, self.actor);
        }
    }

    fn alloc_bulk(&mut self) {
        let mut room = [MaybeUninit::uninit(); BULK];
        let len = self.rng.log_uniform(1, BULK);
        let count = self.subject.cache.alloc_bulk(&mut room[..len]);
        for address in &room[..count] {
            // SAFETY: `alloc_bulk` wrote the first `count` elements.
            let address = unsafe { address.assume_init() };
            self.objects.push(self.subject.filled(address, self.rng.next(), self.actor));
        }
    }

    fn free_bulk(&mut self) {
        let len = self.rng.log_uniform(1, BULK).min(self.objects.len());
        let last = self.objects.drain(self.objects.len() - len..);
        let addresses: Vec<_> = last.map(|object| object.into_checked(self.actor)).collect();
        // SAFETY: the objects belong to this cache, and `into_checked` ended their use.
        unsafe { self.subject.cache.free_bulk(&addresses) };
    }

    /// Publishes `object`, or nothing, and frees the object published before. Without a publisher,
    /// frees `object` instead.
    fn publish(&mut self, object: Option<Object>) {
        let before = match &mut self.publisher {
            Some(publisher) => publisher.publish(object),
            None => object,
        };
        if let Some(object) = before {
            self.subject.free_published(&mut self.rng, object, self.actor);
        }
    }

    fn exchange(&mut self) {
        let mut shared = self.shared.lock();
        mem::swap(&mut *shared, &mut self.objects);
    }

    /// Frees the objects held by this user and left in `shared`, except `kept` of them, which it
    /// returns.
    fn free_all_but(mut self, kept: usize) -> Vec<Object> {
        self.exchange();
        let others = mem::take(&mut self.objects);
        self.exchange();
        self.objects.extend(others);
        self.publish(None);
        let kept = self.objects.split_off(self.objects.len().saturating_sub(kept));
        while !self.objects.is_empty() {
            self.free();
        }
        kept
    }
}
