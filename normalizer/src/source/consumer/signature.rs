//! What a group's offsets are signed with: whose they are, and of which topic.

use rdkafka::client::{Client, ClientContext};
use rdkafka::error::RDKafkaErrorCode;
use sluice_kafka::topic_ids;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Begins what offsets are signed with; then comes the log's id.
const LOG: &str = "sluice log ";
/// Comes between that and the topic's.
const TOPIC: &str = " topic ";
/// Begins the id of a cluster, in place of the topic's.
const CLUSTER: &str = "cluster ";

/// What tells a topic from others of its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TopicId {
    /// The brokers gave it when they made the topic.
    Own(String),
    /// Brokers before Kafka 2.8 give topics none: the cluster's stands for it.
    Cluster(String),
}

impl TopicId {
    /// Asks for those of topics; none of one that is not there. Blocks.
    ///
    /// # Errors
    /// A sentence where the brokers do not say: no other id may be taken for it meanwhile.
    pub fn ask<C: ClientContext>(
        client: &Client<C>,
        topics: &[&str],
        patience: Duration,
    ) -> Result<BTreeMap<String, Option<Self>>, String> {
        let told = topic_ids(client, topics, patience)?;
        let cluster = || -> Result<Self, String> {
            let id = client.fetch_cluster_id(patience);
            id.map(Self::Cluster)
                .ok_or_else(|| "neither topic nor cluster has an id".into())
        };
        let one = |(topic, id): (String, Result<Option<u128>, RDKafkaErrorCode>)| match id {
            Ok(Some(id)) => Ok((topic, Some(Self::Own(format!("{id:032x}"))))),
            Ok(None) => Ok((topic, Some(cluster()?))),
            Err(RDKafkaErrorCode::UnknownTopicOrPartition) => Ok((topic, None)),
            Err(code) => Err(format!("{topic}: {code}")),
        };
        told.into_iter().map(one).collect()
    }

    /// Whether they are two topics. Brokers that give ids since their upgrade tell nothing of the time before.
    pub fn is_not(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Own(one), Self::Own(other)) | (Self::Cluster(one), Self::Cluster(other)) => one != other,
            (Self::Own(_), Self::Cluster(_)) | (Self::Cluster(_), Self::Own(_)) => false,
        }
    }

    fn parse(text: &str) -> Self {
        match text.strip_prefix(CLUSTER) {
            Some(cluster) => Self::Cluster(cluster.to_owned()),
            None => Self::Own(text.to_owned()),
        }
    }
}

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own(id) => f.write_str(id),
            Self::Cluster(id) => write!(f, "{CLUSTER}{id}"),
        }
    }
}

/// Of an offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Signature {
    /// Whose keys tell what was read before.
    pub log: String,
    /// None where it was signed before topics were told apart.
    pub topic: Option<TopicId>,
}

impl Signature {
    /// None where nobody of ours has signed.
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix(LOG)?;
        let (log, topic) = match rest.split_once(TOPIC) {
            Some((log, topic)) => (log, Some(TopicId::parse(topic))),
            None => (rest, None),
        };
        Some(Self {
            log: log.to_owned(),
            topic,
        })
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{LOG}{}", self.log)?;
        match &self.topic {
            Some(topic) => write!(f, "{TOPIC}{topic}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_reads_back_as_it_is_written() {
        for topic in [
            None,
            Some(TopicId::Own("00ff".into())),
            Some(TopicId::Cluster("a topic b".into())),
        ] {
            let log = "17".to_owned();
            let signature = Signature { log, topic };
            assert_eq!(Signature::parse(&signature.to_string()), Some(signature));
        }
        assert_eq!(Signature::parse(""), None, "set by hand");
        assert_eq!(Signature::parse("somebody else's"), None);
    }

    #[test]
    fn a_topic_is_another_one_only_where_both_ids_are_of_a_kind() {
        let (one, other) = (TopicId::Own("1".into()), TopicId::Own("2".into()));
        let (cluster, moved) = (TopicId::Cluster("1".into()), TopicId::Cluster("2".into()));
        assert!(one.is_not(&other) && cluster.is_not(&moved));
        assert!(!one.is_not(&one) && !one.is_not(&cluster) && !cluster.is_not(&one));
    }
}
