//! Whether this node may found the group that its config names: a disk that is empty may be one that was lost.
//!
//! ```text
//!   no book, and the config names me ─▶ ask every other founder ─┬ each is empty, or has founded and never heard me ─▶ found
//!                                          ▲                     ├ one knows of a group ─▶ learn it: a node like any other
//!                                          └── wait ◀────────────┴ one does not answer
//! ```
//!
//! Always true: of a group that has begun, nobody who has voted in it founds it a second time, however many disks were lost.
//! So the first start of a cluster needs all of its founders; any later one needs a quorum.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use godwit_control::NodeId;
use godwit_domain::NodeName;
use godwit_transfer::drive::chain;
use godwit_wire::session::Membership;

use crate::book::Book;
use crate::session::Seeker;

/// Time between two rounds.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// After how long it is said for whom this node waits.
const SAID_AFTER: Duration = Duration::from_secs(2);
/// How long a founder may take to answer, at first and at most: one that starts at this moment does not hear the first
/// question, and is asked again soon.
const ANSWER_MIN: Duration = Duration::from_millis(250);
const ANSWER_MAX: Duration = Duration::from_secs(8);

/// Returns when this node has a book: that of the group that it has founded, or of the one that is there.
pub(crate) async fn found(seeker: &Seeker, book: Book) {
    let others: Vec<&NodeName> = seeker.known.keys().filter(|name| **name != seeker.name).collect();
    let (began, mut said, mut limit) = (Instant::now(), false, ANSWER_MIN);
    loop {
        let mut silent = BTreeSet::new();
        for other in &others {
            match seeker.membership_of(other, limit).await {
                Ok(None) => {}
                Ok(Some(told)) if consents(&book, &told) => {}
                Ok(Some(told)) => match seeker.keeper.learn(&told) {
                    Ok(()) => return tracing::info!(group = %told.group, "there is a control group already"),
                    Err(error) => {
                        tracing::error!(%other, error = chain(&error), "what was told was not taken")
                    }
                },
                Err(_) => drop(silent.insert((*other).clone())),
            }
        }
        if silent.is_empty() {
            match seeker.keeper.begin(book.clone()) {
                Ok(()) => return tracing::info!(group = %book.group, "founds the control group"),
                Err(error) => tracing::error!(error = chain(&error), "the control group was not founded"),
            }
        } else if !said && began.elapsed() >= SAID_AFTER {
            said = true;
            let waits_for = silent.iter().map(NodeName::as_str).collect::<Vec<_>>().join(", ");
            tracing::info!(waits_for, "the control group is founded when all its founders are there");
        }
        limit = (limit * 2).min(ANSWER_MAX);
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

/// Whether a founder's word is that it has founded the same group, and never heard this node's voter in it.
fn consents(book: &Book, told: &Membership) -> bool {
    let me = book.place.map(|place| place.voter);
    let heard = |me: NodeId| told.heard.contains(&me.get());
    told.group == book.group && told.index == 0 && !me.is_some_and(heard)
}

#[cfg(test)]
mod tests {
    use godwit_control::Voters;

    use super::*;

    #[test]
    fn whoever_was_heard_founds_nothing() {
        let id = |n| NodeId::new(n).expect("not 0");
        let voters = (1..=3).map(|n| (id(n), format!("node-{n}").parse().expect("a name")));
        let book = Book::founding("c", &Voters::new(voters).expect("a group"), Some(id(1)));
        let told = book.told(&book.members, |_| None);
        assert!(consents(&book, &told));
        assert!(consents(&book, &Membership { heard: [2].into(), ..told.clone() }), "another one was");
        assert!(!consents(&book, &Membership { heard: [1].into(), ..told.clone() }), "its disk is lost");
        assert!(!consents(&book, &Membership { index: 4, ..told.clone() }), "the group has changed since");
        assert!(!consents(&book, &Membership { group: godwit_domain::GroupId(1), ..told }), "it is another");
    }
}
