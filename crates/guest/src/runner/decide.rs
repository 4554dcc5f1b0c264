//! What a runner answers to a command, decided from how it stands and nothing else.
//!
//! ```text
//!              pause(e)            load(e)        resume(e)          save    verify
//!   Incoming   no: state           yes            no: state          no      no: state
//!   + loaded   no: state           e >= loaded    e > loaded: start  no      yes
//!   Running e' e = e': seal, stop  no: state      e > e': relabel    no      yes
//!   Paused e'  e >= e': sealed     no: state      e > e': run on     yes     yes
//!
//!   throttle, release, stats, stop: always (throttle 0 to 99). power-button: Running.
//! ```
//!
//! Always true: an epoch that was sealed, and one that was run under, is never run under again; a guest that has
//! run is never loaded over. A refusal names its rule (`epoch`, `state`, `range`, `format`) and changes nothing.

use godwit_domain::Epoch;
use godwit_wire::handoff::{Command, Refusal, RunState, Standing};

/// Highest throttle, in percent: a guest whose writers get no time at all would be paused without a seal.
const THROTTLE_PERCENT_MAX: u8 = 99;
/// Longest message of a refusal: it may quote what was sent, and that may be megabytes.
const MESSAGE_CHARS_MAX: usize = 300;

/// What to do about a command that is in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Seal the epoch and pause the running guest.
    Pause(Epoch),
    /// Paused already: the seal is this epoch now (the same or a later one).
    Seal(Epoch),
    /// Give the device state.
    Save,
    /// Take the device state that came along, saved under this sealed epoch.
    Load(Epoch),
    /// Run the loaded state for the first time.
    Start(Epoch),
    /// Note the epoch; the guest runs on.
    Relabel(Epoch),
    /// Let the paused guest run on.
    RunOn(Epoch),
    /// Set the throttle to this percentage.
    Throttle(u8),
    /// Compare every page.
    Verify,
    /// At the end, leave alone what is not ours.
    Release,
    /// Press the power button.
    PowerButton,
    /// Tell how things stand.
    Stats,
    /// End.
    Stop,
}

/// A refusal by one of the rules.
pub(crate) fn refusal(rule: &str, message: impl AsRef<str>) -> Refusal {
    Refusal { rule: rule.to_owned(), message: message.as_ref().chars().take(MESSAGE_CHARS_MAX).collect() }
}

/// The decision; see the table above.
pub(crate) fn decide(standing: &Standing, command: &Command) -> Result<Action, Refusal> {
    match command {
        Command::Pause { epoch } => pause(standing, *epoch),
        Command::Load { epoch, bytes: _ } => load(standing, *epoch),
        Command::Resume { epoch } => resume(standing, *epoch),
        Command::Save => match standing.state {
            RunState::Paused => Ok(Action::Save),
            RunState::Running => {
                Err(refusal("state", "the guest runs; its state is given when it is paused"))
            }
            RunState::Incoming => {
                Err(refusal("state", "the guest has not run here; it has no state to give"))
            }
        },
        Command::Throttle { percent } if *percent > THROTTLE_PERCENT_MAX => {
            let message = format!("throttle is {percent} percent; it must be 0 to {THROTTLE_PERCENT_MAX}");
            Err(refusal("range", message))
        }
        Command::Throttle { percent } => Ok(Action::Throttle(*percent)),
        Command::Verify => match (standing.state, standing.loaded) {
            (RunState::Incoming, None) => {
                Err(refusal("state", "no state is loaded; what the pages must hold is not known"))
            }
            (RunState::Incoming, Some(_)) | (RunState::Running | RunState::Paused, _) => Ok(Action::Verify),
        },
        Command::Release => Ok(Action::Release),
        Command::PowerButton => match standing.state {
            RunState::Running => Ok(Action::PowerButton),
            RunState::Incoming | RunState::Paused => {
                Err(refusal("state", "the guest does not run here: nobody in it would see its power button"))
            }
        },
        Command::Stats => Ok(Action::Stats),
        Command::Stop => Ok(Action::Stop),
    }
}

fn pause(standing: &Standing, epoch: Epoch) -> Result<Action, Refusal> {
    match standing.state {
        RunState::Incoming => Err(refusal("state", "the guest has not run here; there is nothing to pause")),
        RunState::Running if epoch == standing.epoch => Ok(Action::Pause(epoch)),
        RunState::Running => {
            let message = format!("pause of epoch {epoch}, but the guest runs under {}", standing.epoch);
            Err(refusal("epoch", message))
        }
        RunState::Paused if epoch >= standing.epoch => Ok(Action::Seal(epoch)),
        RunState::Paused => {
            let message = format!("pause of epoch {epoch}, but {} is sealed already", standing.epoch);
            Err(refusal("epoch", message))
        }
    }
}

