//! A live table and its shadow, held against each other row by row.

use super::columns::{self, Column};
use super::{GENTLE, KEY, Site, first_o, number, odd, text};
use serde_json::Value;
use sluice_common::ids::{LogId, Name, TenantId};
use sluice_common::replay::{DiffLine, DiffRow, Span, TableDiff};

/// Lines that are told; where there are more, those that differ come first.
const MAX_LINES: usize = 2_000;
/// Rows that are told, and at most so many of one line.
const MAX_EXAMPLES: usize = 20;
/// What may be told of a row, by its number.
const KINDS: [&str; 4] = ["only_live", "only_shadow", "differing", "doubled"];

/// Compares by provenance over all columns that both have and that are not computed: rows of these records, or, where none
/// are named, of the partitions that the shadow has.
pub(super) async fn compare(
    site: &Site<'_>,
    table: &Name,
    tenant: Option<&TenantId>,
    spans: &[Span],
) -> Result<TableDiff, String> {
    site.table(table).await?;
    let shadow = site.shadow_of(table).await?;
    let columns = columns::shared(
        &columns::of(site, table).await?,
        &columns::of(site, &shadow).await?,
    );
    let bounds = bounds(site, &shadow, (tenant, spans), &columns).await?;
    let sql = statement((&site.full(table), &site.full(&shadow)), &columns, &bounds);
    let mut settings = GENTLE.to_vec();
    settings.extend(columns::hash_settings(&columns));
    let doing = format!("comparing table {table} with {shadow}");
    let rows = site.rows(&doing, &sql, &settings).await?;
    read(table, &shadow, &rows).ok_or_else(|| odd(table))
}

async fn bounds(
    site: &Site<'_>,
    shadow: &Name,
    (tenant, spans): (Option<&TenantId>, &[Span]),
    columns: &[Column],
) -> Result<String, String> {
    let mut bounds = match spans {
        [] => {
            let parts = site.parts(shadow).await?;
            let parts: Vec<String> = parts.iter().map(|(part, _)| format!("'{part}'")).collect();
            match parts.as_slice() {
                [] => "0".to_owned(),
                parts => format!("_partition_id IN ({})", parts.join(",")),
            }
        }
        spans => {
            let one = |span: &Span| {
                let (from, to) = (first_o(span.from), first_o(span.to));
                format!(
                    "(_src_p = {} AND _src_o >= {from} AND _src_o < {to})",
                    span.partition
                )
            };
            let spans: Vec<String> = spans.iter().map(one).collect();
            format!("_src_l = {} AND ({})", site.log.0, spans.join(" OR "))
        }
    };
    if let Some(tenant) = tenant {
        if !has(columns, "tenant") {
            return Err(format!(
                "table {shadow} has no column tenant: rows of one tenant cannot be compared"
            ));
        }
        // Ids have no character that would need escaping.
        bounds += &format!(" AND tenant = '{tenant}'");
    }
    Ok(bounds)
}

fn has(columns: &[Column], name: &str) -> bool {
    columns.iter().any(|column| column.name == name)
}

/// One line an hour and tenant, by the shadow's word where both have a row.
fn statement((live, shadow): (&str, &str), columns: &[Column], bounds: &str) -> String {
    let is_time = |column: &Column| column.name == "ingested_at" && column.kind.contains("DateTime");
    let hour = if columns.iter().any(is_time) {
        "ifNull(toUInt64(intDiv(toUnixTimestamp(ingested_at), 3600) * 3600), 0)"
    } else {
        "toUInt64(0)"
    };
    let tenant = if has(columns, "tenant") {
        "ifNull(toString(tenant), '')"
    } else {
        "''"
    };
    let hash = columns::hash(columns);
    let side = |side: u8, table: &str| {
        format!(
            "SELECT toUInt8({side}) AS side, {hour} AS h, {tenant} AS t, {KEY}, {hash} AS sum FROM {table} WHERE {bounds}"
        )
    };
    let by_row = format!(
        "SELECT {KEY}, countIf(side = 0) AS nl, countIf(side = 1) AS ns, argMax(h, side) AS hour, argMax(t, side) AS who, \
         sumIf(sum, side = 0) AS sl, sumIf(sum, side = 1) AS ss, \
         nl > 0 AND ns > 0 AND (minIf(sum, side = 0) != minIf(sum, side = 1) OR maxIf(sum, side = 0) != maxIf(sum, side = 1)) \
         AS differs, multiIf(ns = 0, 1, nl = 0, 2, differs, 3, nl > 1 OR ns > 1, 4, 0) AS what \
         FROM ({} UNION ALL {}) GROUP BY {KEY}",
        side(0, live),
        side(1, shadow)
    );
    format!(
        "SELECT hour, who, sum(nl) AS live, sum(ns) AS shadow, countIf(ns = 0) AS only_live, countIf(nl = 0) AS only_shadow, \
         countIf(differs) AS differing, countIf(nl > 1 OR ns > 1) AS doubled, sum(sl), sum(ss), \
         groupArrayIf({MAX_EXAMPLES})((what, {KEY}), what > 0), count() OVER () FROM ({by_row}) GROUP BY hour, who \
         ORDER BY only_live + only_shadow + differing + doubled = 0, hour, who LIMIT {MAX_LINES}"
    )
}

fn read(table: &Name, shadow: &Name, rows: &[Vec<Value>]) -> Option<TableDiff> {
    let all = rows.first().map_or(Some(0), |row| number(row, 11))?;
    let mut lines = rows.iter().map(|row| line(row)).collect::<Option<Vec<_>>>()?;
    lines.sort_by(|a, b| (a.hour_s, &a.tenant).cmp(&(b.hour_s, &b.tenant)));
    let mut examples = Vec::new();
    for row in rows {
        let tenant = text(row, 1)?;
        for one in row.get(10)?.as_array()? {
            examples.push(example(tenant, one.as_array()?)?);
        }
    }
    examples.truncate(MAX_EXAMPLES);
    Some(TableDiff {
        table: table.to_string(),
        shadow: shadow.to_string(),
        omitted: all.saturating_sub(u64::try_from(lines.len()).ok()?),
        lines,
        examples,
    })
}

fn line(row: &[Value]) -> Option<DiffLine> {
    let sum = |at: usize| Some(format!("{:016x}", number(row, at)?));
    Some(DiffLine {
        hour_s: number(row, 0)?,
        tenant: text(row, 1)?.to_owned(),
        live: number(row, 2)?,
        shadow: number(row, 3)?,
        only_live: number(row, 4)?,
        only_shadow: number(row, 5)?,
        differing: number(row, 6)?,
        doubled: number(row, 7)?,
        live_sum: sum(8)?,
        shadow_sum: sum(9)?,
    })
}

fn example(tenant: &str, row: &[Value]) -> Option<DiffRow> {
    let kind = usize::try_from(number(row, 0)?).ok()?.checked_sub(1)?;
    Some(DiffRow {
        what: (*KINDS.get(kind)?).to_owned(),
        tenant: tenant.to_owned(),
        log: LogId(number(row, 1)?),
        partition: u16::try_from(number(row, 2)?).ok()?,
        source_o: number(row, 3)?,
    })
}
