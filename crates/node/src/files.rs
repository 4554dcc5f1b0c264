//! Files that are read under a cap and appear whole or not at all.
//!
//! ```text
//!   bytes ──▶ DIR/.NAME.RANDOM.tmp (final mode from creation) ──▶ sync ──▶ rename or link ──▶ DIR/NAME
//! ```
//!
//! Always true: no reader ever sees half a file, no secret is readable for others even for a moment, and a
//! file that could not be finished leaves nothing behind.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::rand::{GetRandomFlags, getrandom};

/// Mode of a file that anyone may read.
pub(crate) const MODE_PUBLIC: u32 = 0o644;
/// Mode of a file that only its owner may read.
pub(crate) const MODE_SECRET: u32 = 0o600;

/// Reads a file of at most `bytes_max` bytes. The cap is checked while reading, not by the file's length,
/// which may change and which a device does not have.
pub(crate) fn read_capped(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|len| len <= bytes_max) {
        return Ok(bytes);
    }
    let rule = format!("it holds more than {bytes_max} bytes, which is the most that is read");
    Err(io::Error::new(io::ErrorKind::FileTooLarge, rule))
}

/// Writes a file in place of any that has its name.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = Temporary::write(path, bytes, mode)?;
    fs::rename(&temporary.0, path)?;
    sync_folder_of(path)
}

/// Writes a file that must not exist yet. The link refuses an existing name in one step with taking it, so of
/// two writers one wins and the other is told.
pub(crate) fn create(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = Temporary::write(path, bytes, mode)?;
    fs::hard_link(&temporary.0, path)?;
    drop(temporary);
    sync_folder_of(path)
}

/// Makes a folder, for its owner only, where there is none.
pub(crate) fn folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Random bytes from the kernel.
pub(crate) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    // The kernel may give less than was asked for where a signal comes in between.
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += getrandom(rest, GetRandomFlags::empty())?;
    }
    Ok(bytes)
}

/// A file under a name that nobody looks for. Its end removes it, unless it has been renamed.
struct Temporary(PathBuf);

impl Temporary {
    fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<Self> {
        let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidFilename))?;
        let unique = u64::from_ne_bytes(random()?);
        let hidden = path.with_file_name(format!(".{}.{unique:016x}.tmp", name.to_string_lossy()));
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&hidden)?;
        let this = Self(hidden);
        // The process's umask may have taken bits away from a public file.
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        Ok(this)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a rename there is nothing to remove, and there is nobody to tell of any other failure.
        let _ = fs::remove_file(&self.0);
    }
}

/// A new name is safe from a power cut only once its folder has been written too.
pub(crate) fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A folder for one test, gone after it.
    pub(crate) struct Scratch(PathBuf);

    impl Scratch {
        pub(crate) fn new() -> Self {
            let unique = u64::from_ne_bytes(random().expect("random bytes"));
            let path = std::env::temp_dir().join(format!("godwit-test-{unique:016x}"));
            folder(&path).expect("make a scratch folder");
            Self(path)
        }

        pub(crate) fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn names_in(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .expect("list")
            .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_has_its_mode_and_leaves_no_temporary() {
        let scratch = Scratch::new();
        let path = scratch.path().join("secret");
        create(&path, b"one", MODE_SECRET).expect("create");
        assert_eq!(fs::metadata(&path).expect("metadata").permissions().mode() & 0o777, MODE_SECRET);

        replace(&path, b"two", MODE_PUBLIC).expect("replace");
        assert_eq!(fs::metadata(&path).expect("metadata").permissions().mode() & 0o777, MODE_PUBLIC);
        assert_eq!(fs::read(&path).expect("read"), b"two");
        assert_eq!(names_in(scratch.path()), ["secret"]);
    }

    #[test]
    fn an_existing_file_is_not_created_again() {
        let scratch = Scratch::new();
        let path = scratch.path().join("key");
        create(&path, b"first", MODE_SECRET).expect("create");
        let error = create(&path, b"second", MODE_SECRET).expect_err("exists");
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).expect("read"), b"first");
        assert_eq!(names_in(scratch.path()), ["key"]);
    }

    #[test]
    fn a_file_is_read_up_to_its_cap_and_no_further() {
        let scratch = Scratch::new();
        let path = scratch.path().join("file");
        replace(&path, &[7; 64], MODE_PUBLIC).expect("write");
        assert_eq!(read_capped(&path, 64).expect("at the cap").len(), 64);
        assert_eq!(read_capped(&path, 63).expect_err("above").kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(
            read_capped(Path::new("/dev/zero"), 63).expect_err("endless").kind(),
            io::ErrorKind::FileTooLarge
        );
    }
}
