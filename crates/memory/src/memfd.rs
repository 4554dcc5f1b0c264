//! The memory file that is a guest's RAM.
//!
//! Always true: a file made here can neither shrink nor grow, so a page that is inside stays inside; a page is
//! read and written through the file, never through memory of the node.
//!
//! A *hole* is a page that was never written, or was punched: it reads as zeros and takes no memory. Reading it
//! here allocates nothing (reading it through a mapping would).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use godwit_domain::{PAGE_BYTES, PageCount, PageIndex, PageRun};
use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, SeekFrom};
use rustix::io::Errno;

use crate::PageSet;

/// A guest's RAM as a file.
#[derive(Debug)]
pub struct Memfd {
    file: OwnedFd,
    pages: PageCount,
}

impl Memfd {
    /// Makes an empty memory (all holes) of so many pages. `name` is for people, in `/proc/PID/fd`.
    pub fn create(name: &str, pages: PageCount) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create(name, flags)?;
        rustix::fs::ftruncate(&file, pages.bytes())?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW)?;
        Ok(Self { file, pages })
    }

    /// Takes a memory file that a runner handed over. It must have exactly this size and be sealed against
    /// shrinking and growing, or against all seals.
    pub fn from_handed_over(file: OwnedFd, pages: PageCount) -> io::Result<Self> {
        let bytes = u64::try_from(rustix::fs::fstat(&file)?.st_size).unwrap_or(0);
        if bytes != pages.bytes() {
            let message = format!("memory file has {bytes} bytes, the runner declared {}", pages.bytes());
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        let seals = rustix::fs::fcntl_get_seals(&file)?;
        // One that nobody can seal any more was made by somebody who knows nothing of us (QEMU's memory-backend-memfd). Cut short, it
        // would be read as an error here: nobody in this process maps it.
        if !seals.contains(SealFlags::SHRINK | SealFlags::GROW) && !seals.contains(SealFlags::SEAL) {
            let message =
                "memory file is not sealed against shrinking and growing (F_SEAL_SHRINK, F_SEAL_GROW)";
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(Self { file, pages })
    }

    /// Its size.
    pub fn pages(&self) -> PageCount {
        self.pages
    }

    /// Reads whole pages from `first` on into `into`; holes read as zeros.
    pub fn read(&self, first: PageIndex, into: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match rustix::io::pread(&self.file, rest, first.offset_bytes() + done as u64) {
                Ok(0) => return Err(outside(first, self.pages)),
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Reads a run's pages onto the end of `into`; holes read as zeros.
    pub fn read_onto(&self, run: PageRun, into: &mut Vec<u8>) -> io::Result<()> {
        let bytes = usize::try_from(run.count.bytes()).map_err(io::Error::other)?;
        let begin = into.len();
        into.reserve(bytes);
        let mut done = 0;
        while done < bytes {
            let offset = run.first.offset_bytes() + done as u64;
            let room = into.spare_capacity_mut().get_mut(..bytes - done).unwrap_or_default();
            match rustix::io::pread(&self.file, room, offset) {
                Ok(([], _)) => return Err(outside(run.first, self.pages)),
                Ok((read, _)) => {
                    done += read.len();
                    // Why not safe: clearing room for 1 MiB before each read costs as much as a tenth of the read.
                    // SAFETY: `begin + done` bytes are initialised: those before, and what the kernel has just
                    // written behind them; it is within the capacity that was reserved.
                    unsafe { into.set_len(begin + done) };
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Writes whole pages from `first` on. Refused by the kernel (`EPERM`) once sealed against other writers.
    pub fn write(&self, first: PageIndex, from: &[u8]) -> io::Result<()> {
        if first.offset_bytes() + from.len() as u64 > self.pages.bytes() {
            return Err(outside(first, self.pages));
        }
        let mut done = 0;
        while let Some(rest) = from.get(done..).filter(|rest| !rest.is_empty()) {
            match rustix::io::pwrite(&self.file, rest, first.offset_bytes() + done as u64) {
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Makes holes of a run: it reads as zeros afterwards. Dirty tracking does not see it.
    pub fn punch(&self, run: PageRun) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        loop {
            match rustix::fs::fallocate(&self.file, flags, run.first.offset_bytes(), run.count.bytes()) {
                Err(Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
    }

    /// The first run at or after `from` that holds data, that is no hole. `None`: only holes from there on.
    pub fn data_from(&self, from: PageIndex) -> io::Result<Option<PageRun>> {
        let begin = match rustix::fs::seek(&self.file, SeekFrom::Data(from.offset_bytes())) {
            Ok(at) => at,
            Err(Errno::NXIO) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(&self.file, SeekFrom::Hole(begin))?;
        let first = begin / PAGE_BYTES;
        let count = end.div_ceil(PAGE_BYTES) - first;
        match (u32::try_from(first), u32::try_from(count)) {
            (Ok(first), Ok(count)) => Ok(Some(PageRun::new(first, count))),
            _ => Err(outside(from, self.pages)),
        }
    }

    /// Makes holes of runs and looks whether they are: the pages that stayed present all the same. A large folio of which
    /// another page is pinned is zeroed and stays, and no access to it would ever wait.
    pub fn punch_and_check(&self, runs: &[PageRun]) -> io::Result<Vec<PageRun>> {
        for run in runs {
            self.punch(*run)?;
        }
        let mut stayed = Vec::new();
        for run in runs {
            let mut at = run.first;
            while let Some(data) = self.data_from(at)?.filter(|data| u64::from(data.first.0) < run.end()) {
                let end = u32::try_from(data.end().min(run.end())).unwrap_or(u32::MAX);
                stayed.push(PageRun::new(data.first.0, end - data.first.0));
                at = PageIndex(end);
            }
        }
        Ok(stayed)
    }

    /// All pages that are holes.
    pub fn holes(&self) -> io::Result<PageSet> {
        let mut holes = PageSet::full(self.pages);
        let mut at = PageIndex(0);
        while let Some(data) = self.data_from(at)? {
            holes.remove_run(data);
            at = PageIndex(u32::try_from(data.end()).unwrap_or(u32::MAX));
        }
        Ok(holes)
    }

    /// Forbids every write but stores through mappings that exist now and userfaultfd's: `F_SEAL_FUTURE_WRITE`.
    /// For good: a sealed memory never receives a guest again. Idempotent. One against all seals, which was made by somebody
    /// who knows nothing of us, stays as it is: that nobody else writes it is then a contract alone.
    pub fn seal_against_other_writers(&self) -> io::Result<()> {
        if rustix::fs::fcntl_get_seals(&self.file)?.contains(SealFlags::SEAL) {
            return Ok(());
        }
        Ok(rustix::fs::fcntl_add_seals(&self.file, SealFlags::FUTURE_WRITE)?)
    }

    /// Whether [`Self::seal_against_other_writers`] was done.
    pub fn is_sealed(&self) -> io::Result<bool> {
        Ok(rustix::fs::fcntl_get_seals(&self.file)?.contains(SealFlags::FUTURE_WRITE))
    }
}

#[cfg(test)]
impl Memfd {
    /// A file that can not be sealed, as those of a mounted file system are.
    pub(crate) fn of(file: OwnedFd, pages: PageCount) -> Self {
        Self { file, pages }
    }
}

fn outside(first: PageIndex, pages: PageCount) -> io::Error {
    let message = format!("page {} lies outside a memory of {} pages", first.0, pages.0);
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

impl AsFd for Memfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use godwit_domain::PAGE_SIZE as PAGE;

    #[test]
    fn holes_are_told_from_data() {
        let memory = Memfd::create("test", PageCount(16)).expect("memfd");
        assert_eq!(memory.data_from(PageIndex(0)).expect("seek"), None);
        memory.write(PageIndex(3), &vec![1; 2 * PAGE]).expect("write");
        memory.write(PageIndex(15), &vec![1; PAGE]).expect("write");
        assert_eq!(memory.data_from(PageIndex(0)).expect("seek"), Some(PageRun::new(3, 2)));
        assert_eq!(memory.data_from(PageIndex(4)).expect("seek"), Some(PageRun::new(4, 1)));
        assert_eq!(memory.data_from(PageIndex(5)).expect("seek"), Some(PageRun::new(15, 1)));
        memory.punch(PageRun::new(15, 1)).expect("punch");
        assert_eq!(memory.data_from(PageIndex(5)).expect("seek"), None);
    }

    #[test]
    fn what_was_punched_is_checked_to_be_holes() {
        let memory = Memfd::create("test", PageCount(16)).expect("memfd");
        memory.write(PageIndex(2), &vec![1; 6 * PAGE]).expect("write");
        let punched = [PageRun::new(0, 1), PageRun::new(3, 2), PageRun::new(7, 2)];
        assert_eq!(memory.punch_and_check(&punched).expect("punch"), []);
        let holes: Vec<_> = memory.holes().expect("seek").runs().collect();
        assert_eq!(holes, [PageRun::new(0, 2), PageRun::new(3, 2), PageRun::new(7, 9)]);
    }

    #[test]
    fn a_run_is_read_onto_the_end() {
        let memory = Memfd::create("test", PageCount(4)).expect("memfd");
        memory.write(PageIndex(1), &vec![1; PAGE]).expect("write");
        memory.write(PageIndex(2), &vec![2; PAGE]).expect("write");
        let mut bytes = Vec::with_capacity(64 * PAGE);
        bytes.push(9);
        memory.read_onto(PageRun::new(1, 1), &mut bytes).expect("read");
        assert_eq!((bytes.len(), bytes[0], bytes[PAGE]), (1 + PAGE, 9, 1));
        memory.read_onto(PageRun::new(2, 2), &mut bytes).expect("read");
        assert_eq!((bytes.len(), bytes[1 + PAGE], bytes[3 * PAGE]), (1 + 3 * PAGE, 2, 0));
        assert!(memory.read_onto(PageRun::new(3, 2), &mut bytes).is_err());
    }

    #[test]
    fn what_lies_outside_is_refused() {
        let memory = Memfd::create("test", PageCount(2)).expect("memfd");
        assert!(memory.write(PageIndex(2), &vec![1; PAGE]).is_err());
        assert!(memory.write(PageIndex(1), &vec![1; 2 * PAGE]).is_err());
        assert!(memory.read(PageIndex(1), &mut vec![0; 2 * PAGE]).is_err());
    }

    #[test]
    fn a_sealed_memory_takes_no_other_writer() {
        let memory = Memfd::create("test", PageCount(2)).expect("memfd");
        let ram = crate::Ram::map(&memory).expect("map");
        memory.seal_against_other_writers().expect("seal");
        memory.seal_against_other_writers().expect("seal again");
        assert!(memory.is_sealed().expect("seals"));
        assert!(memory.write(PageIndex(0), &vec![1; PAGE]).is_err());
        assert!(memory.punch(PageRun::new(0, 1)).is_err());
        assert!(crate::Ram::map(&memory).is_err(), "no new writable mapping");
        ram.write_page(PageIndex(0), &[7; crate::ram::PAGE_WORDS]);
        let mut page = vec![0; PAGE];
        memory.read(PageIndex(0), &mut page).expect("read");
        assert_eq!(page.first(), Some(&7));
    }

    #[test]
    fn a_memory_that_nobody_can_seal_is_taken_as_it_is() {
        let file = rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC).expect("memfd");
        rustix::fs::ftruncate(&file, PAGE_BYTES).expect("truncate");
        let memory = Memfd::from_handed_over(file, PageCount(1)).expect("QEMU makes such ones");
        memory.seal_against_other_writers().expect("nothing to do");
        assert!(!memory.is_sealed().expect("seals"));
    }

    #[test]
    fn a_file_that_could_shrink_is_no_guest_memory() {
        let file = rustix::fs::memfd_create("test", MemfdFlags::ALLOW_SEALING).expect("memfd");
        rustix::fs::ftruncate(&file, PAGE_BYTES).expect("truncate");
        let other = file.try_clone().expect("dup");
        let error = Memfd::from_handed_over(other, PageCount(1)).expect_err("unsealed").to_string();
        assert!(error.contains("F_SEAL_SHRINK"), "{error}");
        let error = Memfd::from_handed_over(file, PageCount(2)).expect_err("size").to_string();
        assert!(error.contains("4096 bytes"), "{error}");
    }
}
