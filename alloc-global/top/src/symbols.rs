//! Names of functions in another process.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use hayloft::profile::pprof::ALLOCATOR;
use hayloft::stats::SiteStats;
use hayloft_symbols::{Binary, debug_file, demangle, id_of, without_parameters};
use procfs::process::{MMapPath, MemoryMap, Process};
use regex::Regex;

use crate::process::printable;

/// Functions of a site that are named: the one that allocates, and its callers.
const NAMED: usize = 4;

/// The functions of a process. Files are read when an address in them is first looked up.
pub(crate) struct Symbols {
    process: Option<Process>,
    maps: Vec<MemoryMap>,
    binaries: HashMap<PathBuf, Option<Binary>>,
    /// Functions by return addresses, the innermost of those that are inlined first.
    functions: HashMap<usize, Vec<String>>,
    /// What sites are called, by their numbers.
    sites: HashMap<u64, String>,
    allocator: Option<Regex>,
}

impl std::fmt::Debug for Symbols {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.debug_struct("Symbols").finish_non_exhaustive()
    }
}

impl Symbols {
    /// Returns the functions of the process with a number.
    pub(crate) fn of(process: u32) -> Symbols {
        Symbols {
            process: i32::try_from(process).ok().and_then(|number| Process::new(number).ok()),
            maps: Vec::new(),
            binaries: HashMap::new(),
            functions: HashMap::new(),
            sites: HashMap::new(),
            allocator: Regex::new(&format!("^(?:{ALLOCATOR})$")).ok(),
        }
    }

    /// Looks up the names of sites that have none yet.
    pub(crate) fn look_up(&mut self, sites: &[SiteStats]) {
        for site in sites {
            if !self.sites.contains_key(&site.number) {
                let name = self.describe(site);
                self.sites.insert(site.number, name);
            }
        }
    }

    /// Returns what [`Symbols::look_up`] found: the function of the program that allocates, and its
    /// callers.
    pub(crate) fn name(&self, site: &SiteStats) -> &str {
        self.sites.get(&site.number).map_or("?", String::as_str)
    }

    fn describe(&mut self, site: &SiteStats) -> String {
        let frames = site.frames.into_iter().take_while(|frame| *frame != 0);
        let all: Vec<_> = frames.flat_map(|frame| self.functions(frame)).collect();
        let is_allocator = |name: &String| {
            self.allocator.as_ref().is_some_and(|it| it.is_match(without_parameters(name)))
        };
        // As readers of profiles have it: what the allocator's functions call is theirs as well.
        let own = all.iter().rposition(is_allocator).map_or(0, |last| last + 1);
        let outside = || all.iter().skip(own).map(String::as_str);
        let mut shown: Vec<_> = outside().filter(|name| !is_of_a_library(name)).collect();
        if shown.is_empty() {
            shown = outside().collect();
        }
        shown.truncate(NAMED);
        let mut name = if shown.is_empty() { "?".to_owned() } else { shown.join(" < ") };
        if !site.tag.as_str().is_empty() {
            name = format!("[{}] {name}", site.tag.as_str());
        }
        printable(&name)
    }

    /// Returns the functions at a return address.
    fn functions(&mut self, frame: usize) -> Vec<String> {
        if let Some(known) = self.functions.get(&frame) {
            return known.clone();
        }
        let found = self.functions_at(frame as u64 - 1);
        self.functions.insert(frame, found.clone());
        found
    }

    fn functions_at(&mut self, address: u64) -> Vec<String> {
        let unknown = || vec![format!("{address:#x}")];
        let holds = |map: &&MemoryMap| (map.address.0..map.address.1).contains(&address);
        if !self.maps.iter().any(|map| holds(&map)) {
            // The process loaded a library since.
            let maps = self.process.as_ref().and_then(|process| process.maps().ok());
            self.maps = maps.map(|maps| maps.into_iter().collect()).unwrap_or_default();
        }
        let Some(map) = self.maps.iter().find(holds) else { return unknown() };
        let MMapPath::Path(path) = &map.pathname else { return unknown() };
        let offset = address - map.address.0 + map.offset;
        let path = path.clone();
        let process = self.process.as_ref().map_or(0, |process| process.pid);
        let binary = self.binaries.entry(path.clone()).or_insert_with(|| open(process, &path));
        let frames = binary.as_ref().map(|binary| binary.frames(offset)).unwrap_or_default();
        let names: Vec<_> = frames.iter().map(|frame| demangle(&frame.name)).collect();
        if names.iter().all(String::is_empty) {
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            return vec![format!("{file}+{offset:#x}")];
        }
        names.into_iter().filter(|name| !name.is_empty()).collect()
    }
}

/// Opens a file that a process has mapped.
fn open(process: i32, path: &Path) -> Option<Binary> {
    // The file may have been replaced, or have been another one in the process's own root.
    let exe = PathBuf::from(format!("/proc/{process}/exe"));
    let is_exe = fs::read_link(&exe).is_ok_and(|own| own == path);
    let below = path.strip_prefix("/").unwrap_or(path);
    let file = if is_exe { exe } else { Path::new(&format!("/proc/{process}/root")).join(below) };
    let id = id_of(&file).ok()?;
    Binary::open(&file, debug_file(&id, std::iter::empty()).as_deref()).ok()
}

/// Returns whether a function is one of the standard libraries, which allocate for others.
fn is_of_a_library(name: &str) -> bool {
    let name = name.trim_start_matches(['<', '&', '[']);
    ["alloc::", "core::", "std::", "__gnu_cxx::", "hashbrown::"]
        .iter()
        .any(|library| name.starts_with(library))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(never)]
    fn here() -> usize {
        std::hint::black_box(7)
    }

    #[test]
    fn functions_of_a_process_are_found() {
        assert_eq!(here(), 7);
        let mut symbols = Symbols::of(std::process::id());
        let mut site = SiteStats::default();
        site.frames[0] = here as *const () as usize + 2;
        symbols.look_up(&[site]);
        assert!(symbols.name(&site).ends_with("symbols::tests::here"), "{symbols:?}");
        let mut nowhere = SiteStats::default();
        (nowhere.number, nowhere.frames[0]) = (1, 0x11);
        nowhere.tag = hayloft::stats::Name::new("index");
        symbols.look_up(&[nowhere]);
        assert_eq!(symbols.name(&nowhere), "[index] 0x10");
        let mut gone = Symbols::of(u32::MAX);
        gone.look_up(&[nowhere]);
        assert_eq!(gone.name(&nowhere), "[index] 0x10");
        nowhere.number = 2;
        assert_eq!(gone.name(&nowhere), "?");
    }

    #[test]
    fn libraries_are_told_apart() {
        for (name, is_library) in [
            ("alloc::vec::Vec<T,A>::push", true),
            ("<alloc::string::String as core::clone::Clone>::clone", true),
            ("std::vector<int>::push_back", true),
            ("app::index::build", false),
            ("main", false),
            ("allocate_node", false),
        ] {
            assert_eq!(is_of_a_library(name), is_library, "{name}");
        }
    }
}
