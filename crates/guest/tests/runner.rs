//! A built-in runner as a node sees it: over its socket, with the descriptors that it hands over.

mod support;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use godwit_domain::{Epoch, InstanceId, PAGE_SIZE, PageCount, PageIndex, PageRun};
use godwit_guest::runner::{Pattern, Role, RunnerConfig, RunnerError, Workload, WorkloadOptions, run};
use godwit_memory::{Memfd, Tracker};
use godwit_wire::handoff::{
    Command, HANDOFF_VERSION, LINE_BYTES_MAX, Outcome, RunState, STATE_BYTES_MAX, Standing,
};

use support::{Node, PAGES, Runner, config, until};

fn options() -> WorkloadOptions {
    WorkloadOptions {
        memory: PAGES,
        working_set: PageCount(2048),
        dirty_rate_bytes_per_second: 20 << 20,
        pattern: Pattern::Uniform,
        zero_percent: 25,
        compressible_percent: 25,
        threads: 3,
        seed: 42,
    }
}

fn pause(epoch: u64) -> Command {
    Command::Pause { epoch: Epoch(epoch) }
}

fn resume(epoch: u64) -> Command {
    Command::Resume { epoch: Epoch(epoch) }
}

fn standing(state: RunState, epoch: u64, loaded: Option<u64>) -> Standing {
    Standing { state, epoch: Epoch(epoch), loaded: loaded.map(Epoch) }
}

/// What a node does to a guest's memory, in one go because the guest stands still.
fn copy(from: &Memfd, to: &Memfd) {
    let mut page = vec![0; PAGE_SIZE];
    for index in (0..PAGES.0).map(PageIndex) {
        from.read(index, &mut page).expect("reads");
        if page.iter().any(|byte| *byte != 0) {
            to.write(index, &page).expect("writes");
        }
    }
}

#[test]
fn hello_says_who_and_how() {
    let runner = Runner::fresh(options());
    let node = runner.connect();
    let hello = &node.hello;
    assert_eq!(
        (hello.v, hello.guest.to_string(), hello.node.as_str()),
        (HANDOFF_VERSION, "default/vm1".into(), "node-a")
    );
    assert_eq!((hello.instance, hello.pid), (InstanceId::from_random([7; 16]), std::process::id()));
    assert_eq!(hello.regions.len(), 1);
    assert_eq!((hello.regions[0].bytes, hello.regions[0].offset_bytes), (PAGES.bytes(), 0));
    assert_eq!(hello.standing, standing(RunState::Running, 1, None));
    let mode = |path: &Path| std::fs::metadata(path).expect("is there").permissions().mode() & 0o777;
    assert_eq!((mode(&runner.dir()), mode(&runner.socket())), (0o700, 0o600));
    assert!(node.memory.is_sealed().expect("seals"), "a new guest's memory takes no other writer");
    runner.stop();
}

#[test]
fn a_guest_moves_and_no_tick_is_lost_or_repeated() {
    let (source, target) = (Runner::fresh(options()), Runner::incoming());
    let (mut from, mut to) = (source.connect(), target.connect());
    until("the guest has worked", || from.stats().pages_written > 3000 && from.stats().tick > 10);

    from.done(pause(1));
    let ticks_at_pause = source.ticks();
    from.done(pause(1));
    let state = from.save();
    assert_eq!(from.verify().wrong, 0);
    let stats = from.stats();
    assert_eq!(stats.standing, standing(RunState::Paused, 1, None));
    assert_eq!(from.save(), state, "the same bytes until resumed");

    copy(&from.memory, &to.memory);
    to.loads(1, &state);
    let verified = to.verify();
    assert_eq!((verified.pages, verified.wrong, verified.first_wrong), (u64::from(PAGES.0), 0, vec![]));
    assert_eq!(to.stats().standing, standing(RunState::Incoming, 0, Some(1)));
    to.memory.seal_against_other_writers().expect("seals");
    to.done(resume(2));
    until("it works at the target", || {
        let now = to.stats();
        now.pages_written > stats.pages_written + 1000 && now.tick > stats.tick + 10
    });
    assert!(to.stats().running_us > stats.running_us);
    assert_eq!(to.verify().wrong, 0, "while it runs");
    to.done(pause(2));
    assert_eq!(to.verify().wrong, 0);

    assert_eq!(source.ticks(), ticks_at_pause, "no tick after the pause was answered");
    let mut ticks = ticks_at_pause;
    ticks.extend(target.ticks());
    assert_eq!(ticks.len() as u64, to.stats().tick);
    assert!(ticks.iter().zip(1..).all(|(tick, number)| tick.tick == number), "without gap or repeat");
    let here = |name: &str| ticks.iter().filter(|tick| tick.node.as_str() == name).count() as u64;
    assert_eq!((here("node-a"), here("node-a") + here("node-b")), (stats.tick, ticks.len() as u64));
    source.stop();
    target.stop();
}

