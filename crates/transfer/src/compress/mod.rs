//! Packing (LZ4) of the pages of a batch: whether, by measurement, and how, bounded both ways.
//!
//! ```text
//!   sender ── bytes, time, did it have to wait for a batch? ──▶ link::LinkMeter ── LinkRate ──┐
//!   reader ── payload ──▶ packer::Packer ── asks ──▶ chooser::Chooser ◀───────────────────────┘
//!                            │                         plain · try a few pages · pack
//!                            └──▶ block, or the payload as it is
//! ```
//!
//! Always true:
//! - what was packed gives back exactly as many bytes as were told beforehand, or nothing;
//! - neither way takes more memory than its caller has allowed: a block is never longer than what is in it, and room
//!   for what comes out is made by the promised length alone, which was checked before.

mod chooser;
pub(crate) mod link;
pub(crate) mod packer;

/// Packs bytes into one block at the beginning of `room`, which grows as needed and is used again; `None` if the
/// block would not be shorter than what is in it.
fn pack<'a>(plain: &[u8], room: &'a mut Vec<u8>) -> Option<&'a [u8]> {
    let most = lz4_flex::block::get_maximum_output_size(plain.len());
    if room.len() < most {
        room.resize(most, 0);
    }
    let length = lz4_flex::block::compress_into(plain, room).ok()?;
    room.get(..length).filter(|block| block.len() < plain.len())
}

/// A block's contents, which must be exactly `bytes` long; `None` if they are not, or it is no block. Takes no
/// more memory than that, whatever the block says.
pub(crate) fn unpack(block: &[u8], bytes: usize) -> Option<Vec<u8>> {
    let mut plain = vec![0; bytes];
    let length = lz4_flex::block::decompress_into(block, &mut plain).ok()?;
    (length == bytes).then_some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use godwit_domain::PAGE_SIZE;
    use proptest::prelude::*;

    fn packed(plain: &[u8]) -> Option<Vec<u8>> {
        pack(plain, &mut Vec::new()).map(<[u8]>::to_vec)
    }

    #[test]
    fn a_block_of_another_length_is_none() {
        let plain = [7; 3 * PAGE_SIZE];
        let block = packed(&plain).expect("it shrinks");
        assert_eq!(unpack(&block, plain.len()).as_deref(), Some(plain.as_slice()));
        for bytes in [0, PAGE_SIZE, plain.len() - 1, plain.len() + 1, 4 * PAGE_SIZE] {
            assert_eq!(unpack(&block, bytes), None, "{bytes}");
        }
        assert_eq!(unpack(&block[..block.len() - 1], plain.len()), None);
    }

    proptest! {
        #[test]
        fn hostile_blocks_give_what_was_told_or_nothing(
            block in prop::collection::vec(any::<u8>(), 0..600), bytes in 0..64_usize * PAGE_SIZE,
        ) {
            if let Some(plain) = unpack(&block, bytes) {
                prop_assert_eq!(plain.len(), bytes);
                prop_assert!(plain.capacity() <= bytes.max(1));
            }
        }

        #[test]
        fn a_changed_block_does_no_harm(at in any::<prop::sample::Index>(), to in any::<u8>()) {
            let plain: Vec<u8> = (0..2 * PAGE_SIZE).map(|i| u8::try_from(i / 64 % 200).unwrap_or(0)).collect();
            let mut block = packed(&plain).expect("it shrinks");
            *at.get_mut(&mut block) = to;
            if let Some(unpacked) = unpack(&block, plain.len()) {
                prop_assert_eq!(unpacked.len(), plain.len());
            }
        }

        #[test]
        fn what_is_packed_is_shorter_and_comes_back(
            words in prop::collection::vec(0..4_u8, 0..5000), noise in prop::collection::vec(any::<u8>(), 0..3000),
        ) {
            let plain = [words, noise].concat();
            if let Some(block) = packed(&plain) {
                prop_assert!(block.len() < plain.len());
                prop_assert_eq!(unpack(&block, plain.len()), Some(plain));
            }
        }
    }
}
