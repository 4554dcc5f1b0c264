//! A request that is repeated gets its first answer, for an hour and as long as it is among the last 10,000.

use super::*;

fn key(id: &str, digest: u64) -> Option<RequestKey> {
    Some(RequestKey { id: id.to_owned(), digest, made: Some("m0".to_owned()) })
}

fn request(registry: &mut Registry, id: &str, digest: u64, command: Command) -> Applied {
    let time_ms = registry.time_ms;
    registry.apply(Stamped { time_ms, request: key(id, digest), command })
}

#[test]
fn a_repeated_request_has_no_second_effect() {
    let mut registry = cluster(1);
    let ask = migrate(0, 0, Wish::default());
    assert!(request(&mut registry, "r", 1, ask.clone()).is_ok());
    end(&mut registry, 0, Side::Operator);
    let before = registry.state.clone();
    assert_eq!(request(&mut registry, "r", 1, ask), Ok(BTreeSet::new()));
    let another = migrate(0, 1, Wish::default());
    assert_eq!(
        request(&mut registry, "r", 1, another),
        Ok(BTreeSet::new()),
        "the digest says that it is the same"
    );
    assert_eq!(registry.state, before);
    let answered = registry.requests.answer("r", 1).expect("kept").expect("the same");
    assert_eq!((answered.made.as_deref(), &answered.outcome), (Some("m0"), &Ok(())));
}

#[test]
fn a_repeated_request_gets_the_first_refusal_even_if_it_would_be_granted_now() {
    let mut registry = cluster(0);
    let ask = migrate(0, 0, Wish::default());
    let refusal = Err(Refusal::NoGuest(GuestUid(0)));
    assert_eq!(request(&mut registry, "r", 1, ask.clone()), refusal);
    apply(&mut registry, create(0, 0, name("a")));
    entry(&mut registry, 0, Entry::Born { instance: instance(0) });
    assert_eq!(request(&mut registry, "r", 1, ask.clone()), refusal);
    assert!(request(&mut registry, "another", 1, ask).is_ok());
}

#[test]
fn another_request_under_the_same_id_is_refused_and_the_first_answer_stays() {
    let mut registry = cluster(1);
    assert!(request(&mut registry, "r", 1, migrate(0, 0, Wish::default())).is_ok());
    let taken = request(&mut registry, "r", 2, limits(1, 1, 1)).expect_err("another request");
    assert!(taken.to_string().contains("request id \"r\" was used for another request"), "{taken}");
    assert_eq!(registry.limits(), ParallelLimits::default());
    assert_eq!(request(&mut registry, "r", 1, migrate(0, 0, Wish::default())), Ok(BTreeSet::new()));
}

#[test]
fn an_answer_is_kept_for_an_hour_of_replicated_time() {
    let mut registry = cluster(0);
    assert!(request(&mut registry, "r", 1, limits(1, 1, 1)).is_ok());
    apply(&mut registry, limits(2, 2, 2));
    wait(&mut registry, 3_600_000);
    assert!(request(&mut registry, "r", 1, limits(1, 1, 1)).is_ok());
    assert_eq!(registry.limits().cluster, 2, "an hour to the millisecond: still the first answer");
    wait(&mut registry, 1);
    assert!(request(&mut registry, "r", 7, limits(3, 3, 3)).is_ok(), "forgotten: the id is free");
    assert_eq!(registry.limits().cluster, 3);
}

#[test]
fn the_last_ten_thousand_are_kept() {
    let mut registry = cluster(0);
    for n in 0..10_001 {
        assert!(
            request(
                &mut registry,
                &format!("r{n}"),
                1,
                Command::PutSettings { settings: registry_settings(n) }
            )
            .is_ok()
        );
    }
    assert!(registry.requests.answer("r0", 1).is_none(), "the oldest");
    assert!(registry.requests.answer("r1", 1).is_some());
    assert!(request(&mut registry, "r1", 1, limits(9, 9, 9)).is_ok());
    assert_ne!(registry.limits().cluster, 9, "it was answered before");
    assert!(request(&mut registry, "r0", 1, limits(9, 9, 9)).is_ok());
    assert_eq!(registry.limits().cluster, 9, "it was not");
    assert!(registry.requests.answer("r1", 1).is_none(), "now it is the oldest");
}

fn registry_settings(n: u64) -> ClusterSettings {
    ClusterSettings { recovery_timeout: Some(n), ..ClusterSettings::default() }
}
