//! A machine's own cgroup: how much of the processors it gets, by which a guest that writes too fast is slowed down.
//!
//! ```text
//!   v2   /sys/fs/cgroup/godwit/INSTANCE/      cgroup.procs, cpu.max
//!   v1   /sys/fs/cgroup/cpu/godwit/INSTANCE/  cgroup.procs, cpu.cfs_quota_us, cpu.cfs_period_us
//! ```
//!
//! Always true: a machine that is left alone again is where it was before. A host without cgroups can not throttle, and says
//! so when it is asked to.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Share of time is given anew each period. A short one keeps a throttled machine from standing still for long at a time.
const PERIOD_US: u64 = 20_000;
/// Where they are mounted.
const ROOT: &str = "/sys/fs/cgroup";

/// See the module.
#[derive(Debug)]
pub(super) struct Cgroup {
    dir: PathBuf,
    version: Version,
    /// Where its processes were before.
    before: PathBuf,
    processors: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Cgroup {
    /// Puts a process, and whatever it starts, into a cgroup of its own. One that is in it already stays. `before`: where it
    /// was, as [`Self::of`] has said it; nothing: the root.
    pub(super) fn enter(
        instance: &str,
        pid: i32,
        processors: u64,
        before: Option<&Path>,
    ) -> io::Result<Self> {
        let (version, root) = root()?;
        let parent = root.join("godwit");
        let dir = parent.join(instance);
        let before = before.map_or_else(|| root.clone(), |before| root.join(before));
        fs::create_dir_all(&dir)?;
        if version == Version::Two {
            // It fails where it is on already in a way that is not ours to change; the quota's own write tells.
            for above in [&root, &parent] {
                let _ = fs::write(above.join("cgroup.subtree_control"), "+cpu");
            }
        }
        let cgroup = Self { dir, version, before, processors: processors.max(1) };
        fs::write(cgroup.dir.join("cgroup.procs"), pid.to_string())?;
        Ok(cgroup)
    }

    /// Where a process is, below the root of the hierarchy.
    pub(super) fn of(pid: i32) -> io::Result<PathBuf> {
        let (version, _) = root()?;
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let path = Path::new(path_in(&text, version).unwrap_or("/"));
        Ok(path.strip_prefix("/").unwrap_or(path).to_owned())
    }

    /// Takes so many percent of its time, 0 to 99.
    pub(super) fn throttle(&self, percent: u8) -> io::Result<()> {
        let quota = quota_us(percent, self.processors);
        match self.version {
            Version::Two => {
                let quota = quota.map_or_else(|| "max".to_owned(), |quota| quota.to_string());
                fs::write(self.dir.join("cpu.max"), format!("{quota} {PERIOD_US}"))
            }
            Version::One => {
                fs::write(self.dir.join("cpu.cfs_period_us"), PERIOD_US.to_string())?;
                let quota = quota.map_or_else(|| "-1".to_owned(), |quota| quota.to_string());
                fs::write(self.dir.join("cpu.cfs_quota_us"), quota)
            }
        }
    }

    /// Puts a process back where it was, and removes the cgroup.
    pub(super) fn leave(&self, pid: i32) -> io::Result<()> {
        fs::write(self.before.join("cgroup.procs"), pid.to_string())?;
        self.remove();
        Ok(())
    }

    /// Removes an empty cgroup; one that is not stays.
    pub(super) fn remove(&self) {
        let _ = fs::remove_dir(&self.dir);
    }
}

/// Microseconds of processor time in a period; `None`: as much as there is.
fn quota_us(percent: u8, processors: u64) -> Option<u64> {
    (percent > 0).then(|| (PERIOD_US * processors * u64::from(100 - percent.min(99)) / 100).max(1_000))
}

fn root() -> io::Result<(Version, PathBuf)> {
    let root = Path::new(ROOT);
    let has = |dir: &Path, name: &str| dir.join(name).exists();
    if fs::read_to_string(root.join("cgroup.controllers")).is_ok_and(|all| has_cpu(&all)) {
        return Ok((Version::Two, root.to_owned()));
    }
    for name in ["cpu", "cpu,cpuacct"] {
        if has(&root.join(name), "cpu.cfs_quota_us") || has(&root.join(name), "cgroup.procs") {
            return Ok((Version::One, root.join(name)));
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("no cgroups with the cpu controller at {ROOT}")))
}

/// Whether it is among these controllers, of which another is `cpuset`.
fn has_cpu(controllers: &str) -> bool {
    controllers.split_whitespace().any(|controller| controller == "cpu")
}

/// `4:cpu,cpuacct:/user` or `0::/user`.
fn path_in(text: &str, version: Version) -> Option<&str> {
    text.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let found = match version {
            Version::One => controllers.split(',').any(|controller| controller == "cpu"),
            Version::Two => controllers.is_empty(),
        };
        found.then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_what_is_left() {
        for (percent, processors, quota) in [
            (0, 2, None),
            (50, 1, Some(10_000)),
            (80, 2, Some(8_000)),
            (99, 1, Some(1_000)),
            (200, 1, Some(1_000)),
        ] {
            assert_eq!(quota_us(percent, processors), quota, "{percent} % of {processors}");
        }
    }

    #[test]
    fn a_controller_is_known_by_its_whole_name() {
        assert!(has_cpu("cpuset cpu io memory pids\n"));
        assert!(!has_cpu("cpuset io memory\n") && !has_cpu(""));
    }

    #[test]
    fn where_a_process_is_is_read() {
        let one = "11:memory:/m\n4:cpu,cpuacct:/user/a:b\n1:name=systemd:/s\n0::/u\n";
        assert_eq!(path_in(one, Version::One), Some("/user/a:b"));
        assert_eq!(path_in(one, Version::Two), Some("/u"));
        assert_eq!(path_in("", Version::Two), None);
    }
}
