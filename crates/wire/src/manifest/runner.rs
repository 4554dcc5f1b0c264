//! The annotations `godwit.dev/…`: what a manifest says of a guest that KubeVirt has no field for.
//!
//! ```text
//!   template's annotations ─┐ (first)
//!   VirtualMachine's own ───┴─▶ Annotations ─▶ runner options, local disks, critical
//! ```
//!
//! Always true: one that is unknown is refused, because a wrong letter in `critical` would cost a guest its memory.

use std::collections::BTreeMap;

use godwit_domain::guest::GuestSpec;
use godwit_domain::machine::Body;
use godwit_domain::qemu::Machine;
use godwit_domain::{Adopted, PageCount, Qemu, Quantity};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::fields::{Fault, Fields, what};

/// What all of ours begin with.
pub(super) const PREFIX: &str = "godwit.dev/";
/// Patterns that the built-in runner knows.
const PATTERNS: [&str; 3] = ["uniform", "hot-set", "streaming"];
/// All that there are, without the prefix.
const KNOWN: [&str; 20] = [
    "local-disks",
    "critical",
    "working-set",
    "dirty-rate",
    "pattern",
    "zero-percent",
    "compressible-percent",
    "threads",
    "seed",
    "tick-interval-ms",
    "runner",
    "qemu",
    "cpus",
    "accel",
    "kernel",
    "initrd",
    "append",
    "disks",
    "network",
    "qemu-arguments",
];
/// What says what a virtual machine is made of, each by itself; or `qemu-arguments` says it all.
const OF_MACHINES: [&str; 8] =
    ["cpus", "accel", "kernel", "initrd", "append", "disks", "network", "qemu-arguments"];

/// Ours, by their names without the prefix, each with its path.
#[derive(Debug, Default)]
pub(super) struct Annotations<'a>(BTreeMap<&'static str, (String, &'a str)>);

impl<'a> Annotations<'a> {
    /// Those of one object. All others are other people's.
    pub(super) fn of(metadata: &mut Fields<'a>) -> Result<Self, Fault> {
        let mut found = BTreeMap::new();
        let Some(mut fields) = metadata.fields("annotations")? else { return Ok(Self(found)) };
        for (key, value) in fields.all() {
            let Some(name) = key.strip_prefix(PREFIX) else { continue };
            let Some(known) = KNOWN.into_iter().find(|known| *known == name) else {
                let all = KNOWN.map(|name| format!("{PREFIX}{name}")).join(", ");
                return Err(fields.fault(key, format!("no such annotation; there are {all}")));
            };
            let Value::String(text) = value else {
                return Err(fields.fault(key, format!("must be text, not {}: quote it", what(value))));
            };
            found.insert(known, (fields.path(key), text.as_str()));
        }
        Ok(Self(found))
    }

    /// These, and those of another object where these say nothing.
    pub(super) fn above(mut self, other: Self) -> Self {
        for (name, value) in other.0 {
            self.0.entry(name).or_insert(value);
        }
        self
    }

    /// They describe a guest: without one they would be lost without a word.
    pub(super) fn refuse_without_body(&self, spec: &str) -> Result<(), Fault> {
        match self.0.values().next() {
            Some((path, _)) => Err(Fault::new(
                path,
                format!("is part of what the guest is like: give {spec} with its memory too"),
            )),
            None => Ok(()),
        }
    }

    /// The guest that they and its memory describe; of local disks, those named here.
    pub(super) fn body(&self, memory: Quantity) -> Result<Body, Fault> {
        let idle = GuestSpec::idle(memory.bytes());
        let spec = GuestSpec {
            memory_bytes: idle.memory_bytes,
            working_set_bytes: self.quantity("working-set")?.map_or(idle.working_set_bytes, Quantity::bytes),
            dirty_rate_bytes_per_second: self
                .quantity("dirty-rate")?
                .map_or(idle.dirty_rate_bytes_per_second, Quantity::bytes),
            pattern: self.one_of("pattern", &PATTERNS)?.unwrap_or(&idle.pattern).to_owned(),
            zero_percent: self.small("zero-percent", 0, 100)?.unwrap_or(idle.zero_percent),
            compressible_percent: self
                .small("compressible-percent", 0, 100)?
                .unwrap_or(idle.compressible_percent),
            threads: self.small("threads", 1, u8::MAX)?.unwrap_or(idle.threads),
            seed: self.whole("seed", 0, u64::MAX)?.unwrap_or(idle.seed),
            tick_interval_ms: self.whole("tick-interval-ms", 1, u64::MAX)?.unwrap_or(idle.tick_interval_ms),
            qemu: self.qemu(memory)?,
        };
        let critical = self.one_of("critical", &["true", "false"])? == Some("true");
        let local_disks_bytes = self.quantity("local-disks")?.map_or(0, Quantity::bytes);
        Ok(Body { critical, local_disks_bytes, ..Body::of(spec) })
    }

    /// The virtual machine; `None`: the built-in runner runs it.
    fn qemu(&self, memory: Quantity) -> Result<Option<Qemu>, Fault> {
        if self.one_of("runner", &["builtin", "qemu"])? != Some("qemu") {
            let of_machines = OF_MACHINES.iter().chain(&["qemu"]).find_map(|name| self.0.get(name));
            return match of_machines {
                Some((path, _)) => {
                    Err(Fault::new(path, format!("is of virtual machines: add {PREFIX}runner: qemu")))
                }
                None => Ok(None),
            };
        }
        let text = |name: &str| self.0.get(name).map(|(_, text)| (*text).to_owned());
        let program = text("qemu").unwrap_or_else(|| "qemu-system-x86_64".to_owned());
        if let Some((path, whole)) = self.0.get("qemu-arguments") {
            if let Some((other, _)) = OF_MACHINES.iter().take(7).find_map(|name| self.0.get(name)) {
                return Err(Fault::new(
                    other,
                    format!("excludes {PREFIX}qemu-arguments, which says it all: keep one"),
                ));
            }
            let told: Told = serde_json::from_str(whole)
                .map_err(|error| Fault::new(path, format!("must be as `godwit get` shows it: {error}")))?;
            let Told { arguments, ram_id, adopted } = told;
            return Ok(Some(Qemu { program, arguments, ram_id, adopted }));
        }
        let append = text("append").unwrap_or_else(|| "console=ttyS0".to_owned());
        let disks = text("disks").unwrap_or_default();
        let machine = Machine {
            program,
            memory_bytes: memory.bytes(),
            processors: self.small("cpus", 1, u8::MAX)?.unwrap_or(1).into(),
            accelerator: self.one_of("accel", &["kvm", "tcg"])?.map(str::to_owned),
            kernel: text("kernel").map(|kernel| (kernel, text("initrd"), append)),
            disks: disks.split_whitespace().map(str::to_owned).collect(),
            network: text("network"),
            more: Vec::new(),
        };
        Ok(Some(machine.arguments()))
    }

    /// Whether one says how large the local disks are.
    pub(super) fn name_local_disks(&self) -> bool {
        self.0.contains_key("local-disks")
    }

    fn quantity(&self, name: &str) -> Result<Option<Quantity>, Fault> {
        let Some((path, text)) = self.0.get(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|error| Fault::new(path, format!("{error}")))
    }

    fn whole(&self, name: &str, min: u64, max: u64) -> Result<Option<u64>, Fault> {
        let Some((path, text)) = self.0.get(name) else { return Ok(None) };
        let number = text.parse().ok().filter(|number| (min..=max).contains(number));
        let rule = || {
            let got = what(&Value::from(*text));
            Fault::new(path, format!("must be a whole number from {min} to {max}, not {got}"))
        };
        number.map(Some).ok_or_else(rule)
    }

    fn small(&self, name: &str, min: u8, max: u8) -> Result<Option<u8>, Fault> {
        let number = self.whole(name, u64::from(min), u64::from(max))?;
        Ok(number.and_then(|number| u8::try_from(number).ok()))
    }

    fn one_of(&self, name: &str, words: &[&str]) -> Result<Option<&str>, Fault> {
        let Some((path, text)) = self.0.get(name) else { return Ok(None) };
        if words.contains(text) {
            return Ok(Some(text));
        }
        let got = what(&Value::from(*text));
        Err(Fault::new(path, format!("must be {}, not {got}", words.join(" or "))))
    }
}

/// `qemu-arguments`: all that is agreed of a virtual machine, beside its program and its memory.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Told {
    arguments: Vec<String>,
    ram_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    adopted: Option<Adopted>,
}

