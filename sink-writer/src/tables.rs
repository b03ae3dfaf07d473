//! What our tables are: created where missing, described once, described again when the server says
//! that we are wrong. An existing table is adapted to and never altered.

use crate::client::{Client, ServerError};
use crate::ddl::{self, DEAD_LETTERS};
use crate::place::Placement;
use parking_lot::Mutex;
use serde_json::Value;
use sluice_common::books::LEDGER;
use sluice_common::config::{Dataset, Period, TablePlan, tables};
use sluice_common::ids::Name;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The columns that say where a row came from (R10).
pub const PROVENANCE: [&str; 3] = ["_src_l", "_src_p", "_src_o"];
/// How long a description is trusted. ClickHouse wraps numbers of a wider type without a word, so a column
/// that was made narrower must be seen soon; two small queries a table and second are what that costs.
const DESCRIPTION_AGE: Duration = Duration::from_millis(500);
/// Described tables that are kept; more can only be forged records.
const MAX_DESCRIBED: usize = 10_000;
/// Datasets that are remembered after they left the config.
const MAX_RETIRED: usize = 1_000;
/// Between two looks at a table for columns that it lacked.
const LOOK_AGAIN: Duration = Duration::from_secs(3);

/// One table as the server describes it.
#[derive(Debug, Clone)]
pub struct Table {
    pub name: Name,
    /// ClickHouse type by name, of the columns that can be inserted into.
    columns: HashMap<String, String>,
    /// How rows are placed, or why they cannot be.
    pub placement: Result<Placement, String>,
    /// Whether rows can be verified: provenance columns on an engine that keeps every row.
    pub verifiable: bool,
    /// Whether "none there" is certain enough to bump a generation: not for replicas that may lag.
    pub bump_safe: bool,
    /// Whether other servers may show the same rows.
    pub shared: bool,
    /// `serverUUID()` of the server that described it.
    pub server: String,
    /// What is degraded, each a sentence.
    pub notes: Vec<String>,
}

/// Why there is no description.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DescribeError {
    #[error("table {0} does not exist: create it (`ingestctl check --ddl` prints how)")]
    Missing(String),
    #[error(transparent)]
    Server(#[from] ServerError),
}

impl Table {
    /// A table with columns of text.
    #[cfg(test)]
    #[must_use]
    pub fn for_tests(columns: &[&str], placement: Placement) -> Self {
        let columns = columns
            .iter()
            .map(|name| ((*name).to_owned(), "String".to_owned()));
        Self::known(Name::new("t").expect("valid"), columns, placement)
    }

    /// A table that nobody has asked a server about: name and type of its columns, and how rows are placed.
    #[must_use]
    pub fn known(
        name: Name,
        columns: impl IntoIterator<Item = (String, String)>,
        placement: Placement,
    ) -> Self {
        Self {
            name,
            columns: columns.into_iter().collect(),
            placement: Ok(placement),
            verifiable: true,
            bump_safe: true,
            shared: false,
            server: String::new(),
            notes: Vec::new(),
        }
    }

    /// The ClickHouse type of a column that can be inserted into.
    #[must_use]
    pub fn column(&self, name: &str) -> Option<&str> {
        self.columns.get(name).map(String::as_str)
    }
}

/// Which tables there are to be.
#[derive(Debug, Default)]
struct Wanted {
    datasets: Vec<Dataset>,
    /// Datasets that the config had: rows in the log may still ask for their tables.
    retired: Vec<Dataset>,
    /// Tables that this process has made, or found when it would have. One that goes missing later was
    /// dropped by somebody, and is not made again behind their back.
    made: BTreeSet<Name>,
}

