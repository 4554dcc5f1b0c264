//! What there is of a guest that nobody owns, as rows for people and programs.

use godwit_domain::ownership::{Licence, Life};
use godwit_wire::admin::CopyRow;

/// What is kept of a lost guest, or what nodes have said of one in doubt.
pub(super) fn of(life: &Life) -> Vec<CopyRow> {
    let copy = |licence: &Licence, what: &str| CopyRow {
        node: licence.node.clone(),
        instance: licence.instance,
        what: what.to_owned(),
    };
    match life {
        Life::Lost { last, kept } => {
            let kept = kept.iter().map(|kept| copy(kept, "kept source"));
            std::iter::once(copy(last, "last owner")).chain(kept).collect()
        }
        Life::Unsure(doubt) => {
            let claims = doubt.claims.iter().map(|(instance, claim)| CopyRow {
                node: claim.node.clone(),
                instance: *instance,
                what: claim.stands.to_string(),
            });
            claims.collect()
        }
        Life::Creating(_) | Life::Alive(_) | Life::Deleting(_) | Life::Purged => Vec::new(),
    }
}
