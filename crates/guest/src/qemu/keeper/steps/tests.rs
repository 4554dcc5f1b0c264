//! Commands that meet while QEMU takes its time, with a QEMU of a few lines that answers when it is let.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex};

use godwit_domain::PageCount;
use godwit_memory::Userfaultfd;
use godwit_wire::handoff::Command;
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use serde_json::Value;

use super::*;
use crate::qemu::keeper::Identity;
use crate::qemu::kept::Kept;
use crate::qemu::kept::tests::kept;
use crate::server::Machine;

/// No wait takes longer unless something is broken.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
struct Fake {
    runs: bool,
    stopped_by_itself: bool,
    refuses_to_run: bool,
    /// Commands that are answered later.
    held: BTreeSet<&'static str>,
    asked: Vec<String>,
}

#[derive(Debug, Clone, Default)]
struct Qemu(Arc<(Mutex<Fake>, Condvar)>);

impl Qemu {
    fn with<T>(&self, change: impl FnOnce(&mut Fake) -> T) -> T {
        let changed = change(&mut self.0.0.lock().expect("no panic"));
        self.0.1.notify_all();
        changed
    }

    fn connect(&self) -> Qmp {
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        let fake = self.clone();
        std::thread::spawn(move || fake.serve(&theirs));
        Qmp::over(ours).expect("greeted")
    }

    fn serve(&self, mut stream: &UnixStream) {
        let greeting = json!({ "QMP": { "version": { "qemu": { "major": 7, "minor": 2, "micro": 0 } } } });
        let mut said = writeln!(stream, "{greeting}");
        for line in BufReader::new(stream).lines() {
            let (Ok(line), Ok(())) = (line, said) else { return };
            let asked: Value = serde_json::from_str(&line).expect("JSON");
            said = writeln!(stream, "{}", self.answer(asked["execute"].as_str().expect("a command")));
        }
    }

    fn answer(&self, command: &str) -> Value {
        self.with(|fake| fake.asked.push(command.to_owned()));
        let (fake, changed) = &*self.0;
        let fake = fake.lock().expect("no panic");
        let mut fake = changed.wait_while(fake, |fake| fake.held.contains(command)).expect("no panic");
        match command {
            "cont" if fake.refuses_to_run => {
                return json!({ "error": { "class": "GenericError", "desc": "no" } });
            }
            "cont" => fake.runs = true,
            "stop" => fake.runs = false,
            "query-status" => {
                let status = if fake.stopped_by_itself { "io-error" } else { "paused" };
                return json!({ "return": { "running": fake.runs, "status": status } });
            }
            _ => {}
        }
        json!({ "return": {} })
    }

    fn until_asked(&self, command: &str) {
        let (fake, changed) = &*self.0;
        let not_yet = |fake: &mut Fake| !fake.asked.iter().any(|asked| asked == command);
        let waited = changed.wait_timeout_while(fake.lock().expect("no panic"), PATIENCE, not_yet);
        assert!(!waited.expect("no panic").1.timed_out(), "it was never asked to {command}");
    }
}

fn keeper(qemu: &Qemu, dir: &Path, kept: Kept) -> Arc<Keeper> {
    keeper_over(qemu.connect(), dir, kept)
}

fn keeper_over(qmp: Qmp, dir: &Path, kept: Kept) -> Arc<Keeper> {
    let null = || File::options().read(true).write(true).open("/dev/null").expect("there is one");
    let vm = vm::Vm {
        process: pidfd_open(getpid(), PidfdFlags::empty()).expect("we live"),
        memory: null().into(),
        uffd: Userfaultfd::from_handed_over(null().into()),
        pagemap: null().into(),
        address: 0x1000,
        pages: PageCount::of_memory(4096).expect("a page"),
        processors: 1,
    };
    let identity = Identity {
        guest: kept.guest.clone(),
        instance: kept.instance,
        node: "node-a".parse().expect("a name"),
        dir: dir.to_owned(),
    };
    let core = Core { kept, throttle_percent: 0, stream: None, running: (Duration::ZERO, None) };
    Arc::new(Keeper {
        identity,
        vm,
        cgroup: None,
        core: Mutex::new(core),
        qmp: Mutex::new(Talk { qmp, saved: None }),
        attached: AtomicU64::new(0),
        stopping: AtomicBool::new(false),
        ended: AtomicBool::new(false),
        arrived: AtomicBool::new(false),
        pressed: AtomicBool::new(false),
        unwritten: AtomicBool::new(false),
    })
}

