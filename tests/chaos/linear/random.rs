//! Histories made at random: by a register with delays, which pass; with one read made stale, which do not; and small
//! ones of any kind, of which a search that knows no tricks says the same.
//!
//! ```text
//!   seed ─▶ clients ─▶ invoked … done, at once … returned (or never) ─▶ history
//! ```
//!
//! Always true: a failure names the seed; `CHAOS_SEED=n` tells that one history again.

use std::time::Instant;

use fastrand::Rng;
use libtest_mimic::{Failed, Trial};

use super::checker::{NotLinear, VISITED_MAX, check};
use super::register::{Deed, Found, Operation, State, Value};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        Trial::test("what_a_register_answers_passes_whatever_the_delays", accepted),
        Trial::test("a_read_of_an_older_value_does_not_pass", rejected),
        Trial::test("the_checker_says_what_a_plain_search_says", compared),
        Trial::test("three_thousand_operations_are_judged_in_seconds", long),
    ]
}

/// Each of these seeds, or the one that is asked for.
fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("CHAOS_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => vec![seed],
        None => (0..count).collect(),
    }
}

fn replay(seed: u64, what: impl std::fmt::Display) -> Failed {
    format!("CHAOS_SEED={seed}: {what}").into()
}

/// How a random history is.
struct Shape {
    clients: u64,
    operations: usize,
    /// In a thousand.
    unknown: u64,
    /// Contents; `None`: each put has its own.
    contents: Option<Value>,
}

/// An operation that is under way.
struct UnderWay {
    at: u64,
    operation: usize,
}

/// A history of a real register.
fn history(rng: &mut Rng, shape: &Shape) -> Vec<Operation> {
    let mut clients = vec![0_u64; usize::try_from(shape.clients).unwrap_or(1)];
    let (mut operations, mut moves): (Vec<Operation>, Vec<UnderWay>) = (Vec::new(), Vec::new());
    for number in 0..shape.operations {
        let client = rng.usize(..clients.len());
        let invoked = clients[client] + rng.u64(1..40);
        let long = if rng.u8(..20) == 0 { 400 } else { 40 };
        let returned = invoked + rng.u64(3..long);
        clients[client] = returned;
        let value = shape.contents.map_or(number as Value + 1, |contents| rng.u64(1..=contents));
        let deed = match rng.u8(..20) {
            ..9 => Deed::Get(None),
            9..12 => Deed::Delete(Found::Unsaid),
            12..15 => Deed::Create(value, Found::Unsaid),
            _ => Deed::Put(value, Found::Unsaid),
        };
        let is_unknown = rng.u64(..1000) < shape.unknown && deed.effect().is_some();
        if !is_unknown {
            moves.push(UnderWay { at: rng.u64(invoked..=returned), operation: number });
        } else if rng.bool() {
            moves.push(UnderWay { at: invoked + rng.u64(..2000), operation: number });
        }
        let returned = Some(returned).filter(|_| !is_unknown);
        operations.push(Operation { deed, invoked, returned, by: format!("client {client}") });
    }
    moves.sort_by_key(|one| one.at);
    let mut state: State = None;
    for UnderWay { operation, .. } in moves {
        let operation = &mut operations[operation];
        let answered = match operation.deed {
            Deed::Get(_) => Deed::Get(state),
            Deed::Put(value, _) => Deed::Put(value, word(value, state)),
            Deed::Create(value, _) if state.is_some() => Deed::Create(value, Found::There),
            Deed::Create(value, _) => Deed::Create(value, Found::Absent),
            Deed::Delete(_) if state.is_some() => Deed::Delete(Found::There),
            Deed::Delete(_) => Deed::Delete(Found::Absent),
        };
        state = answered.step().made(state).expect("what is answered is possible");
        if operation.returned.is_some() {
            operation.deed = answered;
        }
    }
    operations
}

fn word(value: Value, state: State) -> Found {
    match state {
        None => Found::Absent,
        Some(there) if there == value => Found::Same,
        Some(_) => Found::Other,
    }
}

fn shape(rng: &mut Rng, operations: usize) -> Shape {
    Shape {
        clients: rng.u64(1..=8),
        operations,
        unknown: rng.u64(..150),
        contents: Some(rng.u64(2..6)).filter(|_| rng.bool()),
    }
}

fn accepted() -> Result<(), Failed> {
    for seed in seeds(400) {
        let mut rng = Rng::with_seed(seed);
        let shape = shape(&mut rng, 200);
        let made = history(&mut rng, &shape);
        check(None, &made, VISITED_MAX).map_err(|error| replay(seed, error))?;
    }
    Ok(())
}

/// Makes one read see a value that was overwritten before it was asked. `None`: there is no such read and value.
fn make_stale(rng: &mut Rng, operations: &mut [Operation]) -> Option<usize> {
    let known_put = |one: &Operation| match one.deed {
        Deed::Put(value, found) if found != Found::Same => Some((value, one.invoked, one.returned?)),
        Deed::Create(value, Found::Absent) => Some((value, one.invoked, one.returned?)),
        _ => None,
    };
    let puts: Vec<(Value, u64, u64)> = operations.iter().filter_map(known_put).collect();
    let mut reads: Vec<usize> = (0..operations.len()).collect();
    rng.shuffle(&mut reads);
    for read in reads {
        let asked = operations[read].invoked;
        if !matches!(operations[read].deed, Deed::Get(_)) || operations[read].returned.is_none() {
            continue;
        }
        let overwritten = |old: &&(Value, u64, u64)| {
            puts.iter().any(|(_, invoked, returned)| *invoked > old.2 && *returned < asked)
        };
        let old: Vec<_> = puts.iter().filter(overwritten).collect();
        if let Some((value, ..)) = rng.choice(old) {
            operations[read].deed = Deed::Get(Some(*value));
            return Some(read);
        }
    }
    None
}

