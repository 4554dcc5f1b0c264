//! What was on the wire against what was granted: for each node and each second.
//!
//! ```text
//!   bytes of the page cable in a second  <=  sum over its migrations that held a permit then: rate, 5 % above it, and what
//!                                            faults may overdraw; and answers to what comes in
//! ```

use std::collections::BTreeMap;

use godwit_domain::{MigrationId, NodeName};

use crate::courses::Course;
use crate::eyes::Sent;
use crate::support::world::MIB;

const SECOND_NS: u64 = 1_000_000_000;
/// Ethernet, IPv4 and UDP.
const HEADER_BYTES: u64 = 14 + 20 + 8;
/// What a migration's faults may overdraw, and what a source that was started again may send at once.
const OVERDRAFT_BYTES: u64 = MIB + MIB / 2;
/// Handshakes and answers of a node that sends nothing.
const TALK_BYTES: u64 = MIB / 2;
/// How long after the release of its permits something of a migration may still be on the way.
const TRAIL_NS: u64 = SECOND_NS;

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct WireReport {
    pub(crate) bytes: u64,
    pub(crate) seconds_judged: u64,
    /// The fullest second, as a share of what was granted then, in percent.
    pub(crate) fullest_percent: u64,
}

/// See the module.
pub(crate) fn judge(
    wire: &BTreeMap<NodeName, Vec<Sent>>,
    courses: &BTreeMap<MigrationId, Course>,
) -> Result<WireReport, String> {
    let mut report = WireReport::default();
    for (node, samples) in wire {
        let all = |sent: &Sent| sent.bytes.saturating_sub(HEADER_BYTES * sent.packets);
        let mut last = 0;
        for (at, from) in samples.iter().enumerate() {
            while samples.get(last + 1).is_some_and(|next| next.at_ns <= from.asked_ns + SECOND_NS) {
                last += 1;
            }
            let Some(to) = samples.get(last.max(at)) else { continue };
            let sent = all(to).saturating_sub(all(from));
            let granted = granted(node, from.asked_ns, to.at_ns, courses);
            report.seconds_judged += 1;
            report.fullest_percent = report.fullest_percent.max(sent * 100 / granted);
            if sent > granted {
                return Err(format!(
                    "{node} has sent {sent} bytes within a second in which {granted} were granted, from {} ns on",
                    from.asked_ns
                ));
            }
        }
        report.bytes += samples.last().map_or(0, all).saturating_sub(samples.first().map_or(0, all));
    }
    Ok(report)
}

fn granted(node: &NodeName, from: u64, to: u64, courses: &BTreeMap<MigrationId, Course>) -> u64 {
    let held = courses.values().filter(|course| {
        let released = course.released_ns.map_or(u64::MAX, |released| released + TRAIL_NS);
        course.granted_ns <= to && released >= from
    });
    let of = |course: &Course| {
        if course.source == *node {
            course.bandwidth / 20 * 21 + OVERDRAFT_BYTES
        } else if course.target == *node {
            course.bandwidth / 20 + TALK_BYTES
        } else {
            0
        }
    };
    held.map(of).sum::<u64>() + TALK_BYTES
}

pub(crate) mod tests {
    use super::*;
    use crate::support::Outcome;
    use crate::support::world::node;

    /// Two migrations may send 8 MiB a second each; who sends as much as three is found.
    pub(crate) async fn more_than_was_granted_is_seen() -> Outcome {
        let course = |granted: u64, released: u64| Course {
            bandwidth: 8 * MIB,
            granted_ns: granted * SECOND_NS,
            released_ns: Some(released * SECOND_NS),
            ..Course::between(node("node-a"), node("node-b"))
        };
        let courses = [("m-1", course(0, 10)), ("m-2", course(0, 20))];
        let courses = courses.map(|(name, course)| (name.parse().expect("a name"), course)).into();
        let wire = |rate: u64, until: u64| {
            let at = |step: u64| {
                let at_ns = step * SECOND_NS / 20;
                Sent { asked_ns: at_ns, at_ns, bytes: rate * MIB * step / 20, packets: 0 }
            };
            BTreeMap::from([(node("node-a"), (0..until * 20).map(at).collect::<Vec<_>>())])
        };
        judge(&wire(16, 9), &courses)?;
        judge(&wire(24, 9), &courses).expect_err("three of two");
        judge(&wire(16, 15), &courses).expect_err("two of one");
        Ok(())
    }
}
