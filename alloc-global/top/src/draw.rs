//! Draws the screen: the process and its totals at the top, the table below, and a line for keys.
//!
//! It uses a few of the sixteen colours that each terminal defines for itself, and none that is
//! pale on a light or dark background. With `NO_COLOR` it uses none. Letters convey everything that
//! colours do.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Cell, Paragraph, Row, Table, Wrap};

use crate::app::{App, Mode};
use crate::history::History;
use crate::number;
use crate::process::Process;
use crate::summary;
use crate::table::{Column, Entry, Value, View};

/// Capabilities of the terminal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Theme {
    pub(crate) is_coloured: bool,
    /// Whether the terminal shows characters beyond ASCII.
    pub(crate) is_unicode: bool,
}

impl Theme {
    /// Returns the theme that `NO_COLOR` and the locale ask for.
    pub(crate) fn of_environment() -> Theme {
        let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set).unwrap_or_default();
        let encoding = locale.to_lowercase().replace('-', "");
        Theme { is_coloured: set("NO_COLOR").is_none(), is_unicode: encoding.contains("utf8") }
    }

    /// Returns the characters for the full and the empty part of a bar.
    fn bar(self) -> [&'static str; 2] {
        if self.is_unicode { ["█", "░"] } else { ["#", "."] }
    }

    /// Returns the space between words that belong together on a line that may wrap.
    fn space(self) -> char {
        if self.is_unicode { '\u{a0}' } else { ' ' }
    }

    fn colour(self, colour: Color) -> Style {
        if self.is_coloured { Style::new().fg(colour) } else { Style::new() }
    }

    /// Returns the style of values over time.
    fn course(self) -> Style {
        self.colour(Color::Cyan)
    }

    fn value(self, value: &Value) -> Style {
        match value {
            Value::Growth(Some(growth)) if *growth >= 0.5 => self.colour(Color::Red),
            Value::Growth(Some(growth)) if *growth <= -0.5 => self.colour(Color::Green),
            _ => Style::new(),
        }
    }
}

/// Lines for the totals on a screen that has room for all of them: all events, beside the amounts
/// with a limit.
const SUMMARY: u16 = 7;
/// Smallest screen, as width and height, that shows all totals.
const ROOMY: (u16, u16) = (72, 20);

/// Draws the whole screen.
pub(crate) fn draw(frame: &mut Frame<'_>, app: &mut App, history: &History, theme: Theme) {
    let area = frame.area();
    let is_roomy = area.width >= ROOMY.0 && area.height >= ROOMY.1;
    let summary_height = if is_roomy {
        SUMMARY
    } else if area.height >= 8 {
        2
    } else {
        0
    };
    let keys_line = keys(app, theme);
    // Lines wrap between words, which leaves some room unused at their ends.
    let keys_height = if app.mode == Mode::Sort && is_roomy {
        (keys_line.width() as u16).div_ceil(area.width - 10)
    } else {
        1
    };
    let rows = [1, summary_height, 1].map(Constraint::Length);
    let [title, summary, tabs, table, keys] = Layout::vertical(
        rows.into_iter().chain([Constraint::Fill(1), Constraint::Length(keys_height)]),
    )
    .areas(area);
    draw_title(frame, app, title);
    if app.mode == Mode::Help {
        let below = Rect { height: area.height.saturating_sub(2), y: title.bottom(), ..area };
        draw_help(frame, app, below.intersection(area));
    } else {
        if is_roomy {
            draw_summary(frame, history, theme, summary);
        } else {
            draw_short_summary(frame, history, summary);
        }
        let entries = app.entries(history);
        app.fit(entries.len(), usize::from(table.height.saturating_sub(1)));
        draw_tabs(frame, app, entries.len(), tabs);
        draw_table(frame, app, &entries, theme, table);
    }
    frame.render_widget(Paragraph::new(keys_line).wrap(Wrap { trim: true }), keys);
}

/// Returns `left` with `right` at the other end of the line, if both fit.
fn both_ends<'a>(mut left: Line<'a>, right: Line<'a>, width: u16) -> Line<'a> {
    let used = left.width() + right.width();
    if let Some(gap) = usize::from(width).checked_sub(used).filter(|gap| *gap > 0) {
        left.push_span(Span::raw(" ".repeat(gap)));
        left.spans.extend(right.spans);
    }
    left
}

