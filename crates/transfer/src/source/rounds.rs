//! Which pages go in which round.
//!
//! ```text
//!   queue   this round, not yet planned ──plan, fetch──▶ in flight
//!   next    written since they were planned ──begin──▶ queue of the next round
//! ```
//!
//! In post-copy the order is: what is fetched, then what was written in many scans (hot), then the rest, onwards from
//! the last page that was fetched.
//!
//! Always true: a page that a scan reports leaves `queue` and enters `next`: it will be sent later and newer, and
//! sending it now would be waste. No page is in both. A page is planned at most once in a round, and its stamp is
//! the last round that planned it.

use std::time::Duration;

use godwit_domain::precopy::Progress;
use godwit_domain::precopy::predict::Scan;
use godwit_domain::units::rate_of;
use godwit_domain::{PAGE_BYTES, PageCount, PageIndex, PageRun, Round};
use godwit_memory::PageSet;
use godwit_wire::batch::BATCH_PAGES_MAX;

use super::bytes_of;
use crate::meter::Meter;
use crate::stamps::Stamps;

/// Shortest time between two scans: each makes the guest's next write to a page fault once more (about 2 µs),
/// so scans are spaced by the copy, never by a tight loop.
const SCAN_INTERVAL_MIN: Duration = Duration::from_millis(200);
/// A round lasts at least this long, so that a guest that never fits is not scanned in a tight loop.
const ROUND_MIN: Duration = Duration::from_millis(10);

/// A page that was written in so many scans, or in all, is thought to be wanted soon.
const HOT_SCANS: u8 = 2;

/// So few pages with content say nothing of how fast such pages go: 1 MiB.
const CONTENT_PAGES_MIN: u64 = 256;

/// Pages to read and send as one batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Its number on this connection.
    pub sequence: u64,
    /// The round.
    pub round: Round,
    /// The pages, ascending; at most [`BATCH_PAGES_MAX`] of them.
    pub runs: Vec<PageRun>,
}

impl Plan {
    /// How many pages.
    pub fn pages(&self) -> PageCount {
        PageCount(self.runs.iter().map(|run| run.count.0).sum())
    }
}

#[derive(Debug)]
pub(super) struct Rounds {
    pages: PageCount,
    round: Round,
    queue: PageSet,
    cursor: u32,
    next: PageSet,
    /// In how many scans a page was found written.
    heat: Vec<u8>,
    scans: u8,
    /// The part of the queue that goes first.
    hot: PageSet,
    stamps: Stamps,
    born: Duration,
    began: Duration,
    begun_with: PageCount,
    left_before_bytes: u64,
    last_scan: Duration,
    /// The last scan before the present round.
    scan_before: Duration,
    dirty_rate: u64,
    skipped_pages: u64,
    /// Pages sent of late, and those of them that hold something.
    sent: (u64, u64),
    meter: Meter,
    progress: Progress,
}

impl Rounds {
    /// Before the first round: every page is to be sent.
    pub(super) fn new(now: Duration, pages: PageCount) -> Self {
        Self {
            pages,
            round: Round::NONE,
            queue: PageSet::empty(pages),
            cursor: 0,
            next: PageSet::full(pages),
            heat: vec![0; pages.0 as usize],
            scans: 0,
            hot: PageSet::empty(pages),
            stamps: Stamps::none(pages),
            born: now,
            began: now,
            begun_with: PageCount(0),
            left_before_bytes: pages.bytes(),
            last_scan: now,
            scan_before: now,
            dirty_rate: 0,
            skipped_pages: 0,
            sent: (0, 0),
            meter: Meter::new(now),
            progress: Progress::new(now),
        }
    }

    pub(super) fn round(&self) -> Round {
        self.round
    }

    pub(super) fn queued(&self) -> PageCount {
        self.queue.len()
    }

    pub(super) fn next_len(&self) -> PageCount {
        self.next.len()
    }

    pub(super) fn begun_with(&self) -> PageCount {
        self.begun_with
    }

    pub(super) fn skipped_pages(&self) -> u64 {
        self.skipped_pages
    }

