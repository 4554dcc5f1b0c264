//! What a lab plays: one guest that goes round, or three guests that show three ways to move.
//!
//! ```text
//!   --moves or --bandwidth given   one guest, moved so often, with these options
//!   neither                        pre-copy │ pre-copy under a limit │ post-copy of a guest that can not converge
//! ```

use std::time::Duration;

use godwit_domain::precopy::{self, CanNotOutrun};
use godwit_domain::settings::PostCopyTrigger;
use godwit_domain::{GuestName, GuestSpec, Overrides, Quantity};

use super::cluster::{How, STEP_TIMEOUT};

const MIB: u64 = 1 << 20;
/// What the second guest's move may send, and what it writes, per second.
const LIMITED: (u64, u64) = (256 * MIB, 50 * MIB);
/// The same of the third: whatever it writes is more than may be sent.
const BUSY: (u64, u64) = (128 * MIB, 200 * MIB);
/// Seconds per GiB after which the third goes post-copy, if it was not seen earlier that it must: its first round takes 8.
const BUSY_TIMEOUT_S_PER_GIB: u64 = 14;

/// A guest and how it moves.
#[derive(Debug, Clone)]
pub(super) struct Scene {
    /// What is shown, in a few words; none where there is only one.
    pub(super) title: Option<&'static str>,
    pub(super) guest: GuestName,
    pub(super) spec: GuestSpec,
    pub(super) how: How,
    /// How often it moves, each time to the next node.
    pub(super) moves: usize,
    /// How long one move may take.
    pub(super) limit: Duration,
    /// It ends as post-copy, with pages missing when it runs.
    pub(super) post_copy: bool,
}

/// One guest with these options.
pub(super) fn round_trip(
    guest: GuestName,
    spec: GuestSpec,
    overrides: Overrides,
    moves: usize,
) -> Result<Scene, CanNotOutrun> {
    let settings = overrides.effective(spec.memory_bytes);
    precopy::outruns(
        settings.bandwidth,
        spec.dirty_rate_bytes_per_second,
        spec.working_set_bytes,
        &settings.limits,
    )?;
    let limit = settings.limits.completion_timeout.unwrap_or_default() + STEP_TIMEOUT;
    Ok(Scene { title: None, guest, spec, how: overrides.into(), moves, limit, post_copy: false })
}

/// Three guests of this kind, and three ways to move.
pub(super) fn three_ways(
    names: [GuestName; 3],
    spec: &GuestSpec,
    overrides: Overrides,
) -> Result<Vec<Scene>, CanNotOutrun> {
    let [plain, limited, busy] = names;
    let sent = |bytes| Some(Quantity::from_bytes(bytes));
    let limited_spec = GuestSpec { dirty_rate_bytes_per_second: LIMITED.1, ..spec.clone() };
    let limited_overrides = Overrides { bandwidth_per_migration: sent(LIMITED.0), ..overrides };
    let busy_spec = GuestSpec {
        dirty_rate_bytes_per_second: BUSY.1,
        // Half of it is written all the time, and can not be packed: at least a quarter is missing when it runs.
        working_set_bytes: spec.memory_bytes / 2,
        compressible_percent: 0,
        ..spec.clone()
    };
    let busy_overrides = Overrides {
        bandwidth_per_migration: sent(BUSY.0),
        completion_timeout_per_gib: Some(BUSY_TIMEOUT_S_PER_GIB),
        allow_post_copy: Some(true),
        post_copy_trigger: Some(PostCopyTrigger::Early),
        ..overrides
    };
    let busy_limit = busy_overrides.effective(spec.memory_bytes).limits.completion_timeout;
    Ok(vec![
        Scene { title: Some("pre-copy"), ..round_trip(plain, spec.clone(), overrides, 1)? },
        Scene {
            title: Some("pre-copy under a limit of 256 MiB/s"),
            ..round_trip(limited, limited_spec, limited_overrides, 1)?
        },
        Scene {
            title: Some(
                "a guest that can not converge: 200 MiB/s written, 128 MiB/s sent, post-copy allowed",
            ),
            guest: busy,
            spec: busy_spec,
            how: busy_overrides.into(),
            moves: 1,
            limit: 4 * busy_limit.unwrap_or_default() + STEP_TIMEOUT,
            post_copy: true,
        },
    ])
}
