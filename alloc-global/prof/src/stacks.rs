//! Samples as lists of functions: filtered, without the allocator's own, and added up.

use std::collections::{BTreeMap, HashMap};

use hayloft_symbols::without_parameters;
use regex::Regex;

use crate::failure::Failure;
use crate::number::{percent, value};
use crate::options::View;
use crate::profile::{Kind, Profile};
use crate::proto;

/// Most functions of a stack. The outermost ones are cut off.
const DEEPEST: usize = 1024;

/// Stacks with values of one type.
pub(crate) struct Stacks {
    /// The name of the file.
    pub(crate) file: String,
    pub(crate) kind: Kind,
    /// The time of the profile, and what it says of its period.
    about: Vec<String>,
    /// Names of functions.
    names: Vec<String>,
    /// Stacks as indices of `names`, the outermost first, with the sum of their values.
    pub(crate) stacks: BTreeMap<Vec<usize>, i64>,
    /// The sum of all samples, also of those that are not selected.
    pub(crate) total: i64,
}

impl Stacks {
    /// Selects what `view` asks for.
    pub(crate) fn new(profile: &Profile, view: &View) -> Result<Stacks, Failure> {
        Stacks::by(view.by.as_deref(), profile, view)
    }

    /// Selects what `view` asks for, with values of another type.
    pub(crate) fn by(by: Option<&str>, profile: &Profile, view: &View) -> Result<Stacks, Failure> {
        let index = profile.kind_index(by)?;
        let kind = profile.kinds().swap_remove(index);
        let pruning = Pruning::of(profile, view);
        let mut names = Names { profile, view, known: HashMap::new(), all: Vec::new() };
        let mut stacks = BTreeMap::<_, i64>::new();
        let mut total = 0_i64;
        for sample in &profile.raw.sample {
            let value = sample.value.get(index).copied().unwrap_or(0);
            total = total.saturating_add(value);
            let frames = names.frames(sample);
            if value == 0 || !is_selected(profile, view, sample, &frames) {
                continue;
            }
            let frames = pruning.cut(frames);
            let stack: Vec<_> = frames.iter().map(|frame| names.index(&frame.shown)).collect();
            let sum = stacks.entry(stack).or_default();
            *sum = sum.saturating_add(value);
        }
        let names = names.all;
        let about = about(profile);
        Ok(Stacks { file: profile.name.clone(), kind, about, names, stacks, total })
    }

    pub(crate) fn name(&self, index: usize) -> &str {
        self.names.get(index).map_or("?", String::as_str)
    }

    /// Returns the sum of the stacks.
    pub(crate) fn selected(&self) -> i64 {
        self.stacks.values().fold(0, |sum, value| sum.saturating_add(*value))
    }

    /// Returns the first line of all output: what is shown, and how much of the whole.
    pub(crate) fn headline(&self) -> String {
        let (selected, total, unit) = (self.selected(), self.total, &self.kind.unit);
        let mut line = format!("{}: {}", self.kind.name, value(selected, unit));
        if selected != total {
            line += &format!(" of {} ({})", value(total, unit), percent(selected, total));
        }
        self.about.iter().fold(line, |line, part| line + "; " + part)
    }
}

/// Returns what else is worth knowing of a profile.
fn about(profile: &Profile) -> Vec<String> {
    let mut about = Vec::new();
    about.extend(profile.time());
    let period = profile.raw.period_type.as_ref().map(|kind| profile.kind(kind));
    if let Some(kind) = period.filter(|_| profile.raw.period > 1) {
        let period = value(profile.raw.period, &kind.unit);
        about.push(format!("a sample every {period} of {}", kind.name));
    }
    about
}

/// A function in a sample.
#[derive(Clone)]
pub(crate) struct Frame {
    /// The name, with the place if lines are told apart.
    pub(crate) shown: String,
    /// The name alone; empty if it is unknown.
    pub(crate) name: String,
    pub(crate) file: String,
}

struct Names<'a> {
    profile: &'a Profile,
    view: &'a View,
    known: HashMap<String, usize>,
    all: Vec<String>,
}

