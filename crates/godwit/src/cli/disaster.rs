//! `godwit control backup`, `restore` and `recover`: for the day on which more than half of the voters are gone.
//!
//! ```text
//!   backup   a node is asked ─▶ pieces ─▶ FILE, whole or not at all
//!   restore  FILE ─▶ a new group, in the folder of a node that does not run and has no log
//!   recover  what this voter has ─▶ what is lost by it, said ─▶ the cluster's name, typed ─▶ a new group
//! ```
//!
//! Always true: a file that is written was read back first; before the name is typed nothing has changed.

use std::fs::File;
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};

use godwit_admin::render;
use godwit_node::config::NodeConfig;
use godwit_node::disaster::{self, DisasterError, Founded, Survey};
use godwit_wire::admin::{Act, BackupMade, BackupPiece, Code, Problem};
use godwit_wire::backup::{self, BACKUP_BYTES_MAX, Head};
use serde::{Deserialize, Serialize};

use super::asking::{Asking, block_on};
use super::failure::Failure;
use super::{print, talk};

/// What was written.
#[derive(Debug, Serialize, Deserialize)]
struct Written {
    file: PathBuf,
    bytes: usize,
    #[serde(flatten)]
    head: Head,
}

pub(super) fn backup(asking: &Asking, file: &Path) -> Result<(), Failure> {
    let bytes = block_on(fetch(asking))?;
    let unfit = |error: backup::BackupError| {
        let message = format!("what the node has sent is no backup: {error}");
        asking.refuse(Problem::new(
            Code::Failed,
            "a backup is read back before it is written",
            message,
            "ask again",
        ))
    };
    let (head, _) = backup::decode(&bytes).map_err(unfit)?;
    write(file, &bytes).map_err(|error| Failure::failed(format!("write {}: {error}", file.display())))?;
    let written = Written { file: file.to_owned(), bytes: bytes.len(), head };
    let answer = serde_json::to_value(&written).map_err(Failure::failed)?;
    let shown = |written: &Written| {
        format!("{}\n{} bytes in {}", render::backup(&written.head), written.bytes, written.file.display())
    };
    asking.print(&answer, shown)
}

async fn fetch(asking: &Asking) -> Result<Vec<u8>, Failure> {
    let mut client = asking.connect().await?;
    let mut bytes = Vec::new();
    let mut torn = None;
    let take = |event| match serde_json::from_value::<BackupPiece>(event).map(|piece| unhex(&piece.hex)) {
        // No more than a backup may have: whoever answers may be anybody.
        Ok(Some(piece)) if bytes.len() + piece.len() <= BACKUP_BYTES_MAX => bytes.extend(piece),
        Ok(Some(_)) => torn = Some("it is larger than a backup may be".to_owned()),
        Ok(None) => torn = Some("a piece is not hexadecimal".to_owned()),
        Err(error) => torn = Some(error.to_string()),
    };
    let made = client.ask(Act::ControlBackup, take).await.map_err(|error| asking.no_answer(&error))?;
    let made: BackupMade = asking.read(&made)?;
    if torn.is_none() && usize::try_from(made.bytes) != Ok(bytes.len()) {
        torn = Some(format!("{} of {} bytes have come", bytes.len(), made.bytes));
    }
    match torn {
        None => Ok(bytes),
        Some(why) => {
            let rule = "a backup comes whole";
            Err(asking.refuse(Problem::new(Code::Failed, rule, format!("the backup: {why}"), "ask again")))
        }
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let byte = |[high, low]: &[u8; 2]| Some(digit(*high)? << 4 | digit(*low)?);
    rest.is_empty().then(|| pairs.iter().map(byte).collect())?
}

/// Mode 0600 from its first byte, synced, and in place of what was there only when it is whole.
fn write(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut temporary = tempfile::Builder::new().prefix(".godwit-backup-").tempfile_in(folder)?;
    temporary.write_all(bytes)?;
    temporary.as_file().sync_all()?;
    temporary.persist(file)?;
    File::open(folder)?.sync_all()
}

pub(super) fn restore(config: &Path, file: &Path) -> Result<(), Failure> {
    let config = NodeConfig::load(config).map_err(Failure::failed)?;
    let founded = disaster::restore(&config, file).map_err(refused)?;
    print(&render::backup(&founded.from))?;
    print(&told(&config, &founded))?;
    talk(
        "What was agreed after this backup is forgotten: guests that were made since are shown where they run and left alone.",
    );
    Ok(())
}

pub(super) fn recover(config: &Path, yes_really: Option<String>) -> Result<(), Failure> {
    let config = NodeConfig::load(config).map_err(Failure::failed)?;
    let survey = disaster::survey(&config).map_err(refused)?;
    print(&render::backup(&survey.head))?;
    talk(&losses(&config, &survey));
    let name = match yes_really {
        Some(name) => name,
        None => typed(&config.cluster)?,
    };
    if name != config.cluster {
        let message = format!("{name:?} is not the name of this cluster; nothing has changed");
        let hint =
            format!("the name is {:?}: type it, or say --yes-really {}", config.cluster, config.cluster);
        return Err(Failure::refused("what is lost is lost in somebody's name", message, hint));
    }
    let founded = survey.recover(&config).map_err(refused)?;
    print(&told(&config, &founded))?;
    Ok(())
}

/// What is given up, before it is.
fn losses(config: &NodeConfig, survey: &Survey) -> String {
    let Survey { head, committed, others, .. } = survey;
    let unsure = head.index.saturating_sub(*committed);
    let names = |votes: bool| {
        let names = others.iter().filter(|(_, it)| *it == votes).map(|(name, _)| name.to_string());
        names.collect::<Vec<_>>().join(", ")
    };
    let mut told = format!(
        "\nThis gives up control group {} for a new one, of which {} is the only voter:\n- entries after {} that the others \
         have agreed on are lost; how many nobody here can say\n",
        head.group, config.name, head.index
    );
    if unsure > 0 {
        told += &format!(
            "- the last {unsure} of its entries, from {} on, are taken as agreed, whether they were or not\n",
            committed + 1
        );
    }
    let voters = names(true);
    if !voters.is_empty() {
        told += &format!(
            "- these voted, and must never come back as what they were: {voters}. They are refused as of another group; two \
             groups would give orders\n"
        );
    }
    let learners = names(false);
    if !learners.is_empty() {
        told += &format!("- these were learning: {learners}. They are refused, too\n");
    }
    told += &format!(
        "- {} migrations end, wherever they were\nGuests run on. Who runs them is settled when their nodes have said so.",
        head.migrations
    );
    told
}

fn typed(cluster: &str) -> Result<String, Failure> {
    talk(&format!("\nType the cluster's name ({cluster}) to go on:"));
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

/// What to do next.
fn told(config: &NodeConfig, founded: &Founded) -> String {
    let Founded { group, from } = founded;
    let others = from.voters.iter().filter(|name| **name != config.name).map(|name| name.to_string());
    let others = others.collect::<Vec<_>>();
    let mut told = format!(
        "founded: control group {group}, in the place of {}. {} is its only voter.\nNext: start {}, then\n",
        from.group, config.name, config.name
    );
    told += "  godwit status                    # guests are unsure until all nodes were heard\n";
    for name in &others {
        told += &format!(
            "  godwit node fence {name:<14} # if that machine is off for good, and its guests with it\n"
        );
    }
    told += "  godwit control add NODE          # until three vote again";
    told
}

fn refused(error: DisasterError) -> Failure {
    Failure::failed(error)
}
