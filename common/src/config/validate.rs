//! What a parsed config may still get wrong. Every problem is found, not only the first.

use super::overrides;
use super::{Config, Dataset, Field, Kind, LogKind, TablePlan, UnknownFields, consume, kafka, quota, tls};
use crate::books::{DEAD_LETTERS, LEDGER};
use crate::ids::Name;
use crate::limits::{LOG_RESERVE_LEAST, MAX_BLOCK_ROWS, MAX_DEDUP_WINDOW, MAX_RANGE_BYTES, SEGMENT_BYTES};
use crate::tenants_file::is_hash;
use std::collections::HashSet;

/// Columns that every table gets from us.
pub const OWN_COLUMNS: [&str; 5] = ["tenant", "ingested_at", "_src_l", "_src_p", "_src_o"];
/// Tables of our own.
const OWN_TABLES: [&str; 2] = [DEAD_LETTERS, LEDGER];
const MAX_FIELDS: usize = 1_000;
/// How long rows may wait in the log and still not be expired when they are inserted.
const TTL_MARGIN_MS: u64 = 48 * 3_600_000;

/// All problems of a config, each a sentence that names its place.
pub(super) fn problems(config: &Config) -> Vec<String> {
    let mut found = Vec::new();
    listeners(config, &mut found);
    sizes(config, &mut found);
    tenants(config, &mut found);
    tls::problems(config, &mut found);
    kafka::problems(config, &mut found);
    consume::problems(config, &mut found);
    let mut names = HashSet::new();
    for dataset in &config.datasets {
        if !names.insert(dataset.name.clone()) {
            found.push(format!("datasets: {} is defined twice", dataset.name));
        }
        check_dataset(dataset, &mut found);
        overrides::problems(config, dataset, &mut found);
    }
    tables(config, &mut found);
    found
}

fn listeners(config: &Config, found: &mut Vec<String>) {
    let inner = [
        ("normalizer.listen", &config.normalizer.listen),
        ("sink_writer.listen", &config.sink_writer.listen),
    ];
    for (key, address) in inner {
        let guarded = config.internal.token.is_some() || config.internal.tls.is_some();
        if !guarded && !is_loopback(address) {
            found.push(format!(
                "{key} {address} is beyond loopback: set `internal.token` or `internal.tls`, else whoever reaches it writes as any tenant"
            ));
        }
    }
    if config.edge.listen.is_empty() {
        found.push("edge.listen is empty: name at least one address".into());
    }
    let peers = [
        ("edge.normalizer", &config.edge.normalizer),
        ("normalizer.sink_writer", &config.normalizer.sink_writer),
    ];
    for (key, peers) in peers {
        if peers.is_empty() {
            found.push(format!("{key} is empty: name at least one address"));
        }
    }
    let normalizers = config.edge.normalizer.len();
    match config.log.kind {
        LogKind::Embedded if normalizers > 1 => found.push(format!(
            "edge.normalizer names {normalizers}, and with `log.kind: embedded` there is one: each has a log of its own, \
             and an event that is sent again to another would be stored twice"
        )),
        LogKind::Embedded => {}
        LogKind::Kafka => kafka::log_problems(config, found),
    }
}

fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn sizes(config: &Config, found: &mut Vec<String>) {
    let least = 4 * SEGMENT_BYTES as u64;
    if config.log.max_bytes.0 < least {
        found.push(format!(
            "log.max_bytes is under {least}: four segments are the least to work with"
        ));
    }
    if config
        .log
        .reserve
        .is_some_and(|reserve| reserve.0 < LOG_RESERVE_LEAST)
    {
        found.push(format!(
            "log.reserve is under {LOG_RESERVE_LEAST} (128MiB): a bucket of the dedup state is sealed in it, without which \
             nothing could be deleted from a full log"
        ));
    }
    if config.dead_letters.ttl.ms() < TTL_MARGIN_MS {
        found.push("dead_letters.ttl is under 48h: copies could expire before they leave the log".into());
    }
    if config.dedup.keys_per_tenant.0 == 0 {
        found.push("dedup.keys_per_tenant is 0: no event could be taken".into());
    }
}

