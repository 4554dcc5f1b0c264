//! The kinds of objects that there are, by their names and by those that people type.

use std::fmt;
use std::str::FromStr;

/// A kind of KubeVirt's, or of Kubernetes'.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The cluster's settings, as OpenShift Virtualization has them.
    HyperConverged,
    /// The cluster's settings, as KubeVirt has them.
    KubeVirt,
    /// Settings for guests by their labels.
    MigrationPolicy,
    /// A project.
    Namespace,
    /// A host.
    Node,
    /// A guest as it is wished for.
    VirtualMachine,
    /// A guest as it runs.
    VirtualMachineInstance,
    /// One migration.
    VirtualMachineInstanceMigration,
}

/// No such kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no kind {got:?}; there are {known}")]
pub struct KindError {
    got: String,
    known: String,
}

/// How much of a word a message repeats, in characters.
const SHOWN_MAX: usize = 64;

impl Kind {
    /// All that there are.
    pub const ALL: [Self; 8] = [
        Self::HyperConverged,
        Self::KubeVirt,
        Self::MigrationPolicy,
        Self::Namespace,
        Self::Node,
        Self::VirtualMachine,
        Self::VirtualMachineInstance,
        Self::VirtualMachineInstanceMigration,
    ];

    /// The `apiVersion` that it is shown under.
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::HyperConverged => "hco.kubevirt.io/v1beta1",
            Self::MigrationPolicy => "migrations.kubevirt.io/v1alpha1",
            Self::Namespace | Self::Node => "v1",
            Self::KubeVirt
            | Self::VirtualMachine
            | Self::VirtualMachineInstance
            | Self::VirtualMachineInstanceMigration => "kubevirt.io/v1",
        }
    }

    /// Others that it is read under.
    pub(super) const fn other_api_versions(self) -> &'static [&'static str] {
        match self {
            Self::HyperConverged => &["hco.kubevirt.io/v1"],
            Self::VirtualMachine => &["kubevirt.io/v1alpha3", "migrations.kubevirt.io/v1alpha1"],
            Self::KubeVirt | Self::VirtualMachineInstance | Self::VirtualMachineInstanceMigration => {
                &["kubevirt.io/v1alpha3"]
            }
            Self::MigrationPolicy | Self::Namespace | Self::Node => &[],
        }
    }

    /// Whether its objects belong to a project.
    pub const fn is_namespaced(self) -> bool {
        match self {
            Self::MigrationPolicy | Self::Namespace | Self::Node => false,
            Self::HyperConverged
            | Self::KubeVirt
            | Self::VirtualMachine
            | Self::VirtualMachineInstance
            | Self::VirtualMachineInstanceMigration => true,
        }
    }

    /// Its name, as manifests write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HyperConverged => "HyperConverged",
            Self::KubeVirt => "KubeVirt",
            Self::MigrationPolicy => "MigrationPolicy",
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::VirtualMachine => "VirtualMachine",
            Self::VirtualMachineInstance => "VirtualMachineInstance",
            Self::VirtualMachineInstanceMigration => "VirtualMachineInstanceMigration",
        }
    }

    /// What people type for it, shortest last.
    const fn words(self) -> &'static [&'static str] {
        match self {
            Self::HyperConverged => &["hyperconverged", "hyperconvergeds", "hco"],
            Self::KubeVirt => &["kubevirt", "kubevirts", "kv"],
            Self::MigrationPolicy => &["migrationpolicy", "migrationpolicies"],
            Self::Namespace => &["namespace", "namespaces", "ns"],
            Self::Node => &["node", "nodes", "no"],
            Self::VirtualMachine => &["virtualmachine", "virtualmachines", "vms", "vm"],
            Self::VirtualMachineInstance => {
                &["virtualmachineinstance", "virtualmachineinstances", "vmis", "vmi"]
            }
            Self::VirtualMachineInstanceMigration => {
                &["virtualmachineinstancemigration", "virtualmachineinstancemigrations", "vmims", "vmim"]
            }
        }
    }

    /// The kind that a manifest names: by its whole name, case and all.
    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// All names, for messages.
    pub(super) fn known() -> String {
        Self::ALL.map(Self::name).join(", ")
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Kind {
    type Err = KindError;
    fn from_str(text: &str) -> Result<Self, KindError> {
        let word = |kind: &Self| kind.words().iter().any(|word| word.eq_ignore_ascii_case(text));
        Self::ALL.into_iter().find(word).ok_or_else(|| {
            let all = Self::ALL.map(|kind| match kind.words() {
                [long, .., short] if short.len() < long.len() => format!("{long} ({short})"),
                [long, ..] => (*long).to_owned(),
                [] => String::new(),
            });
            KindError { got: text.chars().take(SHOWN_MAX).collect(), known: all.join(", ") }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_means_one_kind_and_its_name_reads_back() {
        let mut all: Vec<&str> = Kind::ALL.iter().flat_map(|kind| kind.words()).copied().collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        for kind in Kind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
            assert_eq!(Kind::named(kind.name()), Some(kind));
            for word in kind.words() {
                assert_eq!(word.to_uppercase().parse(), Ok(kind), "{word}");
            }
        }
        for (word, kind) in [
            ("hco", Kind::HyperConverged),
            ("kv", Kind::KubeVirt),
            ("vm", Kind::VirtualMachine),
            ("vmis", Kind::VirtualMachineInstance),
            ("vmim", Kind::VirtualMachineInstanceMigration),
            ("migrationpolicies", Kind::MigrationPolicy),
            ("ns", Kind::Namespace),
            ("no", Kind::Node),
        ] {
            assert_eq!(word.parse(), Ok(kind));
        }
        let error = "pod".parse::<Kind>().expect_err("no such kind").to_string();
        assert!(
            error.contains("pod") && error.contains("(vmim)") && error.contains("migrationpolicy"),
            "{error}"
        );
    }
}
