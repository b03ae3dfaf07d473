//! Starts that find a state which is not of one piece: the partition stops, and sends nothing (R6, R11, R19).

use super::append::{Draft, WINDOW_MS, append};
use super::sink::server_id;
use super::time::Virtual;
use super::world::{SEGMENT_BYTES, open_log_of, parts};
use crate::log::EmbeddedLog;
use crate::progress::{Intent, Marks, Progress, Proof};
use crate::pump::{Pump, PumpError};
use crate::state::State;
use sluice_common::clock::{ManualClock, SharedClock};
use sluice_common::disk::Disk;
use sluice_common::ids::{Name, Offset, source_o};
use sluice_common::servers::{ServerSeen, ServersSeen};
use sluice_common::wire::sink::{HorizonTold, Range, SinkReply, SinkRequest};
use sluice_common::wire::transport::Seam;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tower::util::BoxCloneSyncService;

/// Records of two events each, the same in every test.
fn filled(records: u64) -> (TempDir, SharedClock, State) {
    filled_log_of(64 << 20, records)
}

fn filled_log_of(max_bytes: u64, records: u64) -> (TempDir, SharedClock, State) {
    let root = tempfile::tempdir().unwrap();
    let clock: SharedClock = Arc::new(ManualClock::at(1_700_000_000_000));
    let state = open_log_of(max_bytes, &Disk::default(), root.path(), &clock).unwrap();
    for record in 0..records {
        let key = u128::from(record) * 2;
        let draft = Draft {
            table: 0,
            compares: false,
            rows: vec![(key, 0), (key + 1, 0)],
            rejected: 0,
            body: 1_500,
        };
        append(&state.log, vec![draft.content(WINDOW_MS)]).unwrap();
    }
    (root, clock, state)
}

fn write(state: &mut State, committed: Offset, intent: Option<Intent>) {
    let before = state.store.state().clone();
    let progress = Progress {
        committed,
        intent,
        ..before
    };
    state.store.write(progress).unwrap();
}

/// A ClickHouse that holds these rows past what it is asked for; to be sent to it is a fault.
fn holds(found: Option<(&str, u64)>) -> Seam<SinkRequest> {
    let found: Vec<_> = found
        .map(|(table, o)| (Name::new(table).unwrap(), o))
        .into_iter()
        .collect();
    BoxCloneSyncService::new(tower::service_fn(move |request| {
        let found = found.clone();
        async move { Ok::<_, Infallible>(answer(&request, found)) }
    }))
}

fn answer(request: &SinkRequest, found: Vec<(Name, u64)>) -> SinkReply {
    match request {
        SinkRequest::Horizon(_) => SinkReply::Horizon(HorizonTold {
            found,
            asked: vec![server_id(0)],
            not_asked: Vec::new(),
        }),
        SinkRequest::Servers(_) => SinkReply::Servers(ServersSeen {
            servers: vec![ServerSeen {
                id: server_id(0),
                up: true,
                for_ms: 0,
            }],
            chosen: 0,
        }),
        SinkRequest::Write(call) => panic!("{:?} is sent", call.range),
        SinkRequest::Books(_)
        | SinkRequest::Letters(_)
        | SinkRequest::Parts(_)
        | SinkRequest::Replay(_)
        | SinkRequest::Publish(_) => SinkReply::Failed {
            reason: "not here".into(),
        },
    }
}

/// Why the partition stops. One that does not stop by itself is no answer.
fn stops(state: State, clock: &SharedClock, sink: Seam<SinkRequest>) -> String {
    let pump = Pump::new(parts(state, clock, sink, 0));
    let ended = Virtual::new(|_| {}).run(async {
        tokio::select! {
            biased;
            ended = pump.run() => ended,
            () = super::time::sleep(Duration::from_secs(3_600)) => Ok(()),
        }
    });
    match ended {
        Err(error @ PumpError::Recover(_)) => error.to_string(),
        other => panic!("it does not stop for its state's sake: {other:?}"),
    }
}

#[test]
fn rows_past_the_end_of_what_is_declared_stop_the_partition() {
    let (_root, clock, mut state) = filled(4);
    write(&mut state, 2, None);
    let why = stops(state, &clock, holds(Some(("a", source_o(3, 1)))));
    assert!(why.contains("rows of this log past record 2 (up to 3)"), "{why}");
}

