//! Bad links between the nodes of a story: `tests/link`, put where nodes look for each other.
//!
//! ```text
//!   pages      source ──▶ Relay ──▶ target's migration address    the puppet has it agreed that the target is there
//!   sessions   node-a ──▶ Relay ──▶ node-b's control address      node-a's config says that node-b is there
//! ```
//!
//! A node tells others the migration address that it has bound, so pages pass a relay only where a puppet leads. Sessions
//! pass one in any cluster.
//!
//! Always true: each relay tells on stderr, when it begins, the line that replays it. `GODWIT_LINK_SEED=N` sets the seed
//! of the first relay of a process, of the next N + 1, and so on; without it chance does. Relays go with the story's
//! runtime, so that nodes keep their links until they end.

#[allow(dead_code, reason = "each story needs a part of it; its own tests need all")]
#[path = "../link/one_way.rs"]
mod one_way;
#[allow(dead_code, reason = "each story needs a part of it; its own tests need all")]
#[path = "../link/relay.rs"]
mod relay;

use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use godwit::lab::cluster::NodeSpec;
use godwit_domain::NodeName;
use godwit_domain::registry::{Command, Node};

pub(crate) use one_way::{Chance, Plan};
pub(crate) use relay::{Relay, Way};

use crate::support::puppet::Puppet;
use crate::support::world::node;

/// Where the first seed is read from.
const SEED_VARIABLE: &str = "GODWIT_LINK_SEED";

/// The relays between voters: that of the first name's calls to the second.
pub(crate) type Mesh = BTreeMap<(NodeName, NodeName), Arc<Relay>>;

/// Puts a relay before a node that has joined the puppet: whoever sends it a guest from now on calls the relay. If the
/// node joins again it is called directly again.
pub(crate) fn before(puppet: &Puppet, target: &str, plan: Plan) -> Result<Arc<Relay>, Box<dyn Error>> {
    let itself = puppet.registry(|registry| registry.nodes.get(&node(target)).cloned());
    let itself = itself.ok_or_else(|| format!("{target} has not joined"))?;
    let relay = start(itself.migration, plan)?;
    let moved = Node { migration: relay.address(), ..itself };
    puppet.apply(Command::Join { name: node(target), node: moved })?;
    Ok(relay)
}

/// Puts a relay before each voter, another one for each node that calls it. The nodes must not have started yet.
pub(crate) fn between(specs: &mut [NodeSpec], plan: Plan) -> Result<Mesh, Box<dyn Error>> {
    let mut mesh = Mesh::new();
    for NodeSpec { name, voters, .. } in specs {
        for (voter, address) in voters.iter_mut().filter(|(voter, _)| **voter != *name) {
            let relay = start(*address, plan)?;
            *address = relay.address();
            mesh.insert((name.clone(), voter.clone()), relay);
        }
    }
    Ok(mesh)
}

#[expect(
    clippy::print_stderr,
    reason = "whoever wants to replay a story must see it, whatever becomes of the story"
)]
fn start(target: SocketAddr, plan: Plan) -> io::Result<Arc<Relay>> {
    let seed = seed()?;
    let relay = Arc::new(Relay::start(target, seed, plan, plan)?);
    eprintln!("\n{SEED_VARIABLE}={seed}  # {}", relay.plans());
    let kept = Arc::clone(&relay);
    tokio::spawn(async move {
        std::future::pending::<()>().await;
        drop(kept);
    });
    Ok(relay)
}

/// The next relay's seed.
fn seed() -> io::Result<u64> {
    static FIRST: OnceLock<Result<u64, String>> = OnceLock::new();
    static RELAYS: AtomicU64 = AtomicU64::new(0);
    let first = FIRST.get_or_init(|| match std::env::var(SEED_VARIABLE) {
        Ok(text) => text.parse().map_err(|_| format!("{SEED_VARIABLE} must be a whole number, not {text:?}")),
        // Short, since people copy it.
        Err(_) => Ok(u64::from(fastrand::u32(..))),
    });
    let first = first.as_ref().map_err(|why| io::Error::other(why.clone()))?;
    Ok(first.wrapping_add(RELAYS.fetch_add(1, Ordering::Relaxed)))
}