fn draw_title(frame: &mut Frame<'_>, app: &App, area: Rect) {
    let Process { name, number, .. } = &app.process;
    let mut left = Line::from(format!("{name} ({number})").bold());
    if let Some(age) = app.age {
        left.push_span(format!("  up {}", number::clock(age)));
    }
    let pace = if app.has_ended {
        "ended".bold()
    } else if app.is_paused {
        "paused".bold()
    } else {
        format!("every {} s", app.delay.as_secs_f64()).into()
    };
    let right = Line::from(vec!["hayloft-top  ".into(), pace]);
    frame.render_widget(both_ends(left, right, area.width), area);
}

fn draw_summary(frame: &mut Frame<'_>, history: &History, theme: Theme, area: Rect) {
    const NAME: usize = 11;
    let [left, right] =
        Layout::horizontal([Constraint::Fill(1), Constraint::Length(40)]).spacing(2).areas(area);
    let bar = usize::from(left.width).saturating_sub(NAME + 6);
    let amount = |amount: summary::Amount| {
        Line::from(vec![
            format!("{:<NAME$}", amount.name).into(),
            format!("{:>5} ", number::bytes(amount.now)).bold(),
            Span::styled(course(&amount.course, bar, theme), theme.course()),
        ])
    };
    let mut lines: Vec<_> = summary::memory(history).map(amount).into();
    if let Some(part) = summary::part_of_limit(history) {
        let full = (part * bar as f64).round() as usize;
        let style = if part > 0.9 { theme.colour(Color::Red) } else { theme.course() };
        lines.push(Line::from(vec![
            format!("{:<NAME$}", "limit").into(),
            format!("{:>5} ", number::bytes(history.now().stats.limit as u64)).bold(),
            Span::styled(theme.bar()[0].repeat(full), style),
            theme.bar()[1].repeat(bar - full).into(),
        ]));
    }
    frame.render_widget(Text::from(lines), left);
    let event = |(name, text): (&'static str, String)| {
        Line::from(vec![format!("{name:<NAME$}").into(), text.bold()])
    };
    frame.render_widget(Text::from_iter(summary::events(history).map(event)), right);
}