/// Has dedup decide all of the log, and seal what it can of it; up to where it has.
fn seal(state: &mut State) -> Offset {
    let end = *state.log.durable_end().borrow();
    let mut at = 0;
    while at < end {
        for record in state.log.read(at, 64 << 10).unwrap() {
            state.dedup.decide(&record).unwrap();
            at = record.place.offset + 1;
        }
    }
    // One call seals, the next one takes what was sealed.
    for _ in 0..2 {
        state.dedup.committed(end).unwrap();
    }
    state.dedup.applied().expect("a bucket is sealed")
}

fn wait_for_deletion(log: &EmbeddedLog, below: Offset) {
    let until = Instant::now() + Duration::from_secs(20);
    while log.first_offset() < below {
        assert!(Instant::now() < until, "no segment is deleted");
        std::thread::yield_now();
    }
}

/// Segments go one after the other: a start in the middle of that would read what goes next.
fn wait_for_all_deletions(log: &EmbeddedLog, below: Offset) {
    wait_for_deletion(log, below);
    let until = Instant::now() + Duration::from_secs(20);
    while log.stats().disk_bytes > SEGMENT_BYTES {
        assert!(Instant::now() < until, "more than one segment is left");
        std::thread::yield_now();
    }
}

#[test]
fn a_dedup_state_ahead_of_what_is_committed_stops_the_partition() {
    let (_root, clock, mut state) = filled(200);
    let applied = seal(&mut state);
    write(&mut state, applied - 1, None);
    let why = stops(state, &clock, holds(None));
    let expected = format!(
        "the dedup state covers records up to {applied}, but only {} are committed",
        applied - 1
    );
    assert!(why.contains(&expected), "{why}");
}

#[test]
fn a_dedup_state_whose_last_record_is_no_more_in_the_log_stops_the_partition() {
    let (_root, clock, mut state) = filled(200);
    let applied = seal(&mut state);
    let end = *state.log.durable_end().borrow();
    write(&mut state, end, None);
    state.log.set_progress(end, end);
    wait_for_all_deletions(&state.log, applied + 1);
    let why = stops(state, &clock, holds(None));
    let expected = format!("dedup needs the log from record {applied}, and it begins at ");
    assert!(why.contains(&expected), "{why}");
}

/// All is stored, and nothing comes any more: no record is there that lets the bucket grow full or old.
#[test]
fn what_is_stored_is_sealed_and_deleted_before_its_bucket_is_full_or_old_where_it_takes_half_of_the_log() {
    let (_root, clock, mut state) = filled_log_of(256 << 10, 120);
    let end = *state.log.durable_end().borrow();
    assert!(state.log.stats().backlog_bytes > 128 << 10);
    write(&mut state, end, None);
    // As a start tells it.
    state.log.set_progress(end, 0);
    let log = Arc::clone(&state.log);
    let pump = Pump::new(parts(state, &clock, holds(None), 0));
    Virtual::new(|_| {}).run(async {
        tokio::select! {
            biased;
            ended = pump.run() => panic!("it ends: {ended:?}"),
            () = super::time::sleep(Duration::from_secs(10)) => {}
        }
    });
    wait_for_deletion(&log, end - 20);
}

#[test]
fn a_declared_range_that_comes_out_otherwise_stops_the_partition() {
    let (_root, clock, mut state) = filled(4);
    let whole = Proof::of((0..2).flat_map(|offset| [source_o(offset, 0), source_o(offset, 1)]));
    let intent = Intent {
        range: Range { a: 0, b: 2 },
        proof: Proof {
            sum_o: whole.sum_o + 1,
            ..whole
        },
        server: Some(server_id(0)),
        marks: Marks::default(),
    };
    write(&mut state, 0, Some(intent));
    let why = stops(state, &clock, holds(None));
    assert!(why.contains("the declared range 0..2 does not come out"), "{why}");
}

#[test]
fn a_lost_dedup_state_that_a_short_log_cannot_rebuild_stops_the_partition() {
    let (_root, clock, mut state) = filled(40);
    let end = *state.log.durable_end().borrow();
    write(&mut state, end, None);
    // Whatever is stored goes at once; dedup, which has sealed nothing, is said to have.
    state.log.set_progress(end, end);
    wait_for_all_deletions(&state.log, 1);
    let why = stops(state, &clock, holds(None));
    assert!(why.contains("dedup needs the log from record 0"), "{why}");
}
