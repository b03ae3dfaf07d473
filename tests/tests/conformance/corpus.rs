//! Bodies made to break a parser: each is answered with less than 500, memory stays flat, and the
//! process lives.

use crate::shared::sluice;
use sluice_tests::client::Answer;
use sluice_tests::{Client, Deployment, Part};
use std::io::Write as _;
use std::path::Path;

const MIB: u64 = 1 << 20;

/// The files of a folder, by name.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .map(|path| {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name, std::fs::read(path).expect("readable"))
        })
        .collect();
    files.sort();
    files
}

async fn send(client: &Client, dataset: &str, name: &str, body: &[u8]) -> Answer {
    let answer = client.post(&format!("/v1/events/{dataset}"), body.to_vec()).await;
    let answer = answer.unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(
        answer.status.as_u16() < 500,
        "{name}: {} {}",
        answer.status,
        answer.text()
    );
    answer
}

fn memory(sluice: &Deployment) -> (u64, u64) {
    sluice.service(Part::Up).expect("it lives").memory()
}

fn clients(sluice: &Deployment) -> (Client, Client) {
    let client = sluice.tenant(2);
    let (json, lines) = ("application/json", "application/x-ndjson");
    (
        client.clone().with("content-type", json),
        client.with("content-type", lines),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn jsontestsuite_is_told_apart_as_its_names_say() {
    let folder = Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../normalizer/corpus/jsontestsuite"
    ));
    let sluice = sluice().await;
    let (json, lines) = clients(&sluice);
    let files = files(folder);
    assert_eq!(files.len(), 318);
    let before = memory(&sluice).0;
    for (name, body) in &files {
        let as_json = send(&json, "loose", name, body).await;
        let as_lines = send(&lines, "loose", name, body).await;
        match name.as_bytes()[0] {
            b'n' => {
                assert_eq!(as_json.status, 400, "{name}: {}", as_json.text());
                expect_broken_lines(name, body, &as_lines);
            }
            b'y' => assert!(
                matches!(as_json.status.as_u16(), 202 | 422) || as_json.json()["code"] == "not_an_object",
                "{name}: {}",
                as_json.text()
            ),
            _ => {}
        }
    }
    let grown = memory(&sluice).0.saturating_sub(before) / MIB;
    println!("{} files: {grown} MiB more resident", files.len());
    assert!(grown < 128, "{grown} MiB");
}

/// As NDJSON a broken line is a rejected row; blank lines are none, and no body at all is 400.
fn expect_broken_lines(name: &str, body: &[u8], answer: &Answer) {
    if body.is_empty() {
        assert_eq!(
            (answer.status.as_u16(), &answer.json()["code"]),
            (400, &"no_body".into()),
            "{name}"
        );
        return;
    }
    assert!(
        matches!(answer.status.as_u16(), 202 | 422),
        "{name}: {}",
        answer.text()
    );
    let body = body.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(body);
    let blank = body.iter().all(|byte| byte.is_ascii_whitespace());
    let rejected = answer.json()["rejected"].as_u64().expect("a count");
    assert_eq!(rejected == 0, blank, "{name}: {}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_own_corpus_ends_over_http_as_its_file_names_say() {
    let sluice = sluice().await;
    let (json, _) = clients(&sluice);
    let files = files(Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../normalizer/corpus/json"
    )));
    assert!(files.len() >= 35, "{}", files.len());
    for (name, body) in files {
        let answer = send(&json, "corpus", &name, &body).await;
        let told = answer.json();
        let (expected, code) = if let Some(code) = name.strip_prefix("body_") {
            (400, Some((code, &told["code"])))
        } else if let Some(code) = name.strip_prefix("row_") {
            (422, Some((code, &told["errors"][0]["code"])))
        } else {
            (202, None)
        };
        assert_eq!(answer.status, expected, "{name}: {told}");
        if let Some((named, code)) = code {
            assert!(
                code.as_str().is_some_and(|code| named.starts_with(code)),
                "{name}: {told}"
            );
        }
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).expect("packed");
    encoder.finish().expect("packed")
}

/// 256 MiB of spaces, a thousandth of that on the wire.
fn spaces() -> Vec<u8> {
    vec![b' '; 256 << 20]
}

struct Hostile {
    name: &'static str,
    encoding: &'static str,
    body: Vec<u8>,
    /// As one JSON value.
    status: u16,
    code: &'static str,
}

fn plain(name: &'static str, body: impl Into<Vec<u8>>, status: u16, code: &'static str) -> Hostile {
    Hostile {
        name,
        encoding: "identity",
        body: body.into(),
        status,
        code,
    }
}

/// `open` and `close` a million times around `middle`.
fn nested(open: &str, middle: &str, close: &str) -> String {
    open.repeat(1_000_000) + middle + &close.repeat(1_000_000)
}

/// An object of so many members.
fn wide(members: u32) -> String {
    let members: String = (0..members).map(|n| format!(",\"k{n}\":1")).collect();
    format!("{{\"id\":\"a\"{members}}}")
}

