//! Files with profiles: `perftools.profiles.Profile`, mostly compressed by gzip.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::path::Path;

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use prost::Message as _;

use crate::failure::Failure;
use crate::proto;

/// Most bytes of a profile. More is taken for a file that was made to exhaust memory.
const MOST: u64 = 1 << 30;

/// A profile.
pub(crate) struct Profile {
    /// The name of its file, for messages.
    pub(crate) name: String,
    pub(crate) raw: proto::Profile,
    /// Indices of locations, functions and mappings by their numbers.
    locations: HashMap<u64, usize>,
    functions: HashMap<u64, usize>,
    mappings: HashMap<u64, usize>,
    /// Indices of strings, where there are some to be added.
    strings: HashMap<Vec<u8>, i64>,
}

/// A type of value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Kind {
    pub(crate) name: String,
    pub(crate) unit: String,
}

impl Profile {
    /// Reads a file; `-` is standard input.
    pub(crate) fn read(path: &Path) -> Result<Profile, Failure> {
        let name = name(path, "standard input");
        let failed = |error: &dyn std::fmt::Display| Failure::Other(format!("{name}: {error}"));
        let mut bytes = bytes(path)?;
        if bytes.starts_with(&[0x1f, 0x8b]) {
            bytes = limited(MultiGzDecoder::new(bytes.as_slice())).map_err(|error| match error
                .kind()
            {
                io::ErrorKind::UnexpectedEof => failed(&"the file is cut off"),
                _ => failed(&format_args!("the compressed data is damaged: {error}")),
            })?;
        }
        if bytes.starts_with(b"heap profile:") || bytes.starts_with(b"heap_v2/") {
            return Err(failed(&"this is the text format of gperftools or jemalloc, not pprof's"));
        }
        let raw = proto::Profile::decode(bytes.as_slice());
        let raw =
            raw.map_err(|_| failed(&"this is no profile in pprof's format, or a part of one"))?;
        if raw.sample_type.is_empty() || raw.string_table.is_empty() {
            return Err(failed(&"this is no profile in pprof's format"));
        }
        Ok(Profile::new(name, raw))
    }

    fn new(name: String, raw: proto::Profile) -> Profile {
        fn indices(numbers: impl Iterator<Item = u64>) -> HashMap<u64, usize> {
            numbers.zip(0..).collect()
        }
        Profile {
            name,
            locations: indices(raw.location.iter().map(|location| location.id)),
            functions: indices(raw.function.iter().map(|function| function.id)),
            mappings: indices(raw.mapping.iter().map(|mapping| mapping.id)),
            strings: HashMap::new(),
            raw,
        }
    }

    /// Encodes and compresses the profile.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut to = GzEncoder::new(Vec::new(), Compression::default());
        // A vector takes everything.
        let _ = to.write_all(&self.raw.encode_to_vec());
        to.finish().unwrap_or_default()
    }

    /// Returns a string; an empty one for an index that is wrong.
    pub(crate) fn string(&self, index: i64) -> Cow<'_, str> {
        let bytes = usize::try_from(index).ok().and_then(|index| self.raw.string_table.get(index));
        bytes.map_or(Cow::Borrowed(""), |bytes| String::from_utf8_lossy(bytes))
    }

    /// Returns the index of a string, which is added if there is none.
    pub(crate) fn add_string(&mut self, text: &str) -> i64 {
        if self.strings.is_empty() {
            let all = self.raw.string_table.iter().cloned();
            self.strings = all.zip(0..).collect();
        }
        let table = &mut self.raw.string_table;
        *self.strings.entry(text.as_bytes().to_vec()).or_insert_with(|| {
            table.push(text.as_bytes().to_vec());
            table.len() as i64 - 1
        })
    }

    /// Adds a function. Returns its number.
    pub(crate) fn add_function(&mut self, mut function: proto::Function) -> u64 {
        // Numbers may be any.
        let mut number = self.raw.function.len() as u64 + 1;
        while self.functions.contains_key(&number) {
            number = number.wrapping_add(1);
        }
        function.id = number;
        self.functions.insert(number, self.raw.function.len());
        self.raw.function.push(function);
        number
    }

    pub(crate) fn location(&self, number: u64) -> Option<&proto::Location> {
        self.raw.location.get(*self.locations.get(&number)?)
    }

    pub(crate) fn function(&self, number: u64) -> Option<&proto::Function> {
        self.raw.function.get(*self.functions.get(&number)?)
    }

    pub(crate) fn mapping(&self, number: u64) -> Option<&proto::Mapping> {
        self.raw.mapping.get(*self.mappings.get(&number)?)
    }

    /// Leaves out samples without an address, which a writer named itself.
    pub(crate) fn leave_out_named(&mut self) {
        let samples = std::mem::take(&mut self.raw.sample);
        let has_address =
            |number: &u64| self.location(*number).is_none_or(|location| location.address != 0);
        self.raw.sample =
            samples.into_iter().filter(|it| it.location_id.iter().any(has_address)).collect();
    }

    /// Returns the types of the values of each sample.
    pub(crate) fn kinds(&self) -> Vec<Kind> {
        let types = self.raw.sample_type.iter();
        types.map(|kind| self.kind(kind)).collect()
    }

    pub(crate) fn kind(&self, kind: &proto::ValueType) -> Kind {
        Kind { name: self.string(kind.kind).into(), unit: self.string(kind.unit).into() }
    }

    /// Returns the index of the values that `by` names, or of those that the file prefers.
    pub(crate) fn kind_index(&self, by: Option<&str>) -> Result<usize, Failure> {
        let kinds = self.kinds();
        let index = |name: &str| kinds.iter().position(|kind| kind.name == name);
        let Some(by) = by else {
            let default = self.string(self.raw.default_sample_type);
            // As pprof has it, the last type is the default of a profile that names none.
            return Ok(index(&default).unwrap_or(kinds.len().saturating_sub(1)));
        };
        let short = [by.to_owned(), format!("{by}_space"), format!("inuse_{by}")];
        short.iter().find_map(|name| index(name)).ok_or_else(|| {
            let names: Vec<_> = kinds.iter().map(|kind| kind.name.as_str()).collect();
            let names = names.join(", ");
            Failure::Usage(format!("{} has no values `{by}`, but {names}", self.name))
        })
    }

    /// Returns the time of the profile.
    pub(crate) fn time(&self) -> Option<String> {
        let nanoseconds = self.raw.time_nanos;
        let time = jiff::Timestamp::from_nanosecond(nanoseconds.into()).ok()?;
        (nanoseconds != 0).then(|| format!("{time:.0}"))
    }
}

