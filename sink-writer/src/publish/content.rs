//! Which rows of a record a call is about, and each as its message: an event, or a dead letter.

use super::message::{self, Message};
use crate::dead_letters::Letter;
use crate::route::{self, Refusals};
use arrow_array::RecordBatch;
use sluice_common::fates::Fate;
use sluice_common::ids::source_o;
use sluice_common::record::{Holds, Record};
use sluice_common::wire::publish::{Content, PublishOrder};
use sluice_common::wire::sink::RangeRecord;

/// What an order asks for.
pub enum Asked<'a> {
    Events,
    Letters(Refusals<'a>),
}

impl<'a> Asked<'a> {
    /// That of an order.
    pub fn of(content: &'a Content) -> Self {
        match content {
            Content::Events => Self::Events,
            Content::Letters(refused) => Self::Letters(route::refusals(refused)),
        }
    }

    /// How many rows of a record go out.
    pub fn count(&self, one: &RangeRecord) -> u64 {
        match self {
            Self::Events => u64::from(one.fates.kept()),
            Self::Letters(_) => self.rows(one).count() as u64,
        }
    }

    /// Which they are, in log order.
    pub fn rows<'b>(&'b self, one: &'b RangeRecord) -> impl Iterator<Item = u32> + 'b {
        (0..one.record.rows()).filter(|row| self.goes(one, *row))
    }

    fn goes(&self, one: &RangeRecord, row: u32) -> bool {
        let fate = u16::try_from(row).map_or(Fate::Drop, |row| one.fates.of(row));
        let place = one.record.place;
        match self {
            Self::Events => fate == Fate::Keep,
            Self::Letters(refused) => match one.record.meta.holds {
                Holds::RejectedCopies => fate == Fate::Keep,
                Holds::Events => fate == Fate::Conflict || refused.contains_key(&source_o(place.offset, row)),
            },
        }
    }

    /// One of these rows; a dead letter's payload is cut to `most` bytes.
    pub fn message(
        &self,
        order: &PublishOrder,
        record: &Record,
        (batch, row): (&RecordBatch, u32),
        most: usize,
    ) -> Message {
        let Self::Letters(refused) = self else {
            return message::of(order, record, batch, row);
        };
        let partition = order.partition;
        let letter = match (
            record.meta.holds,
            refused.get(&source_o(record.place.offset, row)),
        ) {
            (Holds::RejectedCopies, _) => Letter::rejected(record, partition, batch, row),
            (Holds::Events, Some(why)) => Letter::refused(record, partition, batch, row, *why),
            (Holds::Events, None) => Letter::conflict(record, partition, batch, row),
        };
        message::carrying(order, record, (batch, row), letter.json(most))
    }

    /// The bytes that are left to a payload where `message` is larger than one may be: none where nothing can be cut.
    pub fn shorter(&self, message: &Message, most: usize) -> Option<usize> {
        match self {
            Self::Events => None,
            Self::Letters(_) => (most > 0).then(|| most.min(message.payload.len()) / 2),
        }
    }
}
