//! Who would start a QEMU again where it was, once its guest is elsewhere: that would be two of one guest.
//!
//! ```text
//!   /proc/PID/cgroup ─┬▶ …/NAME.service ─▶ systemctl show: is QEMU what it is there for, and would it be started again?
//!                     └▶ a container's ──▶ whoever keeps containers would, and paths there are not those of this host
//! ```
//!
//! A process that a service happens to have started, in a session of its own (a shell under `sshd`), is not what that service
//! is there for.
//! The way out of libvirt is `command`'s: its machines are known by their command line.

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::command::{Objection, objection};

/// How long systemd may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How often it is looked for.
const ANSWER_LOOK: Duration = Duration::from_millis(5);
/// Largest answer that is read, in bytes.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
/// systemd is the first process of this host, `sd_booted(3)`.
const BOOTED: &str = "/run/systemd/system";
/// Largest file of /proc that is read here, in bytes: a container's path has a few hundred.
const CGROUP_BYTES_MAX: u64 = 64 << 10;

/// What begins the name of a container's cgroup.
const CONTAINERS: [&str; 6] = ["docker-", "libpod-", "crio-", "cri-containerd-", "lxc.payload", "kubepods"];
/// Folders in which a container's cgroup lies.
const CONTAINERS_IN: [&str; 3] = ["docker", "lxc", "libpod_parent"];

/// What speaks against taking this process from whoever started it.
pub(super) fn objections(pid: i32) -> Vec<Objection> {
    let here = |of: &str| read(Path::new(&format!("/proc/{of}/cgroup"))).unwrap_or_default();
    let (theirs, ours) = (here(&pid.to_string()), here("self"));
    let container = container_in(&theirs).filter(|container| container_in(&ours) != Some(*container));
    if container.is_some() || has_other_processes(pid) {
        let which = container.map(|container| format!(" ({container})")).unwrap_or_default();
        let what =
            format!("it runs in a container{which}, whose paths are others and which would be started again");
        return vec![objection(what, "start it on the host itself")];
    }
    let Some(service) = service_in(&theirs) else { return Vec::new() };
    if !Path::new(BOOTED).exists() {
        return Vec::new();
    }
    match ask(&service) {
        Ok(answer) => again(&service, &answer, &started_by(pid)),
        Err(error) => vec![unknown(&service, &error.to_string())],
    }
}

fn unknown(service: &Service, why: &str) -> Objection {
    let what = format!("whether {} would start it again is not known: {why}", service.unit);
    objection(what, format!("see that `{} show {}` answers here", service.systemctl(), service.unit))
}

/// It sees other processes than this one does, so it is not a process of this host, or of this container.
fn has_other_processes(pid: i32) -> bool {
    let namespace = |of: &str| fs::read_link(format!("/proc/{of}/ns/pid")).ok();
    let (theirs, ours) = (namespace(&pid.to_string()), namespace("self"));
    theirs.is_some() && ours.is_some() && theirs != ours
}

/// It and whoever has started it, as far as they share a session: a shell under `sshd` has one of its own.
fn started_by(pid: i32) -> Vec<i32> {
    let mut all = vec![pid];
    let Some((mut parent, session)) = stat(pid) else { return all };
    while let Some((above, _)) = stat(parent).filter(|(_, theirs)| *theirs == session) {
        all.push(parent);
        parent = above;
    }
    all
}

/// Its parent, and its session.
fn stat(pid: i32) -> Option<(i32, i32)> {
    let text = read(Path::new(&format!("/proc/{pid}/stat")))?;
    // Its name, in brackets, may have brackets and blanks itself.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(1);
    let parent = fields.next()?.parse().ok()?;
    Some((parent, fields.nth(1)?.parse().ok()?))
}

/// A service of systemd, the host's or a user's.
#[derive(Debug, PartialEq, Eq)]
struct Service {
    unit: String,
    user: Option<u32>,
}

impl Service {
    /// How its systemd is spoken to.
    fn systemctl(&self) -> String {
        self.user
            .map_or_else(|| "systemctl".to_owned(), |user| format!("systemctl --user --machine={user}@.host"))
    }
}

/// `0::/system.slice/vm1.service`, or `1:name=systemd:…`, or a user's:
/// `0::/user.slice/user-1000.slice/user@1000.service/app.slice/vm1.service`.
fn service_in(cgroups: &str) -> Option<Service> {
    let path = paths(cgroups).find(|(controllers, _)| matches!(*controllers, "" | "name=systemd"))?.1;
    let services = || path.split('/').filter(|part| part.ends_with(".service"));
    let of_user = |part: &str| part.strip_prefix("user@")?.strip_suffix(".service")?.parse().ok();
    let user = services().find_map(of_user);
    let unit = services().find(|part| user.is_none() || of_user(part).is_none())?;
    Some(Service { unit: unit.to_owned(), user })
}

