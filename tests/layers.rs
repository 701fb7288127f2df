//! Checks that modules import only from lower ones.
//!
//! The order is a table in the documentation of the file that declares the modules: its first
//! column names them, from top to bottom. A module imports nothing from its own row, from a higher
//! one, or from the file with the table, so modules form no circles.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use proc_macro2::{Group, TokenStream, TokenTree};
use tests::entry_points::Hayloft;

#[global_allocator]
static GLOBAL: Hayloft = Hayloft;

/// A crate whose modules have an order.
struct Crate {
    root: &'static str,
    /// Whether modules that declare other modules have a table, too. Otherwise a module with all
    /// that it declares is one.
    nested: bool,
}

const CRATES: [Crate; 6] = [
    Crate { root: "alloc-core/src/lib.rs", nested: false },
    Crate { root: "alloc-global/preload/src/lib.rs", nested: true },
    Crate { root: "alloc-global/prof/src/main.rs", nested: true },
    Crate { root: "alloc-global/top/src/main.rs", nested: true },
    Crate { root: "bench-harness/src/lib.rs", nested: true },
    Crate { root: "bench-harness/src/bin/stress/main.rs", nested: true },
];

/// The path of a module or item, from the root of its crate.
type Name = Vec<String>;

/// A file of a crate. Modules that are compiled only for tests are left out.
struct Source {
    file: String,
    module: Name,
    /// Row of each module in the table of this file, counted from the top. `None` without a table.
    rows: Option<BTreeMap<String, usize>>,
    /// Modules that this file declares, in files of their own: the name of each, and its file if an
    /// attribute says it.
    declared: Vec<(String, Option<String>)>,
    /// Names that the code mentions by a path from `crate`, `self` or `super`. For `*` it is the
    /// name of the module.
    imports: Vec<Name>,
}

impl Source {
    fn new(file: &str, module: Name, text: &str) -> Self {
        let tokens = text.parse().unwrap_or_else(|error| panic!("{file}: {error}"));
        let file = file.to_owned();
        let rows = rows(text);
        let mut source = Self { file, module, rows, declared: Vec::new(), imports: Vec::new() };
        source.scan(tokens, &source.module.clone());
        source
    }

    /// Finds the modules and imports in `tokens`, which belong to `module`: that of this file, or
    /// one in braces within it.
    fn scan(&mut self, tokens: TokenStream, module: &[String]) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut rest = tokens.as_slice();
        let mut attributes = Attributes::default();
        while let [first, others @ ..] = rest {
            rest = match (first, others) {
                (mark, [TokenTree::Group(attribute), others @ ..]) if is_mark(mark, '#') => {
                    attributes.add(attribute);
                    others
                }
                // The parentheses of a visibility hold no import.
                (TokenTree::Ident(word), [TokenTree::Group(_), others @ ..]) if word == "pub" => {
                    others
                }
                (TokenTree::Ident(word), others) if word == "pub" => others,
                (TokenTree::Ident(word), [TokenTree::Ident(name), body, others @ ..])
                    if word == "mod" =>
                {
                    self.module(name.to_string(), std::mem::take(&mut attributes), body, module);
                    others
                }
                (TokenTree::Ident(word), others)
                    if ["crate", "self", "super"].iter().any(|start| word == start)
                        && starts_with_colons(others) =>
                {
                    attributes = Attributes::default();
                    self.paths(rest, &[], module)
                }
                (TokenTree::Group(group), others) => {
                    attributes = Attributes::default();
                    self.scan(group.stream(), module);
                    others
                }
                (_, others) => {
                    attributes = Attributes::default();
                    others
                }
            };
        }
    }

    /// Records the module `name` in `module`, unless it is for tests. `body` holds its code, or is
    /// a semicolon.
    fn module(&mut self, name: String, about: Attributes, body: &TokenTree, module: &[String]) {
        match body {
            _ if about.for_tests => {}
            TokenTree::Group(body) => self.scan(body.stream(), &[module, &[name]].concat()),
            _ => self.declared.push((name, about.path)),
        }
    }

    /// Records the names of the path that begins at `tokens` and continues `start`: several if it
    /// ends in braces. Returns the tokens after the path.
    fn paths<'a>(
        &mut self,
        tokens: &'a [TokenTree],
        start: &[String],
        module: &[String],
    ) -> &'a [TokenTree] {
        match tokens {
            [TokenTree::Group(list), rest @ ..] => {
                let list: Vec<TokenTree> = list.stream().into_iter().collect();
                let parts = list.split(|token| is_mark(token, ','));
                for part in parts.filter(|part| !part.is_empty()) {
                    self.paths(part, start, module);
                }
                rest
            }
            [TokenTree::Ident(word), rest @ ..] => {
                let path = [start, &[word.to_string()]].concat();
                if starts_with_colons(rest) {
                    return self.paths(&rest[2..], &path, module);
                }
                self.imports.push(resolve(&path, module));
                rest
            }
            // A star, or the arguments of a type.
            [_, rest @ ..] => {
                self.imports.push(resolve(start, module));
                rest
            }
            [] => &[],
        }
    }
}

