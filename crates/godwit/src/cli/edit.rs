//! `godwit edit`: one object in an editor.
//!
//! ```text
//!   get ─▶ YAML without status, in a private folder ─▶ $VISUAL, else $EDITOR, else vi ─▶ read
//!      unchanged: nothing is done         changed meanwhile by somebody else, or refused: the text is kept, and where is told
//! ```
//!
//! A virtual machine that is not to run any more shuts itself down before (`stop`).
//!
//! Always true: what was typed is never lost: the file goes only once the node has said yes, or nothing was typed.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use godwit_admin::render;
use godwit_wire::admin::{Act, Applied, Code, Objects, Problem};
use godwit_wire::manifest;
use serde_json::Value;
use tempfile::{Builder, TempDir};

use super::asking::{Asking, Changing};
use super::failure::Failure;
use super::get;
use super::object::{InNamespace, Object};
use super::sources::{Source, Sources};
use super::stop::{Gently, stopped_by};
use super::talk;

/// Where editors are named, the first that is set counts.
const EDITOR_VARIABLES: [&str; 2] = ["VISUAL", "EDITOR"];
/// The editor of those who name none.
const EDITOR_DEFAULT: &str = "vi";

#[derive(Debug, Args)]
pub(super) struct Edit {
    /// KIND NAME or KIND/NAME; hco and kubevirt need no name
    #[arg(value_name = "KIND NAME", required = true)]
    object: Vec<String>,
    #[command(flatten)]
    at: InNamespace,
    #[command(flatten)]
    gently: Gently,
    #[command(flatten)]
    changing: Changing,
}

impl Edit {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Self { object, at, gently, changing } = self;
        let object = get::one(&object, &at)?;
        let before = fetch(&changing.asking, &object)?;
        let alone = Permissions::from_mode(0o700);
        let folder = Builder::new().prefix("godwit-edit-").permissions(alone).tempdir()?;
        let file = folder.path().join(format!("{}.yaml", object.kind.to_string().to_lowercase()));
        let text = format!("{}{}", preface(&object), manifest::yaml(&before));
        fs::write(&file, &text)?;
        open(&file)?;
        if fs::read_to_string(&file).is_ok_and(|now| now == text) {
            talk("edit cancelled, no change");
            return Ok(());
        }
        match send(&changing, &gently, &object, &before, &file) {
            Ok(Some((answer, done))) => tell(&changing.asking, &answer, &done),
            Ok(None) => {
                talk("edit cancelled, no change");
                Ok(())
            }
            Err((problem, id)) => {
                let kept = keep(folder, &file);
                let Problem { message, try_, .. } = &problem;
                let message = format!("{message}\n  what you wrote is kept in {}", kept.display());
                let try_ = format!("{try_}; then `godwit apply -f {}`", kept.display());
                Err(changing.refuse(Problem { message, try_, ..problem }, &id))
            }
        }
    }
}

fn preface(object: &Object) -> String {
    let Object { kind, .. } = object;
    format!("# A {kind} of the cluster. Save and leave to change it; leave it as it is to change nothing.\n")
}

/// The object as it stands, without what only the cluster says of it.
fn fetch(asking: &Asking, object: &Object) -> Result<Value, Failure> {
    let found: Objects = asking.read(&asking.ask(get::act(object, false, false))?)?;
    without_status(found.items.into_iter().next()).ok_or_else(|| {
        let name = object.name.as_deref().unwrap_or_default();
        let message = format!("no {} {name}", object.kind);
        let problem =
            Problem::new(Code::NotFound, "the object must exist", message, "make it with `godwit apply -f`");
        asking.refuse(problem)
    })
}

fn without_status(item: Option<Value>) -> Option<Value> {
    let mut item = item?;
    if let Some(map) = item.as_object_mut() {
        map.remove("status");
    }
    Some(item)
}

/// Lets the editor at the file, and waits for its end.
fn open(file: &Path) -> Result<(), Failure> {
    let named = EDITOR_VARIABLES.into_iter().filter_map(std::env::var_os).find(|editor| !editor.is_empty());
    let editor = named.unwrap_or_else(|| EDITOR_DEFAULT.into());
    // An editor may be given with options, as `code --wait` is: a shell takes it apart.
    let mut line = editor.clone();
    line.push(" \"$@\"");
    let status = Command::new("sh").arg("-c").arg(line).arg("sh").arg(file).status();
    let shown = OsString::from(&editor).to_string_lossy().into_owned();
    let failed = |how: String| {
        let message = format!("the editor {shown:?} {how}; nothing was changed");
        Failure::refused("an editor must open the object", message, "name one that works in EDITOR")
    };
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(failed(format!("ended with {status}"))),
        Err(error) => Err(failed(format!("can not be started: {error}"))),
    }
}

