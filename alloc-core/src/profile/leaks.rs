//! Leaks: what is still in use when the program ends, by the stacks that allocated it, the largest
//! first.
//!
//! A report is text in the way of LeakSanitizer. Frames have the file and the address in it, as
//! `addr2line` takes them, the build ID, and the names of exported functions. The allocator's own
//! frames are left out where it is a library of its own.

use core::cmp::Reverse;
use core::ffi::c_int;
use core::fmt::{self, Write as _};

use super::mappings::{self, Image, Room};
use super::reach::{self, Block, Found};
use super::scratch::{Scratch, Zeroed};
use super::suppressions::Suppressions;
use super::symbols::Names;
use crate::os;
use crate::path::objects;
use crate::sampling::{self, Sum};
use crate::text::Writer;

/// What a report says.
pub(crate) struct Request<'a> {
    /// Whether blocks that the program can reach are left out; then this is the lowest address on
    /// the stack of this thread that the program uses.
    pub(crate) reached_from: Option<usize>,
    pub(crate) suppressions: Option<&'a Suppressions>,
}

/// Writes a report to an open file. Returns false if that fails, or if there is no memory for it.
///
/// Flushes the sheaves of all CPUs first, as [`write`](super::write) does.
pub(crate) fn write(file: c_int, request: &Request<'_>) -> bool {
    objects::renew_counts();
    let Some((mut blocks, count)) = gather() else { return false };
    let mut is_searched = false;
    if let Some(stack) = request.reached_from {
        is_searched = reach::search(&mut blocks, count, stack);
        if !is_searched {
            os::warn(format_args!("memory cannot be searched: reachable blocks are in the report"));
        }
    }
    let Some((mut groups, group_count)) = group(&mut blocks, count) else { return false };
    let (Some(modules), Some(mut names)) = (Modules::new(), Names::new()) else { return false };
    let groups = groups.get_mut(..group_count).unwrap_or_default();
    let mut suppressed = Sums::default();
    let mut reported = Sums::default();
    let mut sites = 0;
    for group in groups.iter_mut() {
        group.is_suppressed = request.suppressions.is_some_and(|known| {
            group.frames().iter().any(|frame| {
                modules.find(*frame).is_some_and(|module| {
                    known.match_any(modules.path(module))
                        || known.match_any(module.name(&mut names, *frame))
                })
            })
        });
        if group.is_suppressed {
            suppressed.add(group.sums);
        } else {
            reported.add(group.sums);
            sites += 1;
        }
    }
    let mut to = Writer::new(file);
    let _ = write!(to, "hayloft[{}]: leaks: ", os::process_id());
    let _ = match (sites, is_searched) {
        (0, _) => write!(to, "none"),
        (_, true) => write!(to, "{reported} lost, allocated at {sites} sites"),
        (_, false) => write!(to, "{reported} in use, allocated at {sites} sites"),
    };
    let mut all = reported;
    all.add(suppressed);
    if !all.all.is_exact(all.samples) {
        let _ = write!(to, "; estimated from {} samples", all.samples);
    }
    if suppressed.samples > 0 {
        let _ = write!(to, "; suppressed: {suppressed}");
    }
    if sampling::missed() > 0 {
        let _ = write!(to, "; there was no room for {} samples", sampling::missed());
    }
    let _ = writeln!(to);
    for group in groups.iter().filter(|group| !group.is_suppressed) {
        let _ = group.write(&mut to, &modules, &mut names, is_searched);
    }
    to.finish()
}

/// Returns the sampled blocks in use, sorted by address, and their number.
fn gather() -> Option<(Scratch<Block>, usize)> {
    let mut blocks = Scratch::<Block>::new(sampling::most_live())?;
    let mut count = 0;
    sampling::for_each_live(|live| {
        if let Some(to) = blocks.get_mut(count) {
            *to = Block { live, found: Found::Nowhere };
            count += 1;
        }
    });
    blocks.get_mut(..count)?.sort_unstable_by_key(|block| block.live.address);
    Some((blocks, count))
}

/// Samples, and the blocks for which they stand.
#[derive(Clone, Copy, Default)]
struct Sums {
    samples: i64,
    all: Sum,
}

impl Sums {
    fn add(&mut self, other: Sums) {
        self.samples += other.samples;
        self.all.add(other.all);
    }
}

impl fmt::Display for Sums {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{} bytes in {} blocks", self.all.bytes(), self.all.blocks())
    }
}

/// The blocks of a site that were found in the same way.
#[derive(Clone, Copy)]
struct Group {
    sums: Sums,
    /// One of the blocks.
    block: Block,
    is_suppressed: bool,
}

// SAFETY: the fields are numbers, and structs of these.
unsafe impl Zeroed for Group {}

/// Returns the groups of the blocks that the program does not reach, the largest first, and their
/// number.
fn group(blocks: &mut Scratch<Block>, count: usize) -> Option<(Scratch<Group>, usize)> {
    let blocks = blocks.get_mut(..count)?;
    let key = |block: &Block| (block.found, block.live.site);
    blocks.sort_unstable_by_key(key);
    let mut groups = Scratch::<Group>::new(count)?;
    let mut group_count: usize = 0;
    let lost = blocks.iter().filter(|block| block.found != Found::Reached);
    for block in lost {
        let last = group_count.checked_sub(1).and_then(|last| groups.get(last));
        if last.is_none_or(|last| key(&last.block) != key(block)) {
            let sums = Sums::default();
            *groups.get_mut(group_count)? = Group { sums, block: *block, is_suppressed: false };
            group_count += 1;
        }
        groups.get_mut(group_count - 1)?.sums.add(Sums { samples: 1, all: block.live.sum() });
    }
    let sorted = groups.get_mut(..group_count)?;
    sorted.sort_unstable_by_key(|group| Reverse(group.sums.all.bytes()));
    Some((groups, group_count))
}

