//! The body: what the headers say of it, and reading it within caps and deadlines.
//!
//! Bytes are charged before they are held: a body of known length as a whole, any other in steps as
//! it grows. Compression is undone as the bytes come, so a bomb costs what it takes to reach a cap.
//! The charge is for decoded bytes; a decoder adds at most its window, 8 MiB, and only as far as it
//! has decoded.

mod plan;
mod wire;

pub use plan::{BodyPlan, Encoding, quoted};
pub use wire::Deadlines;

use crate::admission::{BodyPermit, Shed};
use crate::quota::{Charge, Over};
use crate::respond::Refusal;
use async_compression::tokio::bufread::{DeflateDecoder, GzipDecoder, ZlibDecoder, ZstdDecoder};
use async_compression::zstd::DParameter;
use axum::body::Body;
use bytes::Bytes;
use http::StatusCode;
use sluice_common::error::Problem;
use sluice_common::limits::{
    BODY_IDLE_DEADLINE, BODY_TOTAL_DEADLINE, COMPRESSION_RATIO_FROM_BYTES, MAX_BODY_BYTES,
    MAX_COMPRESSION_RATIO, MAX_ZSTD_WINDOW_LOG,
};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio_util::io::StreamReader;
use wire::Wire;

/// Why a body could not be had. Nothing of it was taken.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("the request has no body: send at least one event, or `[]`")]
    Empty,
    #[error("the body is larger than {MAX_BODY_BYTES} bytes after decompression: split it")]
    TooLarge,
    #[error(
        "the body unpacks to more than {MAX_COMPRESSION_RATIO} times its size: split it, or send it uncompressed"
    )]
    Ratio,
    #[error("{0}")]
    NoRoom(Shed),
    #[error("over the quota `{}`", .0.policy)]
    OverQuota(Over),
    #[error("the body did not come in time: at most {} s between two pieces, {} s in all", BODY_IDLE_DEADLINE.as_secs(), BODY_TOTAL_DEADLINE.as_secs())]
    TimedOut,
    #[error("the body ended before it was whole, or its framing is broken: send it again")]
    Cut,
    #[error("the body is not valid {encoding}: {reason}; nothing was taken")]
    Malformed { encoding: &'static str, reason: String },
}

impl From<BodyError> for Refusal {
    fn from(error: BodyError) -> Self {
        let text = error.to_string();
        let problem = |status, code| Problem::new(status, code, text);
        match error {
            BodyError::Empty => Self::new(problem(StatusCode::BAD_REQUEST, "no_body")),
            BodyError::TooLarge | BodyError::Ratio => {
                Self::new(problem(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large"))
            }
            BodyError::NoRoom(shed) => shed.into(),
            BodyError::OverQuota(over) => over.into(),
            BodyError::TimedOut => Self::new(problem(StatusCode::REQUEST_TIMEOUT, "body_timeout")).closing(),
            BodyError::Cut => Self::new(problem(StatusCode::BAD_REQUEST, "body_incomplete")).closing(),
            BodyError::Malformed { .. } => Self::new(problem(StatusCode::BAD_REQUEST, "malformed_body")),
        }
    }
}

impl From<BodyError> for io::Error {
    fn from(error: BodyError) -> Self {
        Self::other(error)
    }
}

/// What a body is counted against as it comes.
#[derive(Debug)]
pub struct Meters<'a> {
    /// Of memory; grows with the body.
    pub permit: &'a mut BodyPermit,
    /// Of the tenant's quotas.
    pub charge: &'a mut Charge,
}

/// Reads the body to its end, and unpacks it.
///
/// # Errors
/// [`BodyError`].
pub async fn read(
    body: Body,
    plan: BodyPlan,
    meters: Meters<'_>,
    deadlines: Deadlines,
) -> Result<Bytes, BodyError> {
    let wire = Wire::new(body, deadlines);
    let taken = Arc::clone(&wire.taken);
    let held = Held {
        bytes: Vec::new(),
        permit: meters.permit,
        charge: meters.charge,
        apart: plan.decoder_bytes(),
        taken,
    };
    let wire = StreamReader::new(wire);
    let (reader, name): (Pin<Box<dyn AsyncRead + Send>>, _) = match plan.encoding {
        Encoding::Identity => return read_plain(wire.into_inner(), plan, held).await,
        Encoding::Gzip => {
            let mut decoder = GzipDecoder::new(wire);
            decoder.multiple_members(true);
            (Box::pin(decoder), "gzip")
        }
        Encoding::Zstd => {
            let window = DParameter::window_log_max(MAX_ZSTD_WINDOW_LOG);
            let mut decoder = ZstdDecoder::with_params(wire, &[window]);
            decoder.multiple_members(true);
            (Box::pin(decoder), "zstd")
        }
        Encoding::Deflate => (deflate(wire).await?, "deflate"),
    };
    read_packed(reader, name, held).await
}

type WireReader = StreamReader<Wire, Bytes>;

/// `deflate` is zlib by its standard, but some clients send the bare stream. zlib's first byte names
/// method 8 and a window of at most 2^15, and the first two are a multiple of 31.
async fn deflate(mut wire: WireReader) -> Result<Pin<Box<dyn AsyncRead + Send>>, BodyError> {
    let mut start = [0u8; 2];
    let mut length = 0;
    while length < start.len() {
        let read = wire
            .read(&mut start[length..])
            .await
            .map_err(|error| classify(error, "deflate"))?;
        if read == 0 {
            break;
        }
        length += read;
    }
    if length == 0 {
        return Err(BodyError::Empty);
    }
    let zlib = start[0] & 0x0f == 8 && start[0] >> 4 <= 7 && u16::from_be_bytes(start) % 31 == 0;
    let whole = io::Cursor::new(start[..length].to_vec()).chain(wire);
    let whole = tokio::io::BufReader::with_capacity(DEFLATE_BUFFER, whole);
    if zlib {
        let mut decoder = ZlibDecoder::new(whole);
        decoder.multiple_members(true);
        return Ok(Box::pin(decoder));
    }
    let mut decoder = DeflateDecoder::new(whole);
    decoder.multiple_members(true);
    Ok(Box::pin(decoder))
}

const DEFLATE_BUFFER: usize = 16 * 1024;

/// The body as it grows in memory, and what is charged for it.
struct Held<'a> {
    bytes: Vec<u8>,
    permit: &'a mut BodyPermit,
    charge: &'a mut Charge,
    /// Charged for other things than `bytes`.
    apart: usize,
    /// Bytes that came over the wire.
    taken: Arc<AtomicUsize>,
}

