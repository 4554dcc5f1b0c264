//! A bandwidth limit is kept: by the program's own count, and by the kernel's, which nobody can talk out of it.
//!
//! ```text
//!   node-a (namespace) ── cable, 1,500 bytes MTU ── switch ── node-b, node-c (namespaces)
//!      └─ /proc/PID/net/dev: bytes and packets sent; less 42 bytes a packet, they are UDP payload
//! ```

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use godwit::lab::cluster::Moved;
use godwit::lab::monotonic_ns;
use godwit_domain::Overrides;
use godwit_wire::admin::Act;
use libtest_mimic::Trial;

use crate::support::network::{self, Network};
use crate::support::world::{MIB, World, guest_of, limited_to, node};
use crate::support::{Outcome, stories, story, unless};

/// Ethernet, IPv4 and UDP.
const HEADER_BYTES: u64 = 14 + 20 + 8;
/// A busy host carries less than it may: a limit is made use of to three percent in one of so many moves, and kept in all.
const CALM_MAX: usize = 5;
/// How often the kernel is asked: a second is then known to a percent.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(5);

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = stories![a_changed_limit_is_in_force_within_a_second];
    let kept = story("a_limit_is_kept_on_the_cable_to_three_percent", a_limit_is_kept_on_the_cable);
    trials.push(unless(network::missing(), kept));
    trials
}

// ---- the limit on the cable ------------------------------------------------------------------------------------

async fn a_limit_is_kept_on_the_cable(world: &mut World) -> Outcome {
    const RATE: u64 = 64 * MIB;
    let network = Network::new()?;
    // The network goes before the nodes do.
    world.announce(&["sendmsg error"]);
    world.start_as(network.nodes()).await?;
    world.create(guest_of(320, 16)).await?;
    let pid = world.cluster.node(&node("node-a")).map_or(0, |process| process.pid);
    let mut counts = Vec::new();
    for _ in 0..CALM_MAX {
        let (before, sampler) = (network::sent(pid)?, Sampler::start(pid));
        let report = world.move_to("node-b", limited_to(64)).await?;
        let (after, samples) = (network::sent(pid)?, sampler.stop());

        // The group's own messages leave by the same cable: a few KiB in a second.
        let seen = after.0 - before.0 - HEADER_BYTES * (after.1 - before.1);
        within(3, report.wire_bytes, seen, "UDP payload that the kernel counted");
        let peak = most_in_a_second(&samples);
        assert!(peak <= RATE + RATE / 20, "{peak} bytes in the worst second, more than 5 % above {RATE}");
        assert_eq!(world.wrong_pages().await?, 0);
        let counted = report.wire_bytes * 1_000_000 / report.total_us;
        assert!(counted <= RATE + RATE * 3 / 100, "{counted} bytes in a second, more than 3 % above {RATE}");
        if counted >= RATE - RATE * 3 / 100 {
            return Ok(());
        }
        counts.push(counted);
        world.move_to("node-a", limited_to(0)).await?;
    }
    Err(format!("never as much in a second as {RATE} bytes, less 3 %: {counts:?}").into())
}

fn within(percent: u64, want: u64, got: u64, what: &str) {
    assert!(got.abs_diff(want) <= want * percent / 100, "{what}: {got}, more than {percent} % off {want}");
}

/// How much was sent at some moment between two others.
struct Sample {
    from: Instant,
    to: Instant,
    bytes: u64,
}

/// Asks the kernel again and again how much was sent, in a thread of its own.
struct Sampler {
    thread: JoinHandle<Vec<Sample>>,
    over: Arc<AtomicBool>,
}

impl Sampler {
    fn start(pid: u32) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            let mut samples = Vec::new();
            while !asked.load(Ordering::Relaxed) {
                let from = Instant::now();
                // It fails only when the node has died, which the move tells.
                let Ok((bytes, packets)) = network::sent(pid) else { break };
                samples.push(Sample { from, to: Instant::now(), bytes: bytes - HEADER_BYTES * packets });
                std::thread::sleep(SAMPLE_INTERVAL);
            }
            samples
        });
        Self { thread, over }
    }

    fn stop(self) -> Vec<Sample> {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().expect("samples")
    }
}

/// The most that was sent between two samples that are surely at most a second apart.
fn most_in_a_second(samples: &[Sample]) -> u64 {
    let since = |(index, first): (usize, &Sample)| {
        let second = first.from + Duration::from_secs(1);
        let last = samples.iter().skip(index).take_while(|sample| sample.to <= second).last();
        last.map_or(0, |last| last.bytes - first.bytes)
    };
    samples.iter().enumerate().map(since).max().unwrap_or(0)
}

