//! Histories, many at once: run, caught when a law is broken, run again with a log.
//!
//! Always true: of several that fail at once the one with the lowest seed is told.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::time::Instant;

use godwit_domain::planted;

use crate::cover::Cover;
use crate::world::World;

/// One that has run.
pub(crate) struct History {
    pub(crate) log: String,
    pub(crate) cover: Cover,
    /// The law that was broken.
    pub(crate) why: Option<String>,
}

std::thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// A panic inside a history is told once, with its seed.
fn hush() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let tell = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if QUIET.with(Cell::get) {
                let place = panic.location().map(ToString::to_string).unwrap_or_default();
                PLACE.with(|at| at.replace(place));
            } else {
                tell(panic);
            }
        }));
    });
}

std::thread_local! {
    static PLACE: std::cell::RefCell<String> = const { std::cell::RefCell::new(String::new()) };
}

pub(crate) fn run(seed: u64, traced: bool) -> History {
    hush();
    QUIET.with(|quiet| quiet.set(true));
    let mut world = None;
    let outcome = catch_unwind(AssertUnwindSafe(|| world.insert(World::new(seed, traced)).run()));
    QUIET.with(|quiet| quiet.set(false));
    let why = outcome.err().map(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let place = PLACE.with(std::cell::RefCell::take);
        format!("{} ({place})", text.unwrap_or_else(|| "a panic without words".to_owned()))
    });
    let (log, cover) = world.map(|mut world| (world.trace.take(), world.cover)).unwrap_or_default();
    History { log, cover, why }
}

/// A history in which a law was broken.
pub(crate) struct Failed {
    pub(crate) seed: u64,
    pub(crate) why: String,
    log: String,
}

impl Failed {
    /// Leaves its log, and says how to see it again.
    pub(crate) fn keep(&self) -> String {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let path = folder.join(format!("sim-{}.log", self.seed));
        let kept = match std::fs::write(&path, &self.log) {
            Ok(()) => format!("its log: {}", path.display()),
            Err(error) => format!("its log could not be written: {error}"),
        };
        format!("{}\n{kept}\nreplay: cargo xtask sim {}", self.why, self.seed)
    }
}

/// Histories from a seed on, until one fails.
pub(crate) struct Search {
    pub(crate) first: u64,
    pub(crate) count: u64,
    pub(crate) until: Option<Instant>,
    pub(crate) bug: Option<&'static str>,
}

impl Search {
    /// What was met, and the first that failed.
    pub(crate) fn go(&self) -> (Cover, Option<Failed>) {
        let next = AtomicU64::new(0);
        let lowest = AtomicU64::new(u64::MAX);
        let all = Mutex::new((Cover::default(), None::<(u64, String)>));
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| self.work(&next, &lowest, &all));
            }
        });
        let (cover, failed) = all.into_inner().unwrap_or_else(PoisonError::into_inner);
        (cover, failed.map(|(seed, why)| self.again(seed, why)))
    }

    fn work(&self, next: &AtomicU64, lowest: &AtomicU64, all: &Mutex<(Cover, Option<(u64, String)>)>) {
        planted::plant(self.bug);
        let logged = std::env::var_os("SIM_LOG").is_some();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let late = self.until.is_some_and(|until| until <= Instant::now());
            if number >= self.count || number > lowest.load(Ordering::Relaxed) || late {
                break;
            }
            let seed = self.first + number;
            let History { log, cover, why } = run(seed, logged);
            if logged {
                println!("{log}");
            }
            let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
            match why {
                None => all.0.add(cover),
                Some(why) => {
                    lowest.fetch_min(number, Ordering::Relaxed);
                    if all.1.as_ref().is_none_or(|(known, _)| seed < *known) {
                        all.1 = Some((seed, why));
                    }
                }
            }
        }
        planted::plant(None);
    }

    /// Once more, with a log, which must come to the same.
    fn again(&self, seed: u64, why: String) -> Failed {
        planted::plant(self.bug);
        let History { log, why: again, .. } = run(seed, true);
        planted::plant(None);
        let without = self.bug.and_then(|_| run(seed, false).why);
        assert!(without.is_none(), "seed {seed} fails without a planted bug: {without:?}");
        let why = match again {
            Some(again) if again == why => format!("seed {seed}: {why}"),
            other => format!("seed {seed}: {why}; and run again it came to {other:?}"),
        };
        Failed { seed, why, log }
    }
}
