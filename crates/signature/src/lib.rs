// SPDX-License-Identifier: MIT OR Apache-2.0
//! Verifies the signatures of payloads: RSA with SHA-256, PKCS #1 version 1.5 (RFC
//! 8017, 8.2), public exponent 65537, moduli of 2048 to 4096 bits.
//!
//! It is for hypervisors: it allocates nothing, needs [`SPACE`] words from its caller for
//! any key, and uses little stack. A general RSA crate needs many kilobytes of either.
//! All inputs are public, so it need not run in constant time.
//!
//! * **Trusts** the keys, and nothing else.
//! * **Guarantees** that it accepts exactly one signature for a file and a key: the
//!   decrypted signature is not parsed, but compared as a whole with the only valid
//!   encoding. No input makes it panic.
#![no_std]
#![forbid(unsafe_code)]

mod modular;

use core::iter;
use core::ops::Range;
use sha2::{Digest as _, Sha256};

/// The examples in the README are run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// Maximum number of words of a modulus: 4096 bits.
pub const MOST_WORDS: usize = 64;
/// Minimum number of words of a modulus: 2048 bits.
pub const FEWEST_WORDS: usize = 32;
/// The number of words that [`Key::has_signed`] needs for its calculation.
pub const SPACE: usize = 3 * MOST_WORDS;
/// The only supported public exponent: small ones make forgeries easier.
pub const EXPONENT: u32 = (1 << SQUARINGS) + 1;

/// The number of squarings for the exponent.
const SQUARINGS: u32 = 16;
/// The prefix of a SHA-256 in a signature: the algorithm, in DER (RFC 8017, 9.2).
const ALGORITHM: [u8; 19] = [
    0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05,
    0x00, 0x04, 0x20,
];
/// The bytes of a signature other than its padding.
const UNPADDED: usize = 2 + 1 + ALGORITHM.len() + size_of::<Digest>();

/// A SHA-256.
pub type Digest = [u8; 32];

/// Why a key is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// The modulus is too small or too large, or not a whole number of words.
    #[error("the modulus has {bits} bits; 2048 to 4096, in steps of 64, are possible")]
    Size {
        /// Its number of bits.
        bits: usize,
    },
    /// It is not a product of large primes.
    #[error("the modulus is even")]
    Even,
}

/// A public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key<'a> {
    name: &'a str,
    modulus: &'a [u64],
}

impl<'a> Key<'a> {
    /// The key with this modulus, least significant word first.
    ///
    /// # Errors
    /// [`BadKey`].
    pub const fn new(name: &'a str, modulus: &'a [u64]) -> Result<Self, BadKey> {
        let (Some(first), Some(last)) = (modulus.first(), modulus.last()) else {
            return Err(BadKey::Size { bits: 0 });
        };
        let bits = (modulus.len() * 64).saturating_sub(last.leading_zeros() as usize);
        if last.leading_zeros() != 0 || modulus.len() < FEWEST_WORDS || modulus.len() > MOST_WORDS {
            return Err(BadKey::Size { bits });
        }
        if first.is_multiple_of(2) {
            return Err(BadKey::Even);
        }
        Ok(Self { name, modulus })
    }

    /// The name of the key.
    #[must_use]
    pub const fn name(&self) -> &'a str {
        self.name
    }

    /// The size of a signature in bytes.
    #[must_use]
    pub const fn signature_size(&self) -> usize {
        size_of_val(self.modulus)
    }

    /// Whether `signature` is this key's signature of `digest`.
    #[must_use]
    pub fn has_signed(&self, digest: &Digest, signature: &[u8], space: &mut [u64; SPACE]) -> bool {
        let decrypted = modular::power(signature, self.modulus, SQUARINGS, space);
        decrypted.is_some_and(|number| {
            let bytes = number.iter().flat_map(|word| word.to_le_bytes());
            bytes.eq(self.encoded(digest))
        })
    }

    /// The encoding of `digest` that a valid signature decrypts to, last byte first.
    fn encoded(&self, digest: &Digest) -> impl Iterator<Item = u8> {
        let padding = self.signature_size().saturating_sub(UNPADDED);
        let digest = digest.iter().rev().copied();
        let algorithm = ALGORITHM.iter().rev().copied();
        let padding = iter::repeat_n(0xff, padding);
        digest
            .chain(algorithm)
            .chain([0])
            .chain(padding)
            .chain([1, 0])
    }
}

/// The SHA-256 of `file` with the bytes of its `signature` zeroed; `None` if they are
/// outside the file.
#[must_use]
pub fn digest(file: &[u8], signature: Range<usize>) -> Option<Digest> {
    const ZEROS: [u8; 64] = [0; 64];
    let mut hash = Sha256::new();
    hash.update(file.get(..signature.start)?);
    for piece in file.get(signature.clone())?.chunks(ZEROS.len()) {
        hash.update(ZEROS.get(..piece.len())?);
    }
    hash.update(file.get(signature.end..)?);
    Some(hash.finalize().into())
}
