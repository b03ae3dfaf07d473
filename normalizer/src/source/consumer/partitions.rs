//! Partitions that come and go: where each is read from, why one is not read, and what is committed of it.

use super::signature::{Signature, TopicId};
use super::{At, Context, Found, Place};
use rdkafka::client::Client;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use sluice_common::config::Beginning;
use sluice_kafka::told;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What brokers have for one question.
const ASK_DEADLINE: Duration = Duration::from_secs(10);

impl Context {
    /// Partitions become ours: each is read from the group's offset on, which is committed first where there is none.
    pub(super) fn assigned(
        &self,
        base: &BaseConsumer<Self>,
        list: &TopicPartitionList,
    ) -> Result<(), String> {
        let found = self.places(base, list);
        let (mut starts, mut read, mut stopped) = (
            TopicPartitionList::new(),
            TopicPartitionList::new(),
            TopicPartitionList::new(),
        );
        for (at, place, why) in found.iter().flatten() {
            // One that is not read must not be asked for where it has nothing.
            let (list, offset) = match why {
                Some(_) => (&mut stopped, Offset::End),
                None => (&mut read, Offset::Offset(place.durable)),
            };
            list.add_partition(&at.0, at.1);
            add_at(&mut starts, at, offset)?;
        }
        let assigned = match base.rebalance_protocol() {
            RebalanceProtocol::Cooperative => base.incremental_assign(&starts),
            RebalanceProtocol::Eager | RebalanceProtocol::None => base.assign(&starts),
        };
        assigned.map_err(|error| error.to_string())?;
        let found = found?;
        // A partition that went while it was paused comes back paused.
        base.resume(&read).map_err(|error| told(&error))?;
        base.pause(&stopped).map_err(|error| told(&error))?;
        let reasons: Vec<_> = found.iter().filter_map(|(_, _, why)| why.clone()).collect();
        let mut state = self.state.lock();
        for (at, place, why) in found {
            state.stopped.extend(why.map(|why| (at.clone(), why)));
            state.ours.insert(at, place);
        }
        let partitions = state.ours.len();
        self.known.lock().extend(state.ids.clone());
        drop(state);
        tracing::info!(
            group = self.spec.group(),
            partitions,
            "partitions are read from now on"
        );
        reasons.into_iter().for_each(|reason| self.trouble(reason));
        Ok(())
    }

    /// Where each is read from; and why not, where it is not.
    fn places(&self, base: &BaseConsumer<Self>, list: &TopicPartitionList) -> Result<Vec<Found>, String> {
        let committed = self.committed(base, list.clone())?;
        let topics = list.to_topic_map();
        self.identify(
            base.client(),
            &topics.keys().map(|(topic, _)| topic.as_str()).collect(),
        )?;
        let (mut places, mut fresh) = (Vec::new(), TopicPartitionList::new());
        let mut begun = BTreeMap::new();
        for one in committed.elements() {
            one.error().map_err(|error| self.untold(&error))?;
            let at = (one.topic().to_owned(), one.partition());
            let range = base.fetch_watermarks(&at.0, at.1, ASK_DEADLINE);
            let Offset::Offset(offset) = one.offset() else {
                let range = range.map_err(|error| format!("{}: {}", at.0, self.words.why(&error)))?;
                let begun = match begun.get(&at.0) {
                    Some(begun) => *begun,
                    None => *begun.entry(at.0.clone()).or_insert(self.has_begun(base, &at.0)?),
                };
                // A new partition of a topic that is read already, or a topic made anew, with which brokers forget the
                // group's offsets: nothing of it was there before.
                let offset = match begun || self.was_made_anew(&at.0) {
                    true => range.0,
                    false => self.beginning(base, &at, range)?,
                };
                add(&mut fresh, &at, offset)?;
                places.push((at, Place::at(offset, range.1), None));
                continue;
            };
            // One whose leader is away is told by its brokers: it is not known to be lost.
            let (low, high) = range.unwrap_or((offset, offset));
            let why = self
                .of_another(&at, one.metadata())
                .or_else(|| self.lost(&at, offset, (low, high)));
            places.push((at, Place::at(offset, high), why));
        }
        self.commit(base, fresh, CommitMode::Sync)
            .map_err(|error| format!("first offsets cannot be committed: {}", self.words.why(&error)))?;
        Ok(places)
    }

