//! The ClickHouse servers of one config: which of them answer, which one new ranges go to, and which one a
//! call names. A call is carried out at the server it names or at none (R14).
//!
//! A server is asked when somebody wants to know, at most once a second; two unanswered questions in a row
//! make it down, one answer makes it up. New ranges go to the first that is up, and go back to an earlier
//! one only once that has been up for [`SETTLED`], so that a server that comes and goes is left alone.

use crate::client::{Client, ServerError, Target};
use crate::limiter::Limiter;
use crate::tables::Tables;
use futures_util::FutureExt as _;
use futures_util::future::join_all;
use parking_lot::Mutex;
use serde_json::Value;
use sluice_common::config::Dataset;
use sluice_common::metrics::{Gauge, Metrics};
use sluice_common::servers::{ServerId, ServerSeen, ServersSeen};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long an answer is trusted.
const ASK_AGAIN: Duration = Duration::from_millis(900);
/// How long a server may take to say who it is.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);
/// Questions in a row that stay unanswered until a server counts as down.
const MISSES: u32 = 2;
/// How long a server must have been up before new ranges go back to it.
const SETTLED: Duration = Duration::from_secs(30);
/// What a server without an identity of its own says.
const NO_UUID: &str = "00000000-0000-0000-0000-000000000000";

/// What a server said, and which one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{server}: {error}")]
pub struct AtServer {
    pub server: String,
    pub error: ServerError,
}

/// One server.
#[derive(Debug)]
pub struct Server {
    pub name: String,
    pub client: Client,
    pub tables: Arc<Tables>,
    pub limiter: Limiter,
    health: Mutex<Health>,
}

/// What is known of a server's life.
#[derive(Debug, Default, Clone)]
struct Health {
    uuid: Option<String>,
    asked: Option<Instant>,
    misses: u32,
    /// Since when it is what it is; `None` before it was ever asked.
    turned: Option<Instant>,
    up: bool,
}

impl Health {
    /// Takes an answer, or that there was none.
    fn note(&mut self, answered: bool, now: Instant) {
        self.asked = Some(now);
        self.misses = if answered {
            0
        } else {
            self.misses.saturating_add(1)
        };
        let up = match (answered, self.turned) {
            (true, _) => true,
            (false, None) => false,
            (false, Some(_)) => self.up && self.misses < MISSES,
        };
        if self.turned.is_none() || up != self.up {
            self.turned = Some(now);
        }
        self.up = up;
    }

    fn up_for(&self, now: Instant) -> Option<Duration> {
        let turned = self.turned.filter(|_| self.up)?;
        Some(now.saturating_duration_since(turned))
    }
}

impl Server {
    fn new(target: &Target, datasets: &[Dataset]) -> Self {
        let client = Client::new(target);
        Self {
            name: target.name.clone(),
            tables: Arc::new(Tables::new(client.clone(), datasets, target.letters_ttl)),
            client,
            limiter: Limiter::default(),
            health: Mutex::default(),
        }
    }

    /// Who it is, as far as it has told.
    #[must_use]
    pub fn id(&self) -> ServerId {
        ServerId {
            name: self.name.clone(),
            uuid: self.health.lock().uuid.clone(),
        }
    }

    /// Asks it, unless it was asked just now.
    async fn probe(&self) {
        let fresh = |health: &Health| health.asked.is_some_and(|asked| asked.elapsed() < ASK_AGAIN);
        if fresh(&self.health.lock()) {
            return;
        }
        let deadline = Instant::now() + PROBE_DEADLINE;
        let answer = self.client.rows("SELECT toString(serverUUID())", deadline).await;
        // One that refuses the question is there, and says at each insert what it refuses.
        let answered = match &answer {
            Ok(_) | Err(ServerError::Definite { .. }) => true,
            Err(ServerError::Unreached(_) | ServerError::Uncertain(_)) => false,
        };
        let mut health = self.health.lock();
        let was_up = health.turned.is_none() || health.up;
        health.note(answered, Instant::now());
        if let Ok(rows) = answer {
            let uuid = rows.first().and_then(|row| row.first()).and_then(Value::as_str);
            health.uuid = uuid.filter(|uuid| *uuid != NO_UUID).map(str::to_owned);
        }
        let is_up = health.up;
        drop(health);
        match (was_up, is_up) {
            (true, false) => tracing::warn!(server = self.name, "this ClickHouse does not answer"),
            (false, true) => tracing::info!(server = self.name, "this ClickHouse answers again"),
            (true, true) | (false, false) => {}
        }
    }
}

