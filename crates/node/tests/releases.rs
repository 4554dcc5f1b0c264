//! What a node knows of its group (STATE/book) as release 0.1 has written it: any later one starts from it.
//!
//! ```text
//!   tests/fixtures/0.1/book.json    written once, for that release (GODWIT_KEEP_FORMATS=1), and never again
//! ```

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use godwit_control::{NodeId, Voters};
use godwit_domain::{GroupId, NodeName};
use godwit_node::book::{Book, Keeper, Place};

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/0.1/book.json")
}

fn id(n: u64) -> NodeId {
    NodeId::new(n).expect("not 0")
}

fn name(n: u64) -> NodeName {
    format!("node-{n}").parse().expect("a name")
}

/// One in which nothing is empty.
fn book() -> Book {
    let voters = Voters::new((1..=3).map(|n| (id(n), name(n)))).expect("a group");
    let founding = Book::founding("fixture", &voters, None);
    Book {
        addresses: [(name(2), SocketAddr::from(([192, 0, 2, 2], 7300)))].into(),
        place: Some(Place { voter: id(1), since: 7, opened: true, log: 81 }),
        succeeds: vec![GroupId(5)],
        heard: [(id(2), 82), (id(3), 83)].into(),
        ..founding
    }
}

#[test]
fn a_book_of_the_first_release_is_read_and_still_written_so() {
    let folder = tempfile::tempdir().expect("a folder");
    Keeper::open(folder.path()).and_then(|keeper| keeper.begin(book())).expect("written");
    let now = fs::read(folder.path().join("book")).expect("a book");
    if std::env::var_os("GODWIT_KEEP_FORMATS").is_some() {
        fs::write(fixture(), &now).expect("kept");
    }
    let kept = fs::read(fixture()).expect("the fixture");
    fs::write(folder.path().join("book"), &kept).expect("written");
    let read = Keeper::open(folder.path()).expect("it is read").now();
    assert_eq!(read, Some(book()), "what it says");
    assert_eq!(String::from_utf8_lossy(&kept), String::from_utf8_lossy(&now), "how it is written");
}