impl Names<'_> {
    /// Returns the functions of a sample, the innermost first.
    fn frames(&self, sample: &proto::Sample) -> Vec<Frame> {
        let locations = sample.location_id.iter();
        locations.flat_map(|number| self.at(*number)).take(DEEPEST).collect()
    }

    fn at(&self, number: u64) -> Vec<Frame> {
        let Some(location) = self.profile.location(number) else { return vec![unknown("?")] };
        let lines = location.line.iter();
        let frames: Vec<_> = lines.filter_map(|line| self.function(line)).collect();
        if frames.is_empty() { vec![unknown(&self.address(location))] } else { frames }
    }

    fn function(&self, line: &proto::Line) -> Option<Frame> {
        let function = self.profile.function(line.function_id)?;
        let string = |index| self.profile.string(index).into_owned();
        let mut name = string(function.name);
        if name.is_empty() {
            name = string(function.system_name);
        }
        let file = string(function.filename);
        let mut shown = if name.is_empty() { "?".to_owned() } else { name.clone() };
        if self.view.lines && !file.is_empty() {
            shown = format!("{shown} {file}:{}", line.line);
        }
        Some(Frame { shown, name, file })
    }

    /// Describes an address without a function.
    fn address(&self, location: &proto::Location) -> String {
        let address = location.address;
        let Some(mapping) = self.profile.mapping(location.mapping_id) else {
            return format!("{address:#x}");
        };
        let path = self.profile.string(mapping.filename);
        let file = path.rsplit('/').next().unwrap_or_default();
        let offset = address.wrapping_sub(mapping.memory_start).wrapping_add(mapping.file_offset);
        format!("{file}+{offset:#x}")
    }

    fn index(&mut self, name: &str) -> usize {
        if let Some(index) = self.known.get(name) {
            return *index;
        }
        self.all.push(name.to_owned());
        self.known.insert(name.to_owned(), self.all.len() - 1);
        self.all.len() - 1
    }
}

fn unknown(shown: &str) -> Frame {
    Frame { shown: shown.to_owned(), name: String::new(), file: String::new() }
}

fn is_selected(profile: &Profile, view: &View, sample: &proto::Sample, frames: &[Frame]) -> bool {
    let has = |wanted: &Regex| {
        frames.iter().any(|frame| wanted.is_match(&frame.shown) || wanted.is_match(&frame.file))
    };
    view.focus.as_ref().is_none_or(has)
        && !view.ignore.as_ref().is_some_and(has)
        && view.tag.as_ref().is_none_or(|tag| has_label(profile, sample, tag))
}

/// Returns whether a sample has a label. `wanted` is a tag, or the name of a label and its value.
fn has_label(profile: &Profile, sample: &proto::Sample, wanted: &str) -> bool {
    sample.label.iter().any(|label| {
        let key = profile.string(label.key);
        let text = match label.str {
            0 => label.num.to_string(),
            text => profile.string(text).into_owned(),
        };
        (key == "tag" && text == wanted) || format!("{key}={text}") == wanted
    })
}

/// The functions that a profile wants left out, with all that they call.
pub(crate) struct Pruning {
    drop: Option<Regex>,
    keep: Option<Regex>,
}

impl Pruning {
    /// Takes two regular expressions for whole names. With `all_frames` nothing is left out.
    pub(crate) fn new(drop: &str, keep: &str, all_frames: bool) -> Pruning {
        let expression = |text: &str| {
            let is_used = !text.is_empty() && !all_frames;
            // One that is invalid, or only so in Rust, leaves out nothing.
            is_used.then(|| Regex::new(&format!("^(?:{text})$")).ok()).flatten()
        };
        Pruning { drop: expression(drop), keep: expression(keep) }
    }

    fn of(profile: &Profile, view: &View) -> Pruning {
        let [drop, keep] = [profile.raw.drop_frames, profile.raw.keep_frames];
        Pruning::new(&profile.string(drop), &profile.string(keep), view.all_frames)
    }

