//! Reading the file: parse, check, resolve. All that is wrong is told at once, each with its line.

use super::brokers::{self, Login, Sasl};
use super::place::{Located, Place, locate};
use super::text::BadReference;
use super::tree::Node;
use super::{Config, DEFAULT_YAML, Dataset, Text, read, servers, validate};
use crate::limits::MAX_CONFIG_BYTES;
use crate::secret::Secret;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A config that was read and checked, with its secrets and its place.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub config: Config,
    /// Relative paths of the config are taken from here.
    pub data_dir: PathBuf,
    /// The shared token of the inner hops.
    pub internal_token: Option<Secret>,
    /// Opens the control routes of admin listeners beyond loopback.
    pub admin_token: Option<Secret>,
    pub clickhouse_url: Option<String>,
    /// In the config's order.
    pub clickhouse_failover: Vec<String>,
    pub clickhouse_user: Option<String>,
    pub clickhouse_password: Option<Secret>,
    /// Who we are at each Kafka that asks, by what the config says of it.
    pub kafka_logins: Vec<(Sasl, Login)>,
    /// This normalizer's name in the group that shares the log.
    pub log_instance: Option<String>,
    /// What was read.
    pub source: Arc<Source>,
}

/// A config's text and where it came from.
pub struct Source {
    /// As messages name it.
    pub path: PathBuf,
    pub text: String,
    /// Whether it was read from a file, which may change.
    is_file: bool,
    tree: Node,
}

/// Texts may hold secrets.
impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source({})", self.path.display())
    }
}

impl Source {
    /// The file, unless it is the default config.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.is_file.then_some(self.path.as_path())
    }

    /// Sentences that begin with their place, as an error with lines.
    #[must_use]
    pub fn refuse(&self, sentences: &[String]) -> ConfigError {
        let problems = sentences.iter().map(|text| locate(&self.tree, text).into());
        ConfigError::invalid(&self.path, problems.collect())
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// From 1; 0 where no line is to blame.
    pub line: u32,
    /// `datasets[1].fields[3].type`; empty for the whole file.
    pub place: String,
    /// What is wrong and what to do.
    pub message: String,
}

/// Why a config cannot be used. All that was found is said at once.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}: {error}")]
    Read { path: PathBuf, error: std::io::Error },
    #[error("{path} is larger than {MAX_CONFIG_BYTES} bytes")]
    TooLarge { path: PathBuf },
    #[error("{}", lines(path, problems))]
    Invalid { path: PathBuf, problems: Vec<Problem> },
}

impl ConfigError {
    /// In the order of the file.
    fn invalid(path: &Path, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|one| one.line);
        problems.dedup();
        Self::Invalid {
            path: path.to_owned(),
            problems,
        }
    }
}

fn lines(path: &Path, problems: &[Problem]) -> String {
    let line = |one: &Problem| {
        let at = if one.line > 0 {
            format!("{}:{}", path.display(), one.line)
        } else {
            path.display().to_string()
        };
        if one.place.is_empty() || one.message.starts_with(&one.place) {
            format!("{at}: {}", one.message)
        } else {
            format!("{at}: {}: {}", one.place, one.message)
        }
    };
    problems.iter().map(line).collect::<Vec<_>>().join("\n")
}

impl From<Located> for Problem {
    fn from(found: Located) -> Self {
        Self {
            line: found.line,
            place: found.place.to_string(),
            message: found.message,
        }
    }
}

/// The file's text.
///
/// # Errors
/// [`ConfigError`] where it cannot be read, or is no UTF-8, or too large.
pub fn read_text(path: &Path) -> Result<String, ConfigError> {
    use std::io::Read as _;
    let failed = |error| ConfigError::Read {
        path: path.to_owned(),
        error,
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut text = String::new();
    let most = MAX_CONFIG_BYTES as u64 + 1;
    file.take(most).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 >= most {
        return Err(ConfigError::TooLarge {
            path: path.to_owned(),
        });
    }
    Ok(text)
}

/// Follows references, and notes those that lead nowhere.
struct References<'a> {
    tree: &'a Node,
    data_dir: &'a Path,
    problems: Vec<Problem>,
}

