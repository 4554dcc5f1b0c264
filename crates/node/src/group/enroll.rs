//! Who is in the group, told to every node that has a session: so a node hears that it is to learn, and takes its place;
//! and whoever was taken out while it was away hears that.
//!
//! ```text
//!   members, as this leader has applied them ─┬─▶ Welcome, at the beginning of a session
//!   addresses, as nodes have joined ──────────┘   Push, whenever the members are others
//! ```
//!
//! Always true: what is told is agreed; a session hears of each change that was told to it once.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use godwit_control::{Members, View};
use godwit_domain::NodeName;
use godwit_domain::registry::Registry;
use godwit_wire::session::Membership;
use tokio::sync::watch;

use super::Group;

/// What a session was told of the members.
#[derive(Debug)]
pub(super) struct Told {
    index: u64,
    view: watch::Receiver<View>,
}

/// Who is in the group, with the addresses by which the others reach them. `None`: there is no book, or no voter, any more.
pub(super) async fn membership(group: &Group) -> Option<Membership> {
    let members = group.members();
    let book = group.keeper().now()?;
    let looked_for = members.clone();
    let addresses = group.read(move |registry| addresses(registry, &looked_for)).await?;
    Some(book.told(&members, |name| addresses.get(name).copied()))
}

fn addresses(registry: &Registry, members: &Members) -> BTreeMap<NodeName, SocketAddr> {
    let address = |name: &NodeName| Some((name.clone(), registry.nodes.get(name)?.control));
    members.iter().filter_map(|(_, member)| address(&member.name)).collect()
}

impl Told {
    /// Nothing but this.
    pub(super) fn new(group: &Group, membership: &Membership) -> Self {
        Self { index: membership.index, view: group.watch() }
    }

    /// What is to be told, if the members are others.
    pub(super) async fn news(&mut self, group: &Group) -> Option<Membership> {
        if group.members().index() == self.index {
            return None;
        }
        let membership = membership(group).await?;
        self.index = membership.index;
        Some(membership)
    }

    /// Waits until there is something to tell. Never ends with the voter: its sessions do.
    pub(super) async fn changed(&mut self) {
        let index = self.index;
        if self.view.wait_for(|view| view.members.index() != index).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
