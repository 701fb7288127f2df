//! The terminal, and the main loop.
//!
//! The terminal is restored however the program ends: by a key, a signal, or a panic (`ratatui` has
//! a hook for that).
//!
//! A thread waits for signals, and the loop checks whether one came. But once the terminal is gone,
//! the loop may be in a read that never returns; then the thread ends the program.

use std::io;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hayloft::report::{AttachError, Reader, Snapshot};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::app::{Action, App};
use crate::draw::{self, Theme};
use crate::history::History;
use crate::process::Process;

/// Longest time until the loop notices a signal.
const PATIENCE: Duration = Duration::from_millis(100);

/// The terminal while it shows the screen instead of lines.
struct Screen {
    terminal: DefaultTerminal,
    /// Set when a signal asked the program to end.
    is_over: Arc<AtomicBool>,
}

impl Drop for Screen {
    fn drop(&mut self) {
        // After a panic the terminal is already restored, and the cursor is below the message.
        if !thread::panicking() {
            ratatui::restore();
        }
    }
}

impl Screen {
    fn new() -> io::Result<Screen> {
        let is_over = Arc::new(AtomicBool::new(false));
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
        let to_be_set = Arc::clone(&is_over);
        thread::spawn(move || {
            if signals.forever().next().is_some() {
                to_be_set.store(true, Ordering::Relaxed);
                thread::sleep(10 * PATIENCE);
                let _ = ratatui::try_restore();
                process::exit(0);
            }
        });
        Ok(Screen { terminal: ratatui::try_init()?, is_over })
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// Returns the next event of the terminal, or `None` if there is none within `within` or
    /// [`PATIENCE`], whichever is shorter.
    fn event(&self, within: Duration) -> io::Result<Option<Event>> {
        Ok(if event::poll(within.min(PATIENCE))? { Some(event::read()?) } else { None })
    }
}

/// Lets the user choose one of several processes. Returns `None` if none is chosen.
pub(crate) fn choose(processes: &[Process]) -> io::Result<Option<u32>> {
    let mut screen = Screen::new()?;
    let mut chosen = 0;
    while !screen.is_over() {
        screen.terminal.draw(|frame| draw::draw_choice(frame, processes, chosen))?;
        let Some(Event::Key(key)) = screen.event(PATIENCE)? else { continue };
        match key.code {
            _ if key.kind != KeyEventKind::Press => {}
            KeyCode::Up | KeyCode::Char('k') => chosen = chosen.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => chosen = (chosen + 1).min(processes.len() - 1),
            KeyCode::Enter => return Ok(Some(processes[chosen].number)),
            KeyCode::Char('q') | KeyCode::Esc => return Ok(None),
            KeyCode::Char('c') if !key.modifiers.is_empty() => return Ok(None),
            _ => {}
        }
    }
    Ok(None)
}

/// Shows a process until a key or a signal ends it, or for `looks` looks.
pub(crate) fn run(
    reader: &mut Reader,
    mut app: App,
    first: Snapshot,
    looks: Option<u64>,
) -> io::Result<()> {
    let mut screen = Screen::new()?;
    let theme = Theme::of_environment();
    let mut history = History::new(first);
    let mut last_look = Instant::now();
    let mut looks_left = looks.unwrap_or(u64::MAX);
    let mut is_stale = true;
    while !screen.is_over() {
        if is_stale {
            screen.terminal.draw(|frame| draw::draw(frame, &mut app, &history, theme))?;
            is_stale = false;
        }
        let rests = app.is_paused || app.has_ended;
        let left = if rests { PATIENCE } else { app.delay.saturating_sub(last_look.elapsed()) };
        let action = match screen.event(left)? {
            Some(Event::Key(key)) if key.kind == KeyEventKind::Press => {
                is_stale = true;
                app.press(key)
            }
            Some(Event::Resize(..)) => {
                is_stale = true;
                Action::Nothing
            }
            _ => Action::Nothing,
        };
        if action == Action::Quit {
            return Ok(());
        }
        let is_due = !rests && last_look.elapsed() >= app.delay;
        if !app.has_ended && (is_due || action == Action::Look) {
            last_look = Instant::now();
            look(reader, &mut app, &mut history);
            is_stale = true;
            looks_left -= 1;
            if looks_left == 0 {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Reads a new snapshot of the process, or notes that the process has ended.
fn look(reader: &mut Reader, app: &mut App, history: &mut History) {
    match reader.read() {
        Ok(snapshot) => {
            history.push(snapshot);
            app.age = app.process.age();
            app.notice = None;
        }
        Err(AttachError::Gone(process)) => {
            app.has_ended = true;
            app.notice = Some(format!("process {process} has ended; this is the last of it"));
        }
        Err(error) => app.notice = Some(error.to_string()),
    }
}
