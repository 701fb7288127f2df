//! A page with a flame graph and a table, in one file.

use askama::Template;

use crate::failure::Failure;
use crate::number::{percent, value};
use crate::options::{Order, View};
use crate::stacks::Stacks;
use crate::top::{ordered, sums};
use crate::tree::Tree;

/// Least share of the whole that a bar stands for.
const LEAST: f64 = 0.0005;
/// Most functions in the table.
const MOST: usize = 100;

/// The data that the template shows.
#[derive(Template)]
#[template(path = "profile.html")]
struct Page<'a> {
    stacks: &'a Stacks,
    headline: String,
    /// The same, in parts for tiles: a number, and what it is.
    tiles: Vec<(String, String)>,
    bars: Vec<Bar>,
    /// Lines of bars.
    depth: usize,
    rows: Vec<[String; 5]>,
    count: usize,
    filters: Vec<(&'static str, String)>,
}

/// A function in the flame graph.
struct Bar {
    name: String,
    about: String,
    depth: usize,
    /// Position and width as shares of the whole, in percent.
    left: f64,
    width: f64,
    /// Hue of its colour, in degrees.
    hue: u32,
}

/// Returns the page.
pub(crate) fn page(stacks: &Stacks, view: &View) -> Result<String, Failure> {
    let unit = &stacks.kind.unit;
    let all = sums(stacks);
    let count = all.len();
    let order = Order { most: MOST, cum: false };
    let row = |(name, sums): (&str, crate::top::Sums)| {
        let share = |part| percent(part, stacks.total);
        let (flat, cum) = (value(sums.flat, unit), value(sums.cum, unit));
        [name.to_owned(), flat, share(sums.flat), cum, share(sums.cum)]
    };
    let rows = ordered(all, &order).into_iter().map(row).collect();
    let bars = bars(stacks);
    let page = Page {
        headline: stacks.headline(),
        tiles: vec![
            (value(stacks.selected(), unit), stacks.kind.name.clone()),
            (stacks.stacks.len().to_string(), "different stacks".to_owned()),
            (count.to_string(), "functions".to_owned()),
        ],
        depth: bars.iter().map(|bar| bar.depth + 1).max().unwrap_or(0),
        bars,
        rows,
        count,
        filters: filters(view),
        stacks,
    };
    page.render().map_err(|error| Failure::Other(error.to_string()))
}

/// Returns what the page was made with.
fn filters(view: &View) -> Vec<(&'static str, String)> {
    let mut filters = Vec::new();
    for (name, regex) in [("--focus", &view.focus), ("--ignore", &view.ignore)] {
        filters.extend(regex.as_ref().map(|regex| (name, regex.to_string())));
    }
    filters.extend(view.tag.as_ref().map(|tag| ("--tag", tag.clone())));
    filters
}

/// Returns the bars of the flame graph, callers before those that they call.
fn bars(stacks: &Stacks) -> Vec<Bar> {
    let tree = Tree::new(stacks);
    let total = tree.root().cum;
    let mut bars = Vec::new();
    if total <= 0 {
        return bars;
    }
    let share = |value: i64| value as f64 / total as f64;
    // Not by recursion: stacks may be deep.
    let mut left = vec![(tree.root(), 0.0)];
    while let Some((node, start)) = left.pop() {
        let name = node.name.map_or("all", |index| stacks.name(index));
        let cum = value(node.cum, &stacks.kind.unit);
        bars.push(Bar {
            name: name.to_owned(),
            about: format!("{name}: {cum}, {}", percent(node.cum, stacks.total)),
            depth: node.depth,
            left: start * 100.0,
            width: share(node.cum) * 100.0,
            hue: hue(name),
        });
        let mut at = start;
        let mut children = Vec::new();
        for child in tree.children(node) {
            if share(child.cum) >= LEAST {
                children.push((child, at));
                at += share(child.cum);
            }
        }
        left.extend(children.into_iter().rev());
    }
    bars
}

/// Returns a hue between green and blue, the same for functions of one module.
fn hue(name: &str) -> u32 {
    let module = name.rsplit_once("::").map_or(name, |(module, _)| module);
    let sum =
        module.bytes().fold(7_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    90 + sum % 150
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::tests::made;

    const NASTY: &str = "<script>alert('&\"')</script>";

    fn page_of(stacks: &[(&[&str], i64, &str)]) -> String {
        let stacks = Stacks::new(&made(stacks), &View::default());
        let stacks = stacks.unwrap_or_else(|error| panic!("{error:?}"));
        page(&stacks, &View::default()).unwrap_or_else(|error| panic!("{error:?}"))
    }

    fn parse(page: &str) -> roxmltree::Document<'_> {
        let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
        roxmltree::Document::parse_with_options(page, options).unwrap()
    }

    #[test]
    fn page_is_well_formed_and_refers_to_no_other_file() {
        let page = page_of(&[(&["f", "main"], 3, ""), (&[NASTY, "main"], 5, "")]);
        let document = parse(&page);
        let attributes = document.descendants().flat_map(|node| node.attributes());
        for attribute in attributes {
            let name = attribute.name();
            assert!(!["src", "href", "srcset", "action"].contains(&name), "{attribute:?}");
        }
        assert!(!page.contains("@import") && !page.contains("url("));
        let texts = |tag: &'static str| {
            let nodes = document.descendants().filter(move |node| node.has_tag_name(tag));
            nodes.filter_map(|node| node.text()).collect::<Vec<_>>()
        };
        assert_eq!(texts("button"), ["all", "main", NASTY, "f"]);
        assert!(texts("th").contains(&NASTY));
        assert_eq!(texts("script").len(), 1);
    }

    #[test]
    fn bars_lie_within_their_callers() {
        let stacks: &[(&[&str], i64, &str)] =
            &[(&["f", "main"], 3, ""), (&["g", "main"], 5, ""), (&["h", "g", "main"], 8, "")];
        let stacks = Stacks::new(&made(stacks), &View::default());
        let bars = bars(&stacks.unwrap_or_else(|error| panic!("{error:?}")));
        let shape = |bar: &Bar| (bar.name.clone(), bar.depth, bar.left, bar.width);
        let shapes: Vec<_> = bars.iter().map(shape).collect();
        let expected = [
            ("all".to_owned(), 0, 0.0, 100.0),
            ("main".to_owned(), 1, 0.0, 100.0),
            ("g".to_owned(), 2, 0.0, 81.25),
            ("h".to_owned(), 3, 0.0, 50.0),
            ("f".to_owned(), 2, 81.25, 18.75),
        ];
        assert_eq!(shapes, expected);
    }

    #[test]
    fn page_of_nothing_says_so() {
        assert!(page_of(&[]).contains("There are no samples"));
    }
}
