//! Tags: bytes by part of the program, unbiased and with their errors, in every context.

use std::alloc::{GlobalAlloc, Layout};
use std::collections::HashSet;
use std::future::Future;
use std::hint::black_box;
use std::panic;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use hayloft_core::profile as samples;
use hayloft_core::stats::{self, TagStats};
use hayloft_core::tag::{self, Tag, Taggable as _, tag};
use tests::entry_points::Hayloft;
use tests::process::Limit;
use tests::scenario::{Scenario, on_both_backends, on_both_backends_with};
use tests::slow_paths::{among_signals, handle_sigusr1};

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// For tests that begin without samples, also where the suite runs with some.
const NO_SAMPLES: [(&str, &str); 1] = [("HAYLOFT_PROFILE", "")];

/// Returns the statistics of a tag: all zero if nothing was sampled in it.
fn of_tag(name: &str) -> TagStats {
    stats::gather().tags().find(|tag| tag.name.as_str() == name).unwrap_or_default()
}

/// Allocates a block of this many bytes, exactly the size of a class.
fn alloc(bytes: usize) -> (*mut u8, Layout) {
    let layout = Layout::from_size_align(bytes, 8).unwrap();
    // SAFETY: the layout is not empty.
    let block = black_box(unsafe { GLOBAL.alloc(layout) });
    assert!(!block.is_null());
    (block, layout)
}

fn free((block, layout): (*mut u8, Layout)) {
    // SAFETY: the block is live, and of this layout.
    unsafe { GLOBAL.dealloc(block, layout) };
}

/// With a mean of one byte sums are exact, and their errors are zero. Blocks stay in the tag that
/// they were allocated in: when they are freed elsewhere, and when they grow elsewhere.
#[test]
fn tags_hold_what_was_allocated_in_them() {
    on_both_backends_with(&NO_SAMPLES, || {
        assert_eq!(stats::gather().tags().count(), 0);
        assert!(samples::start(1));
        let mut blocks = Vec::with_capacity(100);
        let outer = tag::enter("outer");
        (0..10).for_each(|_| blocks.push(alloc(1024)));
        tag("inner", || (0..7).for_each(|_| blocks.push(alloc(64 << 10))));
        tag(Tag::NONE, || blocks.push(alloc(512)));
        (0..10).for_each(|_| blocks.push(alloc(2 << 20)));
        drop(outer);
        let (outer, inner) = (of_tag("outer"), of_tag("inner"));
        assert_eq!((outer.live, outer.allocs), (20, 20));
        assert_eq!(outer.live_bytes, 10 * 1024 + (20 << 20));
        assert_eq!((inner.live, inner.live_bytes, inner.live_error), (7, 7 << 16, 0));
        assert!(of_tag("").live_bytes >= 512);
        tag("third", || {
            let (block, layout) = blocks.last_mut().unwrap();
            // SAFETY: the block is live, and of this layout.
            *block = unsafe { GLOBAL.realloc(*block, *layout, 5 << 20) };
            *layout = Layout::from_size_align(5 << 20, 8).unwrap();
        });
        assert_eq!(of_tag("outer").live_bytes, outer.live_bytes + (3 << 20));
        assert_eq!(of_tag("third"), TagStats::default());
        std::thread::scope(|scope| {
            let blocks: Vec<_> =
                blocks.into_iter().map(|(block, layout)| (block as usize, layout)).collect();
            scope.spawn(move || {
                tag("third", || {
                    blocks.iter().for_each(|(block, layout)| free((*block as *mut u8, *layout)));
                });
            });
        });
        // Flushes the sheaves.
        samples::for_each(|_, _| ());
        for name in ["outer", "inner"] {
            let of_tag = of_tag(name);
            assert_eq!((of_tag.live, of_tag.live_bytes), (0, 0), "{of_tag:?}");
            assert!(of_tag.allocs >= 7);
        }
        samples::stop();
    });
}

