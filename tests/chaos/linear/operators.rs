//! Operators: a few at once, each of whom asks one thing after another at some node, whatever becomes of it.
//!
//! ```text
//!   operator ─ get │ put │ create │ delete, of one of about eight objects ─▶ a node, alive or not
//!       └─ nobody knows? ─┬─ ask again under the same id, at another node
//!                         └─ leave it open
//! ```
//!
//! Policies, namespaces and labels are others every [`GENERATION`], so that histories stay short while operators meet at the same
//! objects; a node's label and the settings are the same all along.
//!
//! Always true: what is sent stands in the history before; operators look at answers and at nothing else.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;
use godwit_admin::client::{AskError, Client, new_request_id};
use godwit_domain::NodeName;
use godwit_wire::admin::{Act, Applied, Code, Problem};
use serde_json::Value as Json;
use tokio::task::JoinHandle;

use super::history::{End, History};
use super::objects::{Choices, KEYS, Kind, Object};
use super::register::{Deed, Found, Value};

/// Operators at work.
const OPERATORS: u64 = 5;
/// Mean time between two questions of one.
const PACE: Duration = Duration::from_millis(350);
/// How long the objects of one set are asked for.
const GENERATION: Duration = Duration::from_secs(45);
/// Policies of one set, and as many namespaces, and namespaces of which two labels are changed.
const OF_EACH: u64 = 2;
/// How long an answer is waited for.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a request is repeated whose outcome nobody knows.
const REPEATS_MAX: usize = 3;
/// Rest before a repetition, and between two tries of what must be answered.
const REST: Duration = Duration::from_millis(250);
/// How long what must be answered may take: the first look, all last looks, and calls under way at the end.
const PATIENCE: Duration = Duration::from_secs(40);
/// The rule by which a create is refused.
const EXISTS: &str = "what is created is not there yet";

/// See the module.
pub(crate) struct Operators {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

struct Shared {
    sockets: Vec<(NodeName, PathBuf)>,
    choices: Choices,
    history: History,
    /// The objects that stay: found out what they are at first.
    lasting: Vec<(Object, AtomicBool)>,
    seed: u64,
    began: Instant,
    next_value: AtomicU64,
    stop: AtomicBool,
}

/// What an operator hears.
#[derive(Default)]
enum Heard {
    Answer(Json),
    NotFound,
    /// What was to be created is there.
    Exists,
    /// As the problem's code is documented.
    NothingDone,
    /// Nothing by which anybody could know.
    #[default]
    Nothing,
}

impl Operators {
    /// Starts them on the current runtime. `settings`: manifests of settings among which they choose, each another;
    /// without any the settings are left alone. Whoever starts them twice in one cluster gives another seed.
    ///
    /// # Panics
    /// If there is no socket, or `settings` are no such manifests: that is the caller's mistake.
    pub(crate) fn start(sockets: Vec<(NodeName, PathBuf)>, seed: u64, settings: Vec<String>) -> Self {
        let choices = Choices::read(&settings).unwrap_or_else(|error| panic!("{error}"));
        let mut rng = Rng::with_seed(seed);
        let labelled = rng.choice(&sockets).expect("a socket").0.to_string();
        let mut lasting = vec![Object { kind: Kind::Node, name: labelled }];
        if choices.count() > 0 {
            lasting.push(Object { kind: Kind::Settings, name: "kubevirt-hyperconverged".to_owned() });
        }
        let shared = Arc::new(Shared {
            sockets,
            choices,
            history: History::new(),
            lasting: lasting.into_iter().map(|object| (object, AtomicBool::new(false))).collect(),
            seed,
            began: Instant::now(),
            next_value: AtomicU64::new(1),
            stop: AtomicBool::new(false),
        });
        let mut tasks = vec![tokio::spawn(first_looks(Arc::clone(&shared), rng.fork()))];
        for number in 1..=OPERATORS {
            let operator = Operator { shared: Arc::clone(&shared), number, rng: rng.fork(), last: None };
            tasks.push(tokio::spawn(operator.work()));
        }
        Self { shared, tasks }
    }

    /// What they have asked and heard so far.
    pub(crate) fn history(&self) -> &History {
        &self.shared.history
    }

