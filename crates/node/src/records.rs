//! What a node writes down about runners, because it must outlive the node process: whose they are, that one never
//! started, that `Final` never left.
//!
//! ```text
//!   STATE/guests/INSTANCE/about.json          before the runner is started
//!   STATE/records/tombstone-INSTANCE.json     before the runner is killed, which is before anybody is told
//!   STATE/records/withheld-INSTANCE-EPOCH.json   before the testimony is proposed
//! ```
//!
//! Always true: a record appears whole or not at all, and before what it vouches for is said, unless that is of a runner which
//! is dead already and the disk takes no more: then this process knows it alone, and the next says less. A host that dies takes the
//! runners that they speak of along, so they need not outlive it; they do.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use godwit_domain::registry::GuestUid;
use godwit_domain::{Epoch, InstanceId, MigrationId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::files;

/// Largest record, in bytes. A reason has at most a few hundred.
const RECORD_BYTES_MAX: u64 = 16 << 10;
/// Records of each kind that are kept. They matter for as long as the migration that they are about is not over.
const KEPT_MAX: usize = 256;

/// Whose a runner is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// Its guest, for all time.
    pub uid: GuestUid,
    /// The epoch that the node's view had when it was made.
    pub made: Epoch,
    /// The migration for which it waits or waited; `None`: its guest was made in it.
    pub arriving: Option<MigrationId>,
}

/// That a runner never started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Buried {
    /// The runner.
    pub instance: InstanceId,
    /// Its guest.
    pub uid: GuestUid,
    /// Why it was given up.
    pub reason: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Withheld {
    instance: InstanceId,
    uid: GuestUid,
    sealed: Epoch,
}

/// See the module.
#[derive(Debug)]
pub struct Records {
    dir: PathBuf,
    buried: BTreeMap<InstanceId, Buried>,
    withheld: BTreeSet<(GuestUid, InstanceId, Epoch)>,
}

impl Records {
    /// Those of a node with this state folder.
    ///
    /// # Errors
    /// If the folder can not be made, or it or a file in it not be read. What is no record is left and said.
    pub fn load(state: &Path) -> io::Result<Self> {
        let dir = state.join("records");
        files::folder(&dir)?;
        let mut records = Self { dir, buried: BTreeMap::new(), withheld: BTreeSet::new() };
        for path in newest_first(&records.dir)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let outcome = if name.starts_with("tombstone-") {
                read::<Buried>(&path).map(|buried| {
                    records.buried.insert(buried.instance, buried);
                })
            } else if name.starts_with("withheld-") {
                read::<Withheld>(&path).map(|Withheld { instance, uid, sealed }| {
                    records.withheld.insert((uid, instance, sealed));
                })
            } else {
                Ok(())
            };
            match outcome {
                // The disk's word, not the file's: what it says may be all that is known.
                Err(error) if error.raw_os_error().is_some() => {
                    return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display())));
                }
                Err(error) => tracing::error!(path = %path.display(), %error, "this is no record"),
                Ok(()) => {}
            }
        }
        Ok(records)
    }

    /// Says, for good, that a runner never started. Before it is killed. Errors: nothing is written, and nothing may be said.
    pub fn bury(&mut self, buried: Buried) -> io::Result<()> {
        if self.buried.contains_key(&buried.instance) {
            return Ok(());
        }
        self.write(&format!("tombstone-{}.json", buried.instance), &buried)?;
        self.buried.insert(buried.instance, buried);
        Ok(())
    }

    /// The same of one that is dead already. What can not be written down is known to this process all the same; the next
    /// one knows less, and says only that it is gone.
    pub fn bury_dead(&mut self, buried: Buried) -> io::Result<()> {
        let written = self.bury(buried.clone());
        self.buried.insert(buried.instance, buried);
        written
    }

    /// Says, for good, that `Final` of this epoch never leaves. Errors: as for [`Records::bury`].
    pub fn withhold(&mut self, uid: GuestUid, instance: InstanceId, sealed: Epoch) -> io::Result<()> {
        if self.withheld.contains(&(uid, instance, sealed)) {
            return Ok(());
        }
        self.write(&format!("withheld-{instance}-{sealed}.json"), &Withheld { instance, uid, sealed })?;
        self.withheld.insert((uid, instance, sealed));
        Ok(())
    }

    /// All that are buried.
    pub fn all_buried(&self) -> impl Iterator<Item = &Buried> {
        self.buried.values()
    }

    /// The buried of a guest.
    pub fn buried(&self, uid: GuestUid) -> impl Iterator<Item = &Buried> {
        self.buried.values().filter(move |buried| buried.uid == uid)
    }

    /// What was withheld of a guest.
    pub fn withheld(&self, uid: GuestUid) -> impl Iterator<Item = (InstanceId, Epoch)> {
        let of = self.withheld.iter().filter(move |(of, ..)| *of == uid);
        of.map(|(_, instance, sealed)| (*instance, *sealed))
    }

    fn write<T: Serialize>(&self, name: &str, record: &T) -> io::Result<()> {
        let bytes = serde_json::to_vec(record).map_err(io::Error::other)?;
        let path = self.dir.join(name);
        // What is not said to have been written must not be read by the next process: it may have become untrue by then.
        files::replace(&path, &bytes, files::MODE_SECRET).inspect_err(|_| drop(fs::remove_file(&path)))?;
        let all = newest_first(&self.dir).unwrap_or_default();
        let newest = all.first().and_then(|newest| fs::metadata(newest).ok()?.modified().ok());
        if let Some(newest) = newest.filter(|newest| *newest > SystemTime::now()) {
            // Where the clock was set back it would look older than all others, and be the first to go.
            let file = fs::File::options().write(true).open(&path);
            let _ = file.and_then(|file| file.set_modified(newest + Duration::from_millis(1)));
        }
        let others = all.into_iter().filter(|other| *other != path);
        others.skip(2 * KEPT_MAX).for_each(|old| drop(fs::remove_file(old)));
        Ok(())
    }
}

