//! At the deadline, or at once, the guest goes: what is said, what is asked for, and in which order its pages follow.

use godwit_wire::codec::Blob;

use super::*;

#[test]
fn where_post_copy_is_allowed_the_guest_goes_and_its_pages_follow() {
    for at_once in [false, true] {
        let mut scene = if at_once { Scene::at_once(POST_COPY) } else { Scene::new(POST_COPY) };
        scene.until_paused();
        let begun = if at_once { Duration::ZERO } else { DEADLINE };
        assert!(scene.now >= begun && scene.now < begun + at(150), "{:?}", scene.now);
        assert_eq!(scene.course(), Course::PostCopy);
        let closed = scene.until("it is closed", |a| matches!(a, Action::Send(SourceFrame::Final(_))));
        assert!(matches!(closed, Action::Send(SourceFrame::Final(closed)) if closed.mode == Mode::PostCopy));
        assert!(!scene.go_on_to(scene.now + at(200)).iter().any(is_of_a_copy), "nothing travels unasked");
        let before = scene.arrived.1;
        // The target lacks what the source wrote last; it says so, and is ready.
        scene.session.frame(scene.now, held_nothing()).expect("in turn");
        let complete = TargetFrame::Complete { epoch: Epoch(1) };
        scene.session.frame(scene.now, complete).expect("in turn");
        scene.until("it is proposed", |a| matches!(a, Action::ProposeHandOver(_, Mode::PostCopy)));
        let migration = scene.migration.clone();
        let epoch = Epoch(1);
        scene.agree(Entry::HandOver { migration: migration.clone(), epoch, mode: EntryMode::PostCopy });
        scene.agree(Entry::Running { migration: migration.clone(), epoch: Epoch(2) });
        // No time limit applies any more, and no permission.
        scene.change(NOTHING, Some(at(1)));
        assert!(scene.rest().iter().all(|a| matches!(a, Action::Batch(_))));
        scene.go_on_to(scene.now + DEADLINE * 3);
        assert_eq!(scene.arrived.1 - before, u64::from(PAGES.0), "every page went once");
        scene.agree(Entry::AllPages { migration, epoch: Epoch(2) });
        assert_eq!(scene.rest(), [Action::Finish(Ok(()))]);
        assert!(resumes(&scene.seen).is_empty(), "it went on at the source, too");
    }
}

#[test]
fn what_is_fetched_goes_first_then_what_is_hot() {
    let mut scene = Scene::new(POST_COPY);
    scene.until("it is closed", |a| matches!(a, Action::Send(SourceFrame::Final(_))));
    scene.session.frame(scene.now, held_nothing()).expect("in turn");
    for (first, pages) in [(4000, 3), (4001, 1), (7, 1)] {
        scene.session.frame(scene.now, TargetFrame::Fetch { first, pages }).expect("in turn");
    }
    let runs = |action: Action| match action {
        Action::Fetched(plan) | Action::Batch(plan) => plan.runs,
        other => panic!("{other:?}"),
    };
    let is_of_pages = |a: &Action| matches!(a, Action::Fetched(_) | Action::Batch(_));
    let next = |scene: &mut Scene| runs(scene.until("pages go", is_of_pages));
    assert_eq!(next(&mut scene), [PageRun::new(4000, 3)]);
    assert_eq!(next(&mut scene), [PageRun::new(7, 1)], "a page that is on the way is not sent again");
    // The guest wrote the first half again and again.
    let sent: Vec<u32> =
        std::iter::from_fn(|| Some(next(&mut scene))).take(31).flatten().map(|run| run.first.0).collect();
    assert!(sent.iter().all(|first| *first < HOT_PAGES), "{sent:?}");
    assert!(next(&mut scene).last().expect("pages").first.0 >= HOT_PAGES);
}

#[test]
fn a_fetch_that_can_not_be_is_refused() {
    let mut scene = Scene::new(POST_COPY);
    let fetch = |first, pages| TargetFrame::Fetch { first, pages };
    assert!(scene.session.frame(scene.now, fetch(0, 1)).is_err(), "nothing is missing yet");
    scene.until("it is closed", |a| matches!(a, Action::Send(SourceFrame::Final(_))));
    for (first, pages) in [(0, 0), (0, 257), (PAGES.0, 1), (PAGES.0 - 1, 2), (u32::MAX, u32::MAX)] {
        assert!(scene.session.frame(scene.now, fetch(first, pages)).is_err(), "{first} {pages}");
    }
    for _ in 0..100_000 {
        scene.session.frame(scene.now, fetch(0, 1)).expect("too many are forgotten, not kept");
    }
}

/// The target has no page of the guest.
fn held_nothing() -> TargetFrame {
    TargetFrame::Held { segment: 0, stamps: Blob(vec![0; PAGES.0 as usize * 2]), last: true }
}
