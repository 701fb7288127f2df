//! Makes the loader run this library's constructors before those of all other libraries.
//!
//! Before a fork, `pthread_atfork` handlers run in the reverse order of their registration.
//! Hayloft's handlers take its locks, so they must run last and be registered first: a handler of
//! another library may wait for a thread that allocates.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-cdylib=-Wl,-z,initfirst");
}
