//! What is not here while the guest may already run, and who waits for it.
//!
//! ```text
//!   absent ──batch──▶ coming ──written──▶ here
//!      │ └── a fault: fetched, with what lies around it
//!      └── stayed present though punched: written before the guest runs, since no access to it would wait
//!
//!   a fault at a page that is here ─▶ a hole that was always zeros: filled with zeros at once
//! ```
//!
//! Always true: a page is absent, coming or here; it is filled with zeros here only if it is here, so never one that the
//! source has to give; a page is asked for once over a connection.

use std::collections::BTreeMap;
use std::time::Duration;

use godwit_domain::progress::PostCopyReport;
use godwit_domain::{PageCount, PageIndex, PageRun};
use godwit_memory::PageSet;

use super::around::Around;

/// Zero pages that are filled at once around a fault, at most: each takes memory.
const ZEROS_MAX: u32 = 16;

/// What must be done about a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is on its way.
    Comes,
    /// Ask the source for these.
    Fetch(PageRun),
    /// Fill these with zeros.
    Zeros(PageRun),
}

#[derive(Debug)]
pub(super) struct Missing {
    absent: PageSet,
    coming: PageSet,
    stuck: PageSet,
    asked: PageSet,
    /// Since when somebody waits for a page, and whether it was asked for then.
    waited_for: BTreeMap<u32, Duration>,
    fetches: Around,
    zeros: Around,
    report: PostCopyReport,
    /// When the guest ran first.
    ran_at: Option<Duration>,
}

impl Missing {
    pub(super) fn new(absent: PageSet, pages: PageCount) -> Self {
        Self {
            absent,
            coming: PageSet::empty(pages),
            stuck: PageSet::empty(pages),
            asked: PageSet::empty(pages),
            waited_for: BTreeMap::new(),
            fetches: Around::default(),
            zeros: Around::default(),
            report: PostCopyReport::default(),
            ran_at: None,
        }
    }

    /// Pages that are not here, those that are being written among them.
    pub(super) fn len(&self) -> PageCount {
        PageCount(self.absent.len().0 + self.coming.len().0)
    }

    /// Nothing is left to come from the source, and all of it is written.
    pub(super) fn is_empty(&self) -> bool {
        self.absent.is_empty() && self.coming.is_empty()
    }

    pub(super) fn absent(&self) -> &PageSet {
        &self.absent
    }

    /// Punched, and still present.
    pub(super) fn stayed(&mut self, runs: &[PageRun]) {
        runs.iter().for_each(|run| self.stuck.insert_run(*run));
        self.report.stuck_pages = u64::from(self.stuck.len().0);
    }

    /// Whether the guest may run: whoever touches what is missing will wait.
    pub(super) fn may_run(&self) -> bool {
        self.stuck.is_empty()
    }

    pub(super) fn is_stuck(&self, page: PageIndex) -> bool {
        self.stuck.contains(page)
    }

    /// It has come, and is handed out for writing. `false`: it is here, or on its way.
    pub(super) fn comes(&mut self, page: PageIndex) -> bool {
        let absent = self.absent.remove(page);
        if absent {
            self.coming.insert(page);
        }
        absent
    }

    /// These were written: whoever waits for them goes on.
    pub(super) fn written(&mut self, now: Duration, runs: &[PageRun]) {
        for run in runs {
            self.coming.remove_run(*run);
            self.stuck.remove_run(*run);
            self.asked.remove_run(*run);
            self.waits_no_more(now, *run);
        }
    }

    /// These could not be written: they are to be sent again.
    pub(super) fn not_written(&mut self, runs: &[PageRun]) {
        for run in runs {
            self.coming.remove_run(*run);
            self.absent.insert_run(*run);
            self.asked.remove_run(*run);
        }
    }

    fn waits_no_more(&mut self, now: Duration, run: PageRun) {
        let end = u32::try_from(run.end()).unwrap_or(u32::MAX);
        let filled: Vec<u32> = self.waited_for.range(run.first.0..end).map(|(page, _)| *page).collect();
        for since in filled.iter().filter_map(|page| self.waited_for.remove(page)) {
            self.report.waited(now.saturating_sub(since));
        }
    }

    /// Somebody touches a hole.
    pub(super) fn fault(&mut self, now: Duration, page: PageIndex, pages: PageCount) -> Option<Answer> {
        if page.0 >= pages.0 {
            return None;
        }
        if self.absent.contains(page) {
            self.waited_for.entry(page.0).or_insert(now);
            self.report.faults += 1;
            if self.asked.contains(page) {
                return Some(Answer::Comes);
            }
            let most = self.fetches.fault(page.0, u32::MAX);
            let run = self.absent.run_from(page.0, PageCount(most))?;
            self.fetches.fetched(run.first.0, run.count.0);
            self.asked.insert_run(run);
            return Some(Answer::Fetch(run));
        }
        if self.coming.contains(page) {
            self.waited_for.entry(page.0).or_insert(now);
            self.report.faults += 1;
            return Some(Answer::Comes);
        }
        self.report.zero_faults += 1;
        let most = self.zeros.fault(page.0, ZEROS_MAX);
        let here = |page: &PageIndex| !self.absent.contains(*page) && !self.coming.contains(*page);
        let run = PageRun { first: page, count: PageCount(most.min(pages.0 - page.0)) };
        let zeros = u32::try_from(run.pages().take_while(here).count()).unwrap_or(1);
        self.zeros.fetched(page.0, zeros);
        Some(Answer::Zeros(PageRun { first: page, count: PageCount(zeros) }))
    }

