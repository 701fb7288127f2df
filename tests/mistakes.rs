//! Programs for `valgrind.rs` to run under memcheck, chosen by the argument: one without mistakes,
//! and one for each mistake that memcheck must find.

use std::alloc::{GlobalAlloc, Layout};
use std::collections::HashMap;
use std::hint::black_box;
use std::mem;
use std::ptr::NonNull;
use std::thread;

use hayloft::Hayloft;
use hayloft_core::cache::{Cache, CacheFlags, TypedCache};
use hayloft_core::{by_address, heap, nolock, rcu};

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// Allocates and frees by every path.
fn clean() {
    let mut map = HashMap::new();
    for number in 0..2000usize {
        let words: Vec<usize> = (0..number % 70).collect();
        map.insert(number.to_string(), words);
    }
    map.retain(|_, words| words.len() % 3 == 0);
    let threads = (0..3u8).map(|number| {
        thread::spawn(move || {
            let boxes = (0..300).map(|index| vec![number; index * 7].into_boxed_slice());
            boxes.collect::<Vec<_>>()
        })
    });
    let handed: Vec<_> =
        threads.collect::<Vec<_>>().into_iter().map(thread::JoinHandle::join).collect();
    drop(handed);
    blocks();
    objects();
    assert!(map.values().flatten().sum::<usize>() > 0);
}

fn blocks() {
    for size in [0, 1, 24, 100, 4000, 33_000, 70_000, 9 << 20] {
        let layout = Layout::from_size_align(size, 8).unwrap();
        // SAFETY: each block is used within its usable size, with a layout that it has at the time,
        // and freed once.
        unsafe {
            let mut vector = vec![1u8; size];
            vector.extend(std::iter::repeat_n(2, size / 2 + 1));
            vector.shrink_to_fit();
            assert_eq!(vector.iter().filter(|byte| **byte == 1).count(), size);
            let zeroed = GLOBAL.alloc_zeroed(layout);
            assert!((0..size).all(|offset| *zeroed.add(offset) == 0));
            let (block, len) = GLOBAL.alloc_excess(layout);
            block.write_bytes(3, len);
            assert_eq!(GLOBAL.usable_size(block), len);
            assert!(!GLOBAL.grow_in_place(block, layout, size + 1));
            GLOBAL.dealloc(zeroed, layout);
            GLOBAL.dealloc(block, layout);

            let block = by_address::alloc(size);
            block.write_bytes(4, by_address::usable_size(block));
            let block = by_address::realloc(block, size * 2 + 1);
            assert!((0..size).all(|offset| *block.add(offset) == 4));
            by_address::free(by_address::realloc(block, size / 2));
            for align in [64, 4096, 1 << 17] {
                by_address::free(by_address::alloc_aligned(size, align));
            }
            by_address::free(by_address::alloc_zeroed(size));
            by_address::free_nolock(by_address::alloc_nolock(size));
            nolock::free(nolock::alloc(layout).unwrap(), layout);
        }
    }
}

fn objects() {
    let layout = Layout::new::<[usize; 5]>();
    let make = |object: NonNull<u8>| {
        // SAFETY: the object has the layout of `[usize; 5]`.
        unsafe { object.cast::<[usize; 5]>().write([7; 5]) };
    };
    let plain = Cache::builder("plain", layout).build().unwrap();
    let zeroed = Cache::builder("zeroed", layout).flags(CacheFlags::ZERO).build().unwrap();
    let made = Cache::builder("made", layout).ctor(make).build().unwrap();
    let kept = Cache::builder("kept", layout).flags(CacheFlags::TYPESAFE_BY_RCU).build().unwrap();
    for _ in 0..3 {
        for (cache, value) in [(&plain, None), (&zeroed, Some(0)), (&made, Some(7)), (&kept, None)]
        {
            let taken: Vec<_> = (0..500).map(|_| cache.alloc().unwrap()).collect();
            for object in taken {
                let object: NonNull<[usize; 5]> = object.cast();
                // SAFETY: the object has the layout of `[usize; 5]`, and is freed once, in its
                // constructed state. A reader may look at an object that waits for it.
                unsafe {
                    assert!(value.is_none_or(|value| *object.as_ptr() == [value; 5]));
                    object.write([7; 5]);
                    let reading = rcu::read_lock();
                    if object.addr().get().is_multiple_of(3) {
                        cache.free_rcu(object.cast());
                        assert_eq!(*object.as_ptr(), [7; 5]);
                    } else {
                        cache.free(object.cast());
                    }
                    drop(reading);
                }
            }
        }
    }
    rcu::barrier();
    heap::barrier();
    heap::trim();
    for cache in [plain, zeroed, made, kept] {
        cache.destroy().unwrap();
    }
    let typed = TypedCache::new("typed").unwrap();
    drop((typed.alloc([1u8; 300]).unwrap(), typed.alloc([2u8; 300]).unwrap()));
    typed.destroy().unwrap();
}

/// Loses the only pointer to a block and overwrites the stack that held it.
#[inline(never)]
fn leak() {
    lose();
    assert!(black_box([1u8; 4096]).iter().all(|byte| *byte == 1));
}

#[inline(never)]
fn lose() {
    mem::forget(black_box(vec![1u8; 1234]));
}

/// Loses an object of a cache as [`leak`] loses a block.
fn leak_of_cache() {
    let cache = Cache::builder("leaking", Layout::new::<[u8; 567]>()).build().unwrap();
    lose_object(&cache);
    assert!(black_box([1u8; 4096]).iter().all(|byte| *byte == 1));
    mem::forget(cache);
}

#[inline(never)]
fn lose_object(cache: &Cache) {
    let _ = black_box(cache.alloc());
}

/// Reads a freed block.
fn use_after_free(size: usize) {
    let block = black_box(Box::into_raw(vec![1u8; size].into_boxed_slice()));
    // SAFETY: none. The read after the free is the mistake.
    unsafe {
        drop(Box::from_raw(block));
        black_box(block.cast::<u8>().read_volatile());
    }
}

/// Frees a block twice.
fn double_free() {
    let block = by_address::alloc(100);
    // SAFETY: none. The second free is the mistake.
    unsafe {
        by_address::free(block);
        by_address::free(block);
    }
}

/// Writes one byte beyond the end of a block, where its class has room.
fn overrun(size: usize) {
    let mut block = black_box(vec![1u8; size].into_boxed_slice());
    // SAFETY: none. The write beyond the block is the mistake.
    unsafe { block.as_mut_ptr().add(size).write_volatile(1) };
}

/// Branches on a byte that was never written.
fn uninitialised() {
    let block = black_box(Box::<[u8; 100]>::new_uninit());
    // SAFETY: none. The read of an uninitialised byte is the mistake.
    if unsafe { block.as_ptr().cast::<u8>().add(50).read_volatile() } == 7 {
        println!("seven");
    }
}

fn main() {
    let name = std::env::args().nth(1).expect("the name of a mistake");
    match &*name {
        "clean" => clean(),
        "leak" => leak(),
        "leak-of-cache" => leak_of_cache(),
        "use-after-free" => use_after_free(100),
        "use-after-free-large" => use_after_free(2_000_000),
        "double-free" => double_free(),
        "overrun" => overrun(61),
        "overrun-large" => overrun(2_000_000),
        "uninitialised" => uninitialised(),
        _ => panic!("no such mistake: {name}"),
    }
}
