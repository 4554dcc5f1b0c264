//! What every page of a built-in guest holds: a function of (seed, page, version) and of nothing else.
//!
//! ```text
//!   page ─▶ class    zero           a hole: never written, and never in the working set
//!                    compressible   few distinct pointer-like words, in runs
//!                    random         no two words alike
//!   page, version ─▶ 512 words      version 0: the first fill; n: written by step n - 1 of its thread
//! ```
//!
//! Always true: a page keeps its class for ever; the shares of the classes are exact to a page; pages that are
//! not zero differ from each other and from their own other versions in their first two words, and are never
//! all zero.

use godwit_domain::PageIndex;
use godwit_memory::ram::PAGE_WORDS;

use super::permutation::{GOLDEN, Permutation, mix, subkey};
use super::workload::Workload;

/// A page as words.
pub(super) type Words = [u64; PAGE_WORDS];

/// Equal words stand in runs of so many, as in an array of small structures.
const RUN_WORDS: usize = 4;
/// Distinct words of a compressible page (beside its first two): as many as a nibble tells apart.
const TABLE_WORDS: usize = 16;
/// Where user-space mappings lie on Linux, which makes the words look like pointers.
const POINTER_BASE: u64 = 0x0000_7f00_0000_0000;
/// 40 random bits, aligned to 16 bytes as allocators do.
const POINTER_MASK: u64 = 0x0000_00ff_ffff_fff0;

/// How well a page compresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// All zeros, never written.
    Zero,
    /// A fraction of its size.
    Compressible,
    /// Not at all.
    Random,
}

/// The content of all pages.
#[derive(Debug)]
pub(super) struct Content {
    key: u64,
    working_set: u32,
    zero_pages: u32,
    compressible_pages: u32,
    /// Orders the pages beside the working set; the first `zero_pages` of them are zero.
    beside: Permutation,
    /// Orders the pages that are not zero; the first `compressible_pages` of them compress.
    rest: Permutation,
}

impl Content {
    pub(super) fn new(workload: &Workload) -> Self {
        let options = workload.options();
        let zero_pages = workload.zero_pages();
        Self {
            key: subkey(options.seed, 1),
            working_set: options.working_set.0,
            zero_pages,
            compressible_pages: workload.compressible_pages(),
            beside: Permutation::new(subkey(options.seed, 2), options.memory.0 - options.working_set.0),
            rest: Permutation::new(subkey(options.seed, 3), options.memory.0 - zero_pages),
        }
    }

    /// The class of a page.
    pub(super) fn class(&self, page: PageIndex) -> Class {
        // The pages that are not zero are numbered without gaps, so that a permutation of those numbers deals
        // the other two classes out exactly.
        let number = if page.0 < self.working_set {
            page.0
        } else {
            let place = self.beside.apply(page.0 - self.working_set);
            if place < self.zero_pages {
                return Class::Zero;
            }
            self.working_set + (place - self.zero_pages)
        };
        if self.rest.apply(number) < self.compressible_pages { Class::Compressible } else { Class::Random }
    }

    /// Makes the content of a version of a page.
    pub(super) fn make(&self, page: PageIndex, version: u64, words: &mut Words) {
        // `mix` is one to one: the first word names the page, and with it the second names the version.
        let tag = mix(self.key.wrapping_add(u64::from(page.0)));
        let stamp = mix(tag ^ version);
        match self.class(page) {
            Class::Zero => return words.fill(0),
            Class::Compressible => make_compressible(stamp, words),
            Class::Random => make_random(stamp, words),
        }
        words[0] = tag;
        words[1] = stamp;
        words[PAGE_WORDS - 1] |= 1;
    }
}

/// Draw `i` of the random stream of a page.
const fn draw(stamp: u64, i: usize) -> u64 {
    mix(stamp.wrapping_add((i as u64).wrapping_mul(GOLDEN)))
}

fn make_random(stamp: u64, words: &mut Words) {
    for (i, word) in words.iter_mut().enumerate() {
        *word = draw(stamp, i);
    }
}

