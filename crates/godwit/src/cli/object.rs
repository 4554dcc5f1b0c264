//! Which objects a command line names: `KIND NAME…` or `KIND/NAME…`.
//!
//! Always true: a name may carry its namespace (`lab/vm1`) where its kind belongs to one; what a command line can not mean
//! is refused before anybody is asked.

use clap::{Args, ValueEnum};
use godwit_wire::manifest::{DEFAULT_NAMESPACE, Kind};

use super::failure::Failure;

/// One object, or all of a kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Object {
    pub(super) kind: Kind,
    pub(super) name: Option<String>,
    pub(super) namespace: Option<String>,
}

/// The namespace, where one is asked for.
#[derive(Debug, Clone, Args)]
pub(super) struct InNamespace {
    /// The namespace of what names none [default: default]
    #[arg(short, long)]
    pub(super) namespace: Option<String>,
}

/// Only say what would be done. All forms but `none` mean the same: the node is asked, and nothing changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum DryRun {
    /// It is done
    None,
    /// It is not done
    Client,
    /// It is not done
    Server,
}

/// Whether anything is to be done at all.
#[derive(Debug, Clone, Args)]
pub(super) struct Trying {
    /// Only say what would be done; the node is asked
    #[arg(long, value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "server", value_name = "HOW")]
    dry_run: Option<DryRun>,
}

impl Trying {
    /// Nothing is to be done.
    pub(super) fn is_dry(&self) -> bool {
        !matches!(self.dry_run, None | Some(DryRun::None))
    }
}

impl Object {
    /// All that the words name; of a word alone that is a kind, every object of it.
    pub(super) fn all(words: &[String], namespace: Option<&str>) -> Result<Vec<Self>, Failure> {
        let Some((first, names)) = words.split_first() else {
            return Err(Failure::usage("name a kind, such as vmi, vmim or migrationpolicy"));
        };
        let named = |kind: Kind, name: &str| Self::named(kind, name, namespace);
        if first.contains('/') {
            let both = |word: &String| match word.split_once('/') {
                Some((kind, name)) => named(kind.parse().map_err(Failure::usage)?, name),
                None => Err(Failure::usage(format!("{word:?} is not KIND/NAME, as the first one is"))),
            };
            return words.iter().map(both).collect();
        }
        if names.is_empty() {
            // Several kinds may be asked for at once, as `vm,vmi`.
            let whole = |kind: &str| {
                let kind = kind.parse().map_err(Failure::usage)?;
                Ok(Self { kind, name: None, namespace: namespace.map(str::to_owned) })
            };
            return first.split(',').map(whole).collect();
        }
        let kind: Kind = first.parse().map_err(Failure::usage)?;
        names.iter().map(|name| named(kind, name)).collect()
    }

    fn named(kind: Kind, word: &str, given: Option<&str>) -> Result<Self, Failure> {
        let (namespace, name) = match word.split_once('/') {
            Some((namespace, name)) if kind.is_namespaced() => (Some(namespace), name),
            Some(_) => return Err(Failure::usage(format!("a {kind} has no namespace: {word:?} names none"))),
            None => (given, word),
        };
        if name.is_empty() || name.contains('/') || namespace.is_some_and(str::is_empty) {
            return Err(Failure::usage(format!("{word:?} names no {kind}: give NAME or NAMESPACE/NAME")));
        }
        if let (Some(given), Some(own)) = (given, namespace)
            && given != own
        {
            let message =
                format!("{word} is in namespace {own}, and -n says {given:?}: leave one of them out");
            return Err(Failure::usage(message));
        }
        Ok(Self { kind, name: Some(name.to_owned()), namespace: namespace.map(str::to_owned) })
    }

    /// Whether it is the cluster's one settings object, which goes by any name.
    pub(super) fn is_settings(&self) -> bool {
        matches!(self.kind, Kind::HyperConverged | Kind::KubeVirt)
    }

    /// Where it is looked for: nowhere in particular if its kind belongs to no namespace.
    pub(super) fn namespace_or_default(&self) -> Option<String> {
        let namespaced = self.kind.is_namespaced() && !self.is_settings();
        namespaced.then(|| self.namespace.clone().unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects(line: &str, namespace: Option<&str>) -> Result<Vec<String>, Failure> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let shown = |object: Object| {
            let namespace = object.namespace_or_default();
            let place = namespace.map_or_else(String::new, |namespace| format!("{namespace}/"));
            format!("{} {place}{}", object.kind, object.name.unwrap_or_default())
        };
        Ok(Object::all(&words, namespace)?.into_iter().map(shown).collect())
    }

    #[test]
    fn words_name_objects() {
        for (line, namespace, all) in [
            ("vm", None, &["VirtualMachine default/"][..]),
            ("vm,ns", Some("lab"), &["VirtualMachine lab/", "Namespace "]),
            ("vm a b", None, &["VirtualMachine default/a", "VirtualMachine default/b"]),
            ("vm a", Some("lab"), &["VirtualMachine lab/a"]),
            ("VMI lab/a", None, &["VirtualMachineInstance lab/a"]),
            ("vmi/a ns/lab", None, &["VirtualMachineInstance default/a", "Namespace lab"]),
            ("vm/lab/a", Some("lab"), &["VirtualMachine lab/a"]),
            ("hco", Some("openshift-cnv"), &["HyperConverged "]),
            ("node a", Some("lab"), &["Node a"]),
        ] {
            let got = objects(line, namespace).unwrap_or_default();
            assert_eq!(got, all, "{line}");
        }
        for (line, namespace) in [
            ("", None),
            ("pod", None),
            ("vm lab/a", Some("prod")),
            ("vm,vmi a", None),
            ("vm,", None),
            ("vm/a b", None),
            ("ns lab/a", None),
            ("vm lab/", None),
            ("vm /a", None),
            ("vm a/b/c", None),
            ("vm/", None),
        ] {
            assert!(matches!(objects(line, namespace), Err(Failure::Usage(_))), "{line} {namespace:?}");
        }
    }
}
