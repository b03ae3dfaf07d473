//! A model of the disk under power loss: what was written, what was synced, and what may be left.
//!
//! A [`Recorder`] sees every operation before it happens and applies it to a [`Model`]. The model knows for each
//! file what a sync has made durable and what was written since; for each directory, which creations, renames
//! and removals its sync has not made durable. [`Model::power_loss`] draws one of the legal remainders:
//! - of a file, each sector holds what it held after any of the writes since its last sync, torn where the
//!   writes were; the length has grown by any part, and what was never written there is zeros or anything;
//! - of a directory, any subset of the changes since its sync, in any order that their names allow;
//! - of a file that a library writes, anything until it was synced, then all of it.

use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use sluice_common::disk::{DiskOp, DiskWatch, parent_of};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

const MARK_DEADLINE: Duration = Duration::from_millis(20);

type Inode = usize;

/// What the product is told and the model does not do: a safety that is off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Lie {
    #[default]
    None,
    /// Syncs of segments do nothing: as were the ack sent before the sync.
    LogSync,
    /// Syncs of directories do nothing.
    DirSync,
    /// Syncs of the progress file do nothing, while unlinks are durable at once: unlink before persist.
    UnlinkFirst,
    /// Syncs of buckets do nothing: the manifest is swapped before the bucket is there.
    BucketSync,
    /// Syncs of the progress file do nothing: a range is sent before it is declared.
    Intent,
}

#[derive(Debug, Clone)]
enum Pending {
    Write { at: usize, bytes: Vec<u8> },
    Empty,
}

#[derive(Debug, Clone, Default)]
struct FileModel {
    durable: Vec<u8>,
    current: Vec<u8>,
    pending: Vec<Pending>,
    /// A library writes it, and it was not synced since.
    filling: bool,
}

#[derive(Debug, Clone)]
enum NameOp {
    MakeDir(PathBuf),
    Link(PathBuf, Inode),
    Rename(PathBuf, PathBuf, Inode),
    Unlink(PathBuf, Inode),
}

/// Names of directories and files.
#[derive(Debug, Clone, Default)]
struct Names {
    dirs: BTreeSet<PathBuf>,
    files: BTreeMap<PathBuf, Inode>,
}

/// The disk below one directory; names are relative to it.
#[derive(Debug, Clone, Default)]
pub struct Model {
    files: Vec<FileModel>,
    current: Names,
    durable: Names,
    pending: Vec<(PathBuf, NameOp)>,
}

/// Sees the operations of one process, until it is dead.
pub struct Recorder {
    root: PathBuf,
    lie: Lie,
    inner: Mutex<Inner>,
    /// Asked before each operation whether the process dies here.
    dies: Box<dyn Fn(&str) -> bool + Send + Sync>,
}

struct Inner {
    model: Model,
    dead: bool,
    /// The log's writer has left its mark behind the last group.
    marked: bool,
    last: VecDeque<String>,
}

impl Names {
    fn apply(&mut self, op: &NameOp) {
        match op {
            NameOp::MakeDir(path) => drop(self.dirs.insert(path.clone())),
            NameOp::Link(path, inode) => drop(self.files.insert(path.clone(), *inode)),
            NameOp::Rename(from, to, inode) => {
                if self.files.get(from) == Some(inode) {
                    self.files.remove(from);
                }
                self.files.insert(to.clone(), *inode);
            }
            NameOp::Unlink(path, inode) => {
                if self.files.get(path) == Some(inode) {
                    self.files.remove(path);
                }
            }
        }
    }
}

fn overlay(file: &mut Vec<u8>, pending: &Pending) {
    match pending {
        Pending::Empty => file.clear(),
        Pending::Write { at, bytes } => {
            file.resize(file.len().max(at + bytes.len()), 0);
            file[*at..at + bytes.len()].copy_from_slice(bytes);
        }
    }
}