fn make_compressible(stamp: u64, words: &mut Words) {
    const RUNS_PER_DRAW: usize = 16; // a draw has 16 nibbles
    let table: [u64; TABLE_WORDS] = std::array::from_fn(|i| POINTER_BASE | (draw(stamp, i) & POINTER_MASK));
    for (d, runs) in words.chunks_exact_mut(RUNS_PER_DRAW * RUN_WORDS).enumerate() {
        let nibbles = draw(stamp, TABLE_WORDS + d);
        for (r, run) in runs.chunks_exact_mut(RUN_WORDS).enumerate() {
            run.fill(table[(nibbles >> (4 * r) & 15) as usize]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::runner::workload::{Pattern, WorkloadOptions};
    use godwit_domain::PageCount;
    use proptest::prelude::*;

    fn content(memory: u32, working_set: u32, zero: u8, compressible: u8, seed: u64) -> Content {
        let options = WorkloadOptions {
            memory: PageCount(memory),
            working_set: PageCount(working_set),
            dirty_rate_bytes_per_second: 1,
            pattern: Pattern::Uniform,
            zero_percent: zero,
            compressible_percent: compressible,
            threads: 1,
            seed,
        };
        Content::new(&Workload::new(options).expect("fits"))
    }

    fn made(content: &Content, page: u32, version: u64) -> Words {
        let mut words = [7; PAGE_WORDS];
        content.make(PageIndex(page), version, &mut words);
        words
    }

    /// The size of an LZ4 block of these bytes by a greedy search as LZ4's own fast mode does it.
    fn lz4_bytes(words: &Words) -> usize {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let extension =
            |length: usize, from: usize| if length < from { 0 } else { 1 + (length - from) / 255 };
        let mut seen = BTreeMap::new();
        let (mut at, mut literals, mut size) = (0, 0, 0);
        while at + 4 <= bytes.len() {
            match seen.insert(&bytes[at..at + 4], at) {
                Some(before) => {
                    let same = bytes[at..].iter().zip(&bytes[before..]).take_while(|(a, b)| a == b).count();
                    size += 3 + extension(literals, 15) + literals + extension(same - 4, 15);
                    literals = 0;
                    at += same;
                }
                None => {
                    literals += 1;
                    at += 1;
                }
            }
        }
        literals += bytes.len() - at;
        size + 1 + extension(literals, 15) + literals
    }

    #[test]
    fn compressible_pages_take_a_fraction_and_random_pages_do_not() {
        let content = content(64, 64, 0, 50, 9);
        for page in 0..64 {
            let size = lz4_bytes(&made(&content, page, 3));
            match content.class(PageIndex(page)) {
                Class::Compressible => assert!((300..1400).contains(&size), "page {page} takes {size} bytes"),
                Class::Random => assert!(size >= 4096, "page {page} takes {size} bytes"),
                Class::Zero => panic!("no zero page was asked for"),
            }
        }
    }

    proptest! {
        #[test]
        fn shares_are_exact_and_zero_lies_beside_the_working_set(
            memory in 1_u32..2000, percent in 0_u8..=100, part in 0_u8..=100, seed: u64,
        ) {
            let compressible = u8::try_from(u32::from(100 - percent) * u32::from(part) / 100).expect("a percentage");
            let zeros = memory * u32::from(percent) / 100;
            let working_set = (memory - zeros).max(1).min(memory);
            prop_assume!(zeros <= memory - working_set);
            let content = content(memory, working_set, percent, compressible, seed);
            let classes: Vec<Class> = (0..memory).map(|page| content.class(PageIndex(page))).collect();
            let count = |class| classes.iter().filter(|c| **c == class).count();
            prop_assert_eq!(count(Class::Zero), zeros as usize);
            prop_assert_eq!(count(Class::Compressible), (memory * u32::from(compressible) / 100) as usize);
            prop_assert!(!classes[..working_set as usize].contains(&Class::Zero));
        }

        #[test]
        fn no_page_is_zero_unless_asked(seed: u64, page in 0_u32..100, version: u64) {
            let content = content(100, 50, 25, 50, seed);
            let zero = made(&content, page, version).iter().all(|word| *word == 0);
            prop_assert_eq!(zero, content.class(PageIndex(page)) == Class::Zero);
        }
    }

    #[test]
    fn pages_versions_and_seeds_all_differ() {
        let (one, other) = (content(50, 50, 0, 50, 1), content(50, 50, 0, 50, 2));
        let all = (0..50).flat_map(|page| (0..50).map(move |version| (page, version)));
        let mut met = BTreeSet::new();
        for (page, version) in all {
            assert_eq!(made(&one, page, version), made(&one, page, version));
            assert!(met.insert(made(&one, page, version)), "page {page} version {version} was met before");
            assert!(met.insert(made(&other, page, version)), "page {page} version {version} was met before");
        }
    }
}
