//! The report as one self-contained HTML page.

use askama::Template;

use super::grid::Grid;
use super::{build, changes, tables, verdict};
use crate::allocator::OURS;
use crate::compare::changes::Changes;
use crate::compare::charts::bars::{self, Bar};
use crate::compare::charts::{canvas, memory, percentiles};
use crate::compare::curves;
use crate::compare::record::{Record, Subject};
use crate::compare::summary::{Aspect, MEANS, Percentiles, Row, Summary};
use crate::statistics::Mood;
use crate::workloads::Kind;

/// Size of a chart whose height does not depend on its rows, in pixels.
const SIZE: (u32, u32) = (bars::WIDTH, 280);

/// The data that the template shows.
#[derive(Template)]
#[template(path = "report.html")]
struct Page<'a> {
    record: &'a Record,
    summary: &'a Summary,
    baseline: &'static str,
    ours: Option<&'static str>,
    tiles: Vec<Tile>,
    overview: Vec<(String, Grid)>,
    verdict: Vec<String>,
    fails: bool,
    changes: Option<ChangesSection>,
    time: Vec<Figure>,
    memory: Vec<Figure>,
    latency: Vec<Figure>,
    curves: Vec<Figure>,
    tables: Vec<(String, Grid)>,
    setting: Vec<(&'static str, String)>,
    /// Colour of the lines that span all rounds. A dark page must change it.
    span: String,
}

/// One mean of our allocator.
struct Tile {
    title: &'static str,
    ratio: String,
    class: &'static str,
}

struct ChangesSection {
    title: String,
    paragraphs: Vec<String>,
    tables: Vec<(&'static str, Grid)>,
}

/// A chart with its texts.
struct Figure {
    /// Part of the page's ids that is unique to this figure.
    id: String,
    title: String,
    about: String,
    description: String,
    size: (u32, u32),
    /// SVG without its root element.
    shapes: String,
}

impl Page<'_> {
    fn colour(&self, allocator: &str) -> String {
        canvas::hex(canvas::colour(allocator))
    }

    fn how_built(&self, subject: &Subject) -> Vec<String> {
        build::crates(subject)
    }
}

impl Mood {
    /// Returns the class in the style sheet.
    fn class(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Even => "even",
            Self::Worse => "worse",
        }
    }
}

/// Returns the whole page.
pub(super) fn page(
    record: &Record,
    summary: &Summary,
    changes: Option<&Changes>,
) -> Result<String, String> {
    let page = Page {
        record,
        summary,
        baseline: summary.baseline_name(),
        ours: ours(summary).map(|_| OURS),
        tiles: tiles(summary),
        overview: tables::overview(summary),
        verdict: (verdict::lines(summary).iter())
            .map(|line| console::strip_ansi_codes(line).into_owned())
            .collect(),
        fails: !record.is_complete(),
        changes: changes.map(|changes| ChangesSection {
            title: changes::title(changes),
            paragraphs: changes::paragraphs(changes),
            tables: changes::tables(changes),
        }),
        time: ratios(summary, Aspect::Time)?,
        memory: ratios(summary, Aspect::Memory)?,
        latency: latencies(summary)?,
        curves: over_time(record, summary)?,
        tables: tables::details(summary),
        setting: build::setting(record),
        span: canvas::hex(bars::SPAN),
    };
    page.render().map_err(|error| error.to_string())
}

/// Returns the index of our allocator, unless it is the baseline.
fn ours(summary: &Summary) -> Option<usize> {
    let ours = summary.allocators.iter().position(|&name| name == OURS)?;
    (ours != summary.baseline).then_some(ours)
}

fn tiles(summary: &Summary) -> Vec<Tile> {
    let Some(ours) = ours(summary) else { return Vec::new() };
    let tile = |mean| -> Option<Tile> {
        let ratio = summary.mean(mean, ours)?;
        let class = Mood::of(ratio).class();
        Some(Tile { title: mean.title, ratio: format!("{ratio:.2}×"), class })
    };
    MEANS.iter().filter_map(tile).collect()
}

