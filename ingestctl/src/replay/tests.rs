//! The flow of each verb against a normalizer that plays a part.

use super::client::{Act, Replays};
use super::*;
use bytes::Bytes;
use clap::Parser;
use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use parking_lot::Mutex;
use serde_json::{Value, json};
use sluice_common::ids::{Name, TenantId};
use sluice_common::replay::{
    Beside, Decisions, DiffLine, Phase, ReplayPlan, ReplayTold, Span, TableDiff, Touched,
};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

const ID: ReplayId = ReplayId(0x00c0_ffee);

#[derive(Debug, Parser)]
struct CommandLine {
    #[command(flatten)]
    args: ReplayArgs,
}

pub(super) fn verb(args: &[&str]) -> Result<ReplayArgs, String> {
    let line = ["replay"].iter().chain(args);
    let line = CommandLine::try_parse_from(line).map_err(|error| error.to_string())?;
    line.args.checked().map_err(|error| error.to_string())
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

pub(super) fn plan() -> ReplayPlan {
    let tables = [("clicks", 100), ("orders", 900)].map(|(table, events)| (name(table), events));
    let touched = Touched {
        partition: 0,
        first: Some(1200),
        last: Some(1209),
        records: 10,
        events: 1_000,
        bytes: 1_536,
        first_append_ms: Some(1_795_231_800_123),
        last_append_ms: Some(1_795_231_830_000),
        tenants: [(TenantId::new("acme").expect("an id"), 1_000)].into(),
        datasets: tables.clone().into(),
        tables: tables.into(),
    };
    let none = Touched {
        partition: 1,
        ..Touched::default()
    };
    ReplayPlan {
        id: ID,
        shadow_tables: ["clicks", "orders"]
            .map(|live| ID.table(&name(live), Beside::Shadow))
            .into(),
        partitions: vec![touched, none],
        spans: vec![Span {
            partition: 0,
            from: 1200,
            to: 1210,
        }],
        tenant: TenantId::new("acme").ok(),
        dataset: None,
        decisions: Some(Decisions::Provenance),
        events_per_second: 200,
        notes: vec!["`--to` was beyond the end: it is 1210 now.".into()],
    }
}

pub(super) fn told(phase: Phase) -> ReplayTold {
    let mut read = plan().partitions;
    read.truncate(1);
    read[0].events = 610;
    ReplayTold {
        id: ID,
        who: "ann@node-1".into(),
        begun_ms: 1_795_233_600_000,
        changed_ms: 1_795_233_605_000,
        phase,
        reason: None,
        plan: plan(),
        read,
        next: [(0, 1206)].into(),
        written: 590,
        left_out: 10,
        comparing: false,
        diff: None,
        steps: Vec::new(),
    }
}

/// One exchange that is expected, and its answer.
type Turn = (&'static str, u16, Value);

/// A normalizer that answers in turn.
struct Fake {
    address: String,
    turns: Arc<Mutex<VecDeque<Turn>>>,
    bodies: Arc<Mutex<Vec<Value>>>,
}

impl Fake {
    async fn that(turns: Vec<Turn>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let turns = Arc::new(Mutex::new(VecDeque::from(turns)));
        let bodies = Arc::new(Mutex::new(Vec::new()));
        let (script, seen) = (Arc::clone(&turns), Arc::clone(&bodies));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (script, seen) = (Arc::clone(&script), Arc::clone(&seen));
                let answer =
                    service_fn(move |request| played(request, Arc::clone(&script), Arc::clone(&seen)));
                tokio::spawn(async move {
                    let connection = Builder::new(TokioExecutor::new());
                    connection
                        .serve_connection(TokioIo::new(stream), answer)
                        .await
                        .ok();
                });
            }
        });
        Self {
            address,
            turns,
            bodies,
        }
    }

    /// Runs a verb to its end, with stdin as it is; all turns must be taken then.
    async fn run(&self, args: &[&str]) -> Result<Exit, String> {
        let args = [args, &["--admin", &self.address]].concat();
        let outcome = verb(&args).expect("a command line").run().await;
        assert!(
            self.turns.lock().is_empty(),
            "not asked for: {:?}",
            self.turns.lock()
        );
        outcome.map_err(|failure| failure.to_string())
    }

    fn replays(&self) -> Replays {
        let args = verb(&["list", "--admin", &self.address]).expect("a command line");
        match args.verb {
            Some(ReplayVerb::List(args)) => Replays::of(&args.admin).expect("an address"),
            other => panic!("{other:?}"),
        }
    }
}

