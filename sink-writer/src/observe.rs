//! What the sink-writer measures of itself. Whether a sub-batch counts as stored is the pump's to say:
//! it alone knows which attempt was the last.

use crate::admit::Budget;
use crate::client::ServerError;
use crate::limiter::Limiter;
use sluice_common::classify::{Class, classify};
use sluice_common::limits::SINK_CALL_BYTES;
use sluice_common::metrics::{Counter, Gauge, Histogram, Metrics};
use sluice_common::settle::Found;
use std::time::Duration;

/// The label of errors that no code came with.
const UNCERTAIN: &str = "uncertain";

/// The sink-writer's instruments. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Observer(Metrics);

impl Observer {
    /// Exports zeros, and has `budget` and the servers' `limiters` watched.
    #[must_use]
    pub fn new(metrics: &Metrics, budget: &Budget, limiters: Vec<Limiter>) -> Self {
        for class in [
            Class::Quarantine.label(),
            Class::Retry.label(),
            Class::Alarm.label(),
            UNCERTAIN,
        ] {
            metrics.zeros(Counter::ClickHouseErrors, &[&[("class", class)]]);
        }
        for outcome in Found::LABELS {
            metrics.zeros(Counter::Verify, &[&[("outcome", outcome)]]);
        }
        metrics.zeros(Counter::Bytes, &[&[("stage", "sink")]]);
        metrics.zeros(Counter::Shed, &[&[("where", "sink"), ("reason", "budget")]]);
        metrics.announce(Histogram::InsertDuration, &[]);
        metrics.announce(Histogram::InsertRows, &[]);
        let budget = budget.clone();
        metrics.watch(Gauge::QueueBytes, &[("queue", "sink")], move || {
            budget.held() as f64
        });
        metrics.watch(Gauge::QueueLimitBytes, &[("queue", "sink")], || {
            SINK_CALL_BYTES as f64
        });
        let watch = |gauge: Gauge, of: fn(&Limiter) -> usize| {
            let limiters = limiters.clone();
            metrics.watch(gauge, &[], move || limiters.iter().map(of).sum::<usize>() as f64);
        };
        watch(Gauge::InsertSlots, Limiter::slots);
        watch(Gauge::InsertSlotsBusy, Limiter::busy);
        watch(Gauge::OpenCircuits, Limiter::open_circuits);
        Self(metrics.clone())
    }

    /// A call was refused for want of room.
    pub fn refused(&self) {
        self.0
            .add(Counter::Shed, 1, &[("where", "sink"), ("reason", "budget")]);
    }

    /// One insert was answered, or not.
    pub fn inserted(&self, rows: u64, bytes: usize, took: Duration, answer: &Result<(), ServerError>) {
        self.0.record(Histogram::InsertDuration, took.as_secs_f64(), &[]);
        self.0.record(Histogram::InsertRows, rows as f64, &[]);
        self.0.add(Counter::Bytes, bytes as u64, &[("stage", "sink")]);
        if let Err(error) = answer {
            self.failed(error);
        }
    }

    /// A sub-batch was counted on the server.
    pub fn verified(&self, found: &Found) {
        self.0.add(Counter::Verify, 1, &[("outcome", found.label())]);
    }

    /// A query or insert failed.
    pub fn failed(&self, error: &ServerError) {
        let class = match error {
            ServerError::Definite { code, .. } => classify(*code).label(),
            ServerError::Unreached(_) | ServerError::Uncertain(_) => UNCERTAIN,
        };
        self.0.add(Counter::ClickHouseErrors, 1, &[("class", class)]);
    }
}
