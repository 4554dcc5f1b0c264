//! The same through the group: two voters agree on all of it, a third comes in empty, the leader ends.
//!
//! Always true: the leader's own loop ([`group::lead`]) admits. Every node has a session with every voter, each over one and
//! the same connection to nobody: what sessions cost is the other benchmark's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use godwit_control::{NodeId, Role};
use godwit_node::group::{self, Group};
use quinn::{ClientConfig, Connection, Endpoint, ServerConfig, TransportConfig};
use rustls::RootCertStore;
use rustls::pki_types::PrivateKeyDer;
use tokio::task::JoinSet;

use super::alone::{NO_LIMIT, OF_NODE};
use super::support::disks::Count;
use super::support::fleet::{self, node_name};
use super::support::voters::Trio;
use super::support::{Failure, Numbers, is_quick};
use super::{Size, Table};

pub(super) const CATCH_UP: &str = "group: an empty voter has caught up after, ms";
pub(super) const FIRST_GRANT: &str = "group: from leading to the first grant, ms";

/// Who asks at once.
const CLIENTS: u64 = 64;
/// How long something that must happen may take.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn measure(size: Size, table: &mut Table) -> Result<(), Failure> {
    let dir = tempfile::Builder::new().prefix("godwit-bench-").tempdir()?;
    let mut trio = Trio::new(dir.path().to_owned());
    let [first, second, third] = trio.ids()[..] else { return Err("three voters".into()) };
    trio.start(first)?;
    trio.start(second)?;
    let group = trio.elect(first).await?.group.clone();
    build(&trio, &group, size, table).await?;
    trio.applied(second, group.view().applied).await?;
    table.add("group: commands a second, 16 under way", rate(&group, size).await?);

    let (began, term) = (Instant::now(), group.view().term);
    trio.start(third)?;
    trio.applied(third, group.view().applied).await?;
    table.add(CATCH_UP, began.elapsed().as_secs_f64() * 1e3);
    if !group.leads() || group.view().term != term {
        return Err("the leader lost its leadership over a voter that caught up".into());
    }
    // So that the next leader has something to do at once. Nobody admits here.
    group.propose(fleet::limits(NO_LIMIT, OF_NODE)).await?;
    let applied = group.view().applied;
    let mut leading = JoinSet::new();
    let nobody = Nobody::start()?;
    for id in [second, third] {
        trio.applied(id, applied).await?;
        let voter = trio.voters.get(&id).ok_or("it runs")?.group.clone();
        let connection = nobody.connect().await?;
        for n in 0..size.nodes {
            voter.floor().enter(&node_name(n), connection.clone());
        }
        leading.spawn(group::lead(voter));
    }
    drop(group);
    let leader = succeed(&mut trio, first, table).await?;
    let group = trio.voters.get(&leader).ok_or("it runs")?.group.clone();
    table.add("group: commands a second, 16 under way, with the leader's loop", rate(&group, size).await?);
    let began = Instant::now();
    trio.start(first)?;
    table.add("group: a voter starts from its disk in, ms", began.elapsed().as_secs_f64() * 1e3);
    leading.shutdown().await;
    drop(group);
    trio.end().await
}

/// Every command that makes the cluster; those about one guest in order.
async fn build(trio: &Trio, group: &Group, size: Size, table: &mut Table) -> Result<(), Failure> {
    let (began, disks) = (Instant::now(), trio.told.count());
    for n in 0..size.nodes {
        group.propose(fleet::join(n)).await?;
    }
    group.propose(fleet::limits(0, OF_NODE)).await?;
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let group = group.clone();
        clients.spawn(async move {
            let mut longest = Duration::ZERO;
            for n in (client..size.guests).step_by(usize::try_from(CLIENTS).unwrap_or(1)) {
                let made = [fleet::create(n, node_name(n % size.nodes)), fleet::born(n)];
                let asked = (n < size.waiting).then(|| fleet::ask(n, size.nodes));
                for command in made.into_iter().chain(asked) {
                    let asked = Instant::now();
                    group.propose(command).await?;
                    longest = longest.max(asked.elapsed());
                }
            }
            Ok::<_, group::NotAgreed>(longest)
        });
    }
    let mut longest = Duration::ZERO;
    while let Some(done) = clients.join_next().await {
        longest = longest.max(done??);
    }
    let Count { snapshots, snapshot_ns, .. } = trio.told.count().since(disks);
    table.add("group: all that makes the cluster, s", began.elapsed().as_secs_f64());
    table.add("group: snapshots stored by a voter meanwhile", snapshots as f64 / 2.0);
    table.add("group: storing one, ms", snapshot_ns as f64 / 1e6 / snapshots.max(1) as f64);
    table.add("group: the command that took longest, ms", longest.as_secs_f64() * 1e3);
    Ok(())
}