#[test]
fn epochs_that_are_over_stay_over() {
    let (source, target) = (Runner::fresh(options()), Runner::incoming());
    let (mut from, mut to) = (source.connect(), target.connect());
    from.refused(pause(2), "epoch");
    from.refused(resume(1), "epoch");
    from.refused(Command::Save, "state");
    from.done(resume(3)); // a relabel
    from.refused(pause(1), "epoch");
    from.done(pause(3));
    from.refused(resume(3), "epoch");
    let state = from.save();
    from.refuses_load(9, &state, "state");

    for command in [pause(1), Command::Save, resume(9), Command::Verify] {
        to.refused(command, "state");
    }
    to.refuses_load(3, b"{}", "format");
    to.loads(3, &state);
    to.refuses_load(2, &state, "epoch");
    to.loads(4, &state);
    to.refused(resume(4), "epoch");

    from.done(resume(4)); // the hand-over was called off
    until("it works again", || from.stats().tick > 0 && from.stats().standing.state == RunState::Running);
    let before = from.stats().pages_written;
    until("it writes again", || from.stats().pages_written > before);
    assert_eq!(from.verify().wrong, 0);
    source.stop();
    target.stop();
}

#[test]
fn the_last_connection_wins_and_the_runner_outlives_all() {
    let runner = Runner::fresh(options());
    let mut first = runner.connect();
    first.done(pause(1));
    drop(runner.connect());
    assert!(first.is_gone());
    let mut third = runner.connect();
    assert_eq!(third.hello.standing, standing(RunState::Paused, 1, None), "it remembers what was sealed");
    third.done(resume(2));
    let mut fourth = runner.connect();
    // Written before or after the runner shut it: nobody carries it out.
    let _ = third.stream.get_mut().write_all(b"{\"id\":9,\"do\":\"pause\",\"epoch\":2}\n");
    assert!(third.is_gone());
    let tick = fourth.stats().tick;
    until("it runs on", || fourth.stats().tick > tick + 5);
    assert_eq!(fourth.stats().standing, standing(RunState::Running, 2, None));
    runner.stop();
}

#[test]
fn verify_finds_a_page_that_somebody_wrote() {
    let (source, target) = (Runner::fresh(options()), Runner::incoming());
    let (mut from, mut to) = (source.connect(), target.connect());
    until("every page was written once", || from.stats().pages_written > 3 * 2048);
    from.done(pause(1));
    copy(&from.memory, &to.memory);
    to.loads(1, &from.save());
    assert_eq!(to.verify().wrong, 0);
    let mut page = vec![0; PAGE_SIZE];
    // One of the working set, one beside it (perhaps a zero page): the last byte is another.
    for index in [PageIndex(1234), PageIndex(4000)] {
        assert!(from.memory.write(index, &page).is_err(), "the source's memory is sealed");
        to.memory.read(index, &mut page).expect("reads");
        page[PAGE_SIZE - 1] ^= 1;
        to.memory.write(index, &page).expect("writes");
    }
    let verified = to.verify();
    assert_eq!((verified.pages, verified.wrong, verified.first_wrong), (4096, 2, vec![1234, 4000]));
    source.stop();
    target.stop();
}

#[test]
fn garbage_is_answered_and_endless_lines_end_the_connection() {
    let runner = Runner::fresh(options());
    let mut node = runner.connect();
    for line in [
        "",
        "{",
        "null",
        "{\"id\":3,\"do\":\"fly\"}",
        "{\"id\":3,\"do\":\"throttle\",\"percent\":256}",
        "\u{1F426}",
    ] {
        node.say(format!("{line}\n").as_bytes());
        let reply = node.hear();
        assert!(matches!(&reply.outcome, Outcome::Error(refusal) if refusal.rule == "format"), "{reply:?}");
        assert_eq!(reply.id, 0);
    }
    node.refused(Command::Throttle { percent: 100 }, "range");
    node.done(Command::Throttle { percent: 99 });
    // The runner hangs up in the middle of it.
    let _ = node.stream.get_mut().write_all(&vec![b'x'; LINE_BYTES_MAX + 2]);
    assert!(node.is_gone());
    let mut node = runner.connect();
    let bytes = u32::try_from(STATE_BYTES_MAX).expect("fits") + 1;
    node.say(format!("{{\"id\":1,\"do\":\"load\",\"epoch\":1,\"bytes\":{bytes}}}\n").as_bytes());
    assert!(node.is_gone(), "what follows could not be told from lines");
    assert_eq!(runner.connect().stats().throttle_percent, 99, "the runner lives");
    runner.stop();
}

