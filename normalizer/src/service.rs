//! The intake service: what the edge calls. Admit, parse, append, answer.

use crate::append::{Appender, NotAppended};
use crate::grant::shares::Refused;
use crate::grant::{Grant, Taken, Why};
use crate::intake::{Drift, DriftReport, Intake, NotParsed, Parsed};
use crate::key_cap::{KeyCap, OverCap};
use crate::log::{Backlog, Log};
use crate::owned::{Owned, Work};
use crate::parked::shelf::Shelf;
use crate::tenant_rate::TenantRate;
use http::StatusCode;
use sluice_common::clock::{SharedClock, UnixMs};
use sluice_common::error::{Limit, Problem};
use sluice_common::ids::Name;
use sluice_common::limits::{INTAKE_BYTES, REJECT_MARKS_PER_SECOND};
use sluice_common::metered::ByteBudget;
use sluice_common::metrics::{Counter, Gauge, Metrics};
use sluice_common::telemetry;
use sluice_common::wire::intake::{BusyScope, IntakeReply, IntakeRequest, RowError};
use sluice_common::wire::transport::Seam;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tower::util::BoxCloneSyncService;
use tracing::Instrument as _;

/// Bodies up to this size are parsed on the spot; larger ones give their worker thread away first.
const SMALL_BODY_BYTES: usize = 32 * 1024;
/// What parsing holds at first: the body, and columns of its size. Columns that outgrow it are charged
/// as they are made.
const PARSE_FACTOR: usize = 2;
/// What the edge is told to wait where the log is full.
const FULL_RETRY: Duration = Duration::from_millis(250);

/// How long after its deadline an append that has begun is waited for; its caller waits a little longer.
const APPEND_GRACE: Duration = Duration::from_millis(250);
/// Shed: the request's time was over before its append began.
const TOO_LATE: &[(&str, &str)] = &[("where", "intake"), ("reason", "too_late")];

/// Labels of what is shed for a dataset's sake, and what its clients are told.
const WAITS_FOR_TABLE: (&str, &str) = ("parked", "no rows are taken by the table");
const WAITS_FOR_TOPIC: (&str, &str) = ("unpublished", "no events are taken by the Kafka topic");
const WAITS_FOR_LETTERS: (&str, &str) = (
    "unpublished_letters",
    "the Kafka topic of dead letters takes none",
);
/// What the edge is told to wait where a dataset's table takes no rows.
const PARKED_RETRY_MS: u64 = 10_000;

/// One of a partition's shelves.
type ShelfOf = fn(&Work) -> &Shelf;

/// The intake half of a normalizer.
pub struct IntakeService {
    pub intake: Intake,
    pub drift: Drift,
    pub appender: Appender,
    pub log: Arc<dyn Log>,
    pub grant: Grant,
    /// Partitions that are worked on here.
    pub owned: Owned,
    pub key_cap: KeyCap,
    pub marks: RejectMarks,
    pub budget: ByteBudget,
    pub metrics: Metrics,
    pub clock: SharedClock,
}

/// How many marks of requests rejected whole a tenant may leave in the log (R20).
pub struct RejectMarks(TenantRate);

impl Default for RejectMarks {
    fn default() -> Self {
        Self(TenantRate::new(REJECT_MARKS_PER_SECOND))
    }
}

impl IntakeService {
    /// The budget of bodies under way.
    #[must_use]
    pub fn budget(metrics: &Metrics) -> ByteBudget {
        ByteBudget::new(INTAKE_BYTES * PARSE_FACTOR).shown(metrics, "intake")
    }

    /// This service as a seam.
    #[must_use]
    pub fn seam(self: Arc<Self>) -> Seam<IntakeRequest> {
        self.show();
        BoxCloneSyncService::new(tower::service_fn(move |request: IntakeRequest| {
            let service = Arc::clone(&self);
            async move { Ok::<_, Infallible>(service.handle(request).await) }
        }))
    }

    /// What events had and their datasets have not.
    #[must_use]
    pub fn drift_report(&self, database: &Name) -> DriftReport {
        self.drift.report(self.intake.schemas().iter(), database)
    }

