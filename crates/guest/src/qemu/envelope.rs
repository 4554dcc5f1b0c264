//! Whether a QEMU that runs can be moved: looked at from outside and asked, changed in nothing.
//!
//! ```text
//!   /proc/PID/cmdline, maps, fd ─┐
//!   QMP query-…  ────────────────┴─▶ Inspected: what would be lent, its portable arguments ─ or every objection there is
//! ```

use std::fs;
use std::path::Path;

use godwit_domain::{GuestSpec, Qemu};
use serde_json::{Value, json};

use super::command::{self, Objection};
use super::qmp::{Qmp, QmpError};
use super::{starter, versions, vm};

/// Largest command line that is read.
const CMDLINE_BYTES_MAX: usize = 256 << 10;

/// A QEMU that can be moved, as far as can be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspected {
    /// Its process.
    pub pid: i32,
    /// Its version.
    pub version: String,
    /// `-name`, if it has one.
    pub name: Option<String>,
    /// RAM in bytes.
    pub memory_bytes: u64,
    /// Where its RAM is mapped.
    pub address: u64,
    /// What another host is to start.
    pub qemu: Qemu,
}

impl Inspected {
    /// What the group is to agree on.
    pub fn spec(&self) -> GuestSpec {
        GuestSpec { qemu: Some(self.qemu.clone()), ..GuestSpec::idle(self.memory_bytes) }
    }
}

/// Looks at a QEMU. Its control socket is free again afterwards.
///
/// # Errors
/// Every objection there is.
pub fn inspect(pid: i32, qmp: &Path) -> Result<Inspected, Vec<Objection>> {
    let refuse = |what: String, cure: &str| vec![Objection { what, cure: cure.into() }];
    let arguments = arguments_of(pid).map_err(|error| {
        refuse(
            format!("process {pid} can not be read: {error}"),
            "give the number of QEMU's process, as root",
        )
    })?;
    let Some((program, arguments)) = arguments.split_first() else {
        return Err(refuse(
            format!("process {pid} has no command line"),
            "give the number of QEMU's process",
        ));
    };
    if !program.contains("qemu") {
        return Err(refuse(format!("process {pid} is {program}"), "give the number of QEMU's process"));
    }
    let mut objections = starter::objections(pid);
    let mut connection = match Qmp::connect(qmp) {
        Ok(connection) => connection,
        Err(error) => {
            let cure = "add a control socket for Godwit alone: -qmp unix:PATH,server=on,wait=off";
            // Known without its word: another socket is no cure for one that libvirt has.
            objections.extend(command::by_libvirt(arguments));
            objections.extend(refuse(format!("{}: {}", qmp.display(), chain(&error)), cure));
            return Err(objections);
        }
    };
    let asked = ask(&mut connection, &mut objections);
    let asked =
        asked.and_then(|asked| plugged_later(&mut connection, arguments, &mut objections).map(|()| asked));
    let asked = match asked {
        Ok(asked) => asked,
        Err(error) => {
            objections.extend(refuse(format!("{}: {error}", qmp.display()), "see QEMU's own log"));
            return Err(objections);
        }
    };
    let folder =
        fs::read_link(format!("/proc/{pid}/cwd")).map_or("/".into(), |path| path.display().to_string());
    let qemu = match command::portable(program, arguments, &folder, &asked.ram_id) {
        Ok(mut qemu) => {
            if let Some(kind) = &asked.machine {
                versions::pin_machine(&mut qemu, kind);
            }
            let user = user_of(pid).unwrap_or_default();
            objections.extend(versions::run_as(&mut qemu, user, connection.version()).err());
            Some(qemu)
        }
        Err(more) => {
            objections.extend(more);
            None
        }
    };
    objections.extend(versions::is_in_its_state(arguments, &asked.ram_id, connection.version()));
    let mapping = match vm::ram_of(pid, asked.memory_bytes) {
        Ok((mapping, _)) => Some(mapping),
        Err(error) => {
            objections.push(Objection {
                what: chain(&error),
                cure: format!("start it with {}", command::ram_cure()),
            });
            None
        }
    };
    let name = arguments.windows(2).find(|pair| pair.first().is_some_and(|option| option == "-name"));
    let name = name.and_then(|pair| pair.last()).map(|value| {
        command::value_of(value, "guest").unwrap_or(value.split(',').next().unwrap_or_default()).to_owned()
    });
    match (qemu, mapping) {
        (Some(qemu), Some(mapping)) if objections.is_empty() => Ok(Inspected {
            pid,
            version: connection.version().to_owned(),
            name,
            memory_bytes: asked.memory_bytes,
            address: mapping.address,
            qemu,
        }),
        _ => Err(objections),
    }
}

