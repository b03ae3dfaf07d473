//! Logs and traces of a process: one line an error on stderr, human or JSON; spans over OTLP where
//! `telemetry.otlp_endpoint` is set.

mod fields;

use crate::config::Config;
use crate::trace::TraceContext;
use fields::JsonFields;
use opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState, TracerProvider as _,
};
use opentelemetry_otlp::{WithExportConfig, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Subscriber;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Human,
    Json,
}

/// Traces could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("traces cannot be exported: {0}; see `telemetry.otlp_endpoint`")]
pub struct TelemetryError(String);

/// Keeps the exporter; ending it sends what is left.
#[derive(Debug)]
pub struct Telemetry(Option<SdkTracerProvider>);

/// The client that OTLP goes out with; it never follows a proxy of the environment to a loopback.
pub(crate) fn otlp_client() -> reqwest::blocking::Client {
    // A blocking client starts a runtime of its own, which may not happen on a runtime's thread.
    let build = || {
        reqwest::blocking::Client::builder()
            .timeout(std::time::Duration::from_secs(5))
            .build()
    };
    let client = std::thread::spawn(build).join();
    client.ok().and_then(Result::ok).unwrap_or_default()
}

/// Begins logging, and tracing where it is configured. `RUST_LOG` filters; the default is `info`.
///
/// # Errors
/// [`TelemetryError`] where the endpoint cannot be used.
pub fn begin(service: &'static str, config: &Config, format: LogFormat) -> Result<Telemetry, TelemetryError> {
    let provider = config
        .telemetry
        .otlp_endpoint
        .as_deref()
        .map(|endpoint| exporter(service, endpoint));
    let provider = provider.transpose()?;
    let spans = provider.as_ref().map(|provider| {
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("sluice"));
        layer.with_filter(EnvFilter::new("info,clickhouse=off,hyper=off,h2=off"))
    });
    // A second call in one process (tests) keeps the first one's lines.
    match spans {
        Some(spans) => {
            let lines = lines(format).with_filter(filter());
            tracing_subscriber::registry()
                .with(lines)
                .with(spans)
                .try_init()
                .ok();
        }
        // A filter of the whole is asked once for each place in the code; one of a layer, each time that a span is entered
        // or left, and so is one that may look into spans.
        None => {
            let (all, lines) = (tracing_subscriber::registry(), lines(format));
            match targets(&words()) {
                Some(targets) => all.with(lines).with(targets).try_init().ok(),
                None => all.with(lines).with(filter()).try_init().ok(),
            };
        }
    }
    Ok(Telemetry(provider))
}

fn lines<S>(format: LogFormat) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    match format {
        LogFormat::Human => lines.compact().boxed(),
        LogFormat::Json => lines.json().flatten_event(true).fmt_fields(JsonFields).boxed(),
    }
}

/// What is logged: `RUST_LOG`, where there is something that can be read.
fn words() -> String {
    let told = std::env::var(EnvFilter::DEFAULT_ENV).ok();
    told.filter(|told| !told.trim().is_empty() && EnvFilter::try_new(told).is_ok())
        .unwrap_or_else(|| "info,clickhouse=error".to_owned())
}

/// The same as [`filter`], where nothing is asked of spans; what either reads in its own way is left to that one.
fn targets(words: &str) -> Option<Targets> {
    let is_plain = |one: &str| {
        !one.trim().is_empty() && !one.contains(['[', ']', '{', '}']) && !one.trim().ends_with('=')
    };
    let plain = words.split(',').all(is_plain);
    plain.then(|| words.parse().ok())?
}

fn filter() -> EnvFilter {
    EnvFilter::new(words())
}

fn exporter(service: &'static str, endpoint: &str) -> Result<SdkTracerProvider, TelemetryError> {
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_http_client(otlp_client())
        .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
        .build()
        .map_err(|error| TelemetryError(error.to_string()))?;
    let resource = Resource::builder().with_service_name(service).build();
    Ok(SdkTracerProvider::builder()
        .with_resource(resource)
        .with_batch_exporter(exporter)
        .build())
}

impl Telemetry {
    /// Sends what is left; blocks for at most a few seconds.
    pub fn end(self) {
        if let Some(provider) = self.0
            && let Err(error) = provider.shutdown_with_timeout(std::time::Duration::from_secs(3))
        {
            tracing::debug!(%error, "spans were not flushed");
        }
    }
}

/// Makes `span` a child of `parent`, where there is one.
pub fn set_parent(span: &tracing::Span, parent: TraceContext) {
    if parent.is_some() {
        let context = opentelemetry::Context::new().with_remote_span_context(remote(parent));
        // Fails only where no exporter listens.
        span.set_parent(context).ok();
    }
}

/// Links `span` to a request's trace: a range holds the rows of many.
pub fn link(span: &tracing::Span, to: TraceContext) {
    if to.is_some() {
        span.add_link(remote(to));
    }
}

fn remote(context: TraceContext) -> SpanContext {
    let flags = if context.sampled {
        TraceFlags::SAMPLED
    } else {
        TraceFlags::default()
    };
    let (trace, span) = (TraceId::from(context.trace_id), SpanId::from(context.span_id));
    SpanContext::new(trace, span, flags, true, TraceState::default())
}

/// The context that calls made within `span` carry: the span's own where an exporter listens, else
/// `otherwise`, so that a client's trace goes through even where we export nothing.
#[must_use]
pub fn context_of(span: &tracing::Span, otherwise: TraceContext) -> TraceContext {
    let context = span.context();
    let span_context = context.span().span_context().clone();
    if !span_context.is_valid() {
        return otherwise;
    }
    TraceContext {
        trace_id: u128::from_be_bytes(span_context.trace_id().to_bytes()),
        span_id: u64::from_be_bytes(span_context.span_id().to_bytes()),
        sampled: span_context.is_sampled(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing::Level;

    #[test]
    fn what_targets_would_read_otherwise_is_left_to_the_other_filter() {
        for words in [
            "",
            "info,",
            ",info",
            "info,[request]=debug",
            "[{tenant}]=debug",
            "sluice_edge=",
            "a=b=c",
        ] {
            assert!(targets(words).is_none(), "{words}");
        }
        let found = targets("info,clickhouse=error").expect("plain");
        assert!(found.would_enable("sluice_edge", &Level::INFO));
        assert!(!found.would_enable("sluice_edge", &Level::DEBUG));
        assert!(!found.would_enable("clickhouse", &Level::WARN));
    }
}
