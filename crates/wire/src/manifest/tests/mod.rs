//! What is refused, where and why; and what is let pass with a note.

mod hostile;
mod round;

use godwit_domain::{Overrides, Quantity};

use super::*;

/// Reads the only object of a text.
fn one(text: &str) -> Result<(Manifest, Vec<String>), ManifestError> {
    let documents = documents(text)?;
    assert_eq!(documents.len(), 1, "{text}");
    read(&documents[0])
}

fn refused(text: &str, words: &[&str]) {
    let error = one(text).expect_err(text).to_string();
    for word in words {
        assert!(error.contains(word), "{word:?} is not in {error:?}, for\n{text}");
    }
}

#[test]
fn what_is_no_object_says_what_is_missing() {
    refused("a", &["this is \"a\"", "apiVersion"]);
    refused("[1]", &["this is a list"]);
    refused("kind: Node", &["no apiVersion"]);
    refused("apiVersion: v1", &["no kind"]);
    refused("{apiVersion: v1, kind: 1}", &["its kind is 1, not text"]);
    refused("{apiVersion: v1, kind: Pod}", &["\"Pod\"", "VirtualMachineInstanceMigration", "Namespace"]);
    refused("{apiVersion: v1, kind: node}", &["\"node\"", "Node"]);
    refused("{apiVersion: v2, kind: Node}", &["Node has apiVersion v1, not v2"]);
    refused("{apiVersion: v1, kind: HyperConverged}", &["hco.kubevirt.io/v1beta1 or hco.kubevirt.io/v1"]);
    refused("{apiVersion: kubevirt.io/v1, kind: MigrationPolicy}", &["migrations.kubevirt.io/v1alpha1, not"]);
    refused("{apiVersion: v1, kind: Node}", &["Node: metadata.name: a name is required"]);
    refused("{apiVersion: v1, kind: Node, metadata: a}", &["metadata: must be a map, not \"a\""]);
    refused(
        "{apiVersion: v1, kind: Node, metadata: {name: 5}}",
        &["metadata.name: must be text, not 5: quote it"],
    );
}

#[test]
fn names_are_those_of_the_domain_and_placeholders_are_to_be_filled_in() {
    for (kind, version, name, word) in [
        ("Node", "v1", "Node_A", "node name"),
        ("Node", "v1", "<node>", "fill in the placeholder <node>"),
        ("Namespace", "v1", "a/b", "'/'"),
        ("Namespace", "v1", "A", "lower-case"),
        ("MigrationPolicy", "migrations.kubevirt.io/v1alpha1", "-a", "policy name"),
        ("VirtualMachine", "kubevirt.io/v1", "a/b", "guest name"),
        ("VirtualMachine", "kubevirt.io/v1", "\"\"", "empty"),
        ("VirtualMachineInstance", "kubevirt.io/v1", "x<vm_name>y", "fill in the placeholder <vm_name>"),
        ("VirtualMachineInstanceMigration", "kubevirt.io/v1", "a.b", "migration name"),
        ("KubeVirt", "kubevirt.io/v1", "a b", "DNS name"),
    ] {
        let text = format!("{{apiVersion: {version}, kind: {kind}, metadata: {{name: {name}}}}}");
        refused(&text, &[kind, "metadata.name: ", word]);
    }
    let head = "{apiVersion: kubevirt.io/v1, kind: VirtualMachine, metadata: ";
    refused(&format!("{head}{{generateName: a-}}}}"), &["only migrations are named so"]);
    refused(&format!("{head}{{name: a, namespace: A}}}}"), &["metadata.namespace", "lower-case"]);
    refused(&format!("{head}{{name: a, namespace: a/b}}}}"), &["metadata.namespace", "'/'"]);
}

/// A cluster's settings object around a block.
fn cluster(block: &str) -> String {
    format!(
        "apiVersion: kubevirt.io/v1\nkind: KubeVirt\nmetadata: {{name: kubevirt, namespace: kubevirt}}\nspec:\n  \
         configuration:\n    migrations: {block}\n"
    )
}

