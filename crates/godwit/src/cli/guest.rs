//! `godwit guest`: the built-in runner itself, and the guests of the cluster.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use godwit_admin::render;
use godwit_domain::{GuestName, InstanceId, NodeName, labels};
use godwit_guest::qemu::{self, KeeperConfig, KeeperTask};
use godwit_guest::runner::{self, Role, RunnerConfig, Workload};
use godwit_node::config::LogFormat;
use godwit_node::telemetry;
use godwit_wire::admin::{Act, GuestRow};
use godwit_wire::handoff::Verified;

use super::asking::{Asking, Changing};
use super::failure::Failure;
use super::machines::{GuestAdopt, GuestConsole, MachineArgs, RunnerKind};
use super::stop::GuestStop;
use super::workload::WorkloadArgs;

#[derive(Debug, Subcommand)]
pub(super) enum Guest {
    /// Run the built-in guest: a process whose memory is really written. It listens on DIR/runner.sock
    Run(Box<GuestRun>),
    /// Keep a QEMU, as machine.json in its folder says. It listens on DIR/runner.sock
    #[command(hide = true)]
    Keep(GuestKeep),
    /// Make a guest, with the built-in runner or as a virtual machine; answered when it runs
    Create(Box<GuestCreate>),
    /// Take over a QEMU that runs on this host already. It runs on
    Adopt(GuestAdopt),
    /// Forget a guest whose QEMU was adopted, and leave that running
    Unadopt(ChangedGuest),
    /// Type at a virtual machine's serial line, on the node where it runs
    Console(GuestConsole),
    /// List all guests
    List(Asking),
    /// Show a guest
    Show(OneGuest),
    /// Show how a guest does, as its runner says
    Stats(OneGuest),
    /// Compare a guest's memory with what it must hold. The guest stands still meanwhile
    Verify(OneGuest),
    /// End a guest for good. A virtual machine is asked to shut itself down first
    Stop(GuestStop),
    /// Run a lost guest again from a copy that is kept
    Recover {
        #[command(flatten)]
        one: ChangedGuest,
        /// The copy may be older than what the guest's users have seen: needed
        #[arg(long)]
        accept_rollback: bool,
        /// Which copy, where there are two
        #[arg(long)]
        instance: Option<InstanceId>,
    },
}

#[derive(Debug, Args)]
pub(super) struct GuestRun {
    /// The runner's own folder: runner.sock and ticks appear in it
    #[arg(long)]
    dir: PathBuf,
    /// The guest's name, NAMESPACE/NAME
    #[arg(long)]
    guest: GuestName,
    /// The node's name, written into every tick
    #[arg(long)]
    node: NodeName,
    /// This runner's id, 32 hexadecimal digits, drawn at random
    #[arg(long)]
    instance: InstanceId,
    /// Wait for a guest to arrive; its workload comes with it
    #[arg(long)]
    incoming: bool,
    /// Milliseconds between ticks
    #[arg(long, default_value_t = 1)]
    tick_interval_ms: u64,
    #[command(flatten)]
    workload: WorkloadArgs,
}

#[derive(Debug, Args)]
pub(super) struct GuestKeep {
    /// The runner's own folder
    #[arg(long)]
    dir: PathBuf,
    /// The guest's name, NAMESPACE/NAME
    #[arg(long)]
    guest: GuestName,
    /// The node's name
    #[arg(long)]
    node: NodeName,
    /// This runner's id
    #[arg(long)]
    instance: InstanceId,
    /// Wait for a guest to arrive
    #[arg(long)]
    incoming: bool,
    /// Take over from a keeper that has died, or end
    #[arg(long, conflicts_with = "incoming")]
    again: bool,
}

impl GuestKeep {
    fn run(self) -> Result<(), Failure> {
        telemetry::init(LogFormat::Text, "info").map_err(Failure::failed)?;
        let Self { dir, guest, node, instance, incoming, again } = self;
        let task = match (incoming, again) {
            (_, true) => KeeperTask::TakeOver,
            (true, false) => KeeperTask::Await,
            (false, false) => KeeperTask::Begin,
        };
        qemu::keep(KeeperConfig { guest, instance, node, dir, task }).map_err(Failure::failed)
    }
}

#[derive(Debug, Args)]
pub(super) struct GuestCreate {
    #[command(flatten)]
    named: Named,
    /// What runs it
    #[arg(long, value_enum, default_value = "builtin")]
    runner: RunnerKind,
    #[command(flatten)]
    machine: MachineArgs,
    /// Where it is to run [default: the node with most free memory]
    #[arg(long, value_name = "NODE")]
    on: Option<NodeName>,
    #[command(flatten)]
    workload: WorkloadArgs,
    /// Milliseconds between ticks
    #[arg(long, default_value_t = 1)]
    tick_interval_ms: u64,
    /// A label, by which the guest gets its policy
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    #[command(flatten)]
    changing: Changing,
}

/// A guest that is changed, and where it is asked for.
#[derive(Debug, Args)]
pub(super) struct ChangedGuest {
    #[command(flatten)]
    named: Named,
    #[command(flatten)]
    changing: Changing,
}

/// A guest that is there, and where it is asked for.
#[derive(Debug, Args)]
pub(super) struct OneGuest {
    #[command(flatten)]
    named: Named,
    #[command(flatten)]
    asking: Asking,
}

/// A guest's name on the command line.
#[derive(Debug, Clone, Args)]
pub(super) struct Named {
    /// The guest: NAME or NAMESPACE/NAME
    guest: String,
    /// The guest's namespace, where its name has none [default: default]
    #[arg(short, long)]
    namespace: Option<String>,
}

