//! Whether a history of one object is linearizable: whether each operation can be given a moment between its invocation
//! and its answer such that, one after another, they are what a register would have answered.
//!
//! ```text
//!   operations ─▶ steps ── search (Wing and Gong; Lowe's memory of where it has been) ─▶ an order │ the one in the way
//!              └▶ open effects, by what they make: 3 × "v7", 1 × "deleted"
//! ```
//!
//! A configuration is the moves that are placed, the state, and the open effects that were spent. It is left by a move
//! that may come next: no other that is not placed was over before it began. Three things keep the search small, and none
//! loses an order:
//!
//! - A look that holds now is placed now. It changes nothing, so whatever could follow still can.
//! - An operation without an answer is an *open effect*. It is spent only where a look needs it, directly before that
//!   look: an order in which it stands earlier is an order still if it is moved there, or left out if no look needs it.
//!   Open effects that make the same are one class with a number: none of them ends, so which one is spent is all one.
//! - Contents that no look asks for are all the same content: no look can tell them apart. To drop such an open put would
//!   be wrong: it may be what a `configured` or a `deleted` has found.
//! - An open create takes effect only where there is nothing. What may have made it so, and is needed for nothing else, is
//!   an open delete: then both are spent together.
//! - Where the same moves led to the same state with no more open effects spent, and in vain, it is in vain again.
//!
//! Always true: a history that is too hard is said to be so, and is no pass.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use super::excerpt::excerpt;
use super::register::{ANONYMOUS, Look, Move, Operation, State};

/// Configurations that are looked at before a history is given up.
pub(crate) const VISITED_MAX: usize = 2_000_000;

/// Why a history does not pass.
#[derive(Debug)]
pub(crate) enum NotLinear {
    /// There is no order.
    Violation {
        /// The operation that can not be placed, however those before it are.
        stuck: usize,
        /// It, and what stands around it.
        excerpt: String,
    },
    /// The bound was reached: nobody knows.
    GaveUp {
        /// Configurations that were looked at.
        visited: usize,
        /// The furthest operation that stood in the way, and what stands around it.
        excerpt: String,
    },
}

impl fmt::Display for NotLinear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Violation { excerpt, .. } => write!(f, "not linearizable:\n{excerpt}"),
            Self::GaveUp { visited, excerpt } => {
                write!(f, "not judged: given up after {visited} configurations, at best here:\n{excerpt}")
            }
        }
    }
}

/// Judges the operations of one object, which began as `initial`. Returns how many configurations were looked at.
pub(crate) fn check(initial: State, operations: &[Operation], bound: usize) -> Result<usize, NotLinear> {
    Search::new(operations).run(initial, bound).map_err(|failed| match failed {
        Failed::Stuck(stuck) => NotLinear::Violation { stuck, excerpt: excerpt(initial, operations, stuck) },
        Failed::Bound { visited, stuck } => {
            NotLinear::GaveUp { visited, excerpt: excerpt(initial, operations, stuck) }
        }
    })
}

/// An operation that was answered.
#[derive(Debug)]
struct Placed {
    is: Move,
    invoked: u64,
    returned: u64,
    operation: usize,
}

/// Open effects that make the same.
#[derive(Debug)]
struct Class {
    makes: State,
    /// Only where there is nothing.
    creates: bool,
    /// When each was invoked, in order.
    invoked: Vec<u64>,
}

impl Class {
    /// How many may have taken effect by then.
    fn by(&self, time: u64) -> usize {
        self.invoked.partition_point(|invoked| *invoked <= time)
    }
}

#[derive(Debug, Clone)]
struct Configuration {
    done: Done,
    state: State,
    spent: Vec<u16>,
}

/// Which moves are placed: all before `all_before`, and those whose bits are set.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Done {
    all_before: usize,
    bits: Vec<u64>,
}

