//! Pages out of a guest's memory into a batch, and out of a batch into a guest's memory.
//!
//! Always true: a page is read once per batch, after it was planned; a page that is all zeros, or a hole, takes no
//! payload; what is packed is packed after that; writes happen in the order in which they were asked for.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use godwit_domain::progress::SentPages;
use godwit_domain::{PAGE_SIZE, PageCount, PageIndex, PageRun, Round};
use godwit_memory::{Faults, Memfd};
use godwit_wire::batch::{Batch, Class, ClassedRun};
use godwit_wire::migration::SessionId;

use crate::compress::link::LinkRate;
use crate::compress::packer::{Packer, Packing};
use crate::source::Plan;
use crate::target::Write;

/// A batch as it goes onto a page stream.
#[derive(Debug)]
pub(crate) struct Encoded {
    /// Head and run table.
    pub(crate) head: Bytes,
    /// The raw pages, or the block that they were packed into.
    pub(crate) payload: Bytes,
    /// What its pages go as.
    pub(crate) sent: SentPages,
    /// Where whoever sends it tells how fast the link is.
    pub(crate) link: Arc<LinkRate>,
}

/// Reads planned pages out of a guest's memory.
#[derive(Debug)]
pub(crate) struct Reader {
    memory: Arc<Memfd>,
    session: SessionId,
    /// Up to where data is known to follow without a hole. Only ever used within the first round: a page that
    /// a scan reported was written, and is read without asking.
    data: PageRun,
    packer: Packer,
}

impl Reader {
    /// A reader for one page session.
    pub(crate) fn new(memory: Arc<Memfd>, session: SessionId) -> Self {
        Self { memory, session, data: PageRun::new(0, 0), packer: Packer::new() }
    }

    /// The guest's memory.
    pub(crate) fn memory(&self) -> &Memfd {
        &self.memory
    }

    /// Reads a plan's pages and classes them.
    pub(crate) fn read(&mut self, plan: &Plan) -> io::Result<Encoded> {
        let begun = Instant::now();
        let mut payload = Vec::with_capacity(plan.pages().0 as usize * PAGE_SIZE);
        let mut runs = Vec::with_capacity(plan.runs.len());
        for run in &plan.runs {
            if plan.round == Round::FIRST {
                self.read_around_holes(*run, &mut payload, &mut runs)?;
            } else {
                self.read_run(*run, &mut payload, &mut runs)?;
            }
        }
        self.packer.read(payload.len(), begun.elapsed());
        planted::make_stale(plan.round, &runs, &mut payload);
        let batch = Batch { session: self.session, round: plan.round, sequence: plan.sequence, runs };
        Ok(self.packed(&batch, payload))
    }

    /// A batch as it goes: packed, if that is worth it.
    fn packed(&mut self, batch: &Batch, payload: Vec<u8>) -> Encoded {
        let pages = (payload.len() / PAGE_SIZE) as u64;
        let Packing { block, took } = self.packer.pack(&payload);
        let packed_bytes = block.as_ref().and_then(|block| u32::try_from(block.len()).ok());
        let head = batch.encode(&payload, packed_bytes).into();
        let zero = batch.pages() - pages;
        let (raw, packed) = if block.is_some() { (0, pages) } else { (pages, 0) };
        let packed_bytes = u64::from(packed_bytes.unwrap_or(0));
        let sent = SentPages { raw, zero, packed, packed_bytes, packing: took };
        Encoded { head, payload: block.unwrap_or_else(|| payload.into()), sent, link: self.packer.link() }
    }

    fn read_around_holes(
        &mut self,
        run: PageRun,
        payload: &mut Vec<u8>,
        runs: &mut Vec<ClassedRun>,
    ) -> io::Result<()> {
        let mut rest = run;
        while rest.count.0 > 0 {
            // Only data is remembered. What was a hole may be written at any time: it is looked at each time.
            if rest.first < self.data.first || u64::from(rest.first.0) >= self.data.end() {
                let end_of_memory = PageRun { first: PageIndex(self.memory.pages().0), count: PageCount(0) };
                self.data = self.memory.data_from(rest.first)?.unwrap_or(end_of_memory);
            }
            let hole = self.data.first.0.saturating_sub(rest.first.0).min(rest.count.0);
            if hole > 0 {
                push(runs, PageRun { first: rest.first, count: PageCount(hole) }, Class::Zero);
                rest = skip(rest, hole);
                continue;
            }
            let data = u32::try_from(self.data.end() - u64::from(rest.first.0)).unwrap_or(u32::MAX);
            let part = PageRun { first: rest.first, count: PageCount(data.min(rest.count.0)) };
            self.read_run(part, payload, runs)?;
            rest = skip(rest, part.count.0);
        }
        Ok(())
    }