#[test]
fn a_setting_that_is_wrong_is_named_with_its_rule() {
    for (block, words) in [
        (
            "{progressTimeout: -1}",
            &["spec.configuration.migrations", "progressTimeout is \"-1\"", "from 0"][..],
        ),
        ("{progressTimeout: \"1\"}", &["without quotes"]),
        ("{progressTimeout: 1.5}", &["whole number"]),
        ("{progressTimeout: 99999999999999999999}", &["progressTimeout"]),
        ("{progressTimeout: {}}", &["a map"]),
        ("{bandwidthPerMigration: 64mi}", &["64mi"]),
        ("{bandwidthPerMigration: -64Mi}", &["negative"]),
        ("{bandwidthPerMigration: 0.5}", &["less than one byte"]),
        ("{bandwidthPerMigration: true}", &["a quantity"]),
        ("{allowPostCopy: \"true\"}", &["true or false"]),
        ("{maxDowntimeMs: 0}", &["1 to 2000000"]),
        ("{progressTimout: 1}", &["progressTimout", "there are"]),
        ("{progressTimout: null}", &["progressTimout", "there are"]),
        ("{priority: high}", &["policies and migrations"]),
        ("{disableTLS: true}", &["migrations.disableTLS", "unencrypted"]),
        ("{disableTLS: 1}", &["true or false"]),
        ("{unsafeMigrationOverride: true}", &["unsafe"]),
        ("[]", &["must be a map, not a list"]),
    ] {
        refused(&cluster(block), words);
    }
    refused(
        &cluster("{}").replace("migrations:", "Migrations:"),
        &["spec.configuration.Migrations", "write migrations"],
    );
    refused(&cluster("{}").replace("spec:", "specs:"), &["specs: no such field"]);
    let both = "apiVersion: hco.kubevirt.io/v1\nkind: HyperConverged\nmetadata: {name: a}\n\
                spec: {liveMigrationConfig: {}, virtualization: {liveMigrationConfig: {}}}";
    refused(both, &["spec.virtualization.liveMigrationConfig", "spec.liveMigrationConfig too"]);
}

#[test]
fn the_one_settings_object_may_have_any_name_and_a_block_may_be_missing() {
    let (_, notes) = one(&cluster("{}")).expect("settings");
    assert_eq!(notes, ["it sets nothing: every setting has its default"]);
    let text = "{apiVersion: hco.kubevirt.io/v1, kind: HyperConverged, metadata: {name: other}}";
    let (manifest, notes) = one(text).expect("settings");
    assert_eq!(manifest.namespace().as_deref(), Some("default"));
    assert!(notes[0].contains("default/other") && notes[0].contains("openshift-cnv/kubevirt-hyperconverged"));
    assert_eq!(notes.len(), 2);
    let (manifest, _) = one(&cluster("{allowPostCopy: yes, progressTimeout: null}")).expect("settings");
    let Manifest::Settings { settings, .. } = manifest else { panic!("settings") };
    let migration = Overrides { allow_post_copy: Some(true), ..Overrides::default() };
    assert_eq!(settings, ClusterSettings { migration, ..ClusterSettings::default() });
}

/// A policy around a spec.
fn policy(spec: &str) -> String {
    format!(
        "apiVersion: migrations.kubevirt.io/v1alpha1\nkind: MigrationPolicy\nmetadata: {{name: p}}\nspec: {spec}\n"
    )
}