impl FileModel {
    fn write(&mut self, pending: Pending) {
        overlay(&mut self.current, &pending);
        self.pending.push(pending);
    }

    fn sync(&mut self) {
        self.pending
            .iter()
            .for_each(|one| overlay(&mut self.durable, one));
        self.pending.clear();
    }

    /// One of the contents that a power loss may leave.
    fn left(&self, random: &mut SmallRng) -> Vec<u8> {
        if self.filling {
            return match random.random_range(0..3) {
                0 => Vec::new(),
                1 => vec![0; random.random_range(1..9) * 4_096],
                _ => noise(random, 8_192),
            };
        }
        let mut left = self.durable.clone();
        if self.pending.is_empty() {
            return left;
        }
        // Nothing, all of it in order up to a point, or any sectors of any writes.
        let how = random.random_range(0..4);
        if how == 0 {
            return left;
        }
        let sector = if random.random() { 512 } else { 4_096 };
        let written = self.pending.len();
        let upto = random.random_range(0..=written);
        let garbage = random.random_bool(0.25);
        let mut done = BTreeMap::new();
        for (place, one) in self.pending.iter().enumerate() {
            match one {
                Pending::Empty if how == 1 && place < upto || how > 1 && random.random() => left.clear(),
                Pending::Empty => {}
                Pending::Write { at, bytes } => {
                    let end = at + bytes.len();
                    for piece in at / sector..end.div_ceil(sector) {
                        let (from, to) = ((piece * sector).max(*at), ((piece + 1) * sector).min(end));
                        let keep = match how {
                            1 => place < upto,
                            2 => place < upto || (place == upto && random.random()),
                            _ => random.random(),
                        };
                        // A sector's versions follow on each other: a later one holds the earlier.
                        let versions: &mut Vec<(usize, usize, &[u8])> = done.entry(piece).or_default();
                        versions.push((from, to, &bytes[from - at..to - at]));
                        if !keep {
                            continue;
                        }
                        for (from, to, bytes) in versions.drain(..) {
                            if left.len() < to {
                                let grown = to - left.len();
                                let fill = if garbage {
                                    noise(random, grown)
                                } else {
                                    vec![0; grown]
                                };
                                left.extend(fill);
                            }
                            left[from..to].copy_from_slice(bytes);
                        }
                    }
                }
            }
        }
        left
    }
}

impl NameOp {
    fn path(&self) -> &Path {
        match self {
            Self::MakeDir(path) | Self::Link(path, _) | Self::Rename(_, path, _) | Self::Unlink(path, _) => {
                path
            }
        }
    }
}

fn hash(path: &Path) -> u64 {
    xxhash_rust::xxh3::xxh3_64(path.as_os_str().as_encoded_bytes())
}

fn noise(random: &mut SmallRng, bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    random.fill_bytes(&mut noise);
    noise
}

impl Model {
    fn inode(&self, path: &Path) -> Option<Inode> {
        self.current.files.get(path).copied()
    }

    fn change(&mut self, path: &Path, op: NameOp) {
        self.current.apply(&op);
        self.pending
            .push((path.parent().unwrap_or(Path::new("")).to_owned(), op));
    }

    fn new_file(&mut self) -> Inode {
        self.files.push(FileModel::default());
        self.files.len() - 1
    }

    fn create(&mut self, path: PathBuf, filling: bool) {
        let inode = self.inode(&path).unwrap_or_else(|| {
            let inode = self.new_file();
            self.change(&path.clone(), NameOp::Link(path, inode));
            inode
        });
        if !self.files[inode].current.is_empty() {
            self.files[inode].write(Pending::Empty);
        }
        self.files[inode].filling |= filling;
    }

    fn sync_dir(&mut self, dir: &Path) {
        let durable = &mut self.durable;
        self.pending.retain(|(of, op)| {
            if of == dir {
                durable.apply(op);
            }
            of != dir
        });
    }