impl Done {
    fn has(&self, index: usize) -> bool {
        let Some(beyond) = index.checked_sub(self.all_before) else { return true };
        self.bits.get(beyond / 64).is_some_and(|word| word >> (beyond % 64) & 1 == 1)
    }

    fn put(&mut self, index: usize) {
        let beyond = index - self.all_before;
        if self.bits.len() <= beyond / 64 {
            self.bits.resize(beyond / 64 + 1, 0);
        }
        self.bits[beyond / 64] |= 1 << (beyond % 64);
        let mut full = 0;
        while self.has(self.all_before + full) {
            full += 1;
        }
        self.drop_first(full);
    }

    /// Moves the bits down, so that equal sets are equal values.
    fn drop_first(&mut self, count: usize) {
        self.all_before += count;
        self.bits.drain(..(count / 64).min(self.bits.len()));
        let shift = count % 64;
        if shift > 0 {
            for at in 0..self.bits.len() {
                let next = self.bits.get(at + 1).copied().unwrap_or(0);
                self.bits[at] = self.bits[at] >> shift | next << (64 - shift);
            }
        }
        while self.bits.last() == Some(&0) {
            self.bits.pop();
        }
    }
}

enum Failed {
    Stuck(usize),
    Bound { visited: usize, stuck: usize },
}

struct Search {
    /// By invocation.
    moves: Vec<Placed>,
    classes: Vec<Class>,
}

impl Search {
    fn new(operations: &[Operation]) -> Self {
        let mut known: Vec<(usize, &Operation, u64)> = Vec::new();
        let mut open: BTreeMap<(State, bool), Vec<u64>> = BTreeMap::new();
        let asked = contents_asked_for(operations);
        for (number, operation) in operations.iter().enumerate() {
            match (operation.returned, operation.deed.effect()) {
                (Some(returned), _) => known.push((number, operation, returned)),
                (None, Some(makes)) => {
                    let makes = makes.map(|value| if asked.contains(&value) { value } else { ANONYMOUS });
                    let creates = operation.deed.step().look.is_some();
                    open.entry((makes, creates)).or_default().push(operation.invoked);
                }
                // Nobody has seen what it saw.
                (None, None) => {}
            }
        }
        known.sort_by_key(|(_, operation, returned)| (operation.invoked, *returned));
        let moves = known.into_iter().map(|(number, operation, returned)| Placed {
            is: operation.deed.step(),
            invoked: operation.invoked,
            returned,
            operation: number,
        });
        let classes = open.into_iter().map(|((makes, creates), mut invoked)| {
            invoked.sort_unstable();
            Class { makes, creates, invoked }
        });
        Self { moves: moves.collect(), classes: classes.collect() }
    }

    fn run(&self, initial: State, bound: usize) -> Result<usize, Failed> {
        let first = Done { all_before: 0, bits: Vec::new() };
        let mut stack =
            vec![Configuration { done: first, state: initial, spent: vec![0; self.classes.len()] }];
        let mut been: HashMap<(Done, State), Vec<Vec<u16>>> = HashMap::new();
        let (mut visited, mut furthest) = (0, (0, 0));
        while let Some(mut at) = stack.pop() {
            let Some((barrier, may_come)) = self.settle(&mut at) else { return Ok(visited) };
            furthest = furthest.max(barrier);
            let before = been.entry((at.done.clone(), at.state)).or_default();
            let no_more =
                |earlier: &Vec<u16>| earlier.iter().zip(&at.spent).all(|(earlier, now)| earlier <= now);
            if before.iter().any(no_more) {
                continue;
            }
            before.push(at.spent.clone());
            visited += 1;
            if visited > bound {
                return Err(Failed::Bound { visited, stuck: furthest.1 });
            }
            self.leave(&at, barrier.0, &may_come, &mut stack);
        }
        Err(Failed::Stuck(furthest.1))
    }

