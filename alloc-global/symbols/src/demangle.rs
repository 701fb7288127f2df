//! Names of functions as their authors wrote them.

use cpp_demangle::{DemangleOptions, ParseOptions, Symbol};

/// Longer names are cut. Nested templates can be demangled to any length.
const MOST: usize = 2048;

/// Returns the name without the linker's encoding, hash, and, in C++, parameters. A name that is
/// not encoded is returned as it is.
#[must_use]
pub fn demangle(name: &str) -> String {
    let mut plain = if let Ok(name) = rustc_demangle::try_demangle(name) {
        format!("{name:#}")
    } else {
        cpp(name).unwrap_or_else(|| name.to_owned())
    };
    if plain.len() > MOST {
        let end = (0..=MOST).rev().find(|at| plain.is_char_boundary(*at));
        plain.truncate(end.unwrap_or(0));
        plain.push('…');
    }
    plain
}

fn cpp(name: &str) -> Option<String> {
    const DEPTH: u32 = 128;
    // Such as `_ZN1a1bEv@@VERSION_1.0` in symbol tables.
    let name = name.split('@').next()?;
    if !name.starts_with("_Z") && !name.starts_with("__Z") {
        return None;
    }
    let options = ParseOptions::default().recursion_limit(DEPTH);
    let symbol = Symbol::new_with_options(name, &options).ok()?;
    let options = DemangleOptions::new().no_params().no_return_type().recursion_limit(DEPTH);
    symbol.demangle_with_options(&options).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_each_kind_are_readable() {
        for (name, plain) in [
            ("main", "main"),
            ("", ""),
            ("_ZN3app5index5build17h0123456789abcdefE", "app::index::build"),
            ("_RNvNtCs1234_3app5index5build", "app::index::build"),
            ("_ZN5Index5buildERKSs", "Index::build"),
            ("_Znwm", "operator new"),
            (
                "_ZNSt6vectorIiSaIiEE9push_backEOi",
                "std::vector<int, std::allocator<int> >::push_back",
            ),
            ("_Znwm@GLIBCXX_3.4", "operator new"),
            ("_Zgarbage", "_Zgarbage"),
        ] {
            assert_eq!(demangle(name), plain);
        }
    }

    #[test]
    fn long_names_are_cut() {
        let name = "ö".repeat(4000);
        let cut = demangle(&name);
        assert!(cut.len() < 2060 && cut.ends_with("ö…"));
    }
}
