//! What a node is told, and what it may say: functions of the registry and the node's name.
//!
//! Always true: a node is told of guests that it plays a part in or may hold something of, nothing else; it proposes for
//! itself and about those guests; a fenced one proposes nothing but that it has stopped.

use std::net::SocketAddr;

use godwit_domain::NodeName;
use godwit_domain::ownership::{Entry, Side};
use godwit_domain::registry::{Command, Guest, GuestUid, Node, Registry};
use godwit_wire::session::{Answer, GuestView, Push};

/// Whether a node is known as it says that it is, so that it need not join.
pub fn is_known(registry: &Registry, name: &NodeName, node: &Node) -> bool {
    registry.nodes.get(name).is_some_and(|known| Node { fenced: None, ..known.clone() } == *node)
}

/// All guests that a node is told of when its session begins.
pub fn all_for(registry: &Registry, name: &NodeName) -> Vec<GuestUid> {
    let holds = registry.touched_by(name).filter(|(_, guest)| guest.ownership.holders.contains(name));
    holds.map(|(uid, _)| uid).collect()
}

/// What a node is told of these guests. `complete`: nothing else has changed.
pub fn pushed(registry: &Registry, node: &NodeName, guests: Vec<GuestUid>, complete: bool) -> Push {
    let fenced = registry.nodes.get(node).and_then(|node| node.fenced.clone());
    let views = guests.into_iter().filter_map(|uid| view_of(registry, uid));
    let asked = registry.unheard.contains(node);
    Push { fenced, membership: None, guests: views.collect(), complete, asked }
}

fn view_of(registry: &Registry, uid: GuestUid) -> Option<GuestView> {
    let guest = registry.guests.get(&uid)?;
    let target = guest.ownership.attempt.as_ref().and_then(|attempt| attempt.phase.target_node());
    let network = network_of(guest);
    let target = target.and_then(|target| registry.nodes.get(target));
    Some(GuestView {
        uid,
        name: guest.name.clone(),
        spec: guest.spec().clone(),
        ownership: planted::told(&guest.ownership),
        settings: registry.settings_of(guest),
        target_address: target.and_then(|target| address_in(target, network.as_deref())),
        network,
        post_copy_at_once: guest.record.as_ref().is_some_and(|record| record.wish.post_copy_at_once),
    })
}

/// The network that a guest's present migration goes over; `None`: the default.
fn network_of(guest: &Guest) -> Option<String> {
    guest.record.as_ref().and_then(|record| record.network.clone())
}

/// Where pages for a node come in, if it is in that network.
fn address_in(node: &Node, network: Option<&str>) -> Option<SocketAddr> {
    match network {
        None => Some(node.migration),
        Some(network) => node.networks.get(network).copied(),
    }
}

/// Whether a node may propose this now. `Err`: what it is answered instead.
pub fn may_say(registry: &Registry, node: &NodeName, command: &Command) -> Result<(), Answer> {
    match command {
        Command::FenceSeen { node: of } if of == node => Ok(()),
        Command::Testify { node: of, .. } if of == node => {
            not_fenced(registry, node)?;
            match registry.unheard.contains(node) {
                true => Ok(()),
                false => Err(Answer::Refused { why: format!("node {node} is not asked what it has") }),
            }
        }
        Command::Guest { .. } | Command::Measured { .. } | Command::Reached { .. } => {
            not_fenced(registry, node)?;
            if !is_for(registry, node, command) {
                let why = format!("node {node} plays no part in what it proposes: {command:?}");
                return Err(Answer::Refused { why });
            }
            Ok(())
        }
        other => Err(Answer::Refused { why: format!("a node does not propose {other:?}") }),
    }
}

/// A fenced node says nothing else before it has said that it has stopped what it must.
fn not_fenced(registry: &Registry, node: &NodeName) -> Result<(), Answer> {
    if registry.nodes.get(node).is_some_and(|node| node.fenced.is_some()) {
        let why = format!("node {node} is fenced and has not said that its guests are stopped");
        return Err(Answer::Unknown { why });
    }
    Ok(())
}

/// Whether a node may say this: it is about a guest that it plays a part in, and no operator's word.
fn is_for(registry: &Registry, node: &NodeName, command: &Command) -> bool {
    let guest = match command {
        Command::Guest { guest, entry } if is_a_nodes(entry) => Some(*guest),
        Command::Measured { migration, .. } | Command::Reached { migration, .. } => {
            registry.guest_of(migration).map(|(uid, _)| uid)
        }
        _ => None,
    };
    guest.is_some_and(|guest| registry.touches(node, guest))
}

fn is_a_nodes(entry: &Entry) -> bool {
    match entry {
        Entry::Born { .. }
        | Entry::Decline { .. }
        | Entry::Accept { .. }
        | Entry::HandOver { .. }
        | Entry::CallOff { .. }
        | Entry::End { side: Side::Source | Side::Target | Side::Deadline, .. }
        | Entry::Dropped { .. }
        | Entry::Running { .. }
        | Entry::AllPages { .. }
        | Entry::HandBack { .. }
        | Entry::Gone { .. }
        | Entry::Purged { .. } => true,
        Entry::Request { .. }
        | Entry::Start { .. }
        | Entry::End { side: Side::Control | Side::Operator, .. }
        | Entry::Vouch { .. }
        | Entry::Recover { .. }
        | Entry::Delete
        | Entry::Found
        | Entry::Unclaimed { .. }
        | Entry::Claimed { .. }
        | Entry::Settle { .. } => false,
    }
}

/// A bug that tests switch on: an order under an epoch that is over.
mod planted {
    use godwit_domain::Epoch;
    use godwit_domain::ownership::Ownership;

    pub(super) fn told(ownership: &Ownership) -> Ownership {
        let mut told = ownership.clone();
        if godwit_domain::planted::is_on("old-epoch-told") {
            told.epoch = Epoch(told.epoch.0.saturating_sub(1));
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_reached_in_the_network_that_is_named_and_in_no_other() {
        let at = |text: &str| text.parse::<SocketAddr>().expect("address");
        let networks = [("storage".to_owned(), at("10.1.0.1:7400"))].into();
        let boot = godwit_domain::registry::BootId(1);
        let node = Node { networks, ..Node::new(at("10.0.0.1:7300"), at("10.0.0.1:7400"), boot, 1) };
        for (network, address) in
            [(None, Some("10.0.0.1:7400")), (Some("storage"), Some("10.1.0.1:7400")), (Some("other"), None)]
        {
            assert_eq!(address_in(&node, network), address.map(at), "{network:?}");
        }
    }
}