impl Held<'_> {
    /// Charges and makes room for `more` bytes, at least; one byte past the cap is room enough to
    /// see that a body is over it.
    fn reserve(&mut self, more: usize) -> Result<(), BodyError> {
        let needed = self.bytes.len() + more;
        if self.bytes.len() > MAX_BODY_BYTES || needed > MAX_BODY_BYTES + 1 {
            return Err(BodyError::TooLarge);
        }
        if needed <= self.bytes.capacity() {
            return Ok(());
        }
        let charged = self.permit.bytes() - self.apart.min(self.permit.bytes());
        let doubled = (self.bytes.capacity() * 2).min(MAX_BODY_BYTES + 1);
        let capacity = needed.max(doubled).max(charged.min(MAX_BODY_BYTES + 1));
        self.permit
            .grow_to(capacity + self.apart)
            .map_err(BodyError::NoRoom)?;
        self.bytes.reserve_exact(capacity - self.bytes.len());
        Ok(())
    }

    fn check_ratio(&self) -> Result<(), BodyError> {
        let most = self
            .taken
            .load(Ordering::Relaxed)
            .saturating_mul(MAX_COMPRESSION_RATIO);
        let over = self.bytes.len() > COMPRESSION_RATIO_FROM_BYTES.max(most);
        if over { Err(BodyError::Ratio) } else { Ok(()) }
    }

    /// Charges the quotas for what has come.
    fn charge(&mut self) -> Result<(), BodyError> {
        let bytes = self.bytes.len() as u64;
        self.charge.body_so_far(bytes).map_err(BodyError::OverQuota)
    }

    fn finish(self) -> Result<Bytes, BodyError> {
        if self.bytes.len() > MAX_BODY_BYTES {
            return Err(BodyError::TooLarge);
        }
        let bytes = self.bytes.len() as u64;
        self.charge.body_ended(bytes).map_err(BodyError::OverQuota)?;
        if self.bytes.is_empty() {
            Err(BodyError::Empty)
        } else {
            Ok(self.bytes.into())
        }
    }
}

async fn read_plain(mut wire: Wire, plan: BodyPlan, mut held: Held<'_>) -> Result<Bytes, BodyError> {
    while let Some(piece) = wire.next().await {
        let piece = piece?;
        let whole = held.bytes.is_empty() && plan.length == Some(piece.len() as u64);
        if whole {
            // Most bodies come in one piece: no copy. Their end is awaited all the same: over HTTP/2 more may come, or
            // a reset, and then the request is broken.
            return match wire.next().await {
                None => Ok(piece),
                Some(Ok(_more)) => Err(BodyError::Cut),
                Some(Err(error)) => Err(error),
            };
        }
        held.reserve(piece.len())?;
        held.bytes.extend_from_slice(&piece);
        held.charge()?;
    }
    held.finish()
}

