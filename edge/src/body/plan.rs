//! What a request's head says of its body.

use super::BodyError;
use crate::respond::Refusal;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use sluice_common::error::Problem;
use sluice_common::limits::{MAX_BODY_BYTES, MAX_QUOTED_BYTES};
use sluice_common::wire::intake::BodyFormat;

/// How the body is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Identity,
    Gzip,
    Zstd,
    Deflate,
}

/// What the headers say of the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyPlan {
    pub format: BodyFormat,
    pub encoding: Encoding,
    /// `Content-Length`.
    pub length: Option<u64>,
}

impl BodyPlan {
    /// Reads the headers.
    ///
    /// # Errors
    /// A 415 that names what is supported.
    pub fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        let length = headers
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok());
        Ok(Self {
            format: format(headers)?,
            encoding: encoding(headers)?,
            length: length.and_then(|text| text.parse().ok()),
        })
    }

    /// Refuses a body that is too long by its own account, packed or not: what is packed into more
    /// than the cap unpacks to more than the cap.
    ///
    /// # Errors
    /// A 413.
    pub fn check_length(&self) -> Result<(), Refusal> {
        let too_long = self.length.is_some_and(|length| length > MAX_BODY_BYTES as u64);
        if too_long {
            Err(BodyError::TooLarge.into())
        } else {
            Ok(())
        }
    }

    /// Bytes to be charged before the body is read.
    #[must_use]
    pub fn first_charge(&self) -> usize {
        let known = self.length.and_then(|length| usize::try_from(length).ok());
        match (self.encoding, known) {
            (Encoding::Identity, Some(length)) => length,
            (Encoding::Identity, None) => FIRST_STEP,
            (Encoding::Gzip | Encoding::Zstd | Encoding::Deflate, _) => FIRST_STEP + DECODER_BYTES,
        }
    }

    /// Bytes of the body after decompression, where they are known beforehand.
    #[must_use]
    pub fn whole_bytes(&self) -> Option<u64> {
        self.length.filter(|_| self.encoding == Encoding::Identity)
    }

    /// Of these, what is charged for the decoder.
    #[must_use]
    pub fn decoder_bytes(&self) -> usize {
        if self.encoding == Encoding::Identity {
            0
        } else {
            DECODER_BYTES
        }
    }
}

/// First charge of a body whose length is not known.
pub(super) const FIRST_STEP: usize = 16 * 1024;
/// A decoder's own state, without its window: zstd's is the largest, about 95 KiB.
pub(super) const DECODER_BYTES: usize = 96 * 1024;

fn format(headers: &HeaderMap) -> Result<BodyFormat, Refusal> {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let Some(value) = values.next() else {
        return Ok(BodyFormat::Auto);
    };
    let text = if values.next().is_some() {
        "(sent twice)"
    } else {
        value.to_str().unwrap_or("(not text)")
    };
    let essence = text.split(';').next().unwrap_or_default().trim();
    let known = [
        ("application/json", BodyFormat::Json),
        ("application/x-ndjson", BodyFormat::Ndjson),
        ("application/jsonl", BodyFormat::Ndjson),
    ];
    let found = known.iter().find(|(name, _)| essence.eq_ignore_ascii_case(name));
    found.map(|(_, format)| *format).ok_or_else(|| {
        Refusal::new(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            format!(
                "Content-Type {:?} is not supported: send application/json (an object or an array), \
                 application/x-ndjson or application/jsonl",
                quoted(text)
            ),
        ))
    })
}

fn encoding(headers: &HeaderMap) -> Result<Encoding, Refusal> {
    let mut found = Encoding::Identity;
    for value in headers.get_all(header::CONTENT_ENCODING) {
        let text = value.to_str().unwrap_or("(not text)");
        for name in text.split(',').map(str::trim) {
            let next = encoding_named(name).ok_or_else(|| unsupported_encoding(name))?;
            if found != Encoding::Identity && next != Encoding::Identity {
                return Err(unsupported_encoding("more than one"));
            }
            found = if next == Encoding::Identity { found } else { next };
        }
    }
    Ok(found)
}

fn encoding_named(name: &str) -> Option<Encoding> {
    let known = [
        ("", Encoding::Identity),
        ("identity", Encoding::Identity),
        ("gzip", Encoding::Gzip),
        ("x-gzip", Encoding::Gzip),
        ("zstd", Encoding::Zstd),
        ("deflate", Encoding::Deflate),
    ];
    known
        .iter()
        .find(|(known, _)| name.eq_ignore_ascii_case(known))
        .map(|(_, encoding)| *encoding)
}

fn unsupported_encoding(name: &str) -> Refusal {
    let detail = format!(
        "Content-Encoding {:?} is not supported: send one of gzip, zstd, deflate, or identity",
        quoted(name)
    );
    Refusal::new(Problem::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "unsupported_encoding",
        detail,
    ))
    .with(
        header::ACCEPT_ENCODING,
        HeaderValue::from_static("gzip, zstd, deflate, identity"),
    )
}

/// A client's own text, short enough to be quoted back.
#[must_use]
pub fn quoted(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_QUOTED_BYTES)]
}
