//! Sums of heap profiles are unbiased: the mean of many profiles of a known program is right for
//! each of its sites, within three standard errors.
//!
//! The short form takes 40 profiles on each backend. `.ci/bias` takes 200, in release builds, and
//! prints the table.

use std::alloc::{GlobalAlloc, Layout};
use std::env;
use std::hint::black_box;
use std::ops::Range;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use hayloft_core::{cpu, profile};
use tests::entry_points::Hayloft;
use tests::process::this_thread;
use tests::scenario::{BACKENDS, Scenario, describe};
use tests::sysfs::set_affinity;

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// Bytes from one sample to the next.
const MEAN: usize = 64 << 10;

/// Blocks that a round keeps until its profile is taken.
type Kept = Vec<(usize, Layout)>;

fn alloc(size: usize) -> (usize, Layout) {
    let layout = Layout::from_size_align(size, 8).expect("a layout");
    // SAFETY: the layout is not empty.
    (black_box(unsafe { GLOBAL.alloc(layout) }).addr(), layout)
}

fn free((block, layout): (usize, Layout)) {
    // SAFETY: the block was allocated with the layout, and is freed once.
    unsafe { GLOBAL.dealloc(std::ptr::with_exposed_provenance_mut(block), layout) };
}

/// A site of the program: a function that allocates, and what it does in a round.
struct Site {
    name: &'static str,
    function: fn(&mut Kept),
    size: usize,
    /// Blocks that the function allocates in a round, and those that it leaves in use.
    allocs: usize,
    live: usize,
}

/// Makes a function that allocates a block. It is not inlined, and lies in a section with the other
/// such functions, so that return addresses tell the site. Its name makes it differ from all
/// others, as the linker and the compiler merge equal ones.
macro_rules! allocates {
    ($name:ident, $size:expr) => {
        #[inline(never)]
        #[unsafe(link_section = "sites")]
        fn $name(kept: &mut Kept) {
            black_box(stringify!($name));
            kept.push(black_box(alloc($size)));
        }
    };
}

/// Makes a function that allocates a block and frees it.
macro_rules! pairs {
    ($name:ident, $size:expr) => {
        #[inline(never)]
        #[unsafe(link_section = "sites")]
        fn $name(_: &mut Kept) {
            black_box(stringify!($name));
            free(black_box(alloc($size)));
        }
    };
}

allocates!(leaks, 256);
pairs!(pairs_beside_leaks, 256);
pairs!(never_misses, 96);
allocates!(migrates, 512);
allocates!(goes_offline, 1024);
allocates!(middle_size, 64 << 10);
allocates!(finds_free_object, 32 << 10);
allocates!(finds_no_object, 32 << 10);
allocates!(large, 2 << 20);

const SITES: [Site; 9] = [
    Site { name: "leak under pairs", function: leaks, size: 256, allocs: 400, live: 400 },
    Site {
        name: "pairs above the leak",
        function: pairs_beside_leaks,
        size: 256,
        allocs: 40_000,
        live: 0,
    },
    Site { name: "never misses", function: never_misses, size: 96, allocs: 20_000, live: 0 },
    Site { name: "threads migrate", function: migrates, size: 512, allocs: 4000, live: 2000 },
    Site { name: "CPUs go offline", function: goes_offline, size: 1024, allocs: 2000, live: 1000 },
    Site { name: "middle size", function: middle_size, size: 64 << 10, allocs: 40, live: 20 },
    Site {
        name: "finds a free one",
        function: finds_free_object,
        size: 32 << 10,
        allocs: 80,
        live: 0,
    },
    Site { name: "finds none", function: finds_no_object, size: 32 << 10, allocs: 80, live: 80 },
    Site { name: "large", function: large, size: 2 << 20, allocs: 4, live: 3 },
];

/// Blocks and bytes allocated so far, and in use.
type Numbers = [f64; 4];

const NUMBERS: [&str; 4] = ["allocs", "alloc bytes", "live", "live bytes"];