    /// One of the disks that a power loss may leave; all of it is durable.
    pub fn power_loss(&self, seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut names = self.durable.clone();
        let how = random.random_range(0..3);
        let mut seen: BTreeMap<&Path, u64> = BTreeMap::new();
        for (_, op) in &self.pending {
            let nth = seen.entry(op.path()).or_default();
            *nth += 1;
            let mut random = SmallRng::seed_from_u64(seed ^ hash(op.path()).wrapping_add(*nth));
            // Nothing, everything, or any of it.
            if how == 1 || (how == 2 && random.random()) {
                names.apply(op);
            }
        }
        let mut left = Self::default();
        let stands = |path: &Path| {
            let mut above = path.ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty());
            above.all(|dir| names.dirs.contains(dir))
        };
        left.current.dirs = names.dirs.iter().filter(|dir| stands(dir)).cloned().collect();
        for (path, inode) in names.files.iter().filter(|(path, _)| stands(path)) {
            // Of each file alone: what another one had written does not change its draw.
            let mut random = SmallRng::seed_from_u64(seed ^ hash(path));
            let content = self.files[*inode].left(&mut random);
            let inode = left.new_file();
            left.files[inode].current.clone_from(&content);
            left.files[inode].durable = content;
            left.current.files.insert(path.clone(), inode);
        }
        left.durable = left.current.clone();
        left
    }

    /// Makes it real below `root`: what the next process finds.
    pub fn lay_out(&self, root: &Path) {
        for dir in &self.current.dirs {
            std::fs::create_dir_all(root.join(dir)).unwrap();
        }
        for (path, inode) in &self.current.files {
            std::fs::write(root.join(path), &self.files[*inode].current).unwrap();
        }
    }
}

