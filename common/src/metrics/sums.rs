//! The sums of one counter, by label set. The SDK's own counters build, allocate and hash a set of pairs at each
//! addition, of which a request makes ten; these are found by the labels as they come, and told when asked for.

use super::{Labels, pairs};
use hashbrown::HashTable;
use opentelemetry::KeyValue;
use parking_lot::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};
use xxhash_rust::xxh3::xxh3_64;

/// Label sets of one counter; as many as the SDK keeps of an instrument. What comes with others is summed up under
/// [`OVERFLOW`].
const MOST_SETS: usize = 1_999;
/// As the OpenTelemetry specification names it; there its value is a boolean.
const OVERFLOW: Labels<'_> = &[("otel.metric.overflow", "true")];

/// All sums of one counter.
#[derive(Default)]
pub(super) struct Sums(RwLock<HashTable<Sum>>);

struct Sum {
    labels: Vec<KeyValue>,
    value: AtomicU64,
}

impl Sum {
    fn of(n: u64, labels: Labels<'_>) -> Self {
        let told = if labels == OVERFLOW {
            vec![KeyValue::new(OVERFLOW[0].0, true)]
        } else {
            pairs(labels)
        };
        Self {
            labels: told,
            value: AtomicU64::new(n),
        }
    }

    fn is(&self, labels: Labels<'_>) -> bool {
        let same = |(mine, (name, value)): (&KeyValue, &(&str, &str))| {
            mine.key.as_str() == *name && mine.value.as_str() == *value
        };
        self.labels.len() == labels.len() && self.labels.iter().zip(labels).all(same)
    }
}

/// Of values alone: the names of one counter are the same as a rule.
fn hash(values: impl Iterator<Item = impl AsRef<str>>) -> u64 {
    values.fold(0, |hash: u64, value| {
        hash.rotate_left(5) ^ xxh3_64(value.as_ref().as_bytes())
    })
}

fn hash_of(sum: &Sum) -> u64 {
    hash(sum.labels.iter().map(|label| label.value.as_str()))
}

fn add_known(table: &HashTable<Sum>, n: u64, (hash, labels): (u64, Labels<'_>)) -> bool {
    let known = table.find(hash, |sum| sum.is(labels));
    known
        .map(|sum| sum.value.fetch_add(n, Ordering::Relaxed))
        .is_some()
}

impl Sums {
    /// Adds to the sum of these labels, which is told from then on.
    pub(super) fn add(&self, n: u64, labels: Labels<'_>) {
        let hash = hash(labels.iter().map(|(_, value)| value));
        if add_known(&self.0.read(), n, (hash, labels)) {
            return;
        }
        let mut table = self.0.write();
        // Another may have been faster.
        if add_known(&table, n, (hash, labels)) {
            return;
        }
        if table.len() >= MOST_SETS && labels != OVERFLOW {
            drop(table);
            return self.add(n, OVERFLOW);
        }
        table.insert_unique(hash, Sum::of(n, labels), hash_of);
    }

    /// Tells every sum.
    pub(super) fn tell(&self, mut tell: impl FnMut(u64, &[KeyValue])) {
        for sum in self.0.read().iter() {
            tell(sum.value.load(Ordering::Relaxed), &sum.labels);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn told(sums: &Sums) -> BTreeMap<String, u64> {
        let mut all = BTreeMap::new();
        sums.tell(|value, pairs| {
            let text: Vec<String> = pairs
                .iter()
                .map(|pair| format!("{}={}", pair.key, pair.value))
                .collect();
            assert!(
                all.insert(text.join(","), value).is_none(),
                "each set is told once"
            );
        });
        all
    }

    #[test]
    fn each_set_of_labels_has_a_sum_of_its_own() {
        let sums = Sums::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for n in 0..1_000 {
                        sums.add(1, &[("a", "x"), ("b", if n % 2 == 0 { "y" } else { "z" })]);
                        sums.add(2, &[]);
                    }
                });
            }
        });
        // Values that change places, or names, are another set.
        sums.add(7, &[("b", "x"), ("a", "y")]);
        sums.add(0, &[("a", "y"), ("b", "x")]);
        let wanted = [
            ("a=x,b=y", 2_000),
            ("a=x,b=z", 2_000),
            ("", 8_000),
            ("b=x,a=y", 7),
            ("a=y,b=x", 0),
        ];
        let wanted: BTreeMap<String, u64> = wanted.map(|(set, sum)| (set.to_owned(), sum)).into();
        assert_eq!(told(&sums), wanted);
    }

    #[test]
    fn sets_beyond_the_bound_are_summed_up() {
        let sums = Sums::default();
        for n in 0..MOST_SETS + 10 {
            sums.add(1, &[("n", &n.to_string())]);
        }
        let told = told(&sums);
        assert_eq!(told.len(), MOST_SETS + 1);
        assert_eq!(told["otel.metric.overflow=true"], 10);
    }
}
