//! Clusters of real processes: what must hold between hosts, seen from outside.
//!
//! ```text
//!   moves       a guest under load arrives whole, there and back
//!   planted     `verify` is no ornament: bugs that are switched on are found by it
//!   deaths      a node is killed, at each phase of a move
//!   restart     and between a scan and what it found
//!   ownership   what an operator must say, and what a fenced node does first
//!   quorum      the group is cut, or has no quorum
//!   membership  the group changes: voters are added, removed and replaced while guests move
//!   disaster    the voters are lost: backup, restore, recover
//!   inputs      bad input to a running cluster
//!   bandwidth   what is sent, by the program's counter and by the kernel's
//!   deadlines   a guest that writes too fast: cancelled, paused to finish or throttled, as is allowed
//!   folios      guest memory of large folios, a page of which is held by somebody else
//!   qemu        a Linux guest under QEMU moves, and what breaks beneath it
//!   operated    a virtual machine in an operator's hands: power button, console, manifest
//!   seed        an operator's day at the command line, with the manifests that people start from
//!   rules       policies, settings, networks: what changes while a guest moves
//!   drain       a node is emptied; a request is repeated
//!   queue       the leader dies while 50 wait and 5 run
//!   identities  who may speak to a node
//!   hostile     what happens to those who may and speak nonsense; hostile_target: the same for those who are spoken to
//!   links       a guest moves, and a group agrees, over links that delay, swap, repeat and lose
//!   commands    configs and the command line
//!   audit       what arrived is compared with what left, while the guest runs on
//!   upgrade     nodes are restarted one after another, or come back as another version
//!   lab         `godwit lab` from outside: what it prints and what it leaves behind
//! ```
//!
//! `cargo test -p godwit --test cluster [PART OF A NAME]`; one after another unless `--test-threads` says otherwise,
//! since time is part of what they look at. A test that can not run here is shown as ignored, with the reason.

#[path = "cluster/audit.rs"]
mod audit;
#[path = "cluster/bandwidth.rs"]
mod bandwidth;
#[path = "cluster/commands.rs"]
mod commands;
#[path = "cluster/cuts.rs"]
mod cuts;
#[path = "cluster/deadlines.rs"]
mod deadlines;
#[path = "cluster/deaths.rs"]
mod deaths;
#[path = "cluster/disaster.rs"]
mod disaster;
#[path = "cluster/drain.rs"]
mod drain;
#[path = "cluster/folios.rs"]
mod folios;
#[path = "cluster/hostile.rs"]
mod hostile;
#[path = "cluster/hostile_target.rs"]
mod hostile_target;
#[path = "cluster/identities.rs"]
mod identities;
#[path = "cluster/inputs.rs"]
mod inputs;
#[path = "cluster/lab.rs"]
mod lab;
#[path = "support/link.rs"]
mod link;
#[path = "cluster/links.rs"]
mod links;
#[path = "cluster/membership.rs"]
mod membership;
#[path = "cluster/moves.rs"]
mod moves;
#[path = "cluster/operated.rs"]
mod operated;
#[path = "cluster/ownership.rs"]
mod ownership;
#[path = "cluster/planted.rs"]
mod planted;
#[path = "cluster/postcopy.rs"]
mod postcopy;
#[path = "cluster/qemu.rs"]
mod qemu;
#[path = "cluster/queue.rs"]
mod queue;
#[path = "cluster/quorum.rs"]
mod quorum;
#[path = "cluster/restart.rs"]
mod restart;
#[path = "cluster/rules.rs"]
mod rules;
#[path = "cluster/seed.rs"]
mod seed;
mod support;
#[path = "cluster/upgrade.rs"]
mod upgrade;
#[path = "support/vm.rs"]
mod vm;

use libtest_mimic::Arguments;

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(1);
    let all = [
        moves::trials(),
        planted::trials(),
        deaths::trials(),
        restart::trials(),
        ownership::trials(),
        quorum::trials(),
        membership::trials(),
        disaster::trials(),
        inputs::trials(),
        bandwidth::trials(),
        deadlines::trials(),
        postcopy::trials(),
        audit::trials(),
        cuts::trials(),
        folios::trials(),
        operated::trials(),
        qemu::trials(),
        seed::trials(),
        upgrade::trials(),
        rules::trials(),
        drain::trials(),
        queue::trials(),
        identities::trials(),
        hostile::trials(),
        hostile_target::trials(),
        links::trials(),
        commands::trials(),
        lab::trials(),
    ];
    libtest_mimic::run(&arguments, all.into_iter().flatten().collect()).exit();
}
