//! Failpoints that do something: what the directory of a test asks for.

use super::{Bound, Point, Safety};
use parking_lot::Mutex;
use rustix::process::{Signal, getpid, kill_process};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

/// The variable that names the directory.
pub const DIRECTORY_VARIABLE: &str = "SLUICE_FAILPOINTS";

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Kill,
    Error,
    Delay(Duration),
}

/// One thing that is to happen once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Case {
    point: Point,
    action: Action,
    nth: u64,
}

/// The directory that this process heeds.
struct Armed {
    dir: PathBuf,
    off: Vec<Safety>,
    sizes: HashMap<&'static str, u64>,
    state: Mutex<State>,
}

struct State {
    hits: File,
    /// The plan as it was read last, and the hits since.
    plan: String,
    counts: HashMap<Point, u64>,
}

/// A point is passed: notes it, and carries out the plan where this is the hit that it names.
///
/// # Errors
/// The one that the plan asks for.
pub fn hit(point: Point) -> io::Result<()> {
    let Some(armed) = armed() else { return Ok(()) };
    match armed.passed(point) {
        None => Ok(()),
        Some(Action::Delay(delay)) => {
            std::thread::sleep(delay);
            Ok(())
        }
        Some(Action::Error) => Err(io::Error::other(format!("failpoint {}", point.name()))),
        Some(Action::Kill) => {
            kill_process(getpid(), Signal::KILL)?;
            // The signal is on its way: nothing more may happen in this process.
            loop {
                std::thread::park();
            }
        }
    }
}

/// Whether a safety is on.
#[must_use]
pub fn is_on(safety: Safety) -> bool {
    armed().is_none_or(|armed| !armed.off.contains(&safety))
}

/// The bound, or what the directory has for it.
#[must_use]
pub fn shrunk(bound: Bound, real: u64) -> u64 {
    let asked = armed().and_then(|armed| armed.sizes.get(bound.name()).copied());
    asked.unwrap_or(real)
}

fn armed() -> Option<&'static Armed> {
    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
    let open = || {
        let dir = PathBuf::from(std::env::var_os(DIRECTORY_VARIABLE)?);
        if !dir.is_dir() {
            return None;
        }
        Some(Armed::open(dir).unwrap_or_else(|error| panic!("{DIRECTORY_VARIABLE}: {error}")))
    };
    ARMED.get_or_init(open).as_ref()
}

impl Armed {
    fn open(dir: PathBuf) -> io::Result<Self> {
        let off = lines(&dir.join("off"))?;
        let off = off
            .iter()
            .map(|name| Safety::named(name).ok_or_else(|| odd(name)));
        let mut sizes = HashMap::new();
        for line in lines(&dir.join("sizes"))? {
            let (name, value) = line.split_once(' ').ok_or_else(|| odd(&line))?;
            let bound = Bound::named(name).ok_or_else(|| odd(&line))?;
            sizes.insert(bound.name(), value.parse().map_err(|_| odd(&line))?);
        }
        let hits = File::options().create(true).append(true).open(dir.join("hits"))?;
        Ok(Self {
            off: off.collect::<io::Result<_>>()?,
            sizes,
            state: Mutex::new(State {
                hits,
                plan: String::new(),
                counts: HashMap::new(),
            }),
            dir,
        })
    }

    /// What is to happen at this hit. The plan is taken away first: nobody carries it out again.
    fn passed(&self, point: Point) -> Option<Action> {
        let mut state = self.state.lock();
        // A directory that is gone, as at the end of a test, asks for nothing.
        // One write, so that lines of several processes do not mix.
        state
            .hits
            .write_all(format!("{}\n", point.name()).as_bytes())
            .ok()?;
        let path = self.dir.join("plan");
        let plan = fs::read_to_string(&path).ok()?;
        if plan != state.plan {
            state.plan = plan;
            state.counts.clear();
        }
        let count = state.counts.entry(point).or_default();
        *count += 1;
        let count = *count;
        let case =
            Case::parse(&state.plan).unwrap_or_else(|| panic!("a plan that says nothing: {}", state.plan));
        if case.point != point || case.nth != count {
            return None;
        }
        fs::rename(path, self.dir.join("fired")).ok()?;
        Some(case.action)
    }
}

impl Case {
    /// `CASE POINT kill|error|MS NTH`
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace().skip(1);
        let point = Point::named(words.next()?)?;
        let action = match words.next()? {
            "kill" => Action::Kill,
            "error" => Action::Error,
            ms => Action::Delay(Duration::from_millis(ms.parse().ok()?)),
        };
        let nth = words.next()?.parse().ok()?;
        Some(Self { point, action, nth })
    }
}

/// The lines of a file; none where there is no file.
fn lines(path: &Path) -> io::Result<Vec<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn odd(what: &str) -> io::Error {
    io::Error::other(format!("{what:?} is nothing that is there"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_what_they_name_and_no_two_are_the_same() {
        for point in Point::ALL {
            assert_eq!(Point::named(point.name()), Some(*point));
        }
        for safety in Safety::ALL {
            assert_eq!(Safety::named(safety.name()), Some(*safety));
        }
    }

    #[test]
    fn every_point_and_safety_is_in_the_table() {
        let table = include_str!("mod.rs");
        let names = Point::ALL.iter().map(|one| one.name());
        for name in names.chain(Safety::ALL.iter().map(|one| one.name())) {
            assert!(
                table.contains(&format!("`{name}`")),
                "{name} is not in the module's table"
            );
        }
    }

    #[test]
    fn a_plan_is_carried_out_at_its_hit_and_once() {
        let dir = tempfile::tempdir().unwrap();
        let armed = Armed::open(dir.path().to_owned()).unwrap();
        assert_eq!(armed.passed(Point::LogWrite), None);
        fs::write(dir.path().join("plan"), "1 log.write 20 2\n").unwrap();
        assert_eq!(armed.passed(Point::LogWrite), None);
        assert_eq!(armed.passed(Point::LogWritten), None);
        let delay = Action::Delay(Duration::from_millis(20));
        assert_eq!(armed.passed(Point::LogWrite), Some(delay));
        assert_eq!(armed.passed(Point::LogWrite), None);
        assert!(dir.path().join("fired").exists());
        let hits = fs::read_to_string(dir.path().join("hits")).unwrap();
        assert_eq!(hits, "log.write\nlog.write\nlog.written\nlog.write\nlog.write\n");
        fs::write(dir.path().join("plan"), "2 log.write kill 1\n").unwrap();
        assert_eq!(
            armed.passed(Point::LogWrite),
            Some(Action::Kill),
            "counted from the plan on"
        );
    }

    #[test]
    fn what_is_not_there_is_not_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("off"), "verify\n").unwrap();
        fs::write(dir.path().join("sizes"), "segment_bytes 5\n").unwrap();
        let armed = Armed::open(dir.path().to_owned()).unwrap();
        assert_eq!(armed.off, [Safety::Verify]);
        assert_eq!(armed.sizes["segment_bytes"], 5);
        for (file, text) in [("off", "verfy\n"), ("sizes", "segment_bytes many\n")] {
            fs::write(dir.path().join(file), text).unwrap();
            assert!(Armed::open(dir.path().to_owned()).is_err(), "{text}");
        }
        for plan in ["1 log.writ kill 1", "1 log.write die 1", "1 log.write kill", ""] {
            assert_eq!(Case::parse(plan), None, "{plan}");
        }
    }
}
