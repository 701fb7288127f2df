//! Tags from the spans of `tracing`.

extern crate std;

use core::fmt::Debug;
use core::ptr;
use std::format;
use std::vec::Vec;

use hayloft_core::tag::{self, Tag};
use tracing_core::field::{Field, Visit};
use tracing_core::span::{Attributes, Id, Record};
use tracing_core::{Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

/// Requires the feature `tracing`. A layer that makes threads be in the [tag](mod@tag) of the span
/// that they are in, also while they poll an instrumented future.
///
/// ```
/// use hayloft::TagLayer;
/// use tracing::{info_span, subscriber};
/// use tracing_subscriber::layer::SubscriberExt as _;
///
/// let subscriber = tracing_subscriber::registry().with(TagLayer::new());
/// subscriber::with_default(subscriber, || {
///     let _entered = info_span!("build", tag = "index").entered();
///     assert_eq!(hayloft::tag::current().name(), "index");
///     info_span!("sort").in_scope(|| assert_eq!(hayloft::tag::current().name(), "index"));
/// });
/// assert_eq!(hayloft::tag::current().name(), "");
/// ```
#[derive(Clone, Copy, Debug)]
pub struct TagLayer {
    /// The field that names the tag, or `None` if the span's name does.
    field: Option<&'static str>,
}

impl TagLayer {
    /// Returns a layer for which the field `tag` of a span names the tag. Spans without that field
    /// leave threads in the tag that they are in.
    #[must_use]
    pub fn new() -> TagLayer {
        TagLayer::by_field("tag")
    }

    /// As [`TagLayer::new`], for another field.
    #[must_use]
    pub fn by_field(name: &'static str) -> TagLayer {
        TagLayer { field: Some(name) }
    }

    /// Returns a layer for which the name of each span is the tag. A filter may leave out spans
    /// (`Layer::with_filter`).
    ///
    /// ```
    /// use hayloft::TagLayer;
    /// use tracing::{info_span, subscriber};
    /// use tracing_subscriber::layer::SubscriberExt as _;
    ///
    /// let subscriber = tracing_subscriber::registry().with(TagLayer::by_name());
    /// subscriber::with_default(subscriber, || {
    ///     let _entered = info_span!("build").entered();
    ///     assert_eq!(hayloft::tag::current().name(), "build");
    /// });
    /// ```
    #[must_use]
    pub fn by_name() -> TagLayer {
        TagLayer { field: None }
    }

    /// Returns the tag that a span of this kind has by its name or by `values`, which calls its
    /// argument with each field.
    fn tag(self, metadata: &Metadata<'_>, values: impl FnOnce(&mut dyn Visit)) -> Option<Tag> {
        let Some(field) = self.field else { return Some(Tag::named(metadata.name())) };
        let mut value = Value { field, tag: None };
        values(&mut value);
        value.tag
    }
}

impl Default for TagLayer {
    fn default() -> TagLayer {
        TagLayer::new()
    }
}

/// The tag that the value of a field names.
struct Value {
    field: &'static str,
    tag: Option<Tag>,
}

impl Visit for Value {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == self.field {
            self.tag = Some(Tag::named(value));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == self.field {
            self.tag = Some(Tag::named(&format!("{value:?}")));
        }
    }
}

/// The tag of a span, and what to go back to.
struct OfSpan {
    tag: Tag,
    /// For each time that a thread is in the span: the thread, and the tag that it was in.
    before: Vec<(usize, Tag)>,
}

/// Returns a number that no other live thread has.
fn this_thread() -> usize {
    std::thread_local!(static HERE: u8 = const { 0 });
    HERE.with(|here| ptr::from_ref(here).addr())
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for TagLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let tag = self.tag(attributes.metadata(), |visit| attributes.record(visit));
        if let (Some(tag), Some(span)) = (tag, context.span(id)) {
            span.extensions_mut().replace(OfSpan { tag, before: Vec::new() });
        }
    }

    /// A value that comes later counts when the span is next entered.
    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id).filter(|_| self.field.is_some()) else { return };
        if let Some(tag) = self.tag(span.metadata(), |visit| values.record(visit)) {
            let mut extensions = span.extensions_mut();
            match extensions.get_mut::<OfSpan>() {
                Some(of_span) => of_span.tag = tag,
                None => extensions.insert(OfSpan { tag, before: Vec::new() }),
            }
        }
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(of_span) = span.extensions_mut().get_mut::<OfSpan>() {
            of_span.before.push((this_thread(), tag::current()));
            tag::replace(of_span.tag);
        }
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(of_span) = span.extensions_mut().get_mut::<OfSpan>() {
            let here = this_thread();
            // There is none if the span had no tag when this thread entered it.
            if let Some(last) = of_span.before.iter().rposition(|(thread, _)| *thread == here) {
                tag::replace(of_span.before.remove(last).1);
            }
        }
    }
}
