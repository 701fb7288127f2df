//! Settings that a program has built in. Those of this program are below.

#![forbid(unsafe_code)]

use tests::entry_points::Hayloft;
use tests::scenario::{Scenario, describe};

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

hayloft::settings!("limit=32M:48M", "backend=fallback", "thp=never irq=none",);

fn limit() -> usize {
    hayloft::stats().limit
}

/// The settings of the program are in force, in the whole process.
#[test]
fn settings_of_the_program_are_in_force() {
    Scenario::new("", || {
        assert_eq!(limit(), 48 << 20);
        assert!(Vec::<u8>::new().try_reserve(64 << 20).is_err());
    })
    .env("HAYLOFT_VERBOSE", "1")
    .run(|output| {
        let all = describe(output);
        assert!(output.status.success(), "{all}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(stderr.lines().count(), 1, "{all}");
        for part in [
            "; backend: fallback; limit: 48.0 MiB; environment: ",
            "; program: backend=fallback, irq=none, limit=32M:48M, thp=never\n",
        ] {
            assert!(stderr.contains(part), "{all}");
        }
    });
}

/// The environment overrides single settings of the program.
#[test]
fn the_environment_overrides_the_program() {
    Scenario::new("valid", || assert_eq!(limit(), 256 << 20))
        .env("HAYLOFT_LIMIT", "256M")
        .env("HAYLOFT_VERBOSE", "1")
        .run(|output| {
            let all = describe(output);
            assert!(output.status.success(), "{all}");
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(stderr.contains(" HAYLOFT_LIMIT=256M, "), "{all}");
            assert!(
                stderr.ends_with("; program: backend=fallback, irq=none, thp=never\n"),
                "{all}"
            );
        });
    Scenario::new("empty", || assert_eq!(limit(), 48 << 20)).env("HAYLOFT_LIMIT", "").succeeds();
    Scenario::new("invalid", || assert_eq!(limit(), 48 << 20)).env("HAYLOFT_LIMIT", "quux").run(
        |output| {
            let all = describe(output);
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && stderr.lines().count() == 1, "{all}");
            assert!(stderr.ends_with("; used instead: 32M:48M\n"), "{all}");
        },
    );
}
