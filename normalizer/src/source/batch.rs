//! Messages of one partition, in order, that become one request to intake.

use bytes::Bytes;
use sluice_common::limits::{SOURCE_BATCH_BYTES, SOURCE_BATCH_MESSAGES};
use sluice_common::wire::messages::{Origin, halves, push};
use std::ops::Range;

/// Where a partition is to be read from next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Next {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
}

/// Messages of one partition whose offsets have the same upper half.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    origin: Origin,
    body: Bytes,
    /// Where each message ends in the body.
    ends: Vec<usize>,
    /// Behind its last message.
    next: i64,
}

impl Batch {
    /// How many messages.
    #[must_use]
    pub fn messages(&self) -> usize {
        self.ends.len()
    }

    /// What identifies them.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Where reading goes on once all of it is durable.
    #[must_use]
    pub fn next(&self) -> Next {
        Next {
            topic: self.origin.topic.clone(),
            partition: self.origin.partition,
            offset: self.next,
        }
    }

    /// The body of some of its messages.
    #[must_use]
    pub fn body(&self, part: Range<usize>) -> Bytes {
        let end = |count: usize| count.checked_sub(1).map_or(0, |last| self.ends[last]);
        self.body.slice(end(part.start)..end(part.end))
    }
}

/// Batches in the making: bounded in messages and bytes.
#[derive(Debug, Default)]
pub struct Gathering {
    open: Vec<Open>,
    messages: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Open {
    origin: Origin,
    body: Vec<u8>,
    ends: Vec<usize>,
    next: i64,
}

impl Gathering {
    /// Whether it takes no more.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.messages >= SOURCE_BATCH_MESSAGES || self.bytes >= SOURCE_BATCH_BYTES
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Takes a message; one without a value has none that could be an event, and is rejected as such. `id` says what
    /// tells its topic from others of its name.
    ///
    /// # Errors
    /// A sentence, where a message cannot be: Kafka's offsets begin at 0, and its messages are smaller than 2 GiB.
    pub fn take(
        &mut self,
        (topic, partition, offset): (&str, i32, i64),
        value: &[u8],
        id: impl FnOnce(&str) -> Option<String>,
    ) -> Result<(), String> {
        let wrong =
            || format!("topic {topic}, partition {partition}: a message at offset {offset} cannot be");
        let (high, place) = halves(u64::try_from(offset).map_err(|_| wrong())?);
        let is_its = |one: &Open| {
            let origin = &one.origin;
            origin.partition == partition && origin.high == high && origin.topic == topic
        };
        // Messages of a partition come many at a time: the last one's batch is looked at first.
        let at = match self.open.iter().rposition(is_its) {
            Some(at) => at,
            None => {
                let id = id(topic).ok_or_else(|| format!("topic {topic} has no id yet, and a message"))?;
                self.open.push(Open {
                    origin: Origin {
                        topic: topic.to_owned(),
                        id,
                        partition,
                        high,
                    },
                    body: Vec::new(),
                    ends: Vec::new(),
                    next: offset,
                });
                self.open.len() - 1
            }
        };
        let open = &mut self.open[at];
        if !push(&mut open.body, place, value) {
            return Err(wrong());
        }
        open.ends.push(open.body.len());
        open.next = offset + 1;
        self.messages += 1;
        self.bytes += value.len();
        Ok(())
    }

    /// Forgets what is of other partitions than these.
    pub fn keep(&mut self, is_ours: impl Fn(&str, i32) -> bool) {
        self.open
            .retain(|one| is_ours(&one.origin.topic, one.origin.partition));
    }

    /// The batches.
    #[must_use]
    pub fn close(self) -> Vec<Batch> {
        let close = |open: Open| Batch {
            origin: open.origin,
            body: open.body.into(),
            ends: open.ends,
            next: open.next,
        };
        self.open.into_iter().map(close).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_common::wire::messages::message;

    #[expect(clippy::unnecessary_wraps, reason = "what is asked for")]
    fn id(topic: &str) -> Option<String> {
        Some(format!("id of {topic}"))
    }

    fn read(body: &[u8]) -> Vec<(u32, &[u8])> {
        let (mut at, mut found) = (0, Vec::new());
        while let Some((place, range)) = message(body, at) {
            at = range.end;
            found.push((place, &body[range]));
        }
        found
    }

    #[test]
    fn messages_are_gathered_by_partition_and_cut_where_the_upper_half_changes() {
        let mut gathering = Gathering::default();
        let edge = i64::from(u32::MAX);
        for (topic, partition, offset, value) in [
            ("a", 0, 7, "x"),
            ("a", 1, 7, "y"),
            ("a", 0, 9, ""),
            ("b", 0, edge, "z"),
            ("b", 0, edge + 1, "zz"),
        ] {
            gathering
                .take((topic, partition, offset), value.as_bytes(), id)
                .expect("a message");
        }
        gathering.keep(|topic, partition| (topic, partition) != ("a", 1));
        let batches = gathering.close();
        let told: Vec<_> = batches
            .iter()
            .map(|batch| (batch.origin().to_string(), batch.messages(), batch.next().offset))
            .collect();
        assert_eq!(
            told,
            [
                ("kafka/0/0/a/id of a".to_owned(), 2, 10),
                ("kafka/0/0/b/id of b".to_owned(), 1, edge + 1),
                ("kafka/0/1/b/id of b".to_owned(), 1, edge + 2),
            ]
        );
        let batch = &batches[0];
        assert_eq!(read(&batch.body(0..2)), [(7, b"x".as_slice()), (9, b"")]);
        assert_eq!(read(&batch.body(0..1)), [(7, b"x".as_slice())]);
        assert_eq!(read(&batch.body(1..2)), [(9, b"".as_slice())]);
        assert_eq!(read(&batches[2].body(0..1)), [(0, b"zz".as_slice())]);
    }

    #[test]
    fn what_is_gathered_is_bounded() {
        let mut gathering = Gathering::default();
        assert!(gathering.is_empty());
        let value = vec![0; SOURCE_BATCH_BYTES / 2];
        gathering.take(("a", 0, 0), &value, id).expect("a message");
        assert!(!gathering.is_full());
        gathering.take(("a", 0, 1), &value, id).expect("a message");
        assert!(gathering.is_full());
        assert!(Gathering::default().take(("a", 0, -1), b"", id).is_err());
        assert!(Gathering::default().take(("a", 0, 1), b"", |_| None).is_err());
    }
}
