//! What operators asked and heard, and what is made of it.
//!
//! ```text
//!   begin ─▶ Record, open ─▶ end: answered │ without effect │ still open
//!                               └────▶ judge: object by object ─▶ Judged │ what is wrong
//! ```
//!
//! Objects are judged one by one: a history is linearizable exactly if those of its objects are.
//!
//! Always true: a change stands here before it is sent, so one whose operator is stopped in the middle is open; a
//! problem's code is believed: what it says had no effect must have had none.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::checker::{VISITED_MAX, check};
use super::objects::Object;
use super::register::{Deed, Found, Operation, State};

/// Objects that are shown if more are wrong.
const SHOWN_MAX: usize = 3;

/// A change that was acknowledged: it is agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Acknowledged {
    /// Under which it was asked.
    pub(crate) request_id: String,
    /// What it was, and the answer.
    pub(crate) what: String,
}

/// A history that passes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Judged {
    /// All that count: what had no effect is not among them.
    pub(crate) operations: usize,
    /// Of these, gets.
    pub(crate) reads: usize,
    /// Of these, changes whose outcome nobody knows.
    pub(crate) unknown: usize,
    /// Objects that they were about.
    pub(crate) objects: usize,
    /// Configurations that the checker looked at.
    pub(crate) visited: usize,
    /// Requests without effect: nobody there, no leader, no quorum.
    pub(crate) in_vain: usize,
}

impl fmt::Display for Judged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operations, reads, unknown, objects, visited, in_vain } = self;
        write!(
            f,
            "linearizable: {operations} operations ({reads} reads, {unknown} unknown) on {objects} objects; \
             {visited} states visited; {in_vain} requests in vain"
        )
    }
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It was answered.
    Answered(Deed),
    /// It has not and will not have any effect.
    InVain,
    /// Nobody knows.
    Open,
}

#[derive(Debug, Clone)]
struct Record {
    object: Object,
    operation: Operation,
    request_id: Option<String>,
    in_vain: bool,
}

#[derive(Debug, Default)]
struct Inner {
    records: Vec<Record>,
    initial: BTreeMap<Object, State>,
    faults: Vec<String>,
}

/// See the module. Written by many operators at once; clones are the same one.
#[derive(Debug, Clone)]
pub(crate) struct History {
    began: Instant,
    inner: Arc<Mutex<Inner>>,
}

impl History {
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), inner: Arc::default() }
    }

    /// Microseconds since it began.
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // ---- written ---------------------------------------------------------------------------------------------

    /// Something is asked. Returns its number.
    pub(super) fn begin(&self, object: &Object, deed: Deed, request_id: Option<String>, by: String) -> usize {
        let mut inner = self.inner();
        let operation = Operation { deed, invoked: self.now(), returned: None, by };
        inner.records.push(Record { object: object.clone(), operation, request_id, in_vain: false });
        inner.records.len() - 1
    }

    /// It has ended; by whom at last.
    pub(super) fn end(&self, number: usize, end: End, by: &str) {
        let mut inner = self.inner();
        let now = self.now();
        let Some(record) = inner.records.get_mut(number) else { return };
        record.operation.by.clear();
        record.operation.by.push_str(by);
        match end {
            End::Answered(deed) => {
                record.operation.deed = deed;
                record.operation.returned = Some(now);
            }
            End::InVain => record.in_vain = true,
            End::Open => {}
        }
    }

    /// What an object was before anybody asked. Absent, if it is not said.
    pub(super) fn began_as(&self, object: &Object, state: State) {
        self.inner().initial.insert(object.clone(), state);
    }

    /// Something that is wrong without any judgement.
    pub(super) fn fault(&self, what: String) {
        self.inner().faults.push(what);
    }

    /// Every object that was asked for.
    pub(super) fn objects(&self) -> Vec<Object> {
        let mut all: Vec<Object> = self.inner().records.iter().map(|record| record.object.clone()).collect();
        all.sort();
        all.dedup();
        all
    }

    // ---- read ------------------------------------------------------------------------------------------------

    /// Judges it, and prints how much it was. Errors: what is wrong, with the operations around it.
    pub(crate) fn judge(&self) -> Result<Judged, String> {
        let inner = self.inner();
        let mut wrong = inner.faults.clone();
        let mut judged = Judged::default();
        let mut of: BTreeMap<&Object, Vec<Operation>> = BTreeMap::new();
        for record in &inner.records {
            let is_open = record.operation.returned.is_none();
            let is_read = record.operation.deed.effect().is_none();
            if record.in_vain || (is_open && is_read) {
                judged.in_vain += 1;
                continue;
            }
            judged.operations += 1;
            judged.reads += usize::from(is_read);
            judged.unknown += usize::from(is_open);
            of.entry(&record.object).or_default().push(record.operation.clone());
        }
        judged.objects = of.len();
        for (object, operations) in of {
            let initial = inner.initial.get(object).copied().flatten();
            match check(initial, &operations, VISITED_MAX) {
                Ok(visited) => judged.visited += visited,
                Err(error) => wrong.push(format!("{object} is {error}")),
            }
        }
        if wrong.is_empty() {
            eprintln!("{judged}");
            return Ok(judged);
        }
        let more = wrong.len().saturating_sub(SHOWN_MAX);
        wrong.truncate(SHOWN_MAX);
        if more > 0 {
            wrong.push(format!("and {more} more"));
        }
        Err(wrong.join("\n"))
    }

    /// How many changes were answered so far, and how many looks.
    pub(crate) fn answered(&self) -> (usize, usize) {
        let inner = self.inner();
        let answered = inner.records.iter().filter(|record| record.operation.returned.is_some());
        let (looks, changes): (Vec<_>, Vec<_>) =
            answered.partition(|record| record.operation.deed.effect().is_none());
        (changes.len(), looks.len())
    }

    /// Every change that was acknowledged; without those that changed nothing.
    pub(crate) fn acknowledged(&self) -> Vec<Acknowledged> {
        let inner = self.inner();
        let of = |record: &Record| {
            let Operation { deed, returned, .. } = &record.operation;
            let changed = matches!(
                deed,
                Deed::Put(_, Found::Absent | Found::Other | Found::Unsaid)
                    | Deed::Create(_, Found::Absent)
                    | Deed::Delete(Found::There | Found::Unsaid)
            );
            let request_id = record.request_id.clone().filter(|_| changed && returned.is_some())?;
            let what = format!("{}: {}", record.object, super::excerpt::line(&record.operation));
            Some(Acknowledged { request_id, what })
        };
        inner.records.iter().filter_map(of).collect()
    }
}
