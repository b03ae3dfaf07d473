//! Copies of what is set aside, in a topic beside the log: whoever works on the partition next has them too (R16).
//!
//! # Design note
//! *Constraints.* A unit counts as settled for its range, so it must be where any owner of the partition finds it before
//! its range is committed. What is on a machine's disk is a copy of the topic, made anew whenever a partition comes.
//! *Bytes.* A unit's file goes out in pieces of [`PIECE_BYTES`], key `NAME\0TURN\0NUMBER`; once all are there its head
//! follows, key `NAME`, value JSON of [`Head`]: no head, no unit. Deleting writes the head's tombstone first. The topic is
//! compacted.
//!
//! *Fencing.* Whoever takes a partition first appends a mark of its own, key `\0owner\0OWNER`, and reads up to it. A head
//! says whose it is; one of an earlier owner behind a later one's mark came too late and does not count: its range is
//! settled by others. What it hides is put again, and pieces that belong to nothing are deleted.

use super::clients::{ASK_DEADLINE, LogClients};
use super::manifest::from;
use super::messages::{Batch, Messages};
use crate::parked::mirror::Mirror;
use parking_lot::Mutex;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use serde::{Deserialize, Serialize};
use sluice_common::ids::RequestId;
use sluice_common::limits::{KAFKA_APPEND_DEADLINE, RETRY_BACKOFF_MAX, RETRY_BACKOFF_MIN};
use sluice_common::replace::OWNER_ONLY;
use sluice_common::shutdown::Stop;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Of a unit's file in one message.
const PIECE_BYTES: usize = 512 << 10;
const POLL: Duration = Duration::from_millis(100);
/// How long reading a partition's units may take without anything coming.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a file is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    owner: u64,
    turn: u64,
    pieces: u32,
    bytes: u64,
    crc: u32,
}

/// A connection to the topic, for all partitions. Cloning shares it.
#[derive(Clone)]
pub struct Units(Arc<Inner>);

struct Inner {
    clients: LogClients,
    topic: String,
    messages: Messages,
}

/// One partition's units.
struct OfPartition {
    units: Units,
    partition: u16,
    owner: u64,
    known: Mutex<BTreeMap<String, Head>>,
    /// The partition goes: nothing is waited for any more.
    leave: Stop,
}

/// Why a partition's units are not at hand.
#[derive(Debug, thiserror::Error)]
pub enum NotBrought {
    #[error("{0}")]
    Unavailable(String),
    #[error("{0}; it holds acknowledged events, so the partition is not worked on without it")]
    Damaged(String),
    #[error("{}: {error}", path.display())]
    Disk { path: PathBuf, error: io::Error },
    #[error("the partition goes")]
    Left,
}

impl Units {
    pub(super) fn new(clients: &LogClients) -> Result<Self, String> {
        Ok(Self(Arc::new(Inner {
            messages: Messages::new(clients, clients.parked_topic(), KAFKA_APPEND_DEADLINE * 2)?,
            topic: clients.parked_topic(),
            clients: clients.clone(),
        })))
    }

    /// Makes the files of a partition's units anew, each where its name says, and keeps copies from now on. Blocks.
    ///
    /// # Errors
    /// [`NotBrought`].
    pub fn bring(
        &self,
        (partition, leave): (u16, Stop),
        place: &dyn Fn(&str) -> PathBuf,
    ) -> Result<Arc<dyn Mirror>, NotBrought> {
        let of = OfPartition {
            units: self.clone(),
            partition,
            owner: random(),
            known: Mutex::default(),
            leave,
        };
        let unavailable = |error: io::Error| NotBrought::Unavailable(error.to_string());
        of.put_one(&mark(of.owner), Some(b"1")).map_err(unavailable)?;
        let mut bringing = Bringing::new(place);
        of.read(&mut bringing)?;
        let Stale { keys, marks } = bringing.finish()?;
        let mut batch = of.batch();
        for (key, head) in keys {
            let owner = of.owner;
            let head = head.map(|head| Head { owner, ..head });
            let value = head.map(|head| serde_json::to_vec(&head).unwrap_or_default());
            batch.put(&key, value.as_deref()).map_err(unavailable)?;
        }
        batch.end().map_err(unavailable)?;
        // The marks last: what came too late is told by them.
        of.forget(marks.into_iter().map(mark)).map_err(unavailable)?;
        *of.known.lock() = bringing.heads;
        Ok(Arc::new(of))
    }
}