fn draw_short_summary(frame: &mut Frame<'_>, history: &History, area: Rect) {
    let amount = |amount: summary::Amount| {
        [format!("{} ", amount.name).into(), format!("{}  ", number::bytes(amount.now)).bold()]
    };
    let [resident, held, slabs, large, free, _] = summary::memory(history);
    let line = |amounts: [summary::Amount; 2]| {
        Line::from(amounts.into_iter().flat_map(amount).collect::<Vec<Span<'_>>>())
    };
    let mut lines = [line([resident, held]), line([slabs, large])];
    lines[0].extend(amount(free));
    frame.render_widget(Text::from_iter(lines), area);
}

/// Draws the last values over time as bars, as many as fit into `room`. The top of a bar is the
/// largest value or twice the mean, whichever is larger; so bars of almost constant values are half
/// full.
fn course(values: &[u64], room: usize, theme: Theme) -> String {
    const UNICODE: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    const ASCII: [char; 9] = [' ', '.', ':', '-', '=', '+', '*', '%', '#'];
    let bars = if theme.is_unicode { UNICODE } else { ASCII };
    let shown = &values[values.len().saturating_sub(room)..];
    let sum: u128 = shown.iter().map(|value| u128::from(*value)).sum();
    let twice_mean = (2 * sum).div_ceil(shown.len().max(1) as u128);
    let top = shown.iter().map(|value| u128::from(*value)).fold(twice_mean, u128::max).max(1);
    let bar = |value: &u64| bars[(u128::from(*value) * 8).div_ceil(top) as usize];
    shown.iter().map(bar).collect()
}

fn draw_tabs(frame: &mut Frame<'_>, app: &App, lines: usize, area: Rect) {
    let mut left = Line::default();
    for view in View::ALL {
        let title = format!(" {} ", view.title());
        left.push_span(if view == app.view { title.reversed().bold() } else { title.into() });
    }
    if !app.filter.is_empty() && app.view.has_names() {
        left.push_span(format!("  with {:?}", app.filter));
    }
    let sort = app.sort();
    let column = app.view.columns().nth(sort.column).map_or("", |column| column.title);
    let reversed = if sort.is_reversed { ", reversed" } else { "" };
    let last = (app.scroll + app.room).min(lines);
    let right = Line::from(format!("{}-{last} of {lines}, by {column}{reversed}", app.scroll + 1));
    frame.render_widget(both_ends(left, right, area.width), area);
}

/// Pairs of a rank and a width: the history column gets that width before any column of a higher
/// rank is placed.
const COURSE: [(u8, u16); 3] = [(5, 10), (7, 18), (9, 24)];
/// Greatest width of the history column.
const LONGEST_COURSE: u16 = 60;

/// Returns the columns that fit, with their indices and widths, and the width of the history
/// column.
fn fitting(app: &App, name_width: u16, width: u16) -> (Vec<(usize, &'static Column, u16)>, u16) {
    let width_of = |column: &Column| if column.name == "name" { name_width } else { column.width };
    let mut columns: Vec<_> = app.view.columns().enumerate().collect();
    let rank = |(at, column): &(usize, &Column)| match at {
        at if *at == app.sort().column => 0,
        _ => column.rank,
    };
    columns.sort_by_key(rank);
    let (mut left, mut course) = (width, 0);
    let mut shown = Vec::new();
    let mut grow = |left: &mut u16, rank| {
        // The extra character is a space in front of the history.
        let wanted = COURSE.iter().filter(|(least, _)| rank > *least).map(|(_, room)| room + 1);
        let more = wanted.max().unwrap_or(0).saturating_sub(course);
        if more <= *left {
            (*left, course) = (*left - more, course + more);
        }
    };
    for (at, column) in columns {
        grow(&mut left, column.rank);
        let wanted = width_of(column) + u16::from(!shown.is_empty());
        if wanted <= left {
            left -= wanted;
            shown.push((at, column, width_of(column)));
        }
    }
    grow(&mut left, u8::MAX);
    shown.sort_by_key(|(at, ..)| *at);
    (shown, if course > 0 { (course - 1 + left).min(LONGEST_COURSE) } else { 0 })
}

fn draw_table(frame: &mut Frame<'_>, app: &App, entries: &[Entry], theme: Theme, area: Rect) {
    let name_width = |entry: &Entry| match &entry.values[0] {
        Value::Text(name) => name.chars().count() as u16,
        _ => 0,
    };
    if entries.is_empty() && app.filter.is_empty() {
        frame.render_widget(Line::from(app.view.if_empty()), area);
        return;
    }
    // As wide as the longest name, within bounds: at least 13 characters, and at most a part of the
    // screen where that is more.
    let longest = entries.iter().map(name_width).max().unwrap_or(0);
    let name_width = longest.clamp(13, (area.width / app.view.part_of_names()).max(13));
    let (columns, course_room) = fitting(app, name_width, area.width);
    let mut widths: Vec<_> = columns.iter().map(|(.., width)| Constraint::Length(*width)).collect();
    let align = |line: Line<'static>, column: &Column| {
        if column.name == "name" { line } else { line.right_aligned() }
    };
    let mut header: Vec<_> = columns
        .iter()
        .map(|(at, column, _)| {
            let is_order = *at == app.sort().column;
            let title = Span::raw(column.title);
            let title = if is_order { title.bold().underlined() } else { title };
            Cell::from(align(Line::from(title), column))
        })
        .collect();
    if course_room > 0 {
        widths.push(Constraint::Length(course_room));
        header.push(Cell::from("HISTORY"));
    }
    let row = |entry: &Entry| {
        let mut cells: Vec<_> = columns
            .iter()
            .map(|(at, column, _)| {
                let value = &entry.values[*at];
                Cell::from(align(Line::from(value.short()), column)).style(theme.value(value))
            })
            .collect();
        if course_room > 0 {
            let course = course(&entry.course, usize::from(course_room), theme);
            cells.push(Cell::from(Span::styled(course, theme.course())));
        }
        Row::new(cells)
    };
    let shown = entries.iter().skip(app.scroll).take(app.room);
    let table = Table::new(shown.map(row), widths)
        .header(Row::new(header).style(Style::new().add_modifier(Modifier::REVERSED)));
    frame.render_widget(table, area);
}

/// Returns the bottom line: the meaning of the next keys, or an error message.
fn keys(app: &App, theme: Theme) -> Line<'static> {
    let hint = |keys: &[(&'static str, &'static str)]| {
        let spans = keys.iter().flat_map(|(key, what)| [key.bold(), format!(" {what}  ").into()]);
        Line::from(spans.collect::<Vec<_>>())
    };
    match (&app.mode, &app.notice) {
        (Mode::Help, _) => hint(&[("Esc", "back"), ("Up Down", "scroll")]),
        (Mode::Delay(text), _) => Line::from(format!("seconds between looks: {text}_")),
        (Mode::Filter, _) => Line::from(format!("names with: {}_", app.filter)),
        (Mode::Sort, _) => {
            let columns = app.view.columns();
            let letters = columns.flat_map(|column| {
                [
                    column.letter.to_string().bold(),
                    format!("{}{}  ", theme.space(), column.title).into(),
                ]
            });
            Line::from_iter(letters)
        }
        (Mode::Table, Some(notice)) => {
            Line::styled(notice.clone(), theme.colour(Color::Red).bold())
        }
        (Mode::Table, None) => hint(&[
            ("h", "help"),
            ("q", "quit"),
            ("Tab", "view"),
            ("s", "sort"),
            ("R", "reverse"),
            ("/", "filter"),
            ("d", "delay"),
            ("p", "pause"),
        ]),
    }
}

