//! Opens what is on the disk: a new log, or the one that is there, as far as it was durable.

use super::catalogue::{Catalogue, Segment};
use super::errors::{Damage, DamageKind, OpenError};
use super::files::{Files, LogFile};
use super::manifest::Manifest;
use super::options::LogOptions;
use super::segment::{BadHeader, SEGMENT_HEADER_BYTES, SegmentHeader, base_of, segment_name};
use super::segment_file::{CommissionError, commission, discard, prepare};
use super::tail_cache::TailCache;
use super::tail_scan::{Tail, scan};
use bytes::Bytes;
use sluice_common::clock::UnixMs;
use sluice_common::ids::Offset;
use sluice_common::record::frame_length;
use std::io::{self, Read};

/// A log as found on the disk; everything it tells of is durable.
pub struct Recovered {
    pub manifest: Manifest,
    pub catalogue: Catalogue,
    /// The newest segment's file.
    pub active: LogFile,
}

/// Opens the log in the directory of `files`, making it where there is none.
///
/// # Errors
/// [`OpenError`]; damage is never passed over.
pub fn recover(files: &Files, options: &LogOptions, now: UnixMs) -> Result<Recovered, OpenError> {
    let trouble = |doing| {
        move |source| OpenError::Io {
            doing,
            dir: options.dir.clone(),
            source,
        }
    };
    discard(files);
    let manifest = match Manifest::load(files).map_err(trouble("read the manifest"))? {
        Some(found) => known(found, options)?,
        None => make(files, options, now)?,
    };
    let headers = headers(files, options, &manifest)?;
    let Some((newest, _)) = headers.last() else {
        let kind = DamageKind::NoSegments;
        return Err(Damage {
            segment: segment_name(0),
            position: 0,
            offset: 0,
            kind,
        }
        .into());
    };
    let name = segment_name(newest.base);
    let active = files
        .open_write(&name)
        .map_err(trouble("open the newest segment"))?;
    let bytes = Bytes::from(active.read_all().map_err(trouble("read the newest segment"))?);
    let tail = scan(&bytes, newest, options.known_durable)?;
    settle(files, &active, &name, &tail).map_err(trouble("sync what is kept"))?;
    let catalogue = remember(&headers, &bytes, &tail, options);
    if catalogue.durable_end < options.known_durable {
        let (end, known_durable) = (catalogue.durable_end, options.known_durable);
        return Err(OpenError::Behind { end, known_durable });
    }
    Ok(Recovered {
        manifest,
        catalogue,
        active,
    })
}

fn known(
    found: Result<Manifest, super::manifest::BadManifest>,
    options: &LogOptions,
) -> Result<Manifest, OpenError> {
    let manifest = found.map_err(|reason| OpenError::Manifest {
        dir: options.dir.clone(),
        reason,
    })?;
    if manifest.partitions != 1 {
        return Err(OpenError::Partitions {
            dir: options.dir.clone(),
            found: manifest.partitions,
        });
    }
    Ok(manifest)
}

/// A new log: first segment, then manifest. So a manifest without segments is damage, and a start that
/// ended between the two leaves one empty segment, which is no log yet.
fn make(files: &Files, options: &LogOptions, now: UnixMs) -> Result<Manifest, OpenError> {
    let trouble = |doing| {
        move |source| OpenError::Io {
            doing,
            dir: options.dir.clone(),
            source,
        }
    };
    remove_false_start(files, options)?;
    let volume = files.volume().map_err(trouble("ask for the free space"))?;
    let needed = options.segment_bytes + options.reserve(volume);
    if volume.free < needed {
        return Err(OpenError::NoSpace {
            dir: options.dir.clone(),
            free: volume.free,
            needed,
        });
    }
    let manifest = Manifest::fresh(now);
    let header = SegmentHeader {
        log: manifest.log,
        base: 0,
        previous: None,
        last_append_ms: 0,
    };
    let spare = prepare(files, options.segment_bytes).map_err(trouble("make the first segment"))?;
    commission(files, spare, &header)
        .map_err(|error| match error {
            CommissionError::Write(error) | CommissionError::Sync(error) => error,
        })
        .map_err(trouble("make the first segment"))?;
    manifest.store(files).map_err(trouble("write the manifest"))?;
    Ok(manifest)
}