fn tenants(config: &Config, found: &mut Vec<String>) {
    let (mut ids, mut keys) = (HashSet::new(), HashSet::new());
    for tenant in &config.tenants {
        if !ids.insert(&tenant.id) {
            found.push(format!("tenants: {} is listed twice", tenant.id));
        }
        for key in &tenant.keys {
            if !is_hash(&key.sha256) {
                found.push(format!(
                    "tenants: {}: a key's sha256 is not 64 hex digits",
                    tenant.id
                ));
            }
            if !keys.insert(key.sha256.to_ascii_lowercase()) {
                found.push(format!("tenants: {}: this key is listed twice", tenant.id));
            }
        }
        for name in tenant.datasets.iter().flatten() {
            if config.dataset(name.as_str()).is_none() {
                found.push(format!("tenants: {}: dataset {name} is not defined", tenant.id));
            }
        }
        quota::problems(tenant, |name| config.dataset(name.as_str()).is_some(), found);
    }
}

fn tables(config: &Config, found: &mut Vec<String>) {
    for dataset in &config.datasets {
        if OWN_TABLES.contains(&dataset.table().as_str()) {
            found.push(format!(
                "datasets: {}: table {} is one of our own",
                dataset.name,
                dataset.table()
            ));
        }
    }
    let plans = super::tables(&config.datasets);
    found.extend(plans.iter().flat_map(TablePlan::problems));
}

pub(super) fn check_dataset(dataset: &Dataset, found: &mut Vec<String>) {
    let name = &dataset.name;
    let mut add = |text: String| found.push(format!("datasets: {name}: {text}"));
    if dataset.fields.is_empty() || dataset.fields.len() > MAX_FIELDS {
        add(format!("`fields` must be 1 to {MAX_FIELDS}"));
    }
    let (mut names, mut sources) = (HashSet::new(), HashSet::new());
    for field in &dataset.fields {
        if !names.insert(field.name.as_str()) {
            add(format!("field `{}` is defined twice", field.name));
        }
        if !sources.insert(field.from.as_deref().unwrap_or(field.name.as_str())) {
            add(format!(
                "field `{}` reads a member that another field reads",
                field.name
            ));
        }
        check_field(field, &mut add);
    }
    if let UnknownFields::Into(target) = &dataset.unknown_fields
        && !dataset
            .fields
            .iter()
            .any(|f| f.name.as_str() == target && f.field_type.kind == Kind::MapStringString)
    {
        add(format!(
            "unknown_fields {target:?} must be reject, drop or a field of type map(string, string)"
        ));
    }
    check_dedup(dataset, &mut add);
    check_time(dataset, &mut add);
    check_layout(dataset, &mut add);
}

fn check_field(field: &Field, add: &mut impl FnMut(String)) {
    let name = &field.name;
    if OWN_COLUMNS.contains(&name.as_str()) {
        add(format!(
            "field `{name}` has the name of a column that Sluice adds itself"
        ));
    }
    let holds_times = field.field_type.kind.innermost().is_time();
    let keys = [
        ("epoch", field.epoch.is_some()),
        ("timezone", field.timezone.is_some()),
    ];
    for (key, is_set) in keys {
        if is_set && !holds_times {
            add(format!(
                "field `{name}`: `{key}` is for datetime and datetime64 only"
            ));
        }
    }
    if field.required && field.default.is_some() {
        add(format!(
            "field `{name}` is required and so never takes its default"
        ));
    }
}

