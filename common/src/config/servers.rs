//! What the URLs of ClickHouse servers may get wrong, once their references are followed.

use super::ClickHouse;
use crate::servers::{MAX_SERVERS, name_of};

/// Each a sentence that names its place. No URL is told whole: it may come from a file.
pub(super) fn problems(config: &ClickHouse, url: Option<&str>, failover: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    let is_tls = |url: &str| url.starts_with("https://");
    if config.ca.is_some()
        && url
            .into_iter()
            .chain(failover.iter().map(String::as_str))
            .any(|url| !is_tls(url))
    {
        found.push(
            "clickhouse.ca: `clickhouse.ca` is for https://: write the url so, or take the key out".into(),
        );
    }
    if config.failover.is_empty() {
        return found;
    }
    if config.url.is_none() {
        found.push("clickhouse.failover: it needs `clickhouse.url`, which comes before it".into());
    }
    if config.failover.len() >= MAX_SERVERS {
        found.push(format!("clickhouse.failover: at most {} urls", MAX_SERVERS - 1));
    }
    let mut names: Vec<String> = url.map(name_of).into_iter().collect();
    for name in failover.iter().map(|url| name_of(url)) {
        if names.contains(&name) {
            found.push(format!("clickhouse.failover: {name} is named twice"));
        }
        names.push(name);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::Loaded;
    use std::path::Path;

    fn told(yaml: &str) -> String {
        let read = Loaded::parse(yaml, Path::new("x"), Path::new("/"));
        read.map_or_else(
            |error| error.to_string(),
            |loaded| loaded.clickhouse_failover.join(","),
        )
    }

    #[test]
    fn further_servers_come_after_the_first_each_once() {
        let both = r#"clickhouse: {url: "http://a:1", failover: ["http://b:1", "http://c"]}"#;
        assert_eq!(told(both), "http://b:1,http://c");
        for (yaml, wanted) in [
            (
                r#"clickhouse: {failover: ["http://b:1"]}"#,
                "it needs `clickhouse.url`",
            ),
            (
                r#"clickhouse: {url: "http://a:1", failover: ["http://A:1/"]}"#,
                "a:1 is named twice",
            ),
            (
                r#"clickhouse: {url: "https://a:1", failover: ["http://b:1"], ca: c}"#,
                "is for https://",
            ),
            (
                r#"clickhouse: {url: "http://a:1", failover: ["${NO_SUCH_VARIABLE}"]}"#,
                "NO_SUCH_VARIABLE",
            ),
        ] {
            let told = told(yaml);
            assert!(
                told.contains(wanted) && told.contains("x:1: clickhouse."),
                "{yaml}: {told}"
            );
        }
    }
}
