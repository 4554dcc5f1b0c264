//! The admin socket's place: how it appears in its folder, and how it goes.
//!
//! ```text
//!   lock the folder ─▶ who is there? ─┬─ somebody answers ──▶ refused, by name
//!                                     ├─ no socket ─────────▶ refused: it is not ours to remove
//!                                     └─ nothing, or nobody ─▶ bind another name ─▶ 0600 ─▶ listen ─▶ rename to NAME
//! ```
//!
//! Always true: whoever sees the socket under its name can connect, and nobody else than its owner at any moment; of two
//! that begin at once, one is refused; only what is still ours is removed.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, RawMode};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::server::Limits;

/// Of the folder, if it is made: what is in it is the node's owner's alone.
const FOLDER_MODE: RawMode = 0o700;
/// Of the socket: who may connect may do everything.
const SOCKET_MODE: RawMode = 0o600;
/// Connections that may wait to be accepted; above it a client waits in its connect.
const BACKLOG: i32 = 128;
/// What it is called until it is complete. Short, so that the bound on paths is met by the true name alone; the same for
/// all: in one folder one at a time is made.
const UNREADY_NAME: &str = ".godwit-admin.new";
/// How long another one that binds in the same folder may take. It takes milliseconds, so this one hangs.
const TURN_PATIENCE: Duration = Duration::from_secs(5);

/// Why an admin socket can not be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The path names no file.
    #[error("admin socket {}: the path names no file; give one such as /run/godwit/admin.sock", .0.display())]
    NoName(PathBuf),
    /// The kernel takes shorter paths only.
    #[error("admin socket {}: the path of a socket must be 107 bytes or shorter; choose another folder", .0.display())]
    TooLong(PathBuf),
    /// Its folder can not be used.
    #[error("admin socket: folder {} can not be used", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something else has the name.
    #[error("admin socket {}: something is there that is no socket; move it away or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// Another process answers there.
    #[error("admin socket {}: process {pid} answers there already; end it or choose another path", path.display())]
    Living {
        /// The socket.
        path: PathBuf,
        /// Who answers, or 0 if the kernel does not say.
        pid: i32,
    },
    /// Another process is binding in the folder, and does not get on.
    #[error("folder {} is locked by another process that binds a socket in it; see which with `lslocks`", .0.display())]
    Locked(PathBuf),
    /// The system refused a step.
    #[error("admin socket {}: {step}", path.display())]
    System {
        /// The socket.
        path: PathBuf,
        /// Which step.
        step: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// An admin socket at which clients wait already; [`AdminSocket::serve`] lets them in.
#[derive(Debug)]
pub struct AdminSocket {
    // Removed before nobody listens any more: whoever finds the socket finds somebody.
    pub(crate) claim: Claim,
    pub(crate) listener: UnixListener,
    pub(crate) limits: Limits,
}

/// The socket's name, as long as it is ours.
#[derive(Debug)]
pub(crate) struct Claim {
    folder: OwnedFd,
    name: OsString,
    path: PathBuf,
    /// Device and inode. The listener keeps the inode, so no other file gets its number meanwhile.
    file: (u64, u64),
}

impl AdminSocket {
    /// Binds the socket. What an ended process left there is replaced.
    ///
    /// # Errors
    /// If another process answers there, or the folder can not be used.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let name = path.file_name().ok_or_else(|| BindError::NoName(path.to_owned()))?;
        SocketAddrUnix::new(path).map_err(|_| BindError::TooLong(path.to_owned()))?;
        let folder = open_folder(path)?;
        take_turn(&folder, path)?;
        let step = |step: &'static str| {
            move |error: Errno| BindError::System { path: path.to_owned(), step, source: error.into() }
        };
        clear_stale(path, name, &folder)?;
        let unready = OsStr::new(UNREADY_NAME);
        remove(&folder, unready).map_err(step("remove what an earlier one left half made"))?;
        let listener = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        );
        let listener = listener.map_err(step("make a socket"))?;
        // Through the open folder: however deep it is, this is short enough for the kernel.
        let place = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(unready);
        let address = SocketAddrUnix::new(place).map_err(|_| BindError::TooLong(path.to_owned()))?;
        rustix::net::bind(&listener, &address).map_err(step("bind"))?;
        // Before it listens nobody can connect, whatever the mode that it was made with.
        let mode = Mode::from_raw_mode(SOCKET_MODE);
        rustix::fs::chmodat(&folder, unready, mode, AtFlags::empty()).map_err(step("set its mode"))?;
        rustix::net::listen(&listener, BACKLOG).map_err(step("listen"))?;
        let file = identity(&folder, unready).map_err(step("look at it"))?;
        rustix::fs::renameat(&folder, unready, &folder, name).map_err(step("give it its name"))?;
        let end_turn = rustix::fs::flock(&folder, FlockOperation::Unlock);
        let claim = Claim { folder, name: name.to_owned(), path: path.to_owned(), file };
        end_turn.map_err(step("unlock its folder"))?;
        Ok(Self { claim, listener: UnixListener::from(listener), limits: Limits::default() })
    }

    /// The same with other bounds, for tests.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.claim.path
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if identity(&self.folder, &self.name) != Ok(self.file) {
            return;
        }
        if let Err(error) = remove(&self.folder, &self.name) {
            tracing::warn!(path = %self.path.display(), %error, "admin socket stays behind");
        }
    }
}