/// Draws bars of the ratios to the baseline: a chart for each kind of workload.
fn ratios(summary: &Summary, aspect: Aspect) -> Result<Vec<Figure>, String> {
    let kinds = [
        (Kind::Allocation, "Allocation dominates"),
        (Kind::Program, "Programs"),
        (Kind::Huge, "Huge blocks"),
        (Kind::Latency, "Single operations timed"),
        (Kind::Memory, "Idle, and after a free"),
    ];
    let mut figures = Vec::new();
    for (kind, title) in kinds {
        let of_kind = summary.of_aspect(aspect).filter(|row| row.workload.kind == kind);
        let rows: Vec<bars::Row> = of_kind.filter_map(|row| of_row(summary, row, aspect)).collect();
        if rows.is_empty() {
            continue;
        }
        let size = (bars::WIDTH, bars::height(&rows));
        let (what, table) = match aspect {
            Aspect::Time => ("time per operation", "Time"),
            Aspect::Memory => ("resident memory", "Memory"),
        };
        figures.push(Figure {
            id: format!("{aspect:?}-{kind:?}").to_lowercase(),
            title: title.to_owned(),
            about: String::new(),
            description: format!(
                "Bars of the {what} of each workload and allocator as ratios to {}. The table “{table}” has the numbers.",
                summary.baseline_name()
            ),
            size,
            shapes: shapes(&canvas::svg(size, |area| bars::draw(area, &rows))?),
        });
    }
    Ok(figures)
}

fn of_row(summary: &Summary, row: &Row, aspect: Aspect) -> Option<bars::Row> {
    let bar = |(index, cell)| -> Option<Bar> {
        let quantity = aspect.of(cell)?;
        let is_compared = index != summary.baseline;
        let (ratio, spread) = (quantity.ratio?, quantity.spread?);
        is_compared.then_some(Bar { allocator: summary.allocators[index], ratio, spread })
    };
    let bars: Vec<Bar> = row.cells.iter().enumerate().filter_map(bar).collect();
    (!bars.is_empty()).then(|| bars::Row { name: row.workload.name.to_owned(), bars })
}