/// Returns the row of each module in the first table of modules in the documentation of a file.
fn rows(text: &str) -> Option<BTreeMap<String, usize>> {
    let mut lines = text.lines().skip_while(|line| !line.starts_with("//! | module |"));
    lines.next()?;
    let cells = lines.map_while(|line| line.strip_prefix("//! |")?.split('|').next());
    let mut rows = BTreeMap::new();
    for (row, cell) in cells.enumerate() {
        for module in cell.split('`').skip(1).step_by(2) {
            let before = rows.insert(module.to_owned(), row);
            assert_eq!(before, None, "`{module}` has two rows");
        }
    }
    Some(rows)
}

/// The attributes of a module, as far as they matter here.
#[derive(Default)]
struct Attributes {
    /// Whether the module is compiled only for tests.
    for_tests: bool,
    /// File of the module.
    path: Option<String>,
}

impl Attributes {
    fn add(&mut self, attribute: &Group) {
        match attribute.stream().into_iter().collect::<Vec<_>>().as_slice() {
            [TokenTree::Ident(name), TokenTree::Group(condition)] if name == "cfg" => {
                self.for_tests |= needs_test(condition.stream());
            }
            [TokenTree::Ident(name), _, TokenTree::Literal(path)] if name == "path" => {
                self.path = Some(path.to_string().trim_matches('"').to_owned());
            }
            _ => {}
        }
    }
}

/// Returns whether the condition of a `cfg` holds only in tests, those of models included.
fn needs_test(condition: TokenStream) -> bool {
    let mut tokens = condition.into_iter();
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Ident(word) if word == "test" || word == "loom" => return true,
            TokenTree::Ident(word) if word == "not" || word == "any" => drop(tokens.next()),
            TokenTree::Group(list) if needs_test(list.stream()) => return true,
            _ => {}
        }
    }
    false
}

fn is_mark(token: &TokenTree, mark: char) -> bool {
    matches!(token, TokenTree::Punct(found) if found.as_char() == mark)
}

/// Returns whether `tokens` begin with the `::` of a path.
fn starts_with_colons(tokens: &[TokenTree]) -> bool {
    tokens.len() > 1 && tokens[..2].iter().all(|token| is_mark(token, ':'))
}

/// Returns the name that `path`, in the code of `module`, stands for.
fn resolve(path: &[String], module: &[String]) -> Name {
    let mut name = module.to_vec();
    for word in path {
        match word.as_str() {
            "crate" => name.clear(),
            "self" => {}
            "super" => drop(name.pop()),
            _ => name.push(word.clone()),
        }
    }
    name
}

/// Reads the files of a crate.
fn read(root: &str) -> Vec<Source> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut sources = Vec::new();
    let mut left = vec![(Name::new(), root.to_owned())];
    while let Some((module, file)) = left.pop() {
        let text = fs::read_to_string(workspace.join(&file))
            .unwrap_or_else(|error| panic!("{file}: {error}"));
        let source = Source::new(&file, module, &text);
        for (name, path) in &source.declared {
            let mut module = source.module.clone();
            module.push(name.clone());
            let own = Path::new(&source.file);
            let is_folder = source.module.is_empty() || own.ends_with("mod.rs");
            let folder = if is_folder { own.with_file_name("") } else { own.with_extension("") };
            let file = match path {
                Some(path) => own.with_file_name(path),
                None => folder.join(name).with_extension("rs"),
            };
            let is_file = workspace.join(&file).exists();
            let file = if is_file { file } else { folder.join(name).join("mod.rs") };
            left.push((module, file.to_str().expect("a path in UTF-8").to_owned()));
        }
        sources.push(source);
    }
    sources
}

/// Returns what is wrong with the layers of a crate.
fn faults(sources: &[Source], nested: bool) -> Vec<String> {
    let mut faults = Vec::new();
    for parent in sources {
        let declared: Vec<&String> = parent.declared.iter().map(|(name, _)| name).collect();
        let Some(rows) = &parent.rows else {
            if !declared.is_empty() && (nested || parent.module.is_empty()) {
                faults.push(format!("{} has no table of its modules", parent.file));
            }
            continue;
        };
        for module in declared.iter().filter(|module| !rows.contains_key(**module)) {
            faults.push(format!("`{module}` is not in the table of {}", parent.file));
        }
        for module in rows.keys().filter(|module| !declared.contains(module)) {
            faults.push(format!("`{module}` in the table of {} is no module", parent.file));
        }
        for source in sources {
            let Some([module, ..]) = source.module.strip_prefix(parent.module.as_slice()) else {
                continue;
            };
            for import in &source.imports {
                let Some(rest) = import.strip_prefix(parent.module.as_slice()) else { continue };
                let imported = rest.first();
                let is_below = imported.is_some_and(|name| rows.get(name) > rows.get(module));
                if imported != Some(module) && !is_below {
                    let import = import.join("::");
                    faults.push(format!("{} imports `{import}`, not from below", source.file));
                }
            }
        }
    }
    faults
}

