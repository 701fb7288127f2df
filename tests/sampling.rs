//! Sampling: sums are unbiased, blocks of the sampler behave as all others, in every context.

use std::alloc::{GlobalAlloc, Layout};

use hayloft_core::profile as samples;
use tests::entry_points::Hayloft;
use tests::scenario::{on_both_backends, on_both_backends_within};

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// Returns the sums of all sites together.
fn totals() -> samples::Sums {
    let mut totals = samples::Sums::default();
    samples::for_each(|_, sums| {
        totals.allocs += sums.allocs;
        totals.alloc_bytes += sums.alloc_bytes;
        totals.live += sums.live;
        totals.live_bytes += sums.live_bytes;
    });
    totals
}

/// A sample that grows without moving has its new size.
#[test]
fn samples_grow_in_place() {
    on_both_backends(|| {
        assert!(samples::start(1));
        let before = totals();
        let layout = Layout::from_size_align(2 << 20, 8).unwrap();
        // SAFETY: the block is live, and freed once with its size then.
        unsafe {
            let block = GLOBAL.alloc(layout);
            let mut size = layout.size();
            while hayloft::Hayloft.grow_in_place(
                block,
                Layout::from_size_align(size, 8).unwrap(),
                size + (1 << 20),
            ) {
                size += 1 << 20;
                if size == 8 << 20 {
                    break;
                }
            }
            assert!(size > layout.size(), "a run at the end of the arena grows");
            let live = totals().live_bytes - before.live_bytes;
            assert!(live >= size as i64, "{live} bytes of {size}");
            GLOBAL.dealloc(block, Layout::from_size_align(size, 8).unwrap());
            assert!(totals().live_bytes - before.live_bytes < 1 << 20);
        }
    });
}

/// With a mean of one byte every block is sampled, so sums are exact; contents and alignments are
/// right, through `realloc` as well.
#[test]
fn every_block_can_be_a_sample() {
    on_both_backends(|| {
        assert!(samples::start(1));
        let before = totals();
        let mut blocks = Vec::new();
        let mut bytes = 0;
        for size in [1, 8, 24, 100, 4096, 5000, 30_000, 40_000, 500_000, 3 << 20] {
            for align in [1, 16, 64, 4096] {
                let layout = Layout::from_size_align(size, align).unwrap();
                // SAFETY: the layout is not empty.
                let block = unsafe { GLOBAL.alloc_zeroed(layout) };
                assert!(!block.is_null() && block.addr().is_multiple_of(align));
                // SAFETY: the block has that size, and reads as zero.
                unsafe {
                    assert!((0..size).step_by(509).all(|at| *block.add(at) == 0), "{layout:?}");
                    block.write_bytes(size as u8, size);
                }
                bytes += size as i64;
                blocks.push((block, layout));
            }
        }
        let full = totals();
        assert_eq!(samples::missed(), 0);
        assert!(full.live - before.live >= blocks.len() as i64, "{full:?}");
        assert!(full.live_bytes - before.live_bytes >= bytes, "{full:?}");
        for (block, layout) in &mut blocks {
            // SAFETY: the block is live, and of this layout.
            unsafe {
                let size = layout.size();
                *block = GLOBAL.realloc(*block, *layout, 2 * size + 1);
                assert!((0..size).step_by(97).all(|at| *block.add(at) == size as u8));
                *layout = Layout::from_size_align(2 * size + 1, layout.align()).unwrap();
            }
        }
        for (block, layout) in blocks {
            // SAFETY: the block is live, and of this layout.
            unsafe { GLOBAL.dealloc(block, layout) };
        }
        let after = totals();
        assert!(after.live - before.live < 10, "{before:?} {after:?}");
        samples::stop();
    });
}

