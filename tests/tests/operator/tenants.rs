//! Tenants that commands keep, end to end: the key that is shown works within the command, and a revoked one
//! does not.

use crate::command::{Outcome, events, run, with_env};
use sluice_tests::{Client, Deployment, Part, Shape, eventually};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// From the command's return to its being in force.
const IN_FORCE: Duration = Duration::from_secs(10);

struct Stand {
    deployment: Deployment,
    admin: String,
}

impl Stand {
    async fn new(shape: Shape) -> Self {
        let deployment = Deployment::start(shape).await;
        // The edge is not the first: routes are asked for until a listener has them.
        let admin = match shape {
            Shape::AllInOne => deployment.admin_url(Part::Up),
            Shape::ThreeProcesses => {
                format!(
                    "{},{}",
                    deployment.admin_url(Part::SinkWriter),
                    deployment.admin_url(Part::Edge)
                )
            }
        };
        Self { deployment, admin }
    }

    fn tenants(&self, args: &[&str]) -> Outcome {
        run(&[&["tenants"], args, &["--admin", &self.admin, "--output", "json"]].concat())
    }

    /// The key that a command shows.
    fn key(&self, args: &[&str]) -> String {
        let outcome = self.tenants(args);
        assert_eq!(outcome.code, 0, "{outcome:?}");
        outcome.json()["api_key"].as_str().expect("a key").to_owned()
    }

    async fn status(&self, key: &str, dataset: &str) -> u16 {
        let client: Client = self.deployment.edge().with_key(key);
        let answer = client
            .post(&format!("/v1/events/{dataset}"), events("t", 1))
            .await;
        answer.expect("an answer").status.as_u16()
    }

    fn file(&self) -> PathBuf {
        self.deployment.data().join("tenants.yaml")
    }
}