/// By a thread of its own; the answer comes when there is one.
fn told(keeper: &Arc<Keeper>, attachment: u64, command: Command) -> Receiver<Option<Outcome>> {
    let (keeper, (answer, answered)) = (Arc::clone(keeper), channel());
    std::thread::spawn(move || {
        let outcome = keeper.execute(Attachment(attachment), &command, &mut Vec::new());
        // Whoever asked may have failed.
        let _ = answer.send(outcome);
    });
    answered
}

fn done(answered: &Receiver<Option<Outcome>>) -> bool {
    let outcome = answered.recv_timeout(PATIENCE).expect("answered").expect("to somebody");
    matches!(outcome, Outcome::Ok(Answer::Done))
}

fn until_it_is_at(keeper: &Keeper, step: Step) {
    let deadline = Instant::now() + PATIENCE;
    while keeper.lock().kept.step != Some(step) {
        assert!(Instant::now() < deadline, "never at {step:?}: {:?}", keeper.lock().kept);
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn standing(keeper: &Keeper) -> (RunState, u64, Option<Step>) {
    let kept = keeper.lock().kept.clone();
    (kept.standing.state, kept.standing.epoch.0, kept.step)
}

fn running(epoch: u64, step: Option<Step>) -> Kept {
    let standing = Standing { state: RunState::Running, epoch: Epoch(epoch), loaded: None };
    Kept { standing, ..kept(step) }
}

const RESUME_5: Command = Command::Resume { epoch: Epoch(5) };
const RESUME_6: Command = Command::Resume { epoch: Epoch(6) };
const PAUSE_5: Command = Command::Pause { epoch: Epoch(5) };

#[test]
fn nobody_says_how_it_stands_while_it_is_told_to_run() {
    let (qemu, dir) = (Qemu::default(), tempfile::tempdir().expect("folder"));
    let keeper = keeper(&qemu, dir.path(), kept(None));
    qemu.with(|fake| fake.held.insert("cont"));
    let resumed = told(&keeper, 0, RESUME_5);
    qemu.until_asked("cont");
    // Its node process was another a moment ago.
    let (socket, _other) = UnixStream::pair().expect("sockets");
    let (attachment, hello) = keeper.attach(Arc::new(socket)).expect("it lives");
    assert_eq!(
        (hello.standing.state, hello.standing.epoch),
        (RunState::Running, Epoch(5)),
        "for all that is known"
    );
    let stats = told(&keeper, attachment.0, Command::Stats);
    assert!(stats.recv_timeout(Duration::from_millis(100)).is_err(), "it is not known yet");
    qemu.with(|fake| fake.held.clear());
    assert!(done(&resumed));
    let Some(Outcome::Ok(Answer::Stats(stats))) = stats.recv_timeout(PATIENCE).expect("answered") else {
        panic!("no stats")
    };
    assert_eq!((stats.standing.state, stats.standing.epoch), (RunState::Running, Epoch(5)));
}

#[test]
fn a_refusal_leaves_it_as_it_was_and_it_can_be_told_again() {
    let (qemu, dir) = (Qemu::default(), tempfile::tempdir().expect("folder"));
    let keeper = keeper(&qemu, dir.path(), kept(None));
    qemu.with(|fake| fake.refuses_to_run = true);
    assert!(!done(&told(&keeper, 0, RESUME_5)));
    assert_eq!(standing(&keeper), (RunState::Incoming, 0, None));
    qemu.with(|fake| fake.refuses_to_run = false);
    assert!(done(&told(&keeper, 0, RESUME_5)));
    assert_eq!(standing(&keeper), (RunState::Running, 5, None));
}

#[test]
fn what_can_not_be_written_down_is_not_done() {
    let (qemu, dir) = (Qemu::default(), tempfile::tempdir().expect("folder"));
    let (arriving, rests) = (
        keeper(&qemu, &dir.path().join("gone"), kept(None)),
        keeper(&qemu, &dir.path().join("gone"), running(5, None)),
    );
    assert!(!done(&told(&arriving, 0, RESUME_5)) && !done(&told(&rests, 0, PAUSE_5)));
    assert_eq!(standing(&arriving), (RunState::Incoming, 0, None));
    assert_eq!(standing(&rests), (RunState::Running, 5, None));
    assert!(qemu.with(|fake| !fake.asked.iter().any(|asked| asked == "cont" || asked == "stop")));
}

#[test]
fn a_pause_comes_after_what_it_finds_under_way() {
    let (qemu, dir) = (Qemu::default(), tempfile::tempdir().expect("folder"));
    let keeper = keeper(&qemu, dir.path(), kept(None));
    qemu.with(|fake| fake.held.insert("cont"));
    let resumed = told(&keeper, 0, RESUME_5);
    qemu.until_asked("cont");
    let paused = told(&keeper, 0, PAUSE_5);
    until_it_is_at(&keeper, Step::Pausing(Epoch(5)));
    qemu.with(|fake| fake.held.clear());
    assert!(done(&paused) && !done(&resumed), "who is told last counts");
    assert_eq!(standing(&keeper), (RunState::Paused, 5, None));
    assert!(!qemu.with(|fake| fake.runs));
}

#[test]
fn what_is_told_to_run_on_while_it_stops_runs_on() {
    let (qemu, dir) = (Qemu::default(), tempfile::tempdir().expect("folder"));
    let keeper = keeper(&qemu, dir.path(), running(5, None));
    qemu.with(|fake| (fake.runs, fake.held) = (true, BTreeSet::from(["stop"])));
    let paused = told(&keeper, 0, PAUSE_5);
    qemu.until_asked("stop");
    let resumed = told(&keeper, 0, RESUME_6);
    until_it_is_at(&keeper, Step::Resuming(Epoch(6)));
    qemu.with(|fake| fake.held.clear());
    assert!(done(&resumed) && !done(&paused));
    assert_eq!(standing(&keeper), (RunState::Running, 6, None));
    assert!(qemu.with(|fake| fake.runs), "what was begun before is over");
}

/// Each waits behind a question, and is overtaken before QEMU hears of it.
#[test]
fn who_is_overtaken_tells_qemu_nothing() {
    let (qemu, dir) = (Qemu::default(), tempfile::tempdir().expect("folder"));
    let keeper = keeper(&qemu, dir.path(), running(5, None));
    qemu.with(|fake| fake.runs = true);
    let talk = keeper.talk();
    let paused = told(&keeper, 0, PAUSE_5);
    until_it_is_at(&keeper, Step::Pausing(Epoch(5)));
    let resumed = told(&keeper, 0, RESUME_6);
    until_it_is_at(&keeper, Step::Resuming(Epoch(6)));
    drop(talk);
    assert!(done(&resumed) && !done(&paused));
    assert_eq!(standing(&keeper), (RunState::Running, 6, None));
    assert!(qemu.with(|fake| fake.runs && !fake.asked.iter().any(|asked| asked == "stop")));
}

/// QEMU may be at what an earlier keeper has told it, and answers nobody.
#[test]
fn what_is_not_known_stays_so_until_qemu_answers() {
    let dir = tempfile::tempdir().expect("folder");
    for (step, command) in [(Step::Resuming(Epoch(6)), RESUME_6), (Step::Pausing(Epoch(5)), PAUSE_5)] {
        let nobody = Qmp::later(&dir.path().join("nobody")).expect("nothing is asked yet");
        let keeper = keeper_over(nobody, dir.path(), running(5, Some(step)));
        assert!(!keeper.is_settled());
        for command in [command, Command::Stats] {
            let outcome =
                told(&keeper, 0, command).recv_timeout(PATIENCE).expect("answered").expect("to somebody");
            assert!(matches!(outcome, Outcome::Error(_)), "{outcome:?}");
            assert_eq!(standing(&keeper), (RunState::Running, 5, Some(step)));
        }
    }
}

#[test]
fn what_another_keeper_has_begun_is_ended() {
    let (pausing, resuming) = (Some(Step::Pausing(Epoch(5))), Some(Step::Resuming(Epoch(6))));
    let paused = (RunState::Paused, 5, None);
    let rows = [
        // What it has written down, whether the machine runs, or has stopped by itself; how it stands then.
        (running(5, pausing), true, false, paused),
        (running(5, pausing), false, false, paused),
        (running(5, pausing), false, true, paused),
        (running(5, resuming), true, false, (RunState::Running, 6, None)),
        (running(5, resuming), false, false, paused),
        (kept(resuming), true, false, (RunState::Running, 6, None)),
        (kept(resuming), false, false, (RunState::Incoming, 0, None)),
        (kept(resuming), false, true, (RunState::Running, 6, None)),
        (running(5, resuming), false, true, (RunState::Running, 6, None)),
    ];
    for (kept, runs, stopped_by_itself, stands) in rows {
        let (qemu, dir) = (Qemu::default(), tempfile::tempdir().expect("folder"));
        qemu.with(|fake| (fake.runs, fake.stopped_by_itself) = (runs, stopped_by_itself));
        let keeper = keeper(&qemu, dir.path(), kept.clone());
        assert!(keeper.is_settled());
        assert_eq!(
            standing(&keeper),
            stands,
            "{kept:?}, runs: {runs}, stopped by itself: {stopped_by_itself}"
        );
        assert_eq!(qemu.with(|fake| fake.runs), stands.0 == RunState::Running);
    }
}

/// Its folder goes between the writes before and after `cont`. Whether it was said to run.
fn without_room_while_it_is_told_to_run(folder: &Path, refuses_to_run: bool) -> (Arc<Keeper>, bool) {
    let qemu = Qemu::default();
    std::fs::create_dir(folder).expect("made");
    let keeper = keeper(&qemu, folder, kept(None));
    qemu.with(|fake| (fake.refuses_to_run, fake.held) = (refuses_to_run, BTreeSet::from(["cont"])));
    let resumed = told(&keeper, 0, RESUME_5);
    qemu.until_asked("cont");
    std::fs::remove_dir_all(folder).expect("removed");
    qemu.with(|fake| fake.held.clear());
    let ran = done(&resumed);
    (keeper, ran)
}

/// Else the next keeper would do what was ordered, though somebody was told that it had not been done.
#[test]
fn that_it_does_not_run_is_not_said_before_it_is_written_down() {
    let dir = tempfile::tempdir().expect("folder");
    let folder = dir.path().join("runner");
    let (keeper, ran) = without_room_while_it_is_told_to_run(&folder, true);
    assert!(!ran);
    let stats =
        || told(&keeper, 0, Command::Stats).recv_timeout(PATIENCE).expect("answered").expect("to somebody");
    assert!(matches!(stats(), Outcome::Error(_)), "{:?}", standing(&keeper));
    std::fs::create_dir(&folder).expect("made");
    assert!(matches!(stats(), Outcome::Ok(_)));
    assert_eq!(standing(&keeper), (RunState::Incoming, 0, None));
    assert_eq!(Kept::read(&folder).expect("written"), keeper.lock().kept);
}

/// Else the next keeper, which finds it stopped for any reason, would not know that it has run.
#[test]
fn what_has_happened_and_could_not_be_written_down_is_written_later() {
    let dir = tempfile::tempdir().expect("folder");
    let folder = dir.path().join("runner");
    let (keeper, ran) = without_room_while_it_is_told_to_run(&folder, false);
    assert!(ran, "whatever the disk says");
    keeper.write_again();
    std::fs::create_dir(&folder).expect("made");
    keeper.write_again();
    let written = Kept::read(&folder).expect("written");
    assert_eq!(
        (written.standing.state, written.standing.epoch, written.step),
        (RunState::Running, Epoch(5), None)
    );
}