impl References<'_> {
    fn plain(&mut self, key: &str, text: Option<&Text>) -> Option<String> {
        let resolved = text?.resolve(self.data_dir);
        self.noted(key, resolved)
    }

    fn secret(&mut self, key: &str, text: Option<&Text>) -> Option<Secret> {
        let resolved = text?.resolve_secret(self.data_dir);
        self.noted(key, resolved)
    }

    fn login(&mut self, at: &str, sasl: &Sasl) -> Option<Login> {
        let (name, secret) = sasl.keys();
        let key = |key: &str| format!("{at}.sasl.{key}");
        let name = self.plain(&key(name), sasl.name());
        let secret = self.secret(&key(secret), sasl.secret());
        let token_url = self.plain(&key("token_url"), sasl.token_url.as_ref());
        let scope = self.plain(&key("scope"), sasl.scope.as_ref());
        if let Some(sentence) = token_url
            .as_deref()
            .and_then(|url| brokers::token_problem(at, url))
        {
            self.problems.push(locate(self.tree, &sentence).into());
        }
        Some(Login {
            name: name?,
            secret: secret?,
            token: token_url.map(|url| (url, scope)),
        })
    }

    fn noted<T>(&mut self, key: &str, resolved: Result<T, BadReference>) -> Option<T> {
        let note = |error: BadReference| locate(self.tree, &format!("{key}: {error}"));
        resolved
            .map_err(|error| self.problems.push(note(error).into()))
            .ok()
    }
}

impl Loaded {
    /// Reads `path`, or takes the default config where there is none.
    ///
    /// # Errors
    /// [`ConfigError`] with the file and, where the parser knows it, the line.
    pub fn read(path: Option<&Path>, data_dir: &Path) -> Result<Self, ConfigError> {
        match path {
            None => Self::of(DEFAULT_YAML, Path::new("(default config)"), data_dir, false),
            Some(path) => Self::parse(&read_text(path)?, path, data_dir),
        }
    }

