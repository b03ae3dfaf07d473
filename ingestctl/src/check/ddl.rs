//! `check --ddl`: the statements that make our tables, each part with the reason for it.
//!
//! The statements are those that a start runs, a clause a line. Comments go above clauses; a replicated or
//! clustered table differs in its engine, in the name of its token window and in `ON CLUSTER`.

use sluice_common::config::{Loaded, tables};
use sluice_common::ids::Name;
use sluice_sink_writer::ddl;

/// How the statements are to be written.
#[derive(Debug, Clone, Default)]
pub struct Style {
    pub replicated: bool,
    pub cluster: Option<Name>,
}

const ENGINE: &str = "ENGINE = MergeTree";
const REPLICATED: &str = "ENGINE = ReplicatedMergeTree('/clickhouse/tables/{uuid}/{shard}', '{replica}')";
const WINDOW: &str = "non_replicated_deduplication_window";
const REPLICATED_WINDOW: &str = "replicated_deduplication_window";

/// Above a line that begins so stands this.
const REASONS: [(&str, &str); 9] = [
    ("`tenant` ", "who sent it: from the API key, never from the event"),
    (
        "`ingested_at` ",
        "when it was appended to the log, not when it was inserted: a retry gives the same row",
    ),
    (
        "`_src_l` ",
        "where the row came from: log, partition, place in the log. Rows are counted by these after a doubt, which is \
         what makes it exactly once",
    ),
    (
        "INDEX `_src_o_range`",
        "keeps that counting from reading the whole column",
    ),
    (
        "ENGINE = MergeTree",
        "an engine that keeps every row: Replacing, Summing and the like are at-least-once",
    ),
    (
        "PARTITION BY",
        "one insert goes to one partition, so few and large ones, and old ones are dropped whole",
    ),
    (
        "ORDER BY",
        "the primary key: tenant first, so that a query of one tenant reads its rows alone",
    ),
    (
        "TTL",
        "rows end here: longer than time.max_past and an outage, or late rows would end before they are read",
    ),
    (
        "SETTINGS",
        "how many insert tokens the table remembers: the window in which a repeated insert is recognised. 0, the \
         server's default, would recognise none",
    ),
];

const CODECS: &str = "\
-- Codecs: ZSTD(1) for text, because it packs best what repeats, Delta before it for times and places in the log, which
-- rise by little, none for small numbers and LowCardinality, which LZ4 packs well already.
";
const AT_LEAST_ONCE: &str = "\
-- Replicated tables are at-least-once until they are tested: a replica may lag behind what another one has, and a token
-- that was lost is never given up there. Macros {shard} and {replica} must be set on every server.
";

/// All statements.
#[must_use]
pub fn text(loaded: &Loaded, style: &Style) -> String {
    let database = &loaded.config.clickhouse.database;
    let mut statements = vec![("the database".to_owned(), ddl::database(database))];
    for plan in tables(&loaded.config.datasets) {
        let names: Vec<&str> = plan.datasets.iter().map(|one| one.name.as_str()).collect();
        let what = format!("dataset {}", names.join(", "));
        statements.push((what, ddl::table(&plan, database)));
    }
    statements.push((
        "what was acknowledged and cannot be stored as a row".into(),
        ddl::dead_letters(database, loaded.config.dead_letters.ttl),
    ));
    statements.push(("the books".into(), ddl::ledger(database)));
    let mut text = CODECS.to_owned();
    if style.replicated {
        text += AT_LEAST_ONCE;
    }
    for (what, sql) in statements {
        text += &format!("\n-- {what}\n{};\n", explained(&dressed(&sql, style)));
    }
    text
}

/// The statement for replicas, on a cluster.
fn dressed(sql: &str, style: &Style) -> String {
    let mut sql = sql.to_owned();
    if style.replicated {
        sql = sql.replace(&format!("{ENGINE}\n"), &format!("{REPLICATED}\n"));
        sql = sql.replace(WINDOW, REPLICATED_WINDOW);
    }
    let Some(cluster) = &style.cluster else {
        return sql;
    };
    let on = format!(" ON CLUSTER `{cluster}`");
    let head = sql.find(" (\n").unwrap_or(sql.len());
    let (head, rest) = sql.split_at(head);
    format!("{head}{on}{rest}")
}

/// A comment above each part that has a reason.
fn explained(sql: &str) -> String {
    let mut lines = Vec::new();
    for line in sql.lines() {
        let part = line.trim_start();
        let indent = &line[..line.len() - part.len()];
        let part = part.replace("Replicated", "");
        if let Some((_, reason)) = REASONS.iter().find(|(begin, _)| part.starts_with(begin)) {
            lines.push(format!("{indent}-- {reason}"));
        }
        lines.push(line.to_owned());
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn printed(style: &Style) -> String {
        let loaded = Loaded::read(None, Path::new("/nowhere")).expect("the default config");
        text(&loaded, style)
    }

    #[test]
    fn each_part_is_explained_and_the_statements_are_those_of_a_start() {
        let text = printed(&Style::default());
        for (begin, reason) in REASONS {
            assert!(text.contains(reason), "{begin} is explained in\n{text}");
            assert!(
                !reason.contains(';'),
                "{begin}: whoever splits at `;` would cut the comment"
            );
        }
        let loaded = Loaded::read(None, Path::new("/nowhere")).expect("the default config");
        let bare = |text: &str| -> String {
            let lines = text.lines().filter(|line| !line.trim_start().starts_with("--"));
            lines.collect::<Vec<_>>().join("\n")
        };
        let database = &loaded.config.clickhouse.database;
        for sql in [
            ddl::table(&tables(&loaded.config.datasets)[0], database),
            ddl::ledger(database),
        ] {
            assert!(bare(&text).contains(&sql), "{sql}");
        }
    }

    #[test]
    fn replicated_tables_on_a_cluster_have_their_own_engine_window_and_warning() {
        let style = Style {
            replicated: true,
            cluster: Some(Name::new("main").expect("valid")),
        };
        let text = printed(&style);
        let tables = text.matches("CREATE TABLE").count();
        assert!(tables >= 3);
        assert_eq!(text.matches(REPLICATED).count(), tables);
        assert_eq!(
            text.matches(" ON CLUSTER `main`").count(),
            tables + 1,
            "the database too"
        );
        assert_eq!(
            text.matches(" replicated_deduplication_window = ").count(),
            tables
        );
        assert!(!text.contains(WINDOW) && text.contains("at-least-once until they are tested"));
        assert!(
            text.contains("`telemetry`.`events` ON CLUSTER `main` (\n"),
            "{text}"
        );
    }
}
