//! Drawing the view into a buffer. Every size works: what does not fit is cut off.

use super::view::View;
use crate::picture::text::{bar, bytes, count, duration, maybe};
use crate::picture::{Level, Snapshot, State};
use crate::status::counted;
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Sparkline, Table, Widget};

/// Bars turn yellow and red here.
const HIGH: f64 = 0.5;
const FULL: f64 = 0.8;

/// Draws everything.
pub fn draw(view: &View, area: Rect, buffer: &mut Buffer) {
    let [head, flow, levels, writing, tenants, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(8),
        Constraint::Length(5),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(area);
    keys(view, foot, buffer);
    let Some(picture) = view.picture() else {
        return Paragraph::new(format!("asking {} …", view.addresses())).render(head, buffer);
    };
    header(view, picture, head, buffer);
    if !picture.is_reached() {
        return gone(view, picture, area, buffer);
    }
    flow_line(picture, flow, buffer);
    let [left, right] =
        Layout::horizontal([Constraint::Percentage(60), Constraint::Percentage(40)]).areas(levels);
    level_bars(picture, left, buffer);
    freshness(view, picture, right, buffer);
    written(picture, writing, buffer);
    tenant_table(view, tenants, buffer);
}

fn header(view: &View, picture: &Snapshot, area: Rect, buffer: &mut Buffer) {
    let ready = picture.services.iter().all(|one| one.state == State::Ready);
    let (word, colour) = match (picture.is_reached(), ready) {
        (false, _) => ("not reachable", Color::Red),
        (true, true) => ("ready", Color::Green),
        (true, false) => ("not all ready", Color::Yellow),
    };
    let first = picture.services.iter().find(|one| one.version.is_some());
    let version = first.and_then(|one| one.version.as_deref()).unwrap_or_default();
    let uptime = first
        .and_then(|one| one.uptime_s)
        .map(duration)
        .unwrap_or_default();
    let memory: f64 = picture.services.iter().filter_map(|one| one.memory_bytes).sum();
    let cores: f64 = picture.services.iter().filter_map(|one| one.cpu).sum();
    let line = Line::from(vec![
        Span::styled(
            format!("Sluice {version} "),
            Style::new().add_modifier(Modifier::BOLD),
        ),
        Span::styled(word, Style::new().fg(colour).add_modifier(Modifier::BOLD)),
        Span::raw(format!(
            "  up {uptime}  {}  {cores:.2} cores  {}",
            bytes(memory),
            view.addresses()
        )),
    ]);
    line.render(area, buffer);
}

fn gone(view: &View, picture: &Snapshot, area: Rect, buffer: &mut Buffer) {
    let reasons = picture.services.iter().map(|one| {
        let reason = one.reason.as_deref().unwrap_or_default();
        Line::raw(format!("  {}  {reason}", one.address))
    });
    let mut lines = vec![Line::styled(
        "not reachable; asking again each second",
        Style::new().fg(Color::Red),
    )];
    lines.extend(reasons);
    if view.paused {
        lines.push(Line::raw("held: p goes on"));
    }
    let area = inside(area, 2);
    Paragraph::new(lines).render(area, buffer);
}

/// The part of `area` below its first `lines` lines and above its last.
fn inside(area: Rect, lines: u16) -> Rect {
    let [_, middle, _] = Layout::vertical([
        Constraint::Length(lines),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(area);
    middle
}

fn flow_line(picture: &Snapshot, area: Rect, buffer: &mut Buffer) {
    let flow = &picture.flow;
    let text = format!(
        "taken {}/s  rejected {}/s  stored {}/s  repeats {}/s  answer p95 {}",
        count(flow.accepted),
        count(flow.rejected),
        count(flow.stored),
        count(flow.duplicates),
        maybe(picture.ack.p95_s)
    );
    Line::raw(text).render(area, buffer);
}

fn level_bars(picture: &Snapshot, area: Rect, buffer: &mut Buffer) {
    let block = titled(" backlog and queues ".to_owned());
    let inner = block.inner(area);
    block.render(area, buffer);
    let age = duration(picture.log_age_s);
    let mut lines = vec![level_line("backlog", &picture.log, inner.width, &age)];
    let queues = picture.queues.iter();
    lines.extend(queues.map(|queue| level_line(&queue.name, queue, inner.width, "")));
    lines.push(level_line(
        "dedup",
        &picture.dedup,
        inner.width,
        &count(picture.dedup_keys),
    ));
    Paragraph::new(lines).render(inner, buffer);
}

fn level_line(name: &str, level: &Level, width: u16, more: &str) -> Line<'static> {
    let ratio = level.ratio();
    let colour = if ratio >= FULL {
        Color::Red
    } else if ratio >= HIGH {
        Color::Yellow
    } else {
        Color::Green
    };
    // Name, percentage and bytes around it take 8 + 6 + 24 columns.
    let columns = usize::from(width).saturating_sub(38).max(4);
    let of = format!("{}/{}", bytes(level.bytes), bytes(level.limit_bytes)).replace(' ', "");
    Line::from(vec![
        Span::raw(format!("{name:<8}")),
        Span::styled(bar(ratio, columns), Style::new().fg(colour)),
        Span::raw(format!("{:>4.0} % {of} {more}", ratio * 100.0)),
    ])
}

fn freshness(view: &View, picture: &Snapshot, area: Rect, buffer: &mut Buffer) {
    let block = titled(" queryable after ".to_owned());
    let inner = block.inner(area);
    block.render(area, buffer);
    let [numbers, line, label, taken] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Min(1),
        Constraint::Length(1),
        Constraint::Length(2),
    ])
    .areas(inner);
    let text = format!(
        "p50 {}  p95 {}",
        maybe(picture.freshness.p50_s),
        maybe(picture.freshness.p95_s)
    );
    Line::raw(text).render(numbers, buffer);
    let width = usize::from(inner.width);
    Sparkline::default()
        .data(view.freshness_ms(width))
        .style(Style::new().fg(Color::Cyan))
        .render(line, buffer);
    Line::raw("events taken").render(label, buffer);
    Sparkline::default()
        .data(view.accepted(width))
        .style(Style::new().fg(Color::Blue))
        .render(taken, buffer);
}

