//! A replay's questions and acts: shadow tables, what live tables hold, and putting one in the other's place.

use crate::servers::Servers;
use sluice_common::replay::{ReplayCall, SinkTold};

/// Carries out one call at the server that new ranges go to.
///
/// # Errors
/// A sentence.
pub(crate) async fn answer(_servers: &Servers, call: ReplayCall) -> Result<SinkTold, String> {
    Err(format!("{:?} is not there", call.ask))
}