impl Wanted {
    /// The statements that make `table`, or all that have not been made; with the tables' names.
    fn statements(&self, table: Option<&Name>, database: &Name, letters_ttl: Period) -> Vec<(Name, String)> {
        let own = [
            (DEAD_LETTERS, ddl::dead_letters(database, letters_ttl)),
            (LEDGER, ddl::ledger(database)),
        ];
        let own = own
            .into_iter()
            .filter_map(|(name, sql)| Some((Name::new(name).ok()?, sql)));
        // A retired dataset's table is made only for rows that ask for it.
        let retired = tables(if table.is_some() { &self.retired } else { &[] });
        let plans = tables(&self.datasets).into_iter().chain(retired);
        let all = own.chain(plans.map(|plan| (plan.name.clone(), ddl::table(&plan, database))));
        all.filter(|(name, _)| table.is_none_or(|table| table == name) && !self.made.contains(name))
            .collect()
    }
}

/// All descriptions, shared by all calls.
#[derive(Debug)]
pub struct Tables {
    client: Client,
    letters_ttl: Period,
    wanted: Mutex<Wanted>,
    known: Mutex<HashMap<Name, (Instant, Arc<Table>)>>,
    /// Placements outlive their description: a table that is gone still has its sub-batches named.
    placements: Mutex<HashMap<Name, Placement>>,
    warned: Mutex<BTreeSet<(Name, String)>>,
    /// When a table was last looked at again because it lacked columns.
    looked: Mutex<HashMap<Name, Instant>>,
}

impl Tables {
    /// No table is described yet; the config's partitioning stands in for tables that are missing.
    #[must_use]
    pub fn new(client: Client, datasets: &[Dataset], letters_ttl: Period) -> Self {
        let own = [
            (DEAD_LETTERS, ddl::dead_letters_partition()),
            (LEDGER, ddl::ledger_partition()),
        ];
        let own = own
            .into_iter()
            .filter_map(|(name, by)| Some((Name::new(name).ok()?, Placement::configured(&by))));
        Self {
            client,
            letters_ttl,
            wanted: Mutex::new(Wanted {
                datasets: datasets.to_vec(),
                ..Wanted::default()
            }),
            known: Mutex::default(),
            placements: Mutex::new(datasets.iter().map(configured).chain(own).collect()),
            warned: Mutex::default(),
            looked: Mutex::default(),
        }
    }

    /// The configured datasets.
    #[must_use]
    pub fn datasets(&self) -> Vec<Dataset> {
        self.wanted.lock().datasets.clone()
    }

    /// Puts other datasets in force and forgets all descriptions; whether there are tables to make.
    pub fn replace(&self, datasets: Vec<Dataset>) -> bool {
        let mut placements = self.placements.lock();
        for (table, placement) in datasets.iter().map(configured) {
            placements.entry(table).or_insert(placement);
        }
        drop(placements);
        let mut wanted = self.wanted.lock();
        let before = std::mem::replace(&mut wanted.datasets, datasets);
        let is_there = |list: &[Dataset], table: &Name| list.iter().any(|one| one.table() == table);
        let (gone, stayed): (Vec<_>, Vec<_>) = before
            .into_iter()
            .partition(|one| !is_there(&wanted.datasets, one.table()));
        let new: Vec<Name> = wanted.datasets.iter().map(|one| one.table().clone()).collect();
        let new: Vec<Name> = new
            .into_iter()
            .filter(|table| !is_there(&stayed, table))
            .collect();
        // Asked for anew: to be made, even where it was made before and dropped since.
        wanted.made.retain(|table| !new.contains(table));
        wanted
            .retired
            .retain(|one| !new.contains(one.table()) && !is_there(&gone, one.table()));
        wanted.retired.extend(gone);
        let surplus = wanted.retired.len().saturating_sub(MAX_RETIRED);
        wanted.retired.drain(..surplus);
        drop(wanted);
        self.known.lock().clear();
        self.looked.lock().clear();
        !new.is_empty()
    }

    /// Creates the database and every missing table that this process has not made before.
    ///
    /// # Errors
    /// The server's.
    pub async fn create_missing(&self, deadline: Instant) -> Result<(), ServerError> {
        self.create(None, deadline).await
    }

    async fn create(&self, table: Option<&Name>, deadline: Instant) -> Result<(), ServerError> {
        let database = self.client.database();
        let statements = self.wanted.lock().statements(table, database, self.letters_ttl);
        if statements.is_empty() {
            return Ok(());
        }
        self.client.has_room(deadline).await?;
        self.client.command(&ddl::database(database), deadline).await?;
        for (name, sql) in statements {
            self.client.command(&sql, deadline).await?;
            self.wanted.lock().made.insert(name);
        }
        Ok(())
    }

