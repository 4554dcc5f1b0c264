//! A guest as manifests describe it: a wish (`VirtualMachine`) and a running self (`VirtualMachineInstance`).
//!
//! ```text
//!   VirtualMachine ─ runs, own labels, template ─┐
//!   VirtualMachineInstance ─ labels ─────────────┴─▶ labels in force, Body ─▶ guest
//! ```
//!
//! Always true: the labels in force are the template's if there is a VirtualMachine with labels in its template, else the
//! instance's own.

use serde::{Deserialize, Serialize};

use crate::guest::GuestSpec;
use crate::labels::Labels;

/// What a guest is like, beside its labels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Body {
    /// Memory, and what the built-in runner is told.
    pub spec: GuestSpec,
    /// Labels that every node that runs it must carry.
    pub node_selector: Labels,
    /// Size of its local disks, in bytes; 0: it has none.
    pub local_disks_bytes: u64,
    /// It never goes post-copy (`godwit.dev/critical: "true"`).
    pub critical: bool,
}

impl Body {
    /// A guest without wishes of where to be.
    pub fn of(spec: GuestSpec) -> Self {
        Self { spec, node_selector: Labels::new(), local_disks_bytes: 0, critical: false }
    }
}

/// A `VirtualMachine`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Its own labels (`metadata.labels`). No policy looks at them.
    pub labels: Labels,
    /// Whether it shall run (`spec.running`, `spec.runStrategy`).
    pub runs: bool,
    /// Labels of its guest (`spec.template.metadata.labels`); `None`: the template has none.
    pub template_labels: Option<Labels>,
    /// What its guest is like (`spec.template.spec`); `None`: nothing is said, as where only labels are changed.
    pub body: Option<Body>,
}