/// Sums of weights are unbiased: short pairs, blocks that stay, several threads.
#[test]
fn sums_are_unbiased() {
    on_both_backends(|| {
        const MEAN: usize = 64 << 10;
        assert!(samples::start(MEAN));
        let before = totals();
        let (mut allocated, mut kept) = (0_i64, 0_i64);
        let mut blocks = Vec::new();
        for round in 0..400_000_usize {
            let layout = Layout::from_size_align(1 << (4 + round % 8), 8).unwrap();
            // SAFETY: the layout is not empty, and blocks are freed once.
            unsafe {
                let block = GLOBAL.alloc(layout);
                allocated += layout.size() as i64;
                if round % 10 == 0 {
                    kept += layout.size() as i64;
                    blocks.push((block, layout));
                } else {
                    GLOBAL.dealloc(block, layout);
                }
            }
        }
        let after = totals();
        let relative = |found: i64, exact: i64| {
            // Standard deviations: each sample stands for about MEAN bytes.
            let deviation = (exact as f64 * MEAN as f64).sqrt();
            (found - exact) as f64 / deviation
        };
        let of_all = relative(after.alloc_bytes - before.alloc_bytes, allocated);
        let of_kept = relative(after.live_bytes - before.live_bytes, kept);
        println!("{of_all:.2} {of_kept:.2} deviations");
        assert!(of_all.abs() < 5.0 && of_kept.abs() < 5.0, "{of_all} {of_kept}");
        samples::stop();
        for (block, layout) in blocks {
            // SAFETY: the block is live, and of this layout.
            unsafe { GLOBAL.dealloc(block, layout) };
        }
    });
}

/// A Rust program has one note for each probe of samples, with a semaphore, in whichever profile
/// and with whichever C library it was built.
#[test]
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), ignore = "no probes")]
fn this_program_has_probes_of_samples() {
    let text = readelf("--notes");
    let mut lines = text.lines().map(str::trim);
    let mut names = Vec::new();
    while lines.any(|line| line.ends_with("Provider: otel_memory")) {
        names.extend(lines.next().and_then(|line| line.strip_prefix("Name: ")));
        let places = lines.next().unwrap_or_default();
        let numbers: Vec<_> = places.split("0x").skip(1).map(|word| &word[..16]).collect();
        assert_eq!(numbers.len(), 3, "{places}");
        assert!(!numbers.contains(&"0000000000000000"), "{places}");
    }
    names.sort_unstable();
    assert_eq!(names, ["alloc", "free"], "{text}");
}

/// Returns what `readelf` says of this program.
fn readelf(what: &str) -> String {
    let program = std::env::current_exe().expect("the program has a path");
    let output = std::process::Command::new("readelf").args([what, "--wide"]).arg(program).output();
    let output = output.expect("readelf is installed");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Returns the semaphore of the probes, as a tracer finds it.
fn semaphore() -> *mut u16 {
    let notes = readelf("--notes");
    let after = notes.split("Provider: otel_memory").nth(1).expect("a note");
    let text = after.split("Semaphore: 0x").nth(1).expect("a semaphore");
    let linked = usize::from_str_radix(&text[..16], 16).expect("a number");
    let is_moved = !readelf("--file-header").contains("EXEC (Executable file)");
    let maps = std::fs::read_to_string("/proc/self/maps").expect("it can be read");
    let program = std::env::current_exe().expect("the program has a path");
    let own = maps.lines().find(|line| line.ends_with(program.to_str().expect("it is text")));
    let (start, _) = own.and_then(|line| line.split_once('-')).expect("a range");
    let start = usize::from_str_radix(start, 16).expect("a number");
    std::ptr::with_exposed_provenance_mut(linked + if is_moved { start } else { 0 })
}

/// A tracer that raises the semaphore switches the sampler on, and the last one that leaves
/// switches it off: at the end of a count at the latest, and at the next large block. A profile
/// counts more. No sample is lost by that.
#[test]
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), ignore = "no probes")]
fn tracers_switch_the_sampler() {
    const COUNT: usize = 1 << 16;
    const LARGE: Layout = Layout::new::<[u8; 3 << 20]>();
    on_both_backends(|| {
        let semaphore = semaphore();
        // SAFETY: the allocator's own variable, which only tracers write.
        let trace = |tracers| unsafe { semaphore.write_volatile(tracers) };
        let pairs = || (0..COUNT).for_each(|_| pair());
        // SAFETY: the layout is not empty, and the block is freed once.
        let large = || unsafe { GLOBAL.dealloc(std::hint::black_box(GLOBAL.alloc(LARGE)), LARGE) };
        pairs();
        assert_eq!(samples::mean(), None);
        for act in [&pairs as &dyn Fn(), &large] {
            trace(2);
            act();
            assert_eq!(samples::mean(), Some(samples::DEFAULT_MEAN));
            pairs();
            trace(0);
            act();
            assert_eq!(samples::mean(), None);
        }
        trace(1);
        large();
        assert!(samples::start(100));
        trace(0);
        large();
        assert_eq!(samples::mean(), Some(100));
        trace(1);
        large();
        samples::stop();
        assert_eq!(samples::mean(), Some(samples::DEFAULT_MEAN));
        trace(0);
        pairs();
        assert_eq!((samples::mean(), samples::missed()), (None, 0));
    });
}

