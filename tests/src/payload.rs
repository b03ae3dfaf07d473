//! Events that no compressor makes smaller: what is sent is what the log holds.

use rand::distr::{Alphanumeric, SampleString as _};
use rand::{Rng as _, rng};

/// Far above LZ4's window, so that two cuts of it share nothing that it could find.
const TEXT_BYTES: usize = 4 * 1024 * 1024;

/// Random text that events take their payload from.
#[derive(Debug)]
pub struct Bulk(String);

impl Default for Bulk {
    fn default() -> Self {
        Self::new()
    }
}

impl Bulk {
    /// 4 MiB of it.
    #[must_use]
    pub fn new() -> Self {
        Self(Alphanumeric.sample_string(&mut rng(), TEXT_BYTES))
    }

    /// A line with an event of the default dataset that carries `bytes` of payload, at most 4 MiB.
    #[must_use]
    pub fn event(&self, id: &str, timestamp: u64, bytes: usize) -> String {
        let from = rng().random_range(0..=self.0.len() - bytes);
        let payload = &self.0[from..from + bytes];
        format!(r#"{{"event_id":"{id}","timestamp":{timestamp},"service":"bulk","payload":"{payload}"}}"#)
            + "\n"
    }
}
