//! edge → normalizer.intake.

use super::transport::{Answer, BadMessage, Call, Failure, header_text};
use crate::config::Weight;
use crate::error::Problem;
use crate::ids::{RequestId, TenantId};
use crate::trace::TraceContext;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::time::Duration;

/// How the rows stand in the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyFormat {
    /// One JSON object, or an array of objects.
    Json,
    /// One JSON object a line.
    Ndjson,
    /// No content type was given: the first byte decides. `[` is an array, `{` is NDJSON, of which
    /// one object is the shortest form.
    Auto,
    /// Messages of a Kafka partition, as [`super::messages`] has them; never between processes.
    Messages,
}

/// One authenticated request's rows, decompressed.
#[derive(Debug, Clone)]
pub struct IntakeRequest {
    pub tenant: TenantId,
    /// The tenant's part of what is short behind the edge.
    pub weight: Weight,
    pub dataset: String,
    pub request: RequestId,
    pub idempotency_key: Option<String>,
    pub format: BodyFormat,
    pub body: Bytes,
    /// What is left of the request's time when it is handed over.
    pub timeout: Duration,
    pub trace: TraceContext,
}

/// One rejected row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowError {
    /// The row's place in the request, rejected rows counted.
    pub index: u32,
    /// The field, or empty where the whole row is meant.
    pub field: String,
    pub code: Cow<'static, str>,
    pub message: String,
}

/// The answer in rows: 202, or 422 where every row was rejected.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowsAnswer {
    pub accepted: u64,
    pub rejected: u64,
    pub errors: Vec<RowError>,
    pub errors_omitted: u64,
}

/// Whom a "busy" holds back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BusyScope {
    /// This tenant has had its share: the others' requests are welcome.
    Tenant,
    /// There is no room for anybody.
    All,
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum IntakeReply {
    /// Every accepted row is durable.
    Rows(RowsAnswer),
    /// The request as a whole is wrong; nothing was taken.
    Refused(Problem),
    /// No room now; nothing was taken. Over HTTP: 429.
    Busy {
        scope: BusyScope,
        reason: String,
        retry_after_ms: u64,
    },
    /// It cannot be said, or cannot be done. `unknown`: something may have been appended.
    Unavailable {
        unknown: bool,
        reason: String,
        retry_after_ms: u64,
    },
    /// Nobody was there to be asked; nothing was taken.
    Unreached { reason: String },
}

impl From<Failure> for IntakeReply {
    fn from(failure: Failure) -> Self {
        let reason = failure.reason;
        if failure.maybe_sent {
            Self::Unavailable {
                unknown: true,
                reason,
                retry_after_ms: 1_000,
            }
        } else {
            Self::Unreached { reason }
        }
    }
}

const TENANT: &str = "sluice-tenant";
const WEIGHT: &str = "sluice-weight";
const DATASET: &str = "sluice-dataset";
const REQUEST: &str = "sluice-request-id";
const KEY: &str = "sluice-idempotency-key-hex";
const FORMAT: &str = "sluice-format";

impl Call for IntakeRequest {
    const PATH: &'static str = "/internal/v1/intake";
    const MAX_BODY_BYTES: usize = crate::limits::MAX_BODY_BYTES;
    type Reply = IntakeReply;

    fn timeout(&self) -> Duration {
        self.timeout
    }

    fn trace(&self) -> TraceContext {
        self.trace
    }

    fn into_parts(self, headers: &mut HeaderMap) -> Bytes {
        let mut set = |name: &'static str, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        };
        set(TENANT, self.tenant.as_str());
        set(WEIGHT, &self.weight.get().to_string());
        set(DATASET, &self.dataset);
        set(REQUEST, &self.request.to_string());
        set(FORMAT, format_name(self.format));
        if let Some(key) = &self.idempotency_key {
            set(KEY, &hex::encode(key));
        }
        self.body
    }

    fn from_parts(headers: &HeaderMap, timeout: Duration, body: Bytes) -> Result<Self, BadMessage> {
        let key = headers
            .get(KEY)
            .map(|key| hex::decode(key).ok().and_then(|key| String::from_utf8(key).ok()));
        Ok(Self {
            tenant: TenantId::new(header_text(headers, TENANT)?).map_err(|e| BadMessage(e.to_string()))?,
            weight: parse_weight(header_text(headers, WEIGHT)?)?,
            dataset: header_text(headers, DATASET)?.to_owned(),
            request: RequestId::parse(header_text(headers, REQUEST)?)
                .ok_or_else(|| BadMessage(format!("{REQUEST} is not 32 hex digits")))?,
            idempotency_key: match key {
                Some(None) => return Err(BadMessage(format!("{KEY} is not hex of UTF-8"))),
                Some(key) => key,
                None => None,
            },
            format: parse_format(header_text(headers, FORMAT)?)?,
            body,
            timeout,
            trace: TraceContext::from_headers(headers),
        })
    }
}

impl Answer for IntakeReply {
    fn status(&self) -> StatusCode {
        match self {
            Self::Rows(_) => StatusCode::OK,
            Self::Refused(problem) => problem.status(),
            Self::Busy { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable { .. } | Self::Unreached { .. } => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

fn format_name(format: BodyFormat) -> &'static str {
    match format {
        BodyFormat::Json => "json",
        BodyFormat::Ndjson => "ndjson",
        BodyFormat::Auto => "auto",
        BodyFormat::Messages => "messages",
    }
}

fn parse_format(name: &str) -> Result<BodyFormat, BadMessage> {
    [BodyFormat::Json, BodyFormat::Ndjson, BodyFormat::Auto]
        .into_iter()
        .find(|format| format_name(*format) == name)
        .ok_or_else(|| BadMessage(format!("{FORMAT} {name:?} is not known")))
}

fn parse_weight(text: &str) -> Result<Weight, BadMessage> {
    let weight = text.parse().ok().and_then(Weight::new);
    weight.ok_or_else(|| BadMessage(format!("{WEIGHT} {text:?} is not 1 to {}", Weight::MAX)))
}
