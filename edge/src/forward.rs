//! Handing a request to the normalizer, and waiting where it has no room.
//!
//! Each request is carried by a task of its own, which a client's going away does not end (R4): what
//! was begun is finished, and its bytes stay charged until then. It is tried again only where it is
//! certain that nothing was appended: after "busy", and after "unknown dataset" where this edge's config has
//! the dataset. Then the normalizer has yet to take the config that the edge took a moment ago.

use crate::admission::{BodyPermit, TenantAdmission};
use crate::auth::Tenants;
use crate::health::Health;
use sluice_common::error::Problem;
use sluice_common::limits::{EDGE_FORWARD_DEADLINE, EDGE_QUEUE_DEADLINE};
use sluice_common::wire::intake::{BusyScope, IntakeReply, IntakeRequest};
use sluice_common::wire::transport::Seam;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;
use tracing::Instrument as _;

/// The way to the normalizer.
#[derive(Clone)]
pub struct Forwarder {
    seam: Seam<IntakeRequest>,
    health: Arc<Health>,
    tenants: Arc<Tenants>,
    tasks: TaskTracker,
}

impl std::fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Forwarder")
            .field("under_way", &self.tasks.len())
            .finish()
    }
}

/// Least wait before a busy normalizer is asked again.
const LEAST_WAIT: Duration = Duration::from_millis(20);
/// How long a request waits for the normalizer to know a dataset that this edge knows: each looks at the
/// config file every second.
const CONFIG_DEADLINE: Duration = Duration::from_secs(3);
/// Between two looks whether it does.
const CONFIG_WAIT: Duration = Duration::from_millis(100);
/// Beyond the queue's and the call's own deadlines, which end first where all is well.
const GRACE: Duration = Duration::from_secs(1);

impl Forwarder {
    /// A way that leads to `seam`.
    #[must_use]
    pub fn new(seam: Seam<IntakeRequest>, health: Arc<Health>, tenants: Arc<Tenants>) -> Self {
        Self {
            seam,
            health,
            tenants,
            tasks: TaskTracker::new(),
        }
    }

    /// The normalizer's answer. `permit` is held until there is one, even past the deadline at which
    /// this gives up waiting.
    pub async fn forward(
        &self,
        request: IntakeRequest,
        tenant: Arc<TenantAdmission>,
        permit: BodyPermit,
    ) -> IntakeReply {
        let this = self.clone();
        let task = async move {
            let reply = this.carry(request, tenant).await;
            drop(permit);
            reply
        };
        let task = self.tasks.spawn(task.in_current_span());
        let wait = EDGE_QUEUE_DEADLINE + CONFIG_DEADLINE + EDGE_FORWARD_DEADLINE + GRACE;
        match timeout(wait, task).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(panic)) => {
                tracing::error!(%panic, "handing on a request failed inside: report this line");
                unknown("the request failed inside the edge".into())
            }
            Err(_) => unknown(format!("no answer within {} s", wait.as_secs())),
        }
    }

    async fn carry(&self, request: IntakeRequest, tenant: Arc<TenantAdmission>) -> IntakeReply {
        let begun = Instant::now();
        loop {
            let reply = match self.seam.clone().oneshot(request.clone()).await {
                Ok(reply) => reply,
                Err(never) => match never {},
            };
            let now = Instant::now();
            self.health.saw(&reply, now);
            let (wait, deadline) = match &reply {
                IntakeReply::Busy { retry_after_ms, .. } => {
                    let hint = Duration::from_millis(*retry_after_ms);
                    tenant.gate.busy(now, hint);
                    (hint, begun + EDGE_QUEUE_DEADLINE)
                }
                IntakeReply::Refused(problem) if self.is_ahead(problem, &request) => {
                    tenant.gate.open();
                    if now >= begun + CONFIG_DEADLINE {
                        return not_yet_known();
                    }
                    (CONFIG_WAIT, begun + CONFIG_DEADLINE)
                }
                IntakeReply::Rows(_) | IntakeReply::Refused(_) => {
                    tenant.gate.open();
                    return reply;
                }
                IntakeReply::Unavailable { .. } => return reply,
            };
            if now >= deadline {
                return reply;
            }
            // A hint past the deadline still gets a last try at it: the normalizer may be faster.
            let wait = spread(wait.max(LEAST_WAIT), request.request.0);
            sleep_until((now + wait).min(deadline)).await;
        }
    }

    /// Whether the normalizer refuses a dataset that this edge's config has.
    fn is_ahead(&self, problem: &Problem, request: &IntakeRequest) -> bool {
        problem.code == "unknown_dataset" && self.tenants.dataset_exists(&request.dataset)
    }

    /// Waits until no request is under way. Requests may still come meanwhile.
    pub async fn drained(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

fn unknown(reason: String) -> IntakeReply {
    IntakeReply::Unavailable {
        unknown: true,
        reason,
        retry_after_ms: 1_000,
    }
}

/// The two read different configs: a client that tries again is answered once they agree.
fn not_yet_known() -> IntakeReply {
    IntakeReply::Busy {
        scope: BusyScope::All,
        reason: "the dataset is new, and not all services have taken the config that has it".into(),
        retry_after_ms: 1_000,
    }
}

/// Up to a quarter more, so that the queue does not come back at once; the request's random id says
/// how much.
fn spread(wait: Duration, random: u128) -> Duration {
    let part = u32::try_from(random >> 64 & 0xff).unwrap_or_default();
    wait + wait / 4 * part / 256
}
