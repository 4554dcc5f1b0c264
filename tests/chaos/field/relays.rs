//! Relays that delay, since the kernel here can not: on the way of every datagram, all the time, so that a delay comes
//! and goes in the middle of a connection.
//!
//! ```text
//!   control   a caller ──▶ voter's host: redirected to that caller's relay ──▶ the node's own address
//!   pages     others ───▶ host: redirected to its relay ────────────────────▶ the node's own address
//! ```
//!
//! Redirected, and not named in anybody's config: nodes tell each other the addresses that they have, and call those.
//!
//! Always true: a delay of a host's cable is added to each datagram, each way. On `pages` that is so for those who call
//! it, the sources of what moves there, and for its answers; what moves away from it is delayed by the other host.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

#[allow(dead_code, reason = "a field needs a part of it; its own tests need all")]
#[path = "../../link/one_way.rs"]
mod one_way;
#[allow(dead_code, reason = "a field needs a part of it; its own tests need all")]
#[path = "../../link/relay.rs"]
mod relay;

use super::rack::{Net, Rack, inside};
use one_way::Plan;
use relay::{Relay, Way};

/// Every node's control port: each has an address of its own.
pub(super) const CONTROL_PORT: u16 = 7300;
/// Every node's migration port.
pub(super) const PAGES_PORT: u16 = 7400;
/// Where what is sent to the migration port arrives.
const PAGES_RELAY_PORT: u16 = 7401;
/// Where what a caller sends to the control port arrives: so much and the caller's number.
const CONTROL_RELAY_PORT: u16 = 7310;

/// A host's number, from 1.
type Host = u8;
/// How long a cable takes longer, at least, and by how much that varies.
pub(super) type Delay = (Duration, Duration);

/// See the module.
#[derive(Debug)]
pub(super) struct Relays {
    /// From a caller to a voter.
    control: BTreeMap<(Host, Host), Relay>,
    /// Before a host.
    pages: BTreeMap<Host, Relay>,
}

impl Relays {
    /// Those of all hosts, of whom the first so many vote. What chance decides follows from the seed.
    pub(super) fn start(rack: &Rack, voters: usize, seed: u64) -> Result<Self, Box<dyn Error>> {
        let (mut control, mut pages) = (BTreeMap::new(), BTreeMap::new());
        let mut seeds = seed..;
        let mut start = |namespace: &str, front: SocketAddr, target: SocketAddr| {
            let seed = seeds.next().unwrap_or(seed);
            inside(namespace, || Relay::start_at(front, target, seed, Plan::PERFECT, Plan::PERFECT))
        };
        let hosts = || (1..).zip(&rack.hosts);
        for (host, namespace) in hosts() {
            let mut rules = vec![redirection(Net::Pages, None, PAGES_PORT, PAGES_RELAY_PORT)];
            let address = Net::Pages.address(host);
            let relay = start(namespace, (address, PAGES_RELAY_PORT).into(), (address, PAGES_PORT).into())?;
            pages.insert(host, relay);
            let is_voter = usize::from(host) <= voters;
            for (caller, _) in hosts().filter(|(caller, _)| is_voter && *caller != host) {
                let (address, port) = (Net::Control.address(host), CONTROL_RELAY_PORT + u16::from(caller));
                rules.push(redirection(Net::Control, Some(caller), CONTROL_PORT, port));
                let relay = start(namespace, (address, port).into(), (address, CONTROL_PORT).into())?;
                control.insert((caller, host), relay);
            }
            rack.nft(namespace, &table(&rules))?;
        }
        Ok(Self { control, pages })
    }

    /// Gives all relays the delays that hold now.
    pub(super) fn delay(&self, delays: &BTreeMap<(Host, Net), Delay>) {
        let of = |host, net| delays.get(&(host, net)).copied().unwrap_or_default();
        for ((caller, voter), relay) in &self.control {
            let (caller, voter) = (of(*caller, Net::Control), of(*voter, Net::Control));
            change(relay, (caller.0 + voter.0, caller.1 + voter.1));
        }
        self.pages.iter().for_each(|(host, relay)| change(relay, of(*host, Net::Pages)));
    }
}

fn change(relay: &Relay, (delay, jitter): Delay) {
    let plan = Plan { delay, jitter, ..Plan::PERFECT };
    [Way::There, Way::Back].into_iter().for_each(|way| relay.change(way, plan));
}

/// What comes in on the cable is redirected; what the relay sends on to the node does not come in on it.
fn table(rules: &[String]) -> String {
    format!(
        "table ip field\ndelete table ip field\ntable ip field {{\n  chain prerouting {{\n    \
         type nat hook prerouting priority dstnat; policy accept;\n    {}\n  }}\n}}\n",
        rules.join("\n    ")
    )
}

/// What a caller, or anybody, sends to this port.
fn redirection(net: Net, caller: Option<Host>, port: u16, relay_port: u16) -> String {
    let of = caller.map_or_else(String::new, |caller| format!(" ip saddr {}", net.address(caller)));
    format!("iifname \"{}\"{of} udp dport {port} redirect to :{relay_port}", net.name())
}