    /// Takes a request and answers within its time.
    pub(crate) async fn handle(&self, mut request: IntakeRequest) -> IntakeReply {
        let span = tracing::info_span!(
            "intake",
            request_id = %request.request,
            tenant = %request.tenant,
            dataset = request.dataset
        );
        telemetry::set_parent(&span, request.trace);
        request.trace = telemetry::context_of(&span, request.trace);
        let deadline = Instant::now() + request.timeout;
        let work = self.take(request, deadline).instrument(span);
        // What has not begun by the deadline is refused by then; what has may still end within the grace.
        tokio::time::timeout_at(deadline + APPEND_GRACE, work)
            .await
            .unwrap_or_else(|_| IntakeReply::Unavailable {
                unknown: true,
                reason: "the log did not answer in time".into(),
                retry_after_ms: 1_000,
            })
    }

    /// Admit → parse → charge → append.
    async fn take(&self, request: IntakeRequest, deadline: Instant) -> IntakeReply {
        let taken = match self.admit(&request) {
            Ok(taken) => taken,
            Err(refused) => return refused,
        };
        let full = || self.busy("intake", "bytes", "intake is full".into(), FULL_RETRY);
        let Some(mut permit) = self.budget.try_take(request.body.len() * PARSE_FACTOR) else {
            return full();
        };
        let parsed = match self.parse(&request, &mut |more| permit.try_grow(more)) {
            Ok(parsed) => parsed,
            Err(NotParsed::Full) => return full(),
            Err(NotParsed::Refused(problem)) => return IntakeReply::Refused(problem),
        };
        let Parsed {
            schema,
            mut pending,
            mark,
            copies_dropped,
            answer,
            dropped_members,
            conversions,
            observed,
            late_events,
        } = parsed;
        self.drift.add(&schema, observed, self.clock.now_ms());
        if let Err(over) = self
            .key_cap
            .charge(&request.tenant, answer.accepted, self.clock.now_ms())
        {
            return self.over_cap(over);
        }
        for (reason, rows) in copies_dropped {
            self.metrics
                .add(Counter::DeadLettersDropped, rows, &[("reason", reason)]);
        }
        pending.extend(mark.filter(|_| self.may_mark(&request, answer.rejected)));
        if pending.is_empty() {
            self.count("rejected", answer.rejected);
            return IntakeReply::Rows(answer);
        }
        let spread = self
            .log
            .spread()
            .over(pending, request.idempotency_key.as_deref());
        let pending = match spread {
            Ok(pending) => pending,
            Err(error) => {
                return unavailable(false, format!("rows cannot be spread over partitions: {error}"));
            }
        };
        match self.appender.append(pending, deadline).await {
            Ok(()) => {
                taken.appended();
                self.count("rejected", answer.rejected);
                self.count("accepted", answer.accepted);
                self.count_fields(&request.dataset, dropped_members, &conversions);
                self.count_late(&request.dataset, late_events);
                IntakeReply::Rows(answer)
            }
            Err(not) => self.not_appended(&request, answer.accepted, not),
        }
    }

    /// The first row of a request that would be rejected; nothing is taken.
    ///
    /// # Errors
    /// Why the whole request would be refused; nothing where there is no room now.
    pub(crate) fn first_fault(&self, request: &IntakeRequest) -> Result<Option<RowError>, Option<Problem>> {
        let room = self.budget.try_take(request.body.len() * PARSE_FACTOR);
        let Some(mut permit) = room else {
            return Err(None);
        };
        match self.parse(request, &mut |more| permit.try_grow(more)) {
            Ok(parsed) => Ok(parsed.answer.errors.into_iter().next()),
            Err(NotParsed::Full) => Err(None),
            Err(NotParsed::Refused(problem)) => Err(Some(problem)),
        }
    }

    /// Room in the log, in the dataset's shelf, and the tenant's share of them.
    ///
    /// # Errors
    /// What is answered where there is none.
    fn admit(&self, request: &IntakeRequest) -> Result<Taken, IntakeReply> {
        let log = self.log.standing(Some(&request.tenant));
        if let Some(closed) = log.closed {
            return Err(self.busy("log", "log_full", closed.to_string(), FULL_RETRY));
        }
        // Not `Busy`: that would hold back the tenant's other datasets at the edge too.
        if let Some(waits_for) = self.full(&request.dataset) {
            return Err(self.dataset_full(&request.dataset, waits_for));
        }
        let view = self
            .grant
            .view(log.backlog_bytes + log.queued_bytes, log.oldest_backlog_append_ms);
        let asked = (&request.tenant, request.weight);
        let taken = self.grant.ask(asked, request.body.len(), view);
        taken.map_err(|refused| self.over_share(refused))
    }