/// `key=value` that has been checked.
pub(super) fn label(text: &str) -> Result<(String, String), String> {
    let form = || format!("{text:?} is not key=value");
    let (key, value) = text.split_once('=').ok_or_else(form)?;
    labels::check_one(key, value).map_err(|error| error.to_string())?;
    Ok((key.to_owned(), value.to_owned()))
}

impl Named {
    /// The whole name.
    pub(super) fn name(&self) -> Result<GuestName, Failure> {
        let given = self.namespace.as_deref();
        let name = match given {
            Some(namespace) if !self.guest.contains('/') => format!("{namespace}/{}", self.guest),
            _ => self.guest.clone(),
        };
        let name: GuestName = name.parse().map_err(Failure::usage)?;
        match given {
            Some(namespace) if namespace != name.namespace() => Err(Failure::usage(format!(
                "guest {name} is in namespace {}, and -n says {namespace:?}: leave one of them out",
                name.namespace()
            ))),
            _ => Ok(name),
        }
    }
}

impl Guest {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Run(arguments) => arguments.run(),
            Self::Keep(arguments) => arguments.run(),
            Self::Create(arguments) => arguments.run(),
            Self::Adopt(arguments) => arguments.run(),
            Self::Console(arguments) => arguments.run(),
            Self::Unadopt(ChangedGuest { named, changing }) => {
                let guest = named.name()?;
                let what = format!("{guest} is forgotten here, and its QEMU runs on");
                changing.show(Act::GuestRelease { guest }, |done| render::done(&what, done))
            }
            Self::List(asking) => asking.show(Act::GuestList, |rows: &Vec<GuestRow>| render::guests(rows)),
            Self::Show(OneGuest { named, asking }) => {
                asking.show(Act::GuestShow { guest: named.name()? }, render::guest)
            }
            Self::Stats(OneGuest { named, asking }) => {
                let guest = named.name()?;
                asking.show(Act::GuestStats { guest: guest.clone() }, |stats| render::stats(&guest, stats))
            }
            Self::Verify(one) => one.verify(),
            Self::Stop(arguments) => arguments.run(),
            Self::Recover { one: ChangedGuest { named, changing }, accept_rollback, instance } => {
                let act = Act::GuestRecover { guest: named.name()?, accept_rollback, instance };
                changing.show(act, render::guest)
            }
        }
    }
}

impl OneGuest {
    fn verify(self) -> Result<(), Failure> {
        let Self { named, asking } = self;
        let guest = named.name()?;
        let answer = asking.ask(Act::GuestVerify { guest: guest.clone() })?;
        asking.print(&answer, |verified| render::verified(&guest, verified))?;
        let verified: Verified = asking.read(&answer)?;
        if verified.is_whole() {
            return Ok(());
        }
        let Verified { wrong, pages, .. } = verified;
        Err(Failure::failed(format!("{guest}: {wrong} of {pages} pages hold something else than they must")))
    }
}

impl GuestCreate {
    fn run(self) -> Result<(), Failure> {
        let Self { named, runner, machine, on, workload, tick_interval_ms, labels, changing } = self;
        let guest = named.name()?;
        let labels = labels.into_iter().collect();
        let spec = match runner {
            RunnerKind::Qemu => {
                workload.memory_pages().map_err(Failure::usage)?;
                machine.spec(workload.memory.bytes()).map_err(Failure::failed)?
            }
            RunnerKind::Builtin => {
                // The runner would refuse the same, after a node was chosen and a process started.
                let options = workload.options().map_err(Failure::usage)?;
                Workload::new(options).map_err(Failure::usage)?;
                workload.spec(tick_interval_ms)
            }
        };
        let act = Act::GuestCreate { guest, node: on, spec, labels };
        changing.show(act, render::guest)
    }
}

impl GuestRun {
    fn run(self) -> Result<(), Failure> {
        telemetry::init(LogFormat::Text, "info").map_err(Failure::failed)?;
        let Self { dir, guest, node, instance, incoming, tick_interval_ms, workload } = self;
        let memory = workload.memory_pages().map_err(Failure::failed)?;
        let role = if incoming {
            Role::Incoming
        } else {
            let options = workload.options().map_err(Failure::failed)?;
            Role::Fresh { workload: Workload::new(options).map_err(Failure::failed)? }
        };
        let tick_interval = Duration::from_millis(tick_interval_ms);
        let config = RunnerConfig { guest, instance, node, dir, memory, role, tick_interval };
        runner::run(config).map_err(Failure::failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(guest: &str, namespace: Option<&str>) -> Result<String, Failure> {
        let named = Named { guest: guest.to_owned(), namespace: namespace.map(str::to_owned) };
        named.name().map(|name| name.to_string())
    }

    #[test]
    fn a_name_without_a_slash_gets_the_namespace() {
        assert_eq!(name("vm1", None).ok().as_deref(), Some("default/vm1"));
        assert_eq!(name("vm1", Some("lab")).ok().as_deref(), Some("lab/vm1"));
        assert_eq!(name("lab/vm1", None).ok().as_deref(), Some("lab/vm1"));
        assert_eq!(name("lab/vm1", Some("lab")).ok().as_deref(), Some("lab/vm1"));
        for (guest, namespace) in
            [("lab/vm1", Some("prod")), ("VM", None), ("vm1", Some("a/b")), ("a/b/c", None)]
        {
            assert!(matches!(name(guest, namespace), Err(Failure::Usage(_))), "{guest} {namespace:?}");
        }
    }
}
