//! The frames that close a copy: device state, the stamps that the target must hold, and `Final`.

use godwit_domain::{Epoch, Round};
use godwit_wire::codec::Blob;
use godwit_wire::migration::{Final, Mode, PIECE_BYTES_MAX, SourceFrame, state_digest};

use crate::stamps::Stamps;

/// What is said, in this order. `batches`: how many the target will have seen over this connection by then.
pub(super) fn frames(
    state: &[u8],
    required: &Stamps,
    epoch: Epoch,
    round: Round,
    mode: Mode,
    batches: u64,
) -> Vec<SourceFrame> {
    let pieces = state.chunks(PIECE_BYTES_MAX).map(|piece| SourceFrame::State(Blob(piece.to_vec())));
    let mut frames: Vec<SourceFrame> = pieces.collect();
    match mode {
        Mode::StopAndCopy => frames.extend(digests(required)),
        Mode::PostCopy => frames.extend((0..required.segments()).map(|segment| SourceFrame::Required {
            segment,
            stamps: Blob(required.segment(segment).to_vec()),
        })),
    }
    let state_bytes = u32::try_from(state.len()).unwrap_or(u32::MAX);
    let state_digest = state_digest(state);
    frames.push(SourceFrame::Final(Final { epoch, round, state_bytes, state_digest, batches, mode }));
    frames
}

fn digests(required: &Stamps) -> impl Iterator<Item = SourceFrame> {
    let digests: Vec<u64> = (0..required.segments()).map(|segment| required.digest(segment)).collect();
    let per_frame = PIECE_BYTES_MAX / size_of::<u64>();
    let pieces: Vec<Vec<u64>> = digests.chunks(per_frame).map(<[u64]>::to_vec).collect();
    let firsts = (0_u32..).step_by(per_frame);
    firsts.zip(pieces).map(|(first_segment, digests)| SourceFrame::Digests { first_segment, digests })
}
