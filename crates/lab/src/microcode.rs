// SPDX-License-Identifier: MIT OR Apache-2.0
//! Microcode for a processor that QEMU emulates.
//!
//! QEMU ignores what is loaded, and says that the processor has the same revision as
//! before. So the hypervisor sees success if the microcode has that revision (and if it
//! may be loaded again: `ucode=allow-same`), and a failure otherwise.

/// An Intel processor, for [`HostConfig::processor`](crate::HostConfig::processor).
pub const PROCESSOR: &str = "Nehalem";
/// Its family, model and stepping, as `CPUID` has them.
pub const SIGNATURE: u32 = 0x0001_06a3;
/// The revision of its microcode.
pub const REVISION: u32 = 1;

/// 32-bit words of a file, and the one of them that makes the sum of all zero.
const WORDS: usize = 512;
const CHECKSUM: usize = 4;
/// Words of the header.
const HEADER: usize = 12;

/// A file in Intel's format ("Microcode Update Facilities" in its manual, volume 3A) for
/// processors with this signature: a header, and zeros in place of the data that only
/// processors understand.
#[must_use]
pub fn intel(signature: u32, revision: u32) -> Vec<u8> {
    let size = |words: usize| u32::try_from(words * 4).unwrap_or_default();
    let header = [
        // The version of the header, and later that of the loader.
        1,
        revision,
        // Month, day and year.
        0x1129_2026,
        signature,
        0,
        1,
        // Any platform.
        0xff,
        size(WORDS - HEADER),
        size(WORDS),
    ];
    let mut words = [0; WORDS];
    words[..header.len()].copy_from_slice(&header);
    let sum = words
        .iter()
        .fold(0_u32, |sum, word| sum.wrapping_add(*word));
    words[CHECKSUM] = sum.wrapping_neg();
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_add_up_to_zero() {
        let file = intel(SIGNATURE, REVISION);
        let words = file.chunks_exact(4).map(|word| {
            let word = word.try_into().expect("four bytes");
            u32::from_le_bytes(word)
        });
        assert_eq!(words.fold(0, u32::wrapping_add), 0);
        // Xen takes multiples of 1 KiB only.
        assert_eq!(file.len() % 1024, 0);
    }
}