fn draw_help(frame: &mut Frame<'_>, app: &mut App, area: Rect) {
    let view = app.view;
    const KEYS: [(&str, &str); 12] = [
        ("q", "quit"),
        ("Tab digit", "other views"),
        ("s letter", "order by a column"),
        ("< >", "by one beside it"),
        ("R", "the other way round"),
        ("/", "names that contain .."),
        ("Esc", "all names again"),
        ("space", "look now"),
        ("p", "pause, go on"),
        ("d", "time between looks"),
        ("Up Down", "scroll, and by pages:"),
        ("", "PgUp PgDn Home End"),
    ];
    let mut keys: Vec<_> = KEYS
        .iter()
        .map(|(key, what)| Line::from(vec![format!(" {key:<10}").bold(), (*what).into()]))
        .collect();
    let mut columns: Vec<_> = view
        .columns()
        .map(|column| {
            Line::from(vec![
                format!(" {}", column.letter).bold(),
                format!("  {:<9}{}", column.title, column.help).into(),
            ])
        })
        .collect();
    columns.push(Line::from(format!("    {:<9}{}", "HISTORY", view.course())));
    columns.push(Line::default());
    columns.push(Line::from(" held counts pages, touched or not: it may be above resident"));
    let is_wide = area.width >= 84;
    let lines =
        if is_wide { keys.len().max(columns.len()) } else { keys.len() + 1 + columns.len() };
    app.room = usize::from(area.height).max(1);
    app.help_scroll = app.help_scroll.min(lines.saturating_sub(app.room));
    let scroll = (app.help_scroll as u16, 0);
    if is_wide {
        let [left, right] =
            Layout::horizontal([Constraint::Length(34), Constraint::Fill(1)]).areas(area);
        frame.render_widget(Paragraph::new(keys).scroll(scroll), left);
        frame.render_widget(Paragraph::new(columns).scroll(scroll), right);
    } else {
        keys.push(Line::default());
        keys.append(&mut columns);
        frame.render_widget(Paragraph::new(keys).scroll(scroll), area);
    }
}

