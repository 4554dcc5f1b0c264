//! A guest that does not converge, and may be throttled.

use super::*;

fn throttles(actions: &[Action]) -> Vec<u8> {
    let percent =
        |action: &Action| if let Action::Throttle(percent) = action { Some(*percent) } else { None };
    actions.iter().filter_map(percent).collect()
}

/// A scene in which the guest is throttled to 40 %.
fn throttled(allowed: Allowed, deadline: Option<Duration>) -> Scene {
    let mut scene = Scene::with(limits(allowed, deadline));
    scene.until("40 %", |action| *action == Action::Throttle(40));
    scene.seen.clear();
    scene
}

#[test]
fn a_throttle_goes_up_in_steps_and_is_seen() {
    let mut scene = Scene::with(limits(THROTTLE, None));
    scene.go_on_to(DEADLINE * 3);
    assert_eq!(throttles(&scene.seen), [0, 20, 30, 40, 50, 60, 70, 80], "0 at first, for what was before");
    let snapshot = scene.session.snapshot(scene.now);
    assert_eq!((snapshot.throttle_percent, snapshot.course), (80, Course::Throttled));
}

#[test]
fn nobody_is_throttled_without_permission() {
    let mut scene = Scene::with(limits(NOTHING, None));
    scene.go_on_to(DEADLINE * 3);
    assert_eq!(throttles(&scene.seen), [0]);
}

#[test]
fn every_ending_lets_the_guest_run_freely() {
    // The deadline passes: at once, though the log says nothing.
    let mut scene = throttled(THROTTLE, None);
    scene.change(THROTTLE, Some(at(1)));
    scene.until_given_up();
    assert_eq!(throttles(&scene.seen), [0], "a time limit");

    let mut scene = throttled(THROTTLE, None);
    scene.session.fail("the link is lost".into());
    scene.rest();
    assert_eq!(throttles(&scene.seen), [0], "a failure");

    let mut scene = throttled(THROTTLE, None);
    scene.agree_to_the_end(Side::Operator);
    let rest: Vec<_> = scene.rest().into_iter().filter(|action| !matches!(action, Action::Send(_))).collect();
    let over = Action::Finish(Err("agreed".into()));
    assert_eq!(rest, [Action::Throttle(0), Action::Resume(Epoch(2)), over], "an operator");

    let mut scene = throttled(THROTTLE, None);
    scene.change(NOTHING, None);
    scene.go_on_to(scene.now + DEADLINE);
    assert_eq!(throttles(&scene.seen), [0], "a permission that is withdrawn");
    assert_eq!(scene.course(), Course::Rounds);
}

#[test]
fn a_paused_guest_is_not_throttled_wherever_it_goes_on() {
    let mut scene = throttled(Allowed { throttle: true, ..PAUSE }, None);
    scene.change(Allowed { throttle: true, ..PAUSE }, Some(scene.now));
    scene.until("the hand-over is proposed", |a| matches!(a, Action::ProposeHandOver(..)));
    let of_the_runner: Vec<_> = scene
        .seen
        .iter()
        .filter(|a| matches!(a, Action::Pause(_) | Action::Save | Action::Throttle(_)))
        .cloned()
        .collect();
    assert_eq!(
        of_the_runner,
        [Action::Pause(Epoch(1)), Action::Save, Action::Throttle(0)],
        "behind the state, so that the pause gets no longer"
    );
    assert_eq!(scene.session.snapshot(scene.now).throttle_percent, 0);
}
