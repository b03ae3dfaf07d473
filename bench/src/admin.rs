//! What a running Sluice says of itself: its metrics.

use bytes::Bytes;
use http::Method;
use ingestctl::http::{Ask, Http};
use ingestctl::picture::scrape::{Histogram, Scrape};
use sluice_common::process::Failure;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(10);

/// The admin listeners of one Sluice.
#[derive(Debug, Clone)]
pub struct Admin {
    http: Http,
    listeners: Vec<String>,
}

impl Admin {
    /// Of these, `http://host:port`.
    #[must_use]
    pub fn new(listeners: &[String]) -> Self {
        Self {
            http: Http::default(),
            listeners: listeners.to_vec(),
        }
    }

    /// All their metrics, in one text.
    ///
    /// # Errors
    /// Where one does not answer.
    pub async fn metrics(&self) -> Result<Metrics, Failure> {
        let mut text = String::new();
        for listener in &self.listeners {
            let url = format!("{listener}/metrics");
            let ask = Ask {
                method: Method::GET,
                url: &url,
                bearer: None,
                content_type: None,
                body: Bytes::new(),
                deadline: DEADLINE,
            };
            let (_, answer) = self.http.send(ask).await?;
            text += &String::from_utf8_lossy(&answer);
            text.push('\n');
        }
        Ok(Metrics(text))
    }

    /// A distribution since the start, over all of them.
    ///
    /// # Errors
    /// As [`Self::metrics`].
    pub async fn histogram(&self, name: &str) -> Result<Histogram, Failure> {
        Ok(Scrape::parse(&self.metrics().await?.0).histogram(name))
    }

    /// What is in the log and not in ClickHouse yet.
    ///
    /// # Errors
    /// As [`Self::metrics`].
    pub async fn backlog_bytes(&self) -> Result<f64, Failure> {
        Ok(self.metrics().await?.sum("sluice_log_backlog_bytes", ""))
    }
}

/// Metrics of one moment.
#[derive(Debug)]
pub struct Metrics(String);

impl Metrics {
    /// The sum of a metric's samples whose line holds `label`; zero of none.
    #[must_use]
    pub fn sum(&self, name: &str, label: &str) -> f64 {
        let samples = self.samples(name);
        samples
            .filter_map(|(labels, value)| labels.contains(label).then_some(value))
            .sum()
    }

    /// A metric's samples, each with its labels.
    pub fn samples(&self, name: &str) -> impl Iterator<Item = (&str, f64)> {
        self.0.lines().filter_map(move |line| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = rest.rsplit_once(' ')?;
            let whole = labels.is_empty() || labels.starts_with('{');
            Some((labels, value.parse().ok().filter(|_| whole)?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_one_metric_are_summed_and_those_of_a_longer_name_are_not() {
        let metrics = Metrics("a{x=\"1\"} 2\na{x=\"2\"} 3\nab 7\n# a 9\n".to_owned());
        assert!((metrics.sum("a", "") - 5.0).abs() < 1e-9);
        assert!((metrics.sum("a", "x=\"2\"") - 3.0).abs() < 1e-9);
        assert!(metrics.sum("c", "").abs() < 1e-9);
    }
}
