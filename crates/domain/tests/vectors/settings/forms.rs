//! Each key in every form: a word, a text, a number, a truth, something else; negative, too large, empty.
//!
//! Always true: a refusal names the key and what was given, and says what would do.

use std::collections::BTreeSet;
use std::fmt::Debug;

use godwit_domain::settings::Given::{self, Bool, Number, Other, Text, Word};
use godwit_domain::settings::{CLUSTER_ONLY, OVERRIDABLE, PostCopyTrigger, Setting};
use godwit_domain::{Priority, Quantity};

/// A key, and the setting that it makes of a value.
type Key<T> = (&'static str, fn(T) -> Setting);

/// Keys that are read alike, what is taken and what it means, what is refused and a word of the reason.
struct Kind<T: 'static> {
    keys: &'static [Key<T>],
    taken: &'static [(Given<'static>, T)],
    refused: &'static [(Given<'static>, &'static str)],
}

const QUANTITIES: Kind<Quantity> = Kind {
    keys: &[
        ("bandwidthPerMigration", Setting::BandwidthPerMigration),
        ("nodeBandwidth", Setting::NodeBandwidth),
    ],
    taken: &[
        (Word("64Mi"), Quantity::from_bytes(64 << 20)),
        (Text("64Mi"), Quantity::from_bytes(64 << 20)),
        (Text("0"), Quantity::from_bytes(0)),
        (Number("0"), Quantity::from_bytes(0)),
        (Number("1048576"), Quantity::from_bytes(1 << 20)),
        (Number("1e6"), Quantity::from_bytes(1_000_000)),
        (Number("1.5"), Quantity::from_bytes(2)),
        (Word("16Ei"), Quantity::from_bytes(i64::MAX as u64)),
    ],
    refused: &[
        (Word(""), "is not a number"),
        (Text(""), "is not a number"),
        (Text("fast"), "is not a number"),
        (Word("64mi"), "is not a number"),
        (Number("-1"), "negative"),
        (Text("-64Mi"), "negative"),
        (Number("0.5"), "less than one byte"),
        (Bool(true), "a quantity such as 64Mi"),
        (Other("a list"), "a quantity such as 64Mi"),
    ],
};

const SECONDS: Kind<u64> = Kind {
    keys: &[
        ("completionTimeoutPerGiB", Setting::CompletionTimeoutPerGib),
        ("progressTimeout", Setting::ProgressTimeout),
        ("recoveryTimeout", Setting::RecoveryTimeout),
    ],
    taken: &[
        (Word("0"), 0),
        (Number("0"), 0),
        (Word("800"), 800),
        (Number("150"), 150),
        (Number("2147483647"), 2_147_483_647),
    ],
    refused: WHOLE_NUMBER_REFUSED,
};

const COUNTS: Kind<u32> = Kind {
    keys: &[
        ("parallelMigrationsPerCluster", Setting::ParallelMigrationsPerCluster),
        ("parallelOutboundMigrationsPerNode", Setting::ParallelOutboundMigrationsPerNode),
        ("parallelInboundMigrationsPerNode", Setting::ParallelInboundMigrationsPerNode),
    ],
    taken: &[
        (Word("0"), 0),
        (Number("0"), 0),
        (Word("5"), 5),
        (Number("2"), 2),
        (Number("2147483647"), 2_147_483_647),
    ],
    refused: WHOLE_NUMBER_REFUSED,
};

