//! Does a preamble fit what was agreed? Before the first page, and by name if not.

use godwit_domain::{Epoch, GuestName, InstanceId, NodeName, PAGE_BYTES, PageCount};
use godwit_wire::migration::{Mismatch, Preamble};

/// What a target waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// The guest.
    pub guest: GuestName,
    /// Where it comes from.
    pub source: NodeName,
    /// The runner that was made for it.
    pub instance: InstanceId,
    /// Its size.
    pub pages: PageCount,
    /// The present epoch.
    pub epoch: Epoch,
}

/// A preamble that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Unfit {
    /// Which part.
    pub mismatch: Mismatch,
    message: String,
}

impl Unfit {
    /// A preamble that does not fit, with a sentence for people.
    pub fn new(mismatch: Mismatch, message: String) -> Self {
        Self { mismatch, message }
    }
}

/// Compares; the first part that does not fit is named.
pub fn check(expected: &Expected, preamble: &Preamble) -> Result<(), Unfit> {
    let unfit = |mismatch, message| Err(Unfit::new(mismatch, message));
    if preamble.source != expected.source || preamble.guest != expected.guest {
        let Expected { guest, source, .. } = expected;
        let got = format!("{} from {}", preamble.guest, preamble.source);
        return unfit(Mismatch::Migration, format!("{got} is not expected here; {guest} from {source} is"));
    }
    if preamble.token != expected.instance {
        return unfit(Mismatch::Token, "the token is not that of the runner that was accepted".into());
    }
    // The source may know of a later one already: that of a pause which was called off.
    if preamble.epoch < expected.epoch {
        let message = format!("epoch {} is over, {} rules", preamble.epoch, expected.epoch);
        return unfit(Mismatch::Epoch, message);
    }
    if preamble.page_bytes != PAGE_BYTES {
        let message =
            format!("pages of {} bytes; this node moves pages of {PAGE_BYTES}", preamble.page_bytes);
        return unfit(Mismatch::Shape, message);
    }
    if preamble.memory_bytes != expected.pages.bytes() {
        let (got, want) = (preamble.memory_bytes, expected.pages.bytes());
        return unfit(Mismatch::Shape, format!("memory of {got} bytes; {want} were agreed"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_wire::migration::SessionId;

    #[test]
    fn what_does_not_fit_is_named() {
        let expected = Expected {
            guest: "vm1".parse().expect("a name"),
            source: "a".parse().expect("a name"),
            instance: InstanceId::from_random([1; 16]),
            pages: PageCount(4),
            epoch: Epoch(3),
        };
        let good = Preamble {
            migration: "m1".parse().expect("a name"),
            guest: expected.guest.clone(),
            source: expected.source.clone(),
            epoch: Epoch(3),
            token: expected.instance,
            session: SessionId(1),
            link: 1,
            memory_bytes: 4 * PAGE_BYTES,
            page_bytes: PAGE_BYTES,
        };
        assert_eq!(check(&expected, &good), Ok(()));
        let changed = |change: &dyn Fn(&mut Preamble)| {
            let mut preamble = good.clone();
            change(&mut preamble);
            check(&expected, &preamble).expect_err("unfit").mismatch
        };
        assert_eq!(changed(&|p| p.source = "c".parse().expect("a name")), Mismatch::Migration);
        assert_eq!(changed(&|p| p.guest = "vm2".parse().expect("a name")), Mismatch::Migration);
        assert_eq!(changed(&|p| p.token = InstanceId::from_random([2; 16])), Mismatch::Token);
        assert_eq!(changed(&|p| p.epoch = Epoch(2)), Mismatch::Epoch);
        assert_eq!(changed(&|p| p.page_bytes = 16384), Mismatch::Shape);
        assert_eq!(changed(&|p| p.memory_bytes += PAGE_BYTES), Mismatch::Shape);
    }
}
