//! Request bodies that cost almost nothing to make: rendered once, then only the ids are written anew.

use bytes::{Bytes, BytesMut};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde_json::json;

/// Length of an event's id: run, connection, number, each in hex.
const ID_BYTES: usize = 32;
/// Hex digits of the number, at the id's end.
const NUMBER_DIGITS: usize = 16;

/// The NDJSON body of one connection. Every request of it has other ids.
#[derive(Debug)]
pub struct Body {
    /// Empty while a request holds it.
    bytes: BytesMut,
    /// Where each event's number begins.
    slots: Vec<usize>,
    next: u64,
}

impl Body {
    /// Renders `events` events around `now_ms`. `run` tells this run's ids from any other's.
    #[must_use]
    pub fn render(run: u32, connection: u32, events: usize, now_ms: u64) -> Self {
        let mut random = StdRng::seed_from_u64(u64::from(connection));
        let (mut bytes, mut slots) = (BytesMut::new(), Vec::with_capacity(events));
        for _ in 0..events {
            let id = format!("{run:08x}{connection:08x}{:016x}", 0);
            let line = event(&id, now_ms, &mut random);
            let at = line.find(&id).unwrap_or_default();
            slots.push(bytes.len() + at + ID_BYTES - NUMBER_DIGITS);
            bytes.extend_from_slice(line.as_bytes());
            bytes.extend_from_slice(b"\n");
        }
        Self {
            bytes,
            slots,
            next: 0,
        }
    }

    /// The next request's body.
    pub fn renew(&mut self) -> Bytes {
        for (slot, number) in self.slots.iter().zip(self.next..) {
            write_hex(&mut self.bytes[*slot..*slot + NUMBER_DIGITS], number);
        }
        self.next += self.slots.len() as u64;
        std::mem::take(&mut self.bytes).freeze()
    }

    /// The next request is the first one once more.
    pub fn begin_again(&mut self) {
        self.next = 0;
    }

    /// Takes a body back for the next request; it is copied only if the connection still holds it.
    pub fn give_back(&mut self, body: Bytes) {
        self.bytes = body
            .try_into_mut()
            .unwrap_or_else(|held| BytesMut::from(held.as_ref()));
    }

    /// Events of one request.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.slots.len() as u64
    }
}

/// Our sample event: 8 fields and 3 attributes, about 260 bytes.
fn event(id: &str, now_ms: u64, random: &mut StdRng) -> String {
    let service = ["checkout", "search", "catalog", "payments"].choose(random);
    let status = if random.random_bool(0.02) { 503 } else { 200 };
    // Keys in this order: serde_json would sort those of a map.
    format!(
        r#"{{"event_id":"{id}","timestamp":{},"service":"{}","host":"web-{}","name":"http.request","duration_ms":{},"status":{status},"size_kib":{},"attributes":{}}}"#,
        now_ms - random.random_range(0..1_000),
        service.copied().unwrap_or_default(),
        random.random_range(1..9),
        f64::from(random.random_range(1..40_000)) / 100.0,
        random.random_range(1..512),
        json!({
            "http.method": "GET",
            "http.route": "/api/v1/items",
            "region": (["eu-1", "us-2"].choose(random)),
        }),
    )
}

fn write_hex(slot: &mut [u8], mut number: u64) {
    for digit in slot.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number & 15) as usize];
        number >>= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::collections::HashSet;

    #[test]
    fn every_request_has_other_ids_and_the_same_length() {
        let mut body = Body::render(7, 3, 10, 1_800_000_000_000);
        let (mut ids, mut lengths) = (HashSet::new(), HashSet::new());
        for _ in 0..5 {
            let bytes = body.renew();
            lengths.insert(bytes.len());
            for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                let event: Value = serde_json::from_slice(line).unwrap();
                let id = event["event_id"].as_str().unwrap().to_owned();
                assert!(id.starts_with("0000000700000003") && id.len() == ID_BYTES, "{id}");
                assert!((200..300).contains(&line.len()), "{}", line.len());
                ids.insert(id);
            }
            body.give_back(bytes);
        }
        assert_eq!((ids.len(), lengths.len()), (50, 1));
    }
}