async fn played(
    request: Request<hyper::body::Incoming>,
    script: Arc<Mutex<VecDeque<Turn>>>,
    seen: Arc<Mutex<Vec<Value>>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let asked = format!("{} {}", request.method(), request.uri().path());
    let body = request.into_body().collect().await.expect("a body").to_bytes();
    seen.lock()
        .push(serde_json::from_slice(&body).unwrap_or_default());
    let turn = script.lock().pop_front();
    let (status, answer) = match turn {
        Some((expected, status, answer)) if expected == asked => (status, answer),
        other => {
            let detail = format!("asked for {asked}, expected was {other:?}");
            (400, json!({"code": "unexpected", "detail": detail}))
        }
    };
    let response = Response::builder().status(status);
    Ok(response
        .body(Full::new(answer.to_string().into()))
        .expect("an answer"))
}

const PLAN: &str = "POST /admin/v1/replay/plan";
const BEGIN: &str = "POST /admin/v1/replay";
const LOOK: &str = "GET /admin/v1/replay/r00c0ffee";
const PAUSE: &str = "POST /admin/v1/replay/r00c0ffee/pause";
const RANGE: [&str; 3] = ["--from=1200", "--to=1210", "--shadow"];

fn refused(code: &str, detail: &str) -> Value {
    json!({"code": code, "detail": detail, "status": 409})
}

#[test]
fn without_shadow_it_says_where_a_replay_writes() {
    let error = verb(&["--from=1", "--to=2"]).expect_err("refused");
    assert!(
        error.contains("beside the live tables") && error.contains("--shadow"),
        "{error}"
    );
    verb(&["list"]).expect("a verb needs no range");
}

#[test]
fn options_of_a_run_and_verbs_do_not_mix() {
    for bad in [
        &["--from=1", "--to=2", "--shadow", "list"][..],
        &["--admin", "http://a:1", "list"],
        &["list", "--shadow"],
        &["show"],
        &["show", "r1"],
        &["resume", "R00C0FFEE"],
        &["diff", "r00c0ffee", "--yes"],
        &["discard", "r00c0ffee", "--row-wise"],
        &["nonsense"],
        &[],
    ] {
        verb(bad).expect_err("refused");
    }
    for good in [
        &["list", "--output", "json"][..],
        &["show", "r00c0ffee"],
        &["pause", "r00c0ffee"],
        &["resume", "r00c0ffee"],
        &["diff", "r00c0ffee"],
        &["promote", "r00c0ffee", "--row-wise", "--yes"],
        &["discard", "r00c0ffee", "--yes", "--admin", "http://a:1"],
    ] {
        verb(good).expect("a command line");
    }
}

#[tokio::test]
async fn a_dry_run_asks_for_the_plan_and_nothing_else() {
    let later = json!({"code": "replay_planning", "detail": "ask again", "status": 503});
    let fake = Fake::that(vec![(PLAN, 503, later), (PLAN, 200, json!(plan()))]).await;
    let args = [
        "--dry-run",
        "--output",
        "json",
        "--tenant",
        "acme",
        "--dataset",
        "orders",
    ];
    assert_eq!(fake.run(&[&RANGE[..], &args].concat()).await, Ok(Exit::Good));
    let expected = json!({
        "from": {"offset": 1200}, "to": {"offset": 1210}, "since_ms": null, "until_ms": null,
        "partition": null, "tenant": "acme", "dataset": "orders",
    });
    assert_eq!(
        *fake.bodies.lock(),
        [expected.clone(), expected],
        "asked again, the same"
    );
}