    /// The statement that makes `other` as the config would make `table`; none where it knows no such table.
    #[must_use]
    pub(crate) fn definition(&self, table: &Name, other: &Name) -> Option<String> {
        let wanted = self.wanted.lock();
        let in_list = |list: &[Dataset]| {
            let plan = tables(list).into_iter().find(|plan| plan.name == table)?;
            let plan = TablePlan { name: other, ..plan };
            Some(ddl::table(&plan, self.client.database()))
        };
        in_list(&wanted.datasets).or_else(|| in_list(&wanted.retired))
    }

    /// Describes a table; where it has not been made yet, makes it now.
    async fn look(&self, table: &Name, deadline: Instant) -> Result<Table, DescribeError> {
        let described = match describe(&self.client, table, deadline).await {
            Err(DescribeError::Missing(_)) => {
                self.create(Some(table), deadline).await?;
                describe(&self.client, table, deadline).await?
            }
            described => described?,
        };
        let mut wanted = self.wanted.lock();
        if wanted.made.len() < MAX_DESCRIBED {
            wanted.made.insert(table.clone());
        }
        Ok(described)
    }

    /// Forgets a table that lacks columns of its records, so that one that was added is seen: at most once
    /// every [`LOOK_AGAIN`]. Whether it did.
    pub fn look_again(&self, table: &Name, now: Instant) -> bool {
        let mut looked = self.looked.lock();
        if looked.get(table).is_some_and(|last| now < *last + LOOK_AGAIN) {
            return false;
        }
        if looked.len() >= MAX_DESCRIBED {
            looked.clear();
        }
        looked.insert(table.clone(), now);
        drop(looked);
        self.forget(table);
        true
    }

    /// The description of `table`, from memory where it is known and fresh.
    ///
    /// # Errors
    /// [`DescribeError`].
    pub async fn get(&self, table: &Name, deadline: Instant) -> Result<Arc<Table>, DescribeError> {
        if let Some((seen, known)) = self.known.lock().get(table)
            && seen.elapsed() < DESCRIPTION_AGE
        {
            return Ok(known.clone());
        }
        let seen = Instant::now();
        let described = Arc::new(self.look(table, deadline).await?);
        for note in &described.notes {
            self.warn_once(table, note);
        }
        let mut known = self.known.lock();
        if known.len() >= MAX_DESCRIBED {
            known.clear();
        }
        if let Ok(placement) = &described.placement {
            let mut placements = self.placements.lock();
            if placements.len() < MAX_DESCRIBED || placements.contains_key(table) {
                placements.insert(table.clone(), placement.clone());
            }
        }
        known.insert(table.clone(), (seen, described.clone()));
        Ok(described)
    }

    /// How rows of `table` were placed when it was last seen, or are to be by the config.
    #[must_use]
    pub fn last_placement(&self, table: &Name) -> Option<Placement> {
        self.placements.lock().get(table).cloned()
    }

    /// Forgets a description that the server contradicted.
    pub fn forget(&self, table: &Name) {
        self.known.lock().remove(table);
    }

    /// Says `what` about `table`, once in this process's life.
    pub fn warn_once(&self, table: &Name, what: &str) {
        let mut warned = self.warned.lock();
        if warned.len() < MAX_DESCRIBED && warned.insert((table.clone(), what.to_owned())) {
            tracing::warn!(%table, "table is degraded: {what}");
        }
    }
}

fn configured(dataset: &Dataset) -> (Name, Placement) {
    (
        dataset.table().clone(),
        Placement::configured(&dataset.partition_by),
    )
}

