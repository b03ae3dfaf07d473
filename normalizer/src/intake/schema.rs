//! A dataset as intake works with it: compiled once from the config, shared by all requests.

use super::arrow::{arrow_field, fixed_bytes};
use super::check::{Checks, Rule, rules};
use super::convert::{self, Cell};
use super::fault::Fault;
use super::identity::RecordTemplate;
use super::json::{self, Parser};
use super::nested::{self, Allowance};
use super::units::seen::{UnitMembers, UnitPlan};
use super::version;
use arrow_schema::{Schema as ArrowSchema, SchemaRef};
use hashbrown::HashMap;
use jiff::tz::TimeZone;
use parking_lot::RwLock;
use sluice_common::config::{
    Batch, Dataset, EpochUnit, Field, Kind, PartitionBy, TimeBounds, UnknownFields, Zone,
};
use sluice_common::ids::{Name, TenantId};
use sluice_common::limits::{
    MAX_RECORD_BYTES, MAX_REQUEST_COLUMN_BYTES, REQUEST_WINDOW, TARGET_RECORD_BYTES,
};
use sluice_common::record::Identity;
use std::sync::Arc;

/// Most templates kept of one dataset: tenants come from credentials only, so this is never reached
/// in earnest; past it the cache begins anew.
const MAX_TEMPLATES: usize = 65_536;
/// What one row may take in columns: a record minus meta, spans, schema and padding of its buffers.
const ROW_ROOM: usize = 64 * 1024;

/// Cache of templates by tenant and kind of identity.
pub(super) type Templates = RwLock<HashMap<(TenantId, Identity), Arc<RecordTemplate>>>;

/// One compiled dataset.
#[derive(Debug)]
pub struct Schema {
    name: Name,
    table: Name,
    version: u64,
    arrow: SchemaRef,
    batch: Batch,
    partition_by: PartitionBy,
    keep_rejected: bool,
    window_ms: u64,
    pub(super) fields: Vec<FieldPlan>,
    /// The event's member → its field.
    pub(super) members: HashMap<Box<str>, u16>,
    member_names: Vec<Box<str>>,
    pub(super) unknown: UnknownPlan,
    /// The map fields.
    pub(super) maps: Vec<u16>,
    pub(super) units: UnitMembers,
    pub(super) required_if: Vec<Rule>,
    /// Fields of the dedup key; empty where requests identify their events.
    pub(super) key: Vec<u16>,
    pub(super) partition_field: Option<u16>,
    /// Column bytes of a row whose strings and maps are empty, its key included.
    pub(super) fixed_row_bytes: usize,
    /// Most column bytes of one row.
    pub(super) max_row_bytes: usize,
    /// Most column bytes of one request.
    pub(super) max_request_bytes: usize,
    pub(super) templates: Templates,
}

/// What is done with one field of an event.
#[derive(Debug)]
pub struct FieldPlan {
    pub name: Name,
    pub kind: Kind,
    pub nullable: bool,
    pub required: bool,
    pub unit: Option<UnitPlan>,
    pub epoch: Option<EpochUnit>,
    /// Of a time without an offset.
    pub zone: Option<TimeZone>,
    pub bounds: Option<AgeBounds>,
    pub default: Option<Default>,
    pub checks: Option<Box<Checks>>,
    /// The field whose value may make this one required.
    pub required_if: Option<Name>,
    /// What lies in an array or map.
    pub inner: Option<Box<FieldPlan>>,
}

/// How old and how new the time of an event may be, in ms.
#[derive(Debug, Clone, Copy)]
pub struct AgeBounds {
    pub past_ms: u64,
    pub future_ms: u64,
}

/// A field's default, converted when the config is read. It is written as an event would send it:
/// a unit or an epoch applies to it too.
#[derive(Debug)]
pub enum Default {
    Cell(Cell<'static>),
    Text(Box<str>),
    /// A map of strings.
    Map(Vec<(Box<str>, Box<str>)>),
    List(Vec<Default>),
    /// A map of anything else.
    Entries(Vec<(Box<str>, Default)>),
}

/// What is done with members that the schema does not name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownPlan {
    Reject,
    Drop,
    Into(u16),
}