impl Site {
    /// Returns what a round adds.
    fn truth(&self) -> Numbers {
        [self.allocs, self.allocs * self.size, self.live, self.live * self.size]
            .map(|number| number as f64)
    }

    /// Returns the addresses of the function's code: up to the next one of its section.
    fn code(&self) -> Range<usize> {
        unsafe extern "C" {
            /// The end of the section, from the linker.
            #[link_name = "__stop_sites"]
            static STOP: u8;
        }
        let start = self.function as usize;
        let starts = SITES.iter().map(|site| site.function as usize);
        let end = starts.filter(|other| *other > start).min();
        start + 1..end.unwrap_or((&raw const STOP).addr()) + 1
    }

    fn numbers(&self) -> Numbers {
        let code = self.code();
        let mut sums = [0; 4];
        profile::for_each(|place, of_site| {
            if place.frames.iter().any(|frame| code.contains(frame)) {
                let more = [of_site.allocs, of_site.alloc_bytes, of_site.live, of_site.live_bytes];
                sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
            }
        });
        sums.map(|sum| sum as f64)
    }
}

/// Calls a function, and frees each second block that it kept.
fn call_and_free_half(
    function: fn(&mut Kept),
    count: usize,
    mut between: impl FnMut(usize),
) -> Kept {
    let mut kept = Kept::with_capacity(count);
    for number in 0..count {
        between(number);
        black_box(function)(&mut kept);
        if number % 2 == 1 {
            free(kept.swap_remove(number / 2));
        }
    }
    kept
}

/// Runs the program once. Returns what it has in use.
fn round(cpus: &[usize]) -> Kept {
    let [leak, pairs, hits, migrating, offline, middle, free_object, no_object, large] = &SITES;
    let mut kept = Kept::with_capacity(10_000);
    for _ in 0..leak.allocs {
        black_box(leak.function)(&mut kept);
        (0..pairs.allocs / leak.allocs).for_each(|_| black_box(pairs.function)(&mut Kept::new()));
    }
    (0..hits.allocs).for_each(|_| black_box(hits.function)(&mut Kept::new()));
    let of_threads = thread::scope(|scope| {
        let migrate = |start: usize| {
            move || {
                call_and_free_half(migrating.function, migrating.allocs / 2, |number| {
                    if number % 64 == 0 {
                        set_affinity(this_thread(), &[cpus[(start + number / 64) % cpus.len()]]);
                    }
                })
            }
        };
        let threads = [0, 1].map(|start| scope.spawn(migrate(start)));
        threads.map(|thread| thread.join().expect("the thread does not panic"))
    });
    kept.extend(of_threads.into_iter().flatten());
    let is_done = AtomicBool::new(false);
    let of_offline = thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let kept = call_and_free_half(offline.function, offline.allocs, |_| {});
            is_done.store(true, Ordering::Relaxed);
            kept
        });
        while !is_done.load(Ordering::Relaxed) {
            // With a single CPU there is none that could go.
            for cpu in cpus.iter().skip(1) {
                if cpu::down(*cpu).is_ok() {
                    assert_eq!(cpu::up(*cpu), Ok(()));
                }
            }
        }
        worker.join().expect("the thread does not panic")
    });
    kept.extend(of_offline);
    kept.extend(call_and_free_half(middle.function, middle.allocs, |_| {}));
    let mut freed = Kept::with_capacity(1);
    for _ in 0..free_object.allocs {
        black_box(free_object.function)(&mut freed);
        black_box(no_object.function)(&mut kept);
        freed.drain(..).for_each(free);
    }
    (0..large.allocs).for_each(|_| black_box(large.function)(&mut kept));
    kept.pop().into_iter().for_each(free);
    kept
}

/// One number of a site, over several profiles.
struct Row {
    site: &'static str,
    number: &'static str,
    truth: f64,
    mean: f64,
    /// Deviation of the mean from the truth, in standard errors.
    deviation: f64,
}