/// Draws a list of processes to choose from, with the one at index `chosen` marked.
pub(crate) fn draw_choice(frame: &mut Frame<'_>, processes: &[Process], chosen: usize) {
    let [title, list, keys] =
        Layout::vertical([Constraint::Length(1), Constraint::Fill(1), Constraint::Length(1)])
            .areas(frame.area());
    frame.render_widget("Processes that show their statistics".bold(), title);
    // Scrolls so that the marked process is always visible.
    let above = (chosen + 1).saturating_sub(usize::from(list.height));
    let line = |(at, process): (usize, &Process)| {
        let line = Line::from(process.to_string());
        if at == chosen { line.reversed() } else { line }
    };
    let lines = processes.iter().enumerate().skip(above).map(line);
    frame.render_widget(Text::from_iter(lines.take(usize::from(list.height))), list);
    frame.render_widget("Up Down, Enter to choose, q to quit", keys);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::tests::{app, press};
    use crate::history::tests::{cache, history, snapshot};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn sample() -> History {
        let caches = |second: usize| {
            let mut caches = vec![
                cache("kmalloc-64", 10 + second, 9000, 100 * second as u64),
                cache("packets", 20, 19_999, 7 * second as u64),
            ];
            caches.extend((0..30).map(|at| cache(&format!("cache-{at}"), 1, 500, 0)));
            caches
        };
        history((1..6).map(|second| snapshot(second as u64 * 1000, &caches(second))))
    }

    fn screen(app: &mut App, history: &History, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        let theme = Theme { is_coloured: true, is_unicode: true };
        terminal.draw(|frame| draw(frame, app, history, theme)).unwrap();
        let buffer = terminal.backend().buffer();
        let letters: Vec<_> = buffer.content().iter().map(|cell| cell.symbol()).collect();
        letters.chunks(usize::from(width)).map(|line| line.concat()).collect()
    }

    fn line_with<'a>(screen: &'a [String], text: &str) -> &'a str {
        let found = screen.iter().find(|line| line.contains(text));
        found.unwrap_or_else(|| panic!("no {text:?} in\n{}", screen.join("\n")))
    }

    #[test]
    fn screen_of_80_by_24_has_all_parts() {
        let screen = screen(&mut app(), &sample(), 80, 24);
        assert!(screen[0].contains(&format!("({})", std::process::id())), "{}", screen[0]);
        assert!(screen[0].contains("every 1 s"));
        line_with(&screen, "resident   20.0M ▄▄▄");
        line_with(&screen, "misses     107/s, 0/s on to slabs");
        line_with(&screen, "1-13 of 32, by MEMORY");
        let header = line_with(&screen, "IN USE");
        for title in ["CACHE", "SIZE", "USE%", "MEMORY", "GROWTH/s", "MISS/s", "HISTORY"] {
            assert!(header.contains(title), "no {title} in {header}");
        }
        let first = screen.iter().position(|line| line.starts_with("packets")).unwrap();
        assert!(screen[first].contains("19999  100 ") || screen[first].contains("99.9"));
        assert!(screen[first].contains("1.2M        0       0    7.0"), "{}", screen[first]);
        assert!(screen[first + 1].starts_with("kmalloc-64"));
        assert!(screen[first + 1].contains("+64.0K       0    100"), "{}", screen[first + 1]);
        assert!(screen[23].starts_with("h help  q quit"));
    }

    #[test]
    fn small_screen_has_the_main_columns() {
        let screen = screen(&mut app(), &sample(), 40, 10);
        line_with(&screen, "resident 20.0M  held 10.0M");
        let header = line_with(&screen, "MEMORY");
        assert!(header.starts_with("CACHE") && header.contains("GROWTH/s"), "{header}");
        line_with(&screen, "packets");
        line_with(&screen, "kmalloc-64");
        assert!(screen[9].starts_with("h help"));
    }

    #[test]
    fn large_screen_has_all_columns() {
        let screen = screen(&mut app(), &sample(), 200, 50);
        let header = line_with(&screen, "IN USE");
        for column in View::Caches.columns() {
            assert!(header.contains(column.title), "no {} in {header}", column.title);
        }
        line_with(&screen, "cache-29");
    }

    #[test]
    fn sort_column_is_always_shown() {
        let mut app = app();
        press(&mut app, "sl");
        assert!(line_with(&screen(&mut app, &sample(), 40, 10), "CACHE").contains("SLAB/s"));
    }

    #[test]
    fn every_size_can_be_drawn() {
        let history = sample();
        for view in ["1", "2", "3", "4", "5", "h", "s", "d", "/"] {
            let mut app = app();
            press(&mut app, view);
            for width in [1, 2, 3, 5, 8, 13, 21, 34, 55, 300] {
                for height in [1, 2, 3, 4, 7, 8, 20, 60] {
                    screen(&mut app, &history, width, height);
                }
            }
            app.notice = Some("x".repeat(100));
            screen(&mut app, &history, 20, 5);
        }
    }

    #[test]
    fn every_view_and_mode_can_be_drawn() {
        let history = sample();
        let mut app = app();
        press(&mut app, "2");
        let cpus = screen(&mut app, &history, 100, 24);
        assert!(line_with(&cpus, "THREAD").contains("HISTORY"));
        press(&mut app, "3");
        line_with(&screen(&mut app, &history, 100, 24), "NODE");
        press(&mut app, "4");
        let sites = screen(&mut app, &history, 100, 24);
        line_with(&sites, "no samples: start the process with HAYLOFT_PROFILE too");
        let mut last = snapshot(9000, &[cache("a", 1, 0, 0)]);
        let mut site = hayloft::stats::SiteStats::default();
        (site.number, site.live_bytes, site.live_error) = (9, 3 << 20, 3 << 18);
        (site.alloc_rate, site.frames[0]) = (5 << 20, 0x1001);
        last.sites = vec![site];
        let sites = screen(&mut app, &crate::history::tests::history([last]), 100, 24);
        line_with(&sites, "1-1 of 1, by MEMORY");
        let line = line_with(&sites, "0x1000");
        let shows = |text| line.split_whitespace().any(|word| word == text);
        assert!(["3.0M", "25", "5.0M"].into_iter().all(shows), "{line}");
        press(&mut app, "5");
        let tags = screen(&mut app, &history, 100, 24);
        line_with(&tags, "no samples: start the process with HAYLOFT_PROFILE too");
        let mut last = snapshot(9000, &[cache("a", 1, 0, 0)]);
        let mut tag = hayloft::stats::TagStats::default();
        (tag.live_bytes, tag.live_error, tag.live) = (3 << 20, 3 << 18, 7);
        last.tags = vec![tag];
        let tags = screen(&mut app, &crate::history::tests::history([last]), 100, 24);
        let line = line_with(&tags, "(none)");
        let shows = |text| line.split_whitespace().any(|word| word == text);
        assert!(["3.0M", "25", "7"].into_iter().all(shows), "{line}");
        press(&mut app, "1/PACK\n");
        let filtered = screen(&mut app, &history, 100, 24);
        line_with(&filtered, "with \"PACK\"");
        assert!(!filtered.iter().any(|line| line.contains("kmalloc")));
        press(&mut app, "s");
        line_with(&screen(&mut app, &history, 100, 24), "m\u{a0}MEMORY  g\u{a0}GROWTH/s");
        press(&mut app, "mh");
        let help = screen(&mut app, &history, 100, 24);
        line_with(&help, "order by a column");
        line_with(&help, "allocations that found a sheaf empty");
        line_with(&help, "it may be above resident");
        press(&mut app, "qp");
        line_with(&screen(&mut app, &history, 100, 24), "paused");
        app.notice = Some("process 7 is gone".into());
        let ended = screen(&mut app, &history, 100, 24);
        assert!(ended[23].starts_with("process 7 is gone"));
    }

    #[test]
    fn theme_without_colours_is_plain_ascii() {
        let mut terminal = Terminal::new(TestBackend::new(120, 30)).unwrap();
        let (mut app, history) = (app(), sample());
        let theme = Theme { is_coloured: false, is_unicode: false };
        terminal.draw(|frame| draw(frame, &mut app, &history, theme)).unwrap();
        let cells = terminal.backend().buffer().content();
        assert!(cells.iter().all(|cell| cell.fg == Color::Reset && cell.bg == Color::Reset));
        assert!(cells.iter().all(|cell| cell.symbol().is_ascii()));
        assert!(cells.iter().any(|cell| cell.symbol() == "="), "no bar for memory");
    }

    #[test]
    fn limit_is_drawn_as_a_bar() {
        let mut last = snapshot(9000, &[cache("a", 1, 0, 0)]);
        last.stats.limit = 20 << 20;
        let screen = screen(&mut app(), &history([last]), 80, 24);
        let line = line_with(&screen, "limit      20.0M");
        let bars = |bar| line.chars().filter(|letter| *letter == bar).count();
        assert!(bars('█').abs_diff(bars('░')) <= 1, "{line}");
    }

    #[test]
    fn help_scrolls_on_a_small_screen() {
        let (mut app, history) = (app(), sample());
        press(&mut app, "h");
        let top = screen(&mut app, &history, 40, 10);
        line_with(&top, "quit");
        assert!(!top.iter().any(|line| line.contains("HISTORY")));
        app.help_scroll = usize::MAX;
        line_with(&screen(&mut app, &history, 40, 10), "HISTORY");
    }

    #[test]
    fn sparklines_are_scaled_to_their_values() {
        let course = |values: &[u64], room| {
            course(values, room, Theme { is_coloured: true, is_unicode: true })
        };
        assert_eq!(course(&[0, 1, 4, 8], 9), " ▁▄█");
        assert_eq!(course(&[9, 0, 7], 2), " █");
        assert_eq!(course(&[5, 5, 5], 9), "▄▄▄");
        assert_eq!(course(&[90, 100, 110], 9), "▄▄▅");
        assert_eq!(course(&[], 5), "");
        assert_eq!(course(&[u64::MAX, 0], 5), "█ ");
    }

    #[test]
    fn chosen_process_is_always_visible() {
        let mut terminal = Terminal::new(TestBackend::new(60, 6)).unwrap();
        let processes: Vec<_> = (1..=9).map(|_| Process::of(std::process::id())).collect();
        for chosen in 0..processes.len() {
            terminal.draw(|frame| draw_choice(frame, &processes, chosen)).unwrap();
            let cells = terminal.backend().buffer().content();
            let marked = cells.iter().filter(|cell| cell.modifier.contains(Modifier::REVERSED));
            assert!(marked.count() > 8, "{chosen}");
        }
    }
}
