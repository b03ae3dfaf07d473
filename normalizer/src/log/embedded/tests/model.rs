//! The log against a model: whatever is done to it, what was acknowledged is there, and nothing else.

use super::*;
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Append {
        records: usize,
        bytes: usize,
    },
    Read {
        at: f64,
        max_bytes: usize,
    },
    Progress {
        at: f64,
    },
    Reopen,
    /// A kill in the middle of a group: of a group that was not acknowledged, the disk has a prefix.
    Kill {
        records: usize,
        bytes: usize,
        cut: f64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1usize..12, 0usize..4000).prop_map(|(records, bytes)| Step::Append { records, bytes }),
        2 => (0.0..1.0, 0usize..20_000).prop_map(|(at, max_bytes)| Step::Read { at, max_bytes }),
        1 => (0.0..1.0).prop_map(|at| Step::Progress { at }),
        1 => Just(Step::Reopen),
        2 => (1usize..6, 0usize..3000, 0.0..1.0).prop_map(|(records, bytes, cut)| Step::Kill { records, bytes, cut }),
    ]
}

struct Model {
    /// Before its directory, so that it is closed before that goes.
    log: Arc<EmbeddedLog>,
    dir: TempDir,
    /// The key of each offset.
    keys: Vec<u128>,
    next_key: u128,
    progress: Offset,
}

fn place(at: f64, end: usize) -> u64 {
    (at * end as f64) as u64
}

fn model_options(dir: &Path, known_durable: Offset) -> LogOptions {
    let mut options = options(dir);
    (options.tail_cache_bytes, options.retain_ms, options.known_durable) = (10_000, 0, known_durable);
    options
}

impl Model {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = EmbeddedLog::open(model_options(dir.path(), 0), Arc::new(ManualClock::at(NOW))).unwrap();
        Self {
            dir,
            log,
            keys: Vec::new(),
            next_key: 0,
            progress: 0,
        }
    }

    fn append(&mut self, records: usize, bytes: usize) {
        let keys = self.next_key..self.next_key + records as u128;
        let at = append(&self.log, keys.clone(), bytes).unwrap();
        assert_eq!((at.first, at.count), (self.keys.len() as u64, records as u64));
        self.keys.extend(keys.clone());
        self.next_key = keys.end;
    }

    fn read(&self, from: u64, max_bytes: usize) {
        match self.log.read(from, max_bytes) {
            Ok(records) => {
                assert_eq!(records.is_empty(), from >= self.keys.len() as u64);
                for (record, offset) in records.iter().zip(from..) {
                    assert_eq!(record.place.offset, offset);
                    assert_eq!(record.keys().collect::<Vec<_>>(), [self.keys[offset as usize]]);
                }
            }
            Err(ReadError::OutOfReach { first }) => assert!(from < first && first <= self.progress),
            Err(error) => panic!("{error}"),
        }
    }

    fn reopen(&mut self) {
        self.log.close();
        let options = model_options(self.dir.path(), self.progress);
        self.log = EmbeddedLog::open(options, Arc::new(ManualClock::at(NOW))).unwrap();
        self.log.set_progress(self.progress, self.progress);
    }

    fn kill(&mut self, records: usize, bytes: usize, cut: f64) {
        let before = segments(self.dir.path()).pop().unwrap();
        let end = frames_end(&before);
        let keys = self.next_key..self.next_key + records as u128;
        append(&self.log, keys.clone(), bytes).unwrap();
        self.next_key = keys.end;
        self.log.close();
        let newest = segments(self.dir.path()).pop().unwrap();
        let from = if newest == before {
            end
        } else {
            segment::SEGMENT_HEADER_BYTES
        };
        let cut = from + place(cut, frames_end(&newest) - from) as usize;
        edit(&newest, |bytes| bytes[cut..].fill(0));
        self.reopen();
        let survived = *self.log.durable_end().borrow();
        assert!((self.keys.len()..=self.keys.len() + records).contains(&(survived as usize)));
        self.keys.extend(keys.take(survived as usize - self.keys.len()));
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Append { records, bytes } => self.append(records, bytes),
            Step::Read { at, max_bytes } => self.read(place(at, self.keys.len() + 2), max_bytes),
            Step::Progress { at } => {
                self.progress = self.progress.max(place(at, self.keys.len()));
                self.log.set_progress(self.progress, self.progress);
            }
            Step::Reopen => self.reopen(),
            Step::Kill { records, bytes, cut } => self.kill(records, bytes, cut),
        }
        assert_eq!(*self.log.durable_end().borrow(), self.keys.len() as u64);
        (self.log.first_offset()..self.keys.len() as u64)
            .step_by(7)
            .for_each(|from| self.read(from, 5000));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn what_was_acknowledged_survives_and_nothing_is_invented(steps in proptest::collection::vec(step(), 1..25)) {
        let mut model = Model::new();
        steps.iter().for_each(|step| model.apply(step));
    }
}
