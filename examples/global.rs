//! The one-liner: Hayloft serves all allocations of this program.
//!
//! Run it with `cargo run --release -p examples --bin global`.

#[global_allocator]
static GLOBAL: hayloft::Hayloft = hayloft::Hayloft;

fn main() {
    let words: Vec<String> = (1..=5).map(|number| format!("bale {number}")).collect();
    println!("{}", words.join(", "));
}
