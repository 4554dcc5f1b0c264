//! What this node has, said to a control group that was founded anew and may know less, or something older.
//!
//! ```text
//!   asked (Push) ─▶ every runner here is reached and stands as it says ─▶ Testify, entry by entry ─▶ the last is agreed
//! ```
//!
//! Always true: this process has never obeyed another group (it begins anew when it follows one), and does nothing to a
//! runner of which it is not known who runs its guest: what is said stays so.

use actix::{AsyncContext, Context, Handler, Message};
use godwit_domain::ownership::Stands;
use godwit_domain::registry::{Command, TESTIFIED_MAX, Testified};
use godwit_wire::handoff::RunState;

use super::proposals::until_answered;
use super::{Here, NodeActor};

/// It is said, or not taken.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Said(Option<String>);

impl NodeActor {
    /// Says what is here, if that is asked and known.
    pub(super) fn say_what_is_here(&mut self, ctx: &mut Context<Self>) {
        let is_known = self.unreached.is_empty()
            && self.starting.is_empty()
            && self.here.values().all(|here| !here.busy && !here.stale && !here.dead);
        if !self.asked || self.testifying || !self.complete || self.fenced.is_some() {
            return;
        }
        if !is_known {
            return self.say_what_is_waited_for();
        }
        self.testifying = true;
        let mut all: Vec<Testified> = self
            .here
            .iter()
            .map(|(instance, here)| Testified {
                guest: here.about.uid,
                instance: *instance,
                stands: self.stands(*instance, here),
                arriving: here.about.arriving.clone(),
            })
            .collect();
        let buried = self.records.all_buried().filter(|buried| !self.here.contains_key(&buried.instance));
        all.extend(buried.map(|buried| Testified {
            guest: buried.uid,
            instance: buried.instance,
            stands: Stands::Buried,
            arriving: None,
        }));
        tracing::info!(runners = self.here.len(), "the control group was founded anew: said what is here");
        let (leader, home, node) = (self.leader.clone(), ctx.address(), self.name.clone());
        tokio::spawn(async move {
            let mut refused = None;
            let entries = all.len().div_ceil(TESTIFIED_MAX).max(1);
            for at in 0..entries {
                let runners = all.iter().skip(at * TESTIFIED_MAX).take(TESTIFIED_MAX).cloned().collect();
                let (first, last) = (at == 0, at + 1 == entries);
                let command = Command::Testify { node: node.clone(), first, runners, last };
                refused = until_answered(&leader, command, None).await.0;
                if refused.is_some() {
                    break;
                }
            }
            let _ = home.send(Said(refused)).await;
        });
    }

    /// For whoever looks why guests stay unsure: a runner that hangs is waited for.
    fn say_what_is_waited_for(&mut self) {
        let folders = self.unreached.iter().map(|dir| format!("a runner in {}", dir.display()));
        let silent = self.here.iter().filter(|(_, here)| here.stale);
        let silent =
            silent.map(|(instance, here)| format!("runner {instance} of {}", here.attached.hello.guest));
        let waits_for: Vec<String> = folders.chain(silent).collect();
        if !waits_for.is_empty() && waits_for != self.testimony_waits_for {
            let whom = waits_for.join(", ");
            tracing::info!(
                whom,
                "the control group was founded anew and is told what is here once these have answered"
            );
        }
        self.testimony_waits_for = waits_for;
    }

    fn stands(&self, instance: godwit_domain::InstanceId, here: &Here) -> Stands {
        let epoch = here.standing.epoch;
        match here.standing.state {
            RunState::Running => Stands::Running(epoch),
            RunState::Paused => {
                let mut withheld = self.records.withheld(here.about.uid);
                Stands::Paused { sealed: epoch, withheld: withheld.any(|known| known == (instance, epoch)) }
            }
            RunState::Incoming => Stands::Incoming { made: here.about.made, arrived: here.standing.loaded },
        }
    }
}

impl Handler<Said> for NodeActor {
    type Result = ();

    fn handle(&mut self, Said(refused): Said, _: &mut Self::Context) {
        self.testifying = false;
        // The next push says whether it is asked again.
        self.asked = false;
        if let Some(why) = refused {
            tracing::info!(why, "what is here was not taken");
        }
    }
}
