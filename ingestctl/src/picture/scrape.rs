//! The Prometheus text of `/metrics`, read.

use std::collections::BTreeMap;

/// One listener's metrics, or those of several added up.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scrape {
    samples: Vec<Sample>,
}

#[derive(Debug, Clone, PartialEq)]
struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

impl Sample {
    fn label(&self, name: &str) -> Option<&str> {
        let found = self.labels.iter().find(|(label, _)| label == name);
        found.map(|(_, value)| value.as_str())
    }

    fn has(&self, wanted: &[(&str, &str)]) -> bool {
        wanted.iter().all(|(name, value)| self.label(name) == Some(value))
    }
}

impl Scrape {
    /// Reads a scrape; lines that are none are skipped.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Self {
            samples: lines.filter_map(sample).collect(),
        }
    }

    /// Adds another listener's samples.
    pub fn join(&mut self, other: Self) {
        self.samples.extend(other.samples);
    }

    /// The sum of the samples of `name` with these labels, or nothing where there is none.
    #[must_use]
    pub fn get(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let matching = self
            .samples
            .iter()
            .filter(|one| one.name == name && one.has(labels));
        matching.map(|one| one.value).reduce(|sum, value| sum + value)
    }

    /// As [`Self::get`], 0 where there is none.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.get(name, labels).unwrap_or(0.0)
    }

    /// The samples of `name`, summed by one label's value.
    #[must_use]
    pub fn by(&self, name: &str, label: &str) -> BTreeMap<String, f64> {
        let mut sums = BTreeMap::new();
        for one in self.samples.iter().filter(|one| one.name == name) {
            if let Some(value) = one.label(label) {
                *sums.entry(value.to_owned()).or_insert(0.0) += one.value;
            }
        }
        sums
    }

    /// The values of one label of `name`, with the values of another: `where` and `reason`.
    #[must_use]
    pub fn by_both(&self, name: &str, (first, second): (&str, &str)) -> BTreeMap<String, f64> {
        let mut sums = BTreeMap::new();
        for one in self.samples.iter().filter(|one| one.name == name) {
            if let (Some(first), Some(second)) = (one.label(first), one.label(second)) {
                *sums.entry(format!("{first}/{second}")).or_insert(0.0) += one.value;
            }
        }
        sums
    }

    /// A distribution, summed over its labels.
    #[must_use]
    pub fn histogram(&self, name: &str) -> Histogram {
        let buckets = self.by(&format!("{name}_bucket"), "le");
        let bound = |le: &str| match le {
            "+Inf" => Some(f64::INFINITY),
            number => number.parse().ok(),
        };
        let mut buckets: Vec<(f64, f64)> = buckets
            .iter()
            .filter_map(|(le, count)| Some((bound(le)?, *count)))
            .collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        Histogram { buckets }
    }
}

/// Cumulative counts by upper bound.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Histogram {
    buckets: Vec<(f64, f64)>,
}

impl Histogram {
    /// What came since `earlier`; all of it where the process began anew in between.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let restarted = self.count() < earlier.count();
        let buckets = self.buckets.iter().enumerate().map(|(at, (bound, count))| {
            let before = earlier.buckets.get(at).map_or(0.0, |(_, count)| *count);
            let before = if restarted { 0.0 } else { before };
            (*bound, (count - before).max(0.0))
        });
        Self {
            buckets: buckets.collect(),
        }
    }

    /// How many values it holds.
    #[must_use]
    pub fn count(&self) -> f64 {
        self.buckets.last().map_or(0.0, |(_, count)| *count)
    }

    /// The value below which a share `q` of the values lies, between two bounds by straight line; nothing
    /// where it is empty. Beyond the last bound, that bound.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let rank = self.count() * q;
        if rank <= 0.0 {
            return None;
        }
        let (mut low, mut below) = (0.0, 0.0);
        for (bound, count) in &self.buckets {
            if *count >= rank {
                if bound.is_infinite() {
                    return Some(low);
                }
                let share = (rank - below) / (count - below);
                return Some(low + (bound - low) * share);
            }
            (low, below) = (*bound, *count);
        }
        Some(low)
    }
}

/// `name{label="value",…} number`.
fn sample(line: &str) -> Option<Sample> {
    let (series, value) = line.trim().rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let (name, labels) = match series.split_once('{') {
        Some((name, labels)) => (name, pairs(labels.strip_suffix('}')?)?),
        None => (series, Vec::new()),
    };
    Some(Sample {
        name: name.to_owned(),
        labels,
        value,
    })
}

fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let mut found = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (name, after) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next()? {
                (at, '"') => break at,
                (_, '\\') => match chars.next()?.1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (_, other) => value.push(other),
            }
        };
        found.push((name.to_owned(), value));
        rest = after.get(end + 1..)?.trim_start_matches(',');
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_with_labels_of_any_text() {
        let scrape = Scrape::parse(
            "# HELP a b\na{x=\"1\",y=\"q \\\"} \\\\ \"} 2\na{x=\"1\",y=\"z\"} 3\nb 1.5e3\nnonsense\na{x=\"2\" 4\n",
        );
        assert_eq!(scrape.get("a", &[("x", "1")]), Some(5.0));
        assert_eq!(scrape.get("a", &[("y", "q \"} \\ ")]), Some(2.0));
        assert_eq!(scrape.sum("b", &[]), 1_500.0);
        assert_eq!(scrape.get("c", &[]), None);
    }

    #[test]
    fn quantiles_lie_between_their_bounds() {
        let text = |counts: [u32; 3]| {
            let [a, b, c] = counts;
            format!("h_bucket{{le=\"1\"}} {a}\nh_bucket{{le=\"2\"}} {b}\nh_bucket{{le=\"+Inf\"}} {c}\n")
        };
        let now = Scrape::parse(&text([10, 20, 20])).histogram("h");
        assert_eq!(now.quantile(0.75), Some(1.5));
        let before = Scrape::parse(&text([10, 10, 10])).histogram("h");
        assert_eq!(now.since(&before).quantile(0.5), Some(1.5), "of what came since");
        assert_eq!(before.since(&now), before, "a restart counts from 0");
        assert_eq!(Histogram::default().quantile(0.5), None);
        let beyond = Scrape::parse(&text([0, 0, 5])).histogram("h");
        assert_eq!(beyond.quantile(0.5), Some(2.0));
    }
}
