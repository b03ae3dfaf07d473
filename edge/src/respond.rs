//! Answers as the client sees them.
//!
//! A step that refuses returns a [`Refusal`]; it becomes a problem document in one place, the
//! outermost layer ([`finish`]), which knows the request's id and puts it on every answer.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::Value;
use sluice_common::error::{Limit, Problem};
use sluice_common::ids::RequestId;
use sluice_common::wire::intake::{IntakeReply, RowsAnswer};
use std::time::Duration;

/// The request's id, on every answer.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// On every 503: whether something may have been taken.
pub const OUTCOME: HeaderName = HeaderName::from_static("sluice-outcome");

/// What a 503 leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing was taken.
    Refused,
    /// Something may have been taken; a retry ends in one row.
    Unknown,
}

/// A request that was not taken.
#[derive(Debug, Clone)]
pub struct Refusal {
    problem: Problem,
    outcome: Outcome,
    retry_after: Duration,
    headers: Vec<(HeaderName, HeaderValue)>,
    close: bool,
    shed: Option<&'static str>,
    /// The registered type of its problem document, where it has one.
    kind: Option<&'static str>,
    /// Members that its problem document has besides.
    members: Vec<(&'static str, Value)>,
}

impl Refusal {
    /// Refuses with `problem`; a 503 says that nothing was taken.
    #[must_use]
    pub fn new(problem: Problem) -> Self {
        let retry_after = Duration::from_secs(problem.retry_after_s.unwrap_or(1).into());
        Self {
            problem: never_500(problem),
            outcome: Outcome::Refused,
            retry_after,
            headers: Vec::new(),
            close: false,
            shed: None,
            kind: None,
            members: Vec::new(),
        }
    }

    /// There is no room; nothing was taken. `reason` is the metric's label.
    #[must_use]
    pub fn overloaded(reason: &'static str, detail: &str, retry_after: Duration) -> Self {
        let detail = format!("{detail}; nothing was taken: send the request again after `Retry-After`");
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", detail);
        Self {
            retry_after,
            shed: Some(reason),
            ..Self::new(problem)
        }
    }

    /// What lies behind cannot do it now. `what` must not name inner addresses.
    #[must_use]
    pub fn unavailable(outcome: Outcome, what: &str, retry_after: Duration) -> Self {
        let told = match outcome {
            Outcome::Refused => "nothing was taken: send the request again",
            Outcome::Unknown => {
                "part of the request may have been taken: send it again, with the same \
                 `Idempotency-Key` or event keys it ends in one row an event"
            }
        };
        let detail = format!("{what}; {told}");
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail);
        Self {
            outcome,
            retry_after,
            ..Self::new(problem)
        }
    }

    /// Adds a header to the answer.
    #[must_use]
    pub fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Counts it among what was shed, for this reason: the metric's label.
    #[must_use]
    pub fn shed_for(mut self, reason: &'static str) -> Self {
        self.shed = Some(reason);
        self
    }