fn written(picture: &Snapshot, area: Rect, buffer: &mut Buffer) {
    let block = titled(" writing ".to_owned());
    let inner = block.inner(area);
    block.render(area, buffer);
    let flow = &picture.flow;
    let rows = if flow.inserts > 0.0 {
        flow.inserted_rows / flow.inserts
    } else {
        0.0
    };
    let unsettled = if picture.unsettled {
        "  A RANGE CANNOT BE SETTLED"
    } else {
        ""
    };
    let shed: f64 = picture.shed.iter().map(|one| one.per_s).sum();
    let lines = vec![
        Line::raw(format!(
            "inserts {:.1}/s  {} rows each{unsettled}",
            flow.inserts,
            count(rows)
        )),
        Line::raw(format!("shed {}/s: {}", count(shed), counted(&picture.shed))),
        Line::raw(format!(
            "errors: {}  dead letters: {}  alarms: {}",
            counted(&picture.errors),
            counted(&picture.dead_letters),
            counted(&picture.alarms)
        )),
    ];
    Paragraph::new(lines).render(inner, buffer);
}

fn tenant_table(view: &View, area: Rect, buffer: &mut Buffer) {
    let right = |text: String| Cell::from(Line::from(text).right_aligned());
    let rows = view.tenants().into_iter().map(|one| {
        Row::new([
            Cell::from(one.tenant.clone()),
            right(count(one.events_per_s)),
            right(bytes(one.bytes_per_s)),
            right(count(one.accepted)),
            right(count(one.rejected)),
        ])
    });
    let titles = ["events/s", "bytes/s", "accepted", "rejected"].map(|title| right(title.to_owned()));
    let titles = std::iter::once(Cell::from("tenant")).chain(titles);
    let widths = [
        Constraint::Min(12),
        Constraint::Length(10),
        Constraint::Length(10),
        Constraint::Length(10),
        Constraint::Length(10),
    ];
    let title = format!(" tenants by {} ", view.sort.label());
    let table = Table::new(rows, widths)
        .header(Row::new(titles).style(Style::new().add_modifier(Modifier::BOLD)))
        .block(titled(title));
    Widget::render(table, area, buffer);
}

fn keys(view: &View, area: Rect, buffer: &mut Buffer) {
    let hold = if view.paused { "p go on" } else { "p hold" };
    let held = if view.paused { "  HELD" } else { "" };
    let text = format!("q quit  s sort: {}  {hold}{held}", view.sort.label());
    Line::styled(text, Style::new().add_modifier(Modifier::DIM)).render(area, buffer);
}

fn titled(title: String) -> Block<'static> {
    Block::default().borders(Borders::ALL).title(title)
}