#[test]
fn a_folder_has_one_runner() {
    let runner = Runner::fresh(options());
    let mut node = runner.connect();
    let second = run(config(runner.dir(), "node-a", PAGES, Role::Incoming));
    assert!(matches!(second, Err(RunnerError::FolderInUse { .. })), "{second:?}");
    until("the first is seen not to be disturbed", || node.stats().pages_written > 0);
    runner.stop();
}

#[test]
fn what_can_not_be_is_refused_at_the_start() {
    let dir = tempfile::tempdir().expect("folder");
    let try_run = |change: fn(&mut RunnerConfig)| {
        let workload = Workload::new(options()).expect("fits");
        let role = Role::Fresh { workload };
        let mut config = config(dir.path().join("vm1"), "node-a", PAGES, role);
        change(&mut config);
        run(config).expect_err("refused").to_string()
    };
    assert!(try_run(|c| c.memory = PageCount(0)).contains("memory is 0"));
    assert!(try_run(|c| c.memory = PageCount(1)).contains("4096 pages"));
    assert!(try_run(|c| c.tick_interval = Duration::ZERO).contains("tick-interval"));
    assert!(try_run(|c| c.dir = "/proc/none".into()).contains("/proc/none"));
    assert!(!dir.path().join("vm1").exists(), "nothing was begun");
}

/// Bytes of distinct pages per second that scans see in about two seconds.
fn seen_by_scans(node: Node, every: Duration) -> f64 {
    let region = node.hello.regions[0];
    let (uffd, pagemap) = node.tracking;
    let mut tracker = Tracker::arm(uffd, pagemap, region.address, region.bytes).expect("arms");
    let mut scan = || {
        let mut pages = 0_u64;
        tracker.scan(|run: PageRun| pages += u64::from(run.count.0)).expect("scans");
        (pages, Instant::now())
    };
    let (_, begun) = scan();
    let (mut sum, mut last) = (0, begun);
    while last - begun < Duration::from_secs(2) {
        std::thread::sleep(every); // the window that is measured, not a wait for something
        let (pages, now) = scan();
        (sum, last) = (sum + pages, now);
    }
    tracker.disarm().expect("disarms");
    (sum * PAGE_SIZE as u64) as f64 / (last - begun).as_secs_f64()
}

#[test]
fn scans_see_the_dirty_rate_that_was_asked_for() {
    const ASKED: f64 = (50 << 20) as f64;
    for pattern in [Pattern::Uniform, Pattern::HotSet, Pattern::Streaming] {
        let size = PageCount(65_536);
        let runner = Runner::fresh(WorkloadOptions {
            memory: size,
            working_set: size,
            dirty_rate_bytes_per_second: 50 << 20,
            pattern,
            zero_percent: 0,
            threads: 2,
            ..options()
        });
        // A machine that stands still for a while lets nobody write: then it is looked at again.
        let mut looks = Vec::new();
        let is_right = |rate: f64| (rate - ASKED).abs() < ASKED / 10.0;
        for _ in 0..15 {
            let seen = seen_by_scans(runner.connect(), Duration::from_millis(100));
            let stats = runner.connect().stats();
            assert_eq!(stats.dirty_rate_asked, 50 << 20);
            looks.push((seen, stats.dirty_rate_achieved as f64));
            if looks.last().is_some_and(|(seen, told)| is_right(*seen) && is_right(*told)) {
                break;
            }
        }
        let right = looks.last().is_some_and(|(seen, told)| is_right(*seen) && is_right(*told));
        assert!(right, "{pattern}: bytes per second that scans saw, and that were told: {looks:?}");
        let mut node = runner.connect();

        node.done(Command::Throttle { percent: 80 });
        let slow = ASKED / 5.0;
        until("the throttle is felt", || {
            (node.stats().dirty_rate_achieved as f64 - slow).abs() < slow / 10.0
        });
        assert_eq!(node.verify().wrong, 0);
        runner.stop();
    }
}
