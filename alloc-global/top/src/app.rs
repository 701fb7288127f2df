//! The state of the screen, and the effect of keys on it.

use std::time::Duration;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::history::History;
use crate::options::{self, Options};
use crate::process::Process;
use crate::table::{Entry, Sort, Value, View};

/// The meaning of the next keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// Commands.
    Table,
    /// Scrolling of the help. Any other key leaves the help, and a command is then executed.
    Help,
    /// The letter of the column to sort by.
    Sort,
    /// The text of a new delay.
    Delay(String),
    /// A text that the names shown must contain.
    Filter,
}

/// What the loop does after a key, besides drawing again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Action {
    Nothing,
    /// Read the process's statistics now.
    Look,
    Quit,
}

/// Everything that the screen shows.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) process: Process,
    /// Age of the process at the last look.
    pub(crate) age: Option<Duration>,
    pub(crate) view: View,
    /// Sort order of each view.
    sorts: [Sort; View::ALL.len()],
    /// Lines scrolled past, above the first line shown.
    pub(crate) scroll: usize,
    /// Lines of the help scrolled past, above the first line shown.
    pub(crate) help_scroll: usize,
    /// Text that the names shown contain.
    pub(crate) filter: String,
    pub(crate) delay: Duration,
    pub(crate) is_paused: bool,
    pub(crate) mode: Mode,
    /// Message about an error, in one line, until the next success.
    pub(crate) notice: Option<String>,
    /// Whether the process has ended. The screen then keeps showing its last snapshot.
    pub(crate) has_ended: bool,
    /// Lines that fitted on the screen when it was last drawn.
    pub(crate) room: usize,
}

impl App {
    pub(crate) fn new(process: Process, options: &Options) -> App {
        let mut sorts = View::ALL.map(Sort::of);
        sorts[options.view as usize] = options.order();
        App {
            age: process.age(),
            process,
            view: options.view,
            sorts,
            scroll: 0,
            help_scroll: 0,
            filter: String::new(),
            delay: options.delay,
            is_paused: false,
            mode: Mode::Table,
            notice: None,
            has_ended: false,
            room: 1,
        }
    }

    /// Returns the sort order of the current view.
    pub(crate) fn sort(&self) -> Sort {
        self.sorts[self.view as usize]
    }

    /// Returns the lines of the view that pass the filter, in order.
    pub(crate) fn entries(&self, history: &History) -> Vec<Entry> {
        let wanted = self.filter.to_lowercase();
        let mut entries = self.view.entries(history, self.sort());
        entries.retain(|entry| match &entry.values[0] {
            Value::Text(name) => name.to_lowercase().contains(&wanted),
            _ => true,
        });
        entries
    }

