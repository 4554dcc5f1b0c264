//! Random logs that the registry has made: the count agrees with it after each entry, and the judge finds nothing.

use std::collections::BTreeSet;

use fastrand::Rng;
use godwit_domain::ownership::{Entry, Life, Mode, Ownership, Phase, Side, Testimony};
use godwit_domain::registry::{Command, GuestUid, NodeChange, Wish};
use godwit_domain::{Epoch, InstanceId, Labels};

use super::super::count::Count;
use super::super::judge::judge;
use super::script::{Script, admit, boot, join, limits, make, named, node};

const NODES: [&str; 4] = ["a", "b", "c", "d"];
const HISTORIES: u64 = 200;
const STEPS: usize = 800;
/// Guests at once.
const GUESTS: u64 = 9;

pub(super) fn the_count_agrees_with_the_registry_in_random_histories() {
    let only = std::env::var("LEDGER_SEED").ok().map(|seed| seed.parse().expect("a number"));
    let seeds = only.map_or(0..HISTORIES, |seed: u64| seed..seed + 1);
    let (mut most, mut admitted, mut ends) = (0, 0, BTreeSet::new());
    for seed in seeds {
        crate::run::tell(&format!("LEDGER_SEED={seed} cargo test -p godwit --test chaos the_count_agrees"));
        let script = history(seed);
        let grants = judge(&script.all).unwrap_or_else(|found| panic!("seed {seed}: {found}"));
        most = most.max(grants.most_at_once);
        admitted += grants.admitted;
        ends.extend(grants.courses.iter().map(|course| course.phase));
    }
    if only.is_none() {
        assert!(most >= 5 && admitted > 10 * HISTORIES, "{most} at once, {admitted} admitted: too tame");
        assert!(ends.is_superset(&BTreeSet::from(["Succeeded", "Failed", "Cancelled"])), "{ends:?}");
    }
}

fn history(seed: u64) -> Script {
    let mut random = Rng::with_seed(seed);
    let mut script = Script::new(&NODES.map(|name| (name, 8)), &[]);
    let mut count = Count::default();
    let mut counted = 0;
    for step in 0..STEPS {
        let command = next(&script, &mut random, step);
        let is_new = match &command {
            Command::Migrate { migration, .. } => script.registry.guest_of(migration).is_none(),
            _ => false,
        };
        script.say(command);
        for applied in &script.all[counted..] {
            if applied.refused.is_none() {
                let found = count.apply(&applied.command, is_new);
                assert_eq!(found, Ok(()), "seed {seed}: {applied:?}");
            }
        }
        counted = script.all.len();
        let granted = script.registry.granted().map(|(_, source, target)| (source.clone(), target.clone()));
        let mut granted: Vec<_> = granted.collect();
        granted.sort();
        assert_eq!(count.held(), granted, "seed {seed}: after {:?}", script.all.last());
        for (uid, guest) in &script.registry.guests {
            let epoch = guest.ownership.epoch.0;
            assert_eq!(count.epoch(*uid), Some(epoch), "seed {seed}: after {:?}", script.all.last());
        }
    }
    script
}

/// Something that may happen now, or may not.
fn next(script: &Script, random: &mut Rng, step: usize) -> Command {
    let at = NODES[random.usize(..NODES.len())];
    let there: Vec<GuestUid> = script.registry.guests.keys().copied().collect();
    let uid = GuestUid(step as u64);
    match random.u32(0..100) {
        0..6 if (script.registry.guests.len() as u64) < GUESTS * 3 => make(uid.0, at),
        6..9 => limits(random.u32(0..9), random.u32(0..6), random.bool().then(|| random.u32(0..6))),
        9..11 => join(at, random.u64(4..12) << 20),
        11 => {
            let instances = script.registry.instances_on(&node(at));
            Command::Fence { node: node(at), boot: boot(at), instances }
        }
        12..18 => Command::FenceSeen { node: node(at) },
        18 => Command::Node { node: node(at), change: NodeChange::Drain },
        19 => Command::Node { node: node(at), change: NodeChange::CancelDrain },
        20..24 => Command::Node { node: node(at), change: NodeChange::Uncordon },
        24..26 => {
            let (labels, cordoned) = (Labels::new(), random.bool());
            Command::Node { node: node(at), change: NodeChange::Put { labels, cordoned } }
        }
        _ if there.is_empty() => make(uid.0, at),
        _ => {
            let uid = there[random.usize(..there.len())];
            about(script, random, uid, at, step)
        }
    }
}