async fn read_packed(
    mut reader: Pin<Box<dyn AsyncRead + Send>>,
    name: &'static str,
    mut held: Held<'_>,
) -> Result<Bytes, BodyError> {
    loop {
        held.reserve(1)?;
        let read = reader.read_buf(&mut held.bytes).await;
        match read {
            Ok(0) => return held.finish(),
            Ok(_) => {
                held.check_ratio()?;
                held.charge()?;
            }
            Err(_) if held.taken.load(Ordering::Relaxed) == 0 => return Err(BodyError::Empty),
            Err(error) => return Err(classify(error, name)),
        }
    }
}

/// Our own errors come back through the decoder as they are; all others are the stream's.
fn classify(error: io::Error, encoding: &'static str) -> BodyError {
    error
        .downcast::<BodyError>()
        .unwrap_or_else(|error| BodyError::Malformed {
            encoding,
            reason: error.to_string(),
        })
}

#[cfg(test)]
mod tests {
    use super::plan::{DECODER_BYTES, FIRST_STEP};
    use super::*;
    use crate::admission::{Admission, LEAST_CHARGE, TenantAdmission};
    use futures_util::{StreamExt as _, stream};
    use sluice_common::ids::TenantId;
    use sluice_common::wire::intake::BodyFormat;
    use std::convert::Infallible;
    use std::io::Write as _;
    use std::time::Duration;
    use tokio::time::Instant;

    fn tenant() -> TenantAdmission {
        TenantAdmission::of(&TenantId::new("acme").unwrap())
    }

    fn plan(encoding: Encoding, length: Option<u64>) -> BodyPlan {
        BodyPlan {
            format: BodyFormat::Auto,
            encoding,
            length,
        }
    }

    fn chunked(bytes: &[u8]) -> Body {
        let pieces: Vec<_> = bytes
            .chunks(10_000)
            .map(|one| Ok::<_, Infallible>(Bytes::copy_from_slice(one)))
            .collect();
        Body::from_stream(stream::iter(pieces))
    }

    fn unlimited() -> Charge {
        crate::quota::tests::tenant("{}").enter("events", None).unwrap()
    }