    /// Returns the functions that are left, the outermost first. As in pprof, one function at least
    /// stays: those to drop count only inside of others.
    pub(crate) fn cut(&self, mut frames: Vec<Frame>) -> Vec<Frame> {
        frames.reverse();
        let is_dropped = |frame: &Frame| {
            let matches = |expression: &Option<Regex>| {
                expression.as_ref().is_some_and(|it| it.is_match(without_parameters(&frame.name)))
            };
            matches(&self.drop) && !matches(&self.keep)
        };
        let first = frames.iter().position(|frame| !is_dropped(frame));
        let rest = first.and_then(|first| frames.get(first..)).unwrap_or_default();
        if let Some(end) = rest.iter().position(is_dropped) {
            frames.truncate(first.unwrap_or(0) + end);
        }
        frames
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::tests::made;

    fn folded(profile: &Profile, view: &View) -> Vec<(String, i64)> {
        let stacks = Stacks::new(profile, view).unwrap_or_else(|error| panic!("{error:?}"));
        let name = |stack: &Vec<usize>| {
            stack.iter().map(|index| stacks.name(*index)).collect::<Vec<_>>().join(";")
        };
        stacks.stacks.iter().map(|(stack, value)| (name(stack), *value)).collect()
    }

    fn pairs(all: &[(&str, i64)]) -> Vec<(String, i64)> {
        all.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
    }

    #[test]
    fn equal_stacks_are_added_up() {
        let profile =
            made(&[(&["f", "main"], 1, ""), (&["g", "main"], 2, ""), (&["f", "main"], 4, "")]);
        assert_eq!(folded(&profile, &View::default()), pairs(&[("main;f", 5), ("main;g", 2)]));
    }

    #[test]
    fn filters_select_samples() {
        let profile = made(&[(&["f", "main"], 1, "index"), (&["g", "main"], 2, "cache")]);
        let with = |change: fn(&mut View)| {
            let mut view = View::default();
            change(&mut view);
            folded(&profile, &view)
        };
        let regex = |text| Some(Regex::new(text).unwrap());
        let (f, g) = (pairs(&[("main;f", 1)]), pairs(&[("main;g", 2)]));
        assert_eq!(folded(&profile, &View { focus: regex("^f$"), ..View::default() }), f);
        assert_eq!(folded(&profile, &View { ignore: regex("f"), ..View::default() }), g);
        assert_eq!(with(|view| view.tag = Some("index".into())), f);
        assert_eq!(with(|view| view.tag = Some("tag=cache".into())), g);
        assert_eq!(with(|view| view.tag = Some("other".into())), []);
    }

    #[test]
    fn frames_of_the_allocator_are_left_out() {
        let mut profile = made(&[
            (&["hayloft_core::path::alloc", "malloc", "f", "main"], 1, ""),
            (&["g", "malloc", "f", "main"], 2, ""),
            (&["malloc"], 4, ""),
            (&["operator new(unsigned long)", "h"], 8, ""),
        ]);
        let drop = profile.add_string(hayloft_core::profile::pprof::ALLOCATOR);
        profile.raw.drop_frames = drop;
        let all = [("main;f", 3), ("malloc", 4), ("h", 8)];
        let mut shown = folded(&profile, &View::default());
        shown.sort_by_key(|(_, value)| *value);
        assert_eq!(shown, pairs(&all));
        let view = View { all_frames: true, ..View::default() };
        assert!(folded(&profile, &view).contains(&("main;f;malloc;g".into(), 2)));
    }

    #[test]
    fn only_functions_of_the_allocator_are_left_out() {
        let expression = format!("^(?:{})$", hayloft_core::profile::pprof::ALLOCATOR);
        let expression = Regex::new(&expression).unwrap();
        for name in [
            "malloc",
            "posix_memalign",
            "__libc_calloc",
            "operator new",
            "operator new[]",
            "__rust_alloc",
            "__rustc::__rust_realloc",
            "__rg_alloc_zeroed",
            "alloc::alloc::alloc",
            "<alloc::alloc::Global as core::alloc::Allocator>::allocate",
            "<hayloft::Hayloft as core::alloc::global::GlobalAlloc>::alloc",
            "hayloft_core::path::objects::alloc::alloc",
            "alloc::alloc::Global::alloc_impl_runtime",
            "hayloft::malloc::entry",
            "hayloft_malloc",
        ] {
            assert!(expression.is_match(name), "{name}");
        }
        for name in [
            "main",
            "my_malloc",
            "mallocator",
            "alloc::vec::Vec<T>::push",
            "hayloft::tag",
            "hayloft_core::rcu::run",
            "app::__rust_alloc::x",
        ] {
            assert!(!expression.is_match(name), "{name}");
        }
    }

    #[test]
    fn addresses_stand_for_unknown_functions() {
        let mut profile = made(&[(&["main"], 1, "")]);
        let filename = profile.add_string("/usr/lib/libx.so");
        let mapping = proto::Mapping {
            id: 7,
            memory_start: 0x1000,
            memory_limit: 0x2000,
            file_offset: 0x500,
            filename,
            ..Default::default()
        };
        profile.raw.mapping.push(mapping);
        let location = |id, mapping_id| proto::Location {
            id,
            mapping_id,
            address: 0x1234,
            ..Default::default()
        };
        profile.raw.location.extend([location(100, 7), location(101, 99)]);
        profile.raw.sample[0].location_id = vec![100, 101, 102];
        let profile = crate::profile::tests::again(profile);
        let expected = pairs(&[("?;0x1234;libx.so+0x734", 1)]);
        assert_eq!(folded(&profile, &View::default()), expected);
    }
}
