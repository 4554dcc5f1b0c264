//! Waiting migrations in the order in which they go: class, aged; then asking.
//!
//! ```text
//!   low ─────┐
//!   normal ──┼─▶ the head of the highest class, aged ─▶ … A group that is taken in later finds its place among them.
//!   high ────┤
//!   drain ───┘
//! ```
//!
//! Always true: it is a function of the waiters and of replicated time.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BinaryHeap};

use super::waiters::{Needs, Place};
use super::{GuestUid, Registry};
use crate::settings::Priority;

/// After waiting so long, in replicated milliseconds, a migration is in the next higher class: 10 minutes.
const CLASS_AGE_MS: u64 = 600_000;

/// Sequences of one class each, merged. Within a class who was asked for earlier has aged at least as much, so heads suffice.
pub(super) struct InOrder<'a> {
    registry: &'a Registry,
    heads: BinaryHeap<Head<'a>>,
}

struct Head<'a> {
    aged: Priority,
    place: Place,
    class: Priority,
    needs: Option<&'a Needs>,
    rest: Rest<'a>,
}

/// Places, and of the first of a group what it asks.
type Rest<'a> = Box<dyn Iterator<Item = (&'a Place, Option<&'a Needs>)> + 'a>;

impl<'a> InOrder<'a> {
    pub(super) fn new(registry: &'a Registry) -> Self {
        Self { registry, heads: BinaryHeap::new() }
    }

    /// Takes in those of one class, in the order of asking.
    pub(super) fn push(&mut self, class: Priority, places: impl Iterator<Item = &'a Place> + 'a) {
        self.push_rest(class, Box::new(places.map(|place| (place, None))));
    }

    /// Takes in the first of each group of one class.
    pub(super) fn push_firsts(&mut self, class: Priority, firsts: &'a BTreeMap<Place, Needs>) {
        self.push_rest(class, Box::new(firsts.iter().map(|(place, needs)| (place, Some(needs)))));
    }

    /// Takes in those of a group behind its first.
    pub(super) fn push_group(&mut self, class: Priority, needs: &Needs) {
        let registry = self.registry;
        if let Some(heads) = registry.index.waiters.heads(&(class, needs.clone())) {
            self.push(class, heads.iter().skip(1));
        }
    }

    fn push_rest(&mut self, class: Priority, mut rest: Rest<'a>) {
        if let Some((place, needs)) = rest.next() {
            let aged = self.registry.aged(class, place.1);
            self.heads.push(Head { aged, place: *place, class, needs, rest });
        }
    }

    /// The next, with its class and, if it is the first of a group, what that asks.
    pub(super) fn pop(&mut self) -> Option<(Priority, GuestUid, Option<&'a Needs>)> {
        let Head { place, class, needs, rest, .. } = self.heads.pop()?;
        self.push_rest(class, rest);
        Some((class, place.1, needs))
    }
}

impl Ord for Head<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.aged, Reverse(self.place)).cmp(&(other.aged, Reverse(other.place)))
    }
}

impl PartialOrd for Head<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Head<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Head<'_> {}

impl Registry {
    fn aged(&self, class: Priority, uid: GuestUid) -> Priority {
        let asked_ms =
            self.guests.get(&uid).and_then(|guest| guest.record.as_ref()).map_or(0, |r| r.asked_ms());
        let steps = self.time_ms.saturating_sub(asked_ms) / CLASS_AGE_MS;
        match (class, steps) {
            (Priority::Drain, _) => Priority::Drain,
            (Priority::Low, 1) => Priority::Normal,
            (class, 0) => class,
            (Priority::Low | Priority::Normal | Priority::High, _) => Priority::High,
        }
    }
}
