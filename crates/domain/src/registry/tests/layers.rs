//! A change of any layer counts at once for what runs, is taken down on whom it touches, and rings at both ends.

use super::*;
use std::time::Duration;

fn timeout(s: u64) -> Overrides {
    Overrides { progress_timeout: Some(s), ..Overrides::default() }
}

/// `progressTimeout` as the source of guest 0 is told it, in seconds.
fn told_s(registry: &Registry) -> Option<u64> {
    let settings = registry.settings_of(&registry.guests[&GuestUid(0)]);
    settings.limits.progress_timeout.map(|timeout| timeout.as_secs())
}

/// Guest 0 with `tier=gold` copies from a to b; guest 1 without labels waits.
fn running() -> Registry {
    let mut registry = cluster(2);
    apply(&mut registry, limits(1, 9, 9));
    apply(&mut registry, put_instance(0, &[("tier", "gold")], None));
    ask(&mut registry, 0, None);
    ask(&mut registry, 1, None);
    admit_all(&mut registry);
    copy(&mut registry, 0);
    registry
}

fn rings_at(nodes: &[&str], n: u64) -> BTreeSet<Effect> {
    nodes.iter().map(|node| Effect { node: name(node), guest: GuestUid(n) }).collect()
}

/// Applies a change that is for guest 0 alone: it rings at both of its nodes and is taken down on it, with these words.
fn changes(registry: &mut Registry, command: Command, words: &[&str]) {
    let before = (record(registry, 0).changes.len(), record(registry, 1).changes.len());
    assert_eq!(apply(registry, command), rings_at(&["a", "b"], 0), "{words:?}");
    let changes = &record(registry, 0).changes;
    assert_eq!((changes.len(), record(registry, 1).changes.len()), (before.0 + 1, before.1), "{words:?}");
    let what = &changes.last().expect("a change").what;
    assert!(words.iter().all(|word| what.contains(word)), "{words:?} are not in {what:?}");
    assert_eq!(changes.last().expect("a change").time_ms, registry.time_ms);
}

/// Applies a change that changes nothing for either.
fn changes_nothing(registry: &mut Registry, command: Command) {
    let before = (record(registry, 0).clone(), record(registry, 1).clone());
    assert_eq!(apply(registry, command), BTreeSet::new());
    assert_eq!((record(registry, 0), record(registry, 1)), (&before.0, &before.1));
}

#[test]
fn a_policy_that_is_edited_or_deleted_counts_for_a_running_migration_at_once() {
    let mut registry = running();
    assert_eq!(told_s(&registry), Some(150));
    let put = put_policy("p", &[("tier", "gold")], timeout(7));
    changes(
        &mut registry,
        put.clone(),
        &["policy p:", "policy in force none → p", "progressTimeout 150 → 7"],
    );
    assert_eq!((told_s(&registry), &record(&registry, 0).policy), (Some(7), &Some(policy_name("p"))));
    changes_nothing(&mut registry, put);
    let edited = put_policy("p", &[("tier", "gold")], timeout(0));
    changes(&mut registry, edited, &["policy p: progressTimeout 7 → 0"]);
    assert_eq!(told_s(&registry), None, "an explicit 0 is a value");
    changes_nothing(&mut registry, put_policy("q", &[("tier", "silver")], timeout(9)));
    let delete = Command::DeletePolicy { name: policy_name("p") };
    changes(
        &mut registry,
        delete,
        &["policy p was deleted:", "in force p → none", "progressTimeout 0 → 150"],
    );
    assert_eq!((told_s(&registry), &record(&registry, 0).policy), (Some(150), &None));
    let gone = Command::DeletePolicy { name: policy_name("p") };
    assert!(refused(&mut registry, gone).contains("no policy p"));
}

#[test]
fn labels_count_as_they_stand_now_whatever_they_are_labels_of() {
    let mut registry = running();
    let selectors = Policy { namespace_selector: labels(&[("env", "prod")]), ..Policy::default() };
    let of_project = Policy { overrides: timeout(3), ..selectors };
    apply(&mut registry, put_policy("silver", &[("tier", "silver")], timeout(5)));
    changes(&mut registry, put_instance(0, &[("tier", "silver")], None), &["none → silver", "150 → 5"]);
    // Labels of the template count instead of the instance's own.
    let machine = |pairs: Option<&[(&str, &str)]>| Command::PutMachine {
        name: guest_name(0),
        machine: Machine {
            labels: labels(&[("tier", "silver")]),
            runs: true,
            template_labels: pairs.map(labels),
            body: None,
        },
        home: None,
    };
    changes(&mut registry, machine(Some(&[("tier", "bronze")])), &["its VirtualMachine:", "silver → none"]);
    changes_nothing(&mut registry, put_instance(0, &[("tier", "silver"), ("x", "y")], None));
    changes_nothing(&mut registry, machine(Some(&[("tier", "iron")])));
    changes(&mut registry, machine(None), &["none → silver"]);
    changes(&mut registry, machine(Some(&[])), &["silver → none"]);
    changes(&mut registry, machine(None), &["none → silver"]);
    // Those of the project count for both guests.
    let put = Command::PutPolicy { name: policy_name("project"), policy: of_project };
    changes_nothing(&mut registry, put);
    let both: BTreeSet<Effect> = &rings_at(&["a", "b"], 0) | &rings_at(&["a"], 1);
    let namespace = |pairs| Command::PutNamespace { name: "default".into(), labels: labels(pairs) };
    assert_eq!(apply(&mut registry, namespace(&[("env", "prod")])), both);
    let policy = |registry: &Registry, n| record(registry, n).policy.as_ref().map(PolicyName::to_string);
    let in_force = [policy(&registry, 0), policy(&registry, 1)];
    assert_eq!(in_force, ["project", "project"].map(|name| Some(name.to_owned())), "env sorts before tier");
    assert_eq!(told_s(&registry), Some(3));
    changes_nothing(&mut registry, namespace(&[("env", "prod"), ("team", "a")]));
    let delete = Command::DeleteNamespace { name: "default".into() };
    assert_eq!(apply(&mut registry, delete), both);
    assert_eq!([policy(&registry, 0), policy(&registry, 1)], [Some("silver".to_owned()), None]);
    let elsewhere = Command::PutNamespace { name: "lab".into(), labels: labels(&[("env", "prod")]) };
    changes_nothing(&mut registry, elsewhere);
}

