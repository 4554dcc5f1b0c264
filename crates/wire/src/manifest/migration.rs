//! A `VirtualMachineInstanceMigration`: which guest shall move, where it may go, and how urgent it is.

use godwit_domain::settings::Setting;
use godwit_domain::{GuestName, Labels, MigrationId, Priority};

use super::fields::{Fault, Fields, no_placeholder};
use super::settings;

/// Greatest time-out in seconds: 68 years.
const SECONDS_MAX: u64 = i32::MAX as u64;
/// What is added to a `generateName`, in bytes, as in Kubernetes.
const GENERATED_BYTES: usize = 5;

/// The name of a migration that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameWish {
    /// This one. Asked for twice it is the same migration.
    Named(MigrationId),
    /// A new one that begins so (`metadata.generateName`); at most 58 bytes, so that five more fit.
    Generated(String),
}

/// A migration that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationWish {
    /// Its project: that of its guest. Its name is one of the whole cluster all the same.
    pub namespace: String,
    /// Its name.
    pub name: NameWish,
    /// The guest that shall move.
    pub guest: GuestName,
    /// Labels that the target must carry, for this attempt (`spec.addedNodeSelector`).
    pub selector: Labels,
    /// Its class of the queue.
    pub priority: Option<Priority>,
    /// How long it waits for a node that is eligible, in seconds; 0 to 2^31 - 1.
    pub unschedulable_timeout_seconds: Option<u64>,
}

/// Reads `generateName`.
pub(super) fn generated(prefix: &str) -> Result<NameWish, String> {
    let example = format!("{prefix}{}", "x".repeat(GENERATED_BYTES));
    match example.parse::<MigrationId>() {
        Ok(_) => Ok(NameWish::Generated(prefix.to_owned())),
        Err(error) => Err(format!("{error} (with the {GENERATED_BYTES} bytes that are added)")),
    }
}

/// Reads the wish.
pub(super) fn wish(
    name: NameWish,
    namespace: &str,
    spec: Option<Fields<'_>>,
) -> Result<MigrationWish, Fault> {
    let missing = "is required: the name of the VM that shall move";
    let mut spec = spec.ok_or_else(|| Fault::new("spec.vmiName", missing))?;
    for key in ["sendTo", "receive"] {
        if spec.value(key).is_some() {
            return Err(spec.fault(key, "decentralized migration is not built"));
        }
    }
    let guest = spec.text("vmiName")?.filter(|name| !name.is_empty());
    let guest = guest.ok_or_else(|| spec.fault("vmiName", missing))?;
    no_placeholder(guest).map_err(|rule| spec.fault("vmiName", rule))?;
    let guest =
        format!("{namespace}/{guest}").parse().map_err(|error| spec.fault("vmiName", format!("{error}")))?;
    let selector = spec.labels("addedNodeSelector")?.unwrap_or_default();
    let priority = match settings::single(&mut spec, "priority")? {
        Some(Setting::Priority(priority)) => Some(priority),
        Some(_) | None => None,
    };
    let timeout = settings::whole(&mut spec, "unschedulableTimeoutSeconds", SECONDS_MAX)?;
    spec.refuse_rest("vmiName, addedNodeSelector, priority and unschedulableTimeoutSeconds")?;
    let namespace = namespace.to_owned();
    Ok(MigrationWish { namespace, name, guest, selector, priority, unschedulable_timeout_seconds: timeout })
}