/// Sums are unbiased, and their errors are what the theory says, for small and large blocks.
#[test]
fn sums_are_right_within_their_errors() {
    on_both_backends(|| {
        const MEAN: usize = 64 << 10;
        const ROUNDS: usize = 60_000;
        assert!(samples::start(MEAN));
        let [small, large, short] = ["small", "large", "short"].map(Tag::named);
        let mut blocks = Vec::with_capacity(2 * ROUNDS);
        for round in 0..ROUNDS {
            tag(small, || blocks.push(alloc(256)));
            tag(short, || free(alloc(1024)));
            if round % 200 == 0 {
                tag(large, || blocks.push(alloc(96 << 10)));
            }
        }
        samples::for_each(|_, _| ());
        let deviations =
            |found: u64, exact: usize, error: u64| (found as f64 - exact as f64) / error as f64;
        let exact_error = |bytes: usize, count: usize| {
            let rate = 1.0 - (-(bytes as f64) / MEAN as f64).exp();
            (count as f64 * (1.0 - rate) / rate).sqrt() * bytes as f64
        };
        for (name, bytes, count) in [("small", 256, ROUNDS), ("large", 96 << 10, ROUNDS / 200)] {
            let found = of_tag(name);
            let off = deviations(found.live_bytes, bytes * count, found.live_error);
            assert!(off.abs() < 5.0, "{off} deviations: {found:?}");
            let relative = found.live_error as f64 / exact_error(bytes, count);
            assert!((0.6..1.4).contains(&relative), "{relative}: {found:?}");
            assert_eq!(found.live_bytes, found.alloc_bytes);
        }
        let found = of_tag("short");
        let off = deviations(found.alloc_bytes, ROUNDS * 1024, found.alloc_error);
        assert!(off.abs() < 5.0, "{off} deviations: {found:?}");
        assert!(found.live_bytes <= 4 * MEAN as u64, "{found:?}");
        // Sums of sites with a tag are those of the tag.
        let mut of_sites = 0;
        samples::for_each(|place, sums| {
            if place.tag == "small" {
                of_sites += sums.live_bytes as u64;
            }
        });
        assert_eq!(of_sites, of_tag("small").live_bytes);
        samples::stop();
        blocks.into_iter().for_each(free);
    });
}

/// The signals of the test below that were handled.
static HANDLED: AtomicUsize = AtomicUsize::new(0);

/// A gibibyte in use is known to 2.2 % at the default mean.
#[test]
fn a_gibibyte_is_known_to_two_percent() {
    on_both_backends(|| {
        const BYTES: usize = 32 << 10;
        const COUNT: usize = (1 << 30) / BYTES;
        assert!(samples::start(samples::DEFAULT_MEAN));
        let mut blocks = Vec::with_capacity(COUNT);
        tag("gibibyte", || blocks.extend((0..COUNT).map(|_| alloc(BYTES))));
        let found = of_tag("gibibyte");
        let percent = |bytes: u64| 100.0 * bytes as f64 / (1_u64 << 30) as f64;
        let off = percent(found.live_bytes.abs_diff(1 << 30));
        assert!(off < 5.0 * 2.2, "{off} %: {found:?}");
        // The error is an estimate, too, of some 2000 samples.
        assert!((1.9..2.5).contains(&percent(found.live_error)), "{found:?}");
        samples::stop();
        blocks.into_iter().for_each(free);
    });
}

/// Destructors of thread-locals, which run when the thread has none any more, have tags.
#[test]
fn threads_that_end_have_tags() {
    struct AtEnd;
    impl Drop for AtEnd {
        fn drop(&mut self) {
            assert_eq!(tag::current(), Tag::NONE);
            tag("at the end", || free(alloc(1024)));
            let _ = tag::enter("left");
            tag::replace("for good");
        }
    }
    thread_local!(static AT_END: AtEnd = const { AtEnd });
    on_both_backends(|| {
        assert!(samples::start(1));
        for round in 1..=3 {
            std::thread::spawn(|| AT_END.with(|_| ())).join().unwrap();
            assert_eq!(of_tag("at the end").allocs, round);
        }
        samples::stop();
    });
}

/// A handler that allocates, and changes tags, comes anywhere while tags change. Sums stay exact.
#[test]
fn handlers_may_interrupt_changes_of_tags() {
    extern "C" fn handler(_: libc::c_int) {
        let before = tag::current();
        let of_thread = alloc(48);
        let of_handler = tag("handler", || alloc(48));
        [of_thread, of_handler].into_iter().for_each(free);
        assert_eq!(tag::current(), before);
        HANDLED.fetch_add(1, Ordering::Relaxed);
    }
    on_both_backends(|| {
        assert!(samples::start(1));
        handle_sigusr1(handler);
        among_signals(&HANDLED, || {
            let mut rounds = 0;
            while HANDLED.load(Ordering::Relaxed) < 500 {
                // Other names each time at first, so that they are made while the handler comes.
                let name = format!("tag {}", rounds % 500);
                tag(&*name, || {
                    assert_eq!(tag::current().name(), name);
                    [alloc(100), alloc(2000)].into_iter().for_each(free);
                    assert_eq!(tag::current().name(), name);
                });
                assert_eq!(tag::current(), Tag::NONE);
                rounds += 1;
            }
        });
        let found = of_tag("handler").allocs as usize;
        let handled = HANDLED.load(Ordering::Relaxed);
        // A handler that interrupts a slow path may get a block that is not sampled.
        assert!(found > 0 && found <= handled, "{found} of {handled}");
    });
}