    /// Stops them, waits for what is under way, and has a last look at every object. The cluster should be whole again: a
    /// last look that is not answered in time is a fault of the history.
    pub(crate) async fn finish(self) -> History {
        let Self { shared, tasks } = self;
        shared.stop.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + PATIENCE;
        for mut task in tasks {
            let left = deadline.saturating_duration_since(Instant::now());
            if tokio::time::timeout(left, &mut task).await.is_err() {
                // What it has asked for stays open.
                task.abort();
                shared.history.fault("an operator could not be stopped".to_owned());
            }
        }
        let mut rng = Rng::with_seed(shared.seed);
        let deadline = Instant::now() + PATIENCE;
        for object in shared.history.objects() {
            if !shared.look_until(&mut rng, &object, "the last look", deadline).await {
                shared.history.fault(format!("{object}: nobody answered the last look within {PATIENCE:?}"));
            }
        }
        shared.history.clone()
    }
}

/// Finds out what the objects are that were there before.
async fn first_looks(shared: Arc<Shared>, mut rng: Rng) {
    for (object, is_known) in &shared.lasting {
        while !shared.stop.load(Ordering::Relaxed) {
            let answer = shared.ask(&mut rng, None, get(object)).await.1;
            if let Heard::Answer(answer) = answer {
                match shared.choices.seen(object, answer) {
                    Ok(state) => shared.history.began_as(object, state),
                    Err(what) => shared.history.fault(what),
                }
                is_known.store(true, Ordering::Relaxed);
                break;
            }
            tokio::time::sleep(REST).await;
        }
    }
}

fn get(object: &Object) -> Act {
    let (kind, name) = (object.noun().to_owned(), Some(object.name.clone()));
    Act::Get { kind, name, namespace: None, watch: false }
}

impl Shared {
    /// One of the objects of this time.
    fn object(&self, rng: &mut Rng) -> Object {
        let known = self.lasting.iter().filter(|(_, is_known)| is_known.load(Ordering::Relaxed));
        let lasting: Vec<&Object> = known.map(|(object, _)| object).collect();
        let chosen = rng.usize(..lasting.len() + usize::try_from(3 * OF_EACH).unwrap_or_default());
        if let Some(object) = lasting.get(chosen) {
            return (*object).clone();
        }
        let generation = self.began.elapsed().as_secs() / GENERATION.as_secs();
        let (kind, what) = match rng.u8(..3) {
            0 => (Kind::Policy, "chaos"),
            1 => (Kind::Namespace, "chaos"),
            _ => (Kind::Label(KEYS[rng.usize(..KEYS.len())]), "labels"),
        };
        let number = rng.u64(..OF_EACH);
        Object { kind, name: format!("{what}-{:04x}-{generation}-{number}", self.seed & 0xffff) }
    }

    /// Asks some node, once.
    async fn ask(&self, rng: &mut Rng, request_id: Option<String>, act: Act) -> (String, Heard) {
        let Some((node, socket)) = rng.choice(&self.sockets) else { return Default::default() };
        let asked = async {
            let mut client = Client::connect(socket).await.map_err(|error| error.problem())?;
            client.ask_under(request_id, act, |_| {}).await
        };
        let heard = match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
            Ok(Ok(answer)) => Heard::Answer(answer),
            Ok(Err(AskError::Problem(problem))) => self.heard(problem),
            Ok(Err(AskError::Lost | AskError::TimedOut(_) | AskError::Protocol(_))) | Err(_) => {
                Heard::Nothing
            }
        };
        (node.to_string(), heard)
    }

    /// What a problem says, as its code is documented.
    fn heard(&self, problem: Problem) -> Heard {
        match problem.code {
            Code::NotFound => Heard::NotFound,
            Code::Unavailable => Heard::NothingDone,
            Code::Refused if problem.rule == EXISTS => Heard::Exists,
            Code::Invalid | Code::Refused => {
                self.history.fault(format!("refused, and by no rule: {problem} ({})", problem.rule));
                Heard::NothingDone
            }
            Code::Failed | Code::Unknown => Heard::Nothing,
        }
    }

    /// One look. Whether it was answered.
    async fn look(&self, rng: &mut Rng, object: &Object, who: &str) -> bool {
        let number = self.history.begin(object, Deed::Get(None), None, who.to_owned());
        let (node, heard) = self.ask(rng, None, get(object)).await;
        let by = format!("{who}, {node}");
        let seen = match heard {
            Heard::Answer(answer) => self.choices.seen(object, answer),
            Heard::NotFound if object.can_go() => Ok(None),
            Heard::NotFound | Heard::Exists | Heard::NothingDone | Heard::Nothing => {
                self.history.end(number, End::InVain, &by);
                return false;
            }
        };
        match seen {
            Ok(state) => self.history.end(number, End::Answered(Deed::Get(state)), &by),
            Err(what) => {
                self.history.fault(what);
                self.history.end(number, End::InVain, &by);
            }
        }
        true
    }

    async fn look_until(&self, rng: &mut Rng, object: &Object, who: &str, deadline: Instant) -> bool {
        while !self.look(rng, object, who).await {
            if Instant::now() > deadline {
                return false;
            }
            tokio::time::sleep(REST).await;
        }
        true
    }
}

/// One of them.
struct Operator {
    shared: Arc<Shared>,
    number: u64,
    rng: Rng,
    /// What it asked for last: now and then it asks for it again, as a new request.
    last: Option<(Object, Value)>,
}