/// Takes profiles of the program, and returns the means of what each adds.
fn measure(profiles: usize) -> Vec<Row> {
    let cpus: Vec<_> = cpu::online().collect();
    let mut found = vec![[const { Vec::new() }; 4]; SITES.len()];
    for _ in 0..profiles {
        let before = SITES.each_ref().map(Site::numbers);
        let kept = round(&cpus);
        for ((site, before), found) in SITES.iter().zip(before).zip(&mut found) {
            let after = site.numbers();
            for (place, found) in found.iter_mut().enumerate() {
                found.push(after[place] - before[place]);
            }
        }
        kept.into_iter().for_each(free);
    }
    assert_eq!(profile::missed(), 0);
    let row = |site: &Site, place: usize, found: &[f64]| {
        let count = found.len() as f64;
        let mean = found.iter().sum::<f64>() / count;
        let squares = found.iter().map(|one| (one - mean) * (one - mean)).sum::<f64>();
        let error = (squares / (count - 1.0) / count).sqrt();
        let truth = site.truth()[place];
        // Blocks are rounded to whole ones.
        let difference = if (mean - truth).abs() < 0.5 / count { 0.0 } else { mean - truth };
        let deviation = if difference == 0.0 { 0.0 } else { difference / error };
        Row { site: site.name, number: NUMBERS[place], truth, mean, deviation }
    };
    let rows = SITES.iter().zip(&found).flat_map(|(site, found)| {
        found.iter().enumerate().map(move |(place, found)| row(site, place, found))
    });
    rows.collect()
}

/// Checks that the means of so many profiles are right. One of 400 numbers that are right deviates
/// by more than three standard errors, so one that does is measured again, with twice the profiles:
/// a bias would be there again.
fn check(profiles: usize) {
    const MOST: f64 = 3.0;
    cpu::start();
    assert!(profile::start(MEAN));
    let rows = measure(profiles);
    println!("{profiles} profiles of process {}", process::id());
    println!("{:22}{:12}{:>14}{:>16}{:>8}", "site", "number", "truth", "mean", "errors");
    for Row { site, number, truth, mean, deviation } in &rows {
        println!("{site:22}{number:12}{truth:14.0}{mean:16.1}{deviation:8.2}");
    }
    let wrong: Vec<_> = rows.iter().map(|row| row.deviation.abs() > MOST).collect();
    if !wrong.contains(&true) {
        return;
    }
    for (again, row) in measure(2 * profiles)
        .iter()
        .zip(&rows)
        .zip(wrong)
        .filter_map(|(rows, is_wrong)| is_wrong.then_some(rows))
    {
        let (site, number) = (row.site, row.number);
        println!("{site}, {number} again: {:.2} errors", again.deviation);
        assert!(
            again.deviation.abs() <= MOST,
            "{site}: {number} are {} instead of {}, {:.1} standard errors, and before that {:.1}",
            again.mean,
            again.truth,
            again.deviation,
            row.deviation
        );
    }
}

/// 40 profiles.
#[test]
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), ignore = "no stacks")]
fn sums_of_each_site_are_right_on_average() {
    for backend in BACKENDS {
        Scenario::new(backend, || check(40)).env("HAYLOFT_BACKEND", backend).succeeds();
    }
}

/// Environment variable with the number of profiles of the long form.
const PROFILES: &str = "BIAS_PROFILES";

/// 200 profiles, or as many as [`PROFILES`] has, and the table.
#[test]
#[ignore = "takes minutes: .ci/bias runs it"]
fn sums_of_each_site_are_right_in_many_profiles() {
    let profiles = env::var(PROFILES).map_or(200, |count| count.parse().expect("a number"));
    for backend in BACKENDS {
        Scenario::new(backend, || check(profiles)).env("HAYLOFT_BACKEND", backend).run(|output| {
            assert!(output.status.success(), "{}", describe(output));
            println!("{backend}: {}", String::from_utf8_lossy(&output.stdout));
        });
    }
}
