//! This node's bandwidth, shared between the migrations that leave it.
//!
//! Always true: one that has succeeded and is being audited sends next to nothing, and has no share.

use godwit_domain::progress::Measured;
use godwit_domain::{Bandwidth, MigrationId, Settings, share};
use godwit_transfer::actor;
use godwit_transfer::drive::Told;

use super::{NodeActor, Transfer};

impl Transfer {
    fn sends_pages(&self) -> bool {
        self.expected.is_none() && !self.audits
    }
}

impl NodeActor {
    /// Shares this node's bandwidth between the migrations that leave it, and tells those whose share is another.
    pub(super) fn share_bandwidth(&mut self) {
        let mut leaving: Vec<&mut Transfer> =
            self.transfers.values_mut().filter(|transfer| transfer.sends_pages()).collect();
        let budget = leaving.iter().map(|transfer| transfer.settings.node_bandwidth);
        let budget = budget.min_by_key(|budget| budget.bytes_per_second().unwrap_or(u64::MAX));
        let caps: Vec<_> = leaving.iter().map(|transfer| transfer.settings.bandwidth).collect();
        let shares = share::max_min(budget.unwrap_or(Bandwidth::UNLIMITED), &caps);
        for (transfer, bandwidth) in leaving.iter_mut().zip(shares) {
            let settings = Settings { bandwidth, ..transfer.settings };
            if transfer.told != settings {
                transfer.told = settings;
                transfer.actor.do_send(actor::Order(Told::Settings(settings)));
            }
        }
    }

    /// It has succeeded, and from now on its two sides are compared.
    pub(super) fn is_audited(&mut self, migration: MigrationId, measured: Measured) {
        if let Some(transfer) = self.transfers.get_mut(&migration) {
            transfer.audits = true;
        }
        self.share_bandwidth();
        self.tell_measured(migration, measured);
    }
}
