//! `POST /v1/events/{dataset}`: NDJSON, a JSON object, or an array.

use crate::Edge;
use crate::body::{self, BodyError, Deadlines, Meters, quoted};
use crate::forward::Held;
use crate::quota::{self, Charge};
use crate::respond::{self, Refusal};
use crate::stack::{Connection, Head, Passed, check};
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, Request, State};
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, HeaderName, StatusCode};
use serde_json::json;
use sluice_common::error::Problem;
use sluice_common::limits::{EDGE_FORWARD_DEADLINE, MAX_IDEMPOTENCY_KEY_BYTES};
use sluice_common::metrics::Counter;
use sluice_common::telemetry::context_of;
use sluice_common::wire::intake::{IntakeRequest, RowsAnswer};
use std::sync::Arc;

/// Takes a request's events: checks → body → forward → answer.
pub async fn take(
    State(edge): State<Arc<Edge>>,
    Extension(head): Extension<Head>,
    connection: Connection,
    dataset: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Refusal> {
    let (parts, wire) = request.into_parts();
    // A name that is not UTF-8 is no dataset's; the checks before that one come first all the same.
    let dataset = dataset.map_or_else(|_| "\u{fffd}".into(), |path| path.0);
    let Passed {
        tenant,
        plan,
        mut charge,
        mut permit,
    } = check(&edge, &parts.headers, &connection, &dataset)?;
    let meters = Meters {
        permit: &mut permit,
        charge: &mut charge,
    };
    let read = body::read(wire, plan, meters, Deadlines::from_head(head.at)).await;
    if let Err(BodyError::NoRoom(_)) = &read {
        charge.give_back();
    }
    let body = read?;
    if charge.counts_events() {
        charge.events(quota::events(plan.format, &body))?;
    }
    let idempotency_key = idempotency_key(&parts.headers)?;
    let bytes = body.len() as u64;
    edge.metrics.add(Counter::Bytes, bytes, &[("stage", "edge")]);
    let call = IntakeRequest {
        tenant: tenant.id.clone(),
        weight: tenant.weight,
        dataset,
        request: head.id,
        idempotency_key,
        format: plan.format,
        body,
        timeout: EDGE_FORWARD_DEADLINE,
        trace: context_of(&tracing::Span::current(), head.trace),
    };
    let held = Held { permit, charge };
    let forwarded = edge.forwarder.forward(call, tenant.admission.clone(), held);
    let (reply, held) = forwarded.await?;
    let charge = held.map(Held::answered);
    let answered = respond::reply(reply);
    let (status, rows) = answered.map_err(|refusal| with_limits(refusal, charge.as_ref()))?;
    count_rows(&edge, &rows);
    let events = (rows.accepted, rows.rejected);
    edge.tenant_labels.count(&edge.metrics, &tenant.id, events, bytes);
    let mut response = (status, Json(rows)).into_response();
    let limits = charge.into_iter().flat_map(|charge| charge.headers(None));
    response.headers_mut().extend(limits);
    Ok(response)
}

/// Names the limit that it is about beside the tenant's own.
fn with_limits(refusal: Refusal, charge: Option<&Charge>) -> Refusal {
    let (Some(limit), Some(charge)) = (refusal.limit().cloned(), charge) else {
        return refusal;
    };
    let headers = charge.headers_beside(Some(refusal.wait()), Some(&limit));
    let refusal = refusal.with_members(vec![("violated-policies", json!([limit.policy]))]);
    headers
        .into_iter()
        .fold(refusal, |refusal, (name, value)| refusal.with(name, value))
}

fn count_rows(edge: &Edge, rows: &RowsAnswer) {
    let count = |n, outcome| {
        edge.metrics
            .add(Counter::Events, n, &[("stage", "edge"), ("outcome", outcome)])
    };
    count(rows.accepted, "accepted");
    count(rows.rejected, "rejected");
}

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The `Idempotency-Key`, unquoted; quoted and bare are the same key.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(bad_key("it was sent twice"));
    }
    let text = std::str::from_utf8(value.as_bytes())
        .map_err(|_| bad_key("it is not UTF-8"))?
        .trim();
    let key = match text.strip_prefix('"') {
        Some(rest) => unquote(rest).ok_or_else(|| bad_key("its quotes do not match"))?,
        None => text.to_owned(),
    };
    if key.is_empty() {
        return Err(bad_key("it is empty"));
    }
    if key.len() > MAX_IDEMPOTENCY_KEY_BYTES {
        return Err(bad_key("it is too long"));
    }
    Ok(Some(key))
}

/// A structured-field string (RFC 9651) after its first quote: only `\"` and `\\` are escapes.
fn unquote(rest: &str) -> Option<String> {
    let mut key = String::with_capacity(rest.len());
    let mut chars = rest.chars();
    loop {
        match chars.next()? {
            '"' => break,
            '\\' => key.push(chars.next().filter(|c| matches!(c, '"' | '\\'))?),
            other => key.push(other),
        }
    }
    chars.as_str().is_empty().then_some(key)
}

fn bad_key(why: &str) -> Refusal {
    let detail = format!(
        "Idempotency-Key is not usable: {}; send 1 to {MAX_IDEMPOTENCY_KEY_BYTES} bytes, bare or in double quotes",
        quoted(why)
    );
    Refusal::new(Problem::new(
        StatusCode::BAD_REQUEST,
        "bad_idempotency_key",
        detail,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn key(text: &str) -> Result<Option<String>, u16> {
        let mut headers = HeaderMap::new();
        headers.insert(IDEMPOTENCY_KEY, HeaderValue::from_bytes(text.as_bytes()).unwrap());
        idempotency_key(&headers).map_err(|refusal| refusal.status().as_u16())
    }

    #[test]
    fn an_idempotency_key_is_the_same_bare_and_quoted() {
        for (text, expected) in [
            ("abc", "abc"),
            ("\"abc\"", "abc"),
            ("  \"a b\"  ", "a b"),
            (r#""a\"b\\c""#, "a\"b\\c"),
            ("schlüssel", "schlüssel"),
        ] {
            assert_eq!(key(text), Ok(Some(expected.into())), "{text}");
        }
        let longest = "k".repeat(MAX_IDEMPOTENCY_KEY_BYTES);
        assert_eq!(key(&format!("\"{longest}\"")), Ok(Some(longest.clone())));
        for bad in [
            "",
            "\"\"",
            "\"abc",
            "\"a\"b",
            "\"a\\n\"",
            "\"",
            &format!("{longest}k"),
        ] {
            assert_eq!(key(bad), Err(400), "{bad}");
        }
        assert_eq!(idempotency_key(&HeaderMap::new()).unwrap(), None);
    }
}