/// Allocates a block of 256 bytes. Its site is told by its address.
#[inline(never)]
fn leak(to: &mut Vec<*mut u8>) {
    // SAFETY: the layout is not empty.
    to.push(std::hint::black_box(unsafe { GLOBAL.alloc(BLOCK) }));
}

/// Allocates and frees a block of 256 bytes, as [`leak`] does.
#[inline(never)]
fn pair() {
    // SAFETY: the layout is not empty, and the block is freed once.
    unsafe { GLOBAL.dealloc(std::hint::black_box(GLOBAL.alloc(BLOCK)), BLOCK) };
}

const BLOCK: Layout = Layout::new::<[u64; 32]>();

/// Returns the sums of the sites with a frame in `function`: [`leak`] or [`pair`].
fn sums_of(function: *const ()) -> samples::Sums {
    let mut found = samples::Sums::default();
    // Longer than any of the two is, in debug builds as well.
    let code = function.addr()..function.addr() + 0x800;
    let starts = [(leak as *const ()).addr(), (pair as *const ()).addr()];
    let is_in_other = |frame: usize| {
        starts.into_iter().any(|start| (function.addr() + 1..=frame).contains(&start))
    };
    samples::for_each(|place, sums| {
        if place.frames.iter().any(|frame| code.contains(frame) && !is_in_other(*frame)) {
            found.allocs += sums.allocs;
            found.alloc_bytes += sums.alloc_bytes;
            found.live += sums.live;
            found.live_bytes += sums.live_bytes;
        }
    });
    found
}

/// A few blocks that stay, hidden among a hundred times as many short pairs of the same size, are
/// found with the right number and bytes, and with their own stack.
#[test]
#[cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), ignore = "no stacks")]
fn leak_among_pairs_is_found() {
    on_both_backends(|| {
        const MEAN: f64 = 16_384.0;
        const LEAKS: usize = 20_000;
        assert!(samples::start(MEAN as usize));
        let mut kept = Vec::with_capacity(LEAKS);
        for _ in 0..LEAKS {
            leak(&mut kept);
            (0..100).for_each(|_| pair());
        }
        let bytes = (LEAKS * BLOCK.size()) as f64;
        let deviations = |found: i64, exact: f64| (found as f64 - exact) / (exact * MEAN).sqrt();
        let leaked = sums_of(leak as *const ());
        let paired = sums_of(pair as *const ());
        let of_leak = deviations(leaked.live_bytes, bytes);
        let of_pairs = deviations(paired.alloc_bytes, 100.0 * bytes);
        assert!(of_leak.abs() < 5.0, "{of_leak} deviations: {leaked:?}");
        assert!(of_pairs.abs() < 5.0, "{of_pairs} deviations: {paired:?}");
        assert!(paired.live <= 2 * MEAN as i64 / BLOCK.size() as i64, "{paired:?}");
        assert_eq!(leaked.live, leaked.allocs);
        samples::stop();
        for block in kept {
            // SAFETY: the block is live, and of this layout.
            unsafe { GLOBAL.dealloc(block, BLOCK) };
        }
        let freed = sums_of(leak as *const ());
        assert_eq!((freed.live, freed.live_bytes), (0, 0), "{freed:?}");
    });
}

/// Returns the values of all samples of the profile that `write` writes.
fn values_of(write: impl FnOnce(&mut dyn FnMut(&[u8]) -> bool) -> bool) -> Vec<Vec<i64>> {
    let mut file = Vec::new();
    assert!(write(&mut |part| {
        file.extend_from_slice(part);
        true
    }));
    values_in(&file)
}

