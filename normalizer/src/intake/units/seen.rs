//! Units that events name themselves: each name is compiled once and remembered, within a bound.
//!
//! Only names that convert are remembered, and once [`MAX_UNITS_SEEN`] are, further ones are compiled
//! each time: a sender that makes names up costs a microsecond a row and no memory.

use super::Factor;
use crate::intake::schema::FieldPlan;
use hashbrown::HashMap;
use parking_lot::RwLock;
use sluice_common::config::{Field, Unit};
use sluice_common::limits::MAX_UNITS_SEEN;

/// How the values of one field are converted.
#[derive(Debug)]
pub enum UnitPlan {
    /// By the config alone.
    Fixed(Factor),
    /// By the unit that a member of the event names.
    Named(Named),
}

/// A field whose events name its unit.
#[derive(Debug)]
pub struct Named {
    /// The member that holds the unit's name.
    pub member: Box<str>,
    /// For events that name none.
    pub default: Option<Factor>,
    to: Box<str>,
    seen: RwLock<HashMap<Box<str>, Factor>>,
}

/// Members of an event that name units. Slots past the fields are members that are nothing else.
#[derive(Debug, Default)]
pub struct UnitMembers {
    /// Per field: the slot of the member that names its unit.
    pub of_field: Vec<Option<u16>>,
    /// Per slot: whether the member names a unit. Empty where none does.
    pub is_name: Vec<bool>,
}

impl UnitMembers {
    /// Finds them, and appends to `members` what no field reads.
    #[must_use]
    pub fn find(fields: &[FieldPlan], members: &mut Vec<Box<str>>) -> Self {
        let mut of_field = vec![None; fields.len()];
        for (field, of) in fields.iter().zip(&mut of_field) {
            let Some(UnitPlan::Named(named)) = &field.unit else {
                continue;
            };
            let known = members.iter().position(|member| *member == named.member);
            let slot = known.unwrap_or_else(|| {
                members.push(named.member.clone());
                members.len() - 1
            });
            *of = u16::try_from(slot).ok();
        }
        let mut is_name = Vec::new();
        for slot in of_field.iter().flatten() {
            is_name.resize(members.len(), false);
            is_name[usize::from(*slot)] = true;
        }
        Self { of_field, is_name }
    }
}

impl UnitPlan {
    /// Compiles a field's unit.
    ///
    /// # Errors
    /// A sentence that names the units.
    pub fn compile(field: &Field, unit: &Unit) -> Result<Self, String> {
        let fixed = unit.from.as_deref().map(|from| Factor::between(from, &unit.to));
        let fixed = fixed.transpose()?;
        let Some(member) = &unit.unit_from else {
            return fixed
                .map(Self::Fixed)
                .ok_or_else(|| "its unit needs `from` or `unit_from`".to_owned());
        };
        // The target must be a unit even if no event ever names one.
        Factor::between(&unit.to, &unit.to)?;
        if fixed.is_none() && field.default.is_some() {
            return Err("its default has no unit: give `unit` a `from`".to_owned());
        }
        Ok(Self::Named(Named {
            member: member.as_str().into(),
            default: fixed,
            to: unit.to.as_str().into(),
            seen: RwLock::default(),
        }))
    }

    /// The conversion where no unit is named.
    #[must_use]
    pub fn fixed(&self) -> Option<Factor> {
        match self {
            Self::Fixed(factor) => Some(*factor),
            Self::Named(named) => named.default,
        }
    }
}

impl Named {
    /// The conversion from the unit of that name; `None` where there is no such unit, or it measures
    /// something else.
    #[must_use]
    pub fn factor(&self, name: &str) -> Option<Factor> {
        if let Some(factor) = self.seen.read().get(name) {
            return Some(*factor);
        }
        let factor = Factor::between(name, &self.to).ok()?;
        let mut seen = self.seen.write();
        if seen.len() < MAX_UNITS_SEEN {
            seen.insert(name.into(), factor);
        }
        Some(factor)
    }

    /// The unit that values are converted into.
    #[must_use]
    pub fn to(&self) -> &str {
        &self.to
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_events_make_up_take_no_memory_past_the_bound() {
        let named = Named {
            member: "unit".into(),
            default: None,
            to: "By".into(),
            seen: RwLock::default(),
        };
        for n in 0..MAX_UNITS_SEEN * 4 {
            assert!(named.factor(&format!("KiBy{{{n}}}")).is_some());
            assert!(named.factor(&format!("x{n}")).is_none());
            assert!(named.factor(&format!("s{{{n}}}")).is_none());
        }
        assert_eq!(named.seen.read().len(), MAX_UNITS_SEEN);
        assert!(named.factor(&"{a}".repeat(1_000)).is_none());
    }
}
