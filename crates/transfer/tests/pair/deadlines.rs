//! A source whose guest does not converge, with a clock that a test moves: what it does at the deadline, and at what price.
//!
//! ```text
//!   Scene: SourceSession ─ Action ─▶ a guest that writes a lot, a link of 100 MiB/s, a log that agrees when told to
//! ```

mod postcopy;
mod throttled;

use std::collections::VecDeque;
use std::time::Duration;

use godwit_domain::ownership::{Entry, Mode as EntryMode, Ownership, Side};
use godwit_domain::precopy::{Allowed, Limits};
use godwit_domain::progress::Course;
use godwit_domain::{Epoch, InstanceId, MigrationId, PageCount, PageRun};
use godwit_memory::PageSet;
use godwit_transfer::source::{Action, Room, Setup, SourceSession};
use godwit_wire::migration::{Mode, SessionId, SourceFrame, TargetFrame};

/// Batches that the link holds.
const UNDER_WAY_MAX: usize = 3;
/// 16 MiB, which takes 160 ms at 100 MiB/s.
const PAGES: PageCount = PageCount(4096);
/// What the guest has written whenever it is looked at: 80 ms more, and 10 ms are allowed.
const HOT_PAGES: u32 = 2048;
const PAGE_TIME: Duration = Duration::from_nanos(1_000_000_000 / 25_600);
const DOWNTIME_MAX: Duration = Duration::from_millis(10);
const DEADLINE: Duration = Duration::from_millis(1000);

const NOTHING: Allowed = Allowed { post_copy: false, post_copy_early: false, throttle: false, pause: false };
const PAUSE: Allowed = Allowed { pause: true, ..NOTHING };
const POST_COPY: Allowed = Allowed { post_copy: true, ..PAUSE };
const THROTTLE: Allowed = Allowed { throttle: true, ..NOTHING };

