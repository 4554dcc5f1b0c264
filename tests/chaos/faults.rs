//! What can befall a host, how often, and for how long.
//!
//! ```text
//!   Kind ── Hand::begin ──▶ Undo, due later ── Hand::undo ──▶ as before
//! ```
//!
//! Only what, how often and how long. How it is done is the hand's.

use std::time::Duration;

use fastrand::Rng;

use crate::field::{Disk, Net};

/// What can befall a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Its node process is killed; its runners live on.
    KillNode,
    /// The same, and it is started again under a monotonic clock that is shifted.
    ShiftClock,
    /// The same, and nothing that it has sent arrives any more.
    KillCutOff,
    /// Everything on it is killed, and its cables are dead.
    KillHost,
    /// One of its runners is killed.
    KillRunner,
    /// Its node process stands still.
    PauseNode,
    /// It is cut from one network or both, in one direction or both.
    CutControl,
    CutPages,
    CutBoth,
    CutOneWay,
    /// Its pages leave slowly.
    Slow,
    /// Packets are lost, both ways.
    Lossy,
    /// Packets come late, both ways.
    DelayControl,
    DelayPages,
    /// The disk of its log is full.
    FullDisk,
}

impl Kind {
    pub(crate) const ALL: [Self; 15] = [
        Self::KillNode,
        Self::ShiftClock,
        Self::KillCutOff,
        Self::KillHost,
        Self::KillRunner,
        Self::PauseNode,
        Self::CutControl,
        Self::CutPages,
        Self::CutBoth,
        Self::CutOneWay,
        Self::Slow,
        Self::Lossy,
        Self::DelayControl,
        Self::DelayPages,
        Self::FullDisk,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::KillNode => "node killed",
            Self::ShiftClock => "node killed, clock shifted",
            Self::KillCutOff => "node killed and cut off",
            Self::KillHost => "host killed",
            Self::KillRunner => "runner killed",
            Self::PauseNode => "node stands still",
            Self::CutControl => "control network cut",
            Self::CutPages => "page network cut",
            Self::CutBoth => "both networks cut",
            Self::CutOneWay => "cut in one direction",
            Self::Slow => "slow link",
            Self::Lossy => "lossy link",
            Self::DelayControl => "delayed control link",
            Self::DelayPages => "delayed page link",
            Self::FullDisk => "full disk",
        }
    }

    /// How often it is chosen when nothing else speaks for it.
    pub(crate) fn weight(self) -> u32 {
        match self {
            Self::KillNode => 20,
            Self::PauseNode => 12,
            Self::CutControl | Self::CutPages | Self::CutBoth | Self::CutOneWay => 8,
            Self::DelayControl => 12,
            Self::Slow | Self::Lossy | Self::DelayPages | Self::KillCutOff => 6,
            Self::ShiftClock | Self::FullDisk => 5,
            Self::KillHost | Self::KillRunner => 3,
        }
    }

    /// How often it is what strikes a migration in some stage: what bites at once.
    pub(crate) fn weight_of_strike(self) -> u32 {
        match self {
            Self::KillNode => 30,
            Self::PauseNode => 12,
            Self::CutControl | Self::CutPages | Self::CutBoth => 8,
            Self::CutOneWay | Self::KillCutOff => 6,
            Self::ShiftClock => 3,
            Self::KillHost | Self::KillRunner => 1,
            _ => 0,
        }
    }

    /// How long it lasts, in milliseconds.
    pub(crate) fn lasts_ms(self, rng: &mut Rng) -> u64 {
        match self {
            Self::KillNode | Self::ShiftClock | Self::KillCutOff => rng.u64(100..=2_500),
            Self::KillHost => rng.u64(500..=3_000),
            Self::KillRunner => 300,
            // Above and below what a leader's lease and an election take.
            Self::PauseNode => rng.u64(200..=4_000),
            Self::CutControl | Self::CutPages | Self::CutBoth | Self::CutOneWay => rng.u64(300..=5_000),
            Self::Slow | Self::Lossy | Self::DelayControl | Self::DelayPages => rng.u64(2_000..=8_000),
            Self::FullDisk => rng.u64(1_500..=5_000),
        }
    }
}

/// What undoes a fault.
#[derive(Debug, Clone)]
pub(crate) enum Undo {
    Nothing,
    Start { shift: Duration, mend: bool },
    Continue,
    Mend(Vec<Net>),
    Fast,
    Lossless(Net),
    Prompt(Net),
    FreeDisk(Disk),
}