#[test]
fn a_policy_must_say_whom_it_is_for() {
    for (spec, words) in [
        ("null", &["MigrationPolicy p: spec.selectors", "{} matches every VM"][..]),
        ("{}", &["spec.selectors", "{} matches every VM"]),
        ("{selectors: null}", &["spec.selectors", "{} matches every VM"]),
        ("{selectors: []}", &["spec.selectors: must be a map"]),
        ("{selectors: {matchLabels: {a: b}}}", &["spec.selectors.matchLabels", "namespaceSelector"]),
        ("{selectors: {namespaceSelector: {a: True}}}", &["namespaceSelector.a", "quote it, as \"true\""]),
        ("{selectors: {namespaceSelector: {a: 1}}}", &["namespaceSelector.a", "quote it, as \"1\""]),
        ("{selectors: {namespaceSelector: {a: }}}", &["namespaceSelector.a", "write \"\""]),
        ("{selectors: {namespaceSelector: {a: []}}}", &["must be text, not a list"]),
        ("{selectors: {virtualMachineInstanceSelector: {a/b/c: x}}}", &["label key \"a/b/c\""]),
        ("{selectors: {virtualMachineInstanceSelector: {k.io/a: 1}}}", &["Selector[\"k.io/a\"]"]),
        ("{selectors: {}, experimental: {}}", &["spec.experimental", "not built"]),
        ("{selectors: {}, parallelMigrationsPerCluster: 1}", &["for the whole cluster", "a policy sets"]),
        ("{selectors: {}, nodeDrainTaintKey: a}", &["nodeDrainTaintKey", "there are"]),
        ("{selectors: {}, priority: drain}", &["low, normal or high"]),
        ("{selectors: {}, maxDowntimeMs: 2000001}", &["1 to 2000000"]),
    ] {
        refused(&policy(spec), words);
    }
    let (manifest, notes) = one(&policy("{selectors: {}, bandwidthPerMigration: 0}")).expect("a policy");
    let Manifest::Policy { policy, .. } = manifest else { panic!("a policy") };
    assert_eq!(policy.overrides.bandwidth_per_migration, Some(Quantity::from_bytes(0)));
    assert!(notes.is_empty());
}

/// An instance around a spec, with annotations.
fn instance(spec: &str, annotations: &str) -> String {
    format!(
        "apiVersion: kubevirt.io/v1\nkind: VirtualMachineInstance\nmetadata: {{name: g, annotations: \
         {annotations}}}\nspec: {spec}\n"
    )
}

