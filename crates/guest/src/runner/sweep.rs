//! Visits every page of a RAM with all processors.

use std::sync::atomic::{AtomicU32, Ordering};

use godwit_domain::{PageCount, PageIndex};

/// Pages that a thread takes at a time: a quarter of a megabyte, some hundred microseconds of work.
const CHUNK: u32 = 64;

/// Calls `visit` for every page once, in ascending order on each thread, and returns what each thread collected.
/// Stops early, with pages left out, once `go_on` says no; it is asked before each chunk.
pub(super) fn sweep<T: Send>(
    pages: PageCount,
    go_on: impl Fn() -> bool + Sync,
    collector: impl Fn() -> T + Sync,
    visit: impl Fn(&mut T, PageIndex) + Sync,
) -> Vec<T> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let chunks = pages.0.div_ceil(CHUNK);
    let next = AtomicU32::new(0);
    let work = || {
        let mut collected = collector();
        // Each thread overshoots by one chunk at most: the counter stays far from its end.
        while go_on() {
            let chunk = next.fetch_add(1, Ordering::Relaxed);
            if chunk >= chunks {
                break;
            }
            let first = chunk * CHUNK;
            let count = CHUNK.min(pages.0 - first);
            (first..first + count).map(PageIndex).for_each(|page| visit(&mut collected, page));
        }
        collected
    };
    std::thread::scope(|scope| {
        // A thread that can not be had is not missed: this one does the work that is left.
        let others: Vec<_> = (1..threads)
            .filter_map(|_| std::thread::Builder::new().name("sweep".into()).spawn_scoped(scope, work).ok())
            .collect();
        let mut all = vec![work()];
        for other in others {
            all.push(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        all
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_visited_once() {
        for pages in [1, 63, 64, 65, 1000] {
            let visits = sweep(PageCount(pages), || true, Vec::new, |seen, page| seen.push(page.0));
            assert!(visits.iter().all(|seen| seen.is_sorted()));
            let mut all = visits.concat();
            all.sort_unstable();
            assert_eq!(all, (0..pages).collect::<Vec<_>>());
        }
    }
}