    /// Handles a key and returns what remains to do.
    pub(crate) fn press(&mut self, key: KeyEvent) -> Action {
        if key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL) {
            return Action::Quit;
        }
        match &mut self.mode {
            Mode::Table => return self.command(key.code),
            Mode::Help => {
                if let Some(scroll) = scrolled(key.code, self.help_scroll, self.room) {
                    self.help_scroll = scroll;
                    return Action::Nothing;
                }
                self.mode = Mode::Table;
                if !matches!(
                    key.code,
                    KeyCode::Char('h' | '?' | 'q') | KeyCode::F(1) | KeyCode::Esc
                ) {
                    return self.command(key.code);
                }
            }
            Mode::Sort => {
                if let KeyCode::Char(letter) = key.code
                    && let Some(sort) = Sort::by_letter(self.view, letter)
                {
                    self.sorts[self.view as usize] = sort;
                }
                self.mode = Mode::Table;
            }
            Mode::Delay(text) => match key.code {
                KeyCode::Char(letter) => text.push(letter),
                KeyCode::Backspace => drop(text.pop()),
                KeyCode::Enter => {
                    match options::seconds(text) {
                        Ok(delay) if !delay.is_zero() => self.delay = delay,
                        _ => self.notice = Some(format!("{text:?} is no delay")),
                    }
                    self.mode = Mode::Table;
                }
                KeyCode::Esc => self.mode = Mode::Table,
                _ => {}
            },
            Mode::Filter => {
                self.scroll = 0;
                match key.code {
                    KeyCode::Char(letter) => self.filter.push(letter),
                    KeyCode::Backspace => drop(self.filter.pop()),
                    KeyCode::Enter => self.mode = Mode::Table,
                    KeyCode::Esc => {
                        self.filter.clear();
                        self.mode = Mode::Table;
                    }
                    _ => {}
                }
            }
        }
        Action::Nothing
    }

    fn command(&mut self, key: KeyCode) -> Action {
        match key {
            KeyCode::Char('q') => return Action::Quit,
            KeyCode::Char(' ') | KeyCode::Enter => return Action::Look,
            KeyCode::Char('h' | '?') | KeyCode::F(1) => {
                self.help_scroll = 0;
                self.mode = Mode::Help;
            }
            KeyCode::Char('p') => self.is_paused = !self.is_paused,
            KeyCode::Char('s') => self.mode = Mode::Sort,
            KeyCode::Char('d') => self.mode = Mode::Delay(String::new()),
            KeyCode::Char('/') => self.mode = Mode::Filter,
            KeyCode::Char('R') => {
                let sort = &mut self.sorts[self.view as usize];
                sort.is_reversed = !sort.is_reversed;
            }
            KeyCode::Char('<') | KeyCode::Left => self.sort_beside(-1),
            KeyCode::Char('>') | KeyCode::Right => self.sort_beside(1),
            KeyCode::Tab => self.turn(1),
            KeyCode::BackTab => self.turn(-1),
            KeyCode::Char(digit @ '1'..='9') => {
                let at = digit as usize - '1' as usize;
                if let Some(view) = View::ALL.get(at) {
                    self.view = *view;
                    self.scroll = 0;
                }
            }
            KeyCode::Esc => self.filter.clear(),
            key => self.scroll = scrolled(key, self.scroll, self.room).unwrap_or(self.scroll),
        }
        Action::Nothing
    }

    /// Sorts by the column `step` places further.
    fn sort_beside(&mut self, step: isize) {
        let columns = self.view.columns().count();
        let sort = &mut self.sorts[self.view as usize];
        *sort = Sort { column: beside(sort.column, step, columns), ..*sort };
    }

    fn turn(&mut self, step: isize) {
        self.view = View::ALL[beside(self.view as usize, step, View::ALL.len())];
        self.scroll = 0;
    }

    /// Limits scrolling, so that the last line stays at the bottom of `room` lines or above.
    pub(crate) fn fit(&mut self, lines: usize, room: usize) {
        self.room = room.max(1);
        self.scroll = self.scroll.min(lines.saturating_sub(self.room));
    }
}

/// Returns the position that a key scrolls to, or `None` if the key does not scroll.
fn scrolled(key: KeyCode, from: usize, room: usize) -> Option<usize> {
    Some(match key {
        KeyCode::Up | KeyCode::Char('k') => from.saturating_sub(1),
        KeyCode::Down | KeyCode::Char('j') => from.saturating_add(1),
        KeyCode::PageUp => from.saturating_sub(room),
        KeyCode::PageDown => from.saturating_add(room),
        KeyCode::Home => 0,
        KeyCode::End => usize::MAX,
        _ => return None,
    })
}