async fn a_life_of_keys(shape: Shape) {
    let mut stand = Stand::new(shape).await;
    let first = stand.key(&["add", "acme"]);
    assert!(
        first.starts_with("slc_acme_") && first.len() >= "slc_acme_".len() + 32,
        "{}",
        first.len()
    );
    assert_eq!(
        stand.status(&first, "events").await,
        202,
        "in force when the command returns"
    );
    let mode = std::fs::metadata(stand.file())
        .expect("is there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let second = stand.key(&["rotate", "acme", "--keep-old", "1h"]);
    assert_eq!(
        (
            stand.status(&first, "events").await,
            stand.status(&second, "events").await
        ),
        (202, 202)
    );
    let third = stand.key(&["rotate", "acme"]);
    let known = [
        stand.status(&first, "events").await,
        stand.status(&second, "events").await,
    ];
    assert_eq!((known, stand.status(&third, "events").await), ([401, 401], 202));
    let edge = if shape == Shape::AllInOne {
        Part::Up
    } else {
        Part::Edge
    };
    assert!(stand.deployment.terminate(edge));
    stand.deployment.bring_up(edge).await.expect("ready");
    assert_eq!(stand.status(&third, "events").await, 202, "kept over a restart");
    let since = Instant::now();
    let outcome = stand.tenants(&["revoke", "acme"]);
    assert_eq!(
        (outcome.code, outcome.json()["keys_ended"].as_u64()),
        (0, Some(1)),
        "{outcome:?}"
    );
    assert_eq!(stand.status(&third, "events").await, 401);
    assert!(since.elapsed() < IN_FORCE, "{:?}", since.elapsed());
    no_secret_is_left(&stand, &[&first, &second, &third]).await;
}

/// Neither keys nor their secrets stand in any log, file, metric or listing.
async fn no_secret_is_left(stand: &Stand, keys: &[&str]) {
    let metrics = stand
        .deployment
        .admin(Part::Edge)
        .get("/metrics")
        .await
        .expect("metrics")
        .text();
    let listed = stand.tenants(&["list"]);
    let mut places = vec![
        stand.deployment.last_words(),
        metrics,
        listed.stdout,
        listed.stderr,
    ];
    let files = std::fs::read_dir(stand.deployment.path()).expect("files");
    let files = files.chain(std::fs::read_dir(stand.deployment.data()).expect("files"));
    for path in files
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_file())
    {
        places.push(String::from_utf8_lossy(&std::fs::read(path).expect("read")).into_owned());
    }
    for key in keys {
        let secret = key.rsplit('_').next().expect("a secret");
        assert!(
            places.iter().all(|place| !place.contains(secret)),
            "a key was left somewhere"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_works_when_its_command_returns_and_ends_when_it_is_revoked() {
    a_life_of_keys(Shape::AllInOne).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_holds_for_an_edge_of_its_own() {
    a_life_of_keys(Shape::ThreeProcesses).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_told_and_change_nothing() {
    let stand = Stand::new(Shape::AllInOne).await;
    let key = stand.key(&["add", "acme", "--datasets", "events"]);
    let before = std::fs::read_to_string(stand.file()).expect("a file");
    for (args, said) in [
        (&["add", "acme"][..], "tenants rotate acme"),
        (&["add", "t0"], "config file"),
        (&["add", "other", "--datasets", "nowhere"], "nowhere"),
        (&["rotate", "nobody"], "tenants list"),
        (&["revoke", "acme", "--key", "00000000"], "tenants list"),
        (&["revoke", "t1"], "config file"),
    ] {
        let outcome = stand.tenants(args);
        assert_eq!(outcome.code, 1, "{args:?}: {outcome:?}");
        assert!(
            outcome.stdout.is_empty() && outcome.stderr.contains(said),
            "{args:?}: {outcome:?}"
        );
    }
    assert_eq!(stand.tenants(&["add", "Not An Id"]).code, 64);
    assert_eq!(std::fs::read_to_string(stand.file()).expect("a file"), before);
    let listed = stand.tenants(&["list"]).json();
    let acme = listed
        .as_array()
        .expect("a list")
        .iter()
        .find(|one| one["tenant"] == "acme");
    assert_eq!(acme.expect("listed")["datasets"][0], "events");
    // A file broken by hand: what was in force stays, and the list says so.
    std::fs::write(stand.file(), "- id: [").expect("written");
    let told = eventually("the refusal", IN_FORCE, async || {
        let outcome = stand.tenants(&["list"]);
        (outcome.code == 2).then_some(outcome)
    })
    .await;
    assert!(told.stderr.contains("tenants.yaml"), "{told:?}");
    assert_eq!(stand.status(&key, "events").await, 202);
    // By hand mended: in force without any command.
    std::fs::write(stand.file(), "[]\n").expect("written");
    eventually("the empty list in force", IN_FORCE, async || {
        (stand.status(&key, "events").await == 401).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_sluice_nothing_changes_unless_the_file_itself_is_asked_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().to_str().expect("text");
    let nobody = run(&["tenants", "add", "acme", "--admin", "http://127.0.0.1:1"]);
    assert_eq!(nobody.code, 1, "{nobody:?}");
    assert!(
        nobody.stderr.contains("--offline") && nobody.stderr.contains("Nothing was changed"),
        "{nobody:?}"
    );
    let offline = ["--offline", "--data-dir", data, "--output", "json"];
    let made = run(&[&["tenants", "add", "acme"][..], &offline].concat());
    assert_eq!(
        (made.code, made.json()["in_force"].as_bool()),
        (0, Some(false)),
        "{made:?}"
    );
    let listed = run(&[&["tenants", "list"][..], &offline].concat());
    assert_eq!(listed.json()[0]["tenant"], "acme", "{listed:?}");
    let ended = run(&[&["tenants", "revoke", "acme"][..], &offline].concat());
    assert_eq!(ended.json()["keys_ended"], 1, "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wide_admin_listener_needs_the_token() {
    let token = "canary-admin-token-1234567890";
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("token");
    std::fs::write(&path, format!("{token}\n")).expect("written");
    let mut deployment = Deployment::start_with(Shape::AllInOne, "").await;
    let yaml = std::fs::read_to_string(deployment.config()).expect("a config");
    let port = deployment
        .admin_url(Part::Up)
        .rsplit(':')
        .next()
        .expect("a port")
        .to_owned();
    let wide = yaml.replace(
        &format!("admin: \"127.0.0.1:{port}\""),
        &format!("admin: \"0.0.0.0:{port}\""),
    );
    assert_ne!(wide, yaml);
    let admin = format!("http://127.0.0.1:{port}");
    for (extra, without) in [
        ("", "admin_token"),
        ("admin_token: \"file:admin.token\"\n", "bad_admin_token"),
    ] {
        std::fs::write(deployment.data().join("admin.token"), token).expect("written");
        std::fs::write(deployment.config(), format!("{extra}{wide}")).expect("written");
        assert!(deployment.terminate(Part::Up));
        deployment.bring_up(Part::Up).await.expect("ready");
        assert_eq!(
            run(&["status", "--admin", &admin]).code,
            0,
            "probes and metrics are for all"
        );
        let outcome = run(&["tenants", "list", "--admin", &admin]);
        assert_eq!(outcome.code, 1, "{outcome:?}");
        assert!(outcome.stderr.contains(without), "{outcome:?}");
    }
    let with_file = run(&[
        "tenants",
        "list",
        "--admin",
        &admin,
        "--admin-token-file",
        path.to_str().expect("text"),
    ]);
    assert_eq!(with_file.code, 0, "{with_file:?}");
    let variables = [("SLUICE_ADMIN", admin.as_str()), ("SLUICE_ADMIN_TOKEN", token)];
    assert_eq!(with_env(&["tenants", "list"], &variables).code, 0);
    assert_eq!(
        with_env(
            &["tenants", "list"],
            &[variables[0], ("SLUICE_ADMIN_TOKEN", "wrong")]
        )
        .code,
        1
    );
    assert!(!deployment.last_words().contains(token));
}