fn check_dedup(dataset: &Dataset, add: &mut impl FnMut(String)) {
    let Some(dedup) = &dataset.dedup else { return };
    for key in &dedup.key {
        match field(dataset, key) {
            None => add(format!("dedup.key: {key} is not a field")),
            Some(field) if !field.required || field.field_type.nullable => {
                add(format!(
                    "dedup.key: {key} must be `required: true` and not nullable, else events without it are one"
                ));
            }
            Some(field) if !field.field_type.kind.is_scalar() => {
                add(format!(
                    "dedup.key: {key} is {}; take fields of one value each",
                    field.field_type
                ));
            }
            Some(_) => {}
        }
    }
    let window = dedup.window.ms();
    let widest = u64::try_from(MAX_DEDUP_WINDOW.as_millis()).unwrap_or(u64::MAX);
    if window == 0 || window > widest {
        add("dedup.window must be over 0 and at most 7d".into());
    }
}

fn check_time(dataset: &Dataset, add: &mut impl FnMut(String)) {
    let Some(time) = &dataset.time else {
        if dataset.ttl.is_some() {
            add("ttl needs `time.field`: ClickHouse must know which column's age counts".into());
        }
        return;
    };
    match field(dataset, &time.field) {
        Some(field) if is_plain_time(field) => {}
        _ => add(format!(
            "time.field: {} must be a required datetime or datetime64 field",
            time.field
        )),
    }
    if dataset
        .ttl
        .is_some_and(|ttl| ttl.ms() < time.max_past.ms() + TTL_MARGIN_MS)
    {
        add("ttl must be at least 48h longer than time.max_past: ClickHouse drops expired rows at insert, and an outage makes rows older".into());
    }
}

fn check_layout(dataset: &Dataset, add: &mut impl FnMut(String)) {
    if let Some(column) = dataset.partition_by.column()
        && !field(dataset, column).is_some_and(is_plain_time)
    {
        add(format!(
            "partition_by: {column} must be a required datetime or datetime64 field"
        ));
    }
    if let Some(column) = dataset.partition_by.column()
        && let Some(zone) = field(dataset, column).and_then(|field| field.field_type.kind.zone())
        && !zone.is_utc()
    {
        add(format!(
            "partition_by: {column} is a column of time zone {zone}, whose partitions follow that zone: partitions are \
             computed in UTC, so leave the zone out of its type (`timezone: {zone}` on the field reads local times)"
        ));
    }
    for column in &dataset.order_by {
        let own = OWN_COLUMNS.contains(&column.as_str());
        match field(dataset, column) {
            None if !own => add(format!("order_by: {column} is not a field")),
            Some(field) if field.field_type.nullable => add(format!("order_by: {column} is nullable")),
            Some(field) if !field.field_type.kind.can_sort() => add(format!(
                "order_by: {column} is {}, by which ClickHouse cannot sort",
                field.field_type
            )),
            _ => {}
        }
    }
    if let (Some(column), Some(time)) = (dataset.partition_by.column(), &dataset.time)
        && *column != time.field
    {
        add(format!(
            "partition_by: {column} must be time.field ({}), whose age bounds also bound the partitions",
            time.field
        ));
    }
    let batch = &dataset.batch;
    if batch.max_rows.0 == 0 || batch.max_rows.0 > MAX_BLOCK_ROWS as u64 {
        add(format!("batch.max_rows must be 1 to {MAX_BLOCK_ROWS}"));
    }
    if batch.max_bytes.0 == 0 || batch.max_bytes.bytes() > MAX_RANGE_BYTES {
        add(format!("batch.max_bytes must be 1 to {MAX_RANGE_BYTES}"));
    }
    if batch.max_age.ms() > 60_000 {
        add("batch.max_age must be at most 60s".into());
    }
}

fn field<'a>(dataset: &'a Dataset, name: &Name) -> Option<&'a Field> {
    dataset.fields.iter().find(|field| field.name == *name)
}

fn is_plain_time(field: &Field) -> bool {
    field.field_type.kind.is_time() && field.required && !field.field_type.nullable
}