impl Recorder {
    /// Watches the process that works below `root`, where `model` was laid out.
    pub fn new(
        root: PathBuf,
        model: Model,
        lie: Lie,
        dies: impl Fn(&str) -> bool + Send + Sync + 'static,
    ) -> Arc<Self> {
        let inner = Inner {
            model,
            dead: false,
            marked: true,
            last: VecDeque::new(),
        };
        Arc::new(Self {
            root,
            lie,
            inner: Mutex::new(inner),
            dies: Box::new(dies),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// The process is dead: the disk stays as it is now.
    pub fn die(&self) {
        self.inner().die(&self.root);
    }

    pub fn is_dead(&self) -> bool {
        self.inner().dead
    }

    /// Waits until the log's writer has left its mark, which it does once the append is answered; not for long,
    /// because a segment may have no room for it.
    pub fn wait_for_mark(&self) {
        let until = Instant::now() + MARK_DEADLINE;
        while Instant::now() < until {
            let inner = self.inner();
            if inner.marked || inner.dead {
                return;
            }
            drop(inner);
            std::thread::yield_now();
        }
    }

    /// The disk, and what was done last.
    pub fn take(&self) -> (Model, Vec<String>) {
        let mut inner = self.inner();
        let last = inner.last.drain(..).collect();
        (std::mem::take(&mut inner.model), last)
    }

    fn apply(&self, inner: &mut Inner, op: &DiskOp<'_>) {
        let path = |path: &Path| path.strip_prefix(&self.root).map(Path::to_owned).ok();
        let Inner { model, marked, .. } = inner;
        match op {
            DiskOp::MakeDir { path: dir } => {
                if let Some(dir) = path(dir) {
                    model.change(&dir.clone(), NameOp::MakeDir(dir));
                }
            }
            DiskOp::Create { path: file } => {
                path(file).into_iter().for_each(|file| model.create(file, false))
            }
            DiskOp::Fill { path: file } => path(file).into_iter().for_each(|file| model.create(file, true)),
            DiskOp::Write {
                path: file,
                at,
                bytes,
            } => {
                if let Some(inode) = path(file).and_then(|file| model.inode(&file)) {
                    if bytes.starts_with(b"SLR1") || bytes.starts_with(b"SLDM") {
                        *marked = bytes.starts_with(b"SLDM");
                    }
                    let (at, bytes) = (usize::try_from(*at).unwrap(), bytes.to_vec());
                    model.files[inode].write(Pending::Write { at, bytes });
                }
            }
            DiskOp::Sync { path: file } => self.sync(model, file),
            DiskOp::Rename { from, to } => {
                if let (Some(from), Some(to)) = (path(from), path(to))
                    && let Some(inode) = model.inode(&from)
                {
                    model.change(&to.clone(), NameOp::Rename(from, to, inode));
                }
            }
            DiskOp::Remove { path: file } => {
                if let Some(file) = path(file)
                    && let Some(inode) = model.inode(&file)
                {
                    model.change(&file.clone(), NameOp::Unlink(file.clone(), inode));
                    if self.lie == Lie::UnlinkFirst {
                        model.sync_dir(parent_of(&file));
                    }
                }
            }
            DiskOp::SyncDir { path: dir } => {
                if let Some(dir) = path(dir).filter(|_| self.lie != Lie::DirSync) {
                    model.sync_dir(&dir);
                }
            }
        }
    }

    fn sync(&self, model: &mut Model, path: &Path) {
        let Ok(name) = path.strip_prefix(&self.root) else {
            return;
        };
        let ends = |ext: &str| name.extension().is_some_and(|one| one == ext);
        let is_progress = name.file_name().is_some_and(|file| file == "progress");
        let believed = match self.lie {
            Lie::LogSync => ends("segment"),
            Lie::UnlinkFirst | Lie::Intent => is_progress,
            Lie::BucketSync => ends("mdb"),
            Lie::None | Lie::DirSync => false,
        };
        let Some(inode) = model.inode(name).filter(|_| !believed) else {
            return;
        };
        let file = &mut model.files[inode];
        if file.filling {
            let content = std::fs::read(path).unwrap();
            (file.current, file.durable, file.filling) = (content.clone(), content, false);
        }
        file.sync();
    }
}

impl Inner {
    fn die(&mut self, root: &Path) {
        self.dead = true;
        for (path, inode) in &self.model.current.files {
            let file = &mut self.model.files[*inode];
            if file.filling {
                file.current = std::fs::read(root.join(path)).unwrap_or_default();
            }
        }
    }
}

impl DiskWatch for Recorder {
    fn before(&self, op: &DiskOp<'_>) -> io::Result<()> {
        let said = describe(op, &self.root);
        if self.is_dead() {
            return Ok(());
        }
        // The keeper works beside the rest, in a time of its own.
        let beside = std::thread::current().name() == Some("log-keeper");
        if !beside && (self.dies)(&said) {
            self.die();
            return Ok(());
        }
        let mut inner = self.inner();
        if inner.dead {
            return Ok(());
        }
        self.apply(&mut inner, op);
        inner.last.push_back(said);
        if inner.last.len() > 60 {
            inner.last.pop_front();
        }
        Ok(())
    }
}

fn describe(op: &DiskOp<'_>, root: &Path) -> String {
    let name = |path: &Path| path.strip_prefix(root).unwrap_or(path).display().to_string();
    match op {
        DiskOp::MakeDir { path } => format!("make directory {}", name(path)),
        DiskOp::Create { path } => format!("create {}", name(path)),
        DiskOp::Fill { path } => format!("fill {}", name(path)),
        DiskOp::Write { path, at, bytes } => format!("write {} at {at}, {} bytes", name(path), bytes.len()),
        DiskOp::Sync { path } => format!("sync {}", name(path)),
        DiskOp::Rename { from, to } => format!("rename {} to {}", name(from), name(to)),
        DiskOp::Remove { path } => format!("remove {}", name(path)),
        DiskOp::SyncDir { path } => format!("sync directory {:?}", name(path)),
    }
}