impl About {
    /// Writes it into a runner's folder.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        let bytes = serde_json::to_vec(self).map_err(io::Error::other)?;
        files::replace(&dir.join("about.json"), &bytes, files::MODE_SECRET)
    }

    /// Reads it from a runner's folder.
    pub fn read(dir: &Path) -> io::Result<Self> {
        read(&dir.join("about.json"))
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    serde_json::from_slice(&files::read_capped(path, RECORD_BYTES_MAX)?).map_err(io::Error::other)
}

fn newest_first(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let written = entry.metadata().and_then(|metadata| metadata.modified());
        found.push((std::cmp::Reverse(written.unwrap_or(SystemTime::UNIX_EPOCH)), entry.path()));
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::tests::Scratch;

    #[test]
    fn records_are_there_after_a_restart_and_a_torn_one_is_left_out() {
        let scratch = Scratch::new();
        let instance = |n: u8| InstanceId::from_random([n; 16]);
        let buried = Buried { instance: instance(1), uid: GuestUid(7), reason: "link lost".into() };
        let mut records = Records::load(scratch.path()).expect("an empty folder");
        records.bury(buried.clone()).expect("written");
        records.withhold(GuestUid(7), instance(2), Epoch(3)).expect("written");
        fs::write(scratch.path().join("records/tombstone-torn.json"), b"{\"inst").expect("torn");
        let again = Records::load(scratch.path()).expect("loads");
        assert_eq!(again.buried(GuestUid(7)).collect::<Vec<_>>(), [&buried]);
        assert_eq!(again.withheld(GuestUid(7)).collect::<Vec<_>>(), [(instance(2), Epoch(3))]);
        assert_eq!(again.buried(GuestUid(8)).count() + again.withheld(GuestUid(8)).count(), 0);
    }

    #[test]
    fn what_can_not_be_written_down_is_not_withheld() {
        let scratch = Scratch::new();
        let copy = InstanceId::from_random([1; 16]);
        let mut records = Records::load(scratch.path()).expect("an empty folder");
        fs::remove_dir(scratch.path().join("records")).expect("removed");
        records.withhold(GuestUid(7), copy, Epoch(3)).expect_err("no folder");
        assert_eq!(records.withheld(GuestUid(7)).count(), 0);
        let buried = Buried { instance: copy, uid: GuestUid(7), reason: "link lost".into() };
        records.bury(buried.clone()).expect_err("no folder");
        assert_eq!(records.buried(GuestUid(7)).count(), 0);
        records.bury_dead(buried).expect_err("no folder");
        assert_eq!(records.buried(GuestUid(7)).count(), 1, "it is dead, and has not run");
    }

    #[test]
    fn a_record_outlives_those_that_look_newer() {
        let scratch = Scratch::new();
        let instance = |n: u16| {
            let [high, low] = n.to_be_bytes();
            InstanceId::from_random([high, low, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
        };
        let mut records = Records::load(scratch.path()).expect("an empty folder");
        let later = SystemTime::now() + Duration::from_secs(3600);
        for n in 0..u16::try_from(2 * KEPT_MAX).expect("few") {
            records.withhold(GuestUid(7), instance(n), Epoch(3)).expect("written");
            let path = scratch.path().join(format!("records/withheld-{}-{}.json", instance(n), Epoch(3)));
            fs::File::options()
                .write(true)
                .open(path)
                .and_then(|file| file.set_modified(later))
                .expect("set");
        }
        for n in 1000..1003 {
            records.withhold(GuestUid(8), instance(n), Epoch(3)).expect("written");
        }
        let again = Records::load(scratch.path()).expect("loads");
        assert_eq!(again.withheld(GuestUid(8)).count(), 3);
    }

    #[test]
    fn a_runner_is_known_again_by_its_folder() {
        let scratch = Scratch::new();
        let about = About { uid: GuestUid(1), made: Epoch(4), arriving: Some("m1".parse().expect("a name")) };
        about.write(scratch.path()).expect("written");
        assert_eq!(About::read(scratch.path()).expect("reads"), about);
        assert!(About::read(&scratch.path().join("none")).is_err());
    }
}