    /// Reads a run and takes the zero pages out of what was read.
    fn read_run(&self, run: PageRun, payload: &mut Vec<u8>, runs: &mut Vec<ClassedRun>) -> io::Result<()> {
        let begin = payload.len();
        self.memory.read_onto(planted::wrong_offset(run, self.memory.pages()), payload)?;
        let mut kept = begin;
        for (at, page) in (begin..).step_by(PAGE_SIZE).zip(run.pages()) {
            let one = PageRun { first: page, count: PageCount(1) };
            if payload.get(at..at + PAGE_SIZE).is_some_and(is_zero) {
                push(runs, one, Class::Zero);
                continue;
            }
            if kept != at {
                payload.copy_within(at..at + PAGE_SIZE, kept);
            }
            kept += PAGE_SIZE;
            push(runs, one, Class::Raw);
        }
        payload.truncate(kept);
        Ok(())
    }
}

fn skip(run: PageRun, pages: u32) -> PageRun {
    PageRun { first: PageIndex(run.first.0.saturating_add(pages)), count: PageCount(run.count.0 - pages) }
}

/// Adds a run, joined to the last one where it goes on from it.
fn push(runs: &mut Vec<ClassedRun>, run: PageRun, class: Class) {
    match runs.last_mut() {
        Some(last) if last.class == class && last.run.end() == u64::from(run.first.0) => {
            last.run.count.0 += run.count.0;
        }
        _ => runs.push(ClassedRun { run, class }),
    }
}

/// Whether a page holds nothing but zeros. Most pages that do not are known within the first 256 bytes.
fn is_zero(page: &[u8]) -> bool {
    page.chunks(256).all(|part| part.iter().fold(0, |all, byte| all | byte) == 0)
}

/// Writes the parts of a batch that are newer than what is there; what is to be placed, by `faults`.
pub(crate) fn write(
    memory: &Memfd,
    faults: Option<&Faults>,
    writes: &[Write],
    payload: &[u8],
) -> io::Result<()> {
    for Write { run, payload_page, placed } in writes {
        let bytes = payload_page.map(|page| {
            let begin = page as usize * PAGE_SIZE;
            let bytes = payload.get(begin..begin + run.count.0 as usize * PAGE_SIZE);
            bytes.ok_or_else(|| io::Error::other("a write outside its batch's payload"))
        });
        let placing = || faults.ok_or_else(|| io::Error::other("pages are placed before faults are served"));
        match (bytes.transpose()?, placed) {
            (None, false) => memory.punch(*run)?,
            (Some(bytes), false) => memory.write(run.first, bytes)?,
            (None, true) => placing()?.fill_zero(*run).map_err(io::Error::other)?,
            (Some(bytes), true) => placing()?.fill(run.first, bytes).map_err(io::Error::other)?,
        }
    }
    Ok(())
}

/// Bugs that a test can switch on, to show that `verify` finds them. Always off in a real build.
mod planted {
    use super::{ClassedRun, PageCount, PageRun, Round};

    #[cfg(feature = "planted-bugs")]
    pub(super) fn wrong_offset(run: PageRun, pages: PageCount) -> PageRun {
        let shifted = PageRun::new(run.first.0 + 1, run.count.0);
        let hit = crate::planted::is_on("wrong-offset") && run.first.0.is_multiple_of(1000);
        if hit && shifted.end() <= u64::from(pages.0) { shifted } else { run }
    }

    /// Later rounds send some pages as they were in the first.
    #[cfg(feature = "planted-bugs")]
    pub(super) fn make_stale(round: Round, runs: &[ClassedRun], payload: &mut [u8]) {
        use std::collections::HashMap;
        use std::sync::{Mutex, PoisonError};
        static FIRST: Mutex<Option<HashMap<u32, Vec<u8>>>> = Mutex::new(None);
        const PAGES_MAX: usize = 16_384;
        if !crate::planted::is_on("stale-page") {
            return;
        }
        let mut first = FIRST.lock().unwrap_or_else(PoisonError::into_inner);
        let first = first.get_or_insert_default();
        let raw = runs.iter().filter(|run| run.class == super::Class::Raw).flat_map(|run| run.run.pages());
        for (page, bytes) in raw.zip(payload.chunks_exact_mut(super::PAGE_SIZE)) {
            match first.get(&page.0) {
                Some(stale) if round > Round::FIRST => bytes.copy_from_slice(stale),
                None if round == Round::FIRST && first.len() < PAGES_MAX => {
                    first.insert(page.0, bytes.to_vec());
                }
                _ => {}
            }
        }
    }

    #[cfg(not(feature = "planted-bugs"))]
    pub(super) fn make_stale(_: Round, _: &[ClassedRun], _: &mut [u8]) {}