fn limited(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(MOST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST {
        return Err(io::Error::other("more than 1 GiB"));
    }
    Ok(bytes)
}

fn name(path: &Path, if_dash: &str) -> String {
    if path.as_os_str() == "-" { if_dash.to_owned() } else { path.display().to_string() }
}

/// Reads a file; `-` is standard input.
fn bytes(path: &Path) -> Result<Vec<u8>, Failure> {
    let bytes = match path.to_str() {
        Some("-") => limited(io::stdin().lock()),
        _ => File::open(path).and_then(limited),
    };
    let name = name(path, "standard input");
    bytes.map_err(|error| Failure::Other(format!("{name}: {error}")))
}

/// Reads a file of text; `-` is standard input.
pub(crate) fn text(path: &Path) -> Result<String, Failure> {
    Ok(String::from_utf8_lossy(&bytes(path)?).into_owned())
}

/// Writes a file; `-` is standard output.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    if path.as_os_str() == "-" {
        // The caller has locked it, which this thread may do again.
        let mut to = io::stdout().lock();
        to.write_all(bytes)?;
        return Ok(to.flush()?);
    }
    let failed = |error| Failure::Other(format!("{}: {error}", path.display()));
    std::fs::write(path, bytes).map_err(failed)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A profile with these stacks of functions, innermost first, each with a value of `space` and
    /// a tag.
    pub(crate) fn made(stacks: &[(&[&str], i64, &str)]) -> Profile {
        let raw = proto::Profile { string_table: vec![Vec::new()], ..Default::default() };
        let mut profile = Profile::new("made".into(), raw);
        let (space, bytes) = (profile.add_string("space"), profile.add_string("bytes"));
        profile.raw.sample_type = vec![proto::ValueType { kind: space, unit: bytes }];
        let key = profile.add_string("tag");
        for (frames, value, tag) in stacks {
            let mut sample = proto::Sample { value: vec![*value], ..Default::default() };
            for name in *frames {
                let name = profile.add_string(name);
                let function = proto::Function { name, ..Default::default() };
                let function_id = profile.add_function(function);
                let id = profile.raw.location.len() as u64 + 1;
                let line = vec![proto::Line { function_id, line: id as i64, column: 0 }];
                let location = proto::Location { id, address: id, line, ..Default::default() };
                profile.raw.location.push(location);
                sample.location_id.push(id);
            }
            if !tag.is_empty() {
                let str = profile.add_string(tag);
                sample.label.push(proto::Label { key, str, ..Default::default() });
            }
            profile.raw.sample.push(sample);
        }
        Profile::new("made".into(), profile.raw)
    }

    /// Returns a profile whose message was changed.
    pub(crate) fn again(profile: Profile) -> Profile {
        Profile::new(profile.name, profile.raw)
    }

    #[test]
    fn wrong_indices_are_empty_strings() {
        let profile = made(&[(&["main"], 1, "")]);
        for index in [-1, i64::MIN, i64::MAX, 1000] {
            assert_eq!(profile.string(index), "");
        }
    }

    #[test]
    fn values_have_short_names() {
        let mut profile = made(&[]);
        let bytes = profile.add_string("bytes");
        for name in ["inuse_objects", "inuse_space", "alloc_space"] {
            let kind = profile.add_string(name);
            profile.raw.sample_type.push(proto::ValueType { kind, unit: bytes });
        }
        let index = |by| profile.kind_index(by).ok();
        assert_eq!(index(None), Some(3), "the last one");
        assert_eq!((index(Some("inuse")), index(Some("objects"))), (Some(2), Some(1)));
        assert_eq!((index(Some("space")), index(Some("colour"))), (Some(0), None));
        let default = profile.add_string("inuse_objects");
        profile.raw.default_sample_type = default;
        assert_eq!(profile.kind_index(None).ok(), Some(1));
    }
}
