//! Manifests as people have them: the seed's five examples and a project with every kind, read to exact values.

use godwit_domain::labels::Labels;
use godwit_domain::settings::PostCopyTrigger;
use godwit_domain::{ClusterSettings, GuestSpec, Overrides, Priority, Quantity};
use godwit_wire::manifest::{
    Manifest, MigrationWish, NameWish, SettingsKind, documents, read, read_in, show, yaml,
};

const SEED_LIMITS: &str = include_str!("manifests/seed-1-limits.yaml");
const SEED_HEAVY: &str = include_str!("manifests/seed-2-heavy.yaml");
const SEED_LABELS: &str = include_str!("manifests/seed-3-labels.yaml");
const SEED_POLICY: &str = include_str!("manifests/seed-4-policy.yaml");
const SEED_MIGRATION: &str = include_str!("manifests/seed-5-migration.yaml");
const PROJECT: &str = include_str!("manifests/project.yaml");

fn labels<const N: usize>(pairs: [(&str, &str); N]) -> Labels {
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

/// The only object of a text, with its notes.
fn one(text: &str) -> (Manifest, Vec<String>) {
    let documents = documents(text).expect(text);
    assert_eq!(documents.len(), 1);
    read(&documents[0]).expect(text)
}

fn settings(bandwidth: u64, timeout: u64, outbound: u32, post_copy: bool) -> ClusterSettings {
    ClusterSettings {
        migration: Overrides {
            bandwidth_per_migration: Some(Quantity::from_bytes(bandwidth)),
            completion_timeout_per_gib: Some(timeout),
            progress_timeout: Some(150),
            allow_post_copy: Some(post_copy),
            ..Overrides::default()
        },
        parallel_migrations_per_cluster: Some(5),
        parallel_outbound_migrations_per_node: Some(outbound),
        ..ClusterSettings::default()
    }
}

#[test]
fn the_seeds_settings_are_read_as_they_stand() {
    for (text, expected) in
        [(SEED_LIMITS, settings(67_108_864, 800, 2, false)), (SEED_HEAVY, settings(0, 150, 1, true))]
    {
        let (manifest, notes) = one(text);
        let expected = Manifest::Settings {
            kind: SettingsKind::HyperConverged,
            name: "kubevirt-hyperconverged".to_owned(),
            namespace: "openshift-cnv".to_owned(),
            settings: expected,
        };
        assert_eq!((manifest, notes), (expected, vec![]));
    }
}

#[test]
fn a_deleted_key_is_unset_and_a_newer_version_holds_the_block_elsewhere() {
    let (manifest, _) = one(&SEED_LIMITS.replace("    progressTimeout: 150\n", ""));
    let Manifest::Settings { settings: read, .. } = manifest else { panic!("settings") };
    assert_eq!(read.migration.progress_timeout, None);

    let head = SEED_LIMITS.replace("hco.kubevirt.io/v1beta1", "hco.kubevirt.io/v1");
    let (head, block) = head.split_once("spec:\n").expect("a spec");
    let deeper: String = block.lines().map(|line| format!("  {line}\n")).collect();
    let newer = format!("{head}spec:\n  virtualization:\n{deeper}");
    let Manifest::Settings { settings: read, .. } = one(&newer).0 else { panic!("settings") };
    assert_eq!(read, settings(67_108_864, 800, 2, false));
}

#[test]
fn the_seeds_labels_are_read_once_the_placeholder_is_filled_in() {
    let document = documents(SEED_LABELS).expect("YAML");
    let error = read(&document[0]).expect_err("a placeholder").to_string();
    assert!(error.contains("metadata.name: fill in the placeholder <vm_name>"), "{error}");
    // The name alone is not enough: the label repeats it.
    let document = documents(&SEED_LABELS.replacen("<vm_name>", "vm1", 1)).expect("YAML");
    let error = read(&document[0]).expect_err("a placeholder").to_string();
    assert!(error.contains("kubevirt.io/domain") && error.contains("<vm_name>"), "{error}");

    let (manifest, notes) = one(&SEED_LABELS.replace("<vm_name>", "vm1"));
    let Manifest::Machine { name, machine } = manifest else { panic!("a machine") };
    assert_eq!(name.to_string(), "default/vm1");
    assert_eq!(machine.labels, labels([("app", "my-app"), ("environment", "production")]));
    let template = [
        ("kubevirt.io/domain", "vm1"),
        ("kubevirt.io/size", "large"),
        ("kubevirt.io/environment", "production"),
    ];
    assert_eq!(machine.template_labels, Some(labels(template)));
    assert_eq!((machine.runs, machine.body), (true, None));
    assert_eq!(
        notes,
        ["apiVersion migrations.kubevirt.io/v1alpha1 is read as kubevirt.io/v1 for a VirtualMachine"]
    );
}

#[test]
fn the_seeds_policy_asks_for_three_labels_and_sets_nothing() {
    let document = documents(SEED_POLICY).expect("YAML");
    let error = read(&document[0]).expect_err("a placeholder").to_string();
    assert!(error.contains("fill in the placeholder <migration_policy>"), "{error}");

    let (manifest, notes) = one(&SEED_POLICY.replace("<migration_policy>", "production"));
    let Manifest::Policy { name, policy } = manifest else { panic!("a policy") };
    assert_eq!((name.as_str(), notes), ("production", vec![]));
    assert_eq!(policy.namespace_selector, labels([("hpc-workloads", "True"), ("xyz-workloads-type", "")]));
    assert_eq!(policy.guest_selector, labels([("kubevirt.io/environment", "production")]));
    assert_eq!(policy.overrides, Overrides::default());
}

#[test]
fn the_seeds_migration_asks_for_a_node_for_this_attempt() {
    let (manifest, notes) = one(SEED_MIGRATION);
    let selector =
        [("accelerator", "gpu-enabled23"), ("kubernetes.io/hostname", "ip-172-28-114-199.example")];
    let wish = MigrationWish {
        namespace: "default".to_owned(),
        name: NameWish::Named("migration-job".parse().expect("a name")),
        guest: "default/vmi-fedora".parse().expect("a name"),
        selector: labels(selector),
        priority: None,
        unschedulable_timeout_seconds: None,
    };
    assert_eq!((manifest, notes), (Manifest::Migration(wish), vec![]));
    let document = documents(SEED_MIGRATION).expect("YAML");
    let (elsewhere, _) = read_in(&document[0], "lab").expect("a migration");
    assert_eq!((elsewhere.namespace().as_deref(), elsewhere.name().as_str()), (Some("lab"), "migration-job"));
}

/// Every object of the project, by its kind.
fn project() -> Vec<(Manifest, Vec<String>)> {
    documents(PROJECT).expect("YAML").iter().map(|document| read(document).expect("a manifest")).collect()
}

#[test]
fn each_object_of_a_project_is_read_and_shown_and_read_again() {
    let all = project();
    let kinds: Vec<String> = all.iter().map(|(manifest, _)| manifest.kind().to_string()).collect();
    assert_eq!(
        kinds,
        [
            "Namespace",
            "Node",
            "MigrationPolicy",
            "VirtualMachine",
            "VirtualMachineInstance",
            "VirtualMachineInstanceMigration",
            "KubeVirt"
        ]
    );
    for (manifest, _) in &all {
        let text = yaml(&show(manifest));
        let again = documents(&text).expect("what was written");
        let (again, notes) = read(&again[0]).expect("what was shown");
        assert_eq!((&again, notes), (manifest, vec![]), "{text}");
    }
}

#[test]
fn what_is_ignored_is_named_in_one_note() {
    let notes: Vec<Vec<String>> = project().into_iter().map(|(_, notes)| notes).collect();
    assert_eq!(notes[0], ["ignored: spec.finalizers"]);
    assert_eq!(notes[1], ["ignored: spec.podCIDR, spec.taints"]);
    assert_eq!(notes[2], [""; 0]);
    let guest = "spec.template.spec";
    assert_eq!(notes[3][0], format!("ignored: {guest}.evictionStrategy (a drain moves every guest)"));
    assert_eq!(notes[3][1], format!("ignored: {guest}.tolerations (nodes have no taints here)"));
    assert_eq!(notes[3].len(), 3);
    for path in [
        "domain.memory.hugepages",
        "domain.resources.limits",
        "domain.resources.requests.cpu",
        "domain.cpu",
        "domain.devices",
        "volumes[0].containerDisk",
        "volumes[3].cloudInitNoCloud",
        "networks",
        "terminationGracePeriodSeconds",
    ] {
        assert!(notes[3][2].contains(&format!("{guest}.{path}")), "{path}: {}", notes[3][2]);
    }
    assert!(notes[3][2].contains("spec.dataVolumeTemplates") && !notes[3][2].contains("emptyDisk"));
    assert!(notes[4][0].contains("spec.volumes[0].cloudInitNoCloud"), "{:?}", notes[4]);
    assert_eq!(notes[5], [""; 0]);
    let ignored = "ignored: spec.configuration.developerConfiguration, \
                   spec.configuration.migrations.nodeDrainTaintKey, \
                   spec.configuration.migrations.matchSELinuxLevelOnMigration, \
                   spec.configuration.migrations.utilityVolumesTimeout, \
                   spec.configuration.migrations.disableTLS, \
                   spec.configuration.migrations.unsafeMigrationOverride, \
                   spec.imagePullPolicy";
    assert_eq!(notes[6], [ignored]);
}

#[test]
fn the_projects_objects_have_these_values() {
    let all: Vec<Manifest> = project().into_iter().map(|(manifest, _)| manifest).collect();
    let project_labels = labels([("hpc-workloads", "True"), ("kubernetes.io/metadata.name", "shop")]);
    assert_eq!(all[0], Manifest::Namespace { name: "shop".to_owned(), labels: project_labels });
    let node_labels = labels([("accelerator", "gpu-enabled23"), ("kubernetes.io/os", "linux")]);
    let name = "node-a".parse().expect("a name");
    assert_eq!(all[1], Manifest::Node { name, labels: node_labels, cordoned: true });

    let Manifest::Policy { name, policy } = &all[2] else { panic!("a policy") };
    assert_eq!(name.as_str(), "careful.databases");
    let overrides = Overrides {
        bandwidth_per_migration: Some(Quantity::from_bytes(222_208)),
        completion_timeout_per_gib: Some(23),
        progress_timeout: Some(0),
        max_downtime_ms: Some(900),
        allow_post_copy: Some(true),
        post_copy_trigger: Some(PostCopyTrigger::Early),
        allow_auto_converge: Some(false),
        allow_workload_disruption: Some(false),
        audit: Some(true),
        priority: Some(Priority::High),
    };
    assert_eq!(policy.overrides, overrides);
    assert_eq!(policy.guest_selector, labels([("app", "database")]));

    let Manifest::Migration(wish) = &all[5] else { panic!("a migration") };
    assert_eq!(wish.name, NameWish::Generated("move-till-".to_owned()));
    assert_eq!(wish.guest.to_string(), "shop/till");
    assert_eq!((wish.priority, wish.unschedulable_timeout_seconds), (Some(Priority::Low), Some(0)));

    let Manifest::Settings { kind: SettingsKind::KubeVirt, settings, .. } = &all[6] else {
        panic!("settings")
    };
    let expected = ClusterSettings {
        migration: Overrides {
            bandwidth_per_migration: Some(Quantity::from_bytes(1_000_000)),
            completion_timeout_per_gib: Some(1000),
            max_downtime_ms: Some(2_000_000),
            allow_auto_converge: Some(true),
            allow_workload_disruption: Some(true),
            post_copy_trigger: Some(PostCopyTrigger::Early),
            ..Overrides::default()
        },
        parallel_migrations_per_cluster: Some(5),
        parallel_outbound_migrations_per_node: Some(2),
        parallel_inbound_migrations_per_node: Some(0),
        network: Some("migration-net".to_owned()),
        node_bandwidth: Some(Quantity::from_bytes(1_610_612_736)),
        recovery_timeout: Some(0),
    };
    assert_eq!(*settings, expected);
}

#[test]
fn the_projects_guests_have_these_values() {
    let all: Vec<Manifest> = project().into_iter().map(|(manifest, _)| manifest).collect();
    let Manifest::Machine { name, machine } = &all[3] else { panic!("a machine") };
    assert_eq!((name.to_string().as_str(), machine.runs), ("shop/till", false));
    assert_eq!(machine.labels, labels([("team", "sales")]));
    assert_eq!(machine.template_labels, Some(labels([("app", "database")])));
    let body = machine.body.as_ref().expect("a body");
    let spec = GuestSpec {
        memory_bytes: 64 << 20,
        working_set_bytes: 16 << 20,
        dirty_rate_bytes_per_second: 4 << 20,
        pattern: "hot-set".to_owned(),
        zero_percent: 20,
        compressible_percent: 40,
        // The template's word, not the machine's.
        threads: 4,
        // The machine's, where the template says nothing.
        seed: 7,
        tick_interval_ms: 5,
        qemu: None,
    };
    assert_eq!(body.spec, spec);
    assert_eq!(body.node_selector, labels([("accelerator", "gpu-enabled23")]));
    assert_eq!((body.local_disks_bytes, body.critical), ((3 << 30) + (512 << 20), true));

    let Manifest::Instance { name, labels: own, body } = &all[4] else { panic!("an instance") };
    assert_eq!(name.to_string(), "default/vmi-nocloud");
    assert_eq!(*own, labels([("special", "vmi-nocloud")]));
    let body = body.as_ref().expect("a body");
    // 64M is 15,625 whole pages.
    assert_eq!(body.spec, GuestSpec::idle(64_000_000));
    assert_eq!(body.local_disks_bytes, 1_000_000);
}
