//! The one-liner: every allocation of this program is Hayloft's. `cargo run --release -p examples --bin global`.

#[global_allocator]
static GLOBAL: alloc_global::Hayloft = alloc_global::Hayloft;

fn main() {
    let words: Vec<String> = (1..=5).map(|number| format!("bale {number}")).collect();
    println!("{}", words.join(", "));
}
