// SPDX-License-Identifier: MIT OR Apache-2.0
//! From a payload to a signed one.

use crate::{PublicKey, note};
use std::ops::Range;
use xsplice_engine::{Parsed, Refusal, SignatureFault};
use xsplice_signature::Digest;

/// Why a payload cannot be signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// It is none.
    #[error(transparent)]
    NoPayload(#[from] Refusal),
    /// It has a signature that cannot be replaced.
    #[error(transparent)]
    Signature(#[from] SignatureFault),
    /// It is signed with a key of another size.
    #[error(
        "it has a signature of {there} bytes already, and this key's have {wanted}; sign the \
         payload that was built"
    )]
    OtherSize {
        /// Bytes that are there.
        there: usize,
        /// Bytes that are needed.
        wanted: usize,
    },
    /// There is no place for a note.
    #[error("the section table cannot be extended")]
    NoRoom,
    /// What was to sign it did something else.
    #[error("the signature is not that of the key {0}, or not of this payload")]
    Wrong(String),
}

/// A payload with room for a signature, which is zero: what is signed.
#[derive(Debug)]
pub struct Unsigned {
    file: Vec<u8>,
    signature: Range<usize>,
    digest: Digest,
    replaces: bool,
}

impl Unsigned {
    /// Makes room for a signature of `size` bytes in `payload`, or clears the one that
    /// is there.
    ///
    /// # Errors
    /// [`SignError`].
    pub fn new(payload: &[u8], size: usize) -> Result<Self, SignError> {
        let there = Parsed::parse("the payload", payload)?.signature()?;
        let replaces = there.is_some();
        let (mut file, signature) = match there {
            Some(there) if there.bytes().len() != size => {
                return Err(SignError::OtherSize {
                    there: there.bytes().len(),
                    wanted: size,
                });
            }
            Some(there) => (payload.to_vec(), there.place()),
            None => note::with_room(payload, size).ok_or(SignError::NoRoom)?,
        };
        let place = file.get_mut(signature.clone()).ok_or(SignError::NoRoom)?;
        place.fill(0);
        let digest = xsplice_signature::digest(&file, signature.clone());
        Ok(Self {
            digest: digest.ok_or(SignError::NoRoom)?,
            file,
            signature,
            replaces,
        })
    }

    /// The bytes that are signed.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.file
    }

    /// Their SHA-256.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Whether the payload had a signature.
    #[must_use]
    pub fn replaces(&self) -> bool {
        self.replaces
    }

    /// The payload with `signature`.
    ///
    /// # Errors
    /// [`SignError::Wrong`] when it is not this key's.
    pub fn with(mut self, signature: &[u8], key: &PublicKey) -> Result<Vec<u8>, SignError> {
        let wrong = || SignError::Wrong(key.name().to_owned());
        if !key.has_signed(&self.digest, signature) {
            return Err(wrong());
        }
        let place = self.file.get_mut(self.signature).ok_or_else(wrong)?;
        if place.len() != signature.len() {
            return Err(wrong());
        }
        place.copy_from_slice(signature);
        Ok(self.file)
    }
}
