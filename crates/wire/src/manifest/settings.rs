//! Blocks of settings: the cluster's (`HyperConverged`, `KubeVirt`) and a policy's.
//!
//! ```text
//!   HyperConverged  spec.liveMigrationConfig | spec.virtualization.liveMigrationConfig ─┐
//!   KubeVirt        spec.configuration.migrations ──────────────────────────────────────┴─▶ ClusterSettings, whole
//!   MigrationPolicy spec: selectors, and the keys that a policy may set ──────────────────▶ Policy
//! ```
//!
//! Always true: values are checked by `godwit_domain::settings` alone; a block that is not there sets nothing, so every
//! setting has its default; what is unknown in a block is refused, never skipped.

use godwit_domain::ClusterSettings;
use godwit_domain::policy::Policy;
use godwit_domain::settings::{CLUSTER_ONLY, Given, OVERRIDABLE, Setting, SettingError};
use serde_json::Value;

use super::fields::{Fault, Fields, Notes, what};
use super::{SettingsKind, scalar};

/// Keys of KubeVirt's that nothing here depends on.
const NOT_NEEDED: [&str; 3] = ["nodeDrainTaintKey", "matchSELinuxLevelOnMigration", "utilityVolumesTimeout"];
/// Keys of KubeVirt's that may only say `false`, with the reason.
const NEVER: [(&str, &str); 2] = [
    ("disableTLS", "can not be true: a guest's memory never crosses the network unencrypted"),
    ("unsafeMigrationOverride", "can not be true: what is unsafe to move is not moved"),
];

/// The names and namespaces that the settings object usually has.
const USUAL: [(SettingsKind, &str, &str); 3] = [
    (SettingsKind::HyperConverged, "openshift-cnv", "kubevirt-hyperconverged"),
    (SettingsKind::HyperConverged, "kubevirt-hyperconverged", "kubevirt-hyperconverged"),
    (SettingsKind::KubeVirt, "kubevirt", "kubevirt"),
];

/// Notes a name that is not the usual one: there is one settings object, whatever it is called.
pub(super) fn note_name(kind: SettingsKind, namespace: &str, name: &str, notes: &mut Notes) {
    if !USUAL.contains(&(kind, namespace, name)) {
        let usual: Vec<String> = USUAL
            .iter()
            .filter(|usual| usual.0 == kind)
            .map(|(_, namespace, name)| format!("{namespace}/{name}"))
            .collect();
        notes.say(format!(
            "there is one settings object for the whole cluster; {namespace}/{name} is taken for it, usually {}",
            usual.join(" or ")
        ));
    }
}

/// Reads the settings object of either kind.
pub(super) fn cluster(
    kind: SettingsKind,
    spec: Option<Fields<'_>>,
    notes: &mut Notes,
) -> Result<ClusterSettings, Fault> {
    let mut settings = ClusterSettings::default();
    let mut found: Option<String> = None;
    if let Some(mut spec) = spec {
        let paths: &[&[&str]] = match kind {
            SettingsKind::HyperConverged => {
                &[&["liveMigrationConfig"], &["virtualization", "liveMigrationConfig"]]
            }
            SettingsKind::KubeVirt => &[&["configuration", "migrations"]],
        };
        for path in paths {
            let Some(block) = block(&mut spec, path, notes)? else { continue };
            if let Some(first) = &found {
                let rule = format!("the settings stand in {first} too: keep one of the two");
                return Err(block.fault("", rule));
            }
            found = Some(block.path(""));
            read_block(block, notes, |setting| settings.put(setting))?;
        }
        refuse_near_misses(&spec, paths)?;
        notes.ignore_rest(&spec);
    }
    if settings == ClusterSettings::default() {
        notes.say("it sets nothing: every setting has its default");
    }
    Ok(settings)
}

/// The block at the end of a path of keys.
fn block<'a>(spec: &mut Fields<'a>, path: &[&str], notes: &mut Notes) -> Result<Option<Fields<'a>>, Fault> {
    match path {
        [] => Ok(None),
        [key] => spec.fields(key),
        [key, rest @ ..] => {
            let Some(mut inner) = spec.fields(key)? else { return Ok(None) };
            let found = block(&mut inner, rest, notes)?;
            refuse_near_misses(&inner, &[rest])?;
            notes.ignore_rest(&inner);
            Ok(found)
        }
    }
}