#[tokio::test]
async fn what_nobody_can_decide_is_planned_and_never_run() {
    let mut undecided = plan();
    undecided.decisions = None;
    for (args, expected) in [(&["--dry-run"][..], Ok(Exit::Good)), (&["--yes"], Err(()))] {
        let fake = Fake::that(vec![(PLAN, 200, json!(undecided))]).await;
        let outcome = fake.run(&[&RANGE[..], args].concat()).await;
        assert_eq!(outcome.map_err(|_| ()), expected, "{args:?}");
    }
}

#[tokio::test]
async fn a_run_is_the_plan_that_was_shown_and_is_followed_to_its_end() {
    let fake = Fake::that(vec![
        (PLAN, 200, json!(plan())),
        (BEGIN, 200, json!(told(Phase::Running))),
        (LOOK, 200, json!(told(Phase::Running))),
        (LOOK, 503, refused("starting", "the normalizer starts")),
        (LOOK, 200, json!(told(Phase::Done))),
    ])
    .await;
    let args = ["--yes", "--events-per-second", "500"];
    assert_eq!(fake.run(&[&RANGE[..], &args].concat()).await, Ok(Exit::Good));
    let order = fake.bodies.lock()[1].clone();
    assert_eq!(
        (&order["plan"], &order["events_per_second"]),
        (&json!("r00c0ffee"), &json!(500))
    );
    assert!(order["who"].as_str().expect("a name").contains('@'), "{order}");
}

#[tokio::test]
async fn how_a_run_ends_is_its_exit_code() {
    for (phase, exit) in [
        (Phase::Done, Exit::Good),
        (Phase::Paused, Exit::Attention),
        (Phase::Failed, Exit::Failed),
    ] {
        let resume = "POST /admin/v1/replay/r00c0ffee/resume";
        let turns = vec![
            (resume, 200, json!(told(Phase::Running))),
            (LOOK, 200, json!(told(phase))),
        ];
        let fake = Fake::that(turns).await;
        assert_eq!(fake.run(&["resume", "r00c0ffee"]).await, Ok(exit), "{phase:?}");
    }
}

#[tokio::test]
async fn an_interrupt_pauses_the_replay() {
    let (paused, runs) = (json!(told(Phase::Paused)), json!(told(Phase::Running)));
    let late = refused("replay_wrong_phase", "it is done");
    for (turns, phase) in [
        (vec![(PAUSE, 200, runs), (LOOK, 200, paused)], Phase::Paused),
        (
            vec![(PAUSE, 409, late), (LOOK, 200, json!(told(Phase::Done)))],
            Phase::Done,
        ),
    ] {
        let fake = Fake::that(turns).await;
        let interrupted = std::future::ready(Ok(()));
        let ended = run::to_its_end(&fake.replays(), told(Phase::Running), interrupted).await;
        assert_eq!(ended.expect("an end").phase, phase);
    }
    let fake = Fake::that(vec![(PAUSE, 404, refused("replay_unknown", "there is none"))]).await;
    let interrupted = std::future::ready(Ok(()));
    let ended = run::to_its_end(&fake.replays(), told(Phase::Running), interrupted).await;
    let error = ended.expect_err("not paused").to_string();
    assert!(error.contains("could not be paused: there is none"), "{error}");
}

#[tokio::test]
async fn a_refusal_is_told_in_the_words_of_the_normalizer() {
    let busy = refused("replay_busy", "r00000001 runs: wait for it, or pause it");
    let fake = Fake::that(vec![(PLAN, 200, json!(plan())), (BEGIN, 409, busy)]).await;
    let error = fake
        .run(&[&RANGE[..], &["--yes"]].concat())
        .await
        .expect_err("busy");
    assert_eq!(error, "r00000001 runs: wait for it, or pause it (replay_busy)");
}

