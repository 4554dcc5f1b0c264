//! A host's disks: small file systems of their own, so that they can be full.
//!
//! ```text
//!   dir/X/control ─▶ FOLDER/X/log/control           what the node sees: a folder
//!                    FOLDER/X/log/ballast           what fills its disk
//!   dir/X/records ─▶ FOLDER/X/records/records      the same again
//! ```
//!
//! Always true: what a node has written stays when the node's process ends, and goes with the field. Links are all that
//! is in the cluster's folder, so that it can be removed while the disks are there.

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::Path;

/// Which disk of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disk {
    /// The voter's log: `control` in the node's state folder.
    Log,
    /// What a node must not forget of its guests: `records`.
    Records,
}

/// What fills a disk.
const BALLAST: &str = "ballast";
/// Written at once while there is room.
const CHUNK_BYTES: usize = 1 << 20;

impl Disk {
    pub(crate) const ALL: [Self; 2] = [Self::Log, Self::Records];

    /// Its name, and its size in bytes.
    ///
    /// A log has 3 to 7 MB after 600 moves, and is cut every 4,096 entries; a node keeps 512 records of a page each.
    pub(super) const fn measures(self) -> (&'static str, u64) {
        match self {
            Self::Log => ("log", 128 << 20),
            Self::Records => ("records", 8 << 20),
        }
    }

    /// What the node calls the folder on it.
    const fn folder(self) -> &'static str {
        match self {
            Self::Log => "control",
            Self::Records => "records",
        }
    }

    /// Puts it into a node's state folder, which is made if it is missing.
    pub(super) fn put(self, host: &Path, state: &Path) -> io::Result<()> {
        let folder = host.join(self.measures().0).join(self.folder());
        let mut secret = DirBuilder::new();
        secret.recursive(true).mode(0o700);
        secret.create(&folder)?;
        secret.create(state)?;
        symlink(folder, state.join(self.folder()))
    }

    /// Leaves no room on it.
    pub(super) fn fill(self, host: &Path) -> io::Result<()> {
        let ballast = host.join(self.measures().0).join(BALLAST);
        let mut ballast = File::options().create(true).append(true).open(ballast)?;
        let zeros = vec![0; CHUNK_BYTES];
        loop {
            // What is left below a chunk is written short.
            match ballast.write(&zeros) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes room again.
    pub(super) fn free(self, host: &Path) -> io::Result<()> {
        match std::fs::remove_file(host.join(self.measures().0).join(BALLAST)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