    fn untold(&self, error: &KafkaError) -> String {
        format!("the group's offsets are not told: {}", self.words.why(error))
    }

    fn committed(
        &self,
        base: &BaseConsumer<Self>,
        list: TopicPartitionList,
    ) -> Result<TopicPartitionList, String> {
        base.committed_offsets(list, ASK_DEADLINE)
            .map_err(|error| self.untold(&error))
    }

    /// Whether the group has an offset in any partition of a topic.
    fn has_begun(&self, base: &BaseConsumer<Self>, topic: &str) -> Result<bool, String> {
        let told = base.fetch_metadata(Some(topic), ASK_DEADLINE);
        let told = told.map_err(|error| format!("{topic}: {}", self.words.why(&error)))?;
        let mut all = TopicPartitionList::new();
        for found in told.topics().iter().filter(|found| found.name() == topic) {
            for partition in found.partitions() {
                all.add_partition(topic, partition.id());
            }
        }
        let committed = self.committed(base, all)?;
        let has_offset = |one: &Offset| matches!(one, Offset::Offset(_));
        Ok(committed.elements().iter().any(|one| has_offset(&one.offset())))
    }

    /// Commits offsets, signed with the log that has what comes before them.
    pub(super) fn commit(
        &self,
        base: &BaseConsumer<Self>,
        list: TopicPartitionList,
        mode: CommitMode,
    ) -> KafkaResult<()> {
        if list.count() == 0 {
            return Ok(());
        }
        for (topic, partition) in list.to_topic_map().into_keys() {
            let (Some(signature), Some(mut one)) =
                (self.signature(&topic), list.find_partition(&topic, partition))
            else {
                continue;
            };
            one.set_metadata(signature.to_string());
        }
        base.commit(&list, mode)
    }

    fn signature(&self, topic: &str) -> Option<Signature> {
        Some(Signature {
            log: self.spec.log.to_string(),
            topic: Some(self.state.lock().ids.get(topic)?.clone()),
        })
    }

    /// Asks which topics these are. After a fetch it says of what was fetched whose it is: a topic that still has its id,
    /// or is gone, has been none but itself until then.
    ///
    /// # Errors
    /// Where one was made anew: what was read of the one before and is not in the log yet must not be taken for this one's.
    pub(super) fn identify(&self, client: &Client<Self>, topics: &BTreeSet<&str>) -> Result<(), String> {
        let topics: Vec<&str> = topics.iter().copied().collect();
        let told = TopicId::ask(client, &topics, ASK_DEADLINE);
        let told = told.map_err(|reason| format!("the brokers do not tell which topic it is: {reason}"))?;
        let mut state = self.state.lock();
        for (topic, id) in told {
            match (state.ids.get(&topic), id) {
                (Some(before), Some(now)) if before.is_not(&now) => {
                    return Err(format!("{topic} is another topic than before: it was made anew"));
                }
                (None, Some(id)) => {
                    state.ids.insert(topic, id);
                }
                (Some(_), _) | (None, None) => {}
            }
        }
        Ok(())
    }

    /// Whether an earlier consumer of this process read another topic of that name.
    fn was_made_anew(&self, topic: &str) -> bool {
        let (known, state) = (self.known.lock(), self.state.lock());
        matches!((known.get(topic), state.ids.get(topic)), (Some(then), Some(now)) if then.is_not(now))
    }

