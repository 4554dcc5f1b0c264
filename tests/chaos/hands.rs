//! The hands that do what befalls a host, and undo it: to processes in network namespaces, or to containers.
//!
//! Always true: what was begun has its undoing, which may be done twice; a killed process is started again as it was.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use godwit::lab::cluster::Cluster;
use godwit_domain::{GuestName, InstanceId, NodeName};
use rustix::process::{Pid, Signal, kill_process};

use crate::containers::Containers;
use crate::faults::{Kind, Undo};
use crate::field::{Disk, Field, Net, Way};
use crate::support::Outcome;
use crate::support::world::MIB;
use crate::ticks::CLOCK_SHIFT_NS;

/// A runner that was killed.
pub(crate) type Killed = (GuestName, InstanceId);

/// The cables of a host.
const NETS: [Net; 2] = [Net::Control, Net::Pages];

/// See the module.
pub(crate) enum Hand<'a> {
    Namespaces(Namespaces<'a>),
    Containers(Containers),
}

impl Hand<'_> {
    /// Whether it can do that.
    pub(crate) fn can(&self, kind: Kind) -> bool {
        match self {
            Self::Namespaces(_) => true,
            Self::Containers(_) => Containers::can(kind),
        }
    }

    /// Does it. What undoes it, and runners that were killed; nothing, if it can not be done now. If a runner is to be
    /// killed, it is this one, else any.
    pub(crate) async fn begin(
        &mut self,
        kind: Kind,
        node: &NodeName,
        runner: Option<InstanceId>,
        rng: &mut Rng,
    ) -> Result<Option<(Undo, Vec<Killed>)>, Box<dyn Error>> {
        match self {
            Self::Namespaces(hosts) => hosts.begin(kind, node, runner, rng).await.map(Some),
            Self::Containers(hosts) => hosts.begin(kind, node).await,
        }
    }

    /// These nodes hear and say everything so much later, whenever nothing else is wrong with their link.
    pub(crate) fn put_far(&mut self, nodes: &[NodeName], delay: Duration) {
        if let Self::Namespaces(hosts) = self {
            hosts.far = nodes.iter().map(|node| (node.clone(), delay)).collect();
            nodes.iter().for_each(|node| hosts.be_prompt(node, Net::Control));
        }
    }

    /// Undoes it.
    pub(crate) async fn undo(&mut self, undo: &Undo, node: &NodeName) -> Outcome {
        match self {
            Self::Namespaces(hosts) => hosts.undo(undo, node).await,
            Self::Containers(hosts) => hosts.undo(undo, node).await,
        }
    }

    /// Undoes whatever is wrong with cables and disks.
    pub(crate) fn heal(&self) -> Outcome {
        match self {
            Self::Namespaces(hosts) => hosts.field.heal(),
            Self::Containers(_) => Ok(()),
        }
    }

    /// Whether a node's process has ended.
    pub(crate) fn has_ended(&mut self, node: &NodeName) -> bool {
        match self {
            Self::Namespaces(hosts) => hosts.cluster.has_ended(node),
            Self::Containers(hosts) => hosts.has_ended(node),
        }
    }
}

/// Processes on the hosts of a field.
pub(crate) struct Namespaces<'a> {
    pub(crate) cluster: &'a mut Cluster,
    pub(crate) field: Arc<Field>,
    /// How far nodes are by themselves.
    pub(crate) far: BTreeMap<NodeName, Duration>,
}

