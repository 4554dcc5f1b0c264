//! For every page the round in which it was last sent (at the source) or written (at the target): 2 bytes a page.
//!
//! Always true: a page is sent at most once in a round, so equal stamps mean equal contents. A target that holds
//! the source's stamps for every page holds the source's memory.

use godwit_domain::{PageCount, PageIndex, PageRun, Round};
use godwit_wire::migration::{SEGMENT_PAGES, stamps_digest};

use crate::compress::unpack;

/// One stamp a page, kept as it travels: two little-endian bytes each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stamps {
    bytes: Vec<u8>,
}

const STAMP_BYTES: usize = size_of::<u16>();
const SEGMENT_BYTES: usize = SEGMENT_PAGES as usize * STAMP_BYTES;

impl Stamps {
    /// No page was ever sent.
    pub(crate) fn none(pages: PageCount) -> Self {
        Self { bytes: vec![0; pages.0 as usize * STAMP_BYTES] }
    }

    pub(crate) fn get(&self, page: PageIndex) -> Round {
        let at = page.0 as usize * STAMP_BYTES;
        let stamp = self.bytes.get(at..).and_then(|rest| rest.first_chunk());
        Round(stamp.map_or(0, |stamp| u16::from_le_bytes(*stamp)))
    }

    pub(crate) fn set(&mut self, page: PageIndex, round: Round) {
        self.set_run(PageRun { first: page, count: PageCount(1) }, round);
    }

    pub(crate) fn set_run(&mut self, run: PageRun, round: Round) {
        let first = run.first.0 as usize * STAMP_BYTES;
        let end = first + run.count.0 as usize * STAMP_BYTES;
        for stamp in self.bytes.get_mut(first..end).unwrap_or_default().chunks_exact_mut(STAMP_BYTES) {
            stamp.copy_from_slice(&round.0.to_le_bytes());
        }
    }

    /// How many segments there are.
    pub(crate) fn segments(&self) -> u32 {
        u32::try_from(self.bytes.len().div_ceil(SEGMENT_BYTES)).unwrap_or(u32::MAX)
    }

    /// A segment's stamps as they travel. Empty where there is no such segment.
    pub(crate) fn segment(&self, segment: u32) -> &[u8] {
        let first = (segment as usize).saturating_mul(SEGMENT_BYTES).min(self.bytes.len());
        let end = (first + SEGMENT_BYTES).min(self.bytes.len());
        self.bytes.get(first..end).unwrap_or_default()
    }

    /// A segment's stamps as one block of LZ4.
    pub(crate) fn packed(&self, segment: u32) -> Vec<u8> {
        lz4_flex::block::compress(self.segment(segment))
    }

    /// What such a block holds; `None` if that are not as many as the segment has here, or there is no such segment.
    pub(crate) fn unpacked(&self, segment: u32, block: &[u8]) -> Option<Vec<u8>> {
        let own = self.segment(segment);
        unpack(block, own.len()).filter(|stamps| !stamps.is_empty())
    }

    /// Takes a segment's stamps as they traveled. Those of no segment, or of another size, change nothing.
    pub(crate) fn set_segment(&mut self, segment: u32, bytes: &[u8]) {
        let first = (segment as usize).saturating_mul(SEGMENT_BYTES);
        if let Some(own) = self.bytes.get_mut(first..first.saturating_add(bytes.len())) {
            own.copy_from_slice(bytes);
        }
    }

    /// A segment's digest.
    pub(crate) fn digest(&self, segment: u32) -> u64 {
        stamps_digest(self.segment(segment))
    }

    /// The pages of a segment whose stamps are not these (as they traveled); `None` if there is no such
    /// segment or it has another size.
    pub(crate) fn differing<'a>(
        &'a self,
        segment: u32,
        bytes: &'a [u8],
    ) -> Option<impl Iterator<Item = PageIndex> + 'a> {
        let own = self.segment(segment);
        if own.is_empty() || bytes.len() != own.len() {
            return None;
        }
        let first = segment * SEGMENT_PAGES;
        let pairs = own.chunks_exact(STAMP_BYTES).zip(bytes.chunks_exact(STAMP_BYTES)).zip(first..);
        Some(pairs.filter(|((own, other), _)| own != other).map(|(_, page)| PageIndex(page)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_tells_one_stamp_and_a_comparison_which() {
        let pages = PageCount(SEGMENT_PAGES + 5);
        let mut source = Stamps::none(pages);
        source.set_run(PageRun::new(0, pages.0), Round(1));
        let mut target = source.clone();
        assert_eq!(source.segments(), 2);
        target.set(PageIndex(SEGMENT_PAGES + 4), Round(2));
        assert_eq!(source.digest(0), target.digest(0));
        assert_ne!(source.digest(1), target.digest(1));
        let held = target.segment(1);
        let different: Vec<_> = source.differing(1, held).expect("same size").collect();
        assert_eq!(different, [PageIndex(SEGMENT_PAGES + 4)]);
        assert!(source.differing(2, &[]).is_none());
        assert!(source.differing(1, &held[2..]).is_none());
    }

    #[test]
    fn stamps_travel_in_little_room_and_come_out_as_they_went_in() {
        let pages = PageCount(SEGMENT_PAGES + 5);
        let mut stamps = Stamps::none(pages);
        stamps.set_run(PageRun::new(0, pages.0), Round(1));
        assert!(stamps.packed(0).len() < SEGMENT_BYTES / 64, "{}", stamps.packed(0).len());
        let mut rng = fastrand::Rng::with_seed(7);
        (0..pages.0).for_each(|page| stamps.set(PageIndex(page), Round(rng.u16(..))));
        for segment in 0..2 {
            let block = stamps.packed(segment);
            assert!(block.len() <= godwit_wire::migration::PIECE_BYTES_MAX, "{}", block.len());
            assert_eq!(stamps.unpacked(segment, &block).as_deref(), Some(stamps.segment(segment)));
            assert_eq!(stamps.unpacked(1 - segment, &block), None, "of another size");
            assert_eq!(stamps.unpacked(segment, &block[..block.len() - 1]), None, "cut off");
        }
        assert_eq!(stamps.unpacked(2, &[0]), None, "of no segment");
    }
}
