//! A small HTTP client for the commands: one request, one bounded answer, one deadline.

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use sluice_common::error::chain;
use sluice_common::process::Failure;
use std::time::Duration;

const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;
const DEADLINE: Duration = Duration::from_secs(60);

/// Keeps connections between requests. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Http(Client<HttpConnector, Full<Bytes>>);

impl Default for Http {
    fn default() -> Self {
        Self(Client::builder(TokioExecutor::new()).build_http())
    }
}

impl Http {
    /// Posts `body` and reads the answer.
    ///
    /// # Errors
    /// Where there is no answer within the deadline.
    pub async fn post(&self, url: &str, key: Option<&str>, body: Bytes) -> Result<(StatusCode, Bytes), Failure> {
        let mut request = Request::builder().method(Method::POST).uri(url);
        if let Some(key) = key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        let request = request.body(Full::new(body))?;
        let exchange = async {
            let response = self.0.request(request).await.map_err(|error| Failure::new(format!("{url}: {}", chain(&error))))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
            let body = body.map_err(|error| Failure::new(format!("{url}: {error}")))?;
            Ok((status, body.to_bytes()))
        };
        let late = || Failure::new(format!("{url} did not answer within {} s", DEADLINE.as_secs()));
        tokio::time::timeout(DEADLINE, exchange).await.map_err(|_| late())?
    }

    /// A query's answer as text.
    ///
    /// # Errors
    /// What ClickHouse says is wrong.
    pub async fn query(&self, clickhouse: &str, sql: &str) -> Result<String, Failure> {
        let (status, body) = self.post(clickhouse, None, Bytes::copy_from_slice(sql.as_bytes())).await?;
        let text = String::from_utf8_lossy(&body).into_owned();
        if status.is_success() { Ok(text) } else { Err(Failure::new(text)) }
    }
}