    /// What a dataset's rows wait for, where no more may wait.
    fn full(&self, dataset: &str) -> Option<(&'static str, &'static str)> {
        let shelves: [(ShelfOf, _); 3] = [
            (|work| &work.shelf, WAITS_FOR_TABLE),
            (|work| &work.outbox.events, WAITS_FOR_TOPIC),
            (|work| &work.outbox.letters, WAITS_FOR_LETTERS),
        ];
        if self.log.is_full(dataset) {
            return Some(WAITS_FOR_TABLE);
        }
        let is_full = |of: ShelfOf| self.owned.any(|work| of(work).is_full(dataset));
        shelves
            .into_iter()
            .find_map(|(of, waits_for)| is_full(of).then_some(waits_for))
    }

    /// What is answered of `rows` that are not in the log, or may not be.
    fn not_appended(&self, request: &IntakeRequest, rows: u64, not: NotAppended) -> IntakeReply {
        let refund = || self.key_cap.refund(&request.tenant, rows);
        match not {
            NotAppended::Full(reason) => {
                refund();
                self.busy("log", "queue", reason, FULL_RETRY)
            }
            late @ NotAppended::TooLate => {
                refund();
                self.metrics.add(Counter::Shed, 1, TOO_LATE);
                unavailable(false, late.to_string())
            }
            NotAppended::Refused(reason) => {
                refund();
                unavailable(false, reason)
            }
            NotAppended::Unknown(reason) => unavailable(true, reason),
        }
    }

    /// Whether the tenant may leave one more mark in the log; what it may not is counted here alone.
    fn may_mark(&self, request: &IntakeRequest, rejected: u64) -> bool {
        let may = self.marks.0.take(&request.tenant, 1, self.clock.now_ms());
        if !may {
            self.metrics.add(Counter::Unbooked, rejected, &[]);
        }
        may
    }

    /// R16: rows wait for a table or a topic that is in trouble, up to a cap.
    fn dataset_full(&self, dataset: &str, (reason, what): (&str, &str)) -> IntakeReply {
        let labels = [("where", "intake"), ("reason", reason)];
        self.metrics.add(Counter::Shed, 1, &labels);
        IntakeReply::Unavailable {
            unknown: false,
            reason: format!("{what} of dataset {dataset}, and as many as may wait for it are waiting"),
            retry_after_ms: PARKED_RETRY_MS,
        }
    }

    /// The tenant has had its share of what the log gives: the others' requests are welcome.
    fn over_share(&self, refused: Refused) -> IntakeReply {
        let labels = [("where", "intake"), ("reason", refused.why.label())];
        self.metrics.add(Counter::Shed, 1, &labels);
        let reason = match refused.why {
            Why::Drain => "more comes than is stored, and the tenant has had its share of what is",
            Why::Room => {
                "nothing like as much is stored as comes, and the tenant has filled its share of the log"
            }
        };
        IntakeReply::Busy {
            scope: BusyScope::Tenant,
            reason: reason.into(),
            retry_after_ms: refused.retry_after_ms,
        }
    }