fn told(qemu: &Qemu) -> String {
    let Qemu { program: _, arguments, ram_id, adopted } = qemu.clone();
    // Texts and numbers alone: nothing of them can not be written.
    serde_json::to_string(&Told { arguments, ram_id, adopted }).unwrap_or_default()
}

/// Annotations that say what differs from a guest that writes nothing.
pub(super) fn show(body: &Body) -> Vec<(String, String)> {
    let Body { spec, node_selector: _, local_disks_bytes, critical } = body;
    let idle = GuestSpec::idle(spec.memory_bytes);
    let size = |bytes: u64| Quantity::from_bytes(bytes).to_string();
    let all = [
        ("local-disks", *local_disks_bytes != 0, size(*local_disks_bytes)),
        ("critical", *critical, critical.to_string()),
        ("working-set", spec.working_set_bytes != idle.working_set_bytes, size(spec.working_set_bytes)),
        (
            "dirty-rate",
            spec.dirty_rate_bytes_per_second != idle.dirty_rate_bytes_per_second,
            size(spec.dirty_rate_bytes_per_second),
        ),
        ("pattern", spec.pattern != idle.pattern, spec.pattern.clone()),
        ("zero-percent", spec.zero_percent != idle.zero_percent, spec.zero_percent.to_string()),
        (
            "compressible-percent",
            spec.compressible_percent != idle.compressible_percent,
            spec.compressible_percent.to_string(),
        ),
        ("threads", spec.threads != idle.threads, spec.threads.to_string()),
        ("seed", spec.seed != idle.seed, spec.seed.to_string()),
        (
            "tick-interval-ms",
            spec.tick_interval_ms != idle.tick_interval_ms,
            spec.tick_interval_ms.to_string(),
        ),
    ];
    let qemu = spec.qemu.as_ref();
    let machine = [
        ("runner", qemu.is_some(), "qemu".to_owned()),
        ("qemu", qemu.is_some(), qemu.map_or_else(String::new, |qemu| qemu.program.clone())),
        ("qemu-arguments", qemu.is_some(), qemu.map_or_else(String::new, told)),
    ];
    let all = all.into_iter().chain(machine);
    let differing = all.filter(|(_, differs, _)| *differs);
    differing.map(|(name, _, value)| (format!("{PREFIX}{name}"), value)).collect()
}

/// Whole pages, at least one, at most 16 TiB.
pub(super) fn check_memory(path: String, memory: Quantity) -> Result<Quantity, Fault> {
    if PageCount::of_memory(memory.bytes()).is_some() {
        return Ok(memory);
    }
    let bytes = memory.bytes();
    let rule = format!(
        "is {bytes} bytes; memory must be a whole number of 4096-byte pages, at least one, below 16Ti"
    );
    Err(Fault::new(path, rule))
}