#[tokio::test]
async fn a_diff_is_waited_for_and_its_verdict_is_the_exit_code() {
    let diff = "POST /admin/v1/replay/r00c0ffee/diff";
    let mut comparing = told(Phase::Done);
    comparing.comparing = true;
    let mut equal = told(Phase::Done);
    equal.diff = Some(vec![TableDiff::default()]);
    let mut other = equal.clone();
    other.diff = Some(vec![TableDiff {
        lines: vec![DiffLine {
            only_live: 1,
            ..DiffLine::default()
        }],
        ..TableDiff::default()
    }]);
    let mut none = told(Phase::Done);
    none.reason = Some("ClickHouse is away".into());
    let away = "they could not be compared: ClickHouse is away".to_owned();
    for (last, expected) in [
        (equal, Ok(Exit::Good)),
        (other, Ok(Exit::Attention)),
        (none, Err(away)),
    ] {
        let turns = vec![
            (diff, 200, json!(comparing)),
            (LOOK, 200, json!(comparing)),
            (LOOK, 200, json!(last)),
        ];
        let fake = Fake::that(turns).await;
        assert_eq!(fake.run(&["diff", "r00c0ffee"]).await, expected);
    }
}

#[tokio::test]
async fn a_promotion_ends_promoted_or_says_why_not() {
    let promote = "POST /admin/v1/replay/r00c0ffee/promote";
    let mut refused = told(Phase::Done);
    refused.reason = Some("the shadow does not have 3 live rows: --row-wise".into());
    for (last, args, is_done) in [
        (told(Phase::Promoted), &["--row-wise"][..], true),
        (refused, &[], false),
    ] {
        let turns = vec![
            (promote, 200, json!(told(Phase::Promoting))),
            (LOOK, 200, json!(last)),
        ];
        let fake = Fake::that(turns).await;
        let outcome = fake
            .run(&[&["promote", "r00c0ffee", "--yes"], args].concat())
            .await;
        let order = fake.bodies.lock()[0].clone();
        assert_eq!(order["row_wise"], is_done);
        assert!(
            order["who"].as_str().is_some_and(|who| who.contains('@')),
            "{order}"
        );
        match outcome {
            Ok(exit) => assert!(is_done && exit == Exit::Good),
            Err(error) => assert!(!is_done && error.contains("3 live rows: --row-wise"), "{error}"),
        }
    }
}

#[tokio::test]
async fn list_show_pause_and_discard_are_one_question_each() {
    let discard = "POST /admin/v1/replay/r00c0ffee/discard";
    for (turn, answer, args) in [
        (
            "GET /admin/v1/replay",
            json!({"replays": [told(Phase::Done)]}),
            &["list"][..],
        ),
        (LOOK, json!(told(Phase::Done)), &["show", "r00c0ffee"]),
        (PAUSE, json!(told(Phase::Paused)), &["pause", "r00c0ffee"]),
        (
            discard,
            json!(told(Phase::Discarded)),
            &["discard", "r00c0ffee", "--yes"],
        ),
    ] {
        let fake = Fake::that(vec![(turn, 200, answer)]).await;
        assert_eq!(fake.run(args).await, Ok(Exit::Good), "{args:?}");
    }
    let fake = Fake::that(vec![(PAUSE, 200, json!(told(Phase::Paused)))]).await;
    let told = fake.replays().act(ID, Act::Pause).await.expect("told");
    assert_eq!(told, super::tests::told(Phase::Paused));
}

#[tokio::test]
async fn an_answer_of_another_version_is_told_as_one() {
    let fake = Fake::that(vec![(LOOK, 200, json!({"id": "r00c0ffee"}))]).await;
    let error = fake.run(&["show", "r00c0ffee"]).await.expect_err("odd");
    assert!(error.contains("another version"), "{error}");
}