    /// A retry makes sense after `wait`.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = wait;
        self
    }

    /// Its problem document is of a registered type, and has these members besides.
    #[must_use]
    pub fn of_type(mut self, kind: &'static str, members: Vec<(&'static str, Value)>) -> Self {
        self.kind = Some(kind);
        self.with_members(members)
    }

    /// Its problem document has these members besides.
    #[must_use]
    pub fn with_members(mut self, members: Vec<(&'static str, Value)>) -> Self {
        self.members = members;
        self
    }

    /// Ends an HTTP/1 connection after the answer: what follows on it is not worth reading.
    #[must_use]
    pub fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    /// The limit that it is about, where that is kept behind the edge.
    #[must_use]
    pub fn limit(&self) -> Option<&Limit> {
        self.problem.limit.as_deref()
    }

    /// What `Retry-After` is at least, before it is spread.
    #[must_use]
    pub fn wait(&self) -> Duration {
        self.retry_after
    }

    /// Why it was shed for want of room, if it was: the metric's label.
    #[must_use]
    pub fn shed(&self) -> Option<&'static str> {
        self.shed
    }

    /// The status of the answer.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.problem.status()
    }

    /// What `Retry-After` is at least.
    #[cfg(test)]
    pub fn least_wait(&self) -> Duration {
        self.retry_after.max(Duration::from_secs(1))
    }

    fn render(self, request: RequestId) -> Response {
        let status = self.status();
        let id = request.to_string();
        let document = self.problem.to_json_with(&id, self.kind, &self.members);
        let mut response = Response::new(Body::from(document));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if status == StatusCode::SERVICE_UNAVAILABLE {
            let outcome = match self.outcome {
                Outcome::Refused => "refused",
                Outcome::Unknown => "unknown",
            };
            headers.insert(OUTCOME, HeaderValue::from_static(outcome));
        }
        if matches!(
            status,
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS
        ) {
            let seconds = retry_after_seconds(self.retry_after, request);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        headers.extend(self.headers);
        if self.close {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// 4xx and 503 are all that a refusal can be: OTLP clients drop their data on 500.
fn never_500(problem: Problem) -> Problem {
    if problem.status().is_client_error() {
        return problem;
    }
    let mut fit = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", problem.detail);
    fit.code = problem.code;
    fit
}

/// Only marks the answer: [`finish`] writes it.
impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = self.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Writes what a step left to be written, and the request's id. `keep_connection_header` is false
/// for HTTP/2, which knows no `Connection`.
#[must_use]
pub fn finish(mut response: Response, request: RequestId, keep_connection_header: bool) -> Response {
    if let Some(refusal) = response.extensions_mut().remove::<Refusal>() {
        // What the layers in between, and the router, have added to the unwritten answer.
        let added = std::mem::take(response.headers_mut());
        response = refusal.render(request);
        for name in [header::ALLOW, header::CONNECTION] {
            if let Some(value) = added.get(&name) {
                response.headers_mut().insert(name, value.clone());
            }
        }
    }
    let headers = response.headers_mut();
    if !keep_connection_header {
        headers.remove(header::CONNECTION);
    }
    let id = HeaderValue::from_str(&request.to_string()).expect("hex digits are a header value");
    headers.insert(REQUEST_ID, id);
    response
}

/// Whole seconds, never less than what was asked for, spread over two seconds or half of it so that
/// the refused do not come back together. The request's random id is the source of the spread.
fn retry_after_seconds(least: Duration, request: RequestId) -> u64 {
    let least = least.as_millis().div_ceil(1_000).clamp(1, 3_600);
    let spread = (least / 2).max(2) + 1;
    u64::try_from(least + (request.0 >> 64) % spread).unwrap_or(1)
}

/// The normalizer's answer as HTTP. A `Busy` that comes here has waited long enough.
///
/// # Errors
/// A [`Refusal`] for each answer but rows.
pub fn reply(reply: IntakeReply) -> Result<(StatusCode, RowsAnswer), Refusal> {
    match reply {
        IntakeReply::Rows(rows) => Ok((rows_status(&rows), rows)),
        IntakeReply::Refused(problem) => Err(Refusal::new(problem)),
        IntakeReply::Busy {
            scope: _,
            reason,
            retry_after_ms,
        } => Err(Refusal::overloaded(
            "queue_deadline",
            &reason,
            Duration::from_millis(retry_after_ms),
        )),
        IntakeReply::Unavailable {
            unknown,
            // Logged when it was seen; it may name inner addresses, which are not a client's business.
            reason: _,
            retry_after_ms,
        } => {
            let outcome = if unknown {
                Outcome::Unknown
            } else {
                Outcome::Refused
            };
            Err(Refusal::unavailable(
                outcome,
                UNAVAILABLE,
                Duration::from_millis(retry_after_ms),
            ))
        }
        IntakeReply::Unreached { reason: _ } => {
            let wait = Duration::from_secs(1);
            Err(Refusal::unavailable(Outcome::Refused, UNAVAILABLE, wait))
        }
    }
}

const UNAVAILABLE: &str = "the service behind the edge cannot take requests now";

fn rows_status(rows: &RowsAnswer) -> StatusCode {
    let all_rejected = rows.accepted == 0 && rows.rejected > 0;
    if all_rejected {
        StatusCode::UNPROCESSABLE_ENTITY
    } else {
        StatusCode::ACCEPTED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_never_too_early_and_is_spread() {
        let seconds =
            |ms, id: u64| retry_after_seconds(Duration::from_millis(ms), RequestId(u128::from(id) << 64));
        let spread: Vec<u64> = (0..3).map(|id| seconds(0, id)).collect();
        assert_eq!(spread, [1, 2, 3]);
        assert_eq!(seconds(1_001, 0), 2);
        assert!((20..=30).contains(&seconds(20_000, 7)));
    }

    #[test]
    fn a_server_error_of_intake_is_never_500() {
        let problem = Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "x", "x");
        assert_eq!(Refusal::new(problem).status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(
            Refusal::new(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "x", "x")).status(),
            StatusCode::PAYLOAD_TOO_LARGE
        );
    }
}
