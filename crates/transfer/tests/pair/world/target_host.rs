//! The target's host: its memory with its holes, its guest that touches pages, its process that may start again.

use super::*;

impl World {
    pub(super) fn a_batch_arrives(&mut self) {
        let may_come = |flight: &&(usize, &InFlight)| flight.1.not_before <= self.now;
        let coming: Vec<usize> =
            self.batches.iter().enumerate().filter(|f| may_come(&f)).map(|f| f.0).collect();
        let Some(pick) = self.random.choice(coming) else { return };
        let InFlight { connection, lane, batch, contents, .. } = self.batches.swap_remove(pick);
        let writes = self.target.batch(connection, lane, &batch);
        self.note(|| {
            let runs = writes.as_ref().map(|writes| writes.iter().map(|w| w.run).collect::<Vec<_>>());
            format!("batch {} of round {} over {connection}: {}", batch.sequence, batch.round, short(&runs))
        });
        if let Some(writes) = writes {
            let with_contents = |write: Write| {
                let from = write.payload_page.expect("all are raw here") as usize;
                (write, contents[from..from + write.run.count.0 as usize].to_vec())
            };
            let writes = writes.into_iter().map(with_contents).collect();
            match lane {
                Lane::Bulk => self.writes.push_back(writes),
                Lane::Urgent => self.placing.push_back(writes),
            }
        }
    }

    pub(super) fn a_batch_is_written(&mut self, lane: Lane) {
        let queue = if lane == Lane::Bulk { &mut self.writes } else { &mut self.placing };
        let Some(writes) = queue.pop_front() else { return };
        self.note(|| format!("written: {}", short(&writes.first().map(|(write, _)| write.run))));
        if lane == Lane::Urgent && self.random.u32(0..50) == 0 {
            // Whoever could not write asks for everything that is missing again, over another link.
            self.target.not_written(lane);
            self.target_link = None;
            return self.target.link_lost();
        }
        for (write, contents) in writes {
            for (page, content) in write.run.pages().zip(contents) {
                assert!(write.placed || self.target_runs.is_none(), "written over a running guest");
                let is_there = self.present.contains(page);
                if !write.placed || !is_there {
                    self.target_memory[page.0 as usize] = content;
                    self.present.insert(page);
                }
                self.blocked.remove(page);
            }
        }
        self.target.written(self.now, lane).unwrap_or_else(|violation| panic!("{violation}"));
    }

    /// The guest at the target reads or writes somewhere; where nothing is, it waits.
    pub(super) fn target_guest_touches(&mut self) {
        if self.target_runs.is_none() {
            return;
        }
        for _ in 0..self.random.u32(0..4) {
            let page = PageIndex(self.random.u32(0..PAGES.0));
            let at = page.0 as usize;
            if !self.present.contains(page) {
                if self.target.missing().is_some() && self.blocked.insert(page) {
                    self.target.fault(self.now, page);
                }
                continue;
            }
            assert_eq!(self.target_memory[at], self.guest_memory[at], "the guest reads a wrong page {at}");
            self.target_memory[at] += 100;
            self.guest_memory[at] += 100;
            self.written.insert(page.0);
        }
    }

    pub(super) fn target_acts(&mut self) {
        let Some(action) = self.target.poll() else { return };
        self.note(|| format!("target: {}", short(&action)));
        match action {
            target::Action::Send(frame) => {
                if let Some(connection) = self.target_link {
                    self.to_source.push_back((connection, frame));
                }
            }
            target::Action::Punch(runs) => self.punching = Some(runs),
            target::Action::Zeros(run) => {
                for page in run.pages() {
                    self.present.insert(page);
                    self.blocked.remove(page);
                }
            }
            target::Action::Release => self.releasing = true,
            target::Action::Track => {
                assert!(self.target_runs.is_none(), "tracked too late");
                self.written.clear();
                let refused = self.random.u32(0..20) == 0;
                self.target.tracked(if refused { Err("no".into()) } else { Ok(()) });
            }
            target::Action::Audit => {}
            target::Action::Compare(run, digests) => self.comparing = Some((run, digests)),
            target::Action::Load(_, state) => {
                assert_eq!(state, [9; 100], "the device state is whole");
                self.loading = true;
            }
            target::Action::Run(epoch) => self.target_starts(epoch),
            target::Action::ProposeRunning(epoch) => {
                self.proposals.push(Entry::Running { migration: self.migration.clone(), epoch });
            }
            target::Action::ProposeAllPages(epoch) => {
                self.proposals.push(Entry::AllPages { migration: self.migration.clone(), epoch });
            }
            target::Action::GiveUp(reason) => panic!("the target gave up: {reason}"),
            target::Action::Finish(outcome) => {
                self.target_link = None;
                self.target_done = Some(outcome);
            }
        }
    }

    fn target_starts(&mut self, epoch: Epoch) {
        assert!(self.log.licenses(id(2)) && epoch == self.log.epoch, "started without a licence");
        assert!(!self.source_runs, "two running copies");
        assert!(self.writes.is_empty() || self.mode == Mode::PostCopy, "started before the last write");
        self.guest_memory.clone_from(&self.source_memory);
        match self.mode {
            Mode::StopAndCopy => self.same_memory("at the start"),
            Mode::PostCopy => {
                for page in 0..PAGES.0 {
                    let (is, must) = (self.target_memory[page as usize], self.source_memory[page as usize]);
                    // A missing page is a hole: a touch of it would wait.
                    let waits = !self.present.contains(PageIndex(page));
                    assert!(is == must || waits, "page {page} is {is}, neither {must} nor missing");
                }
            }
        }
        self.target_runs = Some(epoch);
    }

    /// The content of a page is its digest here.
    pub(super) fn a_piece_is_digested(&mut self) {
        if let Some(run) = self.digesting.take() {
            assert!(!self.source_runs, "digests of a running guest");
            let digests = run.pages().map(|page| self.source_memory[page.0 as usize]).collect();
            self.source.digested(run, digests);
        }
    }

    pub(super) fn a_piece_is_compared(&mut self) {
        if let Some((run, theirs)) = self.comparing.take() {
            let ours: Vec<u64> = run.pages().map(|page| self.target_memory[page.0 as usize]).collect();
            let compared = Compared::judge(run, &theirs, &ours, &self.written);
            self.target.compared(Ok(compared));
        }
    }

    /// What the source says of the audit, if the migration was to be audited.
    pub(crate) fn audited(&self) -> Option<AuditReport> {
        self.source.audit_report().map(|(report, _)| report)
    }

    /// The target's process is started again beside the guest that runs: what it had in hand is gone.
    pub(super) fn restart_target(&mut self) {
        self.note(|| "target: restarted".into());
        self.target_link = None;
        self.writes.clear();
        self.placing.clear();
        self.releasing = false;
        let mut holes = PageSet::full(PAGES);
        self.present.runs().for_each(|run| holes.remove_run(run));
        let epoch = self.target_runs.expect("it runs");
        self.target = TargetSession::resumed(self.now, self.migration.clone(), id(2), PAGES, epoch, holes);
    }
}
