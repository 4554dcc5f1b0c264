//! What is wrong with each cable, and how the kernel is told. Pure: states in, lines for `ip`, `tc` and `nft` out.
//!
//! ```text
//!   Cable ─▶ port      up or down in the hub                       cut both ways
//!         ─▶ rules     what the hub's bridge drops, all cables at once   cut one way, lossy
//!         ─▶ queues    at both ends, since each holds back what it sends  slow
//! ```
//!
//! Always true: the lines depend on the state alone, so that the same state twice is no change. A host sees nothing of
//! the rules: they stand in the hub, and its own sends succeed. ARP passes them, or a cut of one way would become one
//! of both when an address is asked for.
//!
//! A burst that was handed to the kernel in one piece (segmentation offload) passes the hub in one piece, and is lost
//! in one piece.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::rack::Net;

/// Directions, as seen from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// The cable is pulled: the host's own link goes down, too.
    Both,
    /// What others send it.
    In,
    /// What it sends.
    Out,
}

/// A host's number, from 1, and which of its cables.
pub(super) type End = (u8, Net);

/// What is wrong with a cable. Delays are the relays' business.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Cable {
    pub(super) cut: Option<Way>,
    /// Bytes in a second, each way.
    pub(super) slow: Option<u64>,
    /// How many of a hundred are lost, each way.
    pub(super) loss: u8,
}

impl Cable {
    /// A line of `ip` in the hub.
    pub(super) fn port(self, (host, net): End) -> String {
        let state = if self.cut == Some(Way::Both) { "down" } else { "up" };
        format!("link set {} {state}\n", net.port(host))
    }

    /// A line of `tc` for one end of it.
    pub(super) fn queue(self, device: &str) -> String {
        match self.slow {
            Some(bytes) => {
                format!("qdisc replace dev {device} root tbf rate {bytes}bps burst 64kb latency 50ms\n")
            }
            None => format!("qdisc replace dev {device} root noqueue\n"),
        }
    }

    fn drops(self, (host, net): End) -> String {
        let port = net.port(host);
        let (from, to) =
            (format!("iifname \"{port}\" ether type ip"), format!("oifname \"{port}\" ether type ip"));
        let mut drops = String::new();
        match self.cut {
            Some(Way::In) => drops += &format!("    {to} drop\n"),
            Some(Way::Out) => drops += &format!("    {from} drop\n"),
            Some(Way::Both) | None => {}
        }
        if self.loss > 0 {
            for side in [from, to] {
                let _ = writeln!(drops, "    {side} numgen random mod 100 < {} drop", self.loss);
            }
        }
        drops
    }
}

/// The hub's rules for all cables, in place of those that it has.
pub(super) fn rules(cables: &BTreeMap<End, Cable>) -> String {
    let drops: String = cables.iter().map(|(end, cable)| cable.drops(*end)).collect();
    format!(
        "table bridge field\ndelete table bridge field\ntable bridge field {{\n  chain forward {{\n    \
         type filter hook forward priority 0; policy accept;\n{drops}  }}\n}}\n"
    )
}