fn latencies(summary: &Summary) -> Result<Vec<Figure>, String> {
    let mut figures = Vec::new();
    for row in summary.of_kind(Kind::Latency) {
        let cells = summary.allocators.iter().zip(&row.cells);
        let lines: Vec<(&'static str, &Percentiles)> =
            cells.filter_map(|(&name, cell)| Some((name, cell.latency.as_ref()?))).collect();
        if lines.is_empty() {
            continue;
        }
        let about = "A line for each allocator from the median to the longest operation. The table “Latency” has the \
                     numbers.";
        let svg = canvas::svg(SIZE, |area| percentiles::draw(area, &lines))?;
        figures.push(Figure::of_workload(row, about, &svg));
    }
    Ok(figures)
}

fn over_time(record: &Record, summary: &Summary) -> Result<Vec<Figure>, String> {
    let mut figures = Vec::new();
    for row in summary.of_kind(Kind::Curve) {
        let lines = curves::lines(record, row.workload);
        if lines.is_empty() {
            continue;
        }
        let about = "A line for each allocator over an area of what is live. The table “Over time” has peaks and ends.";
        let svg = canvas::svg(SIZE, |area| memory::draw(area, None, &lines))?;
        figures.push(Figure::of_workload(row, about, &svg));
    }
    Ok(figures)
}

impl Figure {
    /// Creates the figure of one workload.
    fn of_workload(row: &Row, description: &str, svg: &str) -> Self {
        Self {
            id: row.workload.name.to_owned(),
            title: row.workload.name.to_owned(),
            about: row.workload.about.to_owned(),
            description: description.to_owned(),
            size: SIZE,
            shapes: shapes(svg),
        }
    }
}

/// Returns the content of an SVG's root element. The page has a root of its own, with a title and a
/// description.
fn shapes(svg: &str) -> String {
    let within = svg.split_once('>').and_then(|(_, rest)| rest.rsplit_once("</svg>"));
    within.map_or("", |(shapes, _)| shapes.trim()).to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::compare::runner::{Failure, Outcome};
    use crate::compare::synthetic;
    use crate::workloads;

    fn made(record: &Record, then: Option<&Record>) -> String {
        let summary = Summary::new(record);
        let changes = then.map(|then| Changes::new(record, &summary, then));
        page(record, &summary, changes.as_ref()).unwrap()
    }

    fn all() -> Record {
        let names: Vec<&str> = workloads::ALL.iter().map(|workload| workload.name).collect();
        synthetic::record(&names, 5, |_, round| 1.0 + f64::from(round) / 10.0)
    }

    fn parse(page: &str) -> roxmltree::Document<'_> {
        let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
        roxmltree::Document::parse_with_options(page, options).unwrap()
    }

    /// Returns the text of each element called `tag`.
    fn texts(document: &roxmltree::Document<'_>, tag: &str) -> Vec<String> {
        let elements = document.descendants().filter(|node| node.tag_name().name() == tag);
        let text = |node: roxmltree::Node<'_, '_>| {
            let parts = node.descendants().filter(|it| it.is_text()).filter_map(|it| it.text());
            parts.collect::<String>().trim().to_owned()
        };
        elements.map(text).collect()
    }

    #[test]
    fn page_is_well_formed_and_complete() {
        let page = made(&all(), Some(&all()));
        let document = parse(&page);
        let rows = texts(&document, "th");
        let labels = texts(&document, "text");
        for workload in workloads::ALL {
            assert!(rows.iter().any(|text| text.starts_with(workload.name)), "{}", workload.name);
            let is_bar = workload.kind != Kind::Curve;
            assert!(
                !is_bar || labels.iter().any(|text| text == workload.name),
                "{}",
                workload.name
            );
        }
        let legend = texts(&document, "li");
        for (allocator, _) in synthetic::ALLOCATORS {
            assert!(rows.iter().any(|text| text == allocator), "{allocator}");
            assert!(legend.iter().any(|text| text.starts_with(allocator)), "{allocator}");
        }
        let cells = texts(&document, "td");
        for expected in ["compare --save run.json", "9.8.7"] {
            assert!(cells.iter().any(|text| text == expected), "{expected}");
        }
        assert!(cells.iter().any(|text| text.contains("-O3 -DNDEBUG")));
        for expected in ["Changes since the run of 2025-06-01T12:00:00Z", "Latency"] {
            assert!(texts(&document, "h2").iter().any(|text| text == expected), "{expected}");
        }
    }

    #[test]
    fn page_refers_to_no_other_file() {
        let page = made(&all(), None);
        let document = parse(&page);
        let mut ids = HashSet::new();
        for node in document.descendants() {
            for attribute in node.attributes() {
                let name = attribute.name();
                assert!(!["src", "href", "srcset", "action"].contains(&name), "{attribute:?}");
                assert!(name != "id" || ids.insert(attribute.value()), "{attribute:?}");
            }
        }
        assert!(!page.contains("@import") && !page.contains("url("));
        let pictures: Vec<&str> = document
            .descendants()
            .filter(|node| node.tag_name().name() == "svg")
            .map(|node| node.attribute("aria-labelledby").unwrap())
            .collect();
        // Three kinds of workload by time, five by memory, and one chart for each workload with a
        // chart of its own.
        let own = workloads::ALL.iter().filter(|it| matches!(it.kind, Kind::Latency | Kind::Curve));
        assert_eq!(pictures.len(), 8 + own.count());
        assert!(pictures.iter().flat_map(|named| named.split(' ')).all(|id| ids.contains(id)));
    }

    #[test]
    fn foreign_text_is_escaped() {
        const NASTY: &str = "<script>alert('&\"')</script>";
        let mut record = all();
        record.command = NASTY.to_owned();
        record.machine.cpu = NASTY.to_owned();
        record.allocators[0].version = Some(NASTY.to_owned());
        record.allocators[1].warning = Some(NASTY.to_owned());
        record.samples[0].outcome = Outcome::Failed(Failure::from(NASTY.to_owned()));
        let page = made(&record, None);
        let document = parse(&page);
        assert!(texts(&document, "script").is_empty());
        let cells = texts(&document, "td");
        // Once each, and the failure in the tables of time and of memory.
        assert_eq!(cells.iter().filter(|text| text.contains(NASTY)).count(), 6, "{cells:?}");
    }

    #[test]
    fn page_without_curves_names_the_option() {
        let page = made(&synthetic::record(&["json"], 1, |_, _| 1.0), None);
        assert!(texts(&parse(&page), "td").iter().any(|text| text.contains("--curves")));
        assert!(!texts(&parse(&page), "h2").iter().any(|text| text == "Latency"));
    }

    #[test]
    fn page_works_with_one_allocator() {
        let mut record = all();
        record.allocators.truncate(1);
        parse(&made(&record, None));
    }
}
