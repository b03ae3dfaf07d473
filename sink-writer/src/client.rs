//! The only module that names the `clickhouse` crate: queries, commands and inserts over HTTP, each
//! with a deadline, and errors sorted into what the server said and what nobody knows.
//!
//! Nothing here retries: the pool's own re-sending of cancelled requests is off (R13).

use bytes::Bytes;
use clickhouse::{Client as Http, Compression, error::Error};
use hyper_util::client::legacy::{Client as Pool, Error as PoolError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde_json::Value;
use sluice_common::config::{Loaded, Period};
use sluice_common::ids::Name;
use sluice_common::limits::MAX_INNER_ANSWER_BYTES;
use sluice_common::secret::Secret;
use sluice_common::servers::name_of;
use sluice_common::tls::client::{ClientTls, ClientTlsError, Dialer};
use std::time::Duration;
use tokio::time::Instant;

const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// Under ClickHouse's own keep-alive, so that we close idle connections first.
const POOL_IDLE: Duration = Duration::from_secs(2);
/// Room beyond the statement itself that ClickHouse may parse.
const QUERY_SLACK_BYTES: usize = 1_024;
/// The least room, beyond what the server keeps free, for files of a table or a deletion.
const ROOM_BYTES: u64 = 1 << 20;
/// ClickHouse's code for a disk without room.
const NOT_ENOUGH_SPACE: u32 = 243;
/// Longest part of a server's message that is passed on.
const MAX_MESSAGE_CHARS: usize = 400;

/// Where rows go, with all references resolved.
#[derive(Debug, Clone)]
pub struct Target {
    /// The server's name in intents; [`name_of`](sluice_common::servers::name_of) its URL.
    pub name: String,
    /// `http://host:port`, or `https://` with `tls`.
    pub url: String,
    pub database: Name,
    pub user: Option<String>,
    pub password: Option<Secret>,
    pub tls: Option<ClientTls>,
    /// How long copies of rejected rows are kept, where we make the table.
    pub letters_ttl: Period,
}

impl Target {
    /// One server of a config, at `url`.
    ///
    /// # Errors
    /// [`ClientTlsError`] where `clickhouse.ca` cannot be used.
    pub fn of(loaded: &Loaded, name: String, url: &str) -> Result<Self, ClientTlsError> {
        Ok(Self {
            name,
            url: url.to_owned(),
            database: loaded.config.clickhouse.database.clone(),
            user: loaded.clickhouse_user.clone(),
            password: loaded.clickhouse_password.clone(),
            tls: loaded.clickhouse_tls(url).map(ClientTls::open).transpose()?,
            letters_ttl: loaded.config.dead_letters.ttl,
        })
    }

    /// The server at `url`, under its name, and those that the config has for when it does not answer.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn all(loaded: &Loaded, (name, url): (String, &str)) -> Result<Vec<Self>, ClientTlsError> {
        let mut targets = vec![Self::of(loaded, name, url)?];
        for url in &loaded.clickhouse_failover {
            targets.push(Self::of(loaded, name_of(url), url)?);
        }
        Ok(targets)
    }
}

/// A request that did not end well.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServerError {
    /// ClickHouse said so itself. It may have stored rows all the same (a materialized view that fails).
    #[error("ClickHouse code {code}: {message}")]
    Definite { code: u32, message: String },
    /// No connection was made: not a byte was sent.
    #[error("{0}")]
    Unreached(String),
    /// Network, time-out, or an answer that is not ClickHouse's.
    #[error("{0}")]
    Uncertain(String),
}

/// What is inserted: the bytes, and how they are announced.
#[derive(Debug, Clone)]
pub struct InsertRequest {
    pub sql: String,
    pub settings: Vec<(&'static str, String)>,
    pub body: Bytes,
}

/// A pool of connections to one ClickHouse address. Cloning shares the pool.
#[derive(Debug, Clone)]
pub struct Client {
    http: Http,
    database: Name,
}

impl Client {
    /// A client of `target`; connects on first use.
    #[must_use]
    pub fn new(target: &Target) -> Self {
        let connector = Dialer::new(target.tls.clone(), CONNECT_DEADLINE);
        let pool = Pool::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE)
            .retry_canceled_requests(false)
            .build(connector);
        let mut http = Http::with_http_client(pool)
            .with_url(&target.url)
            .with_compression(Compression::None);
        if let Some(user) = &target.user {
            http = http.with_user(user);
        }
        if let Some(password) = &target.password {
            http = http.with_password(password.expose());
        }
        Self {
            http,
            database: target.database.clone(),
        }
    }

    /// The database that all our tables are in.
    #[must_use]
    pub fn database(&self) -> &Name {
        &self.database
    }

    /// Runs `sql` and reads its rows, each an array of values.
    ///
    /// # Errors
    /// [`ServerError`]; also for an answer over [`MAX_INNER_ANSWER_BYTES`].
    pub async fn rows(&self, sql: &str, deadline: Instant) -> Result<Vec<Vec<Value>>, ServerError> {
        self.rows_with(sql, &[], deadline).await
    }

    /// The same under settings of its own, `query_id` among them.
    ///
    /// # Errors
    /// As [`Self::rows`].
    pub async fn rows_with(
        &self,
        sql: &str,
        settings: &[(&str, &str)],
        deadline: Instant,
    ) -> Result<Vec<Vec<Value>>, ServerError> {
        let text = within(deadline, self.fetch(sql, settings, deadline)).await?;
        let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines
            .map(serde_json::from_slice)
            .collect::<Result<_, _>>()
            .map_err(|error| ServerError::Uncertain(format!("the answer is not ClickHouse's: {error}")))
    }

