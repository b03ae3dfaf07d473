//! The statements that create our database and tables. Pure text: `ingestctl check --ddl` prints it.

use sluice_common::books::LEDGER;
use sluice_common::config::{Dataset, Field, FieldType, Kind, PartitionBy, Period, TablePlan};
use sluice_common::ids::Name;
use sluice_common::limits::TOKEN_WINDOW_BLOCKS;
use std::fmt::Write;

pub use sluice_common::books::DEAD_LETTERS;

/// `CREATE DATABASE`.
#[must_use]
pub fn database(database: &Name) -> String {
    format!("CREATE DATABASE IF NOT EXISTS `{database}`")
}

/// `CREATE TABLE` of a table with the columns of all its datasets.
#[must_use]
pub fn table(plan: &TablePlan<'_>, database: &Name) -> String {
    let dataset = plan.layout();
    let mut columns = vec!["`tenant` LowCardinality(String)".to_owned()];
    columns.extend(plan.fields.iter().copied().map(column));
    let mut sql = create(database, plan.name.as_str(), &columns);
    if dataset.partition_by != PartitionBy::None {
        let _ = write!(sql, "\nPARTITION BY {}", quoted_partition(&dataset.partition_by));
    }
    let _ = write!(sql, "\nORDER BY ({})", order_by(dataset));
    if let Some(ttl) = ttl(dataset) {
        let _ = write!(sql, "\nTTL {ttl}");
    }
    sql + &settings()
}

/// When rows are deleted, if ever.
pub(crate) fn ttl(dataset: &Dataset) -> Option<String> {
    let (ttl, time) = (dataset.ttl?, dataset.time.as_ref()?);
    // A TTL is a whole number of seconds, rounded up: a row is never deleted early.
    let seconds = ttl.ms().div_ceil(1_000);
    Some(format!(
        "toDateTime(`{}`) + toIntervalSecond({seconds})",
        time.field
    ))
}

/// How `dead_letters` is partitioned.
#[must_use]
pub fn dead_letters_partition() -> PartitionBy {
    Name::new("ingested_at").map_or(PartitionBy::None, PartitionBy::Month)
}

/// `CREATE TABLE` of the dead letters (R3, R15): what was acknowledged and cannot be stored as a row, and
/// copies of what was rejected, which alone expire after `ttl`.
#[must_use]
pub fn dead_letters(database: &Name, ttl: Period) -> String {
    let columns = [
        "`tenant` LowCardinality(String)",
        "`dataset` LowCardinality(String)",
        "`stage` LowCardinality(String)",
        "`code` LowCardinality(String)",
        "`message` String",
        "`field` LowCardinality(String)",
        "`event_index` Nullable(UInt32)",
        "`request_id` String",
        "`payload` String CODEC(ZSTD(3))",
    ]
    .map(str::to_owned);
    let sql = create(database, DEAD_LETTERS, &columns);
    let seconds = ttl.ms().div_ceil(1_000);
    format!(
        "{sql}\nPARTITION BY toYYYYMM(`ingested_at`)\nORDER BY (`tenant`, `dataset`, `ingested_at`)\n\
         TTL toDateTime(`ingested_at`) + toIntervalSecond({seconds}) DELETE WHERE `stage` = 'intake'{}",
        settings()
    )
}

/// How `ledger` is partitioned.
#[must_use]
pub fn ledger_partition() -> PartitionBy {
    Name::new("minute").map_or(PartitionBy::None, PartitionBy::Month)
}

/// `CREATE TABLE` of the books (R20). Rows are counts of one minute, so a year of them is small.
#[must_use]
pub fn ledger(database: &Name) -> String {
    let mut columns = vec![
        "`tenant` LowCardinality(String)".to_owned(),
        "`dataset` LowCardinality(String)".to_owned(),
        "`minute` DateTime('UTC') CODEC(Delta, ZSTD(1))".to_owned(),
        "`entry` LowCardinality(String)".to_owned(),
    ];
    let counts = [
        "received",
        "stored",
        "duplicate",
        "dead_lettered",
        "rejected",
        "parked",
    ];
    columns.extend(counts.map(|name| format!("`{name}` Int64 CODEC(T64, ZSTD(1))")));
    let sql = create(database, LEDGER, &columns);
    sql + "\nPARTITION BY toYYYYMM(`minute`)\nORDER BY (`tenant`, `dataset`, `minute`)\nTTL `minute` + toIntervalDay(400)"
        + &settings()
}

fn create(database: &Name, table: &str, columns: &[String]) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS `{database}`.`{table}` (\n    {},\n    \
         `ingested_at` DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),\n    \
         `_src_l` UInt64 CODEC(ZSTD(1)),\n    \
         `_src_p` UInt16 CODEC(ZSTD(1)),\n    \
         `_src_o` UInt64 CODEC(Delta, ZSTD(1)),\n    \
         INDEX `_src_o_range` `_src_o` TYPE minmax GRANULARITY 1\n)\nENGINE = MergeTree",
        columns.join(",\n    ")
    )
}