type Sent = Option<(Value, Applied)>;

/// Reads what was typed and asks for it. `None`: it says the same as before. An error has the id of its request.
fn send(
    changing: &Changing,
    gently: &Gently,
    object: &Object,
    before: &Value,
    file: &Path,
) -> Result<Sent, (Problem, String)> {
    let id = changing.ids().map(|mut ids| ids.next()).map_err(|_| (no_id(), String::new()))?;
    let with_id = |problem: Problem| (problem, id.clone());
    let after = read(object, before, file).map_err(with_id)?;
    if after == *before {
        return Ok(None);
    }
    let asking = &changing.asking;
    is_unchanged(asking, object, before).map_err(with_id)?;
    let namespace = object.namespace_or_default();
    let stopped = stopped_by(&after, namespace.as_deref());
    let act = |dry_run| Act::Apply { object: after, namespace, create: false, dry_run };
    if let Some(guest) = stopped {
        let dry = act.clone();
        let how = gently.shut_down(asking, &guest, || asking.try_ask(None, dry(true)).is_ok());
        if let Some(how) = how.map_err(with_id)? {
            talk(&format!("{guest}: {how}"));
            is_unchanged(asking, object, before).map_err(with_id)?;
        }
    }
    let answer = asking.try_ask(Some(id.clone()), act(false)).map_err(with_id)?;
    let done = serde_json::from_value::<Applied>(answer.clone()).map_err(|error| {
        let message = format!("the node's answer can not be read: {error}");
        with_id(Problem::new(
            Code::Unknown,
            "protocol",
            message,
            "use the `godwit` of the node's own version",
        ))
    })?;
    Ok(Some((answer, done)))
}

/// Nobody else has changed it since.
fn is_unchanged(asking: &Asking, object: &Object, before: &Value) -> Result<(), Problem> {
    let found = asking.try_ask(None, get::act(object, false, false))?;
    let found = serde_json::from_value::<Objects>(found).ok();
    let now = without_status(found.and_then(|found| found.items.into_iter().next()));
    if now.as_ref() == Some(before) {
        return Ok(());
    }
    let message = format!("the {} was changed by somebody else meanwhile", object.kind);
    Err(refused(message, "look at it with `godwit get -o yaml`, and mend what you wrote"))
}

fn no_id() -> Problem {
    Problem::new(Code::Failed, "random numbers", "the system gives no random numbers", "give a --request-id")
}

fn refused(message: impl Into<String>, try_: &str) -> Problem {
    Problem::new(Code::Refused, "an edit changes one object, and keeps its name", message, try_)
}

/// The one object that the file holds now, checked.
fn read(object: &Object, before: &Value, file: &Path) -> Result<Value, Problem> {
    let Sources { mut objects, flaws } = Sources::read(&[file.to_owned()]);
    if let Some(flaw) = flaws.into_iter().next() {
        return Err(flaw);
    }
    let (Some(Source { document, .. }), true) = (objects.pop(), objects.is_empty()) else {
        return Err(refused("the file holds several objects", "leave the one that was there"));
    };
    let namespace = object.namespace_or_default().unwrap_or_else(|| manifest::DEFAULT_NAMESPACE.to_owned());
    let identity = |document: &Value| {
        let (read, _) = manifest::read_in(document, &namespace)?;
        Ok((read.kind(), read.namespace(), read.name()))
    };
    let mend = |error: manifest::ManifestError| refused(error.to_string(), "mend it there");
    let after = identity(&document).map_err(mend)?;
    // What the node shows can be read; if it could not, the node would have to judge.
    if identity(before).is_ok_and(|before| before != after) {
        let message = format!("this would be another object: {} {}", after.0, after.2);
        return Err(refused(message, "give it back its kind, name and namespace"));
    }
    without_status(Some(document)).ok_or_else(|| refused("the file is empty", "write the object"))
}

/// Keeps the folder beyond this process.
fn keep(folder: TempDir, file: &Path) -> PathBuf {
    let name = file.file_name().map(PathBuf::from).unwrap_or_default();
    folder.keep().join(name)
}

fn tell(asking: &Asking, answer: &Value, done: &Applied) -> Result<(), Failure> {
    asking.print(answer, render::applied)?;
    for note in &done.notes {
        talk(&format!("note: {}/{}: {note}", done.kind.to_lowercase(), done.name));
    }
    Ok(())
}