/// A future that is pending so many times, and then returns the names of the tags it was polled in.
struct Countdown(usize, Vec<&'static str>);

impl Future for Countdown {
    type Output = Vec<&'static str>;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        self.1.push(tag::current().name());
        match self.0.checked_sub(1) {
            Some(left) => {
                self.0 = left;
                Poll::Pending
            }
            None => Poll::Ready(std::mem::take(&mut self.1)),
        }
    }
}

/// Futures are in their tags on whatever thread they are polled, and threads are not between polls.
#[test]
fn futures_take_their_tags_along() {
    let task = async {
        let inner = Countdown(3, Vec::new()).tagged("inner").await;
        let outer = Countdown(3, Vec::new()).await;
        (inner, outer)
    };
    let mut task = Box::pin(task.tagged("outer"));
    let mut other = Box::pin(Countdown(100, Vec::new()).tagged("other"));
    let mut polls = 0;
    let (inner, outer) = loop {
        polls += 1;
        let poll = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let mut context = Context::from_waker(Waker::noop());
                assert_eq!(tag::current(), Tag::NONE);
                let poll = task.as_mut().poll(&mut context);
                assert_eq!(tag::current(), Tag::NONE);
                assert!(other.as_mut().poll(&mut context).is_pending());
                poll
            });
            thread.join().unwrap()
        });
        if let Poll::Ready(found) = poll {
            break found;
        }
    };
    assert_eq!(polls, 7);
    assert_eq!((inner, outer), (vec!["inner"; 4], vec!["outer"; 4]));
}

/// Spans of `tracing` are tags on each thread that enters them, also several times and at once, and
/// beside other tags. A value may be recorded later.
#[test]
fn spans_are_tags() {
    use tracing::{Instrument as _, field, info_span, subscriber};
    use tracing_subscriber::layer::SubscriberExt as _;

    let name = || tag::current().name();
    let subscriber = tracing_subscriber::registry().with(hayloft::TagLayer::new());
    subscriber::with_default(subscriber, || {
        let span = info_span!("build", tag = "index", other = 1);
        let later = info_span!("later", tag = field::Empty);
        let displayed = info_span!("displayed", tag = %format_args!("part {}", 7));
        let _outer = tag::enter("outer");
        {
            let _first = span.enter();
            let _again = span.enter();
            later.in_scope(|| assert_eq!(name(), "index"));
            later.record("tag", "late");
            later.in_scope(|| assert_eq!(name(), "late"));
            tag("closure", || displayed.in_scope(|| assert_eq!(name(), "part 7")));
            std::thread::scope(|scope| {
                let dispatch = tracing::dispatcher::get_default(Clone::clone);
                let span = &span;
                scope.spawn(move || {
                    tracing::dispatcher::with_default(&dispatch, || {
                        span.in_scope(|| assert_eq!(tag::current().name(), "index"));
                        assert_eq!(tag::current(), Tag::NONE);
                    });
                });
            });
            assert_eq!(name(), "index");
        }
        assert_eq!(name(), "outer");
        let mut task = Box::pin(Countdown(1, Vec::new()).instrument(span));
        let mut context = Context::from_waker(Waker::noop());
        assert!(task.as_mut().poll(&mut context).is_pending());
        assert_eq!(name(), "outer");
        assert_eq!(task.as_mut().poll(&mut context), Poll::Ready(vec!["index"; 2]));
    });
    let subscriber = tracing_subscriber::registry().with(hayloft::TagLayer::by_name());
    subscriber::with_default(subscriber, || {
        info_span!("a name", tag = "not this").in_scope(|| assert_eq!(name(), "a name"));
    });
    assert_eq!(name(), "");
}

/// A panic leaves the tags that it unwinds through, also within a poll.
#[test]
fn panics_leave_tags() {
    let _outer = tag::enter("outer");
    let result = panic::catch_unwind(|| {
        tag("middle", || {
            tag("inner", || {
                assert_eq!(tag::current().name(), "inner");
                panic::panic_any(17)
            })
        })
    });
    assert_eq!(result.unwrap_err().downcast_ref(), Some(&17));
    assert_eq!(tag::current().name(), "outer");
    let result = panic::catch_unwind(|| {
        let mut task = pin!(async { panic::panic_any(18) }.tagged("task"));
        let _: Poll<()> = task.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    });
    assert_eq!(result.unwrap_err().downcast_ref(), Some(&18));
    assert_eq!(tag::current().name(), "outer");
}

