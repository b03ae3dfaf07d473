//! What dedup decided of each row of one record (R7), and how that travels to the sink-writer.

use serde::{Deserialize, Serialize};

/// One row's fate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The first of its identity within the window: to be stored.
    Keep,
    /// A repeat: counted and dropped.
    Drop,
    /// The same `Idempotency-Key` identity with other content: a dead letter (R3).
    Conflict,
}

/// The fates of all rows of one record, compact: repeats and conflicts are rare, so they are listed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fates {
    rows: u32,
    /// Rows that are dropped, ascending.
    dropped: Vec<u16>,
    /// Rows that conflict, ascending.
    conflicts: Vec<u16>,
}

impl Fates {
    /// Starts an empty list; push one fate a row.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the next row's fate.
    ///
    /// # Panics
    /// Past 65,536 rows, which no record has.
    pub fn push(&mut self, fate: Fate) {
        let row = u16::try_from(self.rows).expect("a record has at most 65,536 rows");
        self.rows += 1;
        match fate {
            Fate::Keep => {}
            Fate::Drop => self.dropped.push(row),
            Fate::Conflict => self.conflicts.push(row),
        }
    }

    /// Rows decided.
    #[must_use]
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// Rows dropped as repeats.
    #[must_use]
    pub fn dropped(&self) -> &[u16] {
        &self.dropped
    }

    /// Rows that go to dead letters.
    #[must_use]
    pub fn conflicts(&self) -> &[u16] {
        &self.conflicts
    }

    /// Rows that are stored in their table.
    #[must_use]
    pub fn kept(&self) -> u32 {
        self.rows - count(&self.dropped) - count(&self.conflicts)
    }

    /// The fate of `row`.
    #[must_use]
    pub fn of(&self, row: u16) -> Fate {
        if self.dropped.binary_search(&row).is_ok() {
            return Fate::Drop;
        }
        if self.conflicts.binary_search(&row).is_ok() {
            return Fate::Conflict;
        }
        Fate::Keep
    }

    /// The same rows with what would be stored dropped: only the conflicts go out.
    #[must_use]
    pub fn without_kept(&self) -> Self {
        self.map(|fate| match fate {
            Fate::Keep | Fate::Drop => Fate::Drop,
            Fate::Conflict => Fate::Conflict,
        })
    }

    /// The same rows with conflicts dropped: only what is stored goes out.
    #[must_use]
    pub fn without_conflicts(&self) -> Self {
        self.map(|fate| match fate {
            Fate::Keep => Fate::Keep,
            Fate::Drop | Fate::Conflict => Fate::Drop,
        })
    }

    fn map(&self, to: impl Fn(Fate) -> Fate) -> Self {
        let mut fates = Self::new();
        for row in 0..self.rows {
            let row = u16::try_from(row).expect("a record has at most 65,536 rows");
            fates.push(to(self.of(row)));
        }
        fates
    }

    /// Whether lists that came from a peer are what [`Self::push`] would have built.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let ascending = |list: &[u16]| list.windows(2).all(|pair| pair[0] < pair[1]);
        let inside = |list: &[u16]| list.last().is_none_or(|last| u32::from(*last) < self.rows);
        [&self.dropped, &self.conflicts]
            .iter()
            .all(|list| ascending(list) && inside(list))
            && self
                .conflicts
                .iter()
                .all(|row| self.dropped.binary_search(row).is_err())
    }
}

fn count(list: &[u16]) -> u32 {
    u32::try_from(list.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_has_one_fate() {
        let mut fates = Fates::new();
        [Fate::Keep, Fate::Drop, Fate::Conflict, Fate::Keep]
            .into_iter()
            .for_each(|fate| fates.push(fate));
        assert_eq!((fates.rows(), fates.kept()), (4, 2));
        assert_eq!(
            [0, 1, 2, 3].map(|row| fates.of(row)),
            [Fate::Keep, Fate::Drop, Fate::Conflict, Fate::Keep]
        );
        assert!(fates.is_sound());
    }
}