struct Asked {
    memory_bytes: u64,
    ram_id: String,
    /// Its kind of machine, with its version; `None`: this QEMU does not tell.
    machine: Option<String>,
}

/// What QEMU itself says.
fn ask(qmp: &mut Qmp, objections: &mut Vec<Objection>) -> Result<Asked, QmpError> {
    let mut object = |what: String, cure: &str| objections.push(Objection { what, cure: cure.into() });
    let status = qmp.execute("query-status", json!({}))?;
    let word = status.get("status").and_then(Value::as_str).unwrap_or("unknown").to_owned();
    if word != "running" {
        // It would run by being adopted.
        object(format!("its state is {word}"), "adopt it when it runs");
    }
    let size = qmp.execute("query-memory-size-summary", json!({}))?;
    let bytes = |name: &str| size.get(name).and_then(Value::as_u64).unwrap_or(0);
    let (memory_bytes, plugged) = (bytes("base-memory"), bytes("plugged-memory"));
    if plugged != 0 {
        object(format!("{plugged} bytes of memory are plugged"), "give all memory with -m");
    }
    let memdevs = qmp.execute("query-memdev", json!({}))?;
    let memdevs = memdevs.as_array().cloned().unwrap_or_default();
    let text =
        |value: &Value, name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let is_shared = |value: &Value| value.get("share").and_then(Value::as_bool).unwrap_or(false);
    let ram_id = match memdevs.as_slice() {
        [only] if is_shared(only) => text(only, "id"),
        [only] => {
            object(format!("its RAM ({}) is not shared", text(only, "id")), &command::ram_cure());
            text(only, "id")
        }
        several => {
            object(
                format!(
                    "its RAM is in {} memory backends; this version moves guests with one",
                    several.len()
                ),
                &command::ram_cure(),
            );
            String::new()
        }
    };
    if qmp.execute("query-balloon", json!({})).is_ok() {
        object(
            "it has a balloon, which takes pages away unseen".into(),
            "start it without -device virtio-balloon",
        );
    }
    let migrate = qmp.execute("query-migrate", json!({}))?;
    for reason in migrate.get("blocked-reasons").and_then(Value::as_array).into_iter().flatten() {
        let reason = reason.as_str().unwrap_or("without a word");
        object(format!("QEMU says that it can not be moved: {reason}"), "remove what it names");
    }
    let state = text(&migrate, "status");
    if matches!(
        state.as_str(),
        "setup" | "active" | "device" | "postcopy-active" | "pre-switchover" | "cancelling"
    ) {
        object(format!("a migration of QEMU's own is {state}"), "let it end, or cancel it");
    }
    let machine = qmp.execute("qom-get", json!({ "path": "/machine", "property": "type" })).ok();
    let machine = machine.as_ref().and_then(Value::as_str).and_then(|kind| kind.strip_suffix("-machine"));
    Ok(Asked { memory_bytes, ram_id, machine: machine.map(str::to_owned) })
}

/// Devices that its command line does not name: another host would start without them.
fn plugged_later(
    qmp: &mut Qmp,
    arguments: &[String],
    objections: &mut Vec<Objection>,
) -> Result<(), QmpError> {
    let devices = qmp.execute("qom-list", json!({ "path": "/machine/peripheral" }))?;
    for device in devices.as_array().into_iter().flatten() {
        let text = |name: &str| device.get(name).and_then(Value::as_str).unwrap_or_default();
        let (id, kind) = (text("name"), text("type"));
        let named = arguments.iter().any(|argument| command::value_of(argument, "id") == Some(id));
        if kind.starts_with("child<") && !named {
            objections.push(Objection {
                what: format!("device {id} was plugged after it was started"),
                cure: format!("unplug it (device_del {id}), or start QEMU with it"),
            });
        }
    }
    Ok(())
}

/// As whom it runs, user and group; `None`: it has ended.
fn user_of(pid: i32) -> Option<(u32, u32)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let effective = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    Some((effective("Uid:")?, effective("Gid:")?))
}

fn arguments_of(pid: i32) -> std::io::Result<Vec<String>> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline"))?;
    if bytes.len() > CMDLINE_BYTES_MAX {
        return Err(std::io::Error::other(format!("a command line of {} bytes", bytes.len())));
    }
    let words = bytes.split(|byte| *byte == 0).map(|word| String::from_utf8(word.to_vec()));
    let mut words = words.collect::<Result<Vec<_>, _>>().map_err(std::io::Error::other)?;
    // Each word ends with a zero byte, the last one too.
    words.pop();
    Ok(words)
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