impl Group {
    fn frames(&self) -> &'static [usize] {
        self.block.live.place().frames
    }

    fn write(
        &self,
        to: &mut Writer,
        modules: &Modules,
        names: &mut Names,
        is_searched: bool,
    ) -> fmt::Result {
        let what = match self.block.found {
            _ if !is_searched => "In use:",
            Found::InLost => "Indirect leak of",
            _ => "Direct leak of",
        };
        let (bytes, blocks) = (self.sums.all.bytes(), self.sums.all.blocks());
        write!(to, "\n{what} {bytes} byte(s) in {blocks} object(s)")?;
        let tag = self.block.live.place().tag;
        if !tag.is_empty() {
            write!(to, " with tag {tag}")?;
        }
        writeln!(to, " allocated from:")?;
        let is_own = |frame: &&usize| modules.find(**frame).is_some_and(|module| module.is_own);
        // A library's other functions may call the program, which allocates again.
        let frames = self.frames().iter().skip_while(is_own);
        for (number, frame) in frames.filter(|frame| **frame != 0).enumerate() {
            // Within the call.
            let address = frame - 1;
            write!(to, "    #{number} {address:#x}")?;
            if let Some(module) = modules.find(*frame) {
                let linked = module.linked.wrapping_add((address - module.start) as u64);
                let name = module.name(names, *frame);
                to.write_str(if name.is_empty() { " " } else { " in " })?;
                to.push(name);
                to.write_str(" (")?;
                to.push(modules.path(module));
                write!(to, "+{linked:#x})")?;
                if module.id_len > 0 {
                    to.write_str(" (BuildId: ")?;
                    for byte in module.id.get(..module.id_len.into()).unwrap_or_default() {
                        write!(to, "{byte:02x}")?;
                    }
                    to.write_str(")")?;
                }
            }
            writeln!(to)?;
        }
        Ok(())
    }
}

/// An executable mapping.
#[derive(Clone, Copy)]
struct Module {
    start: usize,
    limit: usize,
    /// The address of its first byte in its file.
    linked: u64,
    /// Where its path begins among the paths, and how long it is.
    path: u32,
    path_len: u32,
    id: [u8; 32],
    id_len: u8,
    /// Where its file is mapped, if that is known.
    image: Place,
    /// Whether it is of the library with this allocator, and not of the program.
    is_own: bool,
}

// SAFETY: the fields are numbers, and zero is a place that is not known.
unsafe impl Zeroed for Module {}

/// Where a file is mapped.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Place {
    Unknown = 0,
    Known(Image),
}

impl Module {
    /// Returns the name of the exported function that a return address leads to; empty if there is
    /// none.
    fn name<'a>(&self, names: &'a mut Names, frame: usize) -> &'a [u8] {
        match self.image {
            Place::Known(image) => names.name(image, frame.saturating_sub(1)),
            Place::Unknown => &[],
        }
    }
}

/// The executable mappings, sorted by address.
struct Modules {
    all: Scratch<Module>,
    count: usize,
    paths: Scratch<u8>,
}

impl Modules {
    /// Most mappings. Frames in others have no file.
    const MOST: usize = 4096;
    /// Bytes of all paths.
    const PATHS: usize = 512 << 10;

    fn new() -> Option<Modules> {
        let mut room = Scratch::<Room>::new(1)?;
        let (mut all, mut paths) = (Scratch::new(Modules::MOST)?, Scratch::new(Modules::PATHS)?);
        let (mut count, mut used): (usize, usize) = (0, 0);
        let program = os::auxiliary(libc::AT_ENTRY);
        let here = (write as fn(c_int, &Request<'_>) -> bool) as usize;
        mappings::each(room.only(), &mut |mapping| {
            let after = used + mapping.path.len();
            let (Some(path), Some(to)) = (paths.get_mut(used..after), all.get_mut(count)) else {
                return;
            };
            path.copy_from_slice(mapping.path);
            let mut id = [0; 32];
            id.iter_mut().zip(mapping.build_id).for_each(|(to, from)| *to = *from);
            let holds = |address: usize| (mapping.start..mapping.limit).contains(&address);
            *to = Module {
                start: mapping.start,
                limit: mapping.limit,
                linked: mapping.linked(),
                path: used as u32,
                path_len: mapping.path.len() as u32,
                id,
                id_len: mapping.build_id.len().min(id.len()) as u8,
                image: mapping.image.map_or(Place::Unknown, Place::Known),
                is_own: holds(here) && !holds(program),
            };
            (count, used) = (count + 1, after);
        });
        Some(Modules { all, count, paths })
    }

    /// Returns the mapping that a return address leads to.
    fn find(&self, frame: usize) -> Option<&Module> {
        let address = frame.checked_sub(1)?;
        let all = self.all.get(..self.count)?;
        let after = all.partition_point(|module| module.start <= address);
        all.get(after.checked_sub(1)?).filter(|module| address < module.limit)
    }

    fn path(&self, module: &Module) -> &[u8] {
        let (start, len) = (module.path as usize, module.path_len as usize);
        self.paths.get(start..start + len).unwrap_or_default()
    }
}
