//! Checks the layers of `hayloft-core`: its sources against the table in its `lib.rs` of which
//! module may import which.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use tests::entry_points::Hayloft;

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../alloc-core/src");

/// Returns the row of each module in the table, counted from the top.
fn rows(lib: &str) -> BTreeMap<String, usize> {
    let table = lib.split("//! # ").next().unwrap_or(lib);
    let cells = table.lines().filter_map(|line| line.strip_prefix("//! | ")?.split('|').next());
    let mut rows = BTreeMap::new();
    for (row, cell) in cells.enumerate() {
        for module in cell.split('`').skip(1).step_by(2) {
            rows.insert(module.to_owned(), row);
        }
    }
    rows
}

/// Returns the modules of the crate that `source` names, except in its tests.
fn imports(source: &str) -> Vec<String> {
    let code = source.split("#[cfg(test)]\nmod tests").next().unwrap_or(source);
    let lines = code.lines().map(str::trim_start).filter(|line| !line.starts_with("//"));
    let mut found = Vec::new();
    for line in lines {
        for path in line.split("crate::").skip(1) {
            // One module, or several in braces, each named by the first word of its part.
            let list = path.strip_prefix('{').map_or(vec![path], |list| list.split(',').collect());
            let word = |part: &str| {
                let end = |letter: char| !(letter.is_alphanumeric() || letter == '_');
                part.trim().split(end).next().unwrap_or_default().to_owned()
            };
            found.extend(list.into_iter().map(word));
        }
    }
    found
}

/// Returns the source files of a module, except tests in files of their own: one, or all below its
/// folder.
fn files(module: &str) -> Vec<PathBuf> {
    let folder = Path::new(SOURCES).join(module);
    if !folder.is_dir() {
        return vec![folder.with_extension("rs")];
    }
    let mut files = Vec::new();
    let mut folders = vec![folder];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("the folder can be read") {
            let path = entry.expect("the entry can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else if !path.ends_with("tests.rs") {
                files.push(path);
            }
        }
    }
    files
}

#[test]
fn modules_import_only_from_lower_layers() {
    let lib = fs::read_to_string(Path::new(SOURCES).join("lib.rs")).expect("lib.rs can be read");
    let rows = rows(&lib);
    let declared = lib
        .lines()
        .filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';'));
    for module in declared.filter(|module| *module != "models") {
        assert!(rows.contains_key(module), "`{module}` is not in the table of lib.rs");
    }
    let mut count = 0;
    for (module, row) in &rows {
        for file in files(module) {
            let source = fs::read_to_string(&file).expect("the source can be read");
            for import in imports(&source) {
                let below = rows.get(&import).is_some_and(|of_import| of_import > row);
                assert!(
                    below,
                    "{} imports `{import}`, which is not in a lower row",
                    file.display()
                );
                count += 1;
            }
        }
    }
    assert!(count > 20, "the scan found only {count} imports");
}

#[test]
fn imports_are_found() {
    let source = "use crate::barn::Barn;\nuse crate::{node, os};\n    crate::page::free();\n\
                  // crate::slab\n#[cfg(test)]\nmod tests {\n    use crate::kmalloc;\n}\n";
    assert_eq!(imports(source), ["barn", "node", "os", "page"]);
}
