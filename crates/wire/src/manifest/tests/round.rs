//! Everything that is shown or written reads back as it was.

use godwit_domain::guest::GuestSpec;
use godwit_domain::settings::PostCopyTrigger;
use godwit_domain::{Adopted, Overrides, Priority, Qemu, Quantity};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::manifest::*;

#[test]
fn yaml_is_written_for_people() {
    let value = json!({
        "apiVersion": "kubevirt.io/v1",
        "list": [{"a": 1, "b": [true, null]}, [], {}, ["x"]],
        "quoted": ["", "true", "no", "1", "0x1F", "1_0", "2001-01-01", "12:30", "a: b", "y", "-", "a\nb", "\u{2028}", "é"],
        "plain": ["64Mi", "node-a", "a/b.c_d"],
    });
    let expected = "apiVersion: kubevirt.io/v1\nlist:\n  - a: 1\n    b:\n      - true\n      - null\n  - []\n  - {}\n  - - x\nplain:\n  - 64Mi\n  - node-a\n  - a/b.c_d\nquoted:\n";
    let text = yaml(&value);
    assert!(text.starts_with(expected), "{text}");
    let quoted: Vec<&str> = text[expected.len()..].lines().collect();
    assert!(quoted.iter().all(|line| line.starts_with("  - \"") && line.ends_with('"')), "{quoted:?}");
    assert_eq!(documents(&text), Ok(vec![value]));
}

pub(super) fn json_value() -> impl Strategy<Value = Value> {
    let number = prop_oneof![
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_filter_map("JSON has it", |f| serde_json::Number::from_f64(f).map(Value::Number)),
    ];
    let text = prop_oneof!["[ -~]{0,12}", "\\PC{0,8}", any::<String>(), "[a-zA-Z0-9._/-]{1,8}", "a{1200}"];
    let is_text = |c: char| !c.is_ascii_control() || matches!(c, '\n' | '\t' | '\r');
    let text = text.prop_map(move |text| text.chars().filter(|c| is_text(*c)).collect::<String>());
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        number,
        text.clone().prop_map(Value::from)
    ];
    leaf.prop_recursive(5, 40, 6, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..5).prop_map(Value::from),
            btree_map(text.clone(), inner, 0..5).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn some_labels() -> impl Strategy<Value = Labels> {
    btree_map("([a-z]{1,8}\\.io/)?[a-zA-Z]{1,6}", "([a-zA-Z0-9]([a-z._-]{0,6}[a-zA-Z0-9])?)?", 0..4)
}

fn quantity() -> impl Strategy<Value = Quantity> {
    prop_oneof![0..=u64::MAX, (0..40_u64).prop_map(|n| 1 << n)].prop_map(Quantity::from_bytes)
}

fn overrides(priority: bool) -> impl Strategy<Value = Overrides> {
    let seconds = || option::of(0..=i32::MAX as u64);
    let truths = vec(option::of(any::<bool>()), 4);
    let trigger = option::of(prop_oneof![Just(PostCopyTrigger::Deadline), Just(PostCopyTrigger::Early)]);
    let classes = option::of(prop_oneof![Just(Priority::Low), Just(Priority::Normal), Just(Priority::High)]);
    let all = (
        option::of(quantity()),
        seconds(),
        seconds(),
        option::of(1..=2_000_000_u64),
        truths,
        trigger,
        classes,
    );
    all.prop_map(move |(bandwidth, completion, progress, downtime, truths, trigger, class)| Overrides {
        bandwidth_per_migration: bandwidth,
        completion_timeout_per_gib: completion,
        progress_timeout: progress,
        max_downtime_ms: downtime,
        allow_post_copy: truths[0],
        post_copy_trigger: trigger,
        allow_auto_converge: truths[1],
        allow_workload_disruption: truths[2],
        audit: truths[3],
        priority: class.filter(|_| priority),
    })
}

fn cluster_settings() -> impl Strategy<Value = ClusterSettings> {
    let limits = vec(option::of(0..=i32::MAX as u32), 3);
    let network = option::of("[a-z0-9./-]{1,63}");
    (overrides(false), limits, network, option::of(quantity()), option::of(0..=i32::MAX as u64)).prop_map(
        |(migration, limits, network, node_bandwidth, recovery_timeout)| ClusterSettings {
            migration,
            parallel_migrations_per_cluster: limits[0],
            parallel_outbound_migrations_per_node: limits[1],
            parallel_inbound_migrations_per_node: limits[2],
            network,
            node_bandwidth,
            recovery_timeout,
        },
    )
}

