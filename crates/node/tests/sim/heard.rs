//! What the log says to a migration's sides, and what follows: handed over, called off, ended, licensed.
//!
//! Always true: nothing but a view resumes a guest that stands still, or starts one that has arrived.

use godwit_domain::ownership::{Entry, Mode, Ownership, Phase, Testimony};
use godwit_domain::{Epoch, MigrationId};

use crate::agent::Owed;
use crate::host::Order;
use crate::moves::{Closing, Stage, Transfer};
use crate::world::{At, World};

impl World {
    pub(crate) fn remind_transfers(&mut self, at: At) {
        let Some(agent) = self.machines[at].agent.as_ref() else { return };
        let told = agent.transfers.values().filter_map(|transfer| {
            Some((transfer.migration.clone(), agent.views.get(&transfer.uid)?.ownership.clone()))
        });
        for (migration, view) in told.collect::<Vec<_>>() {
            self.transfer_sees(at, &migration, &view);
        }
    }

    pub(crate) fn transfer_sees(&mut self, at: At, migration: &MigrationId, view: &Ownership) {
        let Some(transfer) = self.transfer(at, migration).cloned() else { return };
        if transfer.is_source() {
            self.source_sees(at, transfer, view);
        } else {
            self.target_sees(at, transfer, view);
        }
    }

    fn source_sees(&mut self, at: At, transfer: Transfer, view: &Ownership) {
        let migration = transfer.migration.clone();
        let ours = view.phase_of(&migration);
        if view.epoch <= transfer.epoch && ours.is_some_and(|phase| !phase.is_over()) {
            return;
        }
        match (ours, &transfer.stage) {
            (Some(Phase::HandedOver { .. } | Phase::PostCopy { .. }), Stage::Closing | Stage::Ending) => {
                if let Some(transfer) = self.transfer(at, &migration) {
                    transfer.stage = Stage::HandedOver;
                }
                self.testify(at, &migration, view);
            }
            (Some(Phase::HandedOver { .. }), Stage::HandedOver) => self.testify(at, &migration, view),
            // A pause was called off that an earlier process had made.
            (Some(Phase::Copying { .. }), Stage::Copying) => {
                if let Some(transfer) = self.transfer(at, &migration) {
                    transfer.epoch = view.epoch;
                }
                self.order(at, transfer.instance, Order::Run(view.epoch, None));
            }
            (
                Some(
                    Phase::Preparing { .. }
                    | Phase::Copying { .. }
                    | Phase::HandedOver { .. }
                    | Phase::PostCopy { .. },
                ),
                _,
            ) => {}
            (Some(Phase::Succeeded), _) => self.ends(at, &migration),
            (Some(Phase::Failed { .. } | Phase::Cancelled { .. } | Phase::Pending) | None, _) => {
                if view.licenses(transfer.instance) {
                    if let Some(here) = self.here(at, transfer.instance) {
                        here.busy = true;
                    }
                    self.order(at, transfer.instance, Order::Run(view.epoch, None));
                }
                self.ends(at, &migration);
            }
        }
    }

    /// Handed over, and `Final` has not left: then it never will, and that is written down before it is said.
    fn testify(&mut self, at: At, migration: &MigrationId, view: &Ownership) {
        if !matches!(view.phase_of(migration), Some(Phase::HandedOver { .. })) {
            return;
        }
        let Some(transfer) = self.transfer(at, migration) else { return };
        if transfer.closing == Closing::Left {
            return;
        }
        transfer.closing = Closing::Withheld;
        let (uid, instance, sealed) =
            (transfer.uid, transfer.instance, Epoch(view.epoch.0.saturating_sub(1)));
        self.machines[at].host.withheld.insert((uid, instance, sealed));
        let (migration, epoch) = (migration.clone(), view.epoch);
        let entry = Entry::HandBack { migration, epoch, testimony: Testimony::Withheld };
        self.owe(at, Owed::Guest(uid, entry));
    }

    fn target_sees(&mut self, at: At, transfer: Transfer, view: &Ownership) {
        let migration = transfer.migration.clone();
        match view.phase_of(&migration) {
            Some(Phase::Copying { target, .. } | Phase::HandedOver { target, .. })
                if target.instance != transfer.instance && transfer.has_started_nothing() =>
            {
                self.target_fails(at, &transfer);
            }
            Some(Phase::HandedOver { .. }) if view.licenses(transfer.instance) => {
                if let Stage::Loaded(sealed) = transfer.stage {
                    self.run_if_licensed(at, &migration, sealed, view);
                }
            }
            Some(Phase::Succeeded | Phase::Failed { .. } | Phase::Cancelled { .. }) | None => {
                self.ends(at, &migration);
            }
            Some(
                Phase::Pending
                | Phase::Preparing { .. }
                | Phase::Copying { .. }
                | Phase::HandedOver { .. }
                | Phase::PostCopy { .. },
            ) => {}
        }
    }

    /// A licence, and the complete guest of just the epoch before it.
    fn run_if_licensed(&mut self, at: At, migration: &MigrationId, sealed: Epoch, view: &Ownership) {
        let gone = view.phase_of(migration).is_some_and(Phase::source_is_gone);
        let Some(transfer) = self.transfer(at, migration) else { return };
        if sealed.next() != view.epoch || (gone && transfer.mode == Mode::PostCopy) {
            return;
        }
        transfer.stage = Stage::Starting(view.epoch);
        let (instance, uid) = (transfer.instance, transfer.uid);
        if let Some(here) = self.here(at, instance) {
            here.run_sent = true;
        }
        self.order(at, instance, Order::Run(view.epoch, Some(migration.clone())));
        self.tempt(at, uid);
    }
}