    /// Reads a config's text; `path` is for messages.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn parse(text: &str, path: &Path, data_dir: &Path) -> Result<Self, ConfigError> {
        Self::of(text, path, data_dir, true)
    }

    fn of(text: &str, path: &Path, data_dir: &Path, is_file: bool) -> Result<Self, ConfigError> {
        let mut tree = Node::parse(text).map_err(|broken| {
            let problem = Problem {
                line: broken.line.unwrap_or(0),
                place: String::new(),
                message: broken.message,
            };
            ConfigError::invalid(path, vec![problem])
        })?;
        let (config, faults) = read::read::<Config>(&mut tree);
        let broken: Vec<&Place> = faults.iter().map(|fault| &fault.place).collect();
        let mut problems: Vec<Problem> = faults.iter().map(Problem::from).collect();
        let Some(mut config) = config else {
            return Err(ConfigError::invalid(path, problems));
        };
        config.datasets.iter_mut().for_each(Dataset::bound_time);
        let found = validate::problems(&config);
        let found = found.iter().map(|sentence| locate(&tree, sentence));
        problems.extend(
            found
                .filter(|one| !follows(&one.place, &broken))
                .map(Problem::from),
        );
        let source = Source {
            path: path.to_owned(),
            text: text.to_owned(),
            is_file,
            tree,
        };
        Self::resolve(config, source, data_dir, problems)
    }

    /// Follows the references of a config that may have been found wrong, so that these are told too.
    fn resolve(
        config: Config,
        source: Source,
        data_dir: &Path,
        problems: Vec<Problem>,
    ) -> Result<Self, ConfigError> {
        let mut references = References {
            tree: &source.tree,
            data_dir,
            problems,
        };
        let ch = &config.clickhouse;
        let internal_token = references.secret("internal.token", config.internal.token.as_ref());
        let admin_token = references.secret("admin_token", config.admin_token.as_ref());
        let clickhouse_url = references.plain("clickhouse.url", ch.url.as_ref());
        let failover = ch.failover.iter();
        let clickhouse_failover: Vec<String> = failover
            .filter_map(|url| references.plain("clickhouse.failover", Some(url)))
            .collect();
        let clickhouse_user = references.plain("clickhouse.user", ch.user.as_ref());
        let clickhouse_password = references.secret("clickhouse.password", ch.password.as_ref());
        let mut kafka_logins = Vec::new();
        for (at, sasl) in config.logins() {
            let login = references.login(&at, sasl);
            kafka_logins.extend(login.map(|login| (sasl.clone(), login)));
        }
        let log_instance = references.plain("log.instance", config.log.instance.as_ref());
        for sentence in servers::problems(ch, clickhouse_url.as_deref(), &clickhouse_failover) {
            references.problems.push(locate(&source.tree, &sentence).into());
        }
        let problems = references.problems;
        if !problems.is_empty() {
            return Err(ConfigError::invalid(&source.path, problems));
        }
        Ok(Self {
            internal_token,
            admin_token,
            clickhouse_url,
            clickhouse_failover,
            clickhouse_user,
            clickhouse_password,
            kafka_logins,
            log_instance,
            config,
            data_dir: data_dir.to_owned(),
            source: Arc::new(source),
        })
    }

    /// The tenants that commands keep.
    #[must_use]
    pub fn tenants_file(&self) -> PathBuf {
        let file = self.config.tenants_file.as_deref();
        self.data_dir.join(file.unwrap_or(Path::new("tenants.yaml")))
    }

    /// The log's directory.
    #[must_use]
    pub fn log_dir(&self) -> PathBuf {
        self.data_dir.join(&self.config.log.dir)
    }

    /// The dedup state's directory.
    #[must_use]
    pub fn dedup_dir(&self) -> PathBuf {
        self.data_dir.join(&self.config.dedup.dir)
    }

    /// The dedup state's directory.
    #[must_use]
    pub fn parked_dir(&self) -> PathBuf {
        self.data_dir.join(&self.config.parked.dir)
    }
}

impl From<&read::Fault> for Problem {
    fn from(fault: &read::Fault) -> Self {
        Self {
            line: fault.line,
            place: fault.place.to_string(),
            message: fault.message.clone(),
        }
    }
}

