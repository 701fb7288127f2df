//! The allocators that can be measured, each by an engine of its own.

/// An allocator, and where to find it.
#[derive(Debug, PartialEq, Eq)]
pub struct Allocator {
    /// Its name in arguments and tables; `run-<name>` is its engine.
    pub name: &'static str,
    /// The crates whose build decides how fast it is, the innermost last: the first gives `GlobalAlloc`, the last is
    /// the allocator itself.
    pub crates: &'static [&'static str],
    /// Whether it is there only with the cargo feature `peers`.
    pub needs_peers: bool,
}

impl Allocator {
    /// The name of its engine's executable.
    pub fn engine(&self) -> String {
        format!("run-{}", self.name)
    }

    /// Whether this build of the harness can measure it.
    pub fn is_built(&self) -> bool {
        cfg!(feature = "peers") || !self.needs_peers
    }
}

/// All allocators, in the order of the tables.
pub static ALL: [Allocator; 7] = [
    Allocator { name: "hayloft", crates: &["alloc-global", "alloc-core"], needs_peers: false },
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

/// The one that the others are compared with.
pub const BASELINE: &str = "mimalloc";

/// The one that this project is about.
pub const OURS: &str = "hayloft";

/// The allocator of that name, or why there is none.
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