    /// R9: not a matter of waiting in a queue, so the client is told.
    fn over_cap(&self, over: OverCap) -> IntakeReply {
        let labels = [("where", "intake"), ("reason", "keys_per_tenant")];
        self.metrics.add(Counter::Shed, 1, &labels);
        let Some(wait_ms) = over.wait_ms else {
            let detail = format!(
                "these are more events than dedup.keys_per_tenant, {}, lets a tenant send within the dedup window: split \
                 the request, or have the cap raised; nothing was taken",
                over.most
            );
            let problem = Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_many_events", detail);
            return IntakeReply::Refused(problem);
        };
        let seconds = u32::try_from(wait_ms.div_ceil(1_000)).unwrap_or(u32::MAX);
        let detail = format!(
            "the tenant's events within the dedup window would pass dedup.keys_per_tenant: send less, or send again \
             in {seconds} s; nothing was taken"
        );
        let mut problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "keys_per_tenant", detail);
        problem.retry_after_s = Some(seconds);
        problem.limit = Some(Box::new(Limit {
            policy: "tenant-keys".into(),
            unit: "events".into(),
            most: over.most,
            window_s: over.window_ms.div_ceil(1_000),
            left: over.left,
        }));
        IntakeReply::Refused(problem)
    }

    fn parse(
        &self,
        request: &IntakeRequest,
        room: &mut dyn FnMut(usize) -> bool,
    ) -> Result<Parsed, NotParsed> {
        let now = self.clock.now_ms();
        if request.body.len() <= SMALL_BODY_BYTES {
            return self.intake.parse(request, now, room);
        }
        tokio::task::block_in_place(|| self.intake.parse(request, now, room))
    }

    fn busy(&self, place: &str, cause: &str, reason: String, retry_after: Duration) -> IntakeReply {
        self.metrics
            .add(Counter::Shed, 1, &[("where", place), ("reason", cause)]);
        let retry_after_ms = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX);
        IntakeReply::Busy {
            // What is short here, the log and this process's memory, is short for all.
            scope: BusyScope::All,
            reason,
            retry_after_ms,
        }
    }

    fn count(&self, outcome: &str, events: u64) {
        self.metrics.add(
            Counter::Events,
            events,
            &[("stage", "intake"), ("outcome", outcome)],
        );
    }

    fn count_fields(&self, dataset: &str, dropped: u64, conversions: &[(Name, u64)]) {
        if dropped > 0 {
            self.metrics
                .add(Counter::DroppedFields, dropped, &[("dataset", dataset)]);
        }
        for (field, count) in conversions {
            let labels = [("dataset", dataset), ("field", field.as_str())];
            self.metrics.add(Counter::UnitConversions, *count, &labels);
        }
    }

    fn count_late(&self, dataset: &str, events: u64) {
        self.metrics
            .add(Counter::LateEvents, events, &[("dataset", dataset)]);
    }

    /// Exports zeros of what the schemas in force may count.
    pub fn show_datasets(&self) {
        for schema in self.intake.schemas() {
            let dataset = schema.name().as_str();
            self.count_late(dataset, 0);
            self.metrics
                .add(Counter::DroppedFields, 0, &[("dataset", dataset)]);
            for field in schema.fields_with_units() {
                let labels = [("dataset", dataset), ("field", field.as_str())];
                self.metrics.add(Counter::UnitConversions, 0, &labels);
            }
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "gauges")]
    fn show(&self) {
        let metrics = &self.metrics;
        self.count("accepted", 0);
        self.count("rejected", 0);
        self.show_datasets();
        metrics.add(Counter::Unbooked, 0, &[]);
        for reason in ["budget", "request"] {
            metrics.add(Counter::DeadLettersDropped, 0, &[("reason", reason)]);
        }
        for (place, reason) in [
            ("log", "log_full"),
            ("log", "queue"),
            ("intake", "bytes"),
            ("intake", "keys_per_tenant"),
            ("intake", WAITS_FOR_TABLE.0),
            ("intake", WAITS_FOR_TOPIC.0),
            ("intake", WAITS_FOR_LETTERS.0),
            ("intake", "too_late"),
            ("intake", Why::Drain.label()),
            ("intake", Why::Room.label()),
        ] {
            metrics.add(Counter::Shed, 0, &[("where", place), ("reason", reason)]);
        }
        let log = Arc::clone(&self.log);
        self.grant.show(metrics, move || {
            let standing = log.standing(None);
            let bytes = standing.backlog_bytes + standing.queued_bytes;
            (bytes, standing.oldest_backlog_append_ms)
        });
        let log = Arc::clone(&self.log);
        metrics.watch(Gauge::LogDiskBytes, &[], move || log.disk_bytes() as f64);
        self.show_backlogs(Gauge::LogBacklogBytes, |one, _| one.bytes as f64);
        self.show_backlogs(Gauge::LogBacklogAge, |one, now| {
            let oldest = one.oldest_append_ms;
            oldest.map_or(0.0, |ms| now.saturating_sub(ms) as f64 / 1_000.0)
        });
    }

    /// Shows the backlog of each partition.
    fn show_backlogs(&self, gauge: Gauge, value: fn(&Backlog, UnixMs) -> f64) {
        let (log, clock) = (Arc::clone(&self.log), Arc::clone(&self.clock));
        self.metrics.watch_all(gauge, move || {
            let now = clock.now_ms();
            let one = |one: Backlog| {
                let labels = vec![("partition", one.partition.to_string())];
                (labels, value(&one, now))
            };
            log.backlogs().into_iter().map(one).collect()
        });
    }
}

fn unavailable(unknown: bool, reason: String) -> IntakeReply {
    IntakeReply::Unavailable {
        unknown,
        reason,
        retry_after_ms: 1_000,
    }
}