fn random() -> u64 {
    #[expect(clippy::cast_possible_truncation, reason = "any bits will do")]
    let bits = RequestId::random().0 as u64;
    bits
}

fn mark(owner: u64) -> String {
    format!("\0owner\0{owner}")
}

/// What the topic has to be told.
#[derive(Debug)]
struct Stale {
    /// Deleted, or put again.
    keys: Vec<(String, Option<Head>)>,
    /// Of former owners.
    marks: Vec<u64>,
}

/// Units on their way to the disk.
struct Bringing<'a> {
    place: &'a dyn Fn(&str) -> PathBuf,
    /// Whose mark was read last.
    owner: Option<u64>,
    marks: BTreeSet<u64>,
    heads: BTreeMap<String, Head>,
    /// Heads that came too late.
    late: BTreeSet<String>,
    /// Pieces by unit and turn: the file, and their numbers.
    pieces: BTreeMap<(String, u64), (PathBuf, BTreeSet<u32>)>,
}

impl<'a> Bringing<'a> {
    fn new(place: &'a dyn Fn(&str) -> PathBuf) -> Self {
        Self {
            place,
            owner: None,
            marks: BTreeSet::new(),
            heads: BTreeMap::new(),
            late: BTreeSet::new(),
            pieces: BTreeMap::new(),
        }
    }

    fn take(&mut self, key: &str, value: Option<&[u8]>) -> Result<(), NotBrought> {
        let parts: Vec<&str> = key.split('\0').collect();
        let odd = || {
            NotBrought::Damaged(format!(
                "a message with the odd key {key:?} is among what is set aside"
            ))
        };
        match parts[..] {
            ["", "owner", owner] => {
                let owner = owner.parse().map_err(|_| odd())?;
                if value.is_some() {
                    self.owner = Some(owner);
                    self.marks.insert(owner);
                } else {
                    self.marks.remove(&owner);
                }
                Ok(())
            }
            [name] => self.take_head(name, value),
            [name, turn, number] => {
                let (turn, number) = (
                    turn.parse().map_err(|_| odd())?,
                    number.parse().map_err(|_| odd())?,
                );
                value.map_or(Ok(()), |value| self.take_piece(name, (turn, number), value))
            }
            _ => Err(odd()),
        }
    }

    fn take_head(&mut self, name: &str, value: Option<&[u8]>) -> Result<(), NotBrought> {
        let Some(value) = value else {
            self.heads.remove(name);
            self.late.remove(name);
            return Ok(());
        };
        let head: Head =
            serde_json::from_slice(value).map_err(|error| NotBrought::Damaged(format!("{name}: {error}")))?;
        if self.owner.is_some_and(|owner| owner != head.owner) {
            self.late.insert(name.to_owned());
        } else {
            self.late.remove(name);
            self.heads.insert(name.to_owned(), head);
        }
        Ok(())
    }

    fn take_piece(&mut self, name: &str, (turn, number): (u64, u32), value: &[u8]) -> Result<(), NotBrought> {
        let path = (self.place)(name).with_extension(format!("{turn}.piece"));
        let disk = |error| NotBrought::Disk {
            path: path.clone(),
            error,
        };
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(disk)?;
        }
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true).mode(OWNER_ONLY);
        let file = options.open(&path).map_err(disk)?;
        file.write_all_at(value, u64::from(number) * PIECE_BYTES as u64)
            .map_err(disk)?;
        let of_turn = self.pieces.entry((name.to_owned(), turn));
        of_turn
            .or_insert_with(|| (path.clone(), BTreeSet::new()))
            .1
            .insert(number);
        Ok(())
    }

    /// Pieces that belong together get their name; others go.
    fn finish(&mut self) -> Result<Stale, NotBrought> {
        for (name, head) in &self.heads {
            let found = self.pieces.remove(&(name.clone(), head.turn));
            let (path, numbers) = found.unwrap_or_default();
            let damaged = |what: &str| NotBrought::Damaged(format!("{name} is set aside, and {what}"));
            if numbers.len() != head.pieces as usize {
                return Err(damaged("not all of its pieces are in the topic"));
            }
            let disk = |error| NotBrought::Disk {
                path: path.clone(),
                error,
            };
            let file = OpenOptions::new().write(true).open(&path).map_err(disk)?;
            file.set_len(head.bytes).map_err(disk)?;
            file.sync_all().map_err(disk)?;
            if crc_of(&path).map_err(disk)? != head.crc {
                return Err(damaged("what the topic has of it is not what was written"));
            }
            std::fs::rename(&path, (self.place)(name)).map_err(disk)?;
        }
        let mut keys = Vec::new();
        for ((name, turn), (path, numbers)) in std::mem::take(&mut self.pieces) {
            std::fs::remove_file(&path).map_err(|error| NotBrought::Disk { path, error })?;
            let numbers = numbers.into_iter();
            keys.extend(numbers.map(|number| (piece(&name, turn, number), None)));
        }
        let late = std::mem::take(&mut self.late).into_iter();
        keys.extend(late.map(|name| {
            let head = self.heads.get(&name).copied();
            (name, head)
        }));
        let marks = self.marks.iter().copied();
        let marks = marks.filter(|mark| Some(*mark) != self.owner).collect();
        Ok(Stale { keys, marks })
    }
}

