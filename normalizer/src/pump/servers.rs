//! What the normalizer knows of the ClickHouse servers: which one new ranges go to, and whether the one that
//! a range is bound to still answers. The sink-writer says so; nothing here talks to ClickHouse.

use crate::runtime::{sleep, timeout};
use parking_lot::Mutex;
use sluice_common::servers::{ServerId, ServerSeen, ServersSeen};
use sluice_common::wire::sink::{SinkReply, SinkRequest, WhichServers};
use sluice_common::wire::transport::Seam;
use std::sync::Arc;
use std::time::Duration;
use tower::ServiceExt as _;

/// How often it is asked: with several servers, and with one.
const LOOK: Duration = Duration::from_millis(500);
const LOOK_AT_ONE: Duration = Duration::from_secs(2);
/// How long the sink-writer may take: it asks all servers.
const DEADLINE: Duration = Duration::from_secs(5);

/// What was last said. Cloning shares it.
#[derive(Clone)]
pub struct Servers {
    sink: Seam<SinkRequest>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    seen: ServersSeen,
    /// Servers that hold no rows past what is declared: they were asked (R19).
    checked: Vec<ServerId>,
}

impl Servers {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(sink: Seam<SinkRequest>) -> Self {
        Self {
            sink,
            state: Arc::default(),
        }
    }

    /// Asks the sink-writer.
    ///
    /// # Errors
    /// A sentence; what was known stays.
    pub async fn look(&self) -> Result<(), String> {
        let asked = SinkRequest::Servers(WhichServers { timeout: DEADLINE });
        let answer = timeout(DEADLINE, self.sink.clone().oneshot(asked)).await;
        match answer {
            Ok(Ok(SinkReply::Servers(seen))) if !seen.servers.is_empty() => {
                self.state.lock().seen = seen;
                Ok(())
            }
            Ok(Ok(SinkReply::Servers(_))) => Err("the sink-writer names no server".into()),
            Ok(Ok(other)) => Err(other.not_an_answer()),
            Ok(Err(never)) => match never {},
            Err(_) => Err("the sink-writer does not answer in time".into()),
        }
    }

    /// Asks again and again, for ever. While the sink-writer does not answer, the last word counts.
    pub async fn follow(self) {
        loop {
            let several = self.state.lock().seen.servers.len() > 1;
            sleep(if several { LOOK } else { LOOK_AT_ONE }).await;
            if let Err(reason) = self.look().await {
                tracing::debug!(reason, "the sink-writer does not say which servers answer");
            }
        }
    }

    /// Where a new range goes.
    #[must_use]
    pub fn chosen(&self) -> Option<ServerId> {
        self.state.lock().seen.chosen().map(|seen| seen.id.clone())
    }

    /// The first one: where ranges went before there were several.
    #[must_use]
    pub fn first(&self) -> Option<ServerId> {
        self.state.lock().seen.servers.first().map(|seen| seen.id.clone())
    }

    /// Another server than `pin` that answers and takes new ranges.
    #[must_use]
    pub fn other(&self, pin: &ServerId) -> Option<ServerId> {
        let state = self.state.lock();
        let chosen = state.seen.chosen().filter(|seen| seen.up && !seen.id.is(pin))?;
        Some(chosen.id.clone())
    }

    /// For how long `pin` has not answered, while another server takes what comes. A server that the config
    /// no longer names is none of these: a person has to put it back.
    #[must_use]
    pub fn lost_for(&self, pin: &ServerId) -> Option<Duration> {
        self.other(pin)?;
        let of_pin = self.of(pin)?;
        (!of_pin.up).then(|| Duration::from_millis(of_pin.for_ms))
    }

    /// Resolves once `pin` has been lost for so long.
    pub async fn lost(&self, pin: &ServerId, after: Duration) {
        while self.lost_for(pin).is_none_or(|lost| lost < after) {
            sleep(LOOK).await;
        }
    }

    /// Whether `pin` answered lately.
    #[must_use]
    pub fn answers(&self, pin: &ServerId) -> bool {
        self.of(pin).is_some_and(|seen| seen.up)
    }

    /// Whether the sink-writer has no such server.
    #[must_use]
    pub fn is_unknown(&self, pin: &ServerId) -> bool {
        let some = !self.state.lock().seen.servers.is_empty();
        some && self.of(pin).is_none()
    }

    fn of(&self, pin: &ServerId) -> Option<ServerSeen> {
        let state = self.state.lock();
        // A server that has not told who it is goes by its name.
        state.seen.of(Some(pin)).cloned()
    }

    /// Whether `pin` was asked for rows past what is declared.
    #[must_use]
    pub fn is_checked(&self, pin: &ServerId) -> bool {
        self.state.lock().checked.iter().any(|one| one.is(pin))
    }

    /// These were.
    pub fn checked(&self, servers: Vec<ServerId>) {
        self.state.lock().checked.extend(servers);
    }
}
