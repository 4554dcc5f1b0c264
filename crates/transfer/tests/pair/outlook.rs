//! What a source says of its copy while it runs: told right after the first round, and told otherwise when that changes.
//!
//! ```text
//!   SourceSession ─ Action ─▶ a guest that writes 80 MiB/s all over 12 of its 16 MiB; a link that a test makes faster
//! ```

use std::collections::VecDeque;
use std::time::Duration;

use godwit_domain::precopy::{Confidence, Did, Fits, Limits};
use godwit_domain::{Epoch, InstanceId, PAGE_BYTES, PageCount, PageRun};
use godwit_memory::PageSet;
use godwit_transfer::source::{Action, Room, Setup, SourceSession};
use godwit_wire::migration::{Mode, SessionId, TargetFrame};

const MIB: u64 = 1 << 20;
const PAGES: PageCount = PageCount(4096);
const SET_PAGES: u64 = 3072;
const WRITES: u64 = 80 * MIB;

struct Scene {
    session: SourceSession,
    now: Duration,
    link: u64,
    /// Pages of each batch that is under way, and what has arrived: batches and pages.
    under_way: VecDeque<u32>,
    arrived: (u64, u64),
    scanned: Duration,
    rounds: u32,
}

impl Scene {
    fn new(link: u64) -> Self {
        let setup = Setup {
            migration: "m1".parse().expect("a name"),
            instance: InstanceId::from_random([1; 16]),
            epoch: Epoch::FIRST,
            session: SessionId(1),
            pages: PAGES,
            limits: Limits {
                completion_timeout: None,
                progress_timeout: None,
                ..Limits::defaults_for(PAGES.bytes())
            },
            commit_estimate: Duration::from_millis(1),
            mode: Mode::StopAndCopy,
            at_once: false,
            audit: false,
        };
        let now = Duration::ZERO;
        let mut session = SourceSession::new(now, setup);
        session.frame(now, TargetFrame::Welcome { held: false }).expect("in turn");
        Self { session, now, link, under_way: VecDeque::new(), arrived: (0, 0), scanned: now, rounds: 0 }
    }

    /// One thing is done, or time passes. What was done.
    fn step(&mut self) -> Option<Action> {
        self.session.quorum_answered(self.now);
        let room = Room { batch: self.under_way.len() < 2, fetched: true };
        let Some(action) = self.session.poll(self.now, room) else {
            if !self.arrives() {
                self.now = self.session.wake_at(self.now).max(self.now + Duration::from_millis(1));
            }
            return None;
        };
        match &action {
            Action::Batch(plan) => {
                self.under_way.push_back(plan.pages().0);
            }
            Action::Scan => {
                let written_us = u64::try_from((self.now - self.scanned).as_micros()).expect("short");
                let pages = (written_us * (WRITES / PAGE_BYTES) / 1_000_000).min(SET_PAGES);
                let mut written = PageSet::empty(PAGES);
                written.insert_run(PageRun::new(0, u32::try_from(pages).expect("few")));
                self.scanned = self.now;
                self.session.scanned(self.now, &written);
            }
            Action::Send(_) => self.rounds += 1,
            _ => {}
        }
        Some(action)
    }

    /// The oldest batch that is under way arrives, if there is one.
    fn arrives(&mut self) -> bool {
        let Some(pages) = self.under_way.pop_front() else { return false };
        self.now += Duration::from_secs_f64(PageCount(pages).bytes() as f64 / self.link as f64);
        self.arrived = (self.arrived.0 + 1, self.arrived.1 + u64::from(pages));
        let ack = TargetFrame::Ack { batches: self.arrived.0, pages: self.arrived.1 };
        self.session.frame(self.now, ack).expect("in turn");
        true
    }

    fn until(&mut self, what: &str, is: impl Fn(&Self, Option<Action>) -> bool) {
        for _ in 0..100_000 {
            let done = self.step();
            if is(self, done) {
                return;
            }
        }
        panic!("in vain until {what}: {:?}", self.session.snapshot(self.now));
    }
}

#[test]
fn after_round_one_it_is_said_that_it_will_not_fit_and_what_it_needs() {
    let mut scene = Scene::new(20 * MIB);
    assert_eq!(scene.session.prediction(), None, "nothing is known yet");
    scene.until("the second round begins", |scene, _| scene.rounds == 2);
    let said = scene.session.prediction().expect("something is expected");
    assert_eq!((said.fits, said.confidence), (Fits::No, Confidence::Firm), "{said:?}");
    let needed = said.needed_bandwidth;
    assert!(needed > 35 * MIB && needed < 110 * MIB, "12 MiB in 294 ms are 41 MiB/s: {said:?}");
    assert!(said.left_bytes > 10 * MIB && said.left_bytes <= 16 * MIB, "{said:?}");
    assert!(scene.session.convergence_is_impossible(), "it writes four times as fast as is sent");
    let forecast = scene.session.forecast().expect("said after round one");
    assert_eq!(forecast.prediction, said);
    assert_eq!(scene.session.snapshot(scene.now).prediction, Some(said));
    // The link gets faster than it needs: it says so, and it comes true.
    scene.link = needed * 2;
    scene.until("it is expected to fit, or does", |scene, action| {
        let fits = scene.session.prediction().is_some_and(|said| matches!(said.fits, Fits::Yes { .. }));
        fits || matches!(action, Some(Action::Pause(_)))
    });
    assert!(!scene.session.convergence_is_impossible());
    if !scene.session.snapshot(scene.now).switching_over {
        scene.until("it is stopped", |_, action| matches!(action, Some(Action::Pause(_))));
    }
    assert_eq!(scene.session.prediction(), None, "it is decided");
    assert_eq!(scene.session.forecast(), Some(forecast), "what was said stays said");
    let did: Vec<Did> = scene.session.steps().iter().map(|step| step.did).collect();
    assert_eq!(did, [Did::GoOn, Did::SwitchOver]);
}

#[test]
fn a_copy_that_will_fit_says_so_and_when() {
    let mut scene = Scene::new(60 * MIB);
    scene.until("it is expected to fit", |scene, _| scene.session.prediction().is_some());
    let said = scene.session.prediction().expect("something is expected");
    let Fits::Yes { in_ms, .. } = said.fits else { panic!("{said:?}") };
    let from = scene.now;
    scene.until("it is stopped", |_, action| matches!(action, Some(Action::Pause(_))));
    let took_ms = u64::try_from((scene.now - from).as_millis()).expect("short");
    assert!(took_ms.abs_diff(in_ms) <= 400, "{in_ms} ms were said, {took_ms} it took");
    assert!(!scene.session.convergence_is_impossible());
}