/// Returns the values of all samples of a profile.
fn values_in(file: &[u8]) -> Vec<Vec<i64>> {
    use std::io::Read as _;

    fn varint(rest: &mut &[u8]) -> u64 {
        let mut number = 0;
        for shift in (0..).step_by(7) {
            let (byte, after) = rest.split_first().expect("a number ends");
            *rest = after;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        number
    }
    /// Calls `visit` with the number and the bytes of each field that has some.
    fn fields<'a>(mut rest: &'a [u8], mut visit: impl FnMut(u64, &'a [u8])) {
        while !rest.is_empty() {
            let tag = varint(&mut rest);
            let number = varint(&mut rest);
            if tag & 7 == 2 {
                let (bytes, after) = rest.split_at(number as usize);
                rest = after;
                visit(tag >> 3, bytes);
            }
        }
    }
    let mut message = Vec::new();
    flate2::read::GzDecoder::new(file).read_to_end(&mut message).unwrap();
    let mut samples = Vec::new();
    fields(&message, |field, sample| {
        const SAMPLE: u64 = 2;
        if field == SAMPLE {
            fields(sample, |field, mut values| {
                const VALUES: u64 = 2;
                if field == VALUES {
                    let mut all = Vec::new();
                    while !values.is_empty() {
                        all.push(varint(&mut values) as i64);
                    }
                    samples.push(all);
                }
            });
        }
    });
    samples
}

/// Returns the blocks and bytes of the samples of [`leak`] in a profile of growth, told by the size
/// of its blocks.
fn leaked_in(values: &[Vec<i64>]) -> [i64; 2] {
    let pair = |values: &Vec<i64>| <[i64; 2]>::try_from(values.as_slice()).expect("two values");
    let of_leak = values.iter().map(pair).filter(|[blocks, bytes]| bytes / blocks == 256);
    of_leak.fold([0, 0], |sum, values| [sum[0] + values[0], sum[1] + values[1]])
}

/// A profile of growth has what was allocated after the mark and is still in use, also where a
/// stack frees as much as it allocates.
#[test]
fn growth_is_what_stays_of_what_was_allocated_since() {
    on_both_backends(|| {
        assert!(samples::start(1));
        let mut old = Vec::with_capacity(1000);
        let mut new = Vec::with_capacity(1000);
        let free = |blocks: &mut Vec<*mut u8>, count: usize| {
            for block in blocks.drain(..count) {
                // SAFETY: the block is live, and of this layout.
                unsafe { GLOBAL.dealloc(block, BLOCK) };
            }
        };
        let growth = |mark| leaked_in(&values_of(|sink| samples::write_growth(mark, sink)));
        (0..500).for_each(|_| leak(&mut old));
        let mark = samples::mark();
        assert_eq!(growth(mark), [0, 0]);
        (0..300).for_each(|_| leak(&mut new));
        free(&mut old, 300);
        assert_eq!(growth(mark), [300, 300 * 256]);
        let later = samples::mark();
        assert!(later > mark && growth(later) == [0, 0]);
        free(&mut new, 100);
        (0..7).for_each(|_| leak(&mut new));
        assert_eq!((growth(mark), growth(later)), ([207, 207 * 256], [7, 7 * 256]));
        samples::stop();
        free(&mut old, 200);
        free(&mut new, 207);
        assert_eq!(growth(mark), [0, 0]);
    });
}

/// With `growth` in `HAYLOFT_PROFILE` the first profile has everything, and the later ones what was
/// allocated since the first.
#[test]
fn later_profiles_have_the_growth_since_the_first() {
    use tests::scenario::{BACKENDS, Scenario};
    use tests::temporary::Temporary;

    for backend in BACKENDS {
        let file = Temporary(std::env::temp_dir().join(format!("hayloft-growth-{backend}.pb.gz")));
        let path = file.0.to_str().unwrap();
        Scenario::new(backend, || {
            let profile = || {
                // SAFETY: the signal has a handler, that of the setting.
                unsafe { libc::raise(libc::SIGUSR2) };
                values_in(&std::fs::read(path).unwrap())
            };
            let mut kept = Vec::with_capacity(2000);
            (0..500).for_each(|_| leak(&mut kept));
            let first = profile();
            assert!(first.iter().all(|values| values.len() == samples::TYPES.len()));
            assert!(first.iter().any(|values| values[3] >= 500 * 256));
            for expected in [30, 60] {
                (0..30).for_each(|_| leak(&mut kept));
                assert_eq!(leaked_in(&profile()), [expected, 256 * expected]);
            }
            for block in kept {
                // SAFETY: the block is live, and of this layout.
                unsafe { GLOBAL.dealloc(block, BLOCK) };
            }
        })
        .env("HAYLOFT_BACKEND", backend)
        .env("HAYLOFT_PROFILE", format!("{path},mean=1,growth,signal={}", libc::SIGUSR2))
        .succeeds();
    }
}

/// Sums of a profile of growth are unbiased where samples stand for many blocks.
#[test]
fn growth_is_unbiased() {
    on_both_backends(|| {
        const MEAN: f64 = 16_384.0;
        const LEAKS: usize = 20_000;
        assert!(samples::start(MEAN as usize));
        let mut kept = Vec::with_capacity(2 * LEAKS);
        (0..LEAKS).for_each(|_| leak(&mut kept));
        let mark = samples::mark();
        for _ in 0..LEAKS {
            leak(&mut kept);
            pair();
        }
        let values = values_of(|sink| samples::write_growth(mark, sink));
        let bytes: i64 = values.iter().map(|values| values[1]).sum();
        let exact = (LEAKS * BLOCK.size()) as f64;
        let deviations = (bytes as f64 - exact) / (exact * MEAN).sqrt();
        assert!(deviations.abs() < 5.0, "{deviations} deviations: {values:?}");
        samples::stop();
        for block in kept {
            // SAFETY: the block is live, and of this layout.
            unsafe { GLOBAL.dealloc(block, BLOCK) };
        }
    });
}

/// Where address space is limited, there is room for fewer samples. The others are counted as
/// missed, and most of the address space that was free is left to the program.
#[test]
fn limited_address_space_has_room_for_fewer_samples() {
    on_both_backends_within(1 << 30, || {
        const BLOCKS: usize = 100_000;
        let free_bytes = || {
            let fits = |bytes| {
                // SAFETY: a new mapping, which nobody uses.
                unsafe {
                    let (rights, flags) = (libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANON);
                    let space = libc::mmap(std::ptr::null_mut(), bytes, rights, flags, -1, 0);
                    space != libc::MAP_FAILED && libc::munmap(space, bytes) == 0
                }
            };
            (0..1 << 10).map(|part| part << 20).take_while(|bytes| fits(bytes + 4096)).last()
        };
        let mut blocks = Vec::with_capacity(BLOCKS);
        let free = free_bytes().unwrap();
        assert!(samples::start(1));
        let left = free_bytes().unwrap();
        assert!(left > free / 2, "{left} of {free}");
        let before = totals();
        let mut allocate_and_free = || {
            (0..BLOCKS).for_each(|_| leak(&mut blocks));
            let full = totals();
            for block in blocks.drain(..) {
                // SAFETY: the block is live, and of this layout.
                unsafe { GLOBAL.dealloc(block, BLOCK) };
            }
            full.live - before.live
        };
        let sampled = allocate_and_free();
        assert!(sampled >= 256 && samples::missed() >= BLOCKS as u64 - sampled as u64);
        assert!(sampled < BLOCKS as i64, "all {sampled} blocks are sampled");
        let after = totals();
        assert!(after.live - before.live < 10, "{before:?} {after:?}");
        let again = allocate_and_free();
        assert!(again >= sampled - 10, "{again} of {sampled} slots are used again");
    });
}

/// A program that limits its own address space while it is sampled has what the limit leaves, and
/// is sampled still.
#[test]
fn address_space_is_given_up_when_a_program_limits_its_own() {
    on_both_backends(|| {
        const MOST: usize = 2 << 30;
        const BLOCKS: usize = 5000;
        assert!(samples::start(1));
        let mut blocks = Vec::with_capacity(2 * BLOCKS);
        (0..100).for_each(|_| leak(&mut blocks));
        tests::process::Limit::AddressSpace.set(MOST).unwrap();
        for _ in 0..2 {
            hayloft_core::heap::limit_address_space(MOST);
        }
        // SAFETY: a new mapping, which nobody uses.
        unsafe {
            let (rights, flags) = (libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANON);
            let space = libc::mmap(std::ptr::null_mut(), MOST / 4, rights, flags, -1, 0);
            assert_ne!(space, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
            assert_eq!(libc::munmap(space, MOST / 4), 0);
        }
        let before = totals();
        for _ in 0..2 {
            (0..BLOCKS).for_each(|_| leak(&mut blocks));
            let more = totals().live - before.live;
            assert!((200..BLOCKS as i64).contains(&more), "{more} samples");
            for block in blocks.drain(100..) {
                // SAFETY: the block is live, and of this layout. Its ends are writable.
                unsafe {
                    block.write_bytes(1, BLOCK.size());
                    GLOBAL.dealloc(block, BLOCK);
                }
            }
        }
        assert!(samples::missed() > 0 && totals().live - before.live < 10);
        for block in blocks {
            // SAFETY: as above.
            unsafe { GLOBAL.dealloc(block, BLOCK) };
        }
    });
}

/// Sampling, profiles and frees go on in several threads, in signal handlers, and in the children
/// of forks; counts of allocations stay exact.
#[test]
fn profiles_can_be_taken_anywhere() {
    extern "C" fn handler(_: libc::c_int) {
        pair();
        let mut bytes = 0;
        assert!(samples::write(&mut |part| {
            bytes += part.len();
            true
        }));
        assert!(bytes > 100);
        pair();
    }
    on_both_backends(|| {
        assert!(samples::start(2000));
        // SAFETY: the handler calls only functions for any context.
        unsafe { libc::signal(libc::SIGUSR1, handler as *const () as libc::sighandler_t) };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|number| {
                    scope.spawn(move || {
                        let mut kept = Vec::new();
                        for round in 0..3000 {
                            leak(&mut kept);
                            pair();
                            if round % 300 == 10 * number {
                                // SAFETY: the thread raises a signal that has a handler.
                                unsafe { libc::raise(libc::SIGUSR1) };
                            }
                            if round % 1000 == 500 + number {
                                hayloft_core::heap::trim();
                            }
                        }
                        kept.into_iter().map(|block| block as usize).collect::<Vec<_>>()
                    })
                })
                .collect();
            for thread in threads {
                for block in thread.join().expect("the thread does not panic") {
                    // SAFETY: the block is live, and of this layout.
                    unsafe { GLOBAL.dealloc(block as *mut u8, BLOCK) };
                }
            }
        });
        // SAFETY: the child calls only functions for any context, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            handler(0);
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) };
        }
        let mut status = 0;
        // SAFETY: waits for the child, and writes to a local variable.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0);
        assert_eq!(samples::missed(), 0);
    });
}

