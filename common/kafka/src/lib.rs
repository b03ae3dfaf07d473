//! The way to Kafka's brokers, for whoever produces or consumes: how librdkafka is told where they are and who we
//! are, and what its connections said last.
//!
//! A crate of its own because librdkafka brings OpenSSL with it: the edge does without.

mod native;
mod words;

pub use native::{TopicIds, certainly_not_there, may_end, member_id, topic_ids};
pub use words::{Client, LastWords, Speaks};

use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use sluice_common::config::{Brokers, Consume, Kafka, Loaded, Login};
use sluice_common::limits::KAFKA_SESSION;
use std::path::PathBuf;
use std::time::Duration;

/// Longest pause before a broker that was lost is tried again, give or take a half. It doubles from 100 ms with each
/// connection that did not last: by librdkafka's own 10 s, a broker that has come back would be left waiting for so long.
const RECONNECT_MAX: Duration = Duration::from_secs(1);
/// How often a client says which brokers it knows.
const BROKERS_TOLD: Duration = Duration::from_secs(2);
/// How long a consumer that has fetched as much as it may fetches nothing more. By librdkafka's own second, a reader that
/// has taken all of it waits for most of that second; and one that stands still is woken as often as this.
const FETCH_PAUSE: Duration = Duration::from_millis(50);

/// How the brokers are reached, with all references resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub kafka: Kafka,
    /// Who we are there.
    pub login: Option<Login>,
    /// librdkafka's names of the files of TLS, and where they are.
    pub files: Vec<(&'static str, PathBuf)>,
}

impl Target {
    /// That of a config; none where it names no brokers.
    #[must_use]
    pub fn of(loaded: &Loaded) -> Option<Self> {
        Self::new(loaded, loaded.config.kafka.clone())
    }

    /// That of a source: the config's, or one of its own.
    #[must_use]
    pub fn of_source(loaded: &Loaded, consume: &Consume) -> Option<Self> {
        let Some(Brokers { brokers, tls, sasl }) = consume.kafka.clone() else {
            return Self::of(loaded);
        };
        let own = Kafka {
            brokers,
            tls,
            sasl,
            ..Kafka::default()
        };
        Self::new(loaded, own)
    }

    fn new(loaded: &Loaded, kafka: Kafka) -> Option<Self> {
        let tls = kafka.tls.clone().unwrap_or_default();
        let token_ca = kafka.sasl.as_ref().and_then(|sasl| sasl.token_ca.clone());
        let files = [
            ("https.ca.location", token_ca),
            ("ssl.ca.location", tls.ca),
            ("ssl.certificate.location", tls.cert),
            ("ssl.key.location", tls.key),
        ];
        let files = files
            .into_iter()
            .filter_map(|(key, path)| Some((key, loaded.data_dir.join(path?))));
        (!kafka.brokers.is_empty()).then(|| Self {
            login: loaded.login(kafka.sasl.as_ref()).cloned(),
            files: files.collect(),
            kafka,
        })
    }

    /// librdkafka's config of a client of these brokers, to which its kind adds its own.
    #[must_use]
    pub fn client(&self) -> ClientConfig {
        let protocol = match (self.kafka.tls.is_some(), self.login.is_some()) {
            (false, false) => "plaintext",
            (true, false) => "ssl",
            (false, true) => "sasl_plaintext",
            (true, true) => "sasl_ssl",
        };
        let mut config = ClientConfig::new();
        config.set_log_level(RDKafkaLogLevel::Warning);
        config.set("bootstrap.servers", self.kafka.brokers.join(","));
        config.set("client.id", "sluice");
        config.set("security.protocol", protocol);
        config.set("allow.auto.create.topics", "false");
        config.set("reconnect.backoff.max.ms", RECONNECT_MAX.as_millis().to_string());
        for (key, path) in &self.files {
            config.set(*key, path.display().to_string());
        }
        if let (Some(login), Some(sasl)) = (&self.login, &self.kafka.sasl) {
            config.set("sasl.mechanism", sasl.mechanism.name());
            match &login.token {
                None => {
                    config.set("sasl.username", &login.name);
                    config.set("sasl.password", login.secret.expose());
                }
                Some((url, scope)) => {
                    // It fetches them, and others in time, on a thread of its own.
                    config.set("sasl.oauthbearer.method", "oidc");
                    config.set("sasl.oauthbearer.token.endpoint.url", url);
                    config.set("sasl.oauthbearer.client.id", &login.name);
                    config.set("sasl.oauthbearer.client.secret", login.secret.expose());
                    if let Some(scope) = scope {
                        config.set("sasl.oauthbearer.scope", scope);
                    }
                }
            }
        }
        config
    }

