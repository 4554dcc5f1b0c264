//! How a log takes another's place: two changes of names, and a note that lets whoever comes after a crash between them undo it.
//!
//! ```text
//!   control ─▶ control.left      control.new ─▶ control      book      note away
//!   └ control.founding: which group                          └ from here on it is founded
//! ```
//!
//! Always true: no log is removed but one that was given up in a founding before this one.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use godwit_domain::GroupId;

use super::{DisasterError, at, remove};
use crate::files;

/// Longest note of a founding: a group's number.
const NOTE_BYTES_MAX: u64 = 256;

/// What stands where, in the folder of a node.
pub(super) struct Places {
    /// The log of the group that it is in.
    pub(super) log: PathBuf,
    /// That of the group that is being founded.
    pub(super) new: PathBuf,
    /// That of the group that was given up.
    pub(super) left: PathBuf,
    /// Is there while names are changed, and says which group is being founded.
    pub(super) founding: PathBuf,
}

impl Places {
    pub(super) fn of(state: &Path) -> Self {
        let [log, new, left, founding] =
            ["control", "control.new", "control.left", "control.founding"].map(|name| state.join(name));
        Self { log, new, left, founding }
    }

    /// Puts the new log in the place of the old one.
    pub(super) fn change(&self, group: GroupId) -> Result<(), DisasterError> {
        if self.log.exists() {
            // Before the mark: what is left after it is this founding's.
            remove(&self.left)?;
        }
        let note = File::create(&self.founding).and_then(|mut file| {
            file.write_all(group.to_string().as_bytes())?;
            file.sync_all()
        });
        note.map_err(at(&self.founding))?;
        if self.log.exists() {
            fs::rename(&self.log, &self.left).map_err(at(&self.log))?;
        }
        fs::rename(&self.new, &self.log).map_err(at(&self.new))
    }

    /// Undoes the change of one that did not come to its end. The book is written last, so a node that is in the new group by its
    /// book is in it.
    pub(super) fn undo(&self, in_group: Option<GroupId>) -> Result<(), DisasterError> {
        if !self.founding.exists() {
            return Ok(());
        }
        let of = files::read_capped(&self.founding, NOTE_BYTES_MAX).map_err(at(&self.founding))?;
        if in_group.is_some_and(|group| group.to_string().as_bytes() == of.as_slice()) {
            // The note goes after the book is known to last.
            return files::sync_folder_of(&self.founding)
                .and_then(|()| fs::remove_file(&self.founding))
                .map_err(at(&self.founding));
        }
        // A new log is no longer where it was made.
        if !self.new.exists() && self.log.exists() {
            fs::rename(&self.log, &self.new).map_err(at(&self.log))?;
        }
        if !self.log.exists() && self.left.exists() {
            fs::rename(&self.left, &self.log).map_err(at(&self.left))?;
        }
        fs::remove_file(&self.founding).map_err(at(&self.founding))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: GroupId = GroupId(2);

    /// What the log holds after an attempt that was interrupted after so many steps, and after it was undone.
    fn interrupted_after(steps: usize, had_a_log: bool) -> Option<String> {
        let dir = tempfile::tempdir().expect("folder");
        let places = Places::of(dir.path());
        let make = |folder: &Path, text: &str| {
            fs::create_dir(folder).expect("made");
            fs::write(folder.join("whose"), text).expect("written");
        };
        make(&places.new, "new");
        if had_a_log {
            make(&places.log, "old");
            make(&places.left, "older");
        }
        let step = |at: usize| at < steps;
        if step(0) && had_a_log {
            remove(&places.left).expect("removed");
        }
        if step(1) {
            fs::write(&places.founding, NEW.to_string()).expect("written");
        }
        if step(2) && had_a_log {
            fs::rename(&places.log, &places.left).expect("renamed");
        }
        if step(3) {
            fs::rename(&places.new, &places.log).expect("renamed");
        }
        places.undo(had_a_log.then_some(GroupId(1))).expect("undone");
        assert!(!places.founding.exists());
        assert_eq!(
            fs::read_to_string(places.new.join("whose")).ok().as_deref(),
            Some("new"),
            "nothing is lost"
        );
        fs::read_to_string(places.log.join("whose")).ok()
    }

    #[test]
    fn a_founding_that_was_interrupted_is_undone() {
        for steps in 0..=4 {
            assert_eq!(interrupted_after(steps, true).as_deref(), Some("old"), "after {steps} steps");
            assert_eq!(interrupted_after(steps, false), None, "after {steps} steps");
        }
    }

    #[test]
    fn a_change_puts_the_new_log_in_place() {
        let dir = tempfile::tempdir().expect("folder");
        let places = Places::of(dir.path());
        for (folder, text) in [(&places.new, "new"), (&places.log, "old"), (&places.left, "older")] {
            fs::create_dir(folder).expect("made");
            fs::write(folder.join("whose"), text).expect("written");
        }
        places.change(NEW).expect("changed");
        let whose = |folder: &Path| fs::read_to_string(folder.join("whose")).expect("read");
        // The book was written, and then the power failed: it is founded.
        places.undo(Some(NEW)).expect("nothing to undo");
        assert_eq!((whose(&places.log), whose(&places.left)), ("new".to_owned(), "old".to_owned()));
        assert!(!places.founding.exists());
    }
}
