//! Tags: which part of the program allocates.
//!
//! A thread is in a tag, or in none. Heap profiles and statistics have the memory that was
//! allocated in each tag, estimated from the samples of [`profile`](crate::profile), with the error
//! of each estimate. A tag is read only when a sample is taken, so allocations cost what they cost
//! without tags. Blocks keep the tag that they were allocated in, whoever frees them.
//!
//! ```
//! use hayloft_core::tag;
//!
//! let index = tag::tag("index", || vec![0_u8; 1000]);
//! let rows = {
//!     let _in_rows = tag::enter("rows");
//!     // ...
//!     tag::tag("blobs", || vec![0_u8; 1000])
//! };
//! # drop((index, rows));
//! ```
//!
//! The innermost tag counts. A signal handler is in the tag of the thread that it interrupts. A new
//! thread is in none. A program has up to 1024 tags, whose names are never forgotten: use the names
//! of subsystems, not those of requests. Further ones are no tags, which [`lost`] counts.
//!
//! Entering a tag looks its name up. Where that matters, look it up once: a [`Tag`] is a number.
//! All functions work in any context.

use core::fmt;
use core::future::Future;
use core::marker::PhantomData;
use core::pin::Pin;
use core::task::{Context, Poll};

use crate::sampling::tags;

/// A name for a part of the program.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Tag(u32);

impl Tag {
    /// No tag.
    pub const NONE: Tag = Tag(0);

    /// Returns the tag with this name. Names are cut to 32 bytes, as those of caches are. The empty
    /// name is no tag.
    ///
    /// ```
    /// use hayloft_core::tag::Tag;
    ///
    /// assert_eq!(Tag::named("index"), Tag::named("index"));
    /// assert_eq!(Tag::named("index").name(), "index");
    /// assert_eq!(Tag::named(""), Tag::NONE);
    /// ```
    #[must_use]
    pub fn named(name: &str) -> Tag {
        Tag(tags::intern(name))
    }

    /// Returns the name: the empty one for no tag.
    #[must_use]
    pub fn name(self) -> &'static str {
        tags::name(self.0)
    }

    /// Returns the number of the tag, for programs in C.
    #[doc(hidden)]
    #[must_use]
    pub fn number(self) -> u32 {
        self.0
    }

    /// Returns the tag of a number.
    ///
    /// # Safety
    /// The number comes from [`Tag::number`].
    #[doc(hidden)]
    #[must_use]
    pub unsafe fn from_number(number: u32) -> Tag {
        Tag(number)
    }
}

impl From<&str> for Tag {
    fn from(name: &str) -> Tag {
        Tag::named(name)
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_tuple("Tag").field(&self.name()).finish()
    }
}

/// Returns the tag that this thread is in.
#[must_use]
pub fn current() -> Tag {
    Tag(tags::current())
}

/// Makes this thread be in `tag`. Returns the tag that it was in. [`enter`] also goes back.
pub fn replace(tag: impl Into<Tag>) -> Tag {
    Tag(tags::replace(tag.into().0))
}

/// Returns the number of times that a name was to become a tag, but there were too many.
#[must_use]
pub fn lost() -> u64 {
    tags::lost()
}

/// Runs `body` in a tag. Afterwards, the thread is in the tag that it was in before, also if `body`
/// panics.
///
/// ```
/// use hayloft_core::tag::{Tag, current, tag};
///
/// let words = tag("words", || {
///     assert_eq!(current().name(), "words");
///     "hay and loft".split(' ').map(String::from).collect::<Vec<_>>()
/// });
/// assert_eq!((current(), words.len()), (Tag::NONE, 3));
/// ```
pub fn tag<R>(tag: impl Into<Tag>, body: impl FnOnce() -> R) -> R {
    let _entered = enter(tag);
    body()
}

/// Enters a tag until the returned guard is dropped. Guards are dropped in the reverse order, as
/// blocks of code do it.
///
/// ```
/// use hayloft_core::tag;
///
/// let before = tag::current();
/// let guard = tag::enter("index");
/// assert_eq!(tag::current().name(), "index");
/// drop(guard);
/// assert_eq!(tag::current(), before);
/// ```
pub fn enter(tag: impl Into<Tag>) -> Entered {
    Entered { before: replace(tag), _of_this_thread: PhantomData }
}

/// A thread's stay in a tag, by [`enter`].
#[derive(Debug)]
#[must_use = "the thread leaves the tag when this is dropped"]
pub struct Entered {
    before: Tag,
    _of_this_thread: PhantomData<*const ()>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        replace(self.before);
    }
}

/// A future that is in a tag while it is polled, by [`Taggable::tagged`]. Threads that poll it are
/// in that tag for the time of the poll only, so other tasks on these threads are not.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct Tagged<F> {
    tag: Tag,
    future: F,
}

impl<F: Future> Future for Tagged<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let _entered = enter(self.tag);
        // SAFETY: the future is pinned as this is: it is not moved out, and is dropped in place.
        unsafe { self.map_unchecked_mut(|tagged| &mut tagged.future) }.poll(context)
    }
}

/// Futures, which can be in a tag.
pub trait Taggable: Future + Sized {
    /// Returns this future in a tag: the thread that polls it enters the tag and leaves it on every
    /// poll.
    ///
    /// ```
    /// use hayloft_core::tag::{self, Taggable as _};
    ///
    /// let index = async { tag::current().name() }.tagged("index");
    /// # let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    /// # let index = std::pin::pin!(index).poll(&mut context);
    /// # assert_eq!(index, std::task::Poll::Ready("index"));
    /// ```
    fn tagged(self, tag: impl Into<Tag>) -> Tagged<Self> {
        Tagged { tag: tag.into(), future: self }
    }
}

impl<F: Future> Taggable for F {}
