//! Keys of features that this release does not have: refused with that reason.

use super::LogKind;
use serde::de::{Deserialize, Deserializer, Error};

/// `log.kind`: `kafka` is named in the docs but not there yet.
pub(super) fn log_kind<'de, D: Deserializer<'de>>(deserializer: D) -> Result<LogKind, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "embedded" => Ok(LogKind::Embedded),
        "kafka" => Err(D::Error::custom(
            "`log.kind: kafka` is not there yet in this release: use `embedded`",
        )),
        other => Err(D::Error::custom(format!(
            "`log.kind` {other:?} is not known: use `embedded`"
        ))),
    }
}
