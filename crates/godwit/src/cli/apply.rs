//! `godwit apply`, `create`, `delete` and `label`: objects are made, changed and removed.
//!
//! ```text
//!   files ─▶ objects, in order ─▶ one request each, under ID, ID.1, ID.2, … ─▶ kind/name created
//!                                        └─ refused: told, and the next one is asked for
//! ```
//!
//! A virtual machine that goes by it shuts itself down before (`stop`).
//!
//! Always true: one that is refused does not stop the others; the exit code is the worst of all; notes go to stderr.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::PathBuf;

use clap::Args;
use godwit_admin::render;
use godwit_domain::{GuestName, labels};
use godwit_wire::admin::{Act, Applied, Code, Problem};
use godwit_wire::manifest::{self, Kind, Manifest};

use super::asking::{Changing, RequestIds};
use super::failure::Failure;
use super::object::{InNamespace, Object, Trying};
use super::sources::{Source, Sources};
use super::stop::{Gently, stopped_by};
use super::{print, talk};

#[derive(Debug, Args)]
pub(super) struct Apply {
    #[command(flatten)]
    all: Manifests,
    #[command(flatten)]
    gently: Gently,
}

/// Manifests, and where they are asked for.
#[derive(Debug, Args)]
struct Manifests {
    /// A file, a folder of *.yaml, *.yml and *.json, or - for standard input
    #[arg(short, long = "filename", value_name = "PATH", required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    at: InNamespace,
    #[command(flatten)]
    trying: Trying,
    #[command(flatten)]
    changing: Changing,
}

#[derive(Debug, Args)]
pub(super) struct Create {
    #[command(flatten)]
    all: Manifests,
}

#[derive(Debug, Args)]
pub(super) struct Delete {
    /// KIND NAME… or KIND/NAME…
    #[arg(value_name = "KIND NAME", required_unless_present = "files", conflicts_with = "files")]
    objects: Vec<String>,
    /// Remove what these manifests describe: a file, a folder, or - for standard input
    #[arg(short, long = "filename", value_name = "PATH")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    at: InNamespace,
    #[command(flatten)]
    gently: Gently,
    #[command(flatten)]
    trying: Trying,
    #[command(flatten)]
    changing: Changing,
}

#[derive(Debug, Args)]
pub(super) struct Label {
    /// KIND NAME or KIND/NAME, then key=value to set a label and key- to remove one
    #[arg(value_name = "KIND NAME KEY=VALUE", required = true)]
    words: Vec<String>,
    /// Change labels that have another value
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    at: InNamespace,
    #[command(flatten)]
    trying: Trying,
    #[command(flatten)]
    changing: Changing,
}

/// Several changes, one after another.
struct Batch<'a> {
    changing: &'a Changing,
    ids: RequestIds,
    worst: u8,
}

impl Apply {
    pub(super) fn run(self) -> Result<(), Failure> {
        self.all.ask(Some(&self.gently))
    }
}

impl Create {
    pub(super) fn run(self) -> Result<(), Failure> {
        self.all.ask(None)
    }
}

impl Manifests {
    /// `gently`: they are applied, and how what they stop is stopped; `None`: they are created.
    fn ask(self, gently: Option<&Gently>) -> Result<(), Failure> {
        let Self { files, at, trying, changing } = self;
        let (create, dry_run) = (gently.is_none(), trying.is_dry());
        let mut batch = Batch::start(&changing)?;
        for Source { place, document } in batch.read(&files) {
            let stopped = stopped_by(&document, at.namespace.as_deref());
            let namespace = at.namespace.clone();
            let act = |dry_run| Act::Apply { object: document, namespace, create, dry_run };
            match gently.zip(stopped).filter(|_| !dry_run) {
                Some((gently, guest)) => batch.ask_gently(gently, &guest, Some(&place), act)?,
                None => batch.ask(Some(&place), act(dry_run))?,
            }
        }
        batch.end()
    }
}

impl Delete {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Self { objects, files, at, gently, trying, changing } = self;
        let dry_run = trying.is_dry();
        let mut batch = Batch::start(&changing)?;
        let remove = |batch: &mut Batch<'_>, place: Option<&str>, (kind, name, namespace): Named| {
            let is_guest = matches!(kind, Kind::VirtualMachine | Kind::VirtualMachineInstance);
            let guest = guest(&name, namespace.as_deref()).filter(|_| is_guest && !dry_run);
            let act = |dry_run| Act::Delete { kind: kind.to_string(), name, namespace, dry_run };
            match guest {
                Some(guest) => batch.ask_gently(&gently, &guest, place, act),
                None => batch.ask(place, act(dry_run)),
            }
        };
        if files.is_empty() {
            let objects = Object::all(&objects, at.namespace.as_deref())?;
            // All of them are looked at before the first is removed.
            let all: Vec<Named> = objects.into_iter().map(removed).collect::<Result<_, _>>()?;
            for one in all {
                remove(&mut batch, None, one)?;
            }
        }
        for Source { place, document } in batch.read(&files) {
            let namespace = at.namespace.as_deref().unwrap_or(manifest::DEFAULT_NAMESPACE);
            match manifest::read_in(&document, namespace) {
                Ok((found, _)) if named(&found) => {
                    remove(&mut batch, Some(&place), (found.kind(), found.name(), found.namespace()))?;
                }
                Ok(_) => batch.refused(flaw(&place, "a name that is made anew names no object to remove")),
                Err(error) => batch.refused(flaw(&place, &error.to_string())),
            }
        }
        batch.end()
    }
}