impl Schema {
    /// Compiles a dataset.
    ///
    /// # Errors
    /// Every problem found, each a sentence that names dataset and field.
    pub fn compile(dataset: &Dataset) -> Result<Self, Vec<String>> {
        let mut problems = Vec::new();
        let mut fields = Vec::with_capacity(dataset.fields.len());
        for field in &dataset.fields {
            match compile_field(dataset, field) {
                Ok(plan) => fields.push(plan),
                Err(text) => problems.push(format!(
                    "datasets: {}: field `{}`: {text}",
                    dataset.name, field.name
                )),
            }
        }
        if fields.len() > usize::from(u16::MAX) {
            problems.push(format!(
                "datasets: {}: it has more than 65,535 fields",
                dataset.name
            ));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        Self::assemble(dataset, fields).map_err(|text| vec![format!("datasets: {}: {text}", dataset.name)])
    }

    fn assemble(dataset: &Dataset, fields: Vec<FieldPlan>) -> Result<Self, String> {
        let slot = |name: &str| slot_of(&fields, name);
        let unknown = match &dataset.unknown_fields {
            UnknownFields::Reject => UnknownPlan::Reject,
            UnknownFields::Drop => UnknownPlan::Drop,
            UnknownFields::Into(name) => UnknownPlan::Into(
                slot(name)
                    .filter(|slot| matches!(fields[usize::from(*slot)].kind, Kind::MapStringString))
                    .ok_or_else(|| {
                        format!("unknown_fields: {name} is not a field of type map(string, string)")
                    })?,
            ),
        };
        let named = |name: &Name| slot(name.as_str()).ok_or_else(|| format!("{name} is not a field"));
        let key = dataset.dedup.iter().flat_map(|dedup| &dedup.key).map(named);
        let key = key.collect::<Result<Vec<_>, _>>()?;
        let partition_field = dataset.partition_by.column().map(named).transpose()?;
        let arrow = Arc::new(ArrowSchema::new(
            fields.iter().map(arrow_field).collect::<Vec<_>>(),
        ));
        let schema_bytes = schema_bytes(&arrow)?;
        let mut member_names: Vec<Box<str>> =
            dataset.fields.iter().map(|field| member(field).into()).collect();
        let units = UnitMembers::find(&fields, &mut member_names);
        let members = (0u16..)
            .zip(&member_names)
            .map(|(slot, name)| (name.clone(), slot))
            .collect();
        Ok(Self {
            name: dataset.name.clone(),
            table: dataset.table().clone(),
            version: version::of(dataset),
            arrow,
            batch: dataset.batch.clone(),
            partition_by: dataset.partition_by.clone(),
            keep_rejected: dataset.keep_rejected,
            window_ms: dataset
                .dedup
                .as_ref()
                .map_or(DEFAULT_WINDOW_MS, |dedup| dedup.window.ms()),
            members,
            member_names,
            units,
            required_if: rules(dataset, &fields)?,
            maps: maps(&fields),
            unknown,
            key,
            partition_field,
            fixed_row_bytes: 16 + fields.iter().map(|field| fixed_bytes(&field.kind)).sum::<usize>(),
            max_row_bytes: MAX_RECORD_BYTES - ROW_ROOM - schema_bytes,
            max_request_bytes: request_room(schema_bytes),
            templates: Templates::default(),
            fields,
        })
    }

    /// The dataset's name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The target table.
    #[must_use]
    pub fn table(&self) -> &Name {
        &self.table
    }

    /// The name of a field; empty where there is none.
    pub(super) fn field_name(&self, slot: u16) -> &str {
        let field = self.fields.get(usize::from(slot));
        field.map_or("", |field| field.name.as_str())
    }

    /// Whether there is a field of that name.
    pub(super) fn has_field(&self, name: &Name) -> bool {
        self.fields.iter().any(|field| field.name == *name)
    }

    /// Fields whose values are converted from one unit into another.
    pub fn fields_with_units(&self) -> impl Iterator<Item = &Name> {
        let with = self.fields.iter().filter(|field| field.unit.is_some());
        with.map(|field| &field.name)
    }

    /// The columns of a record's body.
    #[must_use]
    pub fn arrow_schema(&self) -> &SchemaRef {
        &self.arrow
    }

    /// A hash of all that decides how an event becomes a row: stable over restarts and machines.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// When a range of this dataset closes.
    #[must_use]
    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    /// Whether copies of rejected rows are kept.
    #[must_use]
    pub fn keeps_rejected(&self) -> bool {
        self.keep_rejected
    }

    /// How the table is partitioned.
    #[must_use]
    pub fn partition_by(&self) -> &PartitionBy {
        &self.partition_by
    }

    /// The dedup window of events with that identity, in ms.
    #[must_use]
    pub fn window_ms(&self, identity: Identity) -> u64 {
        match identity {
            Identity::Key | Identity::IdempotencyKey => self.window_ms,
            Identity::Request => u64::try_from(REQUEST_WINDOW.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// What identifies an event of a request with or without an `Idempotency-Key` (R3).
    #[must_use]
    pub fn identity(&self, has_idempotency_key: bool) -> Identity {
        match (self.key.is_empty(), has_idempotency_key) {
            (false, _) => Identity::Key,
            (true, true) => Identity::IdempotencyKey,
            (true, false) => Identity::Request,
        }
    }

    /// The member of an event that a field is read from.
    pub(super) fn member_of(&self, slot: u16) -> Option<&str> {
        self.member_names.get(usize::from(slot)).map(AsRef::as_ref)
    }

    /// The template of a tenant's records: made on first use, then shared.
    pub(super) fn template(
        &self,
        tenant: &TenantId,
        identity: Identity,
        secret: &[u8; 32],
    ) -> Arc<RecordTemplate> {
        let key = (tenant.clone(), identity);
        if let Some(template) = self.templates.read().get(&key) {
            return Arc::clone(template);
        }
        let template = Arc::new(RecordTemplate::new(self, tenant, identity, secret));
        let mut templates = self.templates.write();
        if templates.len() >= MAX_TEMPLATES {
            templates.clear();
        }
        Arc::clone(templates.entry(key).or_insert(template))
    }
}

/// Window of an `Idempotency-Key` where the dataset says nothing of dedup.
const DEFAULT_WINDOW_MS: u64 = 24 * 3_600_000;

pub(super) fn slot_of(fields: &[FieldPlan], name: &str) -> Option<u16> {
    let at = fields.iter().position(|field| field.name.as_str() == name)?;
    u16::try_from(at).ok()
}

fn maps(fields: &[FieldPlan]) -> Vec<u16> {
    let slots = (0u16..).zip(fields);
    slots
        .filter(|(_, field)| matches!(field.kind, Kind::MapStringString))
        .map(|(slot, _)| slot)
        .collect()
}

pub(super) fn member(field: &Field) -> &str {
    field.from.as_deref().unwrap_or(field.name.as_str())
}

fn compile_field(dataset: &Dataset, field: &Field) -> Result<FieldPlan, String> {
    let bounds = |time: &TimeBounds| AgeBounds {
        past_ms: time.max_past.ms(),
        future_ms: time.max_future.ms(),
    };
    let mut plan = FieldPlan {
        name: field.name.clone(),
        kind: field.field_type.kind.clone(),
        nullable: field.field_type.nullable,
        required: field.required,
        unit: compile_unit(field)?,
        epoch: field.epoch,
        zone: field.timezone.as_ref().map(Zone::rules),
        bounds: None,
        default: None,
        checks: None,
        required_if: field.required_if.as_ref().map(|rule| rule.field.clone()),
        inner: None,
    };
    plan.inner = compile_inner(&plan);
    if let Some(value) = &field.default {
        plan.default = Some(compile_default(&plan, value)?);
    }
    plan.checks = Checks::compile(&plan, field)?;
    plan.bounds = dataset
        .time
        .as_ref()
        .filter(|time| time.field == field.name)
        .map(bounds);
    Ok(plan)
}

fn compile_unit(field: &Field) -> Result<Option<UnitPlan>, String> {
    let Some(unit) = &field.unit else { return Ok(None) };
    if !is_number(&field.field_type.kind) {
        return Err(format!("a unit is for numbers, and {} is none", field.field_type));
    }
    UnitPlan::compile(field, unit).map(Some)
}

/// What lies in an array or map is converted as a field of that type would be: with the same epoch
/// and time zone, but as no event's own time.
fn compile_inner(outer: &FieldPlan) -> Option<Box<FieldPlan>> {
    let typed = outer.kind.inner()?;
    let mut plan = FieldPlan {
        name: outer.name.clone(),
        kind: typed.kind.clone(),
        nullable: typed.nullable,
        required: true,
        unit: None,
        epoch: outer.epoch,
        zone: outer.zone.clone(),
        bounds: None,
        default: None,
        checks: None,
        required_if: None,
        inner: None,
    };
    plan.inner = compile_inner(&plan);
    Some(Box::new(plan))
}

fn is_number(kind: &Kind) -> bool {
    match kind {
        Kind::Int8 | Kind::Int16 | Kind::Int32 | Kind::Int64 => true,
        Kind::UInt8 | Kind::UInt16 | Kind::UInt32 | Kind::UInt64 => true,
        Kind::Float32 | Kind::Float64 => true,
        Kind::String | Kind::LowCardinalityString | Kind::FixedString(_) | Kind::Bool => false,
        Kind::Decimal { .. } | Kind::Date | Kind::Date32 | Kind::Enum(_) => false,
        Kind::Uuid | Kind::Ipv4 | Kind::Ipv6 | Kind::Json => false,
        Kind::DateTime(_) | Kind::DateTime64(..) => false,
        Kind::MapStringString | Kind::Map(_) | Kind::Array(_) => false,
    }
}

fn compile_default(plan: &FieldPlan, value: &serde_json::Value) -> Result<Default, String> {
    if value.is_null() && plan.nullable {
        return Ok(Default::Cell(Cell::Null));
    }
    if plan.kind.is_scalar() {
        default_cell(plan, value)
    } else if plan.inner.is_some() {
        default_nested(plan, value)
    } else if matches!(plan.kind, Kind::Json) {
        default_json(value)
    } else {
        default_map(value)
    }
}

fn default_cell(plan: &FieldPlan, value: &serde_json::Value) -> Result<Default, String> {
    let wrong = |fault: Fault| format!("its default {value} is not a {}: {}", plan.kind, fault.code());
    let text = value.to_string();
    let parsed = Parser::default().parse(text.as_bytes(), |nodes| {
        convert::cell(plan, &nodes[0], 0).map(|cell| match cell {
            Cell::Text(text) => Default::Text(text.into()),
            Cell::Null => Default::Cell(Cell::Null),
            Cell::Bool(value) => Default::Cell(Cell::Bool(value)),
            Cell::Int(value) => Default::Cell(Cell::Int(value)),
            Cell::Float(value) => Default::Cell(Cell::Float(value)),
            Cell::Time(value) => Default::Cell(Cell::Time(value)),
            Cell::Decimal(value) => Default::Cell(Cell::Decimal(value)),
            Cell::Date(value) => Default::Cell(Cell::Date(value)),
            Cell::Uuid(value) => Default::Cell(Cell::Uuid(value)),
            Cell::Address(value) => Default::Cell(Cell::Address(value)),
        })
    });
    parsed.map_err(&wrong)?.map_err(&wrong)
}

fn default_json(value: &serde_json::Value) -> Result<Default, String> {
    let wrong = |fault: Fault| format!("its default {value} is not a json object: {}", fault.code());
    let mut allowance = Allowance {
        now_ms: 0,
        members: 0,
        bytes: MAX_RECORD_BYTES,
    };
    let parsed = Parser::default().parse(value.to_string().as_bytes(), |nodes| {
        nested::check_json((nodes, 0), &mut allowance)?;
        let mut text = Vec::new();
        json::write_json(nodes, &mut text);
        let text = String::from_utf8(text).map_err(|_| Fault::NotUtf8)?;
        Ok(Default::Text(text.into()))
    });
    parsed.map_err(&wrong)?.map_err(&wrong)
}

fn default_nested(plan: &FieldPlan, value: &serde_json::Value) -> Result<Default, String> {
    let wrong = || format!("its default {value} is not a {}", plan.kind);
    let inner = plan.inner.as_deref().ok_or_else(wrong)?;
    if let Kind::Array(_) = plan.kind {
        let items = value.as_array().ok_or_else(wrong)?.iter();
        let items = items.map(|item| compile_default(inner, item));
        return items.collect::<Result<_, _>>().map(Default::List);
    }
    let members = value.as_object().ok_or_else(wrong)?.iter();
    let entries = members.map(|(key, value)| Ok((key.as_str().into(), compile_default(inner, value)?)));
    entries.collect::<Result<_, _>>().map(Default::Entries)
}

fn default_map(value: &serde_json::Value) -> Result<Default, String> {
    let wrong = || format!("its default {value} is not an object of strings");
    let members = value.as_object().ok_or_else(wrong)?.iter();
    let entries = members.map(|(key, value)| Some((key.as_str().into(), value.as_str()?.into())));
    entries.collect::<Option<_>>().map(Default::Map).ok_or_else(wrong)
}

/// Bytes of a record's schema and of the footers that repeat it.
fn schema_bytes(arrow: &SchemaRef) -> Result<usize, String> {
    let empty = arrow_array::RecordBatch::new_empty(Arc::clone(arrow));
    let schema =
        super::encode::ipc(&empty).map_err(|error| format!("its schema cannot be encoded: {error}"))?;
    let bytes = 2 * schema.len();
    if ROW_ROOM + bytes > MAX_RECORD_BYTES / 2 {
        return Err("its field names fill half a record: use fewer or shorter ones".into());
    }
    Ok(bytes)
}

/// Column bytes of one request: each of its records has the schema besides.
fn request_room(schema_bytes: usize) -> usize {
    MAX_REQUEST_COLUMN_BYTES / (TARGET_RECORD_BYTES + schema_bytes) * TARGET_RECORD_BYTES
}
