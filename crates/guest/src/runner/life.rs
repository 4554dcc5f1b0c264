//! What a runner is at a moment, and how it stands.
//!
//! ```text
//!   Incoming ─load─▶ Incoming + state ─resume─▶ Running ─pause─▶ Pausing ─(all still)─▶ Paused
//!                                                  ▲                │                     │
//!                                                  └────resume──────┴───────resume────────┘
//!   stop, from anywhere ─▶ Ended
//! ```
//!
//! Always true: `Pausing` is told as `Running`: sealed it is, but its memory may still change. Whoever looks next
//! at a guest that has come to rest makes it `Paused`.

use std::sync::Arc;

use godwit_domain::Epoch;
use godwit_wire::handoff::{RunState, Standing};

use super::program::Program;

/// See the module.
#[derive(Debug)]
pub(super) enum Life {
    /// Has never run; the state it would run from, with the epoch that was sealed when it was saved.
    Incoming(Option<Stint>),
    /// Runs under the epoch.
    Running(Stint),
    /// The epoch is sealed; threads may still write.
    Pausing(Stint),
    /// The epoch is sealed and the guest stands still.
    Paused(Stint),
    /// The process is about to end.
    Ended,
}

/// A guest's program and the epoch that goes with it.
#[derive(Debug, Clone)]
pub(super) struct Stint {
    pub(super) epoch: Epoch,
    pub(super) program: Arc<Program>,
}

impl Life {
    /// How the runner stands; `None`: it has ended. Call [`Self::settle`] first.
    pub(super) fn standing(&self) -> Option<Standing> {
        let (state, epoch, loaded) = match self {
            Self::Incoming(loaded) => {
                (RunState::Incoming, Epoch(0), loaded.as_ref().map(|stint| stint.epoch))
            }
            Self::Running(stint) | Self::Pausing(stint) => (RunState::Running, stint.epoch, None),
            Self::Paused(stint) => (RunState::Paused, stint.epoch, None),
            Self::Ended => return None,
        };
        Some(Standing { state, epoch, loaded })
    }

    /// A guest that was asked to stand still, and does, is paused. Returns its epoch if it was not before.
    pub(super) fn settle(&mut self) -> Option<Epoch> {
        match self {
            Self::Pausing(stint) if stint.program.gate().is_still() => {
                let epoch = stint.epoch;
                *self = Self::Paused(stint.clone());
                Some(epoch)
            }
            Self::Incoming(_) | Self::Running(_) | Self::Pausing(_) | Self::Paused(_) | Self::Ended => None,
        }
    }

    /// The guest, if there is one, and the epoch that goes with it.
    pub(super) fn stint(&self) -> Option<&Stint> {
        match self {
            Self::Incoming(stint) => stint.as_ref(),
            Self::Running(stint) | Self::Pausing(stint) | Self::Paused(stint) => Some(stint),
            Self::Ended => None,
        }
    }
}