impl Label {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Self { words, overwrite, at, trying, changing } = self;
        let is_change = |word: &&String| word.contains('=') || word.ends_with('-');
        let split = words.iter().position(|word| is_change(&word)).unwrap_or(words.len());
        let (objects, changes) = words.split_at(split);
        if changes.is_empty() {
            return Err(Failure::usage("say what to change: key=value sets a label, key- removes it"));
        }
        let labels = changes.iter().map(|word| change(word)).collect::<Result<BTreeMap<_, _>, _>>()?;
        let dry_run = trying.is_dry();
        let mut acts = Vec::new();
        for object in Object::all(objects, at.namespace.as_deref())? {
            let Object { kind, name: Some(name), namespace } = object else {
                return Err(Failure::usage(format!("name the {} to label", object.kind)));
            };
            let (kind, labels) = (kind.to_string(), labels.clone());
            acts.push(Act::Label { kind, name, namespace, labels, overwrite, dry_run });
        }
        let mut batch = Batch::start(&changing)?;
        for act in acts {
            batch.ask(None, act)?;
        }
        batch.end()
    }
}

/// `key=value` or `key-`.
fn change(word: &str) -> Result<(String, Option<String>), Failure> {
    let (key, value) = match word.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => match word.strip_suffix('-') {
            Some(key) => (key, None),
            None => return Err(Failure::usage(format!("{word:?} is neither key=value nor key-"))),
        },
    };
    labels::check_one(key, value.unwrap_or_default()).map_err(Failure::usage)?;
    Ok((key.to_owned(), value.map(str::to_owned)))
}

/// An object to remove: kind, name, namespace.
type Named = (Kind, String, Option<String>);

fn removed(object: Object) -> Result<Named, Failure> {
    let Object { kind, name: Some(name), namespace } = object else {
        let kind = object.kind;
        return Err(Failure::usage(format!("name the {kind} to remove: all of a kind at once is not done")));
    };
    Ok((kind, name, namespace))
}

/// The guest of that object; `None`: there can be none of that name.
fn guest(name: &str, namespace: Option<&str>) -> Option<GuestName> {
    format!("{}/{name}", namespace.unwrap_or(manifest::DEFAULT_NAMESPACE)).parse().ok()
}

/// Whether it is one object, and not one that is made anew each time.
fn named(found: &Manifest) -> bool {
    !matches!(
        found,
        Manifest::Migration(manifest::MigrationWish { name: manifest::NameWish::Generated(_), .. })
    )
}

fn flaw(place: &str, what: &str) -> Problem {
    Problem::new(Code::Refused, "a manifest names an object", format!("{place}: {what}"), "mend the manifest")
}

impl<'a> Batch<'a> {
    fn start(changing: &'a Changing) -> Result<Self, Failure> {
        Ok(Self { changing, ids: changing.ids()?, worst: 0 })
    }

    /// What can be read; what can not is told.
    fn read(&mut self, files: &[PathBuf]) -> Vec<Source> {
        let Sources { objects, flaws } = Sources::read(files);
        for flaw in flaws {
            self.refused(flaw);
        }
        objects
    }

    /// As [`Self::ask`], of something by which a virtual machine goes: it shuts itself down before, if that is granted at all
    /// (asked as a dry run). One whose button can not be pressed stays as it is, and the others are asked for.
    fn ask_gently(
        &mut self,
        gently: &Gently,
        guest: &GuestName,
        place: Option<&str>,
        act: impl FnOnce(bool) -> Act + Clone,
    ) -> Result<(), Failure> {
        let asking = &self.changing.asking;
        let dry = act.clone();
        match gently.shut_down(asking, guest, || asking.try_ask(None, dry(true)).is_ok()) {
            Ok(Some(how)) => talk(&format!("{guest}: {how}")),
            Ok(None) => {}
            Err(problem) => {
                let nobody = problem.code == Code::Unavailable;
                let failure = asking.refuse(problem);
                return if nobody { Err(failure) } else { self.tell(failure) };
            }
        }
        self.ask(place, act(false))
    }

    /// Asks for one, and says what was done, or why not. That nobody reads it any more is no reason to stop half-way.
    fn ask(&mut self, place: Option<&str>, act: Act) -> Result<(), Failure> {
        let id = self.ids.next();
        let asking = &self.changing.asking;
        let answer = match asking.try_ask(Some(id.clone()), act) {
            Ok(answer) => answer,
            Err(problem) => {
                let message = match place {
                    Some(place) => format!("{place}: {}", problem.message),
                    None => problem.message,
                };
                let nobody = problem.code == Code::Unavailable;
                let failure = self.changing.refuse(Problem { message, ..problem }, &id);
                // Nobody will answer the others either.
                return if nobody { Err(failure) } else { self.tell(failure) };
            }
        };
        let done: Applied = asking.read(&answer)?;
        if let Err(error) = print(&asking.one_of_several(&answer, || render::applied(&done)))
            && error.kind() != ErrorKind::BrokenPipe
        {
            return Err(error.into());
        }
        for note in &done.notes {
            talk(&format!("note: {}/{}: {note}", done.kind.to_lowercase(), done.name));
        }
        Ok(())
    }

    fn refused(&mut self, problem: Problem) {
        let failure = self.changing.asking.refuse(problem);
        self.worst = self.worst.max(failure.tell());
    }

    fn tell(&mut self, failure: Failure) -> Result<(), Failure> {
        self.worst = self.worst.max(failure.tell());
        Ok(())
    }

    fn end(self) -> Result<(), Failure> {
        if self.worst == 0 { Ok(()) } else { Err(Failure::Told(self.worst)) }
    }
}