/// Returns the place `step` further among `places`, wrapping around at both ends.
fn beside(place: usize, step: isize, places: usize) -> usize {
    place.wrapping_add_signed(step).wrapping_add(places) % places
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::history::tests::{cache, history, snapshot};
    use clap::Parser as _;

    pub(crate) fn app() -> App {
        App::new(Process::of(std::process::id()), &Options::parse_from(["hayloft-top"]))
    }

    pub(crate) fn press(app: &mut App, keys: &str) -> Action {
        let press = |letter| match letter {
            '\n' => KeyCode::Enter,
            '\t' => KeyCode::Tab,
            '\x1b' => KeyCode::Esc,
            '\x08' => KeyCode::Backspace,
            letter => KeyCode::Char(letter),
        };
        let mut last = Action::Nothing;
        for letter in keys.chars() {
            last = app.press(KeyEvent::from(press(letter)));
        }
        last
    }

    fn order(app: &App) -> &'static str {
        app.view.columns().nth(app.sort().column).unwrap().name
    }

    #[test]
    fn keys_choose_the_sort_column() {
        let mut app = app();
        assert_eq!(order(&app), "memory");
        press(&mut app, "<");
        assert_eq!(order(&app), "partial");
        press(&mut app, ">>");
        assert_eq!(order(&app), "growth");
        press(&mut app, "sr");
        assert_eq!((order(&app), app.sort().is_reversed), ("refills", false));
        press(&mut app, "R");
        assert!(app.sort().is_reversed);
        press(&mut app, "s?");
        assert_eq!(
            (order(&app), &app.mode),
            ("refills", &Mode::Table),
            "an unknown letter keeps the column"
        );
        press(&mut app, "sn<");
        assert_eq!(order(&app), "new_slabs", "the columns wrap around");
        press(&mut app, "\t");
        assert_eq!(
            (app.view, order(&app)),
            (View::Cpus, "cpu"),
            "each view has its own sort column"
        );
        press(&mut app, "1");
        assert_eq!((app.view, order(&app)), (View::Caches, "new_slabs"));
    }

    #[test]
    fn filter_selects_entries_by_name() {
        let history =
            history([snapshot(1, &[cache("kmalloc-64", 1, 0, 0), cache("Packets", 2, 0, 0)])]);
        let names = |app: &App| {
            let entries = app.entries(&history);
            entries.iter().map(|entry| entry.values[0].short()).collect::<Vec<_>>()
        };
        let mut app = app();
        assert_eq!(names(&app), ["Packets", "kmalloc-64"]);
        press(&mut app, "/paq\x08");
        assert_eq!(names(&app), ["Packets"]);
        assert_eq!(app.mode, Mode::Filter);
        press(&mut app, "\n2");
        assert_eq!(
            (app.entries(&history).len(), app.filter.as_str()),
            (1, "pa"),
            "the filter does not apply to CPUs"
        );
        press(&mut app, "1\x1b");
        assert_eq!(names(&app).len(), 2);
    }

    #[test]
    fn keys_change_delay_pause_and_help() {
        let mut app = app();
        press(&mut app, "d2.55\x08\n");
        assert_eq!((app.delay, &app.notice), (Duration::from_millis(2500), &None));
        press(&mut app, "d0\n");
        assert_eq!(app.notice.as_deref(), Some("\"0\" is no delay"));
        press(&mut app, "d7\x1b");
        assert_eq!(app.delay, Duration::from_millis(2500));
        press(&mut app, "p");
        assert!(app.is_paused);
        assert_eq!(press(&mut app, " "), Action::Look);
        press(&mut app, "h");
        assert_eq!(app.mode, Mode::Help);
        assert_eq!(press(&mut app, "j"), Action::Nothing);
        assert_eq!((&app.mode, app.help_scroll), (&Mode::Help, 1));
        assert_eq!(press(&mut app, "q"), Action::Nothing, "q in the help quits the program");
        press(&mut app, "h");
        press(&mut app, "2");
        assert_eq!(
            (&app.mode, app.view),
            (&Mode::Table, View::Cpus),
            "a command does not leave the help"
        );
        assert_eq!(press(&mut app, "q"), Action::Quit);
        press(&mut app, "/");
        let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(app.press(control_c), Action::Quit);
    }

    #[test]
    fn scrolling_stops_at_the_ends() {
        let mut app = app();
        app.fit(10, 4);
        let mut go = |code| {
            app.press(KeyEvent::from(code));
            app.fit(10, 4);
            app.scroll
        };
        assert_eq!(go(KeyCode::Up), 0);
        assert_eq!(go(KeyCode::PageDown), 4);
        assert_eq!(go(KeyCode::PageDown), 6);
        assert_eq!(go(KeyCode::Down), 6);
        assert_eq!(go(KeyCode::PageUp), 2);
        assert_eq!(go(KeyCode::End), 6);
        assert_eq!(go(KeyCode::Home), 0);
        app.fit(0, 0);
        assert_eq!(app.scroll, 0);
    }
}
