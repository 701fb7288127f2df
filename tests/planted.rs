//! Programs with one mistake each, named by the argument, for `guards.rs` to run with guarded
//! blocks. `make_block`, `drop_block` and `touch` are the functions that reports must name. Without
//! an argument, prints the names.

use std::alloc::{GlobalAlloc, Layout};
use std::hint::black_box;

use hayloft::Hayloft;

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// Not a multiple of any alignment, so that the end of a block may be that of its page.
const SIZE: usize = 101;

fn layout() -> Layout {
    Layout::from_size_align(SIZE, 1).unwrap()
}

#[inline(never)]
fn make_block() -> *mut u8 {
    // SAFETY: the layout is not empty; the block has its size.
    unsafe {
        let block = GLOBAL.alloc(black_box(layout()));
        block.write_bytes(1, SIZE);
        black_box(block)
    }
}

#[inline(never)]
fn drop_block(block: *mut u8) {
    // SAFETY: in the programs that are right so far, the block is live.
    unsafe { GLOBAL.dealloc(black_box(block), layout()) };
    black_box(());
}

#[inline(never)]
fn touch(block: *mut u8, offset: isize, write: bool) {
    let address = black_box(block).wrapping_offset(offset);
    // SAFETY: none: this is the mistake, except where another one was found before.
    unsafe {
        if write {
            address.write_volatile(7);
        } else {
            black_box(address.read_volatile());
        }
    }
    black_box(());
}

/// A mistake with a block of [`SIZE`] bytes.
type Mistake = fn(*mut u8);

const END: isize = SIZE as isize;

const MISTAKES: [(&str, Mistake); 13] = [
    ("overflow_by_1", |block| write_beside(block, END)),
    ("overflow_by_8", |block| write_beside(block, END + 7)),
    ("overflow_by_64", |block| write_beside(block, END + 63)),
    ("underflow_by_1", |block| write_beside(block, -1)),
    ("underflow_by_8", |block| write_beside(block, -8)),
    ("underflow_by_64", |block| write_beside(block, -64)),
    ("read_beyond", |block| {
        touch(block, END, false);
        drop_block(block);
    }),
    ("read_after_free", |block| {
        drop_block(block);
        touch(block, 5, false);
    }),
    ("write_after_free", |block| {
        drop_block(block);
        touch(block, 5, true);
    }),
    ("double_free", |block| {
        drop_block(block);
        drop_block(block);
    }),
    ("double_free_later", |block| {
        drop_block(block);
        (0..100).for_each(|_| drop_block(make_block()));
        drop_block(block);
    }),
    ("invalid_free", |block| drop_block(block.wrapping_add(16))),
    ("use_after_realloc", |block| {
        // SAFETY: the block is live and has this layout; the new one is freed with its own.
        unsafe {
            let new = GLOBAL.realloc(block, layout(), 5000);
            touch(block, 5, false);
            GLOBAL.dealloc(new, Layout::from_size_align(5000, 1).unwrap());
        }
    }),
];

fn write_beside(block: *mut u8, offset: isize) {
    touch(block, offset, true);
    drop_block(block);
}

fn main() {
    let Some(name) = std::env::args().nth(1) else {
        MISTAKES.iter().for_each(|(name, _)| println!("{name}"));
        return;
    };
    let (_, mistake) = MISTAKES.iter().find(|(known, _)| *known == name).expect("a known mistake");
    // A block lies at either end of its page at random. A read is found at one of them only.
    for _ in 0..50 {
        mistake(make_block());
    }
    println!("not found");
}