/// A sampled block that is freed twice ends the process with a message, and a small one that is
/// freed as a block of another size does.
#[test]
fn mistakes_with_sampled_blocks_are_found() {
    use std::os::unix::process::ExitStatusExt as _;

    use tests::scenario::{BACKENDS, Scenario};

    let free_twice = || {
        assert!(samples::start(1));
        // SAFETY: the second free breaks the contract on purpose: the process must end.
        unsafe {
            let block = GLOBAL.alloc(BLOCK);
            GLOBAL.dealloc(block, BLOCK);
            GLOBAL.dealloc(block, BLOCK);
            std::hint::black_box(GLOBAL.alloc(BLOCK));
        }
    };
    let free_as_large = || {
        assert!(samples::start(1));
        let layout = Layout::new::<[u8; 3 << 20]>();
        // SAFETY: the layout is wrong on purpose: the process must end.
        unsafe { GLOBAL.dealloc(GLOBAL.alloc(BLOCK), layout) };
    };
    for backend in BACKENDS {
        let check = |output: &std::process::Output, message: &str| {
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{stderr}");
            assert!(stderr.contains(message), "{stderr}");
        };
        Scenario::new(format!("twice-{backend}"), free_twice)
            .env("HAYLOFT_BACKEND", backend)
            .run(|output| check(output, "double free of"));
        Scenario::new(format!("large-{backend}"), free_as_large)
            .env("HAYLOFT_BACKEND", backend)
            .run(|output| check(output, "it is a small block, which was sampled"));
    }
}
