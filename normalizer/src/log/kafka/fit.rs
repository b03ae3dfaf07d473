//! Whether the log's topic is such that nothing in it is lost before it is stored (R6).

use super::clients::{ASK_DEADLINE, LogClients, MESSAGE_BYTES, answered};
use rdkafka::admin::{AdminOptions, ConfigResource, ResourceSpecifier};
use sluice_kafka::told;
use std::collections::HashMap;

/// What is wrong with the log's topic, each a sentence; and with those beside it. Blocks; to be called on a thread of
/// the runtime.
///
/// # Errors
/// A sentence where the brokers do not say.
pub(super) fn problems(clients: &LogClients) -> Result<Vec<String>, String> {
    let topics = clients.topics();
    let admin = clients.admin()?;
    let options = AdminOptions::new().request_timeout(Some(ASK_DEADLINE));
    let asked = topics.each_ref().map(|name| ResourceSpecifier::Topic(name));
    let told = answered(admin.describe_configs(&asked, &options)).map_err(|error| told(&error))?;
    let wrong: [Check<'_>; 3] = [
        &|settings| of_log(settings, clients.kept_ms),
        &of_state,
        &of_parked,
    ];
    let mut found = Vec::new();
    for ((name, wrong), resource) in topics.iter().zip(wrong).zip(told) {
        let resource =
            resource.map_err(|code| format!("the settings of topic {name} are not told: {code}"))?;
        let wrong = wrong(&settings(&resource)).into_iter();
        found.extend(wrong.map(|wrong| format!("topic {name}: {wrong}")));
    }
    Ok(found)
}

type Settings = HashMap<String, String>;
/// What is wrong with settings.
type Check<'a> = &'a dyn Fn(&Settings) -> Vec<String>;

fn settings(resource: &ConfigResource) -> Settings {
    let entries = resource.entries.iter();
    let one = |entry: &rdkafka::admin::ConfigEntry| Some((entry.name.clone(), entry.value.clone()?));
    entries.filter_map(one).collect()
}

fn of_log(settings: &Settings, kept_ms: u64) -> Vec<String> {
    let mut found = kept_whole(settings);
    let is = |key: &str, wanted: &str| settings.get(key).is_none_or(|value| value == wanted);
    if !is("message.timestamp.type", "LogAppendTime") {
        found.push("set message.timestamp.type=LogAppendTime: windows are told by it".into());
    }
    let kept = number(settings, "retention.ms");
    if kept.is_some_and(|ms| ms >= 0 && ms.cast_unsigned() < kept_ms) {
        found.push(format!(
            "set retention.ms to {kept_ms} or more: the widest dedup window and 72 hours, within which what is not stored is"
        ));
    }
    found.extend(large_enough(settings));
    found
}

fn of_state(settings: &Settings) -> Vec<String> {
    let mut found = kept_whole(settings);
    if number(settings, "retention.ms").is_some_and(|ms| ms != -1) {
        found.push("set retention.ms=-1: the log's secret is in it".into());
    }
    found
}

fn of_parked(settings: &Settings) -> Vec<String> {
    let mut found = large_enough(settings);
    if settings
        .get("cleanup.policy")
        .is_some_and(|policy| policy != "compact")
    {
        found.push("set cleanup.policy=compact: what is set aside stays until it is sent".into());
    }
    found
}

/// For the largest record.
fn large_enough(settings: &Settings) -> Vec<String> {
    let most = number(settings, "max.message.bytes");
    let least = MESSAGE_BYTES as u64;
    let too_small = most.is_some_and(|most| most.cast_unsigned() < least);
    let told = || format!("set max.message.bytes to {least} or more: the largest record");
    too_small.then(told).into_iter().collect()
}

fn kept_whole(settings: &Settings) -> Vec<String> {
    let mut found = Vec::new();
    if settings
        .get("cleanup.policy")
        .is_some_and(|policy| policy != "delete")
    {
        found.push("set cleanup.policy=delete: compaction takes records away".into());
    }
    if number(settings, "retention.bytes").is_some_and(|bytes| bytes != -1) {
        found.push("set retention.bytes=-1: what is not stored yet would be deleted under load".into());
    }
    found
}

fn number(settings: &Settings, key: &str) -> Option<i64> {
    settings.get(key)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Settings {
        let good = [
            ("cleanup.policy", "delete"),
            ("retention.bytes", "-1"),
            ("retention.ms", "600000000"),
            ("message.timestamp.type", "LogAppendTime"),
            ("max.message.bytes", "1048588"),
        ];
        let all = good.iter().chain(pairs);
        all.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn a_topic_that_may_lose_records_or_tells_no_append_time_is_named_with_what_to_set() {
        let wrong = |pairs: &[(&str, &str)]| of_log(&settings(pairs), 400_000_000).join("; ");
        assert_eq!(wrong(&[]), "");
        assert_eq!(wrong(&[("retention.ms", "-1")]), "");
        for (key, value) in [
            ("cleanup.policy", "compact"),
            ("cleanup.policy", "compact,delete"),
            ("retention.bytes", "1000000"),
            ("retention.ms", "3600000"),
            ("message.timestamp.type", "CreateTime"),
            ("max.message.bytes", "500000"),
        ] {
            let told = wrong(&[(key, value)]);
            assert!(told.contains(&format!("set {key}")), "{key}={value}: {told}");
        }
        assert!(of_state(&settings(&[])).join("").contains("retention.ms=-1"));
        assert!(of_state(&settings(&[("retention.ms", "-1")])).is_empty());
        assert!(of_parked(&settings(&[("cleanup.policy", "compact")])).is_empty());
        assert!(
            of_parked(&settings(&[]))
                .join("")
                .contains("cleanup.policy=compact")
        );
    }
}