// ---- a limit that changes --------------------------------------------------------------------------------------

/// One limit after the other: so many MiB in a second.
const LIMITS: [u64; 3] = [32, 96, 16];
/// When a limit must be in force, and until when it is then looked at.
const IN_FORCE_NS: u64 = 1_000_000_000;
const LOOKED_AT_NS: u64 = 2_000_000_000;
/// A machine that stood still for longer meanwhile is looked at again.
const STILL_NS_MAX: u64 = 100_000_000;

/// What is seen of one limit: when it was set, and (time, bytes sent) since.
#[derive(Debug)]
struct Stretch {
    limit: u64,
    set_ns: u64,
    seen: Vec<(u64, u64)>,
}

impl Stretch {
    fn begin(limit: u64) -> Self {
        Self { limit, set_ns: monotonic_ns(), seen: Vec::new() }
    }

    /// Whether the limit was in force and looked at for a second.
    fn is_over(&self) -> bool {
        self.end_ns() >= self.set_ns + LOOKED_AT_NS
    }

    fn end_ns(&self) -> u64 {
        self.seen.last().map_or(0, |(at_ns, _)| *at_ns)
    }

    /// MiB per second once the limit had to be in force.
    fn rate(&self) -> f64 {
        let mut after = self.seen.iter().filter(|(at_ns, _)| *at_ns >= self.set_ns + IN_FORCE_NS);
        let (first, last) = (after.next().expect("progress"), self.seen.last().expect("progress"));
        (last.1 - first.1) as f64 / MIB as f64 / ((last.0 - first.0) as f64 / 1e9)
    }

    /// A busy host carries less, and tells of it late; each limit is far from the one before all the same. How well it is
    /// kept is measured on the cable.
    fn is_kept(&self) -> bool {
        let limit = self.limit as f64;
        (limit / 2.0..=limit * 1.3).contains(&self.rate())
    }
}

async fn a_changed_limit_is_in_force_within_a_second(world: &mut World) -> Outcome {
    world.three_with(guest_of(384, 1)).await?;
    let mut busy = Vec::new();
    for target in ["node-b", "node-a"].into_iter().cycle().take(CALM_MAX) {
        let stretches = limits_that_change(world, target).await?;
        let missed = stretches.iter().find(|stretch| !stretch.is_kept());
        let Some(missed) = missed else {
            assert_eq!(world.wrong_pages().await?, 0);
            return Ok(());
        };
        let what = format!("{:.1} MiB/s a second after the limit became {}", missed.rate(), missed.limit);
        let still_ns = world.stood_still_ns(missed.set_ns, missed.end_ns());
        assert!(still_ns > STILL_NS_MAX, "{what}");
        busy.push(format!("{what}, while this machine stood still for {still_ns} ns"));
        world.runner_goes(if target == "node-b" { "node-a" } else { "node-b" }).await?;
    }
    Err(format!("this machine was too busy: {busy:?}").into())
}

/// One move under one limit after the other, and what was seen of each.
async fn limits_that_change(world: &mut World, target: &str) -> Result<Vec<Stretch>, Box<dyn Error>> {
    let mut stretches = vec![Stretch::begin(LIMITS[0])];
    let never = |limit| {
        // Less than a switchover takes beside its pages.
        Overrides { max_downtime_ms: Some(1), ..limited_to(limit) }
    };
    let moved = world
        .migrate(target, never(LIMITS[0]), async |cluster, seen| {
            let (Some(progress), Some(stretch)) = (&seen.progress, stretches.last_mut()) else { return };
            stretch.seen.push((monotonic_ns(), progress.wire_bytes));
            if !stretch.is_over() {
                return;
            }
            // After the last limit: an end to it.
            let next = LIMITS.get(stretches.len());
            let anything = Overrides { max_downtime_ms: Some(300), ..limited_to(0) };
            let overrides = next.map_or(anything, |limit| never(*limit));
            let set = Act::MigrationSet { migration: seen.row.name.clone(), overrides };
            cluster.ask_any(set).await.expect("set");
            stretches.push(Stretch::begin(next.copied().unwrap_or(0)));
        })
        .await?;
    assert!(matches!(moved, Moved::Succeeded { .. }), "{moved:?}");
    assert!(stretches.len() > LIMITS.len(), "it ended before every limit was seen");
    stretches.truncate(LIMITS.len());
    Ok(stretches)
}