fn at(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn limits(allowed: Allowed, deadline: Option<Duration>) -> Limits {
    Limits { downtime_max: DOWNTIME_MAX, completion_timeout: deadline, progress_timeout: None, allowed }
}

struct Scene {
    session: SourceSession,
    now: Duration,
    log: Ownership,
    migration: MigrationId,
    quorum: bool,
    /// Whether what is sent arrives.
    link_carries: bool,
    /// Pages of each batch that is under way, and what has arrived: batches and pages.
    under_way: VecDeque<u32>,
    arrived: (u64, u64),
    seen: Vec<Action>,
}

impl Scene {
    fn new(allowed: Allowed) -> Self {
        Self::with(limits(allowed, Some(DEADLINE)))
    }

    /// Post-copy was asked for.
    fn at_once(allowed: Allowed) -> Self {
        Self::begun(limits(allowed, None), true)
    }

    fn with(limits: Limits) -> Self {
        Self::begun(limits, false)
    }

    fn begun(limits: Limits, at_once: bool) -> Self {
        let (migration, epoch) = ("m1".parse::<MigrationId>().expect("a name"), Epoch::FIRST);
        let [source, target] = [1, 2].map(|n| InstanceId::from_random([n; 16]));
        let mut log = Ownership::new("a".parse().expect("a name"));
        for entry in [
            Entry::Born { instance: source },
            Entry::Request { migration: migration.clone() },
            Entry::Start { migration: migration.clone(), target: "b".parse().expect("a name") },
            Entry::Accept { migration: migration.clone(), epoch, instance: target },
        ] {
            log.apply(entry).expect("agreed");
        }
        let setup = Setup {
            migration: migration.clone(),
            instance: source,
            epoch,
            session: SessionId(1),
            pages: PAGES,
            limits,
            commit_estimate: at(1),
            mode: Mode::StopAndCopy,
            at_once,
            audit: false,
        };
        let mut scene = Self {
            session: SourceSession::new(Duration::ZERO, setup),
            now: Duration::ZERO,
            log,
            migration,
            quorum: true,
            link_carries: true,
            under_way: VecDeque::new(),
            arrived: (0, 0),
            seen: Vec::new(),
        };
        scene.session.frame(scene.now, TargetFrame::Welcome { held: false }).expect("in turn");
        scene
    }

    /// One thing happens, or time passes. What was done, if anything.
    fn step(&mut self) -> Option<Action> {
        if self.quorum {
            self.session.quorum_answered(self.now);
        }
        let Some(action) = self.session.poll(self.now, Room { batch: true, fetched: true }) else {
            if !self.arrives() {
                self.now = self.session.wake_at(self.now).max(self.now + at(1));
            }
            return None;
        };
        match &action {
            Action::Batch(plan) | Action::Fetched(plan) => {
                self.under_way.push_back(plan.pages().0);
                if self.under_way.len() >= UNDER_WAY_MAX {
                    self.arrives();
                }
            }
            Action::Scan => {
                let mut written = PageSet::empty(PAGES);
                written.insert_run(PageRun::new(0, HOT_PAGES));
                self.session.scanned(self.now, &written);
            }
            Action::Pause(_) => self.session.paused(),
            Action::Save => self.session.saved(self.now, vec![9; 100]),
            Action::Throttle(percent) => self.session.throttled(*percent),
            Action::Send(_)
            | Action::ProposeHandOver(..)
            | Action::ProposeEnd(..)
            | Action::Audit
            | Action::Digest(_)
            | Action::Resume(_)
            | Action::Finish(_) => {}
        }
        self.seen.push(action.clone());
        Some(action)
    }

    /// The oldest batch that is under way arrives, if the link carries anything.
    fn arrives(&mut self) -> bool {
        let Some(pages) = self.under_way.front().copied().filter(|_| self.link_carries) else { return false };
        self.under_way.pop_front();
        self.now += PAGE_TIME * pages;
        self.arrived = (self.arrived.0 + 1, self.arrived.1 + u64::from(pages));
        let ack = TargetFrame::Ack { batches: self.arrived.0, pages: self.arrived.1 };
        self.session.frame(self.now, ack).expect("in turn");
        true
    }

    fn did(&self, what: impl Fn(&Action) -> bool) -> bool {
        self.seen.iter().any(what)
    }

    /// Goes on until this is done.
    fn until(&mut self, what: &str, is: impl Fn(&Action) -> bool) -> Action {
        for _ in 0..100_000 {
            if let Some(action) = self.step().filter(&is) {
                return action;
            }
        }
        panic!("in vain until {what}: {:?}", self.session.snapshot(self.now));
    }

    fn until_given_up(&mut self) -> (Side, String) {
        match self.until("it is given up", |action| matches!(action, Action::ProposeEnd(..))) {
            Action::ProposeEnd(side, reason) => (side, reason),
            other => panic!("{other:?}"),
        }
    }

    fn until_paused(&mut self) {
        self.until("the guest is paused", |action| matches!(action, Action::Pause(_)));
    }

    /// Goes on until this moment. What was done meanwhile.
    fn go_on_to(&mut self, moment: Duration) -> Vec<Action> {
        let before = self.seen.len();
        while self.now < moment {
            self.step();
        }
        self.seen[before..].to_vec()
    }

    fn change(&mut self, allowed: Allowed, deadline: Option<Duration>) {
        self.session.set_limits(limits(allowed, deadline));
    }

    /// This is agreed, and the source hears of it.
    fn agree(&mut self, entry: Entry) {
        self.log.apply(entry).expect("agreed");
        self.session.view(&self.log);
    }

    fn agree_to_the_end(&mut self, side: Side) {
        self.agree(Entry::End { migration: self.migration.clone(), side, reason: "agreed".into() });
    }

    /// All that is left to do.
    fn rest(&mut self) -> Vec<Action> {
        self.go_on_to(self.now + at(500))
    }

    fn course(&self) -> Course {
        self.session.snapshot(self.now).course
    }
}

fn is_of_a_copy(action: &Action) -> bool {
    matches!(
        action,
        Action::Batch(_) | Action::Fetched(_) | Action::Scan | Action::Send(_) | Action::Pause(_)
    )
}

fn resumes(actions: &[Action]) -> Vec<Epoch> {
    actions
        .iter()
        .filter_map(|action| if let Action::Resume(epoch) = action { Some(*epoch) } else { None })
        .collect()
}

// ---- cancelled -------------------------------------------------------------------------------------------------

#[test]
fn where_nothing_is_allowed_it_is_cancelled_and_the_guest_undisturbed() {
    let mut scene = Scene::new(NOTHING);
    let (side, reason) = scene.until_given_up();
    assert_eq!(side, Side::Deadline);
    assert!(reason.starts_with("CompletionTimeout: not complete after 1 s"), "{reason}");
    assert!(scene.now >= DEADLINE && scene.now < DEADLINE + at(150), "{:?}", scene.now);
    assert!(!scene.did(|action| matches!(action, Action::Pause(_))), "the guest was paused");
    // The log can not be reached: the copy has ended all the same.
    let later = scene.go_on_to(DEADLINE * 5);
    assert!(!later.iter().any(is_of_a_copy), "{later:?}");
    let snapshot = scene.session.snapshot(scene.now);
    assert!(!snapshot.switching_over && snapshot.course == Course::Ends, "{snapshot:?}");
    scene.agree_to_the_end(Side::Deadline);
    let rest = scene.rest();
    assert_eq!(rest, [Action::Resume(Epoch(2)), Action::Finish(Err("agreed".into()))]);
}

#[test]
fn no_progress_cancels_whatever_is_allowed() {
    let allowed = Allowed { throttle: false, ..POST_COPY };
    let mut scene = Scene::with(Limits { progress_timeout: Some(at(500)), ..limits(allowed, None) });
    let (side, reason) = scene.until_given_up();
    assert!(side == Side::Deadline && reason.starts_with("NoProgress: no round got smaller for"), "{reason}");
    assert!(!scene.did(|action| matches!(action, Action::Pause(_))), "the guest was paused");
}

#[test]
fn a_pause_that_would_outlast_one_more_deadline_is_not_made() {
    // 80 ms of pages are left at the end of a round, and 6 ms of other things.
    for (deadline, pauses, why) in
        [(at(15), 0, "known before"), (at(85), 1, "known when it stood still, and taken back at once")]
    {
        let mut scene = Scene::with(limits(NOTHING, None));
        scene.go_on_to(DEADLINE);
        scene.change(PAUSE, Some(deadline));
        let (side, reason) = scene.until_given_up();
        assert_eq!(side, Side::Deadline, "{why}");
        let takes = "and pausing the guest to finish takes";
        assert!(reason.starts_with("CompletionTimeout: not complete") && reason.contains(takes), "{reason}");
        let paused = scene.seen.iter().filter(|action| matches!(action, Action::Pause(_))).count();
        assert_eq!(paused, pauses, "{why}");
        assert!(!scene.did(|a| matches!(a, Action::Send(SourceFrame::Final(_)))), "{why}");
        assert!(scene.now < DEADLINE + deadline, "{why}: {:?}", scene.now);
    }
}

// ---- paused to finish ------------------------------------------------------------------------------------------

#[test]
fn where_a_pause_is_allowed_it_finishes_by_one() {
    let mut scene = Scene::new(PAUSE);
    scene.until_paused();
    assert!(scene.now >= DEADLINE && scene.now < DEADLINE + at(150), "{:?}", scene.now);
    let snapshot = scene.session.snapshot(scene.now);
    assert!(snapshot.predicted_downtime > DOWNTIME_MAX && snapshot.switching_over, "{snapshot:?}");
    assert_eq!(snapshot.course, Course::PausesToFinish);
    scene.until("the state is sent", |a| matches!(a, Action::Send(SourceFrame::Final(_))));
    scene.until("the hand-over is proposed", |a| matches!(a, Action::ProposeHandOver(_, Mode::StopAndCopy)));
    let migration = scene.migration.clone();
    scene.agree(Entry::HandOver {
        migration: migration.clone(),
        epoch: Epoch(1),
        mode: EntryMode::StopAndCopy,
    });
    scene.rest();
    scene.agree(Entry::Running { migration, epoch: Epoch(2) });
    assert_eq!(scene.rest(), [Action::Finish(Ok(()))]);
    assert!(resumes(&scene.seen).is_empty(), "it went on at the source, too");
}

#[test]
fn a_pause_that_lasts_too_long_is_taken_back_and_only_the_log_resumes() {
    let mut scene = Scene::new(PAUSE);
    scene.until_paused();
    scene.link_carries = false;
    let (side, reason) = scene.until_given_up();
    assert!(
        side == Side::Deadline && reason.starts_with("CompletionTimeout: the guest was paused"),
        "{reason}"
    );
    assert!(scene.now >= DEADLINE * 2 && scene.now < DEADLINE * 2 + at(300), "{:?}", scene.now);
    // Nothing is agreed: it stands still, however long that takes.
    scene.session.view(&scene.log.clone());
    let later = scene.go_on_to(DEADLINE * 100);
    assert!(later.is_empty(), "{later:?}");
    assert!(scene.session.snapshot(scene.now).switching_over, "it stands still, and says so");
    scene.agree_to_the_end(Side::Deadline);
    assert_eq!(resumes(&scene.rest()), [Epoch(2)]);
}

#[test]
fn a_hand_over_that_the_log_puts_before_the_end_is_carried_out() {
    let mut scene = Scene::new(PAUSE);
    scene.until_paused();
    scene.until("the state is sent", |a| matches!(a, Action::Send(SourceFrame::Final(_))));
    scene.link_carries = false;
    scene.until_given_up();
    let left = scene.session.snapshot(scene.now).left;
    scene.agree(Entry::HandOver {
        migration: scene.migration.clone(),
        epoch: Epoch(1),
        mode: EntryMode::StopAndCopy,
    });
    scene.link_carries = true;
    scene.rest();
    assert!(
        left.0 > 0 && scene.session.is_all_sent(),
        "pages are kept back: {:?}",
        scene.session.snapshot(scene.now)
    );
    assert!(scene.session.is_handed_over() && resumes(&scene.seen).is_empty());
}

#[test]
fn without_a_quorum_nobody_is_paused_and_one_more_deadline_ends_it() {
    let mut scene = Scene::new(PAUSE);
    scene.quorum = false;
    let meanwhile = scene.go_on_to(DEADLINE * 3 / 2);
    assert!(!meanwhile.iter().any(|action| matches!(action, Action::Pause(_))), "paused without a quorum");
    let snapshot = scene.session.snapshot(scene.now);
    assert!(snapshot.waits_for_quorum && snapshot.course == Course::PausesToFinish, "{snapshot:?}");
    let last = scene.seen.len() - 10;
    assert!(scene.seen[last..].iter().any(is_of_a_copy), "rounds go on: {:?}", &scene.seen[last..]);
    let (side, _) = scene.until_given_up();
    assert!(side == Side::Deadline && scene.now < DEADLINE * 2 + at(150), "{:?}", scene.now);
}

#[test]
fn with_the_quorum_comes_the_pause() {
    let mut scene = Scene::new(PAUSE);
    scene.quorum = false;
    scene.go_on_to(DEADLINE * 3 / 2);
    scene.quorum = true;
    scene.until_paused();
    assert!(scene.now < DEADLINE * 3 / 2 + at(150), "{:?}", scene.now);
}

#[test]
fn who_waits_for_a_quorum_is_not_taken_for_one_that_makes_no_progress() {
    let in_time = Limits { downtime_max: at(1000), progress_timeout: Some(at(500)), ..limits(NOTHING, None) };
    let mut scene = Scene { quorum: false, ..Scene::with(in_time) };
    scene.go_on_to(at(5000));
    assert!(scene.session.snapshot(scene.now).waits_for_quorum);
    assert!(
        !scene.did(|action| matches!(action, Action::ProposeEnd(..))),
        "cancelled: {:?}",
        scene.seen.last()
    );
    scene.quorum = true;
    scene.until_paused();
}

// ---- limits that change ----------------------------------------------------------------------------------------

#[test]
fn a_deadline_moves_with_its_setting() {
    for (new, ends, why) in [
        (Some(DEADLINE * 2), Some(DEADLINE * 2), "raised"),
        (Some(DEADLINE * 3 / 4), Some(DEADLINE * 3 / 4), "lowered"),
        (Some(DEADLINE / 4), Some(DEADLINE / 2), "lowered to what has passed: now"),
        (None, None, "taken away"),
    ] {
        let mut scene = Scene::new(NOTHING);
        scene.go_on_to(DEADLINE / 2);
        scene.change(NOTHING, new);
        match ends {
            Some(ends) => {
                scene.until_given_up();
                assert!(scene.now >= ends && scene.now < ends + at(150), "{why}: {:?}", scene.now);
            }
            None => {
                scene.go_on_to(DEADLINE * 20);
                assert!(!scene.did(|action| matches!(action, Action::ProposeEnd(..))), "{why}");
            }
        }
    }
}

#[test]
fn what_is_allowed_counts_at_once() {
    let mut scene = Scene::new(NOTHING);
    scene.go_on_to(DEADLINE / 2);
    scene.change(PAUSE, Some(DEADLINE));
    scene.until_paused();
    scene.link_carries = false;
    scene.change(NOTHING, Some(DEADLINE));
    let (side, reason) = scene.until_given_up();
    assert!(side == Side::Deadline && reason.contains("allowWorkloadDisruption"), "{reason}");
    assert!(scene.now < DEADLINE + at(300), "at once, not a deadline later: {:?}", scene.now);
    assert!(resumes(&scene.seen).is_empty());
}

#[test]
fn a_raised_deadline_takes_a_waiting_pause_back() {
    let mut scene = Scene::new(PAUSE);
    scene.quorum = false;
    scene.go_on_to(DEADLINE + at(100));
    assert_eq!(scene.course(), Course::PausesToFinish);
    scene.change(PAUSE, Some(DEADLINE * 4));
    scene.step();
    let snapshot = scene.session.snapshot(scene.now);
    assert!(!snapshot.waits_for_quorum && snapshot.course == Course::Rounds, "{snapshot:?}");
    scene.quorum = true;
    scene.until_paused();
    assert!(scene.now >= DEADLINE * 4, "{:?}", scene.now);
}