/// Commands a second: other labels for guests that are not waiting, with 16 under way.
async fn rate(group: &Group, size: Size) -> Result<f64, Failure> {
    let length = if is_quick() { Duration::from_millis(300) } else { Duration::from_secs(4) };
    let began = Instant::now();
    let mut clients = JoinSet::new();
    for guest in size.waiting..size.waiting + 16 {
        let group = group.clone();
        clients.spawn(async move {
            let mut count = 0_u64;
            while began.elapsed() < length {
                group.propose(fleet::relabel(guest, count)).await?;
                count += 1;
            }
            Ok::<_, group::NotAgreed>(count)
        });
    }
    let mut count = 0;
    while let Some(done) = clients.join_next().await {
        count += done??;
    }
    Ok(count as f64 / began.elapsed().as_secs_f64())
}

/// The leader ends; whoever comes after it grants what waits. Returns who that is.
async fn succeed(trio: &mut Trio, leader: NodeId, table: &mut Table) -> Result<NodeId, Failure> {
    trio.stop(leader).await?;
    let ended = Instant::now();
    let others = trio.voters.iter().map(|(id, voter)| (*id, voter.group.clone()));
    let mut elections = JoinSet::new();
    for (id, group) in others {
        elections.spawn(async move {
            let mut view = group.watch();
            let leads = view.wait_for(|view| view.role == Role::Leader).await.is_ok();
            (id, group.clone(), leads)
        });
    }
    let elected = tokio::time::timeout(PATIENCE, elections.join_next()).await?;
    let (id, group, true) = elected.ok_or("two voters")?? else { return Err("a voter has stopped".into()) };
    let leads = Instant::now();
    table.add("group: from the leader's end to another, ms", (leads - ended).as_secs_f64() * 1e3);
    let (mut granted, mut last, mut times) = (0, leads, Numbers::default());
    let mut view = group.watch();
    // Until nothing is granted any more.
    while last.elapsed() < Duration::from_secs(2) {
        let _ = tokio::time::timeout(Duration::from_millis(100), view.changed()).await;
        let count = group.read(|registry| registry.granted().count()).await.ok_or("it runs")?;
        if count > granted {
            last = Instant::now();
            times.0.push((last - leads).as_secs_f64());
            granted = count;
        }
    }
    let (first, all) = (times.0.first().copied(), times.0.last().copied());
    table.add(FIRST_GRANT, first.unwrap_or(f64::NAN) * 1e3);
    table.add("group: granted until the nodes' limits bind", granted as f64);
    table.add("group: grants a second", granted as f64 / all.unwrap_or(f64::NAN));
    Ok(id)
}

/// A peer that says nothing.
struct Nobody {
    endpoint: Endpoint,
    client: ClientConfig,
}

impl Nobody {
    fn start() -> Result<Self, Failure> {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let mut transport = TransportConfig::default();
        transport.max_idle_timeout(None);
        let transport = Arc::new(transport);
        let mut server = ServerConfig::with_single_cert(vec![made.cert.der().clone()], key)?;
        server.transport_config(Arc::clone(&transport));
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone())?;
        let mut client = ClientConfig::with_root_certificates(Arc::new(roots))?;
        client.transport_config(transport);
        let endpoint = Endpoint::server(server, ([127, 0, 0, 1], 0).into())?;
        let listening = endpoint.clone();
        tokio::spawn(async move {
            while let Some(incoming) = listening.accept().await {
                tokio::spawn(async move {
                    if let Ok(connection) = incoming.await {
                        connection.closed().await;
                    }
                });
            }
        });
        Ok(Self { endpoint, client })
    }

    async fn connect(&self) -> Result<Connection, Failure> {
        let address = self.endpoint.local_addr()?;
        Ok(self.endpoint.connect_with(self.client.clone(), address, "localhost")?.await?)
    }
}
