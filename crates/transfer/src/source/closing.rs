//! The end of a copy: the last round, and beside it the frames that close it (device state, required stamps, `Final`), the
//! proposal.

use std::time::Duration;

use godwit_domain::units::time_for;
use godwit_wire::codec::Blob;
use godwit_wire::migration::{Final, Mode, PIECE_BYTES_MAX, SourceFrame, state_digest};

use super::{Action, Link, SourceSession, Stage};
use crate::stamps::Stamps;

impl SourceSession {
    /// What is known of the paused guest by now: the pages that were written last go at once, what closes when there is the state.
    pub(super) fn close_if_ready(&mut self, now: Duration) {
        let Stage::Stopping { scanned: true, sends, state, .. } = &mut self.stage else { return };
        // In post-copy the target says first what it lacks.
        let begins = !*sends && (self.setup.mode == Mode::StopAndCopy || state.is_some());
        if begins {
            *sends = true;
            if let Err(why) = self.finishes_in_time(now) {
                return self.give_up(why);
            }
            self.begin_round(now);
        }
        // Unless there is no further round, and it has ended instead.
        if let Stage::Stopping { sends: true, state: state @ Some(_), .. } = &mut self.stage
            && let Some(state) = state.take()
        {
            self.stage = Stage::Closing { state: state.clone(), proposed: false };
            self.final_round = Some(self.rounds.round());
            self.send_final(&state);
        }
    }

    /// The device state, the stamps that the target must hold at the end, and the frame that closes.
    pub(super) fn send_final(&mut self, state: &[u8]) {
        let Link::Up { sent, .. } = self.link else { return };
        if !matches!(
            self.stage,
            Stage::Closing { .. } | Stage::HandedOver { .. } | Stage::Ending { state: Some(_), .. }
        ) {
            return;
        }
        self.final_round = Some(self.rounds.round());
        let batches = match self.setup.mode {
            Mode::StopAndCopy => sent + self.rounds.batches_left(),
            Mode::PostCopy => sent,
        };
        let (epoch, round, mode) = (self.setup.epoch, self.rounds.round(), self.setup.mode);
        let state_bytes = u32::try_from(state.len()).unwrap_or(u32::MAX);
        let (state_digest, audit) = (state_digest(state), self.will_audit());
        let closed = Final { epoch, round, state_bytes, state_digest, batches, mode, audit };
        let frames = frames(state, &self.rounds.required(), closed);
        self.actions.extend(frames.into_iter().map(Action::Send));
        if self.setup.mode == Mode::PostCopy {
            // The target says what it lacks; until then nothing travels.
            self.rounds.nothing_is_queued();
        }
    }

    /// The hand-over is proposed late: when what is left takes about as long as the commit. A link that dies
    /// before costs nothing then, and the commit still hides behind the last pages.
    pub(super) fn propose_if_near(&mut self, now: Duration) {
        let left = self.rounds.left_bytes(self.unacknowledged());
        let estimate = self.setup.commit_estimate;
        // Without an estimate it waits for the target's word: "all sent" is not "all there".
        let (epoch, mode) = (self.setup.epoch, self.setup.mode);
        let near = match mode {
            Mode::StopAndCopy => time_for(left, self.rounds.send_rate(now)) <= estimate,
            // It has said what it lacks, and only loads what it has.
            Mode::PostCopy => self.final_round.is_some_and(|last| self.rounds.round() > last),
        };
        let near = near && !estimate.is_zero();
        if let Stage::Closing { proposed: proposed @ false, .. } = &mut self.stage
            && (near || self.target_complete)
        {
            *proposed = true;
            self.actions.push_back(Action::ProposeHandOver(epoch, mode));
        }
    }
}

/// What is said, in this order.
fn frames(state: &[u8], required: &Stamps, closed: Final) -> Vec<SourceFrame> {
    let pieces = state.chunks(PIECE_BYTES_MAX).map(|piece| SourceFrame::State(Blob(piece.to_vec())));
    let mut frames: Vec<SourceFrame> = pieces.collect();
    match closed.mode {
        Mode::StopAndCopy => frames.extend(digests(required)),
        Mode::PostCopy => frames.extend(
            (0..required.segments())
                .map(|segment| SourceFrame::Required { segment, stamps: Blob(required.packed(segment)) }),
        ),
    }
    frames.push(SourceFrame::Final(closed));
    frames
}

fn digests(required: &Stamps) -> impl Iterator<Item = SourceFrame> {
    let digests: Vec<u64> = (0..required.segments()).map(|segment| required.digest(segment)).collect();
    let per_frame = PIECE_BYTES_MAX / size_of::<u64>();
    let pieces: Vec<Vec<u64>> = digests.chunks(per_frame).map(<[u64]>::to_vec).collect();
    let firsts = (0_u32..).step_by(per_frame);
    firsts.zip(pieces).map(|(first_segment, digests)| SourceFrame::Digests { first_segment, digests })
}
