//! Functions and lines of addresses, from the programs and libraries on this machine.
//!
//! A file counts only if its build ID is the profile's. Debug information may be in the file
//! itself, or in a file named after the build ID, as in `/usr/lib/debug/.build-id`.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

use addr2line::Loader;
use memmap2::Mmap;
use object::{Object as _, ObjectSegment as _};

use crate::demangle::demangle;
use crate::profile::Profile;
use crate::proto;

/// The distribution's folder for debug information.
const SYSTEM: &str = "/usr/lib/debug";

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
                Ok(binary) => binary.add_to(profile, &mapping, &locations),
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
        let name = path.to_string_lossy();
        if name.is_empty() || name.starts_with('[') || name.starts_with("//anon") {
            return Found::NoFile;
        }
        let build_id = profile.string(mapping.build_id).into_owned();
        let debug = self.by_build_id(&build_id);
        let mut outcome = Found::Missing;
        for place in self.places(&path).filter(|place| place.is_file()) {
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

    /// Returns the debug file with a build ID.
    fn by_build_id(&self, id: &str) -> Option<PathBuf> {
        let is_id = id.len() > 2 && id.bytes().all(|digit| digit.is_ascii_hexdigit());
        let (start, rest) = is_id.then(|| id.split_at(2))?;
        let system = Path::new(SYSTEM);
        let folders = self.folders.iter().map(PathBuf::as_path).chain([system]);
        let file = |folder: &Path| folder.join(format!(".build-id/{start}/{rest}.debug"));
        folders.map(file).find(|file| file.is_file() && id_of(file).is_ok_and(|found| found == id))
    }
}

fn map(path: &Path) -> Result<Mmap, String> {
    let error = |error| format!("{}: {error}", path.display());
    let file = File::open(path).map_err(error)?;
    // SAFETY: the file is only read. If another program truncates it meanwhile, a signal ends this
    // one, as with every tool that maps programs.
    unsafe { Mmap::map(&file) }.map_err(error)
}

/// Returns the build ID of a file in hexadecimal; empty if it has none.
fn id_of(path: &Path) -> Result<String, String> {
    let bytes = map(path)?;
    let error = |error| format!("{}: {error}", path.display());
    let file = object::File::parse(&*bytes).map_err(error)?;
    let id = file.build_id().map_err(error)?.unwrap_or_default();
    Ok(id.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A program or library.
struct Binary {
    /// The file with debug information comes first.
    loaders: Vec<Loader>,
    segments: Vec<Segment>,
}

struct Segment {
    offset: u64,
    len: u64,
    address: u64,
}

/// A function at an address.
struct Frame {
    /// As the linker knows it.
    name: String,
    file: String,
    line: u32,
    column: u32,
}

impl Binary {
    fn open(file: &Path, debug: Option<&Path>) -> Result<Binary, String> {
        let bytes = map(file)?;
        let error = |error: &dyn fmt::Display| format!("{}: {error}", file.display());
        let parsed = object::File::parse(&*bytes).map_err(|it| error(&it))?;
        let segment = |segment: object::Segment<'_, '_>| {
            let (offset, len) = segment.file_range();
            Segment { offset, len, address: segment.address() }
        };
        let segments = parsed.segments().map(segment).collect();
        let loaders: Vec<_> =
            debug.into_iter().chain([file]).filter_map(|path| Loader::new(path).ok()).collect();
        if loaders.is_empty() {
            return Err(error(&"its symbols are damaged"));
        }
        Ok(Binary { loaders, segments })
    }

    /// Adds functions and lines to locations of a mapping of this file.
    fn add_to(&self, profile: &mut Profile, mapping: &proto::Mapping, locations: &[usize]) {
        let mut has = [false; 3];
        // Functions that were added, by name and file.
        let mut known = BTreeMap::<(String, String), u64>::new();
        for index in locations {
            let Some(address) = profile.raw.location.get(*index).map(|it| it.address) else {
                continue;
            };
            let mut lines = Vec::new();
            for frame in self.frames(mapping, address) {
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

    /// Returns the functions at an address, the innermost of those that are inlined first.
    fn frames(&self, mapping: &proto::Mapping, address: u64) -> Vec<Frame> {
        let Some(address) = self.address(mapping, address) else { return Vec::new() };
        for loader in &self.loaders {
            let frames = described(loader, address);
            if frames.iter().any(|frame| !frame.name.is_empty()) {
                return frames;
            }
        }
        let symbol = self.loaders.iter().find_map(|loader| loader.find_symbol(address));
        let name = symbol.map(str::to_owned);
        let frame = |name| Frame { name, file: String::new(), line: 0, column: 0 };
        name.map(frame).into_iter().collect()
    }

    /// Returns the address in the file for one in the process.
    fn address(&self, mapping: &proto::Mapping, address: u64) -> Option<u64> {
        let offset = address.checked_sub(mapping.memory_start)?.checked_add(mapping.file_offset)?;
        let is_it = |segment: &&Segment| {
            offset.checked_sub(segment.offset).is_some_and(|within| within < segment.len)
        };
        let segment = self.segments.iter().find(is_it)?;
        segment.address.checked_add(offset - segment.offset)
    }
}

/// Returns the functions that the debug information has at an address in the file.
fn described(loader: &Loader, address: u64) -> Vec<Frame> {
    /// Deeper nesting is taken for damage.
    const MOST: usize = 256;
    let mut frames = Vec::new();
    let Ok(mut found) = loader.find_frames(address) else { return frames };
    while let Ok(Some(frame)) = found.next() {
        let name = frame.function.as_ref().and_then(|function| function.raw_name().ok());
        let place = frame.location.as_ref();
        frames.push(Frame {
            name: name.map(|name| name.into_owned()).unwrap_or_default(),
            file: place.and_then(|place| place.file).unwrap_or_default().to_owned(),
            line: place.and_then(|place| place.line).unwrap_or(0),
            column: place.and_then(|place| place.column).unwrap_or(0),
        });
        if frames.len() >= MOST {
            break;
        }
    }
    // The outermost may lack a name that the symbol table knows.
    if let Some(last) = frames.last_mut().filter(|frame| frame.name.is_empty()) {
        last.name = loader.find_symbol(address).unwrap_or_default().to_owned();
    }
    frames
}