/// Names beyond the bound are no tags; the others stay what they are.
#[test]
fn too_many_names_are_counted() {
    Scenario::new("many", || {
        assert!(samples::start(1));
        let names: Vec<String> = (0..1100).map(|number| format!("name {number}")).collect();
        let tags: HashSet<Tag> = names.iter().map(|name| Tag::named(name)).collect();
        assert_eq!((tags.len(), tag::lost()), (1024 + 1, 1100 - 1024));
        assert_eq!(Tag::named("name 3").name(), "name 3");
        let before = of_tag("").live_bytes;
        let block = tag("name 1099", || {
            assert_eq!(tag::current(), Tag::NONE);
            alloc(16 << 10)
        });
        assert!(of_tag("").live_bytes >= before + (16 << 10));
        let text = stats::gather().to_string();
        assert!(text.contains("\n77 uses of names beyond 1024 tags"), "{text}");
        free(block);
    })
    .succeeds();
}

/// Where there is no memory for names, there are no tags, and the program goes on.
#[test]
fn tags_need_no_memory_to_go_on() {
    Scenario::new("none", || {
        Limit::AddressSpace.set(0).unwrap();
        assert_eq!(tag("index", || (alloc(100), tag::current())).1, Tag::NONE);
        assert_eq!(tag::lost(), 1);
    })
    .succeeds();
}

/// The child of a fork is in the tag of its parent's thread, and has its sums.
#[test]
fn tags_survive_forks() {
    on_both_backends(|| {
        assert!(samples::start(1));
        let block = tag("parent", || {
            let block = alloc(1024);
            // SAFETY: the child calls only functions for any context, and ends.
            let child = unsafe { libc::fork() };
            if child == 0 {
                let more = alloc(1024);
                let is_right = tag::current() == Tag::named("parent")
                    && of_tag("parent").live == 2
                    && tag("child", tag::current).name() == "child";
                free(more);
                // SAFETY: ends the child.
                unsafe { libc::_exit(i32::from(!is_right)) };
            }
            let mut status = 0;
            // SAFETY: waits for the child, and writes to a local variable.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert_eq!(status, 0);
            block
        });
        assert_eq!(of_tag("parent").live, 1);
        free(block);
    });
}

/// Profiles, the table, OpenMetrics and JSON have the tags.
#[test]
fn reports_have_tags() {
    on_both_backends_with(&NO_SAMPLES, || {
        let before = stats::gather().open_metrics().to_string();
        assert!(!before.contains("hayloft_tag_"));
        assert!(samples::start(1));
        let block = tag("a \"quoted\" tag", || alloc(1024));
        let stats = stats::gather();
        let table = stats.to_string();
        let is_row = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words == "a_\"quoted\"_tag 1 1.0 KiB 0.0 % 1 1.0 KiB".split(' ').collect::<Vec<_>>()
        };
        assert!(table.lines().any(is_row), "{table}");
        let metrics = stats.open_metrics().to_string();
        for line in [
            "hayloft_tag_bytes{tag=\"a \\\"quoted\\\" tag\"} 1024\n",
            "hayloft_tag_error_bytes{tag=\"a \\\"quoted\\\" tag\"} 0\n",
            "hayloft_tag_allocs_total{tag=\"a \\\"quoted\\\" tag\"} 1\n",
        ] {
            assert!(metrics.contains(line), "{line}{metrics}");
        }
        openmetrics_parser::openmetrics::parse_openmetrics(&metrics).expect("it is OpenMetrics");
        let json = serde_json::to_value(stats.report()).unwrap();
        let tags = json["tags"].as_array().unwrap();
        let found = tags.iter().find(|tag| tag["name"] == "a \"quoted\" tag").unwrap();
        assert_eq!((&found["live"], &found["live_bytes"]), (&1.into(), &1024.into()));
        let mut file = Vec::new();
        assert!(samples::write(&mut |part| {
            file.extend_from_slice(part);
            true
        }));
        let mut text = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&file[..]), &mut text)
            .unwrap();
        let has = |part: &[u8]| text.windows(part.len()).any(|found| found == part);
        assert!(has(b"tag") && has(b"a \"quoted\" tag"));
        samples::stop();
        free(block);
    });
}
