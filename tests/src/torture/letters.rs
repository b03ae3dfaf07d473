//! Dead letters tried again in the middle of faults, and to the end once all is well.

use crate::{Client, eventually};
use serde_json::json;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Letters of one order.
const ORDER: usize = 5;
/// Letters that are looked at at once.
const LIST: &str = "/admin/v1/dlq?limit=1000";
/// Of the letters, one of so many is left alone: it stays a letter.
const LEFT_ALONE: u64 = 4;
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);
/// A person's patience with one answer: an order that takes longer is given up in the middle.
const PATIENCE: Duration = Duration::from_secs(3);
/// From the end of all faults to the last letter.
const DEADLINE: Duration = Duration::from_secs(60);

/// Orders under way. Whatever an order is answered, or not, its letters are ordered again until they are gone.
#[derive(Debug)]
pub struct Retries {
    admin: Client,
    stop: watch::Sender<bool>,
    orders: JoinHandle<()>,
}

impl Retries {
    /// Begins; `admin` is the normalizer's listener.
    #[must_use]
    pub fn start(admin: Client) -> Self {
        let admin = admin.with("content-type", "application/json");
        let (stop, mut stopped) = watch::channel(false);
        let hasty = admin.clone().with_timeout(PATIENCE);
        let orders = tokio::spawn(async move {
            while !*stopped.borrow() {
                // Faults are all around: what is not known now is asked for again.
                order_all(&hasty).await;
                tokio::time::timeout(PAUSE, stopped.changed()).await.ok();
            }
        });
        Self { admin, stop, orders }
    }

    /// All is well and nothing is in flight: orders until none of the chosen letters is there.
    ///
    /// # Panics
    /// Where that takes too long.
    pub async fn finish(self) {
        self.stop.send_replace(true);
        self.orders.await.expect("it does not panic");
        eventually("dead letters tried again to the end", DEADLINE, async || {
            (order_all(&self.admin).await? == 0).then_some(())
        })
        .await;
    }
}

/// Has all chosen letters tried again, a few at a time; how many were there, if that is known.
async fn order_all(admin: &Client) -> Option<usize> {
    let listed = admin.get(LIST).await.ok()?.json();
    let ids = listed["letters"].as_array()?.iter();
    let ids: Vec<&str> = ids.filter_map(|letter| letter["id"].as_str()).collect();
    let chosen: Vec<&str> = ids.into_iter().filter(|id| is_chosen(id)).collect();
    for order in chosen.chunks(ORDER) {
        admin
            .post("/admin/v1/dlq/retry", json!({ "ids": order }).to_string())
            .await
            .ok()?;
    }
    let notes = listed["notes"].as_array().is_some_and(Vec::is_empty);
    notes.then_some(chosen.len())
}

/// By its place in the log, which ends its id: offset and row, 16 bits of it.
fn is_chosen(id: &str) -> bool {
    let place = id.rsplit('-').next().and_then(|place| place.parse::<u64>().ok());
    place.is_some_and(|place| !((place >> 16) + place).is_multiple_of(LEFT_ALONE))
}