    pub(super) fn is_over(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn elapsed(&self, now: Duration) -> Duration {
        now.saturating_sub(self.born)
    }

    pub(super) fn since_progress(&self, now: Duration) -> Duration {
        self.progress.since(now)
    }

    pub(super) fn send_rate(&self, now: Duration) -> u64 {
        self.meter.rate(now)
    }

    /// How fast what the guest has written is sent. Zeros go at next to no cost, and a first round is full of them: a rate with
    /// them in it would promise a downtime that nobody can keep.
    pub(super) fn content_rate(&self, now: Duration) -> u64 {
        let (rate, (pages, with_content)) = (u128::from(self.send_rate(now)), self.sent);
        if with_content < CONTENT_PAGES_MIN {
            return self.send_rate(now);
        }
        let rate = rate * u128::from(with_content) / u128::from(pages.max(1));
        u64::try_from(rate).unwrap_or(u64::MAX)
    }

    /// So many pages went, and so many of them as zeros.
    pub(super) fn went(&mut self, pages: u64, zeros: u64) {
        let (all, with_content) = &mut self.sent;
        *all += pages;
        *with_content += pages.saturating_sub(zeros);
    }

    pub(super) fn dirty_rate(&self) -> u64 {
        self.dirty_rate
    }

    pub(super) fn left_before_bytes(&self) -> u64 {
        self.left_before_bytes
    }

    /// What would have to be sent if the guest stopped now.
    pub(super) fn left_bytes(&self, unacknowledged: u32) -> u64 {
        let pages = u64::from(self.queue.len().0) + u64::from(self.next.len().0) + u64::from(unacknowledged);
        pages * PAGE_BYTES
    }

    /// The next round begins with everything that is waiting. `None`: there is no further round.
    pub(super) fn begin(&mut self, now: Duration) -> Option<(Round, PageCount)> {
        self.round = self.round.next()?;
        self.queue.insert_all(&self.next);
        self.next = PageSet::empty(self.pages);
        self.hot = PageSet::empty(self.pages);
        self.cursor = 0;
        self.begun_with = self.queue.len();
        self.sent = (self.sent.0 / 2, self.sent.1 / 2);
        self.began = now;
        self.scan_before = self.last_scan;
        self.progress.round_begins(self.begun_with.bytes());
        Some((self.round, self.begun_with))
    }

    /// Those pages of this round that the guest writes often go first.
    pub(super) fn hot_first(&mut self) {
        let enough = HOT_SCANS.min(self.scans.max(1));
        for (page, _) in (0..).zip(&self.heat).filter(|(_, heat)| **heat >= enough) {
            if self.queue.contains(PageIndex(page)) {
                self.hot.insert(PageIndex(page));
            }
        }
    }

    /// Whether some of them have not gone yet.
    pub(super) fn has_hot(&self) -> bool {
        !self.hot.is_empty()
    }

    /// The round ended with so much left to send.
    pub(super) fn ended_with(&mut self, left_bytes: u64) {
        self.left_before_bytes = left_bytes;
    }

    /// The next batch of this round, of `most` pages at most.
    pub(super) fn plan(&mut self, sequence: u64, most: PageCount) -> Option<Plan> {
        let mut runs: Vec<PageRun> = Vec::new();
        while bytes_of(&runs) < most.bytes() {
            let taken = u32::try_from(bytes_of(&runs) / PAGE_BYTES).unwrap_or(most.0);
            let room = PageCount(most.0 - taken);
            let waiting = if self.hot.is_empty() { &self.queue } else { &self.hot };
            // Behind the last page that was fetched it goes on; at the end it begins again.
            let (run, again) = match waiting.run_from(self.cursor, room) {
                Some(run) => (run, false),
                None => match waiting.run_from(0, room) {
                    Some(run) => (run, true),
                    None => break,
                },
            };
            // The runs of a batch ascend.
            if again && !runs.is_empty() {
                break;
            }
            self.take(run);
            self.cursor = u32::try_from(run.end()).unwrap_or(u32::MAX);
            runs.push(run);
        }
        (!runs.is_empty()).then_some(Plan { sequence, round: self.round, runs })
    }

    /// Those pages of a run that were not sent yet, as a batch of their own; none if all are on the way.
    pub(super) fn fetch(&mut self, wanted: PageRun, sequence: u64) -> Option<Plan> {
        let mut runs: Vec<PageRun> = Vec::new();
        let mut at = wanted.first.0;
        while let Some(run) = self.queue.run_from(at, wanted.count) {
            let end = run.end().min(wanted.end());
            let Some(count) = end.checked_sub(u64::from(run.first.0)).filter(|count| *count > 0) else {
                break;
            };
            let run = PageRun::new(run.first.0, u32::try_from(count).unwrap_or(u32::MAX));
            self.take(run);
            runs.push(run);
            at = u32::try_from(end).unwrap_or(u32::MAX);
        }
        if self.hot.is_empty() {
            self.cursor = u32::try_from(wanted.end()).unwrap_or(u32::MAX);
        }
        (!runs.is_empty()).then_some(Plan { sequence, round: self.round, runs })
    }

    fn take(&mut self, run: PageRun) {
        self.queue.remove_run(run);
        self.hot.remove_run(run);
        self.stamps.set_run(run, self.round);
    }

    /// How many batches the rest of the round makes.
    pub(super) fn batches_left(&self) -> u64 {
        u64::from(self.queue.len().0.div_ceil(BATCH_PAGES_MAX))
    }

    pub(super) fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.began)
    }

    pub(super) fn last_scan(&self) -> Duration {
        self.last_scan
    }

    /// A scan reported these pages.
    pub(super) fn written(&mut self, now: Duration, written: &PageSet) -> Scan {
        let unique_before = u64::from(self.next.len().0);
        let elapsed = now.saturating_sub(self.last_scan);
        if elapsed >= ROUND_MIN {
            self.dirty_rate = rate_of(written.len().bytes(), elapsed);
        }
        self.last_scan = now;
        self.scans = self.scans.saturating_add(1);
        for run in written.runs() {
            for page in run.pages() {
                if let Some(heat) = self.heat.get_mut(page.0 as usize) {
                    *heat = heat.saturating_add(1);
                }
            }
            let before = self.queue.len().0;
            self.queue.remove_run(run);
            self.skipped_pages += u64::from(before - self.queue.len().0);
        }
        self.next.insert_all(written);
        Scan {
            since_last: elapsed,
            written: u64::from(written.len().0),
            since_round_began: now.saturating_sub(self.scan_before),
            unique_before,
            unique: u64::from(self.next.len().0),
            send_rate: self.send_rate(now),
        }
    }

    /// At the end of a round, and within a long one every now and then.
    /// `idle`: rounds are made to stay ready, and not because they bring anything.
    pub(super) fn scan_is_due(&self, now: Duration, idle: bool) -> bool {
        now >= self.next_scan_at(idle)
    }

    pub(super) fn next_scan_at(&self, idle: bool) -> Duration {
        if self.is_over() {
            self.began.saturating_add(if idle { SCAN_INTERVAL_MIN } else { ROUND_MIN })
        } else {
            let quarter = self.last_scan.saturating_sub(self.began) / 4;
            self.last_scan.saturating_add(SCAN_INTERVAL_MIN.max(quarter))
        }
    }

    pub(super) fn acknowledged(&mut self, now: Duration, pages: u64) {
        if pages > 0 {
            self.meter.count(now, pages);
            self.progress.acknowledged(now);
        }
    }

    pub(super) fn link_was_idle(&mut self, now: Duration) {
        self.meter.pause(now);
        self.meter.resume(now);
    }

    /// The stamps that the target must hold once the present round has arrived.
    pub(super) fn required(&self) -> Stamps {
        let mut required = self.stamps.clone();
        for run in self.queue.runs() {
            required.set_run(run, self.round);
        }
        required
    }

    /// The target has nothing of this session.
    pub(super) fn everything_is_missing(&mut self) {
        self.next = PageSet::full(self.pages);
        self.progress.starts_over();
    }

    /// What the target does not lack is not sent.
    pub(super) fn nothing_is_queued(&mut self) {
        for run in self.queue.runs() {
            self.stamps.set_run(run, self.round);
        }
        self.queue = PageSet::empty(self.pages);
        self.hot = PageSet::empty(self.pages);
    }

    /// What a planted bug takes for clean: every page that the target has of an earlier session.
    pub(super) fn trust(&mut self, segment: u32, held: &[u8]) {
        let first = segment * godwit_wire::migration::SEGMENT_PAGES;
        for (page, stamp) in (first..).zip(held.chunks_exact(2)) {
            let round = Round(u16::from_le_bytes([stamp[0], stamp[1]]));
            if round > Round::NONE {
                self.next.remove(PageIndex(page));
                self.stamps.set(PageIndex(page), round);
                self.round = self.round.max(round);
            }
        }
    }

    /// The target holds these stamps of a segment: pages whose last sending did not arrive are sent again.
    /// `false`: there is no such segment.
    pub(super) fn target_holds(&mut self, segment: u32, stamps: &[u8]) -> bool {
        let Some(missing) = self.stamps.differing(segment, stamps) else { return false };
        for page in missing.filter(|_| !planted::own_record_is_trusted()) {
            self.next.insert(page);
        }
        true
    }
}

