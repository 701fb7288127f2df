//! Has the loader run this library's constructors before those of all others.
//!
//! Handlers of forks run in the reverse order of their registration before a fork. Hayloft's own take
//! its locks, so they must run last: those of another library may wait for a thread that allocates.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-cdylib=-Wl,-z,initfirst");
}