/// Whether a problem may be there only because something else was broken and left out: in the same
/// place, in a dataset that lost fields, or in a tenant where datasets were lost.
fn follows(place: &Place, broken: &[&Place]) -> bool {
    broken.iter().any(|lost| {
        let same_dataset = lost.0.len() > 2 && place.0.len() >= 2 && lost.0[..2] == place.0[..2];
        let lost_field = lost.is_below(&["datasets", "fields"]) && !place.is_below(&["datasets", "fields"]);
        place.touches(lost)
            || (lost_field && same_dataset)
            || (lost.is_below(&["datasets"]) && place.is_below(&["tenants"]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Loaded, ConfigError> {
        Loaded::parse(text, Path::new("test.yaml"), Path::new("/tmp"))
    }

    fn message(text: &str) -> String {
        parse(text).expect_err("must be refused").to_string()
    }

    #[test]
    fn the_default_config_is_valid_and_is_what_an_empty_one_means() {
        let default = parse(DEFAULT_YAML).expect("valid").config;
        let empty = parse("{}").expect("valid").config;
        assert_eq!(
            format!("{default:?}"),
            format!("{empty:?}").replace("url: None", "url: None")
        );
        assert_eq!(default.datasets[0].fields.len(), 9);
    }

    #[test]
    fn a_reserve_in_which_no_bucket_can_be_sealed_is_refused() {
        let text = message("log: {reserve: 127MiB}\n");
        assert!(text.contains("log.reserve is under 134217728 (128MiB)"), "{text}");
        assert!(parse("log: {reserve: 128MiB}\n").is_ok());
    }

    #[test]
    fn an_unknown_key_is_an_error_with_its_line() {
        let text = message("edge:\n  lisen: [\"127.0.0.1:1\"]\n");
        assert!(text.contains("lisen") && text.contains('2'), "{text}");
    }

    #[test]
    fn a_log_in_kafka_that_cannot_be_one_is_refused_with_its_place() {
        for (log, wanted) in [
            ("", "log.kind: `kafka` needs `kafka.brokers`"),
            (", topic: \"a b\"", "log.topic: topic \"a b\" must be"),
            (", partitions: 0", "log.partitions: 1 to 256"),
            (", partitions: 257", "log.partitions: 1 to 256"),
            (
                ", partitions: 2, tenant_partitions: 3",
                "log.tenant_partitions: 1 to",
            ),
            (", replicas: 0", "log.replicas: at least 1"),
            (", group: \"\"", "log.group: name one"),
        ] {
            let text = message(&format!("log: {{kind: kafka{log}}}"));
            assert!(text.contains(wanted), "{log}: {text}");
        }
        let brokers = "kafka: {brokers: [\"a:9092\"]}\nlog: {kind: kafka";
        let text = message(&format!(
            "{brokers}, topic: dead}}\ndead_letters: {{topic: dead}}"
        ));
        assert!(
            text.contains("log.topic: dead is another topic of this config"),
            "{text}"
        );
        // Normalizers share it.
        let two = "edge: {normalizer: [\"http://a:4320\", \"http://b:4320\"]}";
        assert!(parse(&format!("{brokers}}}\n{two}")).is_ok());
    }

    #[test]
    fn two_normalizers_with_logs_of_their_own_are_refused() {
        let text = message("edge: {normalizer: [\"http://a:4320\", \"http://b:4320\"]}\n");
        assert!(text.contains("edge.normalizer names 2"), "{text}");
        assert!(text.contains("stored twice"), "{text}");
    }

    #[test]
    fn a_key_field_that_may_be_missing_or_null_is_refused() {
        for field in ["type: string", "type: nullable(string), required: true"] {
            let text = message(&format!(
                "datasets: [{{name: a, fields: [{{name: id, {field}}}], dedup: {{key: [id]}}}}]"
            ));
            assert!(
                text.contains("dedup.key: id must be `required: true` and not nullable"),
                "{text}"
            );
        }
    }

    #[test]
    fn copies_of_rejected_rows_have_a_budget_and_a_ttl_that_outlives_the_log() {
        let config = parse("dead_letters: {bytes_per_second: 1MiB, ttl: 48h}")
            .expect("valid")
            .config;
        assert_eq!(config.dead_letters.bytes_per_second.0, 1 << 20);
        assert!(message("dead_letters: {ttl: 47h}").contains("48h"));
        assert!(!parse("{}").expect("valid").config.datasets[0].keep_rejected);
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let text = message(
            "datasets:\n- {name: a, fields: [{name: tenant, type: string}], dedup: {key: [b]}, \
             partition_by: toDate(c)}\n- {name: a, fields: []}\n",
        );
        for part in ["`tenant`", "dedup.key", "partition_by", "twice"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn every_problem_is_listed_with_its_line_in_the_order_of_the_file() {
        let text = message(
            "edge:\n  lisen: [\"127.0.0.1:1\"]\n  normalizer: [\"ftp://x\"]\nlog: {max_bytes: 9 parsec}\ninternal: {token: \"${SLUICE_TEST_UNSET}\"}\n\
             datasets:\n- name: a\n  fields:\n  - {name: id, type: strng, required: true}\n  - {name: at, type: datetime, epoch: s, colour: red}\n  \
             - {type: string}\n  - {name: tenant, type: string}\n  dedup: {key: [id]}\n- name: b\n  fields: 7\n- name: c\n  fields: [{name: x, type: string}]\n  \
             ttl: 5d\n  batch:\n    max_rows: 0\n    max_age: [1]\ntenants:\n- {id: t, keys: [], datasets: [b, nope]}\n- {id: T, keys: []}\n",
        );
        let told: Vec<(&str, &str)> = text
            .lines()
            .map(|line| {
                line.strip_prefix("test.yaml:")
                    .and_then(|rest| rest.split_once(": "))
                    .expect("a line")
            })
            .collect();
        let expected = [
            ("2", "edge.lisen: `lisen` is not a key here: known are listen"),
            ("3", "edge.normalizer: \"ftp://x\" must be"),
            ("4", "log.max_bytes: \"9 parsec\" is not understood"),
            ("5", "internal.token: environment variable SLUICE_TEST_UNSET"),
            ("9", "datasets[0].fields[0].type: type \"strng\""),
            ("10", "datasets[0].fields[1].colour: `colour` is not a key here"),
            ("11", "datasets[0].fields[2]: `name` is missing"),
            ("12", "datasets[0].fields[3]: field `tenant` has the name"),
            ("15", "datasets[1].fields: a number was found"),
            ("18", "datasets[2].ttl: ttl needs"),
            ("20", "datasets[2].batch.max_rows: batch.max_rows must be"),
            ("21", "datasets[2].batch.max_age: a list was found"),
            ("24", "tenants[1].id: \"T\" is not a valid tenant id"),
        ];
        assert_eq!(told.len(), expected.len(), "{text}");
        for (told, expected) in told.iter().zip(expected) {
            assert!(
                told.0 == expected.0 && told.1.starts_with(expected.1),
                "{told:?} is not {expected:?}"
            );
        }
    }

    #[test]
    fn a_variable_may_stand_in_any_text_and_a_missing_one_has_its_line() {
        let home = std::env::var("HOME").expect("a home");
        let loaded = parse(
            "edge: {admin: \"${HOME}:1\"}\nclickhouse: {url: \"http://${HOME}:8123\", user: \"$${HOME}\"}\nlog: {dir: \"${HOME}/log\"}\n",
        )
        .expect("valid");
        assert_eq!(loaded.config.edge.admin, format!("{home}:1"));
        assert_eq!(loaded.log_dir(), Path::new(&format!("{home}/log")));
        assert_eq!(loaded.clickhouse_url, Some(format!("http://{home}:8123")));
        assert_eq!(loaded.clickhouse_user.as_deref(), Some("${HOME}"));
        let text = message("edge:\n  admin: \"x\"\n  listen: [\"a:1\", \"${SLUICE_TEST_UNSET}:1\"]\n");
        assert!(
            text.starts_with("test.yaml:3: edge.listen[1]: environment variable"),
            "{text}"
        );
    }

    #[test]
    fn problems_of_other_parts_get_their_lines_too() {
        let loaded = parse("datasets:\n- name: a\n  fields:\n  - {name: x, type: string}\n").expect("valid");
        let error = loaded
            .source
            .refuse(&["datasets: a: field `x`: a unit is for numbers".to_owned()]);
        assert_eq!(
            error.to_string(),
            "test.yaml:4: datasets[0].fields[0]: field `x`: a unit is for numbers"
        );
    }

    #[test]
    fn what_is_no_map_or_no_yaml_is_one_problem() {
        assert!(message("[1]").contains("a list was found"));
        assert!(message("edge: {").starts_with("test.yaml:1: "));
        assert!(parse("").is_ok(), "an empty file is the default config");
    }

    #[test]
    fn a_secret_comes_from_a_file_and_is_never_shown() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("t"), "canary-secret\n").expect("written");
        let loaded =
            Loaded::parse("internal: {token: \"file:t\"}", Path::new("x"), dir.path()).expect("valid");
        assert_eq!(
            loaded.internal_token.as_ref().map(Secret::expose),
            Some("canary-secret")
        );
        assert!(!format!("{loaded:?}").contains("canary"));
    }
}
