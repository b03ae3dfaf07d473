//! Reading the file: parse, check, resolve.

use super::{Config, DEFAULT_YAML, Dataset, text::BadReference, validate};
use crate::limits::MAX_CONFIG_BYTES;
use crate::secret::Secret;
use std::path::{Path, PathBuf};

/// A config that was read and checked, with its secrets and its place.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub config: Config,
    /// Relative paths of the config are taken from here.
    pub data_dir: PathBuf,
    /// The shared token of the inner hops.
    pub internal_token: Option<Secret>,
    pub clickhouse_url: Option<String>,
    pub clickhouse_user: Option<String>,
    pub clickhouse_password: Option<Secret>,
}

/// Why a config cannot be used. All that was found is said at once.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}: {error}")]
    Read { path: PathBuf, error: std::io::Error },
    #[error("{path} is larger than {MAX_CONFIG_BYTES} bytes")]
    TooLarge { path: PathBuf },
    #[error("{path}: {message}")]
    Parse { path: PathBuf, message: String },
    #[error("{path}:\n  {}", problems.join("\n  "))]
    Invalid { path: PathBuf, problems: Vec<String> },
    #[error("{path}: {key}: {error}")]
    Reference {
        path: PathBuf,
        key: &'static str,
        error: BadReference,
    },
}

impl Loaded {
    /// Reads `path`, or takes the default config where there is none.
    ///
    /// # Errors
    /// [`ConfigError`] with the file and, where the parser knows it, the line.
    pub fn read(path: Option<&Path>, data_dir: &Path) -> Result<Self, ConfigError> {
        let Some(path) = path else {
            return Self::parse(DEFAULT_YAML, Path::new("(default config)"), data_dir);
        };
        let size = std::fs::metadata(path).map(|meta| meta.len());
        let read = |error| ConfigError::Read {
            path: path.to_owned(),
            error,
        };
        if size.map_err(read)? > MAX_CONFIG_BYTES as u64 {
            return Err(ConfigError::TooLarge {
                path: path.to_owned(),
            });
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        Self::parse(&text, path, data_dir)
    }

    /// Reads a config's text; `path` is for messages.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn parse(text: &str, path: &Path, data_dir: &Path) -> Result<Self, ConfigError> {
        let mut config: Config = serde_saphyr::from_str(text).map_err(|error| ConfigError::Parse {
            path: path.to_owned(),
            message: error.to_string(),
        })?;
        config.datasets.iter_mut().for_each(Dataset::bound_time);
        let problems = validate::problems(&config);
        if !problems.is_empty() {
            return Err(ConfigError::Invalid {
                path: path.to_owned(),
                problems,
            });
        }
        Self::resolve(config, path, data_dir)
    }

    fn resolve(config: Config, path: &Path, data_dir: &Path) -> Result<Self, ConfigError> {
        let failed = |key| {
            move |error| ConfigError::Reference {
                path: path.to_owned(),
                key,
                error,
            }
        };
        let token = config
            .internal
            .token
            .as_ref()
            .map(|text| text.resolve_secret(data_dir));
        let ch = &config.clickhouse;
        let url = ch.url.as_ref().map(|text| text.resolve(data_dir));
        let user = ch.user.as_ref().map(|text| text.resolve(data_dir));
        let password = ch.password.as_ref().map(|text| text.resolve_secret(data_dir));
        Ok(Self {
            internal_token: token.transpose().map_err(failed("internal.token"))?,
            clickhouse_url: url.transpose().map_err(failed("clickhouse.url"))?,
            clickhouse_user: user.transpose().map_err(failed("clickhouse.user"))?,
            clickhouse_password: password.transpose().map_err(failed("clickhouse.password"))?,
            config,
            data_dir: data_dir.to_owned(),
        })
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
    fn an_unknown_key_is_an_error_with_its_line() {
        let text = message("edge:\n  lisen: [\"127.0.0.1:1\"]\n");
        assert!(text.contains("lisen") && text.contains('2'), "{text}");
    }

    #[test]
    fn a_key_of_a_feature_to_come_is_refused_with_that_reason() {
        for (yaml, key) in [
            ("edge: {tls: {cert: a, key: b}}", "edge.tls"),
            ("log: {kind: kafka}", "log.kind"),
            ("admin_token: x", "admin_token"),
            ("dead_letters: {ttl: 30d}", "dead_letters"),
            ("tenants_file: t.yaml", "tenants_file"),
            (
                "tenants: [{id: a, keys: [], quota: {events_per_second: 5}}]",
                "quota",
            ),
        ] {
            let text = message(yaml);
            assert!(
                text.contains("not there yet") && text.contains(key),
                "{yaml}: {text}"
            );
        }
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
