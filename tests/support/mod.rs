//! Stories of real processes: what each is given, and what is made of its end.
//!
//! ```text
//!   stories![a_fact, …] ─▶ Trial ─▶ runtime, Place (folder, mark, sweeper), World (cluster) ─▶ the story
//!                                       └─ logs read, logs of a failure kept, processes ended, folder removed
//! ```
//!
//! Always true: a story ends what it began, also when it panics or the whole test process is killed; a log line of
//! WARN or ERROR that the story did not announce fails it; a failure shows the ends of all logs.

pub(crate) mod network;
pub(crate) mod peer;
pub(crate) mod place;
pub(crate) mod program;
pub(crate) mod puppet;
pub(crate) mod witness;
pub(crate) mod world;

use std::any::Any;
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use godwit_transfer::drive::chain;
use libtest_mimic::{Failed, Trial};
use tokio::runtime::{Builder, Runtime};

use place::Place;
use world::World;

/// How a story ends.
pub(crate) type Outcome = Result<(), Box<dyn Error>>;

/// No wait here takes longer unless something is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// How often a level is looked at that nobody reports.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// Trials named after the functions that tell them.
macro_rules! stories {
    ($($story:ident),+ $(,)?) => {
        vec![$($crate::support::story(stringify!($story), $story)),+]
    };
}
pub(crate) use stories;

/// A story of a cluster.
pub(crate) fn story<F>(name: &str, tell: F) -> Trial
where
    F: AsyncFnOnce(&mut World) -> Outcome + Send + 'static,
{
    let title = name.to_owned();
    Trial::test(name, move || {
        let runtime = runtime()?;
        let place = Place::new().map_err(|error| fail(&*error))?;
        let whole_story = async {
            let mut world = World::new(&place)?;
            tell(&mut world).await?;
            world.close().await
        };
        let told = catch_unwind(AssertUnwindSafe(|| runtime.block_on(whole_story)));
        let outcome = told.unwrap_or_else(|panic| Err(words(&*panic).into()));
        outcome.map_err(|error| format!("{}\n{}", chain(&*error), place.last_words(&title)).into())
    })
}

/// A story without a cluster of its own.
pub(crate) fn short_story<F>(name: &str, tell: F) -> Trial
where
    F: AsyncFnOnce() -> Outcome + Send + 'static,
{
    Trial::test(name, move || runtime()?.block_on(tell()).map_err(|error| fail(&*error)))
}

/// A story that can be told only where nothing is missing.
pub(crate) fn unless(missing: Option<&str>, story: Trial) -> Trial {
    match missing {
        Some(reason) => story.with_kind(reason).with_ignored_flag(true),
        None => story,
    }
}

/// Waits for a level that nobody reports, with a deadline.
pub(crate) async fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < deadline, "waited {limit:?} in vain until {what}");
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

fn runtime() -> Result<Runtime, Failed> {
    Ok(Builder::new_current_thread().enable_all().build()?)
}

fn fail(error: &(dyn Error + 'static)) -> Failed {
    chain(error).into()
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panicked without a word").to_owned()
}