fn load(standing: &Standing, epoch: Epoch) -> Result<Action, Refusal> {
    match (standing.state, standing.loaded) {
        (RunState::Incoming, Some(loaded)) if epoch < loaded => {
            let message = format!("state of epoch {epoch}, but that of {loaded} is loaded already");
            Err(refusal("epoch", message))
        }
        (RunState::Incoming, _) => Ok(Action::Load(epoch)),
        (RunState::Running | RunState::Paused, _) => {
            Err(refusal("state", "the guest has run here; a state is loaded by a new runner only"))
        }
    }
}

fn resume(standing: &Standing, epoch: Epoch) -> Result<Action, Refusal> {
    // A loaded state was sealed under its epoch elsewhere: running here under the same would be the second run.
    let over = standing.loaded.map_or(standing.epoch, |loaded| loaded.max(standing.epoch));
    let action = match (standing.state, standing.loaded) {
        (RunState::Incoming, None) => {
            return Err(refusal("state", "no state is loaded; the guest can not be resumed"));
        }
        (RunState::Incoming, Some(_)) => Action::Start(epoch),
        (RunState::Running, _) => Action::Relabel(epoch),
        (RunState::Paused, _) => Action::RunOn(epoch),
    };
    if epoch > over {
        return Ok(action);
    }
    Err(refusal("epoch", format!("resume under epoch {epoch}; it must be above {over}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INCOMING: Standing = Standing { state: RunState::Incoming, epoch: Epoch(0), loaded: None };
    const LOADED: Standing = Standing { state: RunState::Incoming, epoch: Epoch(0), loaded: Some(Epoch(5)) };
    const RUNNING: Standing = Standing { state: RunState::Running, epoch: Epoch(5), loaded: None };
    const PAUSED: Standing = Standing { state: RunState::Paused, epoch: Epoch(5), loaded: None };
    /// In this order in the rows below.
    const STANDINGS: [Standing; 4] = [INCOMING, LOADED, RUNNING, PAUSED];

    type Row = (Command, [Result<Action, &'static str>; 4]);

    fn same(command: Command, action: Action) -> Row {
        (command, [Ok(action); 4])
    }

    #[test]
    fn every_command_in_every_standing() {
        use Action::*;
        let load = |e| Command::Load { epoch: Epoch(e), bytes: 1 };
        let (pause, resume) =
            (|e| Command::Pause { epoch: Epoch(e) }, |e| Command::Resume { epoch: Epoch(e) });
        const STATE: Result<Action, &str> = Err("state");
        const EPOCH: Result<Action, &str> = Err("epoch");
        let rows: Vec<Row> = vec![
            (pause(4), [STATE, STATE, EPOCH, EPOCH]),
            (pause(5), [STATE, STATE, Ok(Pause(Epoch(5))), Ok(Seal(Epoch(5)))]),
            (pause(6), [STATE, STATE, EPOCH, Ok(Seal(Epoch(6)))]),
            (load(4), [Ok(Load(Epoch(4))), EPOCH, STATE, STATE]),
            (load(5), [Ok(Load(Epoch(5))), Ok(Load(Epoch(5))), STATE, STATE]),
            (load(6), [Ok(Load(Epoch(6))), Ok(Load(Epoch(6))), STATE, STATE]),
            (resume(0), [STATE, EPOCH, EPOCH, EPOCH]),
            (resume(5), [STATE, EPOCH, EPOCH, EPOCH]),
            (resume(6), [STATE, Ok(Start(Epoch(6))), Ok(Relabel(Epoch(6))), Ok(RunOn(Epoch(6)))]),
            (Command::Save, [STATE, STATE, STATE, Ok(Save)]),
            (Command::Verify, [STATE, Ok(Verify), Ok(Verify), Ok(Verify)]),
            (Command::Throttle { percent: 100 }, [Err("range"); 4]),
            same(Command::Throttle { percent: 99 }, Throttle(99)),
            same(Command::Throttle { percent: 0 }, Throttle(0)),
            same(Command::Release, Release),
            (Command::PowerButton, [STATE, STATE, Ok(PowerButton), STATE]),
            same(Command::Stats, Stats),
            same(Command::Stop, Stop),
        ];
        for (command, expected) in rows {
            for (standing, expected) in STANDINGS.iter().zip(expected) {
                let got = decide(standing, &command);
                let got = got.as_ref().map(|action| *action).map_err(|refusal| refusal.rule.as_str());
                assert_eq!(got, expected, "{command:?} in {standing:?}");
            }
        }
    }

    #[test]
    fn a_refusal_says_both_epochs() {
        let error = decide(&RUNNING, &Command::Pause { epoch: Epoch(4) }).expect_err("refused");
        assert_eq!(error.to_string(), "runner refused (epoch): pause of epoch 4, but the guest runs under 5");
        let error = decide(&LOADED, &Command::Resume { epoch: Epoch(5) }).expect_err("refused");
        assert_eq!(error.to_string(), "runner refused (epoch): resume under epoch 5; it must be above 5");
    }
}
