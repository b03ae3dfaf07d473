//! A model of the sink-writer, behind the real seam: it splits a call into sub-batches, and asks the modelled
//! servers about each. What follows from their answers is the real one's code ([`sluice_common::settle`]).

use super::clickhouse::{Answer, Insert, Row, Slot};
use super::time::sleep;
use super::world::{Switch, World};
use crate::progress::Proof;
use sluice_common::books::{DEAD_LETTERS, LEDGER};
use sluice_common::classify::QUERY_WITH_SAME_ID_IS_RUNNING;
use sluice_common::fates::Fate;
use sluice_common::ids::{Name, source_o};
use sluice_common::record::Holds;
use sluice_common::servers::{ServerId, ServerSeen, ServersSeen};
use sluice_common::settle::{self, Attempt, Evidence, Found, Sent, Sums};
use sluice_common::wire::sink::{
    Horizon, HorizonTold, Piece, SinkCall, SinkReply, SinkRequest, SubKey, SubReport, SubTask, Verdict,
};
use sluice_common::wire::transport::Seam;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
        SinkRequest::Books(_)
        | SinkRequest::Letters(_)
        | SinkRequest::Replay(_)
        | SinkRequest::Publish(_) => failed("not here"),
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

/// One sub-batch's attempt at a modelled server.
struct Modelled<'a> {
    world: &'a Arc<World>,
    place: usize,
    until: Duration,
    task: &'a SubTask,
    rows: &'a [Row],
    insert: Insert,
    got_no_answer: AtomicBool,
}

impl Attempt for Modelled<'_> {
    async fn verify(&self) -> Found {
        verify(self.world, self.place, &self.task.sub, self.rows)
    }

    async fn insert(&self) -> Sent {
        let sent = send(self.world, (self.place, self.until), self.task, &self.insert).await;
        let no_answer = matches!(sent, Sent::Uncertain(_));
        self.got_no_answer.store(no_answer, Ordering::Relaxed);
        sent
    }

    fn is_in_time(&self) -> bool {
        self.world.now() < self.until
    }
}

/// Works one sub-batch to its verdict.
async fn settle(
    world: &Arc<World>,
    (call, place, until): (&SinkCall, usize, Duration),
    task: &SubTask,
    rows: &[Row],
) -> Verdict {
    let attempt = Modelled {
        world,
        place,
        until,
        task,
        rows,
        insert: insert_of(call, task, rows),
        got_no_answer: AtomicBool::new(false),
    };
    let certain = Evidence {
        verifiable: true,
        bump_safe: true,
    };
    let verdict = settle::settle(call.steps, certain, &attempt).await;
    let bumps = world.switch == Switch::BumpOnTimeout && call.steps.verify_after;
    if bumps && attempt.got_no_answer.into_inner() {
        return Verdict::CleanButNone;
    }
    verdict
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

fn verify(world: &World, place: usize, sub: &SubKey, rows: &[Row]) -> Found {
    if world.switch == Switch::VerifySkipped {
        return Found::All;
    }
    let now = world.now();
    let mut servers = world.servers();
    let server = &mut servers[place];
    if !server.is_up(now) || world.chance(0.02) {
        return Found::Unknown("it cannot be verified".into());
    }
    server.catch_up(now, &world.bad);
    let slots: Vec<Slot> = rows.iter().map(Row::slot).collect();
    Found::of(sums(server.count(&sub.table, slots.iter())), sums(slots.iter()))
}

fn sums<'a>(slots: impl Iterator<Item = &'a Slot>) -> Sums {
    let Proof { rows, sum_o, sum_o2 } = Proof::of(slots.map(|slot| slot.0));
    Sums { rows, sum_o, sum_o2 }
}

/// One insert's way to a server and its answer's way back.
async fn send(
    world: &Arc<World>,
    (place, until): (usize, Duration),
    task: &SubTask,
    insert: &Insert,
) -> Sent {
    if !world.server_is_up(place) {
        return Sent::Unreached("no connection".into());
    }
    world.check_generation(task, insert);
    world.travel().await;
    let (now, fate) = (world.now(), world.fate(&insert.table));
    let wait = {
        let mut servers = world.servers();
        let server = &mut servers[place];
        server.catch_up(now, &world.bad);
        if !server.is_up(now) {
            return Sent::Uncertain("the connection broke".into());
        }
        if server.runs(&insert.query_id) {
            return refused(QUERY_WITH_SAME_ID_IS_RUNNING);
        }
        match fate {
            Luck::Good => return answered(server.insert(insert, &world.bad)),
            Luck::Refused(code) => return refused(code),
            Luck::StoredAndRefused(code) => {
                let answer = server.insert(insert, &world.bad);
                return answered(if answer == Answer::Clean {
                    Answer::Error(code)
                } else {
                    answer
                });
            }
            Luck::NoAnswer => {
                server.insert(insert, &world.bad);
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
                server.hold(now + due, insert.clone(), works);
                until.saturating_sub(now)
            }
        }
    };
    sleep(wait).await;
    Sent::Uncertain("there was no answer".into())
}

fn answered(answer: Answer) -> Sent {
    match answer {
        Answer::Clean => Sent::Clean,
        Answer::Error(code) => refused(code),
    }
}

fn refused(code: u32) -> Sent {
    let message = format!("code {code}");
    Sent::Refused { code, message }
}

/// What befalls one insert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Luck {
    Good,
    /// It is refused for the table's or the server's sake.
    Refused(u32),
    /// It is carried out, and answered with an error all the same: a materialized view fails.
    StoredAndRefused(u32),
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
