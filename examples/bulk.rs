//! Allocates and frees the objects of a cache in batches: `alloc_bulk` and `free_bulk` instead of
//! one call for each object.
//!
//! One restartable sequence moves the part of a batch that fits the sheaf of this CPU. The rest
//! comes from the barn and the slabs, under one lock. `cargo run --release -p examples --bin bulk`
//! prints the nanoseconds to allocate and free one object, as medians of rounds that take turns.
//! The times are for reading only. The program checks that all objects exist and are disjoint.

use std::alloc::Layout;
use std::collections::BTreeSet;
use std::error::Error;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::time::Instant;

use hayloft::cache::{AllocError, Cache};

#[global_allocator]
static GLOBAL: hayloft::Hayloft = hayloft::Hayloft;

/// Objects that all batches of a round allocate together.
const OBJECTS: usize = 1 << 15;
const ROUNDS: usize = 15;

/// Space for the pointers of a batch.
type Room = [MaybeUninit<NonNull<u8>>];

/// Allocates a batch into `room`, one by one or at once, and returns its objects.
fn alloc<'a>(
    cache: &Cache,
    room: &'a mut Room,
    at_once: bool,
) -> Result<&'a [NonNull<u8>], AllocError> {
    let mut count = 0;
    if at_once {
        count = cache.alloc_bulk(room);
    } else {
        for place in room.iter_mut() {
            place.write(cache.alloc()?);
            count += 1;
        }
    }
    // SAFETY: the first `count` places are written, and `MaybeUninit` has the layout of its
    // content.
    Ok(unsafe { std::slice::from_raw_parts(room.as_ptr().cast(), count) })
}

/// Frees the objects of a batch, one by one or at once.
///
/// # Safety
/// The objects are live objects of `cache`, and not used afterwards.
unsafe fn free(cache: &Cache, objects: &[NonNull<u8>], at_once: bool) {
    // SAFETY: the caller guarantees that these are live objects of `cache`.
    unsafe {
        if at_once {
            cache.free_bulk(objects);
        } else {
            objects.iter().for_each(|object| cache.free(*object));
        }
    }
}

/// Allocates and frees a round of batches, and returns the nanoseconds per object.
fn round(cache: &Cache, room: &mut Room, at_once: bool) -> Result<f64, AllocError> {
    let batches = OBJECTS / room.len();
    let start = Instant::now();
    for _ in 0..batches {
        let objects = alloc(cache, room, at_once)?;
        // SAFETY: the objects were just allocated from `cache`.
        unsafe { free(cache, objects, at_once) };
    }
    Ok(start.elapsed().as_nanos() as f64 / (batches * room.len()) as f64)
}

/// Checks that the objects of a batch are distinct, and that each keeps its contents when all are
/// filled.
fn check(cache: &Cache, room: &mut Room, at_once: bool) -> Result<(), Box<dyn Error>> {
    let (size, wanted) = (cache.layout().size(), room.len());
    let objects = alloc(cache, room, at_once)?;
    if objects.iter().collect::<BTreeSet<_>>().len() != wanted {
        return Err(format!("{} objects instead of {wanted}", objects.len()).into());
    }
    for (number, object) in objects.iter().enumerate() {
        // SAFETY: the object has `size` bytes.
        unsafe { object.write_bytes(number as u8, size) };
    }
    for (number, object) in objects.iter().enumerate() {
        // SAFETY: the object has `size` bytes, which the loop above initialised.
        let bytes = unsafe { std::slice::from_raw_parts(object.as_ptr(), size) };
        if bytes.iter().any(|byte| *byte != number as u8) {
            return Err(format!("object {number} was overwritten").into());
        }
    }
    // SAFETY: the objects were allocated from `cache` above, and are not used again.
    unsafe { free(cache, objects, at_once) };
    Ok(())
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() -> Result<(), Box<dyn Error>> {
    let cache = Cache::builder("bulk", Layout::new::<[u64; 8]>()).build()?;
    println!("{:>7} {:>12} {:>12} {:>7}", "batch", "one by one", "at once", "ratio");
    for batch in [4, 16, 64, 256, 1024] {
        let mut room = vec![MaybeUninit::uninit(); batch];
        let mut times = [Vec::new(), Vec::new()];
        for at_once in [false, true] {
            check(&cache, &mut room, at_once)?;
        }
        for _ in 0..ROUNDS {
            times[0].push(round(&cache, &mut room, false)?);
            times[1].push(round(&cache, &mut room, true)?);
        }
        let [single, bulk] = times.map(median);
        println!("{batch:>7} {single:>9.2} ns {bulk:>9.2} ns {:>7.2}", bulk / single);
    }
    let stats = cache.stats();
    if stats.in_use != 0 {
        return Err(format!("{} objects in use at the end", stats.in_use).into());
    }
    cache.destroy()?;
    println!("every object was there, and apart from the others");
    Ok(())
}
