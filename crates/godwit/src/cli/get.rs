//! `godwit get` and `describe`: objects as manifests have them, as tables, and as they change.
//!
//! ```text
//!   KIND [NAME…] ─▶ Objects ─▶ table | wide    columns that the node has chosen
//!                           └▶ yaml | json     documents | one list
//!   -w           ─▶ Objects, again and again ─▶ what is new
//!   describe     ─▶ the object as YAML, then what else is known of it
//! ```

use std::collections::BTreeMap;

use clap::Args;
use godwit_admin::render;
use godwit_domain::GuestName;
use godwit_wire::admin::{Act, Code, Objects, Problem};
use godwit_wire::manifest::{self, Kind};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::asking::{Asking, Format};
use super::failure::Failure;
use super::follow::Sight;
use super::object::{InNamespace, Object};
use super::{print, talk};

#[derive(Debug, Args)]
pub(super) struct Get {
    /// KIND [NAME…] or KIND/NAME…: hco, kubevirt, migrationpolicy, ns, no, vm, vmi or vmim
    #[arg(value_name = "KIND NAME", required = true)]
    objects: Vec<String>,
    #[command(flatten)]
    at: InNamespace,
    /// In all namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// Go on and print what changes, until Ctrl-C
    #[arg(short, long)]
    watch: bool,
    #[command(flatten)]
    asking: Asking,
}

#[derive(Debug, Args)]
pub(super) struct Describe {
    /// KIND NAME or KIND/NAME
    #[arg(value_name = "KIND NAME", required = true)]
    object: Vec<String>,
    #[command(flatten)]
    at: InNamespace,
    #[command(flatten)]
    asking: Asking,
}

/// The request for one object, or for all of a kind.
pub(super) fn act(object: &Object, everywhere: bool, watch: bool) -> Act {
    let namespace = if everywhere { None } else { object.namespace_or_default() };
    Act::Get { kind: object.kind.to_string(), name: object.name.clone(), namespace, watch }
}

/// The one object that words name. A settings object needs no name: there is one.
pub(super) fn one(words: &[String], at: &InNamespace) -> Result<Object, Failure> {
    let objects = Object::all(words, at.namespace.as_deref())?;
    match objects.as_slice() {
        [object] if object.name.is_some() || object.is_settings() => Ok(object.clone()),
        [object] => Err(Failure::usage(format!("name the {}", object.kind))),
        _ => Err(Failure::usage("name one object")),
    }
}

impl Get {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Self { objects, at, all_namespaces, watch, asking } = self;
        let objects = Object::all(&objects, at.namespace.as_deref())?;
        match objects.as_slice() {
            [object] if watch => watch_one(&asking, object, all_namespaces),
            _ if watch => Err(Failure::usage("with --watch name a kind, or one object")),
            _ => show_all(&asking, &objects, all_namespaces),
        }
    }
}

fn show_all(asking: &Asking, objects: &[Object], everywhere: bool) -> Result<(), Failure> {
    let mut found: Vec<Objects> = Vec::new();
    let mut worst = 0;
    for object in objects {
        let answer = match asking.ask(act(object, everywhere, false)) {
            Ok(answer) => asking.read::<Objects>(&answer)?,
            Err(failure) => {
                worst = worst.max(failure.tell());
                continue;
            }
        };
        match found.last_mut().filter(|last| last.kind == answer.kind) {
            Some(last) => {
                last.items.extend(answer.items);
                last.rows.extend(answer.rows);
            }
            None => found.push(answer),
        }
    }
    if worst == 0 || !found.is_empty() {
        show(asking, &found)?;
    }
    if worst == 0 && found.iter().all(|objects| objects.items.is_empty()) {
        let place = objects.first().filter(|_| !everywhere).and_then(Object::namespace_or_default);
        let place = place.map_or_else(String::new, |namespace| format!(" in namespace {namespace}"));
        let kinds: Vec<String> = found.iter().map(|objects| objects.kind.clone()).collect();
        talk(&format!("no {}{place}", kinds.join(", ")));
    }
    if worst == 0 { Ok(()) } else { Err(Failure::Told(worst)) }
}

