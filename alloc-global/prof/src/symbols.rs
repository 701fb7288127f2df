//! Functions and lines of addresses, from the programs and libraries on this machine.
//!
//! A file counts only if its build ID is the profile's. Debug information may be in the file
//! itself, or in a file named after the build ID, as in `/usr/lib/debug/.build-id`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use hayloft_symbols::{Binary, debug_file, demangle, id_of};

use crate::profile::Profile;
use crate::proto;

/// Where to look for files.
pub(crate) struct Symbols<'a> {
    folders: &'a [PathBuf],
}

/// What is known of the file of a mapping.
pub(crate) enum Found {
    /// The profile names its functions already.
    Inside,
    /// The mapping is not of a file.
    NoFile,
    /// The file with code or its symbols, and the one with debug information, if that is another.
    File(PathBuf, Option<PathBuf>),
    /// There is no such file.
    Missing,
    /// The file has another build ID.
    Other,
    /// The file cannot be read, for this reason.
    Unreadable(String),
}

impl fmt::Display for Found {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Found::Inside => write!(to, "functions are in the profile"),
            Found::NoFile => write!(to, "no file"),
            Found::File(file, None) => write!(to, "found: {}", file.display()),
            Found::File(file, Some(debug)) => {
                write!(to, "found: {}, with {}", file.display(), debug.display())
            }
            Found::Missing => write!(to, "not on this machine"),
            Found::Other => write!(to, "the file has another build ID"),
            Found::Unreadable(error) => write!(to, "{error}"),
        }
    }
}

impl<'a> Symbols<'a> {
    pub(crate) fn new(folders: &'a [PathBuf]) -> Symbols<'a> {
        Symbols { folders }
    }

    /// Adds functions and lines to all locations that have none. Returns lines that say which files
    /// are missing.
    pub(crate) fn add_to(&self, profile: &mut Profile) -> Vec<String> {
        // Indices of the locations of each mapping.
        let mut open = BTreeMap::<u64, Vec<usize>>::new();
        for (index, location) in profile.raw.location.iter().enumerate() {
            if location.line.is_empty() {
                open.entry(location.mapping_id).or_default().push(index);
            }
        }
        let mut said = Vec::new();
        for (mapping, locations) in open {
            let Some(mapping) = profile.mapping(mapping).copied() else { continue };
            let name = profile.string(mapping.filename).into_owned();
            let found = match self.find(profile, &mapping) {
                Found::File(file, debug) => Binary::open(&file, debug.as_deref()),
                Found::Inside | Found::NoFile => continue,
                other => Err(other.to_string()),
            };
            match found {
                Ok(binary) => add(&binary, profile, &mapping, &locations),
                Err(error) => said.push(format!("no functions of {name}: {error}")),
            }
        }
        said.sort();
        said.dedup();
        said
    }

    /// Looks for the file of a mapping.
    pub(crate) fn find(&self, profile: &Profile, mapping: &proto::Mapping) -> Found {
        if mapping.has_functions {
            return Found::Inside;
        }
        let path = PathBuf::from(profile.string(mapping.filename).into_owned());
        self.find_file(&path, &profile.string(mapping.build_id))
    }

    /// Looks for a file with this build ID; empty if it is not known.
    pub(crate) fn find_file(&self, path: &Path, build_id: &str) -> Found {
        let name = path.to_string_lossy();
        if name.is_empty() || name.starts_with('[') || name.starts_with("//anon") {
            return Found::NoFile;
        }
        let debug = debug_file(build_id, self.folders.iter().map(PathBuf::as_path));
        let mut outcome = Found::Missing;
        for place in self.places(path).filter(|place| place.is_file()) {
            match id_of(&place) {
                Err(error) => outcome = Found::Unreadable(error),
                Ok(id) if build_id.is_empty() || id == build_id => {
                    return Found::File(place, debug);
                }
                Ok(_) => outcome = Found::Other,
            }
        }
        debug.map_or(outcome, |debug| Found::File(debug, None))
    }

    /// Returns the paths where the file may be.
    fn places(&self, path: &Path) -> impl Iterator<Item = PathBuf> {
        let below = path.strip_prefix("/").unwrap_or(path).to_owned();
        let last = path.file_name().map(PathBuf::from).unwrap_or_default();
        let in_folder = move |folder: &PathBuf| [folder.join(&below), folder.join(&last)];
        let given = self.folders.iter().flat_map(in_folder);
        // A relative path would be looked up in the current folder of this tool.
        let own = path.is_absolute().then(|| path.to_owned());
        given.chain(own)
    }
}

/// Adds functions and lines to locations of a mapping of this file.
fn add(binary: &Binary, profile: &mut Profile, mapping: &proto::Mapping, locations: &[usize]) {
    let mut has = [false; 3];
    // Functions that were added, by name and file.
    let mut known = BTreeMap::<(String, String), u64>::new();
    for index in locations {
        let Some(address) = profile.raw.location.get(*index).map(|it| it.address) else {
            continue;
        };
        let mut lines = Vec::new();
        let offset = address.wrapping_sub(mapping.memory_start).wrapping_add(mapping.file_offset);
        for frame in binary.frames(offset) {
            has[0] |= !frame.name.is_empty();
            has[1] |= !frame.file.is_empty();
            has[2] |= frame.line != 0;
            let (line, column) = (frame.line.into(), frame.column.into());
            let key = (frame.name, frame.file);
            let function_id = match known.get(&key) {
                Some(number) => *number,
                None => {
                    let function = proto::Function {
                        name: profile.add_string(&demangle(&key.0)),
                        system_name: profile.add_string(&key.0),
                        filename: profile.add_string(&key.1),
                        ..Default::default()
                    };
                    let number = profile.add_function(function);
                    known.insert(key, number);
                    number
                }
            };
            lines.push(proto::Line { function_id, line, column });
        }
        if let Some(location) = profile.raw.location.get_mut(*index) {
            location.line = lines;
        }
    }
    for own in profile.raw.mapping.iter_mut().filter(|own| own.id == mapping.id) {
        own.has_functions |= has[0];
        own.has_filenames |= has[1];
        own.has_line_numbers |= has[2];
        own.has_inline_frames |= has[2];
    }
}
