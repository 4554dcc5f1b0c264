//! What of a batch is written: the parts that are newer than what is here.
//!
//! Always true: a page takes a round once, and none older than the last that it has taken; so the order of streams does not
//! matter.

use godwit_domain::{PageCount, PageIndex, PageRun, Round};
use godwit_wire::batch::{Batch, Class};

use super::{TargetSession, Write, planted};

impl TargetSession {
    pub(super) fn writes_of(&mut self, batch: &Batch) -> Vec<Write> {
        let mut writes = Vec::new();
        if Some(batch.session) != self.session || self.is_from_before_the_punch(batch.round) {
            return writes;
        }
        let mut payload_page = 0;
        for classed in &batch.runs {
            let base = match classed.class {
                Class::Raw => Some(payload_page),
                Class::Zero => None,
            };
            self.newer_parts(classed.run, batch.round, base, &mut writes);
            if classed.class == Class::Raw {
                payload_page += classed.run.count.0;
            }
        }
        writes
    }

    /// The parts of a run that are newer than what is here, as writes.
    fn newer_parts(&mut self, run: PageRun, round: Round, base: Option<u32>, writes: &mut Vec<Write>) {
        let mut open: Option<Write> = None;
        for (at, page) in (0..).zip(run.pages()) {
            if !self.takes(page, round) {
                writes.extend(open.take());
                continue;
            }
            // The greater of the two: only a planted bug takes an older page.
            self.stamps.set(page, round.max(self.stamps.get(page)));
            let placed = self.is_placed(page);
            match &mut open {
                Some(write) if write.placed == placed => write.run.count.0 += 1,
                _ => {
                    writes.extend(open.take());
                    let (run, payload_page) =
                        (PageRun { first: page, count: PageCount(1) }, base.map(|base| base + at));
                    open = Some(Write { run, payload_page, placed });
                }
            }
        }
        writes.extend(open);
    }

    fn takes(&mut self, page: PageIndex, round: Round) -> bool {
        match &mut self.missing {
            Some(missing) => missing.comes(page) || planted::punch_is_forgotten(),
            None => self.stamps.get(page) < round || planted::order_is_ignored(),
        }
    }
}