fn body() -> impl Strategy<Value = Body> {
    let size = || quantity().prop_map(Quantity::bytes);
    let pattern = prop_oneof![Just("uniform"), Just("hot-set"), Just("streaming")];
    let runner = (size(), size(), pattern, 0..=100_u8, 0..=100_u8, 1..=u8::MAX, any::<u64>(), 1..=u64::MAX);
    let memory = (1..=u32::MAX).prop_map(|pages| u64::from(pages) * 4096);
    let adopted = (any::<i32>(), any::<u64>(), "[a-z/,\"]{1,9}")
        .prop_map(|(pid, started_ticks, qmp)| Adopted { pid, started_ticks, qmp });
    let qemu = ("[a-z/-]{1,9}", vec("[ -~]{0,9}", 0..5), "[a-z.]{1,5}", option::of(adopted))
        .prop_map(|(program, arguments, ram_id, adopted)| Qemu { program, arguments, ram_id, adopted });
    let runs = (option::of(runner), option::of(qemu));
    (memory, runs, some_labels(), option::of(size()), any::<bool>()).prop_map(
        |(memory_bytes, (runner, qemu), node_selector, local_disks, critical)| {
            let idle = GuestSpec::idle(memory_bytes);
            let spec = match runner {
                None => GuestSpec { qemu, ..idle },
                Some((set, rate, pattern, zero, compressible, threads, seed, tick)) => GuestSpec {
                    memory_bytes,
                    working_set_bytes: set,
                    dirty_rate_bytes_per_second: rate,
                    pattern: pattern.to_owned(),
                    zero_percent: zero,
                    compressible_percent: compressible,
                    threads,
                    seed,
                    tick_interval_ms: tick,
                    qemu,
                },
            };
            Body { spec, node_selector, local_disks_bytes: local_disks.unwrap_or(0), critical }
        },
    )
}

fn manifest() -> impl Strategy<Value = Manifest> {
    let label = || "[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?";
    let guest = move || {
        (label(), label())
            .prop_map(|(space, name)| format!("{space}/{name}").parse::<GuestName>().expect("a name"))
    };
    let kind = prop_oneof![Just(SettingsKind::HyperConverged), Just(SettingsKind::KubeVirt)];
    let settings = (kind, label(), label(), cluster_settings())
        .prop_map(|(kind, name, namespace, settings)| Manifest::Settings { kind, name, namespace, settings });
    let policy = ("[a-z0-9]{1,5}(\\.[a-z0-9]{1,5}){0,3}", some_labels(), some_labels(), overrides(true))
        .prop_map(|(name, namespace_selector, guest_selector, overrides)| Manifest::Policy {
            name: name.parse().expect("a name"),
            policy: Policy { namespace_selector, guest_selector, overrides },
        });
    let namespace = (label(), some_labels()).prop_map(|(name, labels)| Manifest::Namespace { name, labels });
    let node = (label(), some_labels(), any::<bool>()).prop_map(|(name, labels, cordoned)| Manifest::Node {
        name: name.parse().expect("a name"),
        labels,
        cordoned,
    });
    let machine = (guest(), some_labels(), any::<bool>(), option::of(some_labels()), option::of(body()))
        .prop_map(|(name, labels, runs, template_labels, body)| Manifest::Machine {
            name,
            machine: Machine { labels, runs, template_labels, body },
        });
    let instance = (guest(), some_labels(), option::of(body()))
        .prop_map(|(name, labels, body)| Manifest::Instance { name, labels, body });
    let name = prop_oneof![
        label().prop_map(|name| NameWish::Named(name.parse().expect("a name"))),
        "[a-z0-9][a-z0-9-]{0,57}".prop_map(NameWish::Generated),
    ];
    let seconds = option::of(0..=i32::MAX as u64);
    let wish = (name, guest(), some_labels(), overrides(true), seconds).prop_map(
        |(name, guest, selector, overrides, unschedulable_timeout_seconds)| {
            let (namespace, priority) = (guest.namespace().to_owned(), overrides.priority);
            let wish =
                MigrationWish { namespace, name, guest, selector, priority, unschedulable_timeout_seconds };
            Manifest::Migration(wish)
        },
    );
    prop_oneof![settings, policy, namespace, node, machine, instance, wish]
}

proptest! {
    #[test]
    fn what_is_shown_reads_back(manifest in manifest()) {
        let shown = show(&manifest);
        let (again, _) = read(&shown).expect("what was shown");
        prop_assert_eq!(&again, &manifest);
        prop_assert_eq!(documents(&yaml(&shown)), Ok(vec![shown]));
    }

    #[test]
    fn what_is_written_reads_back(value in json_value()) {
        let all = if value.is_null() { vec![] } else { vec![value.clone()] };
        let text = yaml(&value);
        prop_assert_eq!(documents(&text), Ok(all), "{}", text);
    }
}
