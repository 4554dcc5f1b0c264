//! Who ran when: the ticks of every guest, read from the runners' own files by somebody else.
//!
//! ```text
//!   NODE/guests/INSTANCE/ticks ── tailed ──▶ stretches: ticks 1..=212 by x on node-a, 213..=940 by y on node-d, …
//! ```
//!
//! Always true of a guest: each tick stands once; none is missing between its first and its last; a later one was written
//! later, by whatever node. The files stay open, so what a node removes is read to its end all the same.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use godwit::lab::monotonic_ns;
use godwit_domain::NodeName;
use serde_json::Value;

/// Nodes are started under clocks that are shifted by multiples of this, so that a shift is known by its size.
pub(crate) const CLOCK_SHIFT_NS: u64 = 1_000_000_000_000;
/// Read in one go.
const PIECE_BYTES: usize = 64 << 10;

/// A runner's ticks without a break.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) first_ns: u64,
    pub(crate) last_ns: u64,
    pub(crate) node: NodeName,
    pub(crate) instance: String,
}

/// Somebody's ticks that must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// Written twice.
    Twice(Stretch, Stretch),
    /// Not written.
    Missing(Stretch, Stretch),
    /// Written before an earlier one.
    Backwards(Stretch, Stretch),
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct TickBook {
    folders: Vec<(NodeName, PathBuf)>,
    runners: BTreeMap<PathBuf, Runner>,
    /// By the guest's number.
    guests: BTreeMap<String, Vec<Stretch>>,
}

#[derive(Debug)]
struct Runner {
    node: NodeName,
    instance: String,
    guest: String,
    file: Option<File>,
    life: Life,
    rest: Vec<u8>,
    /// Its last stretch in the guest's list.
    stretch: Option<usize>,
}

/// A runner, by its socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Begins,
    Lives,
    /// All is read, and nothing more comes.
    Over,
}

impl TickBook {
    /// Reads what the runners of these nodes write: node, its state folder.
    pub(crate) fn new(folders: Vec<(NodeName, PathBuf)>) -> Self {
        Self { folders, ..Self::default() }
    }

    /// Reads what is new. Errors: a file that is none.
    pub(crate) fn look(&mut self) -> Result<(), String> {
        self.find();
        let now = monotonic_ns();
        for (dir, runner) in &mut self.runners {
            runner.read(dir, now, &mut self.guests).map_err(|error| format!("{}: {error}", dir.display()))?;
        }
        Ok(())
    }

    fn find(&mut self) {
        for (node, state) in &self.folders {
            for entry in fs::read_dir(state.join("guests")).into_iter().flatten().flatten() {
                let dir = entry.path();
                if self.runners.contains_key(&dir) {
                    continue;
                }
                // It is written before the runner is started.
                let Some(guest) = guest_of(&dir) else { continue };
                let instance = entry.file_name().to_string_lossy().into_owned();
                let runner = Runner {
                    node: node.clone(),
                    instance,
                    guest,
                    file: None,
                    life: Life::Begins,
                    rest: Vec::new(),
                    stretch: None,
                };
                self.runners.insert(dir, runner);
            }
        }
    }

    /// Ticks that stand more than once, as far as is known by now.
    pub(crate) fn twice(&self) -> Vec<Wrong> {
        self.wrong().into_iter().filter(|wrong| matches!(wrong, Wrong::Twice(..))).collect()
    }

    /// Everything that must not be. Complete only once all is read.
    pub(crate) fn wrong(&self) -> Vec<Wrong> {
        self.guests.values().flat_map(|stretches| wrong_in(stretches)).collect()
    }

    /// Who has ticked last for this guest.
    pub(crate) fn last_of(&self, guest: &str) -> Option<Stretch> {
        self.guests.get(guest)?.iter().max_by_key(|stretch| stretch.last_ns).cloned()
    }

    /// Guests, ticks, and stretches, that is times that somebody else went on.
    pub(crate) fn counts(&self) -> (usize, u64, usize) {
        let all = self.guests.values().flatten();
        let ticks = all.map(|stretch| stretch.last - stretch.first + 1).sum();
        (self.guests.len(), ticks, self.guests.values().map(Vec::len).sum())
    }
}

impl Runner {
    fn read(
        &mut self,
        dir: &Path,
        now: u64,
        guests: &mut BTreeMap<String, Vec<Stretch>>,
    ) -> Result<(), String> {
        if self.life == Life::Over {
            return Ok(());
        }
        let has_socket = dir.join("runner.sock").exists();
        let is_over = self.life == Life::Lives && !has_socket;
        if has_socket {
            self.life = Life::Lives;
        }
        if self.file.is_none() {
            self.file = File::open(dir.join("ticks")).ok();
        }
        self.read_on(now, guests)?;
        if is_over {
            self.life = Life::Over;
            self.file = None;
        }
        Ok(())
    }

