//! The keeper: makes the next segment ahead of its need, and deletes stored ones. Both take the disk's
//! time, which is why they have a thread of their own.

use super::errors::{AppendError, FullReason};
use super::segment::segment_name;
use super::segment_file::{discard, prepare};
use super::shared::{Shared, Stopped};
use sluice_common::failpoint::{self, Point};
use sluice_common::ids::Offset;
use std::io;
use std::sync::Arc;

/// Runs until the log is closed.
pub fn run(shared: &Arc<Shared>) {
    while shared.spare.wait_for_work() {
        if delete_expired(shared).and_then(|()| make_spare(shared)).is_err() {
            break;
        }
    }
    discard(&shared.files);
}

fn delete_expired(shared: &Shared) -> Result<(), Stopped> {
    let wanted = if shared.spare.is_missing() {
        shared.options.segment_bytes
    } else {
        0
    };
    loop {
        let now = shared.clock.now_ms();
        let expired = shared
            .catalogue
            .lock()
            .expired(now, shared.options.retain_ms, wanted);
        match expired {
            Some(base) if delete(shared, base)? => {}
            Some(_) | None => return Ok(()),
        }
    }
}

/// Deletes the oldest segment; `false` where that fails, to be tried again later. One at a time, each
/// made durable: were two removals to reach the disk in the other order, a gap would be left.
fn delete(shared: &Shared, base: Offset) -> Result<bool, Stopped> {
    let removed =
        failpoint::hit(Point::SegmentUnlink).and_then(|()| shared.files.remove(&segment_name(base)));
    match removed {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(%error, segment = segment_name(base), "failed to delete a stored segment");
            return Ok(false);
        }
    }
    failpoint::hit(Point::SegmentUnlinked)
        .and_then(|()| shared.files.sync_dir())
        .map_err(|error| shared.fail_stop(&error))?;
    shared.catalogue.lock().forget(base);
    Ok(true)
}

fn make_spare(shared: &Shared) -> Result<(), Stopped> {
    if shared.spare.is_missing() {
        let made = match make_room(shared)? {
            Ok(()) => prepare(&shared.files, shared.options.segment_bytes).map_err(|error| refusal(&error)),
            Err(refused) => Err(refused),
        };
        shared.spare.put(made);
    }
    if shared.spare.is_ready() {
        shared.catalogue.lock().reopen_for_volume();
    }
    Ok(())
}

/// Makes sure that a segment leaves the reserve alone, deleting stored ones for it.
fn make_room(shared: &Shared) -> Result<Result<(), AppendError>, Stopped> {
    loop {
        let volume = match shared.files.volume() {
            Ok(volume) => volume,
            Err(error) => return Ok(Err(AppendError::WriteFailed(error.to_string()))),
        };
        if volume.free
            >= shared
                .options
                .reserve(volume)
                .saturating_add(shared.options.segment_bytes)
        {
            return Ok(Ok(()));
        }
        let oldest = shared.catalogue.lock().deletable();
        match oldest {
            Some(base) if delete(shared, base)? => {}
            Some(_) | None => return Ok(Err(AppendError::Full(FullReason::VolumeReserve))),
        }
    }
}

/// A failed sync of a spare is no reason to stop: nothing was promised of its bytes, and it is thrown away.
fn refusal(error: &io::Error) -> AppendError {
    if matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    ) {
        return AppendError::Full(FullReason::VolumeReserve);
    }
    AppendError::WriteFailed(error.to_string())
}
