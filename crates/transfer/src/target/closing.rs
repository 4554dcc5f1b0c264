//! What of the closing frames has arrived over one connection: device state, required stamps, `Final`.
//!
//! Always true: once [`Closing::closed`] gives a `Final`, the device state is the one that it names and the stamps of
//! every segment are there; nothing is taken after it.

use godwit_domain::{PageIndex, Round};
use godwit_memory::PageSet;
use godwit_wire::handoff::STATE_BYTES_MAX;
use godwit_wire::migration::{Final, Mode, SourceFrame, state_digest};

use super::Violation;
use crate::stamps::Stamps;

#[derive(Debug, Default)]
pub(super) struct Closing {
    state: Vec<u8>,
    /// Required digest of each segment (stop-and-copy).
    digests: Vec<u64>,
    /// Required stamps of each segment (post-copy).
    required: Vec<Vec<u8>>,
    closed: Option<Final>,
}

impl Closing {
    /// Takes a frame. `Some`: it was the last one, and everything before it is whole. `stamps` tell how many segments
    /// there are.
    pub(super) fn take(&mut self, frame: SourceFrame, stamps: &Stamps) -> Result<Option<Final>, Violation> {
        let out_of_turn = |frame, problem| Err(Violation::OutOfTurn { frame, problem });
        if self.closed.is_some() && !matches!(frame, SourceFrame::Round { .. }) {
            return out_of_turn("another closing frame", "after Final");
        }
        match frame {
            SourceFrame::Round { .. } | SourceFrame::Audit { .. } => {}
            SourceFrame::State(piece) => {
                if self.state.len() + piece.0.len() > STATE_BYTES_MAX {
                    return out_of_turn("State", "above 2 MiB in all");
                }
                self.state.extend_from_slice(&piece.0);
            }
            SourceFrame::Digests { first_segment, digests } => {
                let have = self.digests.len();
                if first_segment as usize != have || have + digests.len() > stamps.segments() as usize {
                    return out_of_turn("Digests", "out of order or for no segment");
                }
                self.digests.extend(digests);
            }
            SourceFrame::Required { segment, stamps: required } => {
                match stamps.unpacked(segment, &required.0) {
                    Some(required) if segment as usize == self.required.len() => self.required.push(required),
                    Some(_) | None => return out_of_turn("Required", "out of order or for no segment"),
                }
            }
            SourceFrame::Final(closed) => {
                if self.state.len() != closed.state_bytes as usize
                    || state_digest(&self.state) != closed.state_digest
                {
                    return out_of_turn("Final", "with another device state than came before it");
                }
                let told = match closed.mode {
                    Mode::StopAndCopy => self.digests.len(),
                    Mode::PostCopy => self.required.len(),
                };
                if told != stamps.segments() as usize {
                    return out_of_turn("Final", "without the stamps of all segments");
                }
                self.closed = Some(closed);
                return Ok(Some(closed));
            }
        }
        Ok(None)
    }

    /// The closing frame, once it has come.
    pub(super) fn closed(&self) -> Option<Final> {
        self.closed
    }

    /// The device state, once.
    pub(super) fn take_state(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.state)
    }

    /// How many segments do not hold the required stamps.
    pub(super) fn unequal_segments(&self, stamps: &Stamps) -> usize {
        let digests = (0..).zip(&self.digests);
        digests.filter(|(segment, digest)| stamps.digest(*segment) != **digest).count()
    }

    /// Takes the required stamps for those that are held, but for `absent` pages.
    pub(super) fn adopt(&self, stamps: &mut Stamps, absent: &PageSet) {
        for (segment, required) in (0..).zip(&self.required) {
            stamps.set_segment(segment, required);
        }
        absent.runs().for_each(|run| stamps.set_run(run, Round::NONE));
    }

    /// The pages that do not hold the required stamps.
    pub(super) fn differing_pages<'a>(&'a self, stamps: &'a Stamps) -> impl Iterator<Item = PageIndex> + 'a {
        let segments = (0..).zip(&self.required);
        segments.flat_map(|(segment, required)| stamps.differing(segment, required).into_iter().flatten())
    }
}