    fn read_on(&mut self, now: u64, guests: &mut BTreeMap<String, Vec<Stretch>>) -> Result<(), String> {
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let Some(file) = &mut self.file else { return Ok(()) };
            let read = file.read(&mut piece).map_err(|error| error.to_string())?;
            if read == 0 {
                return Ok(());
            }
            self.rest.extend_from_slice(&piece[..read]);
            let whole = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            let lines: Vec<u8> = self.rest.drain(..whole).collect();
            let lines = String::from_utf8(lines).map_err(|error| error.to_string())?;
            let stretches = guests.entry(self.guest.clone()).or_default();
            for line in lines.lines() {
                let (tick, ns) = parse(line).ok_or_else(|| format!("{line:?} is no tick"))?;
                self.take(tick, on_my_clock(ns, now), stretches);
            }
        }
    }

    fn take(&mut self, tick: u64, ns: u64, stretches: &mut Vec<Stretch>) {
        if let Some(last) = self.stretch.and_then(|at| stretches.get_mut(at))
            && last.last + 1 == tick
        {
            last.last = tick;
            last.last_ns = ns;
            return;
        }
        self.stretch = Some(stretches.len());
        let (node, instance) = (self.node.clone(), self.instance.clone());
        stretches.push(Stretch { first: tick, last: tick, first_ns: ns, last_ns: ns, node, instance });
    }
}

fn wrong_in(stretches: &[Stretch]) -> Vec<Wrong> {
    let mut all: Vec<&Stretch> = stretches.iter().collect();
    all.sort_by_key(|stretch| (stretch.first, stretch.last));
    let judge = |pair: &[&Stretch]| {
        let (before, after) = (pair[0].clone(), pair[1].clone());
        if after.first <= before.last {
            Some(Wrong::Twice(before, after))
        } else if after.first > before.last + 1 {
            Some(Wrong::Missing(before, after))
        } else if after.first_ns < before.last_ns {
            Some(Wrong::Backwards(before, after))
        } else {
            None
        }
    };
    all.windows(2).filter_map(judge).collect()
}

/// A tick as this process's clock would have it: it is read within seconds of being written.
fn on_my_clock(ns: u64, now: u64) -> u64 {
    let shift = (ns + CLOCK_SHIFT_NS / 2).saturating_sub(now) / CLOCK_SHIFT_NS * CLOCK_SHIFT_NS;
    ns - shift.min(ns)
}

fn parse(line: &str) -> Option<(u64, u64)> {
    let mut fields = line.split(' ');
    let tick = fields.next()?.parse().ok()?;
    let ns = fields.nth(1)?.parse().ok()?;
    Some((tick, ns))
}

fn guest_of(dir: &Path) -> Option<String> {
    let about: Value = serde_json::from_slice(&fs::read(dir.join("about.json")).ok()?).ok()?;
    about.get("uid").map(Value::to_string)
}

pub(crate) mod tests {
    use std::io::Write;

    use super::*;
    use crate::support::Outcome;

    struct Written {
        folder: tempfile::TempDir,
    }

    impl Written {
        fn new() -> Self {
            Self { folder: tempfile::tempdir().expect("a folder") }
        }

        fn add(&self, node: &str, instance: &str, ticks: impl IntoIterator<Item = (u64, u64)>) {
            let dir = self.folder.path().join(node).join("guests").join(instance);
            fs::create_dir_all(&dir).expect("made");
            fs::write(dir.join("about.json"), r#"{"uid":7,"made":1,"arriving":null}"#).expect("written");
            let file = File::options().create(true).append(true).open(dir.join("ticks"));
            let mut file = file.expect("opened");
            for (tick, ns) in ticks {
                writeln!(file, "{tick} {node} {ns}").expect("written");
            }
        }

        fn book(&self) -> TickBook {
            let folder = |name: &str| (name.parse().expect("a name"), self.folder.path().join(name));
            TickBook::new(vec![folder("a"), folder("b")])
        }
    }

    /// Two runners that wrote the same tick, a tick that nobody wrote, and one that was written before an earlier one.
    pub(crate) async fn what_must_not_be_is_seen() -> Outcome {
        let now = monotonic_ns();
        let at = |tick: u64| (tick, now + tick * 20_000_000);
        let written = Written::new();
        written.add("a", "x", (1..=50).map(at));
        let mut book = written.book();
        book.look()?;
        written.add("a", "x", (51..=100).map(at));
        written.add("b", "y", (101..=200).map(at).map(|(tick, ns)| (tick, ns + CLOCK_SHIFT_NS)));
        book.look()?;
        assert_eq!(book.wrong(), []);
        assert_eq!(book.counts(), (1, 200, 2));
        // The one on a has run on.
        written.add("a", "x", (101..=103).map(at));
        book.look()?;
        assert!(matches!(book.twice()[..], [Wrong::Twice(..)]), "{:?}", book.wrong());
        let gap = Written::new();
        gap.add("a", "x", [at(1), at(2)]);
        gap.add("b", "y", [at(4)]);
        let mut book = gap.book();
        book.look()?;
        assert!(matches!(book.wrong()[..], [Wrong::Missing(..)]), "{:?}", book.wrong());
        let back = Written::new();
        back.add("a", "x", [at(10), (11, now)]);
        back.add("b", "y", [(12, now - 1)]);
        let mut book = back.book();
        book.look()?;
        assert!(matches!(book.wrong()[..], [Wrong::Backwards(..)]), "{:?}", book.wrong());
        Ok(())
    }
}
