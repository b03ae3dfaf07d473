//! The terminal: taken, drawn on each second and at each key, and given back at the end, on an error, a
//! signal and a panic alike.

use super::view::View;
use super::{REFRESH, screen};
use crate::picture::collect::read;
use crate::picture::{Reading, Snapshot};
use crate::remote::Remote;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use sluice_common::clock::SystemClock;
use sluice_common::process::Failure;
use sluice_common::shutdown::asked_to_stop;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// How soon the keyboard's thread sees that it is over.
const KEY_POLL: Duration = Duration::from_millis(100);
/// Keys that may wait to be read; more than a person types.
const KEYS: usize = 64;

/// Gives the terminal back when it goes, also by a panic's unwinding. `try_init` has set a panic hook that
/// does it before the message is printed.
struct Restored;

impl Drop for Restored {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Draws until a key or a signal ends it.
///
/// # Errors
/// Where the terminal cannot be used.
pub async fn run(remote: Remote) -> Result<(), Failure> {
    let mut terminal = ratatui::try_init()
        .map_err(|error| Failure::new(format!("the terminal cannot be used: {error}; try --once")))?;
    let restored = Restored;
    let keyboard = Keyboard::start();
    let mut view = View::new(remote.addresses());
    let (send, readings) = channel(1);
    let reader = tokio::spawn(follow(remote, send));
    let outcome = show(&mut terminal, &mut view, keyboard, readings).await;
    reader.abort();
    drop(restored);
    outcome
}

async fn show(
    terminal: &mut DefaultTerminal,
    view: &mut View,
    mut keyboard: Keyboard,
    mut readings: Receiver<Reading>,
) -> Result<(), Failure> {
    let mut before = None;
    let stop = asked_to_stop()?;
    tokio::pin!(stop);
    loop {
        terminal.draw(|frame| screen::draw(view, frame.area(), frame.buffer_mut()))?;
        tokio::select! {
            () = &mut stop => return Ok(()),
            event = keyboard.events.recv() => match event {
                Some(Event::Key(key)) if key.kind != KeyEventKind::Release => {
                    if view.key(key) {
                        return Ok(());
                    }
                }
                // A new size, or a key's release: drawn anew.
                Some(_) => {}
                None => return Err(Failure::new("the keyboard cannot be read any more")),
            },
            reading = readings.recv() => {
                let Some(now) = reading else {
                    return Err(Failure::new("nothing reads the metrics any more"));
                };
                view.show(Snapshot::of(&now, before.as_ref()));
                before = Some(now);
            }
        }
    }
}

/// Reads all listeners each second, without holding up the keys.
async fn follow(remote: Remote, send: Sender<Reading>) {
    let mut ticks = tokio::time::interval(REFRESH);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if send.send(read(&remote, &SystemClock).await).await.is_err() {
            return;
        }
    }
}

/// The thread that waits for keys, which cannot be awaited.
struct Keyboard {
    events: Receiver<Event>,
    over: Arc<AtomicBool>,
}

impl Keyboard {
    fn start() -> Self {
        let (send, events) = channel(KEYS);
        let over = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&over);
        tokio::task::spawn_blocking(move || {
            while !ended.load(Ordering::Acquire) {
                let event = match event::poll(KEY_POLL) {
                    Ok(false) => continue,
                    Ok(true) => event::read(),
                    Err(error) => Err(error),
                };
                let Ok(event) = event else { return };
                if send.blocking_send(event).is_err() {
                    return;
                }
            }
        });
        Self { events, over }
    }
}

impl Drop for Keyboard {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
    }
}
