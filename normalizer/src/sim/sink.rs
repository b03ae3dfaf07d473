//! A model of the sink-writer, behind the real seam: it splits a call into sub-batches, and works each to a
//! verdict as the real one does, at the modelled servers.

use super::clickhouse::{Answer, Insert, Row, Slot};
use super::time::sleep;
use super::world::{Switch, World};
use crate::progress::Proof;
use sluice_common::books::{DEAD_LETTERS, LEDGER};
use sluice_common::classify::{Class, classify};
use sluice_common::fates::Fate;
use sluice_common::ids::{Name, source_o};
use sluice_common::record::Holds;
use sluice_common::servers::{ServerId, ServerSeen, ServersSeen};
use sluice_common::wire::sink::{
    Horizon, HorizonTold, Piece, SinkCall, SinkReply, SinkRequest, SubKey, SubReport, SubTask, Verdict,
};
use sluice_common::wire::transport::Seam;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tower::util::BoxCloneSyncService;

type Subs = BTreeMap<SubKey, Vec<Row>>;

/// The sink-writer as one process's pump reaches it.
pub fn seam(world: &Arc<World>) -> Seam<SinkRequest> {
    let world = Arc::clone(world);
    BoxCloneSyncService::new(tower::service_fn(move |request| {
        let world = Arc::clone(&world);
        async move { Ok::<_, Infallible>(answer(&world, request).await) }
    }))
}

async fn answer(world: &Arc<World>, request: SinkRequest) -> SinkReply {
    world.alive("a call goes out").await;
    let reply = match request {
        SinkRequest::Write(call) => write(world, call).await,
        SinkRequest::Horizon(asked) => horizon(world, &asked),
        SinkRequest::Servers(_) => SinkReply::Servers(servers(world)),
        SinkRequest::Parts(_) => SinkReply::Parts(Vec::new()),
        SinkRequest::Books(_) | SinkRequest::Letters(_) | SinkRequest::Replay(_) => failed("not here"),
    };
    world.alive("an answer comes").await;
    reply
}

fn failed(reason: &str) -> SinkReply {
    SinkReply::Failed {
        reason: reason.to_owned(),
    }
}

pub fn server_id(place: usize) -> ServerId {
    ServerId {
        name: format!("server{place}:8123"),
        uuid: Some(format!("uuid{place}")),
    }
}