fn about(script: &Script, random: &mut Rng, uid: GuestUid, at: &str, step: usize) -> Command {
    let guest = &script.registry.guests[&uid];
    let ownership = &guest.ownership;
    let attempt = ownership.attempt.as_ref();
    let Some(attempt) = attempt.filter(|attempt| !attempt.phase.is_over() || random.u32(0..3) > 0) else {
        if let Life::Creating(_) = ownership.life {
            let instance = InstanceId::from_random(random.u128(..).to_ne_bytes());
            return Command::Guest { guest: uid, entry: Entry::Born { instance } };
        }
        let drains = ownership.owner().map(|owner| owner.node.clone()).filter(|_| random.u32(0..3) == 0);
        let wish = Wish { drains, ..Wish::default() };
        return Command::Migrate { guest: uid, migration: named(&format!("m{step}")), wish };
    };
    let name = attempt.migration.to_string();
    if let (Phase::Pending, 0..8) = (&attempt.phase, random.u32(0..10)) {
        return admit(uid.0, &name, at);
    }
    Command::Guest { guest: uid, entry: entry(ownership, &name, random, at) }
}

/// Any entry, most often one that fits, under the present epoch or the one before.
fn entry(ownership: &Ownership, name: &str, random: &mut Rng, at: &str) -> Entry {
    let migration = named(name);
    let epoch = match random.u32(0..8) {
        0 => Epoch(ownership.epoch.0.saturating_sub(1)),
        _ => ownership.epoch,
    };
    let known = instances_of(ownership);
    let fresh = InstanceId::from_random(random.u128(..).to_ne_bytes());
    let instance = match known.is_empty() || random.u32(0..3) == 0 {
        true => fresh,
        false => known[random.usize(..known.len())],
    };
    // A runner is accepted once, or said again.
    let accepted = match ownership.attempt.as_ref().map(|attempt| &attempt.phase) {
        Some(Phase::Copying { target, .. }) if random.bool() => target.instance,
        _ => fresh,
    };
    let sides = [Side::Source, Side::Target, Side::Deadline, Side::Control, Side::Operator];
    let mode = if random.bool() { Mode::PostCopy } else { Mode::StopAndCopy };
    match random.u32(0..60) {
        0..14 => Entry::Accept { migration, epoch, instance: accepted },
        14..26 => Entry::HandOver { migration, epoch, mode },
        26..34 => Entry::Running { migration, epoch },
        34..38 => Entry::AllPages { migration, epoch },
        38..41 => Entry::HandBack { migration, epoch, testimony: Testimony::Withheld },
        41..44 => Entry::Decline { migration, epoch },
        44..46 => Entry::CallOff { migration, epoch },
        46..49 => Entry::End { migration, side: sides[random.usize(..5)], reason: String::new() },
        49..53 => Entry::Dropped { migration },
        53 => Entry::Gone { instance },
        54..56 => Entry::Recover { instance },
        56 => Entry::Delete,
        _ => Entry::Purged { node: node(at) },
    }
}

fn instances_of(ownership: &Ownership) -> Vec<InstanceId> {
    let mut known: Vec<InstanceId> = ownership.owner().map(|owner| owner.instance).into_iter().collect();
    if let Life::Lost { last, kept } = &ownership.life {
        known.extend([last.instance].into_iter().chain(kept.as_ref().map(|kept| kept.instance)));
    }
    if let Some(
        Phase::Copying { source, target }
        | Phase::HandedOver { source, target, .. }
        | Phase::PostCopy { source, target, .. },
    ) = ownership.attempt.as_ref().map(|attempt| &attempt.phase)
    {
        known.extend([source.instance, target.instance]);
    }
    known
}