fn show(asking: &Asking, found: &[Objects]) -> Result<(), Failure> {
    let items = found.iter().flat_map(|objects| &objects.items);
    let text = match asking.output {
        Format::Json => Value::from_iter(items.cloned()).to_string(),
        Format::Yaml => {
            let documents: Vec<String> = items.map(manifest::yaml).collect();
            documents.join("---\n")
        }
        Format::Table | Format::Wide => {
            let tables = found.iter().map(|objects| render::objects(objects, asking.is_wide()));
            tables.filter(|table| !table.is_empty()).collect::<Vec<_>>().join("\n")
        }
    };
    if !text.is_empty() {
        print(text.trim_end())?;
    }
    Ok(())
}

/// `policy list`, and the like: all of a kind.
pub(super) fn list(asking: &Asking, kind: Kind) -> Result<(), Failure> {
    show_all(asking, &[Object { kind, name: None, namespace: None }], true)
}

fn watch_one(asking: &Asking, object: &Object, everywhere: bool) -> Result<(), Failure> {
    let mut table = render::Watched::default();
    let mut last: BTreeMap<String, Value> = BTreeMap::new();
    let sight = Sight {
        asking,
        act: act(object, everywhere, true),
        again: format!("get {} --watch", object.kind.to_string().to_lowercase()),
        goes_on: "nothing has changed by this",
    };
    sight.print(
        |_: &Objects| false,
        |_, objects| {
            if asking.is_for_people() {
                return table.news(objects, asking.is_wide());
            }
            // A node that is asked anew says everything again.
            let new = objects.items.iter().filter(|item| {
                let key = item.get("metadata").map(Value::to_string).unwrap_or_default();
                last.insert(key, (*item).clone()).as_ref() != Some(*item)
            });
            new.map(|item| asking.one_of_several(item, String::new)).collect()
        },
    )
}

impl Describe {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Self { object, at, asking } = self;
        let object = one(&object, &at)?;
        let found: Objects = asking.read(&asking.ask(act(&object, false, false))?)?;
        let Some(item) = found.items.into_iter().next() else {
            return Err(asking.refuse(missing(&object)));
        };
        let known = known(&asking, &object)?;
        match asking.output {
            Format::Json | Format::Yaml => {
                let both = json!({"object": item, "known": known.map(|(value, _)| value)});
                asking.print(&both, |_: &Value| String::new())
            }
            Format::Table | Format::Wide => {
                let mut text = manifest::yaml(&item).trim_end().to_owned();
                if let Some((_, table)) = known {
                    text.push_str(&format!("\n\n{table}"));
                }
                Ok(print(&text)?)
            }
        }
    }
}

fn missing(object: &Object) -> Problem {
    let name = object.name.as_deref().unwrap_or_default();
    let message = format!("no {} {name}", object.kind);
    let try_ = format!("`godwit get {}` shows those that there are", object.kind.to_string().to_lowercase());
    Problem::new(Code::NotFound, "the object must exist", message, try_)
}

/// What Godwit knows of it beside its manifest, as it came and as it is shown.
fn known(asking: &Asking, object: &Object) -> Result<Option<(Value, String)>, Failure> {
    let name = object.name.clone().unwrap_or_default();
    match object.kind {
        Kind::VirtualMachine | Kind::VirtualMachineInstance => {
            let namespace = object.namespace_or_default().unwrap_or_default();
            let guest: GuestName = format!("{namespace}/{name}").parse().map_err(Failure::usage)?;
            more(asking, Act::GuestShow { guest }, render::guest)
        }
        Kind::VirtualMachineInstanceMigration => {
            let migration = name.parse().map_err(Failure::usage)?;
            more(asking, Act::MigrationExplain { migration }, render::migration_explained)
        }
        Kind::Node => {
            let node = name.parse().map_err(Failure::usage)?;
            more(asking, Act::NodeShow { node }, render::node)
        }
        Kind::HyperConverged | Kind::KubeVirt | Kind::MigrationPolicy | Kind::Namespace => Ok(None),
    }
}

fn more<T: DeserializeOwned>(
    asking: &Asking,
    act: Act,
    table: impl FnOnce(&T) -> String,
) -> Result<Option<(Value, String)>, Failure> {
    match asking.try_ask(None, act) {
        Ok(answer) => {
            let table = table(&asking.read(&answer)?);
            Ok(Some((answer, table)))
        }
        // A VirtualMachine may be there whose guest does not run.
        Err(problem) if problem.code == Code::NotFound => Ok(None),
        Err(problem) => Err(asking.refuse(problem)),
    }
}
