//! The target's link to the source: two connections that belong together, and what it means when they are gone.
//!
//! Always true: what still comes out of an older link is told apart by its number; either connection gone is the link gone.

use quinn::{Connection, RecvStream, SendStream};
use tokio::task::JoinSet;
use tracing::Instrument;

use godwit_wire::migration::{Preamble, SessionId};

use super::hands::{accept_pages, hear_frames};
use super::{BROKE_PROTOCOL, Driver};
use crate::target::{Lane, Violation};

/// A connection whose preamble fits.
#[derive(Debug)]
pub struct Inbound {
    /// Which of the two connections of a link it is.
    pub lane: Lane,
    /// The connection.
    pub connection: Connection,
    /// Its control stream, greeted.
    pub control: (SendStream, RecvStream),
    /// What the source said.
    pub preamble: Preamble,
}

/// How a closed connection tells the peer that another is wanted.
const LINK_LOST: u32 = 3;

/// The two connections of a link and the tasks that read from them. Dropping it ends them.
pub(super) struct Link {
    pub(super) number: u64,
    /// How the source calls it.
    name: (SessionId, u64),
    urgent: Connection,
    bulk: Option<(Connection, SendStream)>,
    pub(super) control: SendStream,
    /// What reads page streams: closed before the memory is sealed.
    pub(super) readers: JoinSet<()>,
    /// What reads the control stream: once the guest runs, only an audit is heard.
    _frames: JoinSet<()>,
}

impl Link {
    pub(super) fn close(&self, why: &[u8]) {
        self.close_with(0, why);
    }

    pub(super) fn close_with(&self, code: u32, why: &[u8]) {
        self.urgent.close(code.into(), why);
        if let Some((bulk, _)) = &self.bulk {
            bulk.close(code.into(), why);
        }
    }
}

impl Driver {
    /// The source has connected: with the connection that a link begins with, or with its second one.
    pub(super) fn linked(&mut self, inbound: Inbound) {
        if inbound.lane == Lane::Bulk {
            return self.bulk_linked(inbound);
        }
        let Inbound { connection, control: (control, hear), preamble, .. } = inbound;
        if !self.session.can_link() {
            connection.close(BROKE_PROTOCOL.into(), b"busy punching; connect again");
            return;
        }
        self.links += 1;
        let number = self.links;
        let (readers, mut frames) = (JoinSet::new(), JoinSet::new());
        let events = self.outs.events.clone();
        frames.spawn(hear_frames(hear, number, connection.clone(), events).in_current_span());
        let (from, to) = (connection.remote_address(), connection.local_ip());
        let name = (preamble.session, preamble.link);
        let mut link =
            Link { number, name, urgent: connection, bulk: None, control, readers, _frames: frames };
        self.accept(&mut link, Lane::Urgent);
        self.link = Some(link);
        self.session.linked(number, preamble.session);
        tracing::info!(source = %preamble.source, %from, ?to, link = number, "source connected");
        if let Some(early) = self.early_bulk.take() {
            self.bulk_linked(*early);
        }
    }

    fn bulk_linked(&mut self, inbound: Inbound) {
        let name = (inbound.preamble.session, inbound.preamble.link);
        match self.link.take() {
            Some(mut link) if link.name == name && link.bulk.is_none() => {
                link.bulk = Some((inbound.connection, inbound.control.0));
                self.accept(&mut link, Lane::Bulk);
                self.link = Some(link);
            }
            link => {
                self.link = link;
                self.early_bulk = Some(Box::new(inbound));
            }
        }
    }

    fn accept(&self, link: &mut Link, lane: Lane) {
        let (connection, batches) = match (lane, &link.bulk) {
            (Lane::Bulk, Some((bulk, _))) => (bulk.clone(), self.outs.bulk.clone()),
            (Lane::Bulk, None) => return,
            (Lane::Urgent, _) => (link.urgent.clone(), self.outs.urgent.clone()),
        };
        let (which, events) = ((link.number, lane), self.outs.events.clone());
        let accept = accept_pages(connection, which, self.guest_pages, batches, events);
        link.readers.spawn(accept.in_current_span());
    }

    /// Once the guest is loaded, nothing more is needed of the source but its proposal, which the log brings. Before, a
    /// source that was restarted may come back and send everything again; and in post-copy whoever waits for a page waits on.
    pub(super) fn link_is_gone(&mut self, reason: &str) {
        let Some(link) = self.link.take() else { return };
        link.close_with(LINK_LOST, reason.as_bytes());
        self.session.link_lost();
        self.alone_since = self.clock.now();
        let missing = self.session.missing().filter(|missing| missing.0 > 0);
        match missing {
            _ if self.session.needs_the_source() => {
                tracing::info!(reason, "connection to the source lost; waiting for it to come back");
            }
            Some(missing) => tracing::warn!(
                reason,
                missing_bytes = missing.bytes(),
                "connection to the source lost in post-copy; whoever touches what is missing waits for it to come back"
            ),
            None => {}
        }
        self.check_source();
    }

    /// A guest that was handed over stands still until it is whole here, or back at its source: without a connection
    /// the latter is faster.
    pub(super) fn check_source(&mut self) {
        if self.link.is_none() && self.session.is_licensed() && self.session.needs_the_source() {
            self.session.fail(
                "handed over, and the connection to the source is lost before everything had come".into(),
            );
        }
    }

    /// Nobody is left who could send what is missing. The guest is never given zeros in its place.
    pub(super) fn say_if_stranded(&mut self) {
        if self.session.is_stranded() && !std::mem::replace(&mut self.stranded, true) {
            let missing_bytes = self.session.missing().unwrap_or_default().bytes();
            tracing::error!(
                missing_bytes,
                "the source is gone for good and pages are missing: whoever touches one waits; delete the guest, or keep it \
                 for what can be saved of it"
            );
        }
    }

    pub(super) fn check(&mut self, outcome: Result<(), Violation>) {
        if let Err(violation) = outcome {
            self.protocol_broken(&violation.to_string());
        }
    }

    pub(super) fn protocol_broken(&mut self, rule: &str) {
        tracing::warn!(rule, "the source broke the protocol");
        if let Some(link) = &self.link {
            link.close_with(BROKE_PROTOCOL, rule.as_bytes());
        }
        self.link_is_gone(rule);
        // A peer that breaks the protocol will break it again.
        if self.session.needs_the_source() {
            self.session.fail(format!("connection to the source lost: {rule}"));
        }
    }
}