    /// That of one that reads, in which no offset moves by itself: one that is not in its topic is told, never set to
    /// another.
    #[must_use]
    pub fn consumer(&self) -> ClientConfig {
        let mut config = self.client();
        for (key, value) in [
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("auto.offset.reset", "error"),
            ("isolation.level", "read_committed"),
        ] {
            config.set(key, value);
        }
        config.set("fetch.queue.backoff.ms", FETCH_PAUSE.as_millis().to_string());
        config
    }
}

/// Has a client be a member of its group, whose partitions are others' soon after it has died: by librdkafka's own 45 s,
/// what a killed normalizer worked on would be left waiting for so long.
pub fn seat(config: &mut ClientConfig) {
    config.set("partition.assignment.strategy", "cooperative-sticky");
    config.set("session.timeout.ms", KAFKA_SESSION.as_millis().to_string());
    config.set(
        "heartbeat.interval.ms",
        (KAFKA_SESSION / 4).as_millis().to_string(),
    );
}

/// Has a client say which brokers it knows, again and again: see [`LastWords::heard`]. For those that live long and are
/// polled: what nobody takes would be kept.
pub fn watched(config: &mut ClientConfig) {
    config.set("statistics.interval.ms", BROKERS_TOLD.as_millis().to_string());
}

/// A client of some kind.
///
/// # Errors
/// A sentence where librdkafka refuses the config, a file of TLS for one.
pub fn made<C: Speaks, T: FromClientConfigAndContext<C> + Client<C>>(
    config: &ClientConfig,
    context: C,
) -> Result<T, String> {
    let made: Result<T, _> = config.create_with_context(context);
    let made = made.map_err(|error| format!("Kafka cannot be set up: {}", told(&error)))?;
    let client = made.base();
    let servers = config.get("bootstrap.servers").unwrap_or_default();
    client.context().words().know(client, servers);
    Ok(made)
}

/// A topic as the brokers tell of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub partitions: usize,
    /// What tells it from others of its name; none where they give none.
    pub id: Option<u128>,
}

/// Topics in their order; of each that is not there, or may not be seen, why. Blocks.
///
/// # Errors
/// A sentence where no broker answers in time.
pub fn look(
    target: &Target,
    topics: &[String],
    patience: Duration,
) -> Result<Vec<Result<Seen, String>>, String> {
    let client: BaseConsumer<LastWords> = made(&target.client(), LastWords::default())?;
    let names: Vec<&str> = topics.iter().map(String::as_str).collect();
    // Without an answer nothing tells them apart; whether they are there is asked for below.
    let ids = topic_ids(client.client(), &names, patience).unwrap_or_default();
    let ask = |topic: &String| -> Result<Result<Seen, String>, String> {
        let told = client.fetch_metadata(Some(topic), patience);
        // What a connection said comes with events, which nobody else takes here.
        client.poll(Duration::ZERO);
        let told = told.map_err(|error| client.context().why(&error))?;
        let found = told.topics().iter().find(|one| one.name() == topic);
        Ok(match found.map(|one| (one.error(), one.partitions().len())) {
            Some((None, partitions)) if partitions > 0 => Ok(Seen {
                partitions,
                id: ids.get(topic).copied().and_then(Result::ok).flatten(),
            }),
            Some((Some(error), _)) => Err(RDKafkaErrorCode::from(error).to_string()),
            Some((None, _)) | None => Err(RDKafkaErrorCode::UnknownTopicOrPartition.to_string()),
        })
    };
    topics.iter().map(ask).collect()
}

/// librdkafka's sentence.
#[must_use]
pub fn told(error: &KafkaError) -> String {
    // Of a config that is refused the values may be secrets.
    if let KafkaError::ClientConfig(_, reason, key, _) = error {
        return format!("{key}: {reason}");
    }
    error
        .rdkafka_error_code()
        .map_or_else(|| error.to_string(), |code| code.to_string())
}