/// Asks the server what `name` is.
pub(crate) async fn describe(
    client: &Client,
    name: &Name,
    deadline: Instant,
) -> Result<Table, DescribeError> {
    let place = format!("database = '{}' AND", client.database());
    let sql = format!(
        "SELECT engine, engine_full, partition_key, toString(serverUUID()), timezone() \
         FROM system.tables WHERE {place} name = '{name}'"
    );
    let rows = client.rows(&sql, deadline).await?;
    let Some(row) = rows.first() else {
        return Err(DescribeError::Missing(format!("{}.{name}", client.database())));
    };
    let [engine, engine_full, partition_key, server, zone] = [0, 1, 2, 3, 4].map(|at| text(row, at));
    let sql = format!("SELECT name, type, default_kind FROM system.columns WHERE {place} table = '{name}'");
    let columns = client.rows(&sql, deadline).await?;
    // No table is without columns: it went away between the two questions. Taken for one without provenance, its rows
    // would be stored at least once until it is described again.
    if columns.is_empty() {
        return Err(DescribeError::Missing(format!("{}.{name}", client.database())));
    }
    let columns: HashMap<String, String> = columns
        .iter()
        .filter(|row| !matches!(text(row, 2), "MATERIALIZED" | "ALIAS"))
        .map(|row| (text(row, 0).to_owned(), text(row, 1).to_owned()))
        .collect();
    let placement = Placement::read(partition_key, zone, |column| columns.get(column).cloned());
    let keeps_rows = matches!(engine, "MergeTree" | "ReplicatedMergeTree" | "SharedMergeTree");
    let provenance = PROVENANCE.iter().all(|column| columns.contains_key(*column));
    Ok(Table {
        name: name.clone(),
        notes: notes(&columns, engine, engine_full, &placement),
        columns,
        placement,
        verifiable: keeps_rows && provenance,
        bump_safe: engine != "ReplicatedMergeTree",
        shared: matches!(engine, "ReplicatedMergeTree" | "SharedMergeTree"),
        server: server.to_owned(),
    })
}

fn text(row: &[Value], at: usize) -> &str {
    row.get(at).and_then(Value::as_str).unwrap_or_default()
}

fn notes(
    columns: &HashMap<String, String>,
    engine: &str,
    engine_full: &str,
    placement: &Result<Placement, String>,
) -> Vec<String> {
    let mut notes = Vec::new();
    let missing: Vec<&str> = PROVENANCE
        .into_iter()
        .filter(|name| !columns.contains_key(*name))
        .collect();
    if !missing.is_empty() {
        notes.push(format!(
            "it has no {}: its rows cannot be verified and are stored at least once; add the columns",
            missing.join(", ")
        ));
    }
    if !matches!(engine, "MergeTree" | "ReplicatedMergeTree" | "SharedMergeTree") {
        notes.push(format!(
            "engine {engine} does not keep every row apart: its rows are at least once"
        ));
    }
    if engine == "MergeTree" && token_window(engine_full) == 0 {
        notes.push(
            "its token window is 0, so a repeated insert is not recognised: \
             ALTER TABLE … MODIFY SETTING non_replicated_deduplication_window = 10000"
                .into(),
        );
    }
    for own in ["tenant", "ingested_at"] {
        if !columns.contains_key(own) {
            notes.push(format!("it has no column {own}, which is left out"));
        }
    }
    notes.extend(placement.as_ref().err().cloned());
    notes
}

fn token_window(engine_full: &str) -> u64 {
    let setting = engine_full.split("non_replicated_deduplication_window = ").nth(1);
    let digits = setting.map(|rest| rest.chars().take_while(char::is_ascii_digit).collect::<String>());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_without_provenance_or_window_is_told_to_be_degraded() {
        let columns = HashMap::from([("tenant".to_owned(), "String".to_owned())]);
        let placement = Placement::read("", "UTC", |_| None);
        let notes = notes(
            &columns,
            "ReplacingMergeTree",
            "ReplacingMergeTree ORDER BY x",
            &placement,
        );
        assert_eq!(notes.len(), 3, "{notes:?}");
        assert_eq!(
            token_window("MergeTree ORDER BY o SETTINGS non_replicated_deduplication_window = 10000, x = 1"),
            10_000
        );
        assert_eq!(token_window("MergeTree ORDER BY o"), 0);
    }
}
