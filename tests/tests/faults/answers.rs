//! ClickHouse stores rows and says something else: no such answer is believed, and rows are counted.

use super::trial::{SOON, Trial};
use bytes::Bytes;
use sluice_tests::proxy::{Act, EVENTS_INSERT, Rule};
use sluice_tests::{Hop, Part, Plan, Shape, eventually};

/// Row 9: each is an answer to an insert that was carried out.
const ANSWERS: [&str; 5] = [
    "HTTP/1.1 200 OK\r\nX-ClickHouse-Exception-Code: 241\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 39\r\nConnection: close\r\n\r\nCode: 241. DB::Exception: Memory limit.",
    "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\nConnection: close\r\n\r\nboom",
    "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf",
    "no HTTP at all\r\n\r\n",
];

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_answered_in_place_of_a_clean_200_is_verified_and_rows_are_once() {
    let mut trial = Trial::start(Plan::new(Shape::AllInOne).proxied(Hop::ToClickHouse)).await;
    trial.acked(0, 10).await;
    trial.until_rows(10).await;
    trial.deployment.proxy(Hop::ToClickHouse).count(EVENTS_INSERT);
    for (n, answer) in (1..).zip(ANSWERS) {
        let proxy = trial.deployment.proxy(Hop::ToClickHouse);
        let answer = Bytes::from_static(answer.as_bytes());
        proxy.set(Rule::on(EVENTS_INSERT, Act::Answer(answer)).times(1));
        trial.acked(0, 10).await;
        eventually("the rows are found", SOON, async || {
            let backlog = trial
                .deployment
                .metric(Part::Up, "sluice_log_backlog_bytes", "")
                .await;
            let proxy = trial.deployment.proxy(Hop::ToClickHouse);
            (proxy.caught() == n && backlog == 0.0).then_some(())
        })
        .await;
        let sent = trial.deployment.proxy(Hop::ToClickHouse).counted();
        assert_eq!(sent, n, "each was sent once");
    }
    trial.verdict().await;
}
