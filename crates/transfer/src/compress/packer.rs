//! Packs the batches that are worth it, and tells what that took.
//!
//! Always true: a trial is [`SAMPLE_PAGES`] pages at most; a block takes no more memory than it has bytes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use godwit_domain::PAGE_SIZE;

use super::chooser::{Chooser, Step, Trial};
use super::link::LinkRate;
use super::pack;

/// Pages of a trial, spread over the batch.
pub(crate) const SAMPLE_PAGES: usize = 8;

/// A source's packer.
#[derive(Debug)]
pub(crate) struct Packer {
    chooser: Chooser,
    /// What the sender knows of the link.
    link: Arc<LinkRate>,
    /// Room for a block and for a sample, used again and again.
    room: Vec<u8>,
    sample: Vec<u8>,
}

/// What became of a payload.
#[derive(Debug)]
pub(crate) struct Packing {
    /// The block to send in its place, if one is to be: shorter than it.
    pub(crate) block: Option<Bytes>,
    /// How long trying and packing took.
    pub(crate) took: Duration,
}

impl Packer {
    pub(crate) fn new() -> Self {
        Self { chooser: Chooser::new(), link: Arc::default(), room: Vec::new(), sample: Vec::new() }
    }

    /// Where the sender tells how fast the link is.
    pub(crate) fn link(&self) -> Arc<LinkRate> {
        Arc::clone(&self.link)
    }

    /// So long it took to read so many bytes of memory.
    pub(crate) fn read(&mut self, bytes: usize, took: Duration) {
        self.chooser.read(bytes, took);
    }

    /// Packs a payload if that is worth it.
    pub(crate) fn pack(&mut self, payload: &[u8]) -> Packing {
        let link_rate = self.link.get();
        let is_plain = payload.is_empty() || planted::is_off();
        let step = if is_plain { Step::Plain } else { self.chooser.next(link_rate) };
        if step == Step::Plain {
            return Packing { block: None, took: Duration::ZERO };
        }
        let begun = Instant::now();
        let pack = step == Step::Pack || {
            self.take_sample(payload);
            let (_, trial) = timed_pack(&self.sample, &mut self.room);
            self.chooser.sampled(link_rate, trial)
        };
        let mut block = None;
        if pack {
            let (packed, trial) = timed_pack(payload, &mut self.room);
            let is_worth_it = self.chooser.packed(link_rate, trial);
            // A copy, so that what waits to be acknowledged takes no more memory than it has bytes.
            block = packed.filter(|_| is_worth_it).map(Bytes::copy_from_slice);
        }
        Packing { block, took: begun.elapsed() }
    }

    /// Some pages from all over the batch.
    fn take_sample(&mut self, payload: &[u8]) {
        self.sample.clear();
        let apart = (payload.len() / PAGE_SIZE).div_ceil(SAMPLE_PAGES).max(1);
        for page in payload.chunks(PAGE_SIZE).step_by(apart) {
            self.sample.extend_from_slice(page);
        }
    }
}

fn timed_pack<'a>(plain: &[u8], room: &'a mut Vec<u8>) -> (Option<&'a [u8]>, Trial) {
    let begun = Instant::now();
    let block = pack(plain, room);
    let took = begun.elapsed();
    let packed = block.map_or(plain.len(), <[u8]>::len);
    (block, Trial { plain: plain.len(), packed, took })
}

/// No bug, but what packing is compared with. Always on in a real build.
mod planted {
    #[cfg(feature = "planted-bugs")]
    pub(super) fn is_off() -> bool {
        crate::planted::is_on("no-compression")
    }

    #[cfg(not(feature = "planted-bugs"))]
    pub(super) fn is_off() -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compress::unpack;

    const SLOW: Option<u64> = Some(1);

    fn random(pages: usize) -> Vec<u8> {
        let mut bytes = vec![0; pages * PAGE_SIZE];
        fastrand::Rng::with_seed(1).fill(&mut bytes);
        bytes
    }

    fn packer(link_rate: Option<u64>) -> Packer {
        let packer = Packer::new();
        packer.link().set(link_rate);
        packer
    }

    #[test]
    fn random_pages_go_as_they_are_after_a_few_of_them_were_tried() {
        let mut packer = packer(SLOW);
        for pages in [1, 7, 8, 9, 64, 255, 256] {
            packer.chooser = Chooser::new();
            let packing = packer.pack(&random(pages));
            assert!(packing.block.is_none(), "{pages}");
            let sampled = packer.sample.len() / PAGE_SIZE;
            assert!(
                sampled <= SAMPLE_PAGES && sampled >= pages.min(SAMPLE_PAGES / 2),
                "{sampled} of {pages}"
            );
        }
    }

    #[test]
    fn pages_that_shrink_are_packed_where_the_link_is_known_to_be_slow() {
        let payload = vec![7; 64 * PAGE_SIZE];
        assert!(packer(None).pack(&payload).block.is_none());
        let mut slow = packer(SLOW);
        assert!(slow.pack(&[]).block.is_none());
        for _ in 0..2 {
            let block = slow.pack(&payload).block.expect("packed");
            assert_eq!(unpack(&block, payload.len()).as_deref(), Some(payload.as_slice()));
        }
    }

    #[test]
    fn half_a_batch_that_shrinks_is_enough() {
        let payload = [vec![7; 32 * PAGE_SIZE], random(32)].concat();
        let block = packer(SLOW).pack(&payload).block.expect("packed");
        assert!(block.len() < payload.len() * 6 / 10, "{}", block.len());
    }
}