/// All servers, in the config's order.
#[derive(Debug)]
pub struct Servers {
    list: Vec<Arc<Server>>,
    /// Where new ranges go; `None` until one has answered.
    chosen: Mutex<Option<usize>>,
}

impl Servers {
    /// Servers that nobody has asked yet.
    ///
    /// # Panics
    /// Without a target: whoever starts a sink-writer has checked that there is one.
    #[must_use]
    pub fn new(targets: &[Target], datasets: &[Dataset]) -> Self {
        assert!(!targets.is_empty(), "a sink-writer has a server");
        let list = targets
            .iter()
            .map(|target| Arc::new(Server::new(target, datasets)));
        Self {
            list: list.collect(),
            chosen: Mutex::new(None),
        }
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> &[Arc<Server>] {
        &self.list
    }

    /// The one that new ranges go to; the first where none has answered yet.
    #[must_use]
    pub fn in_use(&self) -> &Server {
        &self.list[self.chosen.lock().unwrap_or_default()]
    }

    /// Those that are servers of their own: two ways to one are asked once.
    #[must_use]
    pub fn distinct(&self) -> Vec<Arc<Server>> {
        let mut found: Vec<(ServerId, Arc<Server>)> = Vec::with_capacity(self.list.len());
        for server in &self.list {
            let id = server.id();
            let same = |(known, _): &&mut (ServerId, Arc<Server>)| known.uuid.is_some() && known.is(&id);
            match found.iter_mut().find(same) {
                Some((_, known)) if !known.health.lock().up && server.health.lock().up => {
                    *known = Arc::clone(server);
                }
                Some(_) => {}
                None => found.push((id, Arc::clone(server))),
            }
        }
        found.into_iter().map(|(_, server)| server).collect()
    }

    /// The server that a call names.
    ///
    /// # Errors
    /// A sentence, where it is not one of ours, or may be another than it was: nothing was begun.
    pub async fn find(&self, pin: Option<&ServerId>) -> Result<Arc<Server>, String> {
        let (Some(pin), [_, _, ..]) = (pin, self.list.as_slice()) else {
            return self.only(pin);
        };
        if let Some(found) = self.with_uuid(pin) {
            return Ok(found);
        }
        let named = || self.list.iter().find(|server| server.name == pin.name);
        if let (Some(server), Some(_)) = (named(), &pin.uuid) {
            // Who they are decides, where they tell.
            if server.id().uuid.is_none() {
                server.probe().await;
            }
            if let Some(found) = self.with_uuid(pin) {
                return Ok(found);
            }
            if let Some(silent) = self.list.iter().find(|server| server.id().uuid.is_none()) {
                return Err(format!(
                    "server {silent} has not told who it is, and {pin} may not be the server any more that rows were sent to: \
                     waiting for it",
                    silent = silent.name
                ));
            }
            tracing::warn!(server = %pin, "another ClickHouse than before is behind this address; it is taken for its successor");
        }
        named().cloned().ok_or_else(|| unknown(pin))
    }

    /// The only server: its address may lead to several, as it always might; its name may not change.
    fn only(&self, pin: Option<&ServerId>) -> Result<Arc<Server>, String> {
        let first = &self.list[0];
        match pin {
            Some(pin) if pin.name != first.name && !first.id().is(pin) => Err(unknown(pin)),
            Some(_) | None => Ok(Arc::clone(first)),
        }
    }

    /// A server that calls itself so: by its old name if that will do, else one that answers.
    fn with_uuid(&self, pin: &ServerId) -> Option<Arc<Server>> {
        let uuid = pin.uuid.as_deref()?;
        let mut same: Vec<&Arc<Server>> = self
            .list
            .iter()
            .filter(|server| server.health.lock().uuid.as_deref() == Some(uuid))
            .collect();
        same.sort_by_key(|server| (!server.health.lock().up, server.name != pin.name));
        same.first().map(|server| Arc::clone(server))
    }

    /// Asks all that were not asked lately, and says what is known.
    pub async fn seen(&self) -> ServersSeen {
        let mut asked = Vec::with_capacity(self.list.len());
        for server in &self.list {
            asked.push(server.probe().boxed());
        }
        join_all(asked).await;
        let now = Instant::now();
        let health: Vec<Health> = self
            .list
            .iter()
            .map(|server| server.health.lock().clone())
            .collect();
        let ups: Vec<Option<Duration>> = health.iter().map(|one| one.up_for(now)).collect();
        let mut chosen = self.chosen.lock();
        let before = *chosen;
        *chosen = choose(before, &ups);
        let at = chosen.unwrap_or_default();
        if let (Some(before), Some(now)) = (before, *chosen)
            && before != now
        {
            let (from, to) = (&self.list[before].name, &self.list[now].name);
            tracing::warn!(from, to, "new ranges go to another ClickHouse");
        }
        let servers = self.list.iter().zip(&health).map(|(server, health)| {
            let lasted = health
                .turned
                .map_or(Duration::ZERO, |turned| now.saturating_duration_since(turned));
            ServerSeen {
                id: server.id(),
                up: health.up,
                for_ms: u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX),
            }
        });
        ServersSeen {
            servers: servers.collect(),
            chosen: at,
        }
    }

