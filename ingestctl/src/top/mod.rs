//! `ingestctl top`: the picture of `status`, live.
//!
//! [`view`] is what is shown and how keys change it, [`screen`] draws it into a buffer of any size, and
//! [`terminal`] owns the terminal and gives it back whatever happens.

mod screen;
mod terminal;
mod view;

use crate::exit::{EXIT_CODES, Exit};
use crate::output::OutputArgs;
use crate::picture::Snapshot;
use crate::picture::collect::read;
use crate::remote::{AdminArgs, Remote};
use crate::status::nobody;
use clap::{Args, value_parser};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use sluice_common::clock::SystemClock;
use sluice_common::process::Failure;
use std::io::IsTerminal as _;
use std::time::Duration;
use view::View;

/// Shows a running Sluice live: tenants by rate, backlog, queues, freshness, inserts, sheds.
///
/// Keys: q or Ctrl-C ends it, s changes what tenants are sorted by, p or space holds the picture. While
/// Sluice does not answer the picture says so, and goes on when it is back. Where stdout is no terminal,
/// and with --once, one picture is printed as text.
///
/// Examples:
///
///   ingestctl top
///
///   ingestctl top --once --width 100 --height 30 --seconds 20
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_CODES)]
pub struct TopArgs {
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// Print one picture and end.
    #[arg(long)]
    once: bool,
    /// Columns of that picture.
    #[arg(long, value_name = "W", default_value_t = 80, value_parser = value_parser!(u16).range(40..=500))]
    width: u16,
    /// Lines of that picture.
    #[arg(long, value_name = "H", default_value_t = 24, value_parser = value_parser!(u16).range(12..=200))]
    height: u16,
    /// Watch so long before it is printed.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u16).range(1..=3600))]
    seconds: u16,
}

/// Between two looks.
const REFRESH: Duration = Duration::from_secs(1);

impl TopArgs {
    /// Draws until a key or a signal ends it, or prints one picture.
    ///
    /// # Errors
    /// A terminal that cannot be used, or no Sluice where one picture was asked for.
    pub async fn run(&self) -> Result<Exit, Failure> {
        let remote = self.admin.remote()?;
        let live = !self.once && self.output.is_table() && std::io::stdout().is_terminal();
        if live {
            return terminal::run(remote).await.map(|()| Exit::Good);
        }
        self.print(&remote).await
    }

    async fn print(&self, remote: &Remote) -> Result<Exit, Failure> {
        let mut view = View::new(remote.addresses());
        let mut before = read(remote, &SystemClock).await;
        view.show(Snapshot::of(&before, None));
        if !view.picture().is_some_and(Snapshot::is_reached) {
            return Err(nobody(remote.addresses()));
        }
        for _ in 0..self.seconds {
            tokio::time::sleep(REFRESH).await;
            let now = read(remote, &SystemClock).await;
            view.show(Snapshot::of(&now, Some(&before)));
            before = now;
        }
        let Some(picture) = view.picture() else {
            return Err(nobody(remote.addresses()));
        };
        self.output
            .print(picture, || plain(&view, self.width, self.height))?;
        Ok(if picture.attention.is_empty() {
            Exit::Good
        } else {
            Exit::Attention
        })
    }
}

/// The screen as lines of text.
fn plain(view: &View, width: u16, height: u16) -> String {
    let area = Rect::new(0, 0, width, height);
    let mut buffer = Buffer::empty(area);
    screen::draw(view, area, &mut buffer);
    let mut text = String::new();
    for y in 0..height {
        let line: String = (0..width)
            .filter_map(|x| Some(buffer.cell((x, y))?.symbol()))
            .collect();
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::picture::tests::recorded;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn view() -> View {
        let (before, after) = recorded();
        let mut view = View::new(&["http://127.0.0.1:9464".into()]);
        view.show(Snapshot::of(&before, None));
        view.show(Snapshot::of(&after, Some(&before)));
        view
    }

    #[test]
    fn a_small_screen_shows_every_part() {
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).expect("a terminal");
        let view = view();
        terminal
            .draw(|frame| screen::draw(&view, frame.area(), frame.buffer_mut()))
            .expect("drawn");
        let text = terminal.backend().to_string();
        for part in [
            "ready", "backlog", "sink", "p95", "inserts", "shed", "tenant", "events/s", "q quit",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert_eq!(text.lines().count(), 24);
    }

    #[test]
    fn any_size_is_drawn_without_a_fault() {
        let view = view();
        for (width, height) in [(1, 1), (10, 3), (40, 12), (79, 23), (200, 60)] {
            assert_eq!(plain(&view, width, height).lines().count(), usize::from(height));
        }
    }

    #[test]
    fn a_sluice_that_went_away_is_told_and_its_return_is_shown() {
        let mut view = view();
        let gone =
            crate::picture::collect::service("http://127.0.0.1:9464", Err("connection refused".into()), 0);
        let reading = crate::picture::Reading {
            at_ms: 5,
            services: vec![gone],
        };
        view.show(Snapshot::of(&reading, None));
        let text = plain(&view, 80, 24);
        assert!(
            text.contains("not reachable") && text.contains("connection refused"),
            "{text}"
        );
        let (before, after) = recorded();
        view.show(Snapshot::of(&after, Some(&before)));
        assert!(!plain(&view, 80, 24).contains("not reachable"));
    }
}
