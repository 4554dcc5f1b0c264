//! Configs and the command line, as an operator meets them: exit code, what is wrong, and the line that would do.

use std::error::Error;
use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};

use godwit_node::ca;
use libtest_mimic::Trial;

use crate::support::program::{Ran, godwit};
use crate::support::world::{World, node};
use crate::support::{Outcome, short_story, stories};

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = stories![a_second_node_on_a_state_folder_is_refused];
    trials.extend([
        short_story("a_key_that_nobody_knows_is_refused_with_the_line_that_would_do", unknown_key),
        short_story("a_zero_is_refused_with_the_line_that_would_do", zero),
        short_story("an_address_that_is_taken_is_refused_with_the_line_that_would_do", address_in_use),
        short_story("a_config_that_is_missing_is_refused_by_name", missing),
        short_story("bad_usage_ends_with_code_2", usage),
        short_story("the_version_is_printed", version),
    ]);
    trials
}

/// A node that could start, but for one line of its config.
struct Almost {
    folder: tempfile::TempDir,
}

impl Almost {
    fn new() -> Result<Self, Box<dyn Error>> {
        let folder = tempfile::tempdir()?;
        ca::init(&folder.path().join("ca"))?;
        ca::issue(&folder.path().join("ca"), &node("node-a"), folder.path())?;
        Ok(Self { folder })
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("node.toml")
    }

    /// Runs it with these lines under `[migration]`. It must fail, and say where.
    async fn run(&self, migration: &str) -> Result<Ran, Box<dyn Error>> {
        let state = self.folder.path().join("state");
        // Ports of its own for each; the voters are never asked.
        let text = format!(
            "cluster = \"lab\"\nname = \"node-a\"\nstate = \"{0}\"\n[identity]\nca = \"ca.pem\"\n\
             certificate = \"node.pem\"\nkey = \"node.key\"\n[admin]\nsocket = \"{0}/admin.sock\"\n[control]\n\
             listen = \"127.0.0.1:0\"\n[control.voters]\nnode-x = \"127.0.0.1:1\"\nnode-y = \"127.0.0.1:2\"\n\
             node-z = \"127.0.0.1:3\"\n[migration]\n{migration}\n",
            state.display()
        );
        fs::write(self.config(), text)?;
        refused(&self.config()).await
    }
}

/// A config that must be refused, by its name.
async fn refused(config: &Path) -> Result<Ran, Box<dyn Error>> {
    let ran = run(config).await?;
    assert!(ran.stderr.contains(&config.display().to_string()), "it names no file: {ran:?}");
    Ok(ran)
}

/// A node that must not start.
async fn run(config: &Path) -> Result<Ran, Box<dyn Error>> {
    let ran = godwit(&["node".as_ref(), "run".as_ref(), "-c".as_ref(), config.as_os_str()]).await?;
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""), "{ran:?}");
    Ok(ran)
}

/// A refusal ends with this line, ready to be pasted.
fn offers(ran: &Ran, offered: &str) {
    let (_, line) = ran.stderr.split_once("corrected line:\n").unwrap_or_default();
    assert_eq!(line.trim(), offered, "{}", ran.stderr);
}

async fn unknown_key() -> Outcome {
    let ran = Almost::new()?.run("listn = \"127.0.0.1:0\"").await?;
    assert!(ran.stderr.contains("line 17: unknown key `listn` in [migration]"), "{ran:?}");
    offers(&ran, "listen = \"127.0.0.1:0\"");
    Ok(())
}

async fn zero() -> Outcome {
    let almost = Almost::new()?;
    let ran = almost.run("listen = \"127.0.0.1:0\"\nudp_payload_bytes_max = 0").await?;
    assert!(ran.stderr.contains("line 18: `udp_payload_bytes_max` in [migration] is 0"), "{ran:?}");
    offers(&ran, "udp_payload_bytes_max = 1452");
    let ran = almost.run("listen = \"127.0.0.1:0\"\nsocket_buffer_bytes = \"0\"").await?;
    assert!(ran.stderr.contains("line 18: `socket_buffer_bytes` in [migration] is \"0\""), "{ran:?}");
    offers(&ran, "socket_buffer_bytes = \"4Mi\"");
    Ok(())
}

async fn address_in_use() -> Outcome {
    let taken = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = taken.local_addr()?;
    let ran = Almost::new()?.run(&format!("listen = \"{address}\"")).await?;
    assert!(ran.stderr.contains(&format!("already uses UDP address {address}")), "{ran:?}");
    offers(&ran, &format!("listen = \"127.0.0.1:{}\"", address.port().checked_add(1).unwrap_or(65_534)));
    Ok(())
}

async fn missing() -> Outcome {
    let folder = tempfile::tempdir()?;
    let ran = refused(&folder.path().join("nowhere.toml")).await?;
    assert!(ran.stderr.contains("No such file"), "{ran:?}");
    Ok(())
}

async fn a_second_node_on_a_state_folder_is_refused(world: &mut World) -> Outcome {
    let spec = world.cluster.spec(&node("node-a"));
    world.cluster.start_node(spec).await?;
    let state = world.cluster.node_dir(&node("node-a"));
    let second = run(&state.join("node.toml")).await?;
    let rule = format!("state folder {} is in use by another node process", state.display());
    assert!(second.stderr.contains(&rule), "{second:?}");
    Ok(())
}

async fn usage() -> Outcome {
    for words in [
        &[][..],
        &["fly"],
        &["node", "run"],
        &["lab", "--nodes", "2"],
        &["lab", "--memory", "a lot"],
        &["lab", "--bandwith", "1Mi"],
    ] {
        let ran = godwit(words).await?;
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "godwit {words:?}: {ran:?}");
        assert!(ran.stderr.contains("--help") && !ran.stderr.contains("panicked"), "{words:?}: {ran:?}");
    }
    Ok(())
}

async fn version() -> Outcome {
    let version = format!("godwit {}\n", env!("CARGO_PKG_VERSION"));
    for words in [["version"], ["--version"]] {
        let ran = godwit(&words).await?;
        assert_eq!((ran.code, ran.stdout), (Some(0), version.clone()));
    }
    Ok(())
}
