//! The socket's place in its folder: who may have it, how it appears, how it goes.

mod common;

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;

use common::{Raw, Server};
use godwit_admin::{AdminSocket, BindError, Limits};

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).expect("a file").permissions().mode() & 0o777
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("a folder");
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

#[tokio::test]
async fn the_socket_is_its_owners_alone_whatever_the_umask() {
    // For the whole process; no other test here makes files whose mode matters.
    let before = rustix::process::umask(rustix::fs::Mode::empty());
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("new/deep/admin.sock");
    let socket = AdminSocket::bind(&path).expect("a socket");
    rustix::process::umask(before);
    assert_eq!(socket.path(), path);
    assert!(std::fs::symlink_metadata(&path).expect("a file").file_type().is_socket());
    assert_eq!(mode(&path), 0o600);
    assert_eq!((mode(&dir.path().join("new")), mode(&dir.path().join("new/deep"))), (0o700, 0o700));
    assert_eq!(names(&dir.path().join("new/deep")), ["admin.sock"]);
}

#[test]
fn a_folder_that_was_there_stays_as_it_is() {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o750)).expect("a mode");
    let socket = AdminSocket::bind(&dir.path().join("admin.sock")).expect("a socket");
    assert_eq!(mode(dir.path()), 0o750);
    drop(socket);
    assert_eq!(names(dir.path()), [""; 0]);
}

#[tokio::test]
async fn a_living_socket_is_left_alone() {
    let server = Server::echo(Limits::default());
    let error = AdminSocket::bind(&server.path).expect_err("refused");
    let own = i32::try_from(std::process::id()).expect("a process id");
    assert!(matches!(&error, BindError::Living { pid, .. } if *pid == own), "{error:?}");
    assert!(error.to_string().contains(&format!("process {own} answers there already")), "{error}");
    Raw::connect(&server.path).await.is_served("a").await;
}

#[tokio::test]
async fn a_socket_at_which_nobody_answers_is_replaced() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("admin.sock");
    drop(UnixListener::bind(&path).expect("a socket"));
    assert!(path.exists(), "an ended process leaves it behind");
    let socket = AdminSocket::bind(&path).expect("it is replaced");
    assert_eq!((mode(&path), names(dir.path())), (0o600, vec!["admin.sock".to_owned()]));
    std::os::unix::net::UnixStream::connect(&path).expect("whoever sees it can connect");
    drop(socket);
}

#[test]
fn what_is_not_ours_is_not_removed() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("admin.sock");
    std::fs::write(&path, "precious").expect("a file");
    assert!(matches!(AdminSocket::bind(&path), Err(BindError::NotASocket(_))));
    assert_eq!(std::fs::read_to_string(&path).expect("a file"), "precious");
    std::fs::remove_file(&path).expect("removed");
    std::os::unix::fs::symlink("elsewhere", &path).expect("a link");
    assert!(matches!(AdminSocket::bind(&path), Err(BindError::NotASocket(_))));
    std::fs::remove_file(&path).expect("removed");
    let _datagrams = UnixDatagram::bind(&path).expect("another kind of socket");
    assert!(matches!(AdminSocket::bind(&path), Err(BindError::Living { .. })));
    assert!(path.exists());
}

#[test]
fn another_ones_socket_survives_our_end() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("admin.sock");
    let first = AdminSocket::bind(&path).expect("a socket");
    std::fs::remove_file(&path).expect("somebody tidies up");
    let second = AdminSocket::bind(&path).expect("a socket");
    let inode = std::fs::symlink_metadata(&path).expect("a file").ino();
    drop(first);
    assert_eq!(std::fs::symlink_metadata(&path).expect("still there").ino(), inode);
    drop(second);
    assert!(!path.exists());
}

#[test]
fn of_many_that_begin_at_once_one_gets_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("admin.sock");
    for _ in 0..20 {
        drop(UnixListener::bind(&path).expect("a stale one"));
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| AdminSocket::bind(&path))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
        let refused = outcomes.iter().filter(|outcome| matches!(outcome, Err(BindError::Living { .. })));
        assert_eq!(refused.count(), 7, "{outcomes:?}");
        drop(outcomes);
        assert!(!path.exists());
    }
}

#[test]
fn a_bad_path_is_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let long = dir.path().join("x".repeat(120));
    assert!(matches!(AdminSocket::bind(&long), Err(BindError::TooLong(_))));
    assert!(matches!(AdminSocket::bind(Path::new("/")), Err(BindError::NoName(_))));
    std::fs::write(dir.path().join("file"), "").expect("a file");
    let error = AdminSocket::bind(&dir.path().join("file/admin.sock")).expect_err("no folder");
    assert!(matches!(error, BindError::Folder { .. }), "{error:?}");
    // The longest name that the kernel takes is taken: the name that it is made under is longer, and no matter.
    let room = 107 - dir.path().as_os_str().len() - 1;
    AdminSocket::bind(&dir.path().join("y".repeat(room))).expect("a socket");
}