fn crc_of(path: &Path) -> io::Result<u32> {
    let (mut file, mut buffer, mut crc) = (File::open(path)?, vec![0; PIECE_BYTES], 0);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(crc),
            read => crc = crc32c::crc32c_append(crc, &buffer[..read]),
        }
    }
}

impl OfPartition {
    /// Reads everything up to our own mark.
    fn read(&self, bringing: &mut Bringing<'_>) -> Result<(), NotBrought> {
        let Inner { topic, clients, .. } = &*self.units.0;
        let consumer = clients.asking().map_err(NotBrought::Unavailable)?;
        let range = consumer.fetch_watermarks(topic, i32::from(self.partition), ASK_DEADLINE);
        let why = |error: &KafkaError| {
            NotBrought::Unavailable(format!("{topic}: {}", consumer.context().why(error)))
        };
        let (low, _) = range.map_err(|error| why(&error))?;
        from(&consumer, (topic, self.partition), low).map_err(NotBrought::Unavailable)?;
        let mut last = Instant::now();
        while bringing.owner != Some(self.owner) {
            if self.leave.is_cancelled() {
                return Err(NotBrought::Left);
            }
            match consumer.poll(POLL) {
                Some(Ok(message)) => {
                    last = Instant::now();
                    let key = message.key().and_then(|key| std::str::from_utf8(key).ok());
                    let key =
                        key.ok_or_else(|| NotBrought::Damaged(format!("{topic}: a message has no key")))?;
                    bringing.take(key, message.payload())?;
                }
                Some(Err(error)) if last.elapsed() > PATIENCE => return Err(why(&error)),
                None if last.elapsed() > PATIENCE => {
                    let late = format!(
                        "{topic}: partition {} cannot be read to its end in time",
                        self.partition
                    );
                    return Err(NotBrought::Unavailable(late));
                }
                Some(Err(_)) | None => {}
            }
        }
        Ok(())
    }

    fn batch(&self) -> Batch<'_> {
        self.units.0.messages.batch(self.partition)
    }

    fn put_one(&self, key: &str, value: Option<&[u8]>) -> io::Result<()> {
        let messages = &self.units.0.messages;
        messages.put(self.partition, key, value).map(drop)
    }

    fn forget(&self, keys: impl Iterator<Item = String>) -> io::Result<()> {
        let mut batch = self.batch();
        for key in keys {
            batch.put(&key, None)?;
        }
        batch.end()
    }

    fn forget_pieces(&self, name: &str, head: Head) -> io::Result<()> {
        self.forget((0..head.pieces).map(|number| piece(name, head.turn, number)))
    }

    fn put_once(&self, name: &str, path: &Path) -> io::Result<()> {
        let (mut file, mut buffer) = (File::open(path)?, Vec::with_capacity(PIECE_BYTES));
        let turn = random();
        let mut head = Head {
            owner: self.owner,
            turn,
            pieces: 0,
            bytes: 0,
            crc: 0,
        };
        let mut batch = self.batch();
        loop {
            buffer.clear();
            let read = file.by_ref().take(PIECE_BYTES as u64).read_to_end(&mut buffer)?;
            if read == 0 {
                break;
            }
            batch.put(&piece(name, turn, head.pieces), Some(&buffer))?;
            (head.pieces, head.bytes) = (head.pieces + 1, head.bytes + read as u64);
            head.crc = crc32c::crc32c_append(head.crc, &buffer);
        }
        batch.end()?;
        if self.leave.is_cancelled() {
            return Err(io::Error::other("the partition goes"));
        }
        self.put_one(name, Some(&serde_json::to_vec(&head)?))?;
        let before = self.known.lock().insert(name.to_owned(), head);
        match before {
            Some(before) => self.forget_pieces(name, before),
            None => Ok(()),
        }
    }
}