/// A block with a wrong letter would be skipped, and every setting be reset.
fn refuse_near_misses(fields: &Fields<'_>, paths: &[&[&str]]) -> Result<(), Fault> {
    for path in fields.rest() {
        let key = path.rsplit_once('.').map_or(path.as_str(), |(_, key)| key);
        let near = paths.iter().filter_map(|path| path.first()).find(|known| known.eq_ignore_ascii_case(key));
        if let Some(near) = near {
            return Err(Fault::new(path, format!("case matters: write {near}")));
        }
    }
    Ok(())
}

/// Reads a policy.
pub(super) fn policy(spec: Option<Fields<'_>>) -> Result<Policy, Fault> {
    let missing = "is required; {} matches every VM";
    let mut spec = spec.ok_or_else(|| Fault::new("spec.selectors", missing))?;
    let mut selectors = spec.fields("selectors")?.ok_or_else(|| spec.fault("selectors", missing))?;
    let namespace_selector = selectors.labels("namespaceSelector")?.unwrap_or_default();
    let guest_selector = selectors.labels("virtualMachineInstanceSelector")?.unwrap_or_default();
    selectors.refuse_rest("namespaceSelector and virtualMachineInstanceSelector")?;
    if spec.value("experimental").is_some() {
        let rule = "is not built: what it asks for (stall detection, tuning of the downtime, compression) \
                    is either always on here or not there; leave it out";
        return Err(spec.fault("experimental", rule));
    }
    let mut policy = Policy { namespace_selector, guest_selector, ..Policy::default() };
    read_settings(
        &mut spec,
        |key| key == "selectors" || key == "experimental",
        |setting| policy.overrides.put(setting, "a policy"),
    )?;
    policy.check().map_err(|error| spec.fault("", error.to_string()))?;
    Ok(policy)
}

/// Reads the cluster's block, with the keys of KubeVirt's that mean nothing here.
fn read_block(
    mut block: Fields<'_>,
    notes: &mut Notes,
    put: impl FnMut(Setting) -> Result<(), SettingError>,
) -> Result<(), Fault> {
    for key in NOT_NEEDED {
        if block.value(key).is_some() {
            notes.ignore(block.path(key));
        }
    }
    for (key, reason) in NEVER {
        match block.truth(key)? {
            Some(true) => return Err(block.fault(key, reason)),
            Some(false) => notes.ignore(block.path(key)),
            None => {}
        }
    }
    let kubevirts = |key: &str| NOT_NEEDED.contains(&key) || NEVER.iter().any(|(never, _)| *never == key);
    read_settings(&mut block, kubevirts, put)
}

fn read_settings(
    block: &mut Fields<'_>,
    skip: impl Fn(&str) -> bool,
    mut put: impl FnMut(Setting) -> Result<(), SettingError>,
) -> Result<(), Fault> {
    for (key, value) in block.all().filter(|(key, _)| !skip(key)) {
        let known = OVERRIDABLE.contains(&key) || CLUSTER_ONLY.contains(&key);
        if value.is_null() && known {
            continue;
        }
        read_setting(key, value).and_then(&mut put).map_err(|error| block.fault("", error.to_string()))?;
    }
    Ok(())
}

fn read_setting(key: &str, value: &Value) -> Result<Setting, SettingError> {
    match value {
        Value::String(text) => Setting::read(key, Given::Text(text)),
        Value::Number(number) => Setting::read(key, Given::Number(&scalar::text_of(number))),
        Value::Bool(truth) => Setting::read(key, Given::Bool(*truth)),
        Value::Array(_) => Setting::read(key, Given::Other("a list")),
        Value::Object(_) => Setting::read(key, Given::Other("a map")),
        Value::Null => Setting::read(key, Given::Other("nothing")),
    }
}

/// One setting of a migration's own spec.
pub(super) fn single(fields: &mut Fields<'_>, key: &'static str) -> Result<Option<Setting>, Fault> {
    let Some(value) = fields.value(key) else { return Ok(None) };
    read_setting(key, value).map(Some).map_err(|error| fields.fault("", error.to_string()))
}

/// A whole number of a manifest within bounds.
pub(super) fn whole(fields: &mut Fields<'_>, key: &str, max: u64) -> Result<Option<u64>, Fault> {
    let Some(value) = fields.value(key) else { return Ok(None) };
    let number = value.as_number().and_then(|number| scalar::text_of(number).parse().ok());
    match number.filter(|number| *number <= max) {
        Some(number) => Ok(Some(number)),
        None => {
            Err(fields.fault(key, format!("must be a whole number from 0 to {max}, not {}", what(value))))
        }
    }
}
