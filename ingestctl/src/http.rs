//! A small HTTP client for the commands: one request, one bounded answer, one deadline.

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use sluice_common::error::chain;
use sluice_common::process::Failure;
use sluice_common::tls::client::{ClientTls, Dialer};
use std::time::Duration;

const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;
const DEADLINE: Duration = Duration::from_secs(60);
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Keeps connections between requests. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Http(Client<Dialer, Full<Bytes>>);

impl Default for Http {
    fn default() -> Self {
        Self::over(None)
    }
}

impl Http {
    /// A client that also speaks TLS, as `tls` has it.
    #[must_use]
    pub fn over(tls: Option<ClientTls>) -> Self {
        Self(Client::builder(TokioExecutor::new()).build(Dialer::new(tls, CONNECT_DEADLINE)))
    }
}

/// One request.
#[derive(Debug)]
pub struct Ask<'a> {
    pub method: Method,
    pub url: &'a str,
    /// Sent as a bearer token.
    pub bearer: Option<&'a str>,
    /// None: whatever reads it goes by the first byte.
    pub content_type: Option<&'static str>,
    pub body: Bytes,
    pub deadline: Duration,
}

impl Http {
    /// Sends a request and reads the answer.
    ///
    /// # Errors
    /// Where there is no answer within the deadline, or it is larger than 4 MiB.
    pub async fn send(&self, ask: Ask<'_>) -> Result<(StatusCode, Bytes), Failure> {
        let Ask { url, deadline, .. } = ask;
        let mut request = Request::builder().method(ask.method).uri(url);
        if let Some(token) = ask.bearer {
            let mut value = HeaderValue::try_from(format!("Bearer {token}"))?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        if let Some(content_type) = ask.content_type {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        let request = request.body(Full::new(ask.body))?;
        let exchange = async {
            let response = self
                .0
                .request(request)
                .await
                .map_err(|error| Failure::new(format!("{url}: {}", chain(&error))))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
                .collect()
                .await;
            let body = body.map_err(|error| Failure::new(format!("{url}: {error}")))?;
            Ok((status, body.to_bytes()))
        };
        let late = || Failure::new(format!("{url}: no answer within {} s", deadline.as_secs()));
        tokio::time::timeout(deadline, exchange)
            .await
            .map_err(|_| late())?
    }

    /// Posts `body` and reads the answer.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn post(
        &self,
        url: &str,
        key: Option<&str>,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let ask = Ask {
            method: Method::POST,
            url,
            bearer: key,
            content_type: None,
            body,
            deadline: DEADLINE,
        };
        self.send(ask).await
    }

    /// A query's answer as text.
    ///
    /// # Errors
    /// What ClickHouse says is wrong.
    pub async fn query(&self, clickhouse: &str, sql: &str) -> Result<String, Failure> {
        let (status, body) = self
            .post(clickhouse, None, Bytes::copy_from_slice(sql.as_bytes()))
            .await?;
        let text = String::from_utf8_lossy(&body).into_owned();
        if status.is_success() {
            Ok(text)
        } else {
            Err(Failure::new(text))
        }
    }
}