fn piece(name: &str, turn: u64, number: u32) -> String {
    format!("{name}\0{turn}\0{number}")
}

impl Mirror for OfPartition {
    fn put(&self, name: &str, path: &Path) -> io::Result<()> {
        let mut delay = RETRY_BACKOFF_MIN;
        loop {
            let Err(error) = self.put_once(name, path) else {
                return Ok(());
            };
            if self.leave.is_cancelled() {
                return Err(error);
            }
            tracing::warn!(%error, name, "what is set aside is not in its topic yet; it is tried again");
            std::thread::sleep(delay);
            delay = (delay * 2).min(RETRY_BACKOFF_MAX);
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let Some(head) = self.known.lock().get(name).copied() else {
            return Ok(());
        };
        self.put_one(name, None)?;
        self.known.lock().remove(name);
        self.forget_pieces(name, head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_pieces_only_those_of_a_head_become_a_file_and_damage_is_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let place = |name: &str| dir.path().join(name);
        let content: Vec<u8> = (0..PIECE_BYTES + 100)
            .map(|at| u8::try_from(at % 251).expect("small"))
            .collect();
        let head = |turn| Head {
            owner: 1,
            turn,
            pieces: 2,
            bytes: content.len() as u64,
            crc: crc32c::crc32c(&content),
        };
        let bringing = || Bringing::new(&place);
        let write = |bringing: &mut Bringing<'_>, name: &str, turn, head: Option<Head>| {
            for (number, part) in content.chunks(PIECE_BYTES).enumerate() {
                let number = u32::try_from(number).expect("few");
                bringing
                    .take(&piece(name, turn, number), Some(part))
                    .expect("taken");
            }
            if let Some(head) = head {
                let head = serde_json::to_vec(&head).expect("JSON");
                bringing.take(name, Some(&head)).expect("taken");
            }
        };
        let mut whole = bringing();
        write(&mut whole, "parked/a.unit", 1, Some(head(1)));
        write(&mut whole, "parked/a.unit", 2, Some(head(2)));
        write(&mut whole, "parked/cut.unit", 3, None);
        write(&mut whole, "parked/gone.unit", 4, Some(head(4)));
        whole.take("parked/gone.unit", None).expect("taken");
        whole.take(&mark(1), Some(b"1")).expect("taken");
        whole.take(&mark(2), Some(b"1")).expect("taken");
        // Those of the first owner come too late: one that hides what counts, and one of which nothing does.
        write(&mut whole, "parked/a.unit", 5, Some(head(5)));
        write(&mut whole, "parked/late.unit", 6, Some(head(6)));
        let Stale { keys, marks } = whole.finish().expect("whole");
        let told: BTreeMap<String, Option<Head>> = keys.into_iter().collect();
        let known = whole.heads.clone();
        assert_eq!(
            known.into_iter().collect::<Vec<_>>(),
            [("parked/a.unit".to_owned(), head(2))]
        );
        assert_eq!(
            told[&"parked/a.unit".to_owned()],
            Some(head(2)),
            "it is put again"
        );
        assert_eq!((told["parked/late.unit"], marks), (None, vec![1]));
        let pieces = told.keys().filter(|key| key.split('\0').count() == 3);
        assert_eq!(pieces.count(), 2 * 5, "of turns 1, 3, 4, 5, 6");
        assert_eq!(std::fs::read(place("parked/a.unit")).expect("read"), content);
        assert_eq!(std::fs::read_dir(place("parked")).expect("read").count(), 1);
        let mut damaged = bringing();
        write(&mut damaged, "b.unit", 1, Some(Head { crc: 1, ..head(1) }));
        assert!(
            matches!(damaged.finish(), Err(NotBrought::Damaged(_))),
            "another checksum"
        );
        let mut missing = bringing();
        missing
            .take("c.unit", Some(&serde_json::to_vec(&head(9)).expect("JSON")))
            .expect("taken");
        assert!(
            matches!(missing.finish(), Err(NotBrought::Damaged(_))),
            "no pieces"
        );
    }
}