impl Namespaces<'_> {
    async fn begin(
        &mut self,
        kind: Kind,
        node: &NodeName,
        runner: Option<InstanceId>,
        rng: &mut Rng,
    ) -> Result<(Undo, Vec<Killed>), Box<dyn Error>> {
        let field = &self.field;
        let mut killed = Vec::new();
        let undo = match kind {
            Kind::KillNode => {
                self.cluster.kill_node(node).await?;
                Undo::Start { shift: Duration::ZERO, mend: false }
            }
            Kind::KillCutOff => {
                NETS.iter().try_for_each(|net| field.cut(node, *net, Way::Both))?;
                self.cluster.kill_node(node).await?;
                Undo::Start { shift: Duration::ZERO, mend: true }
            }
            Kind::ShiftClock => {
                self.cluster.kill_node(node).await?;
                Undo::Start { shift: Duration::from_nanos(CLOCK_SHIFT_NS * rng.u64(1..=20)), mend: false }
            }
            Kind::KillHost => {
                NETS.iter().try_for_each(|net| field.cut(node, *net, Way::Both))?;
                self.cluster.kill_node(node).await?;
                killed = kill_runners(self.cluster, node, usize::MAX, None)?;
                Undo::Start { shift: Duration::ZERO, mend: true }
            }
            Kind::KillRunner => {
                killed = kill_runners(self.cluster, node, 1, runner)?;
                Undo::Nothing
            }
            Kind::PauseNode => {
                self.signal(node, Signal::STOP);
                Undo::Continue
            }
            Kind::CutControl | Kind::CutPages | Kind::CutBoth => {
                let nets = match kind {
                    Kind::CutControl => vec![Net::Control],
                    Kind::CutPages => vec![Net::Pages],
                    _ => NETS.to_vec(),
                };
                nets.iter().try_for_each(|net| field.cut(node, *net, Way::Both))?;
                Undo::Mend(nets)
            }
            Kind::CutOneWay => {
                let net = if rng.bool() { Net::Control } else { Net::Pages };
                field.cut(node, net, if rng.bool() { Way::In } else { Way::Out })?;
                Undo::Mend(vec![net])
            }
            Kind::Slow => {
                field.slow(node, Net::Pages, rng.u64(1..=4) * MIB / 2)?;
                Undo::Fast
            }
            Kind::Lossy => {
                let net = if rng.bool() { Net::Control } else { Net::Pages };
                field.lossy(node, net, rng.u8(2..=20))?;
                Undo::Lossless(net)
            }
            Kind::DelayControl => {
                let (delay, jitter) = (rng.u64(20..=150), rng.u64(0..=30));
                field.delay(node, Net::Control, Duration::from_millis(delay), Duration::from_millis(jitter));
                Undo::Prompt(Net::Control)
            }
            Kind::DelayPages => {
                let (delay, jitter) = (rng.u64(1..=40), rng.u64(0..=10));
                field.delay(node, Net::Pages, Duration::from_millis(delay), Duration::from_millis(jitter));
                Undo::Prompt(Net::Pages)
            }
            Kind::FullDisk => {
                let disk = rng.choice(Disk::ALL).unwrap_or(Disk::Log);
                field.fill_disk(node, disk)?;
                Undo::FreeDisk(disk)
            }
        };
        Ok((undo, killed))
    }

    async fn undo(&mut self, undo: &Undo, node: &NodeName) -> Outcome {
        match undo {
            Undo::Nothing => {}
            // It lives: somebody was faster.
            Undo::Start { .. } if !self.cluster.has_ended(node) => {}
            Undo::Start { shift, mend } => {
                if *mend {
                    NETS.iter().try_for_each(|net| self.field.mend(node, *net))?;
                }
                let wrapper = self.field.wrapper(node, *shift);
                self.cluster.relaunch_node(node, |spec| spec.wrapper = wrapper).await?;
            }
            Undo::Continue => self.signal(node, Signal::CONT),
            Undo::Mend(nets) => nets.iter().try_for_each(|net| self.field.mend(node, *net))?,
            Undo::Fast => self.field.fast(node, Net::Pages)?,
            Undo::Lossless(net) => self.field.lossless(node, *net)?,
            Undo::Prompt(net) => self.be_prompt(node, *net),
            Undo::FreeDisk(disk) => self.field.free_disk(node, *disk)?,
        }
        Ok(())
    }

    /// As late as it is by itself.
    fn be_prompt(&self, node: &NodeName, net: Net) {
        match self.far.get(node).filter(|_| net == Net::Control) {
            Some(delay) => self.field.delay(node, net, *delay, Duration::ZERO),
            None => self.field.prompt(node, net),
        }
    }

    /// A process that has ended meanwhile takes no signal, and needs none.
    fn signal(&self, node: &NodeName, signal: Signal) {
        let pid = self.cluster.node(node).and_then(|process| Pid::from_raw(i32::try_from(process.pid).ok()?));
        let _ = pid.map(|pid| kill_process(pid, signal));
    }
}

/// Kills so many of the runners that this node has started, or this one of them.
fn kill_runners(
    cluster: &Cluster,
    node: &NodeName,
    most: usize,
    one: Option<InstanceId>,
) -> Result<Vec<Killed>, Box<dyn Error>> {
    let mut killed = runners(&cluster.node_dir(node), node)?;
    killed.retain(|(_, (_, instance))| one.is_none_or(|one| one == *instance));
    killed.truncate(most);
    for (pid, _) in &killed {
        // It may have ended by itself meanwhile.
        let _ = kill_process(*pid, Signal::KILL);
    }
    Ok(killed.into_iter().map(|(_, runner)| runner).collect())
}

/// The runners that a node with this state folder has started, with their processes. Other clusters may be here.
pub(crate) fn runners(state: &Path, node: &NodeName) -> Result<Vec<(Pid, Killed)>, Box<dyn Error>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<_> = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        let option = |name: &str| {
            let at = words.iter().position(|word| word == name)?;
            words.get(at + 1).map(ToString::to_string)
        };
        let is_here = option("--dir").is_some_and(|dir| Path::new(&dir).starts_with(state));
        let is_of_node = option("--node").as_deref() == Some(node.as_str());
        let (Some(guest), Some(instance)) = (option("--guest"), option("--instance")) else { continue };
        if is_here && is_of_node && words.iter().any(|word| word == "run") {
            found.push((Pid::from_raw(pid).ok_or("no pid")?, (guest.parse()?, instance.parse()?)));
        }
    }
    Ok(found)
}