#[test]
fn a_key_that_is_deleted_from_the_clusters_settings_has_its_default_again() {
    let mut registry = running();
    let before = registry.settings.clone();
    let settings = ClusterSettings { migration: timeout(9), recovery_timeout: Some(5), ..before.clone() };
    let both: BTreeSet<Effect> = &rings_at(&["a", "b"], 0) | &rings_at(&["a"], 1);
    assert_eq!(apply(&mut registry, Command::PutSettings { settings }), both, "who waits hears it too");
    let what = record(&registry, 0).changes.last().expect("a change").what.clone();
    assert_eq!(what, "the cluster's settings: progressTimeout 150 → 9, recoveryTimeout 60 → 5");
    assert_eq!(told_s(&registry), Some(9));
    apply(&mut registry, Command::PutSettings { settings: before.clone() });
    assert_eq!(told_s(&registry), Some(150));
    let settings = registry.settings_of(&registry.guests[&GuestUid(0)]);
    assert_eq!(settings.recovery_timeout, Some(Duration::from_secs(60)));
    changes_nothing(&mut registry, Command::PutSettings { settings: before });
    changes_nothing(&mut registry, limits(1, 8, 8));
    let class = Overrides { priority: Some(Priority::High), ..Overrides::default() };
    let settings = ClusterSettings { migration: class, ..ClusterSettings::default() };
    assert!(refused(&mut registry, Command::PutSettings { settings }).contains("left to policies"));
}

#[test]
fn a_migrations_own_settings_are_above_the_policys() {
    let mut registry = running();
    let set = |overrides| Command::Set { migration: migration(0), overrides };
    changes(&mut registry, set(timeout(11)), &["set by an operator: progressTimeout 150 → 11"]);
    let put = put_policy("p", &[("tier", "gold")], timeout(7));
    changes(&mut registry, put, &["policy in force none → p"]);
    assert!(!record(&registry, 0).changes.last().expect("a change").what.contains("progressTimeout"));
    assert_eq!(told_s(&registry), Some(11));
    changes_nothing(&mut registry, set(timeout(11)));
    changes_nothing(&mut registry, set(Overrides::default()));
    assert!(
        refused(&mut registry, set(Overrides { max_downtime_ms: Some(0), ..timeout(1) }))
            .contains("maxDowntimeMs")
    );
    // Asked for again in the first words, it is still the same migration.
    apply(&mut registry, migrate(0, 0, Wish::default()));
    succeed(&mut registry, 0);
    assert!(refused(&mut registry, set(timeout(1))).contains("m0 is over"));
    assert_eq!(told_s(&registry), Some(7), "the next one does not inherit it");
}

#[test]
fn a_critical_guest_never_goes_post_copy_and_one_that_becomes_critical_hears_it_at_once() {
    let mut registry = running();
    let allow = Overrides { allow_post_copy: Some(true), ..Overrides::default() };
    apply(&mut registry, put_policy("p", &[("tier", "gold")], allow));
    let post_copy =
        |registry: &Registry| registry.settings_of(&registry.guests[&GuestUid(0)]).limits.allowed.post_copy;
    assert!(post_copy(&registry));
    let body = |critical| Some(Body { critical, ..Body::of(GuestSpec::idle(GIB)) });
    let put = put_instance(0, &[("tier", "gold")], body(true));
    changes(&mut registry, put.clone(), &["godwit.dev/critical false → true"]);
    assert!(!post_copy(&registry));
    changes_nothing(&mut registry, put);
    apply(&mut registry, Command::Set { migration: migration(0), overrides: allow });
    assert!(!post_copy(&registry), "nor does its migration's own setting allow it");
    let machine = Machine { labels: Labels::new(), runs: true, template_labels: None, body: body(false) };
    let put = Command::PutMachine { name: guest_name(0), machine, home: None };
    changes(&mut registry, put, &["its VirtualMachine: godwit.dev/critical true → false"]);
    assert!(post_copy(&registry));
}

#[test]
fn what_is_over_is_not_touched() {
    let mut registry = running();
    succeed(&mut registry, 0);
    let before = record(&registry, 0).clone();
    apply(&mut registry, put_policy("p", &[], timeout(7)));
    assert_eq!(record(&registry, 0), &before);
    assert_eq!(record(&registry, 1).changes.len(), 1);
}
