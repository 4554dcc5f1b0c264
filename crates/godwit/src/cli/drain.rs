//! `godwit drain` and `godwit node drain`: everything away from a node.
//!
//! ```text
//!   drain ─▶ (--wait) progress on stderr ─▶ drained: 0
//!                                        └▶ stuck or cancelled: the guests that are left, 1
//! ```
//!
//! Always true: whoever stops waiting leaves the drain going, and is told so, with how to cancel it.

use clap::Args;
use godwit_admin::render;
use godwit_domain::NodeName;
use godwit_wire::admin::{Act, NodeDetail};
use indicatif::ProgressBar;
use serde_json::Value;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

use super::asking::{Changing, block_on};
use super::failure::Failure;
use super::follow::Sight;
use super::live::Live;
use super::talk;
use super::wait::INTERRUPTED;

#[derive(Debug, Args)]
pub(super) struct Drain {
    /// The node. It takes no guests until `node uncordon`
    node: NodeName,
    /// Wait until nothing is left, or nothing more moves by itself. Ctrl-C leaves it going
    #[arg(long, conflicts_with = "cancel")]
    wait: bool,
    /// Ask for nothing more: what is under way goes on, and the node still takes no guests
    #[arg(long)]
    cancel: bool,
    #[command(flatten)]
    changing: Changing,
}

impl Drain {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Self { node, wait, cancel, changing } = self;
        match (wait, cancel) {
            (true, _) => wait_for(&changing, &node),
            (false, true) => changing.show(Act::NodeDrainCancel { node }, render::node),
            (false, false) => changing.show(Act::NodeDrain { node }, render::node),
        }
    }
}

fn wait_for(changing: &Changing, node: &NodeName) -> Result<(), Failure> {
    let asking = &changing.asking;
    let id = changing.ids()?.next();
    let (last, detail) = block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut client = asking.connect().await?;
        let asked = tokio::select! {
            asked = client.ask_under(Some(id.clone()), Act::NodeDrain { node: node.clone() }, |_| {}) => {
                asked.map_err(|error| changing.refuse(error.problem(), &id))?
            }
            _ = interrupt.recv() => return Err(interrupted(changing, node, "may have begun")),
        };
        drop(client);
        let detail: NodeDetail = asking.read(&asked)?;
        Box::pin(follow(changing, (asked, detail), &mut interrupt)).await
    })?;
    asking.print(&last, render::node)?;
    ended(node, &detail)
}

async fn follow(
    changing: &Changing,
    (answer, asked): (Value, NodeDetail),
    interrupt: &mut Signal,
) -> Result<(Value, NodeDetail), Failure> {
    let node = &asked.row.name;
    let mut live = Live::start();
    show(&mut live, &asked);
    if is_over(&asked) {
        return Ok((answer, asked));
    }
    let sight = Sight {
        asking: &changing.asking,
        act: Act::NodeDrainWatch { node: node.clone() },
        again: format!("drain {node} --wait"),
        goes_on: "the drain goes on",
    };
    let ended = tokio::select! {
        ended = sight.follow(Some(Instant::now()), is_over, |_, detail| show(&mut live, detail)) => Some(ended),
        _ = interrupt.recv() => None,
    };
    drop(live);
    ended.unwrap_or_else(|| Err(interrupted(changing, node, "goes on")))
}

fn interrupted(changing: &Changing, node: &NodeName, does: &str) -> Failure {
    talk(&format!(
        "interrupted: the drain of {node} {does}; `{}` shows it, `{}` ends it",
        changing.asking.command(&format!("node show {node}")),
        changing.asking.command(&format!("drain {node} --cancel"))
    ));
    Failure::Told(INTERRUPTED)
}

fn is_over(detail: &NodeDetail) -> bool {
    detail.drain.as_ref().is_none_or(|drain| drain.state != "draining")
}

/// Whether it came out as it was asked for.
fn ended(node: &NodeName, detail: &NodeDetail) -> Result<(), Failure> {
    let drained = detail.drain.as_ref().is_some_and(|drain| drain.state == "drained");
    if drained {
        return Ok(());
    }
    let Some(drain) = &detail.drain else {
        let message = format!("the drain of {node} was ended: it takes guests again");
        return Err(Failure::refused("drain", message, format!("`godwit drain {node}` begins a new one")));
    };
    let all = drain.state != "stuck";
    let left: Vec<String> = render::stuck(drain, all).iter().map(|line| format!("\n  {line}")).collect();
    let message = format!(
        "the drain of {node} is {}: {} moved, {} left{}",
        drain.state,
        drain.moved,
        drain.left.len(),
        left.concat()
    );
    let try_ = format!(
        "do what each of them asks for, then `godwit drain {node} --wait`; `godwit node uncordon {node}` ends it"
    );
    Err(Failure::refused("a drained node holds no guest", message, try_))
}

fn show(live: &mut Live, detail: &NodeDetail) {
    live.show(|| render::drain_line(detail), str::to_owned, |bar| show_bar(bar, detail));
}

fn show_bar(bar: &ProgressBar, detail: &NodeDetail) {
    bar.set_message(render::drain_line(detail));
    if let Some(drain) = &detail.drain {
        let left = u64::try_from(drain.left.len()).unwrap_or(u64::MAX);
        bar.set_length(drain.moved.saturating_add(left));
        bar.set_position(drain.moved);
    }
}
