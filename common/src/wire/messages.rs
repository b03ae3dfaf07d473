//! Messages of one Kafka partition as the body of a request to intake, and what identifies them.
//!
//! # Layout
//! Each message is `u32 place | u32 length | value`, little endian. The place is the lower half of its offset; the
//! upper half is in the request's key ([`Origin`]), so that a message is identified by where it lies, however the
//! messages before it are cut into requests.

use std::fmt;
use std::ops::Range;

/// Bytes before a message's value.
pub const HEADER_BYTES: usize = 8;

/// Where a request's messages lie: what stands in the place of its `Idempotency-Key`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    pub topic: String,
    /// What tells the topic from others of its name.
    pub id: String,
    pub partition: i32,
    /// The upper half of the offsets.
    pub high: u32,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A topic's name has no slash; what is last may have any.
        write!(
            f,
            "kafka/{}/{}/{}/{}",
            self.partition, self.high, self.topic, self.id
        )
    }
}

impl Origin {
    /// The one that was written.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix("kafka/")?.splitn(4, '/');
        Some(Self {
            partition: parts.next()?.parse().ok()?,
            high: parts.next()?.parse().ok()?,
            topic: parts.next()?.to_owned(),
            id: parts.next()?.to_owned(),
        })
    }

    /// The offset of the message at a place.
    #[must_use]
    pub fn offset(&self, place: u32) -> u64 {
        u64::from(self.high) << 32 | u64::from(place)
    }
}

/// Upper half and place of an offset.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "the halves")]
pub fn halves(offset: u64) -> (u32, u32) {
    ((offset >> 32) as u32, offset as u32)
}

/// Appends a message; false, and nothing is appended, where it is longer than a length can say.
pub fn push(body: &mut Vec<u8>, place: u32, value: &[u8]) -> bool {
    let Ok(length) = u32::try_from(value.len()) else {
        return false;
    };
    body.extend_from_slice(&place.to_le_bytes());
    body.extend_from_slice(&length.to_le_bytes());
    body.extend_from_slice(value);
    true
}

/// Place and value of the message that begins at `at`; none at the body's end. A body that is cut ends with what is
/// left of its last message.
#[must_use]
pub fn message(body: &[u8], at: usize) -> Option<(u32, Range<usize>)> {
    let number = |from: usize| -> Option<u32> {
        let bytes = body.get(from..from + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let (place, length) = (number(at)?, number(at + 4)?);
    let start = at + HEADER_BYTES;
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    Some((place, start..start.saturating_add(length).min(body.len())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn messages_come_out_as_they_went_in(
            messages in proptest::collection::vec((any::<u32>(), proptest::collection::vec(any::<u8>(), 0..40)), 0..20),
        ) {
            let mut body = Vec::new();
            for (place, value) in &messages {
                prop_assert!(push(&mut body, *place, value));
            }
            let (mut at, mut read) = (0, Vec::new());
            while let Some((place, range)) = message(&body, at) {
                at = range.end;
                read.push((place, body[range].to_vec()));
            }
            prop_assert_eq!(read, messages);
        }

        #[test]
        fn any_bytes_end(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut at = 0;
            while let Some((_, range)) = message(&body, at) {
                prop_assert!(range.start <= range.end && range.end <= body.len() && range.end > at);
                at = range.end;
            }
        }

        #[test]
        fn an_origin_reads_back_as_it_is_written(topic in "[a-zA-Z0-9._-]{1,249}", id in "[a-zA-Z0-9._/-]{1,40}", partition in 0..i32::MAX, offset: u64) {
            let (high, place) = halves(offset);
            let origin = Origin { topic, id, partition, high };
            prop_assert_eq!(origin.offset(place), offset);
            prop_assert_eq!(Origin::parse(&origin.to_string()), Some(origin));
        }
    }

    #[test]
    fn other_keys_are_no_origins() {
        for text in [
            "",
            "kafka/",
            "kafka/1/2",
            "kafka/1/2/t",
            "kafka/x/2/t/i",
            "kafka1/2/t/i",
        ] {
            assert_eq!(Origin::parse(text), None, "{text}");
        }
    }
}
