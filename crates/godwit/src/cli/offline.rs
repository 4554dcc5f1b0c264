//! `godwit policy explain -f`: the answer that a cluster with these manifests would give, without any cluster.
//!
//! ```text
//!   manifests ─▶ Cluster: settings, policies, projects' labels, VMs ─▶ Explained, as a node has it
//! ```
//!
//! Always true: of a thing that is written twice the last counts, as if they had been applied in order; a manifest with a
//! flaw gives no answer at all, for it might have been the one that counts; kinds that are not known here bear on nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;

use godwit_domain::machine::{Body, Machine};
use godwit_domain::policy::{Policy, PolicyName, Subject};
use godwit_domain::{ClusterSettings, GuestName, Labels};
use godwit_wire::admin::{Code, Explained, Problem};
use godwit_wire::manifest::{self, Manifest, ManifestError};

use super::asking::Asking;
use super::failure::{FAILED, Failure};
use super::sources::{Source, Sources};
use super::talk;

/// How many VMs a message names.
const NAMED_MAX: usize = 10;

/// What manifests say, as far as policies are concerned.
#[derive(Debug, Default)]
struct Cluster {
    settings: ClusterSettings,
    policies: BTreeMap<PolicyName, Policy>,
    projects: BTreeMap<String, Labels>,
    machines: BTreeMap<GuestName, Machine>,
    instances: BTreeMap<GuestName, (Labels, Option<Body>)>,
}

/// Which policy this VM gets by these manifests.
pub(super) fn explain(asking: &Asking, guest: &GuestName, files: &[PathBuf]) -> Result<Explained, Failure> {
    let Sources { objects, mut flaws } = Sources::read(files);
    let mut cluster = Cluster::default();
    for source in objects {
        if let Err(flaw) = cluster.take(source, guest.namespace()) {
            flaws.push(flaw);
        }
    }
    if !flaws.is_empty() {
        for flaw in flaws {
            asking.refuse(flaw).tell();
        }
        return Err(Failure::Told(FAILED));
    }
    cluster.explain(guest).map_err(|problem| asking.refuse(problem))
}

impl Cluster {
    fn take(&mut self, Source { place, document }: Source, namespace: &str) -> Result<(), Problem> {
        let manifest = match manifest::read_in(&document, namespace) {
            Ok((manifest, _)) => manifest,
            Err(ManifestError::Kind { kind, .. }) => {
                talk(&format!("note: {place}: a {kind} bears on no policy"));
                return Ok(());
            }
            Err(error) => {
                let rule = "a manifest that is not understood might be the one that counts";
                let message = format!("{place}: {error}");
                return Err(Problem::new(Code::Refused, rule, message, "mend it, or leave it out"));
            }
        };
        match manifest {
            Manifest::Settings { settings, .. } => self.settings = settings,
            Manifest::Policy { name, policy } => {
                self.policies.insert(name, policy);
            }
            Manifest::Namespace { name, labels } => {
                self.projects.insert(name, labels);
            }
            Manifest::Machine { name, machine } => {
                self.machines.insert(name, machine);
            }
            Manifest::Instance { name, labels, body } => {
                self.instances.insert(name, (labels, body));
            }
            Manifest::Node { .. } | Manifest::Migration(_) => {}
        }
        Ok(())
    }

    fn explain(&self, guest: &GuestName) -> Result<Explained, Problem> {
        let (machine, instance) = (self.machines.get(guest), self.instances.get(guest));
        if machine.is_none() && instance.is_none() {
            return Err(self.missing(guest));
        }
        let none = Labels::new();
        let template = machine.and_then(|machine| machine.template_labels.as_ref());
        let labels = template.or(instance.map(|(labels, _)| labels)).unwrap_or(&none);
        let project = self.projects.get(guest.namespace()).unwrap_or(&none);
        let wished = machine.and_then(|machine| machine.body.as_ref());
        let body = wished.or(instance.and_then(|(_, body)| body.as_ref()));
        let critical = body.is_some_and(|body| body.critical);
        let subject = Subject { guest: labels, namespace: project };
        Ok(Explained::of(guest, subject, critical, &self.policies, &self.settings))
    }

    fn missing(&self, guest: &GuestName) -> Problem {
        let mut all: Vec<&GuestName> = self.machines.keys().chain(self.instances.keys()).collect();
        all.sort_unstable();
        all.dedup();
        let names: Vec<String> = all.iter().take(NAMED_MAX).map(ToString::to_string).collect();
        let more = all.len().saturating_sub(NAMED_MAX);
        let there = match (names.is_empty(), more) {
            (true, _) => "they hold no VM at all".to_owned(),
            (false, 0) => format!("there are {}", names.join(", ")),
            (false, more) => format!("there are {} and {more} more", names.join(", ")),
        };
        let message = format!("no VM {guest} in these manifests; {there}");
        let try_ = "name one of them, with -n NAMESPACE, or give the manifest of its VirtualMachine with -f";
        Problem::new(Code::NotFound, "a VM must be in the manifests", message, try_)
    }
}
