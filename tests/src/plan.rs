//! What is to be started: its shape, and what is in it.

use crate::Deployment;
use std::path::Path;

/// The tenants of a deployment that does not say how many: `t0`, `t1`, `t2`.
pub(crate) const TENANTS: usize = 3;

/// One process with everything, or three and a ClickHouse beside them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    AllInOne,
    ThreeProcesses,
}

/// What can be killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// `ingestctl up`, its ClickHouse with it.
    Up,
    Edge,
    Normalizer,
    SinkWriter,
    ClickHouse,
    /// Where the plan has two of each.
    SecondEdge,
    SecondSinkWriter,
    /// Where the plan has two that share a log.
    SecondNormalizer,
    /// Where it has three.
    ThirdNormalizer,
}

impl Part {
    /// All processes of ours, whatever the shape.
    pub const OURS: [Self; 8] = [
        Self::Up,
        Self::Edge,
        Self::Normalizer,
        Self::SinkWriter,
        Self::SecondEdge,
        Self::SecondSinkWriter,
        Self::SecondNormalizer,
        Self::ThirdNormalizer,
    ];
}

/// A way between two parts, on which a proxy may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hop {
    EdgeToNormalizer,
    NormalizerToSinkWriter,
    /// In either shape; ClickHouse stands beside Sluice then.
    ToClickHouse,
}

/// What is to be started.
#[derive(Debug, Clone)]
pub struct Plan {
    pub(crate) shape: Shape,
    pub(crate) tenants: usize,
    pub(crate) hops: Vec<Hop>,
    pub(crate) clickhouse: String,
    pub(crate) extra: String,
    pub(crate) data_bytes: Option<u64>,
    pub(crate) server_bytes: Option<u64>,
    pub(crate) small_files: bool,
    pub(crate) twins: bool,
    pub(crate) twin_normalizers: bool,
    pub(crate) third_normalizer: bool,
}

impl Plan {
    /// Three tenants, the default datasets.
    #[must_use]
    pub fn new(shape: Shape) -> Self {
        Self {
            shape,
            tenants: TENANTS,
            hops: Vec::new(),
            clickhouse: String::new(),
            extra: String::new(),
            data_bytes: None,
            server_bytes: None,
            small_files: false,
            twins: false,
            twin_normalizers: false,
            third_normalizer: false,
        }
    }

    /// With segments so small and buckets of dedup so short that seconds of load roll, seal and merge them.
    #[must_use]
    pub fn small_files(self, small_files: bool) -> Self {
        Self { small_files, ..self }
    }

    /// Two edges and two sink-writers, of three processes: clients take the edges in turn.
    #[must_use]
    pub fn twins(self, twins: bool) -> Self {
        Self { twins, ..self }
    }

    /// Two of everything, of three processes: the normalizers share the log that the config names.
    #[must_use]
    pub fn twin_normalizers(self) -> Self {
        Self {
            twins: true,
            twin_normalizers: true,
            ..self
        }
    }

    /// The same with a third normalizer.
    #[must_use]
    pub fn three_normalizers(self) -> Self {
        Self {
            third_normalizer: true,
            ..self.twin_normalizers()
        }
    }

    /// So many tenants: `t0`, `t1`, …
    #[must_use]
    pub fn tenants(self, tenants: usize) -> Self {
        Self { tenants, ..self }
    }

    /// With a proxy on a hop.
    #[must_use]
    pub fn proxied(mut self, hop: Hop) -> Self {
        self.hops.push(hop);
        self
    }

    /// YAML added to the top level of the config (`log`, `datasets`, …).
    #[must_use]
    pub fn extra(self, extra: &str) -> Self {
        let extra = extra.to_owned();
        Self { extra, ..self }
    }

    /// Keys of `clickhouse` beside its address, where it stands beside Sluice: `park_after: 2s`.
    #[must_use]
    pub fn clickhouse(self, keys: &str) -> Self {
        let clickhouse = format!(", {keys}");
        Self { clickhouse, ..self }
    }

    /// The data directory of Sluice is a volume of so many bytes.
    #[must_use]
    pub fn data_volume(self, bytes: u64) -> Self {
        let data_bytes = Some(bytes);
        Self { data_bytes, ..self }
    }

    /// The directory of the ClickHouse beside Sluice is a volume of so many bytes.
    #[must_use]
    pub fn clickhouse_volume(self, bytes: u64) -> Self {
        let server_bytes = Some(bytes);
        Self { server_bytes, ..self }
    }

    /// # Panics
    /// Where a part does not get ready, or a volume cannot be mounted.
    pub async fn start(self) -> Deployment {
        self.start_prepared(|_| {}).await
    }

    /// The same; `prepare` is given the directory of everything before the first process starts.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub async fn start_prepared(self, prepare: impl FnOnce(&Path)) -> Deployment {
        Deployment::of(self, prepare).await
    }

    /// Whether ClickHouse is a process beside Sluice.
    pub(crate) fn has_server(&self) -> bool {
        let all_in_one = self.hops.contains(&Hop::ToClickHouse) || self.server_bytes.is_some();
        match self.shape {
            Shape::AllInOne => all_in_one,
            Shape::ThreeProcesses => true,
        }
    }
}