    /// The outcome, and the most that was charged for it.
    async fn run(body: Body, plan: BodyPlan) -> (Result<Bytes, BodyError>, usize) {
        let (admission, tenant) = (Admission::default(), tenant());
        let mut permit = admission
            .enter(&tenant, plan.first_charge(), Instant::now())
            .unwrap();
        let mut charge = unlimited();
        let meters = Meters {
            permit: &mut permit,
            charge: &mut charge,
        };
        let read = read(body, plan, meters, Deadlines::from_head(Instant::now())).await;
        let charged = admission.held();
        drop(permit);
        assert_eq!(admission.held(), 0);
        (read, charged)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn pack(encoding: Encoding, bytes: &[u8]) -> Vec<u8> {
        match encoding {
            Encoding::Identity => bytes.to_vec(),
            Encoding::Gzip => gzip(bytes),
            Encoding::Zstd => zstd::encode_all(bytes, 1).unwrap(),
            Encoding::Deflate => {
                let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
        }
    }

    const ALL: [Encoding; 4] = [
        Encoding::Identity,
        Encoding::Gzip,
        Encoding::Zstd,
        Encoding::Deflate,
    ];

    #[tokio::test]
    async fn a_body_comes_out_as_it_went_in_and_is_charged_for() {
        let text: Vec<u8> = (0..50_000u32)
            .flat_map(|n| format!("{{\"n\":{n}}}\n").into_bytes())
            .collect();
        for encoding in ALL {
            for bytes in [&text[..], &text[..100], b"{}"] {
                let packed = pack(encoding, bytes);
                for length in [None, Some(packed.len() as u64)] {
                    let (body, charged) = run(chunked(&packed), plan(encoding, length)).await;
                    assert!(body.unwrap() == bytes, "{encoding:?}");
                    assert!(charged >= bytes.len().max(LEAST_CHARGE), "{encoding:?} {charged}");
                }
            }
        }
    }

    #[tokio::test]
    async fn a_bare_deflate_stream_and_several_gzip_members_are_understood() {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(b"[1,2,3,4]").unwrap();
        let (body, _) = run(chunked(&encoder.finish().unwrap()), plan(Encoding::Deflate, None)).await;
        assert_eq!(body.unwrap(), "[1,2,3,4]");
        let two = [gzip(b"{}\n"), gzip(b"{}")].concat();
        let (body, _) = run(chunked(&two), plan(Encoding::Gzip, None)).await;
        assert_eq!(body.unwrap(), "{}\n{}");
    }

    #[tokio::test]
    async fn a_stream_that_is_broken_cut_or_followed_by_more_is_malformed() {
        for encoding in [Encoding::Gzip, Encoding::Zstd, Encoding::Deflate] {
            let good = pack(encoding, &b"{\"a\":1}\n".repeat(100));
            let cut = &good[..good.len() - 3];
            let followed = [&good[..], b"garbage that is no stream"].concat();
            for bad in [cut, &followed[..], b"{\"a\":1}", b"x"] {
                let (body, _) = run(chunked(bad), plan(encoding, None)).await;
                let malformed = matches!(body, Err(BodyError::Malformed { .. }));
                assert!(malformed, "{encoding:?} of {} bytes: {body:?}", bad.len());
            }
        }
    }

    #[tokio::test]
    async fn a_body_of_its_length_is_whole_only_when_it_has_ended() {
        let body = |pieces: &'static [&'static str]| {
            let pieces = pieces.iter().map(|one| match *one {
                "reset" => Err(io::Error::other("reset")),
                data => Ok(Bytes::from_static(data.as_bytes())),
            });
            Body::from_stream(stream::iter(pieces))
        };
        for broken in [&["{}", "{}"][..], &["{}", "reset"], &["{}", "", "reset"]] {
            let (read, _) = run(body(broken), plan(Encoding::Identity, Some(2))).await;
            assert!(matches!(read, Err(BodyError::Cut)), "{broken:?}: {read:?}");
        }
        let (read, _) = run(body(&["{}", ""]), plan(Encoding::Identity, Some(2))).await;
        assert_eq!(read.unwrap(), "{}");
    }

    #[tokio::test]
    async fn nothing_at_all_is_no_body() {
        for encoding in ALL {
            let (body, _) = run(Body::empty(), plan(encoding, None)).await;
            assert!(matches!(body, Err(BodyError::Empty)), "{encoding:?}: {body:?}");
        }
    }

    #[tokio::test]
    async fn a_bomb_is_too_large_and_costs_no_more_than_its_cap() {
        let zeros = vec![b' '; 2 * MAX_BODY_BYTES];
        for encoding in [Encoding::Gzip, Encoding::Zstd, Encoding::Deflate] {
            let (body, charged) = run(chunked(&pack(encoding, &zeros)), plan(encoding, None)).await;
            assert!(matches!(body, Err(BodyError::Ratio)), "{encoding:?}: {body:?}");
            assert!(
                charged <= 2 * COMPRESSION_RATIO_FROM_BYTES + FIRST_STEP + DECODER_BYTES,
                "{charged}"
            );
        }
    }

    #[tokio::test]
    async fn the_cap_is_exact() {
        let most = vec![b' '; MAX_BODY_BYTES];
        assert_eq!(
            run(chunked(&most), plan(Encoding::Identity, None))
                .await
                .0
                .unwrap()
                .len(),
            MAX_BODY_BYTES
        );
        let over = vec![b' '; MAX_BODY_BYTES + 1];
        let (body, _) = run(chunked(&over), plan(Encoding::Identity, None)).await;
        assert!(matches!(body, Err(BodyError::TooLarge)));
        // Random bytes do not compress: the ratio never counts.
        let mut random = over;
        rand::RngCore::fill_bytes(
            &mut <rand::rngs::SmallRng as rand::SeedableRng>::seed_from_u64(1),
            &mut random[..4096],
        );
        let block = random[..4096].to_vec();
        random.chunks_mut(4096).enumerate().for_each(|(n, chunk)| {
            chunk.copy_from_slice(&block[..chunk.len()]);
            chunk[0] = n.to_le_bytes()[0];
        });
        let packed = gzip(&random);
        assert!(packed.len() > random.len() / MAX_COMPRESSION_RATIO);
        let (body, _) = run(chunked(&packed), plan(Encoding::Gzip, None)).await;
        assert!(matches!(body, Err(BodyError::TooLarge)), "{body:?}");
    }

    #[tokio::test]
    async fn a_slow_body_is_given_up_by_either_deadline() {
        let short = Duration::from_millis(50);
        let tick = |_| async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            Ok::<_, Infallible>(Bytes::from_static(b" "))
        };
        let silent = || Body::from_stream(stream::pending::<Result<Bytes, Infallible>>());
        let drip = Body::from_stream(stream::iter(0..).then(tick));
        let long = Duration::from_secs(60);
        let now = Instant::now();
        for (body, idle, total) in [
            (silent(), short, long),
            (silent(), long, short),
            (drip, long, short),
        ] {
            let (admission, tenant) = (Admission::default(), tenant());
            let plan = plan(Encoding::Identity, None);
            let mut permit = admission.enter(&tenant, 1, now).unwrap();
            let deadlines = Deadlines {
                idle,
                end: Instant::now() + total,
            };
            let mut charge = unlimited();
            let meters = Meters {
                permit: &mut permit,
                charge: &mut charge,
            };
            let reading = tokio::time::timeout(long / 6, read(body, plan, meters, deadlines));
            let read = reading.await.expect("the deadline that is short ends it");
            assert!(matches!(read, Err(BodyError::TimedOut)), "{read:?}");
        }
    }
}