/// The container that these are in: its path, without what is below it.
fn container_in(cgroups: &str) -> Option<&str> {
    let is_named =
        |part: &str| CONTAINERS.iter().any(|begin| part.starts_with(begin)) && !part.ends_with(".service");
    paths(cgroups).find_map(|(_, path)| {
        let (mut end, mut within) = (0, false);
        for part in path.split('/') {
            end += part.len();
            if within || is_named(part) {
                return path.get(..end);
            }
            within = CONTAINERS_IN.contains(&part);
            end += 1;
        }
        None
    })
}

/// Controllers and path of each line.
fn paths(cgroups: &str) -> impl Iterator<Item = (&str, &str)> {
    cgroups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        Some((parts.next()?, parts.next()?))
    })
}

/// Asks systemd: `Restart=no` and the like, each on a line.
fn ask(service: &Service) -> io::Result<String> {
    let systemctl = service.systemctl();
    let mut words = systemctl.split(' ');
    let mut command = Command::new(words.next().unwrap_or_default());
    let properties = "LoadState,MainPID,Restart,UnitFileState,WantedBy,RequiredBy,UpheldBy,TriggeredBy";
    command.args(words).args(["show", &format!("--property={properties}"), "--", &service.unit]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if Instant::now() < deadline => std::thread::sleep(ANSWER_LOOK),
            None => {
                child.kill()?;
                child.wait()?;
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("no answer of systemd within {} s", ANSWER_TIMEOUT.as_secs()),
                ));
            }
        }
    };
    if !status.success() {
        let mut words = String::new();
        if let Some(said) = child.stderr.take() {
            said.take(ANSWER_BYTES_MAX).read_to_string(&mut words)?;
        }
        let last = words.lines().last().unwrap_or_default();
        return Err(io::Error::other(format!("systemctl ended with {status}: {last}")));
    }
    let mut answer = String::new();
    if let Some(out) = child.stdout.take() {
        out.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    }
    Ok(answer)
}

/// What a service does that one of these processes is there for.
fn again(service: &Service, answer: &str, processes: &[i32]) -> Vec<Objection> {
    let (unit, systemctl) = (&service.unit, service.systemctl());
    let value = |key: &str| {
        answer.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap_or_default()
    };
    // As of a unit that only another systemd, in a container, knows.
    let loaded = value("LoadState");
    if loaded != "loaded" {
        return vec![unknown(service, &format!("systemd has it as {loaded:?}"))];
    }
    // 0: systemd does not know which one is, as with some that go into the background.
    let main = value("MainPID").parse::<i32>().ok().filter(|main| *main != 0);
    if main.is_some_and(|main| !processes.contains(&main)) {
        return Vec::new();
    }
    let mut objections = Vec::new();
    let restart = value("Restart");
    if restart != "no" {
        let what = format!(
            "{unit} would start it again where it was (Restart={restart}) when its guest has moved: two of one guest"
        );
        objections.push(objection(
            what,
            format!("let it not: `{systemctl} edit {unit}`, and there [Service] and Restart=no"),
        ));
    }
    let by =
        ["WantedBy", "RequiredBy", "UpheldBy", "TriggeredBy"].into_iter().find(|key| !value(key).is_empty());
    let by = by.map(|key| format!("{key}={}", value(key)));
    let enabled = matches!(value("UnitFileState"), "enabled" | "alias").then(|| "enabled".to_owned());
    if let Some(by) = by.or(enabled) {
        let what = format!(
            "{unit} would be started again ({by}), as when this host boots, wherever its guest is by then"
        );
        let cure = format!(
            "`{systemctl} disable {unit}`, which leaves it running (--runtime, if it was enabled so), or take it out of what \
             names it"
        );
        objections.push(objection(what, cure));
    }
    objections
}