    /// Shows which of them answer, and which one is in use.
    pub fn show(self: &Arc<Self>, metrics: &Metrics) {
        for (at, server) in self.list.iter().enumerate() {
            let labels: &[_] = &[("server", server.name.as_str())];
            let seen = Arc::clone(server);
            metrics.watch(Gauge::ClickHouseUp, labels, move || {
                f64::from(u8::from(seen.health.lock().up))
            });
            let servers = Arc::clone(self);
            metrics.watch(Gauge::ClickHouseInUse, labels, move || {
                f64::from(u8::from(*servers.chosen.lock() == Some(at)))
            });
        }
    }
}

/// Where new ranges go, of servers that have been up for so long: the first that is up; back to an earlier
/// one only once it has settled; nowhere new while none is up.
fn choose(before: Option<usize>, ups: &[Option<Duration>]) -> Option<usize> {
    let first = || ups.iter().position(Option::is_some);
    let Some(before) = before else { return first() };
    if ups.get(before).is_none_or(Option::is_none) {
        return first().or(Some(before));
    }
    let settled = |up: &Option<Duration>| up.is_some_and(|up| up >= SETTLED);
    let earlier = ups[..before].iter().position(settled);
    earlier.or(Some(before))
}

fn unknown(pin: &ServerId) -> String {
    format!(
        "rows were sent to the ClickHouse {pin}, which the config names no more: put it back into `clickhouse.url` or \
         `clickhouse.failover` until nothing waits for it"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_common::config::Period;
    use sluice_common::ids::Name;

    fn up(seconds: u64) -> Option<Duration> {
        Some(Duration::from_secs(seconds))
    }

    #[test]
    fn new_ranges_go_to_the_first_that_is_up_and_back_only_once_it_has_settled() {
        assert_eq!(choose(None, &[None, None]), None);
        assert_eq!(choose(None, &[None, up(0)]), Some(1));
        assert_eq!(choose(None, &[up(0), up(90)]), Some(0));
        assert_eq!(choose(Some(0), &[None, up(5)]), Some(1));
        assert_eq!(
            choose(Some(1), &[up(29), up(90)]),
            Some(1),
            "it has just come back"
        );
        assert_eq!(choose(Some(1), &[up(30), up(90)]), Some(0));
        assert_eq!(
            choose(Some(1), &[up(1), None]),
            Some(0),
            "the only one that answers"
        );
        assert_eq!(choose(Some(1), &[None, None]), Some(1), "none is better");
        assert_eq!(choose(Some(0), &[up(1), up(90)]), Some(0));
    }

    #[test]
    fn two_unanswered_questions_make_a_server_down_and_one_answer_up() {
        let now = Instant::now();
        let mut health = Health::default();
        health.note(false, now);
        assert!(!health.up, "nothing speaks for it yet");
        health.note(true, now);
        assert!(health.up);
        health.note(false, now);
        assert!(health.up, "one answer may be late");
        health.note(false, now);
        assert!(!health.up);
        health.note(true, now);
        assert!(health.up);
    }

    fn servers(names: &[(&str, Option<&str>)]) -> Servers {
        let target = |name: &str| Target {
            name: name.into(),
            url: format!("http://{name}"),
            database: Name::new("d").expect("valid"),
            user: None,
            password: None,
            tls: None,
            letters_ttl: Period::hours(720),
        };
        let targets: Vec<Target> = names.iter().map(|(name, _)| target(name)).collect();
        let servers = Servers::new(&targets, &[]);
        for (server, (_, uuid)) in servers.list.iter().zip(names) {
            server.health.lock().uuid = uuid.map(str::to_owned);
        }
        servers
    }

    async fn found(servers: &Servers, name: &str, uuid: Option<&str>) -> Result<String, String> {
        let pin = ServerId {
            name: name.into(),
            uuid: uuid.map(str::to_owned),
        };
        servers.find(Some(&pin)).await.map(|server| server.name.clone())
    }

    #[tokio::test]
    async fn a_call_is_carried_out_where_it_names_or_nowhere() {
        // Nothing listens at port 1.
        let two = servers(&[("127.0.0.1:1", Some("x")), ("localhost:1", Some("y"))]);
        assert_eq!(two.find(None).await.expect("the first").name, "127.0.0.1:1");
        assert_eq!(
            found(&two, "localhost:1", None).await.as_deref(),
            Ok("localhost:1")
        );
        assert_eq!(
            found(&two, "elsewhere:1", Some("y")).await.as_deref(),
            Ok("localhost:1"),
            "renamed"
        );
        assert_eq!(
            found(&two, "127.0.0.1:1", Some("y")).await.as_deref(),
            Ok("localhost:1"),
            "swapped"
        );
        let gone = found(&two, "c:1", None).await.expect_err("it is none of ours");
        assert!(
            gone.contains("c:1") && gone.contains("clickhouse.failover"),
            "{gone}"
        );
        assert_eq!(
            found(&two, "localhost:1", Some("z")).await.as_deref(),
            Ok("localhost:1"),
            "its successor"
        );
        let silent = servers(&[("127.0.0.1:1", None), ("localhost:1", Some("y"))]);
        found(&silent, "localhost:1", Some("z"))
            .await
            .expect_err("the silent one may be it");
        let one = servers(&[("127.0.0.1:1", None)]);
        assert_eq!(
            found(&one, "127.0.0.1:1", Some("x")).await.as_deref(),
            Ok("127.0.0.1:1")
        );
        found(&one, "localhost:1", None).await.expect_err("another one");
    }

    #[test]
    fn two_ways_to_one_server_are_one() {
        let names = |servers: &Servers| -> Vec<String> {
            let distinct = servers.distinct();
            distinct.iter().map(|server| server.name.clone()).collect()
        };
        assert_eq!(
            names(&servers(&[
                ("a:1", Some("x")),
                ("b:1", Some("x")),
                ("c:1", Some("y"))
            ])),
            ["a:1", "c:1"]
        );
        assert_eq!(names(&servers(&[("a:1", None), ("b:1", None)])), ["a:1", "b:1"]);
    }
}
