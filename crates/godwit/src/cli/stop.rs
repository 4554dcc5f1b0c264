//! A virtual machine that is to go is asked to shut itself down first, as by its power button: by `godwit guest stop`,
//! `godwit delete`, and `godwit apply` and `godwit edit` of one that is not to run.
//!
//! ```text
//!   virtual machine that runs ─▶ power button ─▶ has it ended? ─ yes, or the grace is over ─▶ it goes
//!   --now, another guest, one that does not run ──────────────────────────────────────────▶ it goes
//! ```
//!
//! Always true: where the button could not be pressed nothing is stopped, unless `--now` says so.

use std::time::{Duration, Instant};

use clap::Args;
use godwit_admin::render;
use godwit_domain::GuestName;
use godwit_wire::admin::{Act, Code, GuestDetail, Problem};
use godwit_wire::manifest::{self, Manifest};
use serde_json::Value;

use super::asking::{Asking, Changing};
use super::failure::Failure;
use super::guest::Named;
use super::talk;

/// How often it is looked whether the guest has ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// Longest grace.
const GRACE_MAX: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Args)]
pub(super) struct GuestStop {
    #[command(flatten)]
    named: Named,
    #[command(flatten)]
    gently: Gently,
    #[command(flatten)]
    changing: Changing,
}

/// How much time a virtual machine has.
#[derive(Debug, Args)]
pub(super) struct Gently {
    /// How long a virtual machine may take to shut itself down after its power button was pressed: 90s, 5m, at most 24h
    #[arg(long, value_name = "TIME", value_parser = grace, default_value = "60s")]
    grace: Duration,
    /// Pull the plug: what the guest has not written to its disks is lost
    #[arg(long, conflicts_with = "grace")]
    now: bool,
}

/// Seconds, or a number of s, m or h.
fn grace(text: &str) -> Result<Duration, String> {
    let (number, seconds) = match text.split_at_checked(text.len().saturating_sub(1)) {
        Some((number, "s")) => (number, 1),
        Some((number, "m")) => (number, 60),
        Some((number, "h")) => (number, 3600),
        Some(_) | None => (text, 1),
    };
    let number: Option<u64> = number.parse().ok();
    let time = number.and_then(|number| number.checked_mul(seconds)).map(Duration::from_secs);
    time.filter(|time| *time <= GRACE_MAX)
        .ok_or_else(|| format!("{text:?} is no time such as 90s or 5m, at most 24h"))
}

impl GuestStop {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Self { named, gently, changing } = self;
        let guest = named.name()?;
        let asking = &changing.asking;
        let how = gently.shut_down(asking, &guest, || true).map_err(|problem| asking.refuse(problem))?;
        let how = how.map_or_else(String::new, |how| format!(": {how}"));
        let what = format!("{guest} is stopped{how}");
        changing.show(Act::GuestStop { guest }, |done| render::done(&what, done))
    }
}

impl Gently {
    /// Has a virtual machine shut itself down, if it runs and what is to follow is granted. What is to be said of how it ended.
    pub(super) fn shut_down(
        &self,
        asking: &Asking,
        guest: &GuestName,
        is_granted: impl FnOnce() -> bool,
    ) -> Result<Option<String>, Problem> {
        if self.now || !has_a_button(asking, guest)? || !is_granted() {
            return Ok(None);
        }
        press(asking, guest)?;
        talk(&format!("the power button of {guest} is pressed; it has {} s", self.grace.as_secs()));
        Ok(how_it_ended(asking, guest, self.grace))
    }
}

/// The virtual machine that stops once this object is applied: it says that it is not to run.
pub(super) fn stopped_by(object: &Value, namespace: Option<&str>) -> Option<GuestName> {
    match manifest::read_in(object, namespace.unwrap_or(manifest::DEFAULT_NAMESPACE)) {
        Ok((Manifest::Machine { name, machine }, _)) if !machine.runs => Some(name),
        Ok(_) | Err(_) => None,
    }
}

/// The guest, if there is one.
fn look(asking: &Asking, guest: &GuestName) -> Result<Option<GuestDetail>, Problem> {
    match asking.try_ask(None, Act::GuestShow { guest: guest.clone() }) {
        Ok(answer) => match godwit_admin::client::read_as(answer) {
            Ok(detail) => Ok(Some(detail)),
            Err(error) => Err(error.problem()),
        },
        Err(problem) if problem.code == Code::NotFound => Ok(None),
        Err(problem) => Err(problem),
    }
}

/// Whether it may run, as a virtual machine. One that is not there may have been stopped by this very request before.
fn has_a_button(asking: &Asking, guest: &GuestName) -> Result<bool, Problem> {
    let found = look(asking, guest)?;
    Ok(found.is_some_and(|detail| detail.spec.qemu.is_some() && may_run(&detail)))
}

fn may_run(detail: &GuestDetail) -> bool {
    // Whoever is not sure where it runs is not sure that it does not.
    matches!(detail.row.state.as_str(), "running" | "migrating" | "unreachable" | "unsure" | "disputed")
}

fn press(asking: &Asking, guest: &GuestName) -> Result<(), Problem> {
    let pressed = asking.try_ask(None, Act::GuestPowerButton { guest: guest.clone() });
    pressed.map(|_| ()).map_err(|problem| {
        let try_ = "again in a moment; or pull its plug: the same command with --now".to_owned();
        let message = format!(
            "the power button of {guest} was not pressed, and it is not stopped: {}",
            problem.message
        );
        Problem { message, try_, ..problem }
    })
}

/// Waits for the guest's end. What is to be said of it.
fn how_it_ended(asking: &Asking, guest: &GuestName, grace: Duration) -> Option<String> {
    let deadline = Instant::now() + grace;
    loop {
        match look(asking, guest) {
            Ok(None) => return None,
            Ok(Some(detail)) if !may_run(&detail) => return detail.ended,
            // An election passes; if not, what follows says so.
            Ok(Some(_)) | Err(_) if Instant::now() < deadline => std::thread::sleep(LOOK_INTERVAL),
            Ok(Some(_)) | Err(_) => {
                return Some(format!("it had not shut itself down within {} s", grace.as_secs()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grace_has_a_unit_and_a_bound() {
        for (text, seconds) in [("60s", 60), ("90", 90), ("5m", 300), ("24h", 86_400), ("0", 0)] {
            assert_eq!(grace(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "s", "-1", "25h", "1d", "1.5m", "60 s", "99999999999999999999h", "ä"] {
            assert!(grace(bad).is_err(), "{bad:?}");
        }
    }
}