const WHOLE_NUMBER_REFUSED: &[(Given<'static>, &str)] = &[
    (Word(""), "a whole number from 0 to 2147483647"),
    (Number("-1"), "a whole number from 0 to 2147483647"),
    (Word("-1"), "a whole number from 0 to 2147483647"),
    (Number("2147483648"), "a whole number from 0 to 2147483647"),
    (Number("4294967296"), "a whole number from 0 to 2147483647"),
    (Number("18446744073709551616"), "a whole number from 0 to 2147483647"),
    (Number("1.5"), "a whole number from 0 to 2147483647"),
    (Number("1e3"), "a whole number from 0 to 2147483647"),
    (Number(".inf"), "a whole number from 0 to 2147483647"),
    (Word("64Mi"), "a whole number from 0 to 2147483647"),
    (Word("800s"), "a whole number from 0 to 2147483647"),
    (Word(" 800"), "a whole number from 0 to 2147483647"),
    (Text("800"), "a number, without quotes"),
    (Text(""), "a number, without quotes"),
    (Bool(false), "a whole number"),
    (Other("a map"), "a whole number"),
];

const DOWNTIME: Kind<u64> = Kind {
    keys: &[("maxDowntimeMs", Setting::MaxDowntimeMs)],
    taken: &[
        (Word("1"), 1),
        (Number("300"), 300),
        (Number("2000000"), 2_000_000),
        (Word("2000000"), 2_000_000),
    ],
    refused: &[
        (Word(""), "a whole number from 1 to 2000000"),
        (Number("0"), "a whole number from 1 to 2000000"),
        (Word("0"), "a whole number from 1 to 2000000"),
        (Number("-300"), "a whole number from 1 to 2000000"),
        (Number("2000001"), "a whole number from 1 to 2000000"),
        (Number("18446744073709551616"), "a whole number from 1 to 2000000"),
        (Number("0.5"), "a whole number from 1 to 2000000"),
        (Word("300ms"), "a whole number from 1 to 2000000"),
        (Text("300"), "a number, without quotes"),
        (Bool(true), "a whole number"),
        (Other("a list"), "a whole number"),
    ],
};

const TRUTHS: Kind<bool> = Kind {
    keys: &[
        ("allowPostCopy", Setting::AllowPostCopy),
        ("allowAutoConverge", Setting::AllowAutoConverge),
        ("audit", Setting::Audit),
        ("allowWorkloadDisruption", Setting::AllowWorkloadDisruption),
    ],
    taken: &[(Bool(true), true), (Bool(false), false), (Word("true"), true), (Word("false"), false)],
    refused: &[
        (Word(""), "true or false"),
        (Word("True"), "true or false"),
        (Word("yes"), "true or false"),
        (Word("1"), "true or false"),
        (Word("-1"), "true or false"),
        (Text("true"), "without quotes"),
        (Text(""), "true or false"),
        (Number("1"), "true or false"),
        (Number("0"), "true or false"),
        (Other("a map"), "true or false"),
    ],
};

const TRIGGER: Kind<PostCopyTrigger> = Kind {
    keys: &[("postCopyTrigger", Setting::PostCopyTrigger)],
    taken: &[
        (Word("deadline"), PostCopyTrigger::Deadline),
        (Text("deadline"), PostCopyTrigger::Deadline),
        (Word("early"), PostCopyTrigger::Early),
        (Text("early"), PostCopyTrigger::Early),
    ],
    refused: &[
        (Word(""), "deadline or early"),
        (Text("Early"), "deadline or early"),
        (Word("late"), "deadline or early"),
        (Number("1"), "deadline or early"),
        (Number("-1"), "deadline or early"),
        (Bool(true), "deadline or early"),
        (Other("a list"), "deadline or early"),
    ],
};

const PRIORITY: Kind<Priority> = Kind {
    keys: &[("priority", Setting::Priority)],
    taken: &[
        (Word("low"), Priority::Low),
        (Text("low"), Priority::Low),
        (Word("normal"), Priority::Normal),
        (Text("high"), Priority::High),
    ],
    refused: &[
        (Word(""), "low, normal or high"),
        // Nobody asks for it but a drain.
        (Word("drain"), "low, normal or high"),
        (Text("drain"), "low, normal or high"),
        (Text("High"), "low, normal or high"),
        (Number("1"), "low, normal or high"),
        (Number("-1"), "low, normal or high"),
        (Bool(true), "low, normal or high"),
        (Other("a map"), "low, normal or high"),
    ],
};

const NETWORK: Kind<&str> = Kind {
    keys: &[("network", |name| Setting::Network(name.to_owned()))],
    taken: &[
        (Word("migration"), "migration"),
        (Text("kubevirt/migration-net.0"), "kubevirt/migration-net.0"),
        (Text("0"), "0"),
        (Word(LONGEST_NETWORK), LONGEST_NETWORK),
    ],
    refused: &[
        (Word(""), "the name of a network"),
        (Text(""), "the name of a network"),
        (Text("Migration"), "the name of a network"),
        (Text("a b"), "the name of a network"),
        (Text("<network>"), "the name of a network"),
        (Text("a_b"), "the name of a network"),
        (Text(TOO_LONG_NETWORK), "the name of a network"),
        (Number("1"), "the name of a network"),
        (Number("-1"), "the name of a network"),
        (Bool(false), "the name of a network"),
        (Other("a list"), "the name of a network"),
    ],
};
const LONGEST_NETWORK: &str = "a23456789-b23456789-c23456789-d23456789-e23456789-f23456789-g23";
const TOO_LONG_NETWORK: &str = "a23456789-b23456789-c23456789-d23456789-e23456789-f23456789-g234";

/// What was given, as a message shows it: at most 40 characters.
fn shown(given: Given<'_>) -> String {
    match given {
        Word(text) | Text(text) | Number(text) => text.chars().take(40).collect(),
        Bool(truth) => truth.to_string(),
        Other(what) => what.to_owned(),
    }
}

impl<T: Copy + Debug> Kind<T> {
    fn check(&self) -> Vec<&'static str> {
        for (key, setting) in self.keys {
            for (given, value) in self.taken {
                assert_eq!(Setting::read(key, *given), Ok(setting(*value)), "{key} {given:?}");
            }
            for (given, why) in self.refused {
                let error = Setting::read(key, *given).expect_err(&format!("{key} {given:?}"));
                let message = error.to_string();
                let named =
                    message.starts_with(&format!("{key} ")) || message.starts_with(&format!("{key}: "));
                assert!(named && message.contains(why), "{given:?}: {message}");
                assert!(message.contains(&format!("{:?}", shown(*given))), "{given:?}: {message}");
            }
        }
        self.keys.iter().map(|(key, _)| *key).collect()
    }
}

#[test]
fn each_key_takes_its_forms_and_refuses_the_others() {
    let checked = [
        QUANTITIES.check(),
        SECONDS.check(),
        COUNTS.check(),
        DOWNTIME.check(),
        TRUTHS.check(),
        TRIGGER.check(),
        PRIORITY.check(),
        NETWORK.check(),
    ]
    .concat();
    let all: Vec<_> = OVERRIDABLE.into_iter().chain(CLUSTER_ONLY).collect();
    assert_eq!(checked.len(), all.len());
    assert_eq!(BTreeSet::from_iter(checked), BTreeSet::from_iter(all), "a key is in no table");
}