fn hostile() -> Vec<Hostile> {
    let deep = "{\"a\":".to_owned() + &"[".repeat(100_000) + &"]".repeat(100_000) + "}";
    let number = format!("{{\"n\":{}}}", "9".repeat(1_000_000));
    let mut bodies = vec![
        plain(
            "arrays nested 1e6, open",
            nested("[", "", ""),
            400,
            "malformed_json",
        ),
        plain("arrays nested 1e6", nested("[", "1", "]"), 422, "event_too_large"),
        plain(
            "objects nested 1e6",
            nested("{\"a\":", "1", "}"),
            422,
            "event_too_large",
        ),
        plain("nested 1e5 in one event", deep, 422, "too_deep"),
        plain("1e6 keys", wide(1_000_000), 422, "event_too_large"),
        plain("8e4 keys", wide(80_000), 422, "too_many_members"),
        plain("a number of 1 MB", number, 422, "out_of_range"),
        plain("lone surrogate", *b"{\"id\":\"\\udc00\"}", 400, "malformed_json"),
        plain("raw NUL", *b"{\"id\":\"\0\"}", 400, "malformed_json"),
        plain(
            "duplicate keys",
            *b"{\"id\":\"a\",\"id\":\"b\"}",
            422,
            "duplicate_field",
        ),
        plain("not UTF-8", *b"{\"id\":\"\xc0\xaf\"}", 400, "malformed_json"),
        plain("cut short", *b"[{\"id\":\"a\"},{\"id\":", 400, "malformed_json"),
    ];
    bodies.extend(packed());
    bodies
}

fn packed() -> Vec<Hostile> {
    let whole = gzip(&b"{\"id\":\"a\"}\n".repeat(10_000));
    let zstd_bomb = zstd::encode_all(&spaces()[..], 1).expect("packed");
    let of = |encoding, one: Hostile| Hostile { encoding, ..one };
    vec![
        of("gzip", plain("gzip bomb", gzip(&spaces()), 413, "body_too_large")),
        of("zstd", plain("zstd bomb", zstd_bomb, 413, "body_too_large")),
        of(
            "gzip",
            plain("gzip cut short", &whole[..whole.len() / 2], 400, "malformed_body"),
        ),
        of(
            "gzip",
            plain("no gzip at all", *b"{\"id\":\"a\"}", 400, "malformed_body"),
        ),
    ]
}

/// What a refusal may cost of all threads together, with assertions included.
const MOST_CPU_MS: u64 = 50;
/// The process has other work too, which may fall into a try.
const TRIES: usize = 5;

/// User and system time of a process so far, in ms.
fn cpu_ms(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    // Fields 14 and 15 of proc(5), in ticks of 10 ms.
    fields[11..13]
        .iter()
        .map(|ticks| ticks.parse::<u64>().expect("a number") * 10)
        .sum()
}

/// An answer, and what it took of CPU; tried again where that is too much.
async fn cheapest(pid: i32, ask: impl AsyncFn() -> Answer) -> (Answer, u64) {
    let (mut answer, mut cost) = (None, u64::MAX);
    for _ in 0..TRIES {
        let started = cpu_ms(pid);
        answer = Some(ask().await);
        cost = cost.min(cpu_ms(pid) - started);
        if cost < MOST_CPU_MS {
            break;
        }
    }
    (answer.expect("tried"), cost)
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_bodies_are_refused_at_flat_memory() {
    let sluice = sluice().await;
    let (json, _) = clients(&sluice);
    let bodies = tokio::task::spawn_blocking(hostile).await.expect("made");
    let (before, peak_before) = memory(&sluice);
    let pid = sluice
        .service(Part::Up)
        .expect("it lives")
        .pid()
        .as_raw_nonzero()
        .get();
    for one in &bodies {
        let client = json.clone().with("content-encoding", one.encoding);
        let (answer, cost) = cheapest(pid, async || send(&client, "loose", one.name, &one.body).await).await;
        let told = answer.json();
        let code = if one.status == 422 {
            &told["errors"][0]["code"]
        } else {
            &told["code"]
        };
        assert_eq!(
            (answer.status.as_u16(), code.as_str()),
            (one.status, Some(one.code)),
            "{}: {told}",
            one.name
        );
        println!(
            "{}: {} bytes, about {cost} ms of CPU in the whole process",
            one.name,
            one.body.len()
        );
        assert!(cost < MOST_CPU_MS, "{}: {cost} ms of CPU", one.name);
    }
    for _ in 0..5 {
        for one in &bodies {
            send(
                &json.clone().with("content-encoding", one.encoding),
                "loose",
                one.name,
                &one.body,
            )
            .await;
        }
    }
    let (after, peak) = memory(&sluice);
    println!(
        "resident {} → {} MiB, peak {} → {} MiB",
        before / MIB,
        after / MIB,
        peak_before / MIB,
        peak / MIB
    );
    assert!(
        after < before + 160 * MIB,
        "{} → {} MiB",
        before / MIB,
        after / MIB
    );
    assert!(
        peak < peak_before + 256 * MIB,
        "peak {} → {} MiB",
        peak_before / MIB,
        peak / MIB
    );
}
