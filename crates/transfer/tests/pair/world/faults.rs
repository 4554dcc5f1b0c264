//! What goes wrong: links that break, each side noticing when it does, and processes that start again.

use super::*;

impl World {
    /// The connection breaks, and each side notices when it does; or the source's node restarts in pre-copy.
    pub(super) fn fault(&mut self) {
        match self.random.u32(0..10) {
            0 | 1 if self.source_link.is_some() && (self.faults_left > 0 || self.target_link.is_none()) => {
                self.faults_left = self.faults_left.saturating_sub(1);
                self.source_link = None;
                self.source.link_lost();
                self.note(|| "source: link lost".into());
            }
            2 | 3 if self.target_link.is_some() && (self.faults_left > 0 || self.source_link.is_none()) => {
                self.faults_left = self.faults_left.saturating_sub(1);
                self.target_link = None;
                self.target.link_lost();
                self.note(|| "target: link lost".into());
            }
            4 if self.faults_left > 0 && self.source_runs && !self.pausing && self.target_link.is_none() => {
                self.faults_left -= 1;
                self.restart_source();
            }
            4 if self.faults_left > 0 && self.is_post_copy() && self.source_link.is_none() => {
                self.faults_left -= 1;
                self.restart_serving();
            }
            7 if self.faults_left > 0 && self.target_runs.is_some() && self.is_post_copy() => {
                self.faults_left -= 1;
                self.restart_target();
            }
            5 if self.faults_left > 0 && self.random.u32(0..8) == 0 => {
                self.faults_left -= 1;
                self.source.fail("asked to".into());
            }
            6 if self.random.u32(0..8) == 0 => self.source.set_limits(limits(&mut self.random)),
            _ => {}
        }
    }

    /// The source's process is started again beside a guest that it has sealed, and takes the pause back, if the log agrees.
    pub(super) fn call_off(&mut self) {
        let entry = Entry::CallOff { migration: self.migration.clone(), epoch: self.log.epoch };
        if self.log.apply(entry).is_ok() {
            self.note(|| "source: restarted, and the pause called off".into());
            (self.source_runs, self.pausing, self.target_link) = (true, false, None);
            self.target.link_lost();
            self.restart_source();
        }
    }

    pub(super) fn restart_source(&mut self) {
        self.session += 1;
        self.source_link = None;
        self.scans.clear();
        self.reading.clear();
        self.saving = false;
        // The scans of the old process are gone, and with them what it knew to be dirty.
        self.dirty = PageSet::empty(PAGES);
        self.gave_up = false;
        let limits = limits(&mut self.random);
        let setup = setup(&self.migration, self.session, (self.mode, self.audit), self.log.epoch, limits);
        self.source = SourceSession::new(self.now, setup);
    }

    /// The source's process is started again beside the guest that stands still.
    pub(super) fn restart_serving(&mut self) {
        self.note(|| "source: restarted".into());
        self.session += 1;
        self.reading.clear();
        let setup = setup(
            &self.migration,
            self.session,
            (self.mode, self.audit),
            self.sealed,
            limits(&mut self.random),
        );
        self.source = SourceSession::serving(self.now, setup, vec![9; 100]);
    }
}