/// Bugs that a test can switch on, to show that they would be found. Always off in a real build.
mod planted {
    #[cfg(feature = "planted-bugs")]
    pub(super) fn own_record_is_trusted() -> bool {
        crate::planted::is_on("trust-own-record")
    }

    #[cfg(not(feature = "planted-bugs"))]
    pub(super) fn own_record_is_trusted() -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_say_nothing_of_how_fast_content_goes() {
        let (at, pages) = (Duration::from_millis, PageCount(4096));
        let mut rounds = Rounds::new(at(0), pages);
        rounds.begin(at(0));
        rounds.acknowledged(at(1000), 4096);
        assert_eq!(rounds.content_rate(at(1000)), 16 << 20, "nothing is known of zeros");
        rounds.went(4096, 3072);
        assert_eq!(rounds.content_rate(at(1000)), 4 << 20);
        rounds.begin(at(1000));
        rounds.went(1536, 0);
        assert_eq!(rounds.content_rate(at(1000)), (16 << 20) * 2048 / 3584, "what is long ago counts less");
        let mut empty = Rounds::new(at(0), pages);
        empty.acknowledged(at(1000), 4096);
        empty.went(4096, 4096);
        assert_eq!(empty.content_rate(at(1000)), 16 << 20, "nothing but zeros");
    }
}
