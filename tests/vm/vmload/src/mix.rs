//! Numbers that look random and can be made again, and a sum of bytes.
//!
//! Always true: the same input gives the same output on every machine.

/// A number from a number: every input bit changes half of the output (splitmix64).
pub(crate) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// One number after the other.
#[derive(Debug)]
pub(crate) struct Numbers(u64);

impl Numbers {
    /// Those that belong to `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    /// The next one below `end`; 0 if `end` is 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = mix(self.0);
        self.0.checked_rem(end).unwrap_or(0)
    }
}

/// Fills `bytes` with what belongs to `seed`.
pub(crate) fn fill(bytes: &mut [u8], seed: u64) {
    for (index, chunk) in (0_u64..).zip(bytes.chunks_mut(8)) {
        let word = mix(seed ^ index).to_le_bytes();
        for (byte, made) in chunk.iter_mut().zip(word) {
            *byte = made;
        }
    }
}

/// Where `bytes` first differ from what [`fill`] wrote, counted from their beginning.
pub(crate) fn first_wrong(bytes: &[u8], seed: u64) -> Option<usize> {
    (0_u64..)
        .zip(bytes.chunks(8))
        .find(|(index, chunk)| !mix(seed ^ index).to_le_bytes().starts_with(chunk))
        .and_then(|(index, _)| usize::try_from(index * 8).ok())
}

/// A sum over bytes and their places.
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(0, |sum, chunk| {
        let mut word = [0; 8];
        for (to, from) in word.iter_mut().zip(chunk) {
            *to = *from;
        }
        (sum ^ u64::from_le_bytes(word)).wrapping_mul(0x0100_0000_01b3).rotate_left(29)
    })
}

#[cfg(test)]
mod tests {
    use super::{fill, first_wrong, sum};

    #[test]
    fn one_bit_is_found_where_it_is() {
        let mut bytes = vec![0; 4099];
        fill(&mut bytes, 7);
        assert_eq!(first_wrong(&bytes, 7), None);
        assert_eq!(first_wrong(&bytes, 8), Some(0));
        let before = sum(&bytes);
        bytes[4097] ^= 1;
        assert_eq!(first_wrong(&bytes, 7), Some(4096));
        assert_ne!(sum(&bytes), before);
    }
}
