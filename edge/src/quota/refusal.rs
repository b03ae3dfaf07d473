//! The answer over a quota, and the `RateLimit` headers of all answers where there is one
//! (draft-ietf-httpapi-ratelimit-headers).

use super::{Kind, Policy};
use crate::respond::Refusal;
use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::json;
use sluice_common::config::Period;
use sluice_common::error::{Limit, Problem};
use std::sync::Arc;
use std::time::Duration;

/// Its registered problem type.
const QUOTA_EXCEEDED: &str = "https://iana.org/assignments/http-problem-types#quota-exceeded";
const POLICIES: HeaderName = HeaderName::from_static("ratelimit-policy");
const LIMITS: HeaderName = HeaderName::from_static("ratelimit");
/// After which a client with too many requests at once looks again: nobody knows when one of them ends.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A request that is over a quota.
#[derive(Debug)]
pub struct Over {
    /// The limit's name, as in the headers.
    pub policy: &'static str,
    refusal: Box<Refusal>,
}

impl From<Over> for Refusal {
    fn from(over: Over) -> Self {
        *over.refusal
    }
}

type Headers = Vec<(HeaderName, HeaderValue)>;

impl Over {
    /// Less is left than the request needs; there is enough after `wait`.
    pub(super) fn quota(policy: &Policy, wait: Duration, headers: Headers) -> Self {
        let detail = format!(
            "over the quota `{}`: {} {} a second, {} at once; nothing was taken: send the same request again after \
             `Retry-After`, or have the quota raised",
            policy.name,
            policy.bucket.rate(),
            unit(policy.kind),
            policy.bucket.burst(),
        );
        let violated = (policy.name, policy.reason);
        Self::exceeded(violated, detail, wait, headers)
    }

    /// As many requests as may be under way are.
    pub(super) fn too_many_at_once(
        names: (&'static str, &'static str),
        most: usize,
        headers: Headers,
    ) -> Self {
        let detail = format!(
            "over the quota `{}`: {most} requests at once; nothing was taken: wait for an answer before the next \
             request, or have the quota raised",
            names.0
        );
        Self::exceeded(names, detail, LOOK_AGAIN, headers)
    }

    fn exceeded(
        (policy, reason): (&'static str, &'static str),
        detail: String,
        wait: Duration,
        headers: Headers,
    ) -> Self {
        let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "quota_exceeded", detail);
        let members = vec![("violated-policies", json!([policy]))];
        let refusal = Refusal::new(problem)
            .shed_for(reason)
            .retry_after(wait)
            .of_type(QUOTA_EXCEEDED, members);
        Self::with(policy, refusal, headers)
    }

    /// No wait helps: the request is larger than a whole burst.
    pub(super) fn burst(policy: &Policy, amount: u64, headers: Headers) -> Self {
        let (fits, unit) = (policy.bucket.burst(), unit(policy.kind));
        let detail = format!(
            "the request has {amount} {unit} or more, and the quota `{}` never lets more than {fits} through at once: \
             split it, or have the quota's rate or burst raised",
            policy.name
        );
        let problem = Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "request_exceeds_burst", detail);
        let members = vec![
            ("violated-policies", json!([policy.name])),
            ("fits", json!(fits)),
            ("unit", json!(unit)),
        ];
        let refusal = Refusal::new(problem)
            .shed_for("request_exceeds_burst")
            .with_members(members);
        Self::with(policy.name, refusal, headers)
    }

    fn with(policy: &'static str, refusal: Refusal, headers: Headers) -> Self {
        let refusal = headers
            .into_iter()
            .fold(refusal, |refusal, (name, value)| refusal.with(name, value));
        Self {
            policy,
            refusal: Box::new(refusal),
        }
    }
}

fn unit(kind: Kind) -> &'static str {
    match kind {
        Kind::Events => "events",
        Kind::Bytes => "bytes",
        Kind::Requests => "requests",
    }
}

/// The quota unit of the draft's registry; events have none there.
fn quota_unit(kind: Kind) -> &'static str {
    match kind {
        Kind::Events => "events",
        Kind::Bytes => "content-bytes",
        Kind::Requests => "requests",
    }
}

/// When the headers are written, and for whom.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment<'a> {
    pub now: Duration,
    pub burst: Period,
    /// How long a refused client is told to wait: no `t` is later.
    pub wait: Option<Duration>,
    /// The most requests at once, and how many more may come.
    pub at_once: Option<(usize, usize)>,
    /// A limit that is kept elsewhere.
    pub beside: Option<&'a Limit>,
}

/// What holds, and what is left of it: `r` now, and more, where nothing else is said all of it, after `t` seconds.
pub(super) fn headers(policies: &[Arc<Policy>], moment: Moment<'_>) -> Headers {
    let mut told = policies
        .iter()
        .map(|policy| one(policy, moment))
        .collect::<Vec<_>>();
    if let Some((most, left)) = moment.at_once {
        let name = super::CONCURRENCY;
        told.push((
            format!("\"{name}\";q={most};qu=\"concurrent-requests\""),
            format!("\"{name}\";r={left}"),
        ));
    }
    if let Some(limit) = moment.beside {
        let (name, most, unit, window) = (&limit.policy, limit.most, &limit.unit, limit.window_s);
        let wait = moment.wait.unwrap_or_default().as_millis().div_ceil(1_000);
        told.push((
            format!("\"{name}\";q={most};qu=\"{unit}\";w={window}"),
            format!("\"{name}\";r={};t={wait}", limit.left),
        ));
    }
    if told.is_empty() {
        return Vec::new();
    }
    let (policies, limits): (Vec<_>, Vec<_>) = told.into_iter().unzip();
    let value = |parts: Vec<String>| HeaderValue::from_str(&parts.join(", ")).expect("names and numbers");
    vec![(POLICIES, value(policies)), (LIMITS, value(limits))]
}

fn one(policy: &Policy, moment: Moment<'_>) -> (String, String) {
    let (now, window) = (moment.now, moment.burst.ms().div_ceil(1_000));
    let (name, burst) = (policy.name, policy.bucket.burst());
    let unit = quota_unit(policy.kind);
    let left = policy.bucket.left(now);
    let full = policy.bucket.wait(burst, now);
    let full = moment.wait.map_or(full, |wait| full.min(wait));
    let full = full.as_millis().div_ceil(1_000);
    (
        format!("\"{name}\";q={burst};qu=\"{unit}\";w={window}"),
        format!("\"{name}\";r={left};t={full}"),
    )
}
