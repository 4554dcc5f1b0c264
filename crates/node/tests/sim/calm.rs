//! A history's course: trouble, in some a lull, trouble, and calm in the end, in which everything ends.
//!
//! Always true: in calm, everything that was broken is mended, people let what waits go on, and within a bounded time
//! every migration is over, no permit is held, every guest that lives runs in one copy, and nothing else is left.

use godwit_domain::agent::RunnerState;
use godwit_domain::ownership::{Life, Permits};

use crate::world::{World, ms};

/// How long a calm world may take: the longest time-outs of a leader and of a migration that waits, and some more.
const CALM_US: u64 = ms(150_000);

impl World {
    /// The whole history.
    pub(crate) fn run(&mut self) {
        let first = self.random.u64(ms(5000)..ms(9000));
        self.run_until(first);
        if self.random.u32(0..4) == 0 {
            self.calm_down();
            self.calm = false;
        }
        let second = self.now + self.random.u64(ms(4000)..ms(8000));
        self.run_until(second);
        self.calm_down();
        self.count();
    }

    fn calm_down(&mut self) {
        self.calm = true;
        self.note(|_| "calm".to_owned());
        self.links.calm();
        for at in 0..self.machines.len() {
            self.machines[at].asleep_until = 0;
            if let Some(voter) = self.voter(at) {
                voter.disk.calm();
            }
            self.boot(at);
        }
        let end = self.now + CALM_US;
        let mut look_at = self.now;
        let mut why = String::new();
        loop {
            self.step();
            if self.now >= look_at {
                look_at = self.now + ms(200);
                match self.unsettled() {
                    None => break,
                    Some(still) => why = still,
                }
            }
            assert!(self.now < end, "L1, L2: after {} s of calm {why}", CALM_US / 1_000_000);
        }
        self.note(|world| format!("settled after {} ms", (world.now + CALM_US - end) / 1000));
    }

    /// What has not ended yet.
    fn unsettled(&self) -> Option<String> {
        let truth = &self.law.truth;
        if self.leader().is_none() {
            return Some("nobody leads".to_owned());
        }
        for (at, machine) in self.machines.iter().enumerate() {
            let name = &machine.name;
            if self.is_torn(at) {
                continue;
            }
            if !machine.runs {
                return Some(format!("{name} does not run"));
            }
            if machine.voter.is_some() && self.law.applied(at).is_none_or(|applied| applied < self.law.top) {
                return Some(format!("{name} has applied {:?} of {}", self.law.applied(at), self.law.top));
            }
            let Some(agent) = &machine.agent else { continue };
            if agent.session.is_none() || !agent.complete {
                return Some(format!("{name} has no session"));
            }
            if !agent.transfers.is_empty() || !agent.pending.is_empty() {
                return Some(format!("{name} is at {:?} and owes {:?}", agent.transfers, agent.pending));
            }
            if agent.fenced.is_some() {
                return Some(format!("{name} is fenced"));
            }
        }
        if self.operator.open.values().any(|it| !matches!(it.act, crate::operator::Act::Look)) {
            return Some(format!("requests are not answered: {:?}", self.operator.open));
        }
        if let Some(unsettled) = self.seats_unsettled() {
            return Some(unsettled);
        }
        truth.guests.keys().find_map(|uid| self.guest_unsettled(*uid))
    }

    fn guest_unsettled(&self, uid: godwit_domain::registry::GuestUid) -> Option<String> {
        let guest = self.law.truth.guests.get(&uid)?;
        let ownership = &guest.ownership;
        let about = |what: &str| Some(format!("guest {uid} {what}: {ownership:?}"));
        let over =
            ownership.attempt.as_ref().is_none_or(|it| it.phase.is_over() && it.permits == Permits::None);
        if !over {
            return about("has a migration that is not over");
        }
        let of_guest = self.machines.iter().enumerate().flat_map(|(at, machine)| {
            let runners = machine.host.runners.iter();
            runners.filter(|(_, process)| process.uid == uid).map(move |(instance, it)| (at, *instance, it))
        });
        let copies: Vec<_> =
            of_guest.filter(|(at, ..)| !self.is_torn(*at) || self.machines[*at].runs).collect();
        match &ownership.life {
            Life::Alive(owner) => {
                if let Some(at) = self.at_of(&owner.node).filter(|at| self.is_torn(*at)) {
                    // Its host's process does not start: nobody is asked.
                    return (at > self.machines.len()).then(String::new);
                }
                let [(_, instance, process)] = copies.as_slice() else {
                    return about(&format!("has {} copies", copies.len()));
                };
                let runs = matches!(process.state, RunnerState::Running(epoch) if epoch == ownership.epoch);
                (*instance != owner.instance || !runs)
                    .then(|| format!("guest {uid} does not run: {process:?}"))
            }
            Life::Purged => {
                (!copies.is_empty()).then(|| format!("guest {uid} is purged and {copies:?} are left"))
            }
            Life::Creating(_) | Life::Deleting(_) | Life::Lost { .. } | Life::Unsure(_) => {
                about("is on its way")
            }
        }
    }

    fn count(&mut self) {
        self.cover.histories = 1;
        self.cover.events = vec![self.events];
        self.cover.with_inside = u64::from(self.cover.inside > 0);
        self.cover.terms = self.law.terms();
        for guest in self.law.truth.guests.values() {
            *self.cover.ends.entry(guest.ownership.life.name()).or_default() += 1;
        }
    }
}
