//! The links between machines: they lose, double, delay, and are cut for a while, in one direction or both.

use std::collections::BTreeMap;

use fastrand::Rng;

use crate::world::{At, World, ms};

#[derive(Debug, Default)]
pub(crate) struct Links {
    /// Until when a link carries nothing.
    cut: BTreeMap<(At, At), u64>,
    /// Until when what goes over it is held up, and for how long at most.
    slow: BTreeMap<(At, At), (u64, u64)>,
}

impl Links {
    pub(crate) fn cut(&mut self, from: At, to: At, until: u64) {
        self.cut.insert((from, to), until);
    }

    pub(crate) fn slow(&mut self, from: At, to: At, until: u64, most_us: u64) {
        self.slow.insert((from, to), (until, most_us));
    }

    pub(crate) fn is_cut(&self, from: At, to: At, now: u64) -> bool {
        self.cut.get(&(from, to)).is_some_and(|until| *until > now)
    }

    pub(crate) fn calm(&mut self) {
        self.cut.clear();
        self.slow.clear();
    }

    fn delay(&self, random: &mut Rng, from: At, to: At, now: u64) -> u64 {
        let usual = if from == to { 20 } else { random.u64(100..3000) };
        match self.slow.get(&(from, to)) {
            Some((until, most)) if *until > now => usual + random.u64(0..*most),
            _ => usual,
        }
    }
}

impl World {
    /// How long a message takes; none: it is lost.
    pub(crate) fn carry(&mut self, from: At, to: At) -> Option<u64> {
        let lost = self.links.is_cut(from, to, self.now) || self.rarely(from, to, 3);
        (!lost).then(|| self.transit(from, to))
    }

    /// How long it takes on a link that repeats what is lost.
    pub(crate) fn transit(&mut self, from: At, to: At) -> u64 {
        let mut us = self.links.delay(&mut self.random, from, to, self.now);
        if self.rarely(from, to, 2) {
            us += self.random.u64(ms(20)..ms(700));
        }
        us
    }

    /// Now and then, in percent, between two machines, while things go wrong.
    pub(crate) fn rarely(&mut self, from: At, to: At, percent: u32) -> bool {
        !self.calm && from != to && self.random.u32(0..100) < percent
    }

    pub(crate) fn is_linked(&self, a: At, b: At) -> bool {
        !self.links.is_cut(a, b, self.now) && !self.links.is_cut(b, a, self.now)
    }
}
