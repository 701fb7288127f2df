//! Functions and lines of addresses in programs and libraries: what `hayloft-prof` and
//! `hayloft-top` share.

mod demangle;

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

use addr2line::Loader;
use memmap2::Mmap;
use object::{Object as _, ObjectSegment as _};

pub use demangle::demangle;

/// The distribution's folder for debug information.
const SYSTEM: &str = "/usr/lib/debug";

/// Returns a function's name without its parameters, if it has some. In Rust's names parentheses
/// are types.
#[must_use]
pub fn without_parameters(name: &str) -> &str {
    let is_plain = |name: &&str| !name.is_empty() && !name.contains('<') && !name.ends_with("::");
    let start = name.split_once('(').map(|(start, _)| start);
    start.filter(is_plain).filter(|start| !start.ends_with("operator")).unwrap_or(name)
}

/// Returns the file with debug information of a program with this build ID: in one of the folders,
/// or in that of the distribution.
pub fn debug_file<'a>(id: &str, folders: impl Iterator<Item = &'a Path>) -> Option<PathBuf> {
    let is_id = id.len() > 2 && id.bytes().all(|digit| digit.is_ascii_hexdigit());
    let (start, rest) = is_id.then(|| id.split_at(2))?;
    let system = Path::new(SYSTEM);
    let file = |folder: &Path| folder.join(format!(".build-id/{start}/{rest}.debug"));
    let mut files = folders.chain([system]).map(file);
    files.find(|file| file.is_file() && id_of(file).is_ok_and(|found| found == id))
}

fn map(path: &Path) -> Result<Mmap, String> {
    let error = |error| format!("{}: {error}", path.display());
    let file = File::open(path).map_err(error)?;
    // SAFETY: the file is only read. If another program truncates it meanwhile, a signal ends this
    // one, as with every tool that maps programs.
    unsafe { Mmap::map(&file) }.map_err(error)
}

/// Returns the build ID of a file in hexadecimal; empty if it has none.
///
/// # Errors
/// Explains in words why the file cannot be read.
pub fn id_of(path: &Path) -> Result<String, String> {
    let bytes = map(path)?;
    let error = |error| format!("{}: {error}", path.display());
    let file = object::File::parse(&*bytes).map_err(error)?;
    let id = file.build_id().map_err(error)?.unwrap_or_default();
    Ok(id.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A program or library.
#[allow(missing_debug_implementations, reason = "nor has the loader")]
pub struct Binary {
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
#[derive(Clone, Debug)]
pub struct Frame {
    /// The name as the linker knows it; empty if it is unknown.
    pub name: String,
    /// The source file; empty if it is unknown.
    pub file: String,
    /// The line; 0 if it is unknown.
    pub line: u32,
    /// The column; 0 if it is unknown.
    pub column: u32,
}

impl Binary {
    /// Opens a file with code or its symbols, and the one with debug information, if that is
    /// another.
    ///
    /// # Errors
    /// Explains in words why the file cannot be read.
    pub fn open(file: &Path, debug: Option<&Path>) -> Result<Binary, String> {
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

    /// Returns the functions at an offset of the file, the innermost of those that are inlined
    /// first.
    #[must_use]
    pub fn frames(&self, offset: u64) -> Vec<Frame> {
        self.address(offset).map_or_else(Vec::new, |address| self.frames_at(address))
    }

    /// As [`Binary::frames`], for an address that the linker gave.
    #[must_use]
    pub fn frames_at(&self, address: u64) -> Vec<Frame> {
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

    /// Returns the address that the linker gave an offset of the file.
    fn address(&self, offset: u64) -> Option<u64> {
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