fn remove_false_start(files: &Files, options: &LogOptions) -> Result<(), OpenError> {
    let trouble = |doing| {
        move |source| OpenError::Io {
            doing,
            dir: options.dir.clone(),
            source,
        }
    };
    let bases = bases(files).map_err(trouble("list the log's files"))?;
    for (base, _) in &bases {
        let mut head = [0; SEGMENT_HEADER_BYTES + 8];
        let name = segment_name(*base);
        let mut file = files.open_read(&name).map_err(trouble("open a segment"))?;
        let whole = file.read_exact(&mut head).is_ok();
        let empty = whole && frame_length(&head[SEGMENT_HEADER_BYTES..]).is_err();
        if bases.len() > 1 || *base != 0 || !empty {
            return Err(OpenError::NoManifest {
                dir: options.dir.clone(),
            });
        }
        files.remove(&name).map_err(trouble("remove a false start"))?;
    }
    Ok(())
}

/// The bases and file lengths of all segments, in order.
fn bases(files: &Files) -> io::Result<Vec<(Offset, u64)>> {
    let listed = files.list()?;
    let mut bases: Vec<_> = listed
        .iter()
        .filter_map(|(name, bytes)| Some((base_of(name)?, *bytes)))
        .collect();
    bases.sort_unstable();
    Ok(bases)
}

/// All headers and file lengths, in order, each checked against the one before: a missing segment shows
/// here, without reading what the segments hold.
fn headers(
    files: &Files,
    options: &LogOptions,
    manifest: &Manifest,
) -> Result<Vec<(SegmentHeader, u64)>, OpenError> {
    let trouble = |doing| {
        move |source| OpenError::Io {
            doing,
            dir: options.dir.clone(),
            source,
        }
    };
    let mut headers: Vec<(SegmentHeader, u64)> = Vec::new();
    for (base, bytes) in bases(files).map_err(trouble("list the log's files"))? {
        let mut head = Vec::with_capacity(SEGMENT_HEADER_BYTES);
        let file = files
            .open_read(&segment_name(base))
            .map_err(trouble("open a segment"))?;
        let length = SEGMENT_HEADER_BYTES as u64;
        file.take(length)
            .read_to_end(&mut head)
            .map_err(trouble("read a segment's header"))?;
        let damage = |kind| Damage {
            segment: segment_name(base),
            position: 0,
            offset: base,
            kind,
        };
        let header =
            SegmentHeader::decode(&head).map_err(|bad: BadHeader| damage(DamageKind::Header(bad)))?;
        if header.log != manifest.log || header.base != base {
            return Err(damage(DamageKind::OtherSegment {
                log: header.log,
                base: header.base,
            })
            .into());
        }
        if let (Some((before, _)), Some(previous)) = (headers.last(), header.previous)
            && before.base != previous.base
        {
            return Err(damage(DamageKind::MissingSegment { base: previous.base }).into());
        }
        headers.push((header, bytes));
    }
    Ok(headers)
}

/// Wipes a torn tail and makes durable what is kept, before anything is read (R5).
fn settle(files: &Files, active: &LogFile, name: &str, tail: &Tail) -> io::Result<()> {
    if let Some(until) = tail.torn_until {
        let bytes = until - tail.end;
        tracing::warn!(
            segment = name,
            position = tail.end,
            bytes,
            "removed a torn write, never acknowledged"
        );
        active.zero(tail.end, until)?;
    }
    active.sync()?;
    files.sync_dir()
}

fn remember(headers: &[(SegmentHeader, u64)], bytes: &Bytes, tail: &Tail, options: &LogOptions) -> Catalogue {
    let mut catalogue = Catalogue::new(TailCache::new(options.tail_cache_bytes), options.max_bytes);
    for (place, (header, file_bytes)) in headers.iter().enumerate() {
        let next = headers.get(place + 1).and_then(|(next, _)| next.previous);
        let used = next.map_or(SEGMENT_HEADER_BYTES as u64, |previous| previous.used);
        catalogue.add(Segment::new(header, used, *file_bytes));
        catalogue.durable_end = header.base;
        catalogue.last_append_ms = header.last_append_ms;
    }
    catalogue.publish(&compact(bytes, tail));
    catalogue
}

/// The tail's frames in a buffer of their own, without the zeros behind them.
fn compact(bytes: &Bytes, tail: &Tail) -> Vec<super::tail_cache::CachedFrame> {
    let used = Bytes::copy_from_slice(&bytes[..usize::try_from(tail.end).unwrap_or(bytes.len())]);
    let mut at = SEGMENT_HEADER_BYTES;
    let mut frames = tail.frames.clone();
    for frame in &mut frames {
        let end = at + frame.frame.len();
        frame.frame = used.slice(at..end);
        at = end;
    }
    frames
}