    #[cfg(not(feature = "planted-bugs"))]
    pub(super) fn wrong_offset(run: PageRun, _: PageCount) -> PageRun {
        run
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: PageCount = PageCount(64);

    fn plan(round: u16, runs: Vec<PageRun>) -> Plan {
        Plan { sequence: 0, round: Round(round), runs }
    }

    fn classes(encoded: &Encoded) -> (u64, u64, usize) {
        (encoded.sent.raw, encoded.sent.zero, encoded.payload.len() / PAGE_SIZE)
    }

    #[test]
    fn holes_and_zero_pages_take_no_payload() {
        let memory = Memfd::create("test", PAGES).expect("memfd");
        memory.write(PageIndex(10), &[1; 3 * PAGE_SIZE]).expect("write");
        memory.write(PageIndex(11), &[0; PAGE_SIZE]).expect("write");
        memory.write(PageIndex(63), &[2; PAGE_SIZE]).expect("write");
        let mut reader = Reader::new(Arc::new(memory), SessionId(1));
        let whole = reader.read(&plan(1, vec![PageRun::new(0, 64)])).expect("read");
        assert_eq!(classes(&whole), (3, 61, 3));
        assert_eq!((whole.payload[0], whole.payload[PAGE_SIZE], whole.payload[2 * PAGE_SIZE]), (1, 1, 2));
        let later = reader.read(&plan(2, vec![PageRun::new(9, 2), PageRun::new(63, 1)])).expect("read");
        assert_eq!(classes(&later), (2, 1, 2));
    }

    #[test]
    fn a_hole_that_was_filled_meanwhile_is_read() {
        let memory = Memfd::create("test", PAGES).expect("memfd");
        let other = Memfd::from_handed_over(rustix_dup(&memory), PAGES).expect("the same file");
        let mut reader = Reader::new(Arc::new(memory), SessionId(1));
        for first in [0, 8, 16] {
            assert_eq!(
                classes(&reader.read(&plan(1, vec![PageRun::new(first, 8)])).expect("read")),
                (0, 8, 0)
            );
            other.write(PageIndex(first + 8), &[1; PAGE_SIZE]).expect("write");
            let next = reader.read(&plan(1, vec![PageRun::new(first + 8, 8)])).expect("read");
            assert_eq!(classes(&next).0, 1, "page {} was written before it was read", first + 8);
            other.punch(PageRun::new(first + 8, 1)).expect("punch");
        }
    }

    fn rustix_dup(memory: &Memfd) -> std::os::fd::OwnedFd {
        std::os::fd::AsFd::as_fd(memory).try_clone_to_owned().expect("dup")
    }

    #[test]
    fn what_is_read_is_what_is_written() {
        // Unknown link: as it is. A slow one: packed, and the same at the other end.
        for (link_rate, is_packed) in [(None, false), (Some(1), true)] {
            assert_eq!(read_and_write(link_rate), is_packed, "{link_rate:?}");
        }
    }

    /// Whether the batch was packed.
    fn read_and_write(link_rate: Option<u64>) -> bool {
        let source = Memfd::create("source", PAGES).expect("memfd");
        let target = Memfd::create("target", PAGES).expect("memfd");
        target.write(PageIndex(0), &[9; 64 * PAGE_SIZE]).expect("old contents");
        for page in [1, 2, 5, 40] {
            source.write(PageIndex(page), &[u8::try_from(page).expect("small"); PAGE_SIZE]).expect("write");
        }
        let duplicate = Memfd::from_handed_over(rustix_dup(&source), PAGES).expect("dup");
        let mut reader = Reader::new(Arc::new(duplicate), SessionId(1));
        reader.packer.link().set(link_rate);
        let encoded = reader.read(&plan(1, vec![PageRun::new(0, 64)])).expect("read");
        let (head_bytes, table) = encoded.head.split_first_chunk().expect("a head");
        let head = godwit_wire::batch::Head::decode(head_bytes).expect("a head");
        let payload = match head.packed_bytes() {
            None => encoded.payload.to_vec(),
            Some(bytes) => {
                assert_eq!(bytes, encoded.payload.len());
                assert_eq!((encoded.sent.packed, encoded.sent.packed_bytes), (4, bytes as u64));
                crate::compress::unpack(&encoded.payload, head.payload_bytes()).expect("a block")
            }
        };
        let batch = head.complete(head_bytes, table, &payload, PAGES.0).expect("a batch");
        let migration = "m1".parse().expect("a name");
        let instance = godwit_domain::InstanceId::from_random([1; 16]);
        let mut session = crate::target::TargetSession::new(migration, instance, PAGES);
        session.linked(1, SessionId(1));
        let writes = session.batch(1, crate::target::Lane::Bulk, &batch).expect("of this connection");
        write(&target, None, &writes, &payload).expect("write");
        let (mut want, mut got) = (vec![0; 64 * PAGE_SIZE], vec![0; 64 * PAGE_SIZE]);
        source.read(PageIndex(0), &mut want).expect("read");
        target.read(PageIndex(0), &mut got).expect("read");
        assert!(want == got);
        assert_eq!((encoded.sent.raw + encoded.sent.packed, encoded.sent.zero), (4, 60));
        head.packed_bytes().is_some()
    }
}