    /// Another connection: what was asked for over the last one is asked for again, if somebody waits for it.
    pub(super) fn ask_again(&mut self, pages: PageCount) -> Vec<PageRun> {
        self.asked = PageSet::empty(pages);
        let wanted: Vec<PageRun> = self
            .waited_for
            .keys()
            .map(|page| PageRun::new(*page, 1))
            .filter(|run| self.absent.contains(run.first))
            .chain(self.stuck.runs().flat_map(pieces))
            .collect();
        wanted.iter().for_each(|run| self.asked.insert_run(*run));
        wanted
    }

    /// The guest runs.
    pub(super) fn ran(&mut self, now: Duration) {
        if self.ran_at.is_none() {
            self.ran_at = Some(now);
            self.report.missing_at_resume_bytes = self.len().bytes();
        }
    }

    /// What was measured by `now`.
    pub(super) fn report(&self, now: Duration) -> PostCopyReport {
        let took = self.ran_at.map_or(Duration::ZERO, |at| now.saturating_sub(at));
        PostCopyReport { took_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX), ..self.report }
    }
}

/// A run in pieces that can be fetched.
pub(super) fn pieces(run: PageRun) -> impl Iterator<Item = PageRun> {
    let most = godwit_wire::migration::FETCH_PAGES_MAX;
    (run.first.0..u32::try_from(run.end()).unwrap_or(u32::MAX)).step_by(most as usize).map(move |first| {
        let rest = u32::try_from(run.end()).unwrap_or(u32::MAX).saturating_sub(first);
        PageRun::new(first, rest.min(most))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: PageCount = PageCount(64);
    const NOW: Duration = Duration::from_micros(100);

    fn missing(runs: &[PageRun]) -> Missing {
        let mut absent = PageSet::empty(PAGES);
        runs.iter().for_each(|run| absent.insert_run(*run));
        Missing::new(absent, PAGES)
    }

    #[test]
    fn a_fault_is_answered_by_where_its_page_is() {
        let mut missing = missing(&[PageRun::new(10, 4)]);
        let fault = |missing: &mut Missing, page| missing.fault(NOW, PageIndex(page), PAGES);
        assert_eq!(fault(&mut missing, 10), Some(Answer::Fetch(PageRun::new(10, 1))));
        assert_eq!(fault(&mut missing, 10), Some(Answer::Comes), "asked for once");
        assert_eq!(fault(&mut missing, 11), Some(Answer::Fetch(PageRun::new(11, 2))), "a walk");
        assert_eq!(
            fault(&mut missing, 13),
            Some(Answer::Fetch(PageRun::new(13, 1))),
            "to the end of what is absent"
        );
        assert!(missing.comes(PageIndex(10)) && !missing.comes(PageIndex(10)));
        assert_eq!(fault(&mut missing, 10), Some(Answer::Comes), "it is being written");
        assert_eq!(fault(&mut missing, 9), Some(Answer::Zeros(PageRun::new(9, 1))));
        assert_eq!(fault(&mut missing, 63), Some(Answer::Zeros(PageRun::new(63, 1))));
        assert_eq!(fault(&mut missing, 64), None, "outside");
    }

    #[test]
    fn zeros_stop_before_what_the_source_has_to_give() {
        let mut missing = missing(&[PageRun::new(10, 1)]);
        for (page, zeros) in [(6, 1), (7, 2), (9, 1)] {
            let answer = missing.fault(NOW, PageIndex(page), PAGES);
            assert_eq!(answer, Some(Answer::Zeros(PageRun::new(page, zeros))));
        }
        missing.comes(PageIndex(10));
        let answer = missing.fault(NOW, PageIndex(9), PAGES);
        assert_eq!(answer, Some(Answer::Zeros(PageRun::new(9, 1))), "nor what is being written");
    }

    #[test]
    fn who_waits_is_measured_once_the_page_is_written() {
        let mut missing = missing(&[PageRun::new(10, 4)]);
        missing.fault(NOW, PageIndex(11), PAGES);
        missing.comes(PageIndex(11));
        assert_eq!(missing.report(NOW).blocked_us, 0);
        missing.written(NOW * 4, &[PageRun::new(10, 3)]);
        let report = missing.report(NOW * 4);
        assert_eq!((report.faults, report.blocked_us), (1, 300));
        assert_eq!(report.latency_log2_us.iter().sum::<u64>(), 1);
    }

    #[test]
    fn over_another_connection_what_somebody_waits_for_is_asked_for_again() {
        let mut missing = missing(&[PageRun::new(10, 4)]);
        missing.fault(NOW, PageIndex(11), PAGES);
        missing.stayed(&[PageRun::new(12, 1)]);
        assert!(!missing.may_run());
        assert_eq!(missing.ask_again(PAGES), [PageRun::new(11, 1), PageRun::new(12, 1)]);
        missing.comes(PageIndex(12));
        missing.not_written(&[PageRun::new(12, 1)]);
        assert!(missing.absent().contains(PageIndex(12)));
        missing.comes(PageIndex(12));
        missing.written(NOW, &[PageRun::new(12, 1)]);
        assert!(missing.may_run());
    }

    #[test]
    fn a_long_run_is_fetched_in_pieces() {
        let all: Vec<_> = pieces(PageRun::new(3, 600)).collect();
        assert_eq!(all, [PageRun::new(3, 256), PageRun::new(259, 256), PageRun::new(515, 88)]);
    }
}
