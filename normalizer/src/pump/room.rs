//! Room in the log: what is stored can be deleted only once dedup has sealed it.

use super::{Pump, PumpError};
use crate::runtime::block_in_place;

impl Pump {
    /// Where stored records hold the log's room because they are not sealed, has their bucket sealed before it is
    /// full or old. By itself it would not be: a log that is shut takes no record, and it is records that let a
    /// bucket grow and age. So this is asked once a second too, though nothing comes.
    pub(super) fn make_room(&mut self) -> Result<(), PumpError> {
        if !self.log.wants_seal() {
            return Ok(());
        }
        let committed = self.store.lock().state().committed;
        self.dedup.freeze();
        block_in_place(|| self.dedup.committed(committed))?;
        self.log.set_progress(committed, self.dedup.sealed());
        self.note_dedup();
        Ok(())
    }
}