/// The socket's folder, made if it is missing.
fn open_folder(path: &Path) -> Result<OwnedFd, BindError> {
    let folder = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let failed = |source| BindError::Folder { path: folder.to_owned(), source };
    if !folder.exists() {
        std::fs::DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder).map_err(failed)?;
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(folder, flags, Mode::empty()).map_err(|error| failed(error.into()))
}

/// One at a time: between "nobody answers" and the new name another could do the same.
fn take_turn(folder: &OwnedFd, path: &Path) -> Result<(), BindError> {
    let began = Instant::now();
    loop {
        match rustix::fs::flock(folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) if began.elapsed() < TURN_PATIENCE => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(Errno::WOULDBLOCK) => {
                return Err(BindError::Locked(path.parent().unwrap_or(path).to_owned()));
            }
            Err(error) => {
                let path = path.parent().unwrap_or(path).to_owned();
                return Err(BindError::Folder { path, source: error.into() });
            }
        }
    }
}

/// Removes a socket at which nobody answers.
fn clear_stale(path: &Path, name: &OsStr, folder: &OwnedFd) -> Result<(), BindError> {
    let step = |step, error: Errno| BindError::System { path: path.to_owned(), step, source: error.into() };
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(step("look at what is there", error)),
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Socket => {}
        Ok(_) => return Err(BindError::NotASocket(path.to_owned())),
    }
    // Without waiting: a living one whose backlog is full would hold us.
    let probe = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    );
    let probe = probe.map_err(|error| step("make a socket", error))?;
    let address = SocketAddrUnix::new(path).map_err(|_| BindError::TooLong(path.to_owned()))?;
    match rustix::net::connect(&probe, &address) {
        Err(Errno::NOENT) => Ok(()),
        Err(Errno::CONNREFUSED) => {
            remove(folder, name).map_err(|error| step("remove what an ended process left there", error))
        }
        Ok(()) => {
            let peer = rustix::net::sockopt::socket_peercred(&probe);
            let pid = peer.map_or(0, |peer| peer.pid.as_raw_nonzero().get());
            Err(BindError::Living { path: path.to_owned(), pid })
        }
        // Its backlog is full, or it is a socket of another kind: somebody has it.
        Err(Errno::AGAIN | Errno::PROTOTYPE) => Err(BindError::Living { path: path.to_owned(), pid: 0 }),
        Err(error) => Err(step("find out whether somebody answers there", error)),
    }
}

/// Removes a file that may be missing.
fn remove(folder: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

fn identity(folder: &OwnedFd, name: &OsStr) -> Result<(u64, u64), Errno> {
    rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| (stat.st_dev, stat.st_ino))
}