#[test]
fn a_guest_that_could_not_be_kept_as_it_is_is_refused() {
    let memory = "domain: {memory: {guest: 1Mi}}";
    for (spec, words) in [
        ("{}", &["VirtualMachineInstance g: spec.domain.memory.guest", "memory is required"][..]),
        ("{domain: {resources: {limits: {memory: 1Mi}}}}", &["memory is required"]),
        ("{domain: {memory: {guest: 1}}}", &["spec.domain.memory.guest", "4096"]),
        ("{domain: {memory: {guest: 0}}}", &["4096"]),
        ("{domain: {memory: {guest: 1Ei}}}", &["below 16Ti"]),
        ("{domain: {memory: {guest: x}}}", &["spec.domain.memory.guest: quantity \"x\""]),
        ("{domain: {resources: {requests: {memory: 65M1}}}}", &["spec.domain.resources.requests.memory"]),
    ] {
        refused(&instance(spec, "{}"), words);
    }
    for (rest, words) in [
        ("affinity: {nodeAffinity: {}}", &["spec.affinity", "nodeSelector"][..]),
        ("topologySpreadConstraints: [{}]", &["spec.topologySpreadConstraints", "nodeSelector"]),
        ("nodeSelector: {gpu: true}", &["spec.nodeSelector.gpu", "quote it"]),
        ("volumes: [{name: a, emptyDisk: {}}]", &["spec.volumes[0].emptyDisk.capacity", "local-disks"]),
        ("volumes: [5]", &["spec.volumes[0]: must be a map"]),
        ("volumes: {}", &["spec.volumes: must be a list"]),
    ] {
        refused(&instance(&format!("{{{memory}, {rest}}}"), "{}"), words);
    }
    for (annotations, words) in [
        ("{godwit.dev/critcal: 'true'}", &["godwit.dev/critcal", "there are", "godwit.dev/critical"][..]),
        ("{godwit.dev/critical: true}", &["must be text, not true: quote it"]),
        ("{godwit.dev/critical: 'yes'}", &["must be true or false"]),
        ("{godwit.dev/threads: '0'}", &["godwit.dev/threads", "from 1 to 255"]),
        ("{godwit.dev/zero-percent: '101'}", &["from 0 to 100"]),
        ("{godwit.dev/tick-interval-ms: '0'}", &["from 1"]),
        ("{godwit.dev/pattern: cold-set}", &["uniform or hot-set or streaming"]),
        ("{godwit.dev/dirty-rate: 4mi}", &["godwit.dev/dirty-rate", "4mi"]),
        ("{godwit.dev/cpus: '2'}", &["godwit.dev/cpus", "add godwit.dev/runner: qemu"]),
        ("{godwit.dev/runner: xen}", &["builtin or qemu"]),
        ("{godwit.dev/runner: qemu, godwit.dev/cpus: '0'}", &["from 1 to 255"]),
        ("{godwit.dev/runner: qemu, godwit.dev/qemu-arguments: '[]'}", &["as `godwit get` shows it"]),
        (
            "{godwit.dev/runner: qemu, godwit.dev/kernel: /k, godwit.dev/qemu-arguments: '{}'}",
            &["godwit.dev/kernel", "excludes godwit.dev/qemu-arguments"],
        ),
        ("[]", &["metadata.annotations: must be a map"]),
    ] {
        refused(&instance(&format!("{{{memory}}}"), annotations), words);
    }
    refused(&instance("null", "{godwit.dev/critical: 'true'}"), &["godwit.dev/critical", "give spec"]);
    let host = instance(
        &format!("{{{memory}, volumes: [{{hostDisk: {{path: a}}}}]}}"),
        "{godwit.dev/local-disks: 5}",
    );
    refused(&host, &["must be text, not 5"]);
    let (manifest, notes) = one(&host.replace(": 5}", ": '5'}")).expect("an instance");
    let Manifest::Instance { body: Some(body), .. } = manifest else { panic!("a body") };
    assert_eq!((body.local_disks_bytes, notes.len()), (5, 0));
}

#[test]
fn a_virtual_machine_is_what_its_annotations_say() {
    let annotations = "{godwit.dev/runner: qemu, godwit.dev/cpus: '2', godwit.dev/accel: tcg, godwit.dev/kernel: /k, \
                       godwit.dev/initrd: /i, godwit.dev/disks: /srv/a.qcow2 /srv/b.img, godwit.dev/network: tap0}";
    let (manifest, notes) =
        one(&instance("{domain: {memory: {guest: 64Mi}}}", annotations)).expect("an instance");
    let Manifest::Instance { body: Some(body), .. } = manifest else { panic!("a body") };
    let qemu = body.spec.qemu.expect("a virtual machine");
    assert_eq!((qemu.program.as_str(), notes.len()), ("qemu-system-x86_64", 0));
    let line = qemu.arguments.join(" ");
    for part in [
        "-machine q35,memory-backend=ram -m 65536K",
        "-smp 2 -accel tcg",
        "-kernel /k -initrd /i -append console=ttyS0",
        "file=/srv/a.qcow2,format=qcow2",
        "file=/srv/b.img,format=raw",
        "tap,id=net0,ifname=tap0",
    ] {
        assert!(line.contains(part), "{part} in {line}");
    }
}

