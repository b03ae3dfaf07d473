//! An HTTP/1.1 client as an application would have one: keys, headers, whole answers.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::{Client as Pool, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use std::time::Duration;

/// Sends requests to one place. Cloning shares connections.
#[derive(Debug, Clone)]
pub struct Client {
    pool: Pool<HttpConnector, Full<Bytes>>,
    base: String,
    headers: HeaderMap,
    timeout: Duration,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON; null where it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header's value, or nothing.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    /// Of metrics: the sum of one's samples whose line contains `label`, or none where there is no such sample.
    #[must_use]
    pub fn level(&self, name: &str, label: &str) -> Option<f64> {
        let text = self.text();
        let samples = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let is_asked_for = rest.starts_with(['{', ' ']) && line.contains(label);
            is_asked_for.then(|| rest.rsplit(' ').next()?.parse::<f64>().ok())?
        });
        samples.fold(None, |sum, sample| Some(sum.unwrap_or_default() + sample))
    }
}

impl Client {
    /// A client of `base` (`http://host:port`).
    #[must_use]
    pub fn new(base: impl Into<String>) -> Self {
        let pool = Pool::builder(TokioExecutor::new()).build_http();
        Self {
            pool,
            base: base.into(),
            headers: HeaderMap::new(),
            timeout: Duration::from_secs(60),
        }
    }

    /// The address that it speaks to.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The same over HTTP/2 with prior knowledge.
    #[must_use]
    pub fn over_http2(mut self) -> Self {
        self.pool = Pool::builder(TokioExecutor::new()).http2_only(true).build_http();
        self
    }

    /// The same with a header on every request.
    ///
    /// # Panics
    /// Where it cannot be a header.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        let name = HeaderName::try_from(name).expect("a header name");
        self.headers
            .insert(name, HeaderValue::try_from(value).expect("a header value"));
        self
    }

    /// The same with an API key.
    #[must_use]
    pub fn with_key(self, key: &str) -> Self {
        self.with("authorization", &format!("Bearer {key}"))
    }

    /// The same with another deadline for each request.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// One exchange.
    ///
    /// # Errors
    /// Where no whole answer came in time.
    pub async fn send(&self, method: Method, path: &str, body: impl Into<Bytes>) -> Result<Answer, String> {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base));
        let mut request = request
            .body(Full::new(body.into()))
            .map_err(|error| error.to_string())?;
        *request.headers_mut() = self.headers.clone();
        let exchange = async {
            let response = self
                .pool
                .request(request)
                .await
                .map_err(|error| error.to_string())?;
            let (parts, body) = response.into_parts();
            let body = body
                .collect()
                .await
                .map_err(|error| error.to_string())?
                .to_bytes();
            Ok(Answer {
                status: parts.status,
                headers: parts.headers,
                body,
            })
        };
        tokio::time::timeout(self.timeout, exchange)
            .await
            .map_err(|_| "no answer in time".to_owned())?
    }

    /// Posts `body`.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn post(&self, path: &str, body: impl Into<Bytes>) -> Result<Answer, String> {
        self.send(Method::POST, path, body).await
    }

    /// Gets `path`.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn get(&self, path: &str) -> Result<Answer, String> {
        self.send(Method::GET, path, Bytes::new()).await
    }

    /// Asks ClickHouse; the answer's text.
    ///
    /// # Errors
    /// What ClickHouse or the network says.
    pub async fn query(&self, sql: &str) -> Result<String, String> {
        let answer = self.post("/", sql.to_owned()).await?;
        if answer.status.is_success() {
            Ok(answer.text().trim().to_owned())
        } else {
            Err(answer.text())
        }
    }
}