fn read(path: &Path) -> Option<String> {
    let mut text = String::new();
    fs::File::open(path).ok()?.take(CGROUP_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_found_in_either_hierarchy() {
        let service = |unit: &str, user| Some(Service { unit: unit.into(), user });
        for (cgroups, found) in [
            ("0::/system.slice/vm1.service\n", service("vm1.service", None)),
            ("0::/system.slice/system-vm.slice/vm@a.service/sub\n", service("vm@a.service", None)),
            (
                "4:cpu:/godwit/1\n1:name=systemd:/system.slice/vm1.service\n0::/\n",
                service("vm1.service", None),
            ),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/app.slice/vm1.service\n",
                service("vm1.service", Some(1000)),
            ),
            ("0::/user.slice/user-0.slice/user@0.service/init.scope\n", None),
            ("0::/user.slice/user-0.slice/session-3.scope\n", None),
            ("4:cpu:/system.slice/vm1.service\n", None),
            ("0::/\n", None),
            ("", None),
        ] {
            assert_eq!(service_in(cgroups), found, "{cgroups:?}");
        }
    }

    #[test]
    fn a_container_is_known_by_its_cgroup() {
        for (cgroups, found) in [
            ("0::/system.slice/docker-0123abcd.scope\n", true),
            ("7:pids:/docker/0123abcd\n0::/\n", true),
            ("0::/machine.slice/libpod-0123.scope/container\n", true),
            ("0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-1.scope\n", true),
            ("0::/lxc.payload.web\n", true),
            ("0::/system.slice/docker.service\n", false),
            ("0::/machine.slice/machine-qemu\\x2d1\\x2dvm1.scope/libvirt\n", false),
            ("0::/godwit/0123\n", false),
        ] {
            assert_eq!(container_in(cgroups).is_some(), found, "{cgroups:?}");
        }
    }

    #[test]
    fn a_container_is_one_whatever_is_below_it() {
        for (cgroups, container) in [
            ("0::/docker/0123/system.slice/vm1.service\n", "/docker/0123"),
            ("4:cpu:/docker/0123\n", "/docker/0123"),
            ("0::/machine.slice/libpod-0123.scope/container\n", "/machine.slice/libpod-0123.scope"),
        ] {
            assert_eq!(container_in(cgroups), Some(container), "{cgroups:?}");
        }
        assert_eq!(container_in("0::/system.slice/docker-cleanup.service\n"), None);
    }

    #[test]
    fn this_process_and_those_above_are_found() {
        let me = i32::try_from(std::process::id()).expect("a number");
        let parent = rustix::process::getppid().map(rustix::process::Pid::as_raw_nonzero).expect("one");
        assert_eq!(stat(me).map(|(parent, _)| parent), Some(parent.get()));
        assert_eq!(started_by(me).first(), Some(&me));
        assert!(!has_other_processes(me));
    }

    #[test]
    fn what_would_be_started_again_is_objected_to() {
        let service = Service { unit: "vm1.service".into(), user: None };
        for (answer, objections) in [
            ("MainPID=7\nRestart=no\nUnitFileState=disabled\nWantedBy=\n", 0),
            ("MainPID=7\nRestart=no\nUnitFileState=\n", 0),
            ("MainPID=7\nRestart=always\nUnitFileState=disabled\n", 1),
            ("MainPID=6\nRestart=on-failure\nUnitFileState=static\n", 1),
            ("MainPID=0\nRestart=on-abnormal\nUnitFileState=transient\n", 1),
            ("MainPID=7\nRestart=no\nUnitFileState=enabled\nWantedBy=multi-user.target\n", 1),
            ("MainPID=7\nRestart=no\nUnitFileState=static\nTriggeredBy=vm1.timer\n", 1),
            ("MainPID=7\nRestart=always\nUnitFileState=generated\nRequiredBy=vms.target\n", 2),
            // What it is there for is another process: `sshd`, and this was started from a shell.
            ("MainPID=8\nRestart=always\nUnitFileState=enabled\n", 0),
        ] {
            let answer = format!("LoadState=loaded\n{answer}");
            assert_eq!(again(&service, &answer, &[7, 6]).len(), objections, "{answer:?}");
        }
        // Nothing is known, so nothing is promised.
        for answer in ["", "LoadState=not-found\nMainPID=0\nRestart=no\n"] {
            let told = again(&service, answer, &[7, 6]);
            assert!(told.iter().any(|one| one.what.contains("not known")), "{told:?}");
        }
    }

    #[test]
    fn a_users_service_is_asked_of_the_users_systemd() {
        let service = Service { unit: "vm1.service".into(), user: Some(1000) };
        let answer = "LoadState=loaded\nMainPID=7\nRestart=always\n";
        let told = again(&service, answer, &[7]);
        assert!(
            told.iter().all(|one| one.cure.contains("systemctl --user --machine=1000@.host edit")),
            "{told:?}"
        );
        assert_eq!(told.len(), 1);
    }
}