    /// Runs a statement without rows.
    ///
    /// # Errors
    /// [`ServerError`].
    pub async fn command(&self, sql: &str, deadline: Instant) -> Result<(), ServerError> {
        self.rows(sql, deadline).await.map(|_| ())
    }

    /// Looks whether the server's disk has room for what a statement writes beside rows: a mutation, a new table's
    /// files. The embedded ClickHouse leaves these empty on a full disk, and does not start with them again; what it
    /// keeps free for inserts (`keep_free_space_bytes`) it gives away here. A server that does not say is believed.
    ///
    /// # Errors
    /// 243, as the server has it for inserts; its own where it cannot be reached.
    pub async fn has_room(&self, deadline: Instant) -> Result<(), ServerError> {
        let sql = "SELECT free_space FROM system.disks WHERE name = 'default'";
        let free = match self.rows(sql, deadline).await {
            Ok(rows) => rows.first().and_then(|row| row.first()?.as_u64()),
            Err(ServerError::Definite { .. }) => None,
            Err(error @ (ServerError::Unreached(_) | ServerError::Uncertain(_))) => return Err(error),
        };
        if free.is_none_or(|free| free >= ROOM_BYTES) {
            return Ok(());
        }
        Err(ServerError::Definite {
            code: NOT_ENOUGH_SPACE,
            message: "the server's disk is full: it is not asked to write tables or deletions now".into(),
        })
    }

    async fn fetch(
        &self,
        sql: &str,
        settings: &[(&str, &str)],
        deadline: Instant,
    ) -> Result<Vec<u8>, ServerError> {
        let mut query = self
            .http
            .query_raw(sql)
            .with_setting("wait_end_of_query", "1")
            .with_setting("output_format_json_quote_64bit_integers", "0")
            .with_setting("max_execution_time", seconds_left(deadline))
            // A list of provenance may be longer than the server's 256 KiB.
            .with_setting("max_query_size", (sql.len() + QUERY_SLACK_BYTES).to_string());
        for (name, value) in settings {
            query = query.with_setting(*name, *value);
        }
        let mut cursor = query
            .fetch_bytes("JSONCompactEachRow")
            .map_err(|error| sort(&error))?;
        let mut text = Vec::new();
        while let Some(piece) = cursor.next().await.map_err(|error| sort(&error))? {
            if text.len() + piece.len() > MAX_INNER_ANSWER_BYTES {
                return Err(ServerError::Uncertain("the answer is over its size limit".into()));
            }
            text.extend_from_slice(&piece);
        }
        Ok(text)
    }

    /// Sends one insert, framed by `Content-Length`: a body that is cut anywhere inserts nothing.
    ///
    /// # Errors
    /// [`ServerError`]; past the deadline before the first byte nothing is sent.
    pub async fn insert(&self, request: InsertRequest, deadline: Instant) -> Result<(), ServerError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ServerError::Uncertain(
                "past its deadline before the first byte".into(),
            ));
        }
        let length = request.body.len().to_string();
        let framed = self.http.clone().with_header("Content-Length", length);
        let mut insert = framed
            .insert_formatted_with(request.sql)
            .with_timeouts(Some(left), Some(left));
        for (name, value) in request.settings {
            insert = insert.with_setting(name, value);
        }
        within(deadline, async {
            insert.send(request.body).await.map_err(|error| sort(&error))?;
            insert.end().await.map_err(|error| sort(&error))
        })
        .await
    }
}

async fn within<T>(
    deadline: Instant,
    work: impl Future<Output = Result<T, ServerError>>,
) -> Result<T, ServerError> {
    let late = || ServerError::Uncertain("no answer before the deadline".into());
    tokio::time::timeout_at(deadline, work)
        .await
        .unwrap_or_else(|_| Err(late()))
}

/// The server's own limit, in whole seconds, at least one.
pub(crate) fn seconds_left(deadline: Instant) -> String {
    deadline
        .saturating_duration_since(Instant::now())
        .as_secs()
        .max(1)
        .to_string()
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the crate's enum may grow; only this variant is the server's word"
)]
fn sort(error: &Error) -> ServerError {
    match error {
        Error::BadResponse(text) => parse_exception(text),
        Error::Network(network)
            if network
                .downcast_ref::<PoolError>()
                .is_some_and(PoolError::is_connect) =>
        {
            ServerError::Unreached(shorten(&sluice_common::error::chain(error)))
        }
        other => ServerError::Uncertain(shorten(&sluice_common::error::chain(other))),
    }
}

/// Reads `Code: N. DB::Exception: …`, once. Text without it is a proxy's, or cut.
fn parse_exception(text: &str) -> ServerError {
    let code = text.trim_start().strip_prefix("Code: ").and_then(|rest| {
        let (digits, rest) = rest.split_once('.')?;
        Some((digits.parse().ok()?, rest))
    });
    match code {
        Some((code, rest)) => {
            let message = rest.trim_start().trim_start_matches("DB::Exception: ");
            ServerError::Definite {
                code,
                message: shorten(message),
            }
        }
        None => ServerError::Uncertain(shorten(text)),
    }
}

fn shorten(text: &str) -> String {
    text.chars()
        .take(MAX_MESSAGE_CHARS)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_read_from_the_servers_text_and_from_nothing_else() {
        let text = "Code: 60. DB::Exception: Table t.x does not exist. (UNKNOWN_TABLE) (version 26.7.2.1)\n";
        let ServerError::Definite { code, message } = parse_exception(text) else {
            panic!("definite")
        };
        assert_eq!(code, 60);
        assert!(message.starts_with("Table t.x does not exist."));
        for text in [
            "502 Bad Gateway",
            "<html>Code: 60.</html>",
            "Code: 60",
            "Code: x. y",
        ] {
            assert!(
                matches!(parse_exception(text), ServerError::Uncertain(_)),
                "{text}"
            );
        }
    }
}
