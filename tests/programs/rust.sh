# Cargo and rustc build a program with a derive macro and its dependencies. The answer is the output
# of that program. The compiler is Debian's, since rustup's has jemalloc built in, which a preloaded
# library cannot replace.
packages="cargo rustc"
binary=/usr/bin/rustc

prepare() {
    rm -rf crate
    mkdir -p crate/src
    cd crate
    cat > Cargo.toml <<'T'
[package]
name = "work"
version = "0.1.0"
edition = "2021"

[dependencies]
serde = { version = "=1.0.152", features = ["derive"] }
serde_derive = "=1.0.152"
serde_json = "=1.0.93"
syn = "=1.0.109"
proc-macro2 = "=1.0.51"
quote = "=1.0.23"
unicode-ident = "=1.0.8"
ryu = "=1.0.13"
itoa = "=1.0.6"

[profile.dev]
debug = false

[workspace]
T
    cat > src/main.rs <<'R'
use std::collections::BTreeMap;

#[derive(serde::Serialize, serde::Deserialize, PartialEq, Debug)]
enum Shape {
    Circle { radius: f64 },
    Path(Vec<(i32, i32)>),
}

#[derive(serde::Serialize, serde::Deserialize, PartialEq, Debug)]
struct Drawing {
    name: String,
    shapes: BTreeMap<String, Shape>,
}

fn main() {
    let shapes = (0..20).map(|n| {
        let shape = if n % 3 == 0 { Shape::Circle { radius: n.into() } } else { Shape::Path(vec![(n, -n); 3]) };
        (format!("shape {n}"), shape)
    });
    let drawing = Drawing { name: "all".into(), shapes: shapes.collect() };
    let text = serde_json::to_string(&drawing).unwrap();
    assert_eq!(serde_json::from_str::<Drawing>(&text).unwrap(), drawing);
    println!("{text}");
}
R
    "$CARGO" vendor --quiet > /dev/null
    rm Cargo.lock
    mkdir .cargo
    printf '[source.crates-io]\nreplace-with = "vendored"\n[source.vendored]\ndirectory = "vendor"\n' > .cargo/config.toml
}

run() {
    cd crate
    rm -rf target Cargo.lock
    preloaded env CARGO_HOME="$PWD/home" CARGO_TARGET_DIR=target /usr/bin/cargo build --quiet --offline -j 2
    target/debug/work
}