fn servers(world: &World) -> ServersSeen {
    let now = world.now();
    let servers = world.servers();
    let seen = servers.iter().enumerate().map(|(place, server)| ServerSeen {
        id: server_id(place),
        up: server.is_up(now),
        for_ms: millis(now.saturating_sub(server.changed)),
    });
    let seen: Vec<ServerSeen> = seen.collect();
    let chosen = seen.iter().position(|one| one.up).unwrap_or(0);
    ServersSeen {
        servers: seen,
        chosen,
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn horizon(world: &World, asked: &Horizon) -> SinkReply {
    let mut told = HorizonTold::default();
    let now = world.now();
    for (place, server) in world.servers().iter_mut().enumerate() {
        let id = server_id(place);
        if asked.server.as_ref().is_some_and(|one| !one.is(&id)) {
            continue;
        }
        if !server.is_up(now) {
            told.not_asked.push(format!("{id} is down"));
            continue;
        }
        server.catch_up(now, &world.bad);
        told.asked.push(id);
        for table in &asked.tables {
            let highest = server.highest(table).filter(|o| *o >= asked.from_o);
            told.found.extend(highest.map(|o| (table.clone(), o)));
        }
    }
    if told.asked.is_empty() {
        return failed("no server answers");
    }
    SinkReply::Horizon(told)
}

async fn write(world: &Arc<World>, call: SinkCall) -> SinkReply {
    if world.chance(0.03) {
        return SinkReply::Busy { retry_after_ms: 100 };
    }
    let place = (0..world.servers().len())
        .find(|place| call.server.as_ref().is_some_and(|one| one.is(&server_id(*place))));
    let Some(place) = place else {
        return failed("no such server");
    };
    world.check_first(&call);
    let until = world.now() + call.timeout;
    let mut reports = Vec::new();
    for (task, rows) in asked(&call) {
        let _running = world.begins(rows.first().map_or(0, |row| row.slot().0), &task.sub);
        let verdict = settle(world, (&call, place, until), &task, &rows).await;
        world.say(|| {
            format!(
                "{}/{} gen {} of {}..{} at {place}: {verdict:?}",
                task.sub.table,
                piece(&task.sub),
                task.generation,
                call.range.a,
                call.range.b
            )
        });
        let proof = Proof::of(rows.iter().map(|row| row.slot().0));
        reports.push(SubReport {
            sub: task.sub,
            rows: proof.rows,
            sum_o: proof.sum_o,
            sum_o2: proof.sum_o2,
            verdict,
        });
    }
    if world.chance(0.02) {
        return failed("the sink-writer went away");
    }
    SinkReply::Wrote(reports)
}

fn piece(sub: &SubKey) -> String {
    match sub.piece {
        Piece::Whole => sub.part.clone(),
        Piece::Rows { from, to } => format!("{}/{from}-{to}", sub.part),
        Piece::Quarantined => "quarantined".into(),
        Piece::Entry(entry) => entry.label().into(),
    }
}

/// Even keys are of one part of their table, odd ones of another.
pub fn part_of(key: u128) -> &'static str {
    if key.is_multiple_of(2) { "0" } else { "1" }
}

/// All sub-batches of what the call holds, whole.
fn split(call: &SinkCall) -> Subs {
    let name = |text: &str| Name::new(text).unwrap();
    let mut subs = Subs::new();
    let mut add = |sub: SubKey, row: Row| subs.entry(sub).or_default().push(row);
    let letters = |piece| SubKey {
        piece,
        ..SubKey::whole(name(DEAD_LETTERS), "all")
    };
    let refused: BTreeSet<u64> = call.quarantined.iter().flat_map(|one| one.rows.clone()).collect();
    for one in &call.records {
        let (record, offset) = (&one.record, one.record.place.offset);
        for (row, key) in (0..record.rows()).zip(record.keys()) {
            let o = source_o(offset, row);
            if refused.contains(&o) {
                add(letters(Piece::Quarantined), Row::Letter { o, refused: true });
            }
            match one.fates.of(u16::try_from(row).unwrap()) {
                Fate::Keep if record.meta.holds == Holds::Events => {
                    let sub = SubKey::whole(record.meta.table.clone(), part_of(key));
                    add(sub, Row::Event { o, key });
                }
                Fate::Keep | Fate::Conflict => add(letters(Piece::Whole), Row::Letter { o, refused: false }),
                Fate::Drop => {}
            }
        }
    }
    for row in &call.ledger {
        let sub = SubKey {
            piece: Piece::Entry(row.entry),
            ..SubKey::whole(name(LEDGER), "all")
        };
        add(sub, Row::Books(row.clone()));
    }
    subs
}

/// The sub-batches that are asked for.
fn asked(call: &SinkCall) -> Vec<(SubTask, Vec<Row>)> {
    let subs = split(call);
    let Some(tasks) = &call.tasks else {
        let task = |(sub, rows)| (SubTask { sub, generation: 0 }, rows);
        return subs.into_iter().map(task).collect();
    };
    let of_task = |task: &SubTask| {
        let whole = SubKey {
            piece: Piece::Whole,
            ..task.sub.clone()
        };
        let rows = match task.sub.piece {
            Piece::Rows { from, to } => subs.get(&whole)?.get(from as usize..to as usize)?.to_vec(),
            Piece::Whole | Piece::Quarantined | Piece::Entry(_) => subs.get(&task.sub)?.clone(),
        };
        Some((task.clone(), rows))
    };
    tasks.iter().filter_map(of_task).collect()
}

fn unknown(reason: &str) -> Verdict {
    Verdict::Unknown {
        reason: reason.to_owned(),
    }
}

/// Verify first, if asked; then insert, if asked and none is there; then the insert's answer.
async fn settle(
    world: &Arc<World>,
    (call, place, until): (&SinkCall, usize, Duration),
    task: &SubTask,
    rows: &[Row],
) -> Verdict {
    if !world.server_is_up(place) && !call.steps.verify_first {
        return Verdict::Unsent {
            reason: "the server cannot be reached".into(),
        };
    }
    if call.steps.verify_first {
        let found = verify(world, place, &task.sub, rows);
        if found != Verdict::NoneThere {
            return found;
        }
    }
    if !call.steps.insert {
        return Verdict::NoneThere;
    }
    let insert = insert_of(call, task, rows);
    let sent = send(world, (place, until), task, insert).await;
    let after = |done: bool| call.steps.verify_after && done;
    match sent {
        Ok(Answer::Clean) if !call.steps.verify_after => Verdict::Done,
        Ok(Answer::Clean) => if_none(verify(world, place, &task.sub, rows), Verdict::CleanButNone),
        Ok(Answer::Error(216)) => {
            proven(world, place, task, rows, after(true)).unwrap_or_else(|| unknown("it still runs"))
        }
        Ok(Answer::Error(code)) if !call.steps.verify_after => unknown(&format!("code {code}")),
        Ok(Answer::Error(code)) => {
            let class = if code == 60 { Class::Alarm } else { classify(code) };
            let message = format!("code {code}");
            let refused = Verdict::Refused { code, message, class };
            if_none(verify(world, place, &task.sub, rows), refused)
        }
        Err(_) if world.switch == Switch::BumpOnTimeout && call.steps.verify_after => Verdict::CleanButNone,
        Err(reason) => {
            let in_time = world.now() < until;
            proven(world, place, task, rows, after(in_time)).unwrap_or_else(|| unknown(reason))
        }
    }
}

fn if_none(found: Verdict, then: Verdict) -> Verdict {
    if found == Verdict::NoneThere { then } else { found }
}

fn proven(world: &World, place: usize, task: &SubTask, rows: &[Row], asked: bool) -> Option<Verdict> {
    let found = asked.then(|| verify(world, place, &task.sub, rows))?;
    (found == Verdict::Done).then_some(found)
}

fn insert_of(call: &SinkCall, task: &SubTask, rows: &[Row]) -> Insert {
    let first = rows.first().map_or(0, |row| row.slot().0);
    let path = format!(
        "{}-{}/{}/{}/{}/{first}",
        call.range.a,
        call.range.b,
        task.sub.table,
        task.sub.part,
        piece(&task.sub)
    );
    Insert {
        table: task.sub.table.clone(),
        token: format!("{path}#{}", task.generation),
        query_id: path,
        rows: rows.to_vec(),
    }
}

fn verify(world: &World, place: usize, sub: &SubKey, rows: &[Row]) -> Verdict {
    if world.switch == Switch::VerifySkipped {
        return Verdict::Done;
    }
    let now = world.now();
    let mut servers = world.servers();
    let server = &mut servers[place];
    if !server.is_up(now) || world.chance(0.02) {
        return unknown("it cannot be verified");
    }
    server.catch_up(now, &world.bad);
    let slots: Vec<Slot> = rows.iter().map(Row::slot).collect();
    match server.count(&sub.table, slots.iter()) {
        0 => Verdict::NoneThere,
        found if found == rows.len() as u64 => Verdict::Done,
        found => Verdict::Between { found },
    }
}

/// One insert's way to a server and its answer's way back.
async fn send(
    world: &Arc<World>,
    (place, until): (usize, Duration),
    task: &SubTask,
    insert: Insert,
) -> Result<Answer, &'static str> {
    world.check_generation(task, &insert);
    world.travel().await;
    let (now, fate) = (world.now(), world.fate(&insert.table));
    let wait = {
        let mut servers = world.servers();
        let server = &mut servers[place];
        server.catch_up(now, &world.bad);
        if !server.is_up(now) {
            return Err("the connection broke");
        }
        if server.runs(&insert.query_id) {
            return Ok(Answer::Error(216));
        }
        match fate {
            Luck::Good => return Ok(server.insert(&insert, &world.bad)),
            Luck::Refused(code) => return Ok(Answer::Error(code)),
            Luck::NoAnswer => {
                server.insert(&insert, &world.bad);
                Duration::ZERO
            }
            Luck::Lost => Duration::ZERO,
            Luck::Poisoned { down } => {
                if server.poison(&insert.token) {
                    server.stop(now, now + down);
                }
                Duration::ZERO
            }
            Luck::Held { until: due, works } => {
                server.hold(now + due, insert, works);
                until.saturating_sub(now)
            }
        }
    };
    sleep(wait).await;
    Err("there was no answer")
}

/// What befalls one insert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Luck {
    Good,
    /// It is refused for the table's or the server's sake.
    Refused(u32),
    /// It is carried out, and the answer is lost.
    NoAnswer,
    /// It never arrives.
    Lost,
    /// The server dies between the token's record and the rows.
    Poisoned {
        down: Duration,
    },
    /// It arrives, or ends, when nobody waits for it any more.
    Held {
        until: Duration,
        works: bool,
    },
}