    /// Places every look that holds. Then: by when the next must be placed and which operation says so, and the moves that
    /// may come next. `None`: all are placed.
    fn settle(&self, at: &mut Configuration) -> Option<((u64, usize), Vec<usize>)> {
        loop {
            let (barrier, may_come) = self.next(&at.done)?;
            let is_only_look = |index: &&usize| self.moves[**index].is.write.is_none();
            let holds =
                may_come.iter().filter(is_only_look).find(|index| self.made(**index, at.state).is_some());
            let Some(holds) = holds else { return Some((barrier, may_come)) };
            at.done.put(*holds);
        }
    }

    fn made(&self, index: usize, state: State) -> Option<State> {
        self.moves[index].is.made(state)
    }

    /// The first end among the moves that are not placed, and those of them that began no later.
    fn next(&self, done: &Done) -> Option<((u64, usize), Vec<usize>)> {
        let mut barrier: Option<(u64, usize)> = None;
        let mut open = Vec::new();
        for (index, one) in self.moves.iter().enumerate().skip(done.all_before) {
            if barrier.is_some_and(|(end, _)| one.invoked > end) {
                break;
            }
            if !done.has(index) {
                let end = (one.returned, one.operation);
                barrier = Some(barrier.map_or(end, |barrier| barrier.min(end)));
                open.push(index);
            }
        }
        let barrier = barrier?;
        let may_come = |index: &usize| self.moves[*index].invoked <= barrier.0;
        Some((barrier, open.into_iter().filter(may_come).collect()))
    }

    /// Every way on; the one that is tried first is pushed last.
    fn leave(&self, at: &Configuration, barrier: u64, may_come: &[usize], stack: &mut Vec<Configuration>) {
        for (number, class) in self.classes.iter().enumerate().rev() {
            if usize::from(at.spent[number]) < class.by(barrier) {
                self.spend(at, number, barrier, may_come, stack);
            }
        }
        let mut possible: Vec<usize> =
            may_come.iter().copied().filter(|index| self.made(*index, at.state).is_some()).collect();
        possible.sort_by_key(|index| std::cmp::Reverse(self.moves[*index].returned));
        for index in possible {
            let mut next = at.clone();
            next.state = self.made(index, at.state).unwrap_or(at.state);
            next.done.put(index);
            stack.push(next);
        }
    }

    /// An open effect, where something needs it: a look that does not hold now, or a delete of what is not there.
    fn spend(
        &self,
        at: &Configuration,
        class: usize,
        barrier: u64,
        may_come: &[usize],
        stack: &mut Vec<Configuration>,
    ) {
        let (mut spent, makes) = (at.spent.clone(), self.classes[class].makes);
        spent[class] += 1;
        if self.classes[class].creates && at.state.is_some() {
            let deletes = self.classes.iter().position(|class| class.makes.is_none());
            let Some(deletes) =
                deletes.filter(|it| usize::from(at.spent[*it]) < self.classes[*it].by(barrier))
            else {
                return;
            };
            spent[deletes] += 1;
        }
        let mut is_looked_at = false;
        for index in may_come {
            if self.made(*index, at.state).is_some() || self.made(*index, makes).is_none() {
                continue;
            }
            if self.moves[*index].is.write.is_none() {
                is_looked_at = true;
                continue;
            }
            let mut next = Configuration { spent: spent.clone(), ..at.clone() };
            next.state = self.made(*index, makes).unwrap_or(makes);
            next.done.put(*index);
            stack.push(next);
        }
        if is_looked_at {
            stack.push(Configuration { state: makes, spent, ..at.clone() });
        }
    }
}

fn contents_asked_for(operations: &[Operation]) -> BTreeSet<u64> {
    let answered = operations.iter().filter(|operation| operation.returned.is_some());
    let looks = answered.filter_map(|operation| operation.deed.step().look);
    looks
        .filter_map(|look| match look {
            Look::Exactly(state) => state,
            Look::OtherThan(value) => Some(value),
            Look::There => None,
        })
        .collect()
}