#[test]
fn whether_a_machine_runs_is_said_in_one_way() {
    let machine = |spec: &str| {
        one(&format!(
            "{{apiVersion: kubevirt.io/v1, kind: VirtualMachine, metadata: {{name: g}}, spec: {spec}}}"
        ))
    };
    for (spec, runs, notes) in [
        ("{}", true, 0),
        ("null", true, 0),
        ("{running: true}", true, 0),
        ("{running: false}", false, 0),
        ("{runStrategy: Always}", true, 0),
        ("{runStrategy: RerunOnFailure}", true, 0),
        ("{runStrategy: Once}", true, 0),
        ("{runStrategy: Manual}", true, 1),
        ("{runStrategy: Halted, running: null}", false, 0),
    ] {
        let (manifest, said) = machine(spec).expect(spec);
        let Manifest::Machine { machine, .. } = manifest else { panic!("a machine") };
        assert_eq!((machine.runs, said.len()), (runs, notes), "{spec}");
    }
    for (spec, word) in [
        ("{running: true, runStrategy: Halted}", "keep one of the two"),
        ("{running: 'true'}", "true or false"),
        ("{runStrategy: halted}", "Halted, not \"halted\""),
        ("{runStrategy: WaitAsReceiver}", "not built"),
        ("{template: {spec: {}}}", "spec.template.spec.domain.memory.guest: memory is required"),
    ] {
        let error = machine(spec).expect_err(spec).to_string();
        assert!(error.contains(word), "{spec}: {error}");
    }
}

#[test]
fn a_migration_names_its_guest_and_nothing_that_is_not_built() {
    let migration = |metadata: &str, spec: &str| {
        format!(
            "{{apiVersion: kubevirt.io/v1, kind: VirtualMachineInstanceMigration, metadata: {metadata}, spec: {spec}}}"
        )
    };
    for (spec, words) in [
        ("null", &["VirtualMachineInstanceMigration m: spec.vmiName", "required"][..]),
        ("{vmiName: ''}", &["spec.vmiName", "required"]),
        ("{vmiName: <vm_name>}", &["spec.vmiName: fill in the placeholder <vm_name>"]),
        ("{vmiName: a/b}", &["spec.vmiName: guest name"]),
        ("{vmiName: a, sendTo: {}}", &["spec.sendTo: decentralized migration is not built"]),
        ("{vmiName: a, receive: {}}", &["spec.receive"]),
        ("{vmiName: a, addNodeSelector: {}}", &["spec.addNodeSelector: no such field", "addedNodeSelector"]),
        ("{vmiName: a, addedNodeSelector: {a: 1}}", &["spec.addedNodeSelector.a", "quote it"]),
        ("{vmiName: a, priority: drain}", &["low, normal or high"]),
        ("{vmiName: a, unschedulableTimeoutSeconds: -1}", &["from 0 to 2147483647, not -1"]),
        ("{vmiName: a, unschedulableTimeoutSeconds: 2147483648}", &["not 2147483648"]),
        ("{vmiName: a, unschedulableTimeoutSeconds: '5'}", &["not \"5\""]),
    ] {
        refused(&migration("{name: m}", spec), words);
    }
    refused(&migration("{generateName: A-}", "{vmiName: a}"), &["metadata.generateName", "lower-case"]);
    let long = format!("{{generateName: {}}}", "a".repeat(59));
    refused(&migration(&long, "{vmiName: a}"), &["63 bytes", "5 bytes that are added"]);
    let (manifest, _) = one(&migration("{name: m, generateName: x-}", "{vmiName: a}")).expect("a migration");
    assert_eq!(manifest.name(), "m");
    let old = "{name: m, annotations: {kubevirt.io/migrationUnschedulablePodTimeoutSeconds: '5', other: x}}";
    let (_, notes) = one(&migration(old, "{vmiName: a}")).expect("a migration");
    assert_eq!(notes.len(), 1);
    assert!(notes[0].contains("PodTimeoutSeconds") && !notes[0].contains("other"), "{notes:?}");
}

#[test]
fn a_list_of_what_is_ignored_has_a_bound() {
    let keys: String = (0..500).map(|n| format!("k{n}: 1, ")).collect();
    let text =
        format!("{{apiVersion: v1, kind: Node, metadata: {{name: n, namespace: x}}, spec: {{{keys}}}}}");
    let (_, notes) = one(&text).expect("a node");
    assert!(notes[0].contains("metadata.namespace") && notes[1].ends_with("and 480 more"), "{notes:?}");
    assert!(notes[1].len() < 400);
}
