//! The metrics of CONTRACT.md. One instrumentation serves `/metrics` (Prometheus) and OTLP.
//!
//! Names are enum variants; each documents its labels. Zeros are exported from the start, so that a
//! rate over a first event is seen.

mod sums;

use crate::config::Config;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{self as otel, Meter, MeterProvider};
use opentelemetry_otlp::{WithExportConfig, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use parking_lot::Mutex;
use prometheus::core::Collector as _;
use prometheus::proto::MetricFamily;
use prometheus::{HistogramOpts, Registry, TextEncoder};
use std::sync::Arc;
use std::time::Duration;
use sums::Sums;

/// Label names and values of one measurement.
pub type Labels<'a> = &'a [(&'static str, &'a str)];

macro_rules! names {
    ($(#[$doc:meta])* $enum:ident { $($(#[$vdoc:meta])* $variant:ident = $name:literal, $help:literal;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $enum { $($(#[$vdoc])* $variant,)* }

        impl $enum {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];
            /// The name, the same in Prometheus and OTLP.
            #[must_use]
            pub const fn name(self) -> &'static str { match self { $(Self::$variant => $name,)* } }
            /// What it says, for `# HELP`.
            #[must_use]
            pub const fn help(self) -> &'static str { match self { $(Self::$variant => $help,)* } }
        }
    };
}

names! {
    /// Things that are counted.
    Counter {
        /// `stage` edge, intake, dedup, sink; `outcome` accepted, rejected, refused, kept, duplicate, conflict, stored, dead_lettered, parked.
        Events = "sluice_events_total", "Events by stage and outcome.";
        /// `stage` edge (decompressed bodies), log (frames), sink (blocks sent).
        Bytes = "sluice_bytes_total", "Bytes by stage.";
        /// `dataset`, `field`.
        UnitConversions = "sluice_unit_conversions_total", "Values converted from one unit into another.";
        /// `dataset`.
        DroppedFields = "sluice_dropped_fields_total", "Members of taken events that the dataset does not know and drops.";
        /// `dataset`.
        LateEvents = "sluice_late_events_total", "Events taken within their age bounds, but more than an hour old.";
        /// `route`, `code`.
        HttpRequests = "sluice_http_requests_total", "HTTP requests answered on the public listener.";
        /// `where` edge, intake, log, sink; `reason`.
        Shed = "sluice_shed_total", "Requests refused for want of room, by place and reason.";
        /// `tenant` (as in `TenantEvents`), `policy`, `mode` refused, dry_run.
        QuotaRefusals = "sluice_quota_refusals_total", "Requests over a quota, refused, or taken all the same in a dry run.";
        /// `class` of `classify`.
        ClickHouseErrors = "sluice_clickhouse_errors_total", "Errors of ClickHouse calls by class.";
        /// `outcome` all, none, between, unknown.
        Verify = "sluice_verify_total", "Sub-batches counted on the server, by what was found.";
        /// `tenant`, `outcome` accepted, rejected. The first 200 tenants that send; the rest as `other`.
        TenantEvents = "sluice_tenant_events_total", "Events by tenant and outcome, as the edge answered.";
        /// `tenant`, in the same way.
        TenantBytes = "sluice_tenant_bytes_total", "Decompressed bytes of answered requests by tenant.";
        /// `outcome` applied, refused.
        TenantsFileReads = "sluice_tenants_file_reads_total", "Changes of the tenants file that were seen.";
        Retries = "sluice_retries_total", "Calls to the sink-writer that were made again after a failure.";
        GenerationBumps = "sluice_token_generation_bumps_total", "Tokens given up because the server had recorded them without their rows.";
        /// `reason`.
        DeadLetters = "sluice_dead_letters_total", "Events written to dead_letters.";
        /// `outcome` written, left_out.
        ReplayEvents = "sluice_replay_events_total", "Events that replays have read.";
        /// `outcome` done, failed, late, crowded_out, plain_http.
        TlsHandshakes = "sluice_tls_handshakes_total", "TLS handshakes by how they ended.";
        /// `certificate` edge, internal, clickhouse; `outcome` applied, refused.
        TlsReloads = "sluice_tls_reloads_total", "Changed certificate files, put in force or refused.";
        /// `reason` budget, request.
        DeadLettersDropped = "sluice_dead_letters_dropped_total", "Rejected rows of which no copy was kept.";
        Unbooked = "sluice_ledger_unbooked_events_total", "Rejected events of requests rejected whole, over what a tenant's requests may leave in the books.";
        /// `outcome` applied, refused, unchanged.
        ConfigReloads = "sluice_config_reloads_total", "Config files read again, by what became of them.";
        /// `reason`.
        StaleCommits = "sluice_stale_commits_total", "Commits of a partition of the log that came after it had gone to another normalizer; they were dropped.";
        Alarms = "sluice_alarms_total", "Times that something needed an operator; the log line says what to do.";
    }
}

names! {
    /// Distributions.
    Histogram {
        /// `route`.
        RequestDuration = "sluice_request_duration_seconds", "From a request's head to its answer.";
        AckDuration = "sluice_ack_duration_seconds", "From a request's head to its 2xx.";
        Freshness = "sluice_freshness_seconds", "From an event's append to its being queryable.";
        QueueWait = "sluice_queue_wait_seconds", "From a whole body to its turn, of requests that had to wait for one.";
        InsertDuration = "sluice_insert_duration_seconds", "One insert into ClickHouse.";
        InsertRows = "sluice_insert_rows", "Rows of one insert.";
    }
}

names! {
    /// Levels, read when they are asked for.
    Gauge {
        /// `queue` edge, intake, log, sink.
        QueueBytes = "sluice_queue_bytes", "Bytes held in a bounded queue.";
        /// `queue`.
        QueueLimitBytes = "sluice_queue_limit_bytes", "The bound of that queue.";
        Connections = "sluice_connections", "Open connections of the public listeners.";
        /// `queue` edge.
        QueueRequests = "sluice_queue_requests", "Requests that wait for their turn.";
        /// `normalizer`: its place in `edge.normalizer`, from 0.
        ForwardRequests = "sluice_forward_requests", "Requests under way to a normalizer.";
        /// `normalizer`.
        ForwardLimit = "sluice_forward_limit_requests", "Requests that may be under way to it; it finds itself.";
        /// `partition`.
        LogBacklogBytes = "sluice_log_backlog_bytes", "Log bytes that are not yet stored.";
        /// `partition`.
        LogBacklogAge = "sluice_log_backlog_age_seconds", "Age of the oldest record that is not yet stored.";
        LogBacklogLimitBytes = "sluice_log_backlog_limit_bytes", "`log.max_bytes`: at it clients get 503.";
        GrantInForce = "sluice_grant_in_force", "Tenants' shares: 0 not in force, 1 of what is drained, 2 of the log's room because nothing is drained.";
        GrantBytes = "sluice_grant_bytes_per_second", "What all tenants together may append a second; 0 while shares of what is drained are not in force.";
        DrainBytes = "sluice_drain_bytes_per_second", "Log bytes that are stored a second, while there are any.";
        LogDiskBytes = "sluice_log_disk_bytes", "Disk that the log takes.";
        DedupKeys = "sluice_dedup_keys", "Keys that dedup remembers.";
        DedupDiskBytes = "sluice_dedup_disk_bytes", "Disk that the dedup state takes.";
        DedupLimitBytes = "sluice_dedup_limit_bytes", "`dedup.max_bytes`: at it writing waits.";
        /// `partition`: 1 while a range cannot be settled.
        Unsettled = "sluice_unsettled", "1 while a declared range cannot be settled and is retried.";
        /// `table` of a configured dataset.
        PartsRatio = "sluice_table_parts_ratio", "Parts of the table's fullest partition, in parts of the number at which ClickHouse delays inserts.";
        /// `table` of a configured dataset.
        PaceFactor = "sluice_pace_factor", "By how much ranges with rows of the table may grow longer; 1 is as configured.";
        InsertSlots = "sluice_insert_slots", "Sub-batches that ClickHouse is given at once, as learned from its answers.";
        InsertSlotsBusy = "sluice_insert_slots_busy", "Of those, the ones in use.";
        OpenCircuits = "sluice_open_circuits", "Tables that keep failing and get one probe at a time.";
        /// `certificate` edge, internal.
        TlsCertificateExpiry = "sluice_tls_certificate_expiry_seconds", "When the certificate that is shown expires, as a Unix time.";
        ConfigRestartPending = "sluice_config_restart_pending", "1 while the config file has changes that wait for the next start.";
        /// `dataset`.
        ParkedBytes = "sluice_parked_bytes", "Bytes of rows that wait for a table in trouble.";
        /// `table` of a configured dataset.
        ParkedUnits = "sluice_parked_units", "Shares of ranges that wait for a table in trouble.";
        /// `dataset` with a topic.
        PublishWaitingBytes = "sluice_publish_waiting_bytes", "Bytes of events that wait for their Kafka topic.";
        /// `dataset`, `group`, `topic`, `partition` of topics that a dataset is fed from.
        ConsumerLag = "sluice_kafka_consumer_lag", "Messages of a Kafka topic that are there and not yet read; of partitions that this process reads.";
        /// `dataset`, where dead letters have a topic.
        LettersWaitingBytes = "sluice_dead_letters_waiting_bytes", "Bytes of records with dead letters that wait for their Kafka topic.";
        /// `tenant` with a quota.
        QuotaUsedRatio = "sluice_quota_used_ratio", "What was taken in the last ten seconds or so over what the quota gives: the highest of its limits.";
        /// `server`.
        ClickHouseUp = "sluice_clickhouse_up", "1 while that ClickHouse answers.";
        /// `server`: 1 at one of them.
        ClickHouseInUse = "sluice_clickhouse_in_use", "1 at the ClickHouse that new ranges go to.";
        LedgerImbalance = "sluice_ledger_imbalance_events", "Events by which the books of settled ranges missed what was proven of them; must be 0.";
        /// `version`: always 1.
        BuildInfo = "sluice_build_info", "The release.";
    }
}

impl Histogram {
    fn bounds(self) -> Vec<f64> {
        match self {
            Self::InsertRows => vec![1.0, 10.0, 100.0, 1e3, 5e3, 1e4, 2.5e4, 5e4, 1e5, 2.5e5, 5e5],
            Self::RequestDuration
            | Self::AckDuration
            | Self::Freshness
            | Self::QueueWait
            | Self::InsertDuration => vec![
                0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5,
                2.5, 5.0, 10.0, 30.0, 60.0,
            ],
        }
    }
}

/// Values of one level, each with its labels.
pub type Values = Vec<(Vec<(&'static str, String)>, f64)>;
type Reading = Box<dyn Fn(&mut dyn FnMut(f64, &[KeyValue])) + Send + Sync>;
type Readings = Arc<Mutex<Vec<Reading>>>;

/// The instruments of one process. Cloning shares them.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    provider: SdkMeterProvider,
    /// Each in the order of its names.
    counters: Vec<Arc<Sums>>,
    histograms: Vec<otel::Histogram<f64>>,
    gauges: Vec<Readings>,
    /// Distributions of which nothing was recorded yet: the exporter knows no empty ones.
    empty: Mutex<Vec<MetricFamily>>,
}

/// The exporters could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("metrics cannot be exported: {0}; see `telemetry.otlp_endpoint`")]
pub struct MetricsError(String);

/// How often metrics go out over OTLP.
const OTLP_INTERVAL: Duration = Duration::from_secs(10);

impl Metrics {
    /// Sets up the instruments; `service` names the process in OTLP.
    ///
    /// # Errors
    /// [`MetricsError`] where the OTLP endpoint's address cannot be used.
    pub fn new(service: &'static str, config: &Config) -> Result<Self, MetricsError> {
        let wrong = |error: &dyn std::fmt::Display| MetricsError(error.to_string());
        let registry = Registry::new();
        let process = prometheus::process_collector::ProcessCollector::for_self();
        registry
            .register(Box::new(process))
            .map_err(|error| wrong(&error))?;
        let reader = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .without_units()
            .without_counter_suffixes()
            .scope_info_enabled(false)
            .without_target_info()
            .build()
            .map_err(|error| wrong(&error))?;
        let resource = Resource::builder().with_service_name(service).build();
        let mut builder = SdkMeterProvider::builder()
            .with_resource(resource)
            .with_reader(reader);
        if let Some(endpoint) = &config.telemetry.otlp_endpoint {
            let exporter = opentelemetry_otlp::MetricExporter::builder()
                .with_http()
                .with_http_client(crate::telemetry::otlp_client())
                .with_endpoint(format!("{}/v1/metrics", endpoint.trim_end_matches('/')))
                .build()
                .map_err(|error| wrong(&error))?;
            let periodic = opentelemetry_sdk::metrics::PeriodicReader::builder(exporter)
                .with_interval(OTLP_INTERVAL)
                .build();
            builder = builder.with_reader(periodic);
        }
        Ok(Self::with_provider(registry, builder.build()))
    }

    fn with_provider(registry: Registry, provider: SdkMeterProvider) -> Self {
        let meter = provider.meter("sluice");
        let counters = Counter::ALL.iter().map(|one| counter(&meter, *one));
        let histograms = Histogram::ALL.iter().map(|one| histogram(&meter, *one));
        let gauges = Gauge::ALL.iter().map(|one| gauge(&meter, *one));
        let inner = Inner {
            counters: counters.collect(),
            histograms: histograms.collect(),
            gauges: gauges.collect(),
            empty: Mutex::default(),
            registry,
            provider,
        };
        let metrics = Self(Arc::new(inner));
        metrics.watch(
            Gauge::BuildInfo,
            &[("version", env!("CARGO_PKG_VERSION"))],
            || 1.0,
        );
        metrics
    }

    /// Metrics that nobody exports, for tests.
    #[must_use]
    pub fn detached() -> Self {
        Self::with_provider(Registry::new(), SdkMeterProvider::builder().build())
    }

    /// Counts `n` more.
    pub fn add(&self, counter: Counter, n: u64, labels: Labels<'_>) {
        if let Some(sums) = self.0.counters.get(counter as usize) {
            sums.add(n, labels);
        }
    }

    /// Exports zeros for label sets that are known beforehand.
    pub fn zeros(&self, counter: Counter, label_sets: &[Labels<'_>]) {
        label_sets.iter().for_each(|labels| self.add(counter, 0, labels));
    }

    /// Exports a distribution as empty until something is recorded in it.
    pub fn announce(&self, histogram: Histogram, labels: Labels<'_>) {
        let mut options = HistogramOpts::new(histogram.name(), histogram.help()).buckets(histogram.bounds());
        for (name, value) in labels {
            options = options.const_label(*name, *value);
        }
        match prometheus::Histogram::with_opts(options) {
            Ok(empty) => self.0.empty.lock().extend(empty.collect()),
            Err(error) => tracing::debug!(%error, "a distribution is not shown before its first value"),
        }
    }

    /// Records one value.
    pub fn record(&self, histogram: Histogram, value: f64, labels: Labels<'_>) {
        if let Some(instrument) = self.0.histograms.get(histogram as usize) {
            instrument.record(value, &pairs(labels));
        }
    }

    /// Has a level read by `read` whenever metrics are asked for.
    pub fn watch(&self, gauge: Gauge, labels: Labels<'_>, read: impl Fn() -> f64 + Send + Sync + 'static) {
        if let Some(readings) = self.0.gauges.get(gauge as usize) {
            let labels = pairs(labels);
            readings.lock().push(Box::new(move |tell| tell(read(), &labels)));
        }
    }

    /// The same of a level whose labels come and go: all its values at a time. The caller bounds them.
    pub fn watch_all(&self, gauge: Gauge, read: impl Fn() -> Values + Send + Sync + 'static) {
        let told = move |tell: &mut dyn FnMut(f64, &[KeyValue])| {
            for (labels, value) in read() {
                let labels = labels.into_iter().map(|(name, value)| KeyValue::new(name, value));
                tell(value, &labels.collect::<Vec<_>>());
            }
        };
        if let Some(readings) = self.0.gauges.get(gauge as usize) {
            readings.lock().push(Box::new(told));
        }
    }

    /// The Prometheus text.
    #[must_use]
    pub fn render(&self) -> String {
        let mut families = self.0.registry.gather();
        let is_there = |name: &str| families.iter().any(|family| family.name() == name);
        let empty: Vec<_> = self.0.empty.lock().clone();
        let missing = empty.into_iter().filter(|family| !is_there(family.name()));
        let missing: Vec<_> = missing.collect();
        families.extend(missing);
        TextEncoder::new().encode_to_string(&families).unwrap_or_default()
    }

    /// Sends what is left over OTLP; blocks for at most a few seconds.
    pub fn shutdown(&self) {
        if let Err(error) = self.0.provider.shutdown_with_timeout(Duration::from_secs(3)) {
            tracing::debug!(%error, "metrics were not flushed");
        }
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

fn pairs(labels: Labels<'_>) -> Vec<KeyValue> {
    labels
        .iter()
        .map(|(name, value)| KeyValue::new(*name, (*value).to_owned()))
        .collect()
}

fn counter(meter: &Meter, which: Counter) -> Arc<Sums> {
    let sums = Arc::<Sums>::default();
    let told = Arc::clone(&sums);
    let instrument = meter
        .u64_observable_counter(which.name())
        .with_description(which.help());
    instrument
        .with_callback(move |observer| told.tell(|value, labels| observer.observe(value, labels)))
        .build();
    sums
}

fn histogram(meter: &Meter, which: Histogram) -> otel::Histogram<f64> {
    let builder = meter.f64_histogram(which.name()).with_description(which.help());
    builder.with_boundaries(which.bounds()).build()
}

fn gauge(meter: &Meter, which: Gauge) -> Readings {
    let readings = Readings::default();
    let read = Arc::clone(&readings);
    let instrument = meter
        .f64_observable_gauge(which.name())
        .with_description(which.help());
    instrument
        .with_callback(move |observer| {
            for reading in read.lock().iter() {
                reading(&mut |value, labels| observer.observe(value, labels));
            }
        })
        .build();
    readings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Loaded;
    use std::path::Path;

    fn metrics() -> Metrics {
        let loaded = Loaded::parse("{}", Path::new("x"), Path::new("/")).expect("valid");
        Metrics::new("test", &loaded.config).expect("set up")
    }

    #[test]
    fn what_is_measured_is_rendered_under_its_name() {
        let metrics = metrics();
        metrics.zeros(Counter::Shed, &[&[("where", "edge"), ("reason", "overloaded")]]);
        metrics.add(Counter::Events, 3, &[("stage", "edge"), ("outcome", "accepted")]);
        metrics.record(Histogram::AckDuration, 0.004, &[]);
        metrics.watch(Gauge::QueueBytes, &[("queue", "edge")], || 42.0);
        metrics.announce(Histogram::AckDuration, &[]);
        metrics.announce(Histogram::Freshness, &[]);
        let text = metrics.render();
        for line in [
            r#"sluice_events_total{outcome="accepted",stage="edge"} 3"#,
            r#"sluice_shed_total{reason="overloaded",where="edge"} 0"#,
            r#"sluice_queue_bytes{queue="edge"} 42"#,
            r#"sluice_ack_duration_seconds_bucket{le="0.005"} 1"#,
            "sluice_ack_duration_seconds_count 1\n",
            "sluice_freshness_seconds_count 0\n",
            "sluice_build_info{version=",
            "process_resident_memory_bytes",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}