impl Operator {
    async fn work(mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            let object = self.shared.object(&mut self.rng);
            let who = format!("operator {}", self.number);
            match self.rng.u64(..100) {
                ..45 => {
                    self.shared.look(&mut self.rng, &object, &who).await;
                }
                45..60 if object.can_go() => self.change(&object, Deed::Delete(Found::Unsaid), &who).await,
                _ => {
                    let value = self.value(&object);
                    self.last = Some((object.clone(), value));
                    let deed = match object.can_come() && self.rng.u8(..3) == 0 {
                        true => Deed::Create(value, Found::Unsaid),
                        false => Deed::Put(value, Found::Unsaid),
                    };
                    self.change(&object, deed, &who).await;
                }
            }
            // Not all at the same moment.
            let pace = PACE.mul_f64(0.5 + self.rng.f64());
            tokio::time::sleep(pace).await;
        }
    }

    /// A new content, or the last one again.
    fn value(&mut self, object: &Object) -> Value {
        match &self.last {
            Some((of, value)) if of == object && self.rng.u8(..4) == 0 => *value,
            _ if object.kind == Kind::Settings => self.rng.u64(1..=self.shared.choices.count()),
            _ => self.shared.next_value.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// Asks for a change until its outcome is known, or is left open.
    async fn change(&mut self, object: &Object, deed: Deed, who: &str) {
        let shared = Arc::clone(&self.shared);
        let act = act(&shared.choices, object, deed);
        let Ok(id) = new_request_id() else { return };
        let number = shared.history.begin(object, deed, Some(id.clone()), who.to_owned());
        let mut by = format!("{who}, id {id}");
        let repeats = if self.rng.bool() { REPEATS_MAX } else { 0 };
        let mut may_be_done = false;
        for _ in 0..=repeats {
            let (node, heard) = shared.ask(&mut self.rng, Some(id.clone()), act.clone()).await;
            by = format!("{by}, {node}");
            let end = match heard {
                Heard::Answer(answer) => answered(object, deed, answer),
                // It stands in no log: an earlier asking may yet come through.
                Heard::Exists if may_be_done => End::Open,
                Heard::Exists => exists(&shared.history, deed),
                Heard::NotFound => not_found(object, deed, may_be_done),
                // Of this asking: an earlier one may have had its effect.
                Heard::NothingDone if !may_be_done => End::InVain,
                Heard::NothingDone | Heard::Nothing => End::Open,
            };
            if end != End::Open {
                return shared.history.end(number, end, &by);
            }
            may_be_done = true;
            tokio::time::sleep(REST).await;
        }
        shared.history.end(number, End::Open, &by);
    }
}

fn act(choices: &Choices, object: &Object, deed: Deed) -> Act {
    let (kind, name) = (object.noun().to_owned(), object.name.clone());
    let apply = |value, create| {
        let object = choices.manifest(object, value);
        Act::Apply { object, namespace: None, create, dry_run: false }
    };
    match (object.kind, deed) {
        (_, Deed::Get(_)) => get(object),
        (Kind::Label(key), Deed::Put(..) | Deed::Create(..) | Deed::Delete(_)) => {
            let value = deed.effect().flatten().map(|value| value.to_string());
            let labels = [(key.to_owned(), value)].into_iter().collect();
            Act::Label { kind, name, namespace: None, labels, overwrite: true, dry_run: false }
        }
        (_, Deed::Put(value, _)) => apply(value, false),
        (_, Deed::Create(value, _)) => apply(value, true),
        (_, Deed::Delete(_)) => Act::Delete { kind, name, namespace: None, dry_run: false },
    }
}

/// What an answer says was done.
fn answered(object: &Object, deed: Deed, answer: Json) -> End {
    let Ok(Applied { done, .. }) = serde_json::from_value(answer) else { return End::Open };
    let is = |found| match deed {
        Deed::Put(value, _) => End::Answered(Deed::Put(value, found)),
        Deed::Create(value, _) => End::Answered(Deed::Create(value, found)),
        Deed::Delete(_) => End::Answered(Deed::Delete(found)),
        Deed::Get(_) => End::Open,
    };
    match done.as_str() {
        "created" => is(Found::Absent),
        // Of a node more is compared than its label.
        "configured" if object.kind == Kind::Node => is(Found::Unsaid),
        "configured" => is(Found::Other),
        "unchanged" => is(Found::Same),
        "deleted" => is(Found::There),
        "labeled" => is(Found::Unsaid),
        _ => End::Open,
    }
}

/// What was to be created is there.
fn exists(history: &History, deed: Deed) -> End {
    if let Deed::Create(value, _) = deed {
        return End::Answered(Deed::Create(value, Found::There));
    }
    history.fault(format!("refused because it is there, and nothing was to be created: {deed:?}"));
    End::Open
}

fn not_found(object: &Object, deed: Deed, may_be_done: bool) -> End {
    match deed {
        Deed::Delete(_) => End::Answered(Deed::Delete(Found::Absent)),
        // The node has not joined yet.
        Deed::Put(..) | Deed::Create(..) | Deed::Get(_) if object.kind == Kind::Node && !may_be_done => {
            End::InVain
        }
        Deed::Put(..) | Deed::Create(..) | Deed::Get(_) => End::Open,
    }
}