    /// Why a partition is not read whose offset another log's Sluice has committed (what was read twice would be stored
    /// twice, since each log knows its own keys only), or is of another topic, whose messages these are not.
    fn of_another(&self, at: &At, signed: &str) -> Option<String> {
        let (signed, own) = (Signature::parse(signed)?, self.signature(&at.0)?);
        if signed.log != own.log {
            let reason = format!(
                "the group's offset was committed by another log ({signed}). Give each Sluice a `group` of its own; or, \
                 where that log is no more,"
            );
            return Some(self.not_read(at, &reason, "--to-current"));
        }
        let is_other = matches!((signed.topic, own.topic), (Some(then), Some(now)) if then.is_not(&now));
        let reason = "the group's offset is of another topic of this name. It was made anew:";
        is_other.then(|| self.not_read(at, reason, "--to-earliest"))
    }

    /// Says why a partition is not read, and how to have it read again.
    fn not_read(&self, (topic, partition): &At, reason: &str, to: &str) -> String {
        let (group, brokers) = (self.spec.group(), self.spec.brokers());
        format!(
            "partition {partition} of topic {topic} is not read: {reason} take out `consume`, set the offset with \
             `kafka-consumer-groups.sh --bootstrap-server {brokers} --group {group} --topic {topic}:{partition} \
             --reset-offsets {to} --execute`, and put it in again"
        )
    }

    fn beginning(&self, base: &BaseConsumer<Self>, at: &At, (low, high): (i64, i64)) -> Result<i64, String> {
        let moment = match self.spec.consume.from {
            Beginning::Earliest => return Ok(low),
            Beginning::Latest => return Ok(high),
            Beginning::At(moment) => moment,
        };
        let mut asked = TopicPartitionList::new();
        add(&mut asked, at, i64::try_from(moment.ms()).unwrap_or(i64::MAX))?;
        let found = base.offsets_for_times(asked, ASK_DEADLINE);
        let found = found.map_err(|error| format!("{}: {}", at.0, self.words.why(&error)))?;
        let offset = found.find_partition(&at.0, at.1).map(|one| one.offset());
        match offset {
            Some(Offset::Offset(offset)) => Ok(offset),
            // Nothing is as late.
            Some(Offset::End) => Ok(high),
            _ => Err(format!("{}: no offset is told for {moment}", at.0)),
        }
    }

    /// Why a partition is not read of which messages that were not read are gone, or whose topic is another one: nobody
    /// but an operator can say what is right then.
    fn lost(&self, at: &At, offset: i64, (low, high): (i64, i64)) -> Option<String> {
        let is_lost = !(low..=high).contains(&offset);
        is_lost.then(|| {
            let reason = format!(
                "the group's offset is {offset}, and the topic has {low} to {high}. Messages were deleted before they were \
                 read, or it was made anew:"
            );
            self.not_read(at, &reason, "--to-earliest")
        })
    }

    /// Partitions go: what is durable of them is committed first, so that whoever has them next need not read it again.
    pub(super) fn revoked(&self, base: &BaseConsumer<Self>, list: &TopicPartitionList) -> Result<(), String> {
        let mut left = TopicPartitionList::new();
        for at in list.to_topic_map().into_keys() {
            self.shared.lags.lock().remove(&self.labels(&at.0, at.1));
            let mut state = self.state.lock();
            state.stopped.remove(&at);
            let Some(place) = state.ours.remove(&at) else {
                continue;
            };
            drop(state);
            if place.durable > place.committed {
                add(&mut left, &at, place.durable)?;
            }
        }
        if !base.assignment_lost()
            && let Err(error) = self.commit(base, left, CommitMode::Sync)
        {
            tracing::debug!(%error, group = self.spec.group(), "the last offsets were not committed");
        }
        let unassigned = match base.rebalance_protocol() {
            RebalanceProtocol::Cooperative => base.incremental_unassign(list),
            RebalanceProtocol::Eager | RebalanceProtocol::None => base.unassign(),
        };
        unassigned.map_err(|error| error.to_string())
    }
}

pub(super) fn add(list: &mut TopicPartitionList, at: &At, offset: i64) -> Result<(), String> {
    add_at(list, at, Offset::Offset(offset))
}

fn add_at(list: &mut TopicPartitionList, at: &At, offset: Offset) -> Result<(), String> {
    let added = list.add_partition_offset(&at.0, at.1, offset);
    added.map_err(|error| format!("{}: offset {offset:?}: {error}", at.0))
}
