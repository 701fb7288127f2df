//! The allocators that can be measured. Each has an engine of its own.

/// An allocator, and the crates and engine that it comes from.
#[derive(Debug, PartialEq, Eq)]
pub struct Allocator {
    /// Name in arguments and tables. The engine is called `run-<name>`.
    pub name: &'static str,
    /// Crates whose build decides the allocator's speed, from the outermost to the innermost. The
    /// first implements `GlobalAlloc`; the last is the allocator itself.
    pub crates: &'static [&'static str],
    /// Whether the allocator needs the cargo feature `peers`.
    pub needs_peers: bool,
}

impl Allocator {
    /// Returns the name of the engine's executable.
    pub fn engine(&self) -> String {
        format!("run-{}", self.name)
    }

    /// Returns whether this build of the harness can measure the allocator.
    pub fn is_built(&self) -> bool {
        cfg!(feature = "peers") || !self.needs_peers
    }
}

/// All allocators, in the order of the tables.
pub static ALL: [Allocator; 7] = [
    Allocator { name: "hayloft", crates: &["hayloft", "hayloft-core"], needs_peers: false },
    Allocator { name: "mimalloc", crates: &["mimalloc", "libmimalloc-sys"], needs_peers: false },
    Allocator { name: "system", crates: &[], needs_peers: false },
    Allocator { name: "snmalloc", crates: &["snmalloc-rs", "snmalloc-sys"], needs_peers: true },
    Allocator {
        name: "jemalloc",
        crates: &["tikv-jemallocator", "tikv-jemalloc-sys"],
        needs_peers: true,
    },
    Allocator { name: "rpmalloc", crates: &["rpmalloc", "rpmalloc-sys"], needs_peers: true },
    Allocator {
        name: "rusty_alloc",
        crates: &["rusty_alloc-api", "rusty_alloc"],
        needs_peers: true,
    },
];

/// Name of the allocator that the others are compared with.
pub const BASELINE: &str = "mimalloc";

/// Name of this project's allocator.
pub const OURS: &str = "hayloft";

/// Returns the allocator called `name`.
///
/// # Errors
///
/// Explains why `name` cannot be measured: it is unknown, or this build lacks its feature.
pub fn parse(name: &str) -> Result<&'static Allocator, String> {
    let built: Vec<&str> =
        ALL.iter().filter(|allocator| allocator.is_built()).map(|found| found.name).collect();
    match ALL.iter().find(|allocator| allocator.name == name) {
        Some(allocator) if allocator.is_built() => Ok(allocator),
        Some(_) => Err(format!(
            "{name} needs the cargo feature `peers` (cargo run --release --features peers); \
             this build has: {}",
            built.join(", ")
        )),
        None => Err(format!("no allocator is called {name}; there are: {}", built.join(", "))),
    }
}