#[test]
fn modules_import_only_from_lower_rows() {
    for Crate { root, nested } in CRATES {
        let sources = read(root);
        let faults = faults(&sources, nested);
        assert!(faults.is_empty(), "{}", faults.join("\n"));
        let imports: usize = sources.iter().map(|source| source.imports.len()).sum();
        assert!(imports > 2, "the scan of {root} found only {imports} imports");
    }
}

/// Returns the faults of a crate with these files: the path of each module, and its text.
fn faults_of(files: &[(&str, &str)]) -> Vec<String> {
    let source = |(module, text): &(&str, &str)| {
        let name = module.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect();
        Source::new(module, name, text)
    };
    faults(&files.iter().map(source).collect::<Vec<_>>(), true)
}

/// A crate of three layers, the middle one of two modules.
const ROOT: (&str, &str) = (
    "",
    "//! | module | holds |\n//! |---|---|\n//! | [`top`] | a |\n//! | `left` `right` | b |\n\
     //! | `low` | c |\nmod top; pub mod left;\nmod right;\npub(crate) mod low;\nfn item() {}",
);

#[test]
fn imports_from_lower_rows_are_no_faults() {
    let top =
        "use crate::{left::{self, Left}, low as l, right::*};\nuse std::fmt;\nuse super::low;";
    let left = "pub(in crate::top) fn f() { crate::left::g(self::h(), crate::low::i::<u8>()) }";
    let right = "// crate::top\nconst TEXT: &str = \"crate::top\";\nmod inner { use super::Right; }\n\
                 #[cfg(test)]\npub(crate) mod tests { use crate::top; use super::super::*; }";
    let files = [ROOT, ("top", top), ("left", left), ("right", right), ("low", "")];
    assert_eq!(faults_of(&files), [""; 0]);
}

#[test]
fn imports_from_elsewhere_are_faults() {
    let faults = |low: &str| faults_of(&[ROOT, ("low", low)]);
    for (code, import) in [
        ("use crate::top;", "top"),
        ("use super::top::Top;", "top::Top"),
        ("use super::{\n    low,\n    left::Left,\n};", "left::Left"),
        ("use {std::fmt, crate::right as r};", "right"),
        ("use crate::item;", "item"),
        ("use super::*;", ""),
        ("mod inner { use super::super::top; }", "top"),
        ("fn f() { assert!(crate::left::is_left(), \"{}\", 1); }", "left::is_left"),
        ("impl crate::left::Left for u8 {}", "left::Left"),
        ("#[cfg(not(test))]\nmod inner { use crate::left; }", "left"),
    ] {
        assert_eq!(faults(code), [format!("low imports `{import}`, not from below")], "{code}");
    }
}

#[test]
fn a_circle_in_one_row_is_a_fault() {
    let files = [ROOT, ("left", "use crate::right::A;"), ("right", "use super::left::B;")];
    let faults = faults_of(&files);
    let expected =
        ["left imports `right::A`, not from below", "right imports `left::B`, not from below"];
    assert_eq!(faults, expected);
}

#[test]
fn a_module_without_a_row_is_a_fault() {
    let table = "//! | module | holds |\n//! |---|---|\n//! | `a` | it |\n//!\n//! `b`\n";
    let faults = |code: &str| faults_of(&[("", &format!("{table}{code}"))]);
    assert_eq!(faults("mod a; mod b;"), ["`b` is not in the table of "]);
    assert_eq!(faults("#[cfg(all(test, x))] mod b;"), ["`a` in the table of  is no module"]);
    assert_eq!(faults_of(&[("", "mod a;")]), [" has no table of its modules"]);
}

#[test]
fn modules_in_a_folder_have_an_order_of_their_own() {
    let folder =
        "//! | module | holds |\n//! |---|---|\n//! | `a` | a |\n//! | `b` | b |\nmod a; mod b;";
    let good =
        [ROOT, ("left", folder), ("left::a", "use super::b; use crate::low;"), ("left::b", "")];
    assert_eq!(faults_of(&good), [""; 0]);
    let bad = [ROOT, ("left", folder), ("left::b", "use super::a; use crate::{left::A, top};")];
    let expected = [
        "left::b imports `top`, not from below",
        "left::b imports `left::a`, not from below",
        "left::b imports `left::A`, not from below",
    ];
    assert_eq!(faults_of(&bad), expected);
}