fn rejected() -> Result<(), Failed> {
    let (mut judged, all) = (0, seeds(400));
    for seed in &all {
        let mut rng = Rng::with_seed(*seed);
        // Each put has its own content: what is overwritten never comes back.
        let shape = Shape { contents: None, ..shape(&mut rng, 200) };
        let mut made = history(&mut rng, &shape);
        let Some(read) = make_stale(&mut rng, &mut made) else { continue };
        judged += 1;
        match check(None, &made, VISITED_MAX) {
            Err(NotLinear::Violation { .. }) => {}
            Ok(_) => return Err(replay(*seed, format!("a stale read passes: {:?}", made[read]))),
            Err(error) => return Err(replay(*seed, error)),
        }
    }
    if judged * 10 < all.len() * 9 { Err(format!("only {judged} were stale").into()) } else { Ok(()) }
}

/// Whether there is an order, by trying all: every operation, with an answer or without, at every place that time allows.
fn is_linear(operations: &[Operation], placed: &mut Vec<bool>, state: State) -> bool {
    let all = 0..operations.len();
    let left: Vec<usize> = all.filter(|index| !placed[*index]).collect();
    let Some(first_end) = left.iter().filter_map(|index| operations[*index].returned).min() else {
        return true;
    };
    left.into_iter().filter(|index| operations[*index].invoked <= first_end).any(|index| {
        let Some(after) = operations[index].deed.step().made(state) else { return false };
        placed[index] = true;
        let is_linear = is_linear(operations, placed, after);
        placed[index] = false;
        is_linear
    })
}

/// A short history of anything: half of these are no register's.
fn any(rng: &mut Rng) -> Vec<Operation> {
    let contents = rng.u64(1..=3);
    let one = |number: u64, rng: &mut Rng| {
        let found = match rng.u8(..4) {
            0 => Found::Absent,
            1 => Found::Other,
            2 => Found::Same,
            _ => Found::Unsaid,
        };
        let is_there = if rng.bool() { Found::There } else { Found::Absent };
        let mut deed = match rng.u8(..10) {
            ..4 => Deed::Get(Some(rng.u64(1..=contents)).filter(|_| rng.u8(..4) > 0)),
            4..6 => Deed::Delete(is_there),
            6..8 => Deed::Create(rng.u64(1..=contents), is_there),
            _ => Deed::Put(rng.u64(1..=contents), found),
        };
        let invoked = rng.u64(..20);
        let mut returned = Some(invoked + rng.u64(1..12));
        if rng.u8(..4) == 0 {
            returned = None;
            deed = match deed {
                Deed::Put(value, _) => Deed::Put(value, Found::Unsaid),
                Deed::Create(value, _) => Deed::Create(value, Found::Unsaid),
                Deed::Delete(_) | Deed::Get(_) => Deed::Delete(Found::Unsaid),
            };
        }
        Operation { deed, invoked, returned, by: format!("client {number}") }
    };
    (0..rng.u64(2..=6)).map(|number| one(number, rng)).collect()
}

fn compared() -> Result<(), Failed> {
    let (mut linear, mut not) = (0, 0);
    for seed in seeds(20_000) {
        let mut rng = Rng::with_seed(seed);
        let history = any(&mut rng);
        let plain = is_linear(&history, &mut vec![false; history.len()], None);
        let judged = check(None, &history, VISITED_MAX);
        let agrees = match &judged {
            Ok(_) => plain,
            Err(NotLinear::Violation { .. }) => !plain,
            Err(NotLinear::GaveUp { .. }) => false,
        };
        if !agrees {
            return Err(replay(
                seed,
                format!("a plain search says {plain}, the checker {judged:?}: {history:#?}"),
            ));
        }
        *if plain { &mut linear } else { &mut not } += 1;
    }
    let one_alone = linear + not == 1;
    assert!(one_alone || (linear > 1000 && not > 1000), "{linear} are linearizable, {not} are not");
    Ok(())
}

fn long() -> Result<(), Failed> {
    // Few contents and many unknown may be too hard, and are said to be: seed 2 with four contents is one of those.
    for (seed, contents) in [(1, None), (5, Some(4)), (3, Some(2)), (4, None)] {
        let mut rng = Rng::with_seed(seed);
        // About half are changes, of which one in 25 is unknown: sixty.
        let shape = Shape { clients: 8, operations: 3000, unknown: 40, contents };
        let mut made = history(&mut rng, &shape);
        let unknown = made.iter().filter(|one| one.returned.is_none()).count();
        let began = Instant::now();
        let visited = check(None, &made, VISITED_MAX).map_err(|error| replay(seed, error))?;
        let passed = began.elapsed();
        let mut stale = None;
        if contents.is_none() {
            make_stale(&mut rng, &mut made).ok_or("no read is stale")?;
            match check(None, &made, VISITED_MAX) {
                Err(NotLinear::Violation { .. }) => stale = Some(began.elapsed() - passed),
                other => return Err(replay(seed, format!("{other:?}"))),
            }
        }
        eprintln!("3000 operations, {unknown} unknown: {visited} states in {passed:?}; stale: {stale:?}");
        assert!(unknown >= 40, "{unknown} unknown");
    }
    Ok(())
}