fn settings() -> String {
    format!("\nSETTINGS non_replicated_deduplication_window = {TOKEN_WINDOW_BLOCKS}")
}

fn order_by(dataset: &Dataset) -> String {
    let columns: Vec<String> = dataset.sorting().iter().map(|name| format!("`{name}`")).collect();
    columns.join(", ")
}

fn quoted_partition(by: &PartitionBy) -> String {
    let text = by.to_string();
    match by.column() {
        Some(column) => text.replace(&format!("({column})"), &format!("(`{column}`)")),
        None => text,
    }
}

pub(crate) fn column(field: &Field) -> String {
    format!(
        "`{}` {}{}",
        field.name,
        clickhouse_type(&field.field_type),
        codec(&field.field_type.kind)
    )
}

/// The ClickHouse type of a field's type.
#[must_use]
pub fn clickhouse_type(field: &FieldType) -> String {
    let plain = match &field.kind {
        Kind::LowCardinalityString if field.nullable => return "LowCardinality(Nullable(String))".into(),
        Kind::LowCardinalityString => "LowCardinality(String)".into(),
        Kind::String => "String".into(),
        Kind::FixedString(bytes) => format!("FixedString({bytes})"),
        Kind::Bool => "Bool".into(),
        Kind::Int8 => "Int8".into(),
        Kind::Int16 => "Int16".into(),
        Kind::Int32 => "Int32".into(),
        Kind::Int64 => "Int64".into(),
        Kind::UInt8 => "UInt8".into(),
        Kind::UInt16 => "UInt16".into(),
        Kind::UInt32 => "UInt32".into(),
        Kind::UInt64 => "UInt64".into(),
        Kind::Float32 => "Float32".into(),
        Kind::Float64 => "Float64".into(),
        Kind::Decimal { precision, scale } => format!("Decimal({precision}, {scale})"),
        Kind::Date => "Date".into(),
        Kind::Date32 => "Date32".into(),
        Kind::DateTime(zone) => format!("DateTime('{zone}')"),
        Kind::DateTime64(digits, zone) => format!("DateTime64({digits}, '{zone}')"),
        Kind::Uuid => "UUID".into(),
        Kind::Ipv4 => "IPv4".into(),
        Kind::Ipv6 => "IPv6".into(),
        Kind::Enum(values) => {
            let bits = if values.is_wide() { 16 } else { 8 };
            format!("Enum{bits}({})", values.listed(" = ", ", "))
        }
        Kind::Json => "JSON".into(),
        Kind::MapStringString => "Map(LowCardinality(String), String)".into(),
        Kind::Map(inner) => format!("Map(LowCardinality(String), {})", clickhouse_type(inner)),
        Kind::Array(inner) => format!("Array({})", clickhouse_type(inner)),
    };
    if field.nullable {
        format!("Nullable({plain})")
    } else {
        plain
    }
}

/// Times and dates grow, so their differences are packed. Text and what repeats itself is worth ZSTD;
/// numbers, and UUIDs, which nothing packs, keep ClickHouse's own LZ4.
fn codec(kind: &Kind) -> &'static str {
    match kind {
        Kind::DateTime(_) | Kind::DateTime64(..) | Kind::Date | Kind::Date32 => " CODEC(Delta, ZSTD(1))",
        Kind::String | Kind::FixedString(_) | Kind::Json | Kind::MapStringString => " CODEC(ZSTD(1))",
        Kind::Map(_) | Kind::Array(_) | Kind::Decimal { .. } | Kind::Ipv6 => " CODEC(ZSTD(1))",
        Kind::LowCardinalityString | Kind::Enum(_) | Kind::Bool | Kind::Uuid | Kind::Ipv4 => "",
        Kind::Int8 | Kind::Int16 | Kind::Int32 | Kind::Int64 => "",
        Kind::UInt8 | Kind::UInt16 | Kind::UInt32 | Kind::UInt64 => "",
        Kind::Float32 | Kind::Float64 => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_common::config::Loaded;
    use std::path::Path;

    #[test]
    fn the_default_dataset_has_provenance_partition_ttl_and_a_token_window() {
        let loaded = Loaded::read(None, Path::new("/nowhere")).expect("the default config");
        let config = loaded.config;
        let plans = sluice_common::config::tables(&config.datasets);
        let sql = table(&plans[0], &config.clickhouse.database);
        for part in [
            "`telemetry`.`events`",
            "`size_bytes` Nullable(UInt64)",
            "`attributes` Map(LowCardinality(String), String)",
            "`_src_l` UInt64",
            "`_src_p` UInt16",
            "`_src_o` UInt64",
            "INDEX `_src_o_range` `_src_o`",
            "TYPE minmax",
            "PARTITION BY toDate(`timestamp`)",
            "ORDER BY (`tenant`, `service`, `timestamp`)",
            "TTL toDateTime(`timestamp`) + toIntervalSecond(2592000)",
            "non_replicated_deduplication_window = 10000",
        ] {
            assert!(sql.contains(part), "{part} is not in\n{sql}");
        }
    }
}
