// SPDX-License-Identifier: MIT OR Apache-2.0

//! The signer of the payload.

use super::{File, Loader, Parsed};
use crate::Host;
use crate::elf::SHT_NOTE;
use crate::format::Known;
use crate::problem::{Problem, Refusal, SignatureFault, copied};
use alloc::boxed::Box;
use core::ops::Range;
use xsplice_abi::signature::{Kind, Note};
use xsplice_fallible::{self as fallible, NoMemory};
use xsplice_signature::{Digest, Key, SPACE};

/// The treatment of payloads that none of the host's keys has signed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Enforcement {
    /// They are loaded: signatures are ignored.
    #[default]
    Off,
    /// They are loaded with a log message.
    Warn,
    /// They are refused.
    Enforce,
}

impl Enforcement {
    /// The treatment on a host whose administrator may have `requested` one. By default,
    /// signatures are enforced if there are `keys`. A `locked` host enforces them,
    /// whatever was requested.
    #[must_use]
    pub fn decide(requested: Option<Self>, keys: bool, locked: bool) -> Self {
        match requested {
            _ if locked => Self::Enforce,
            Some(requested) => requested,
            None if keys => Self::Enforce,
            None => Self::Off,
        }
    }
}

/// The host's requirements for signatures.
#[derive(Clone, Copy, Debug, Default)]
pub struct Signatures<'k> {
    /// The trusted keys.
    pub keys: &'k [Key<'k>],
    /// The treatment of payloads that none of them has signed.
    pub enforcement: Enforcement,
}

/// An RSA signature with SHA-256, as found in a payload, not verified.
#[derive(Clone, Debug)]
pub struct Signature<'a> {
    file: &'a [u8],
    place: Range<usize>,
}

impl<'a> Signature<'a> {
    /// Its range in the file.
    #[must_use]
    pub fn place(&self) -> Range<usize> {
        self.place.clone()
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.file.get(self.place()).unwrap_or_default()
    }

    /// The SHA-256 of the signed bytes.
    #[must_use]
    pub fn digest(&self) -> Digest {
        xsplice_signature::digest(self.file, self.place()).unwrap_or_default()
    }

    /// The one of `keys` that made it.
    ///
    /// # Errors
    /// [`NoMemory`] for the calculation.
    fn key<'k>(&self, keys: &'k [Key<'k>]) -> Result<Option<&'k Key<'k>>, NoMemory> {
        let mut space = fallible::filled(0, SPACE)?;
        let space = space.first_chunk_mut().ok_or(NoMemory)?;
        let digest = self.digest();
        let mut keys = keys.iter();
        Ok(keys.find(|key| key.has_signed(&digest, self.bytes(), space)))
    }
}

/// A payload that meets the host's requirements for signatures.
#[derive(Debug)]
pub struct Authenticated<'a>(pub(super) Box<File<'a>>);

impl<'a> Parsed<'a> {
    /// The payload's signature, if it has one.
    ///
    /// # Errors
    /// [`SignatureFault`] if it cannot be read.
    pub fn signature(&self) -> Result<Option<Signature<'a>>, SignatureFault> {
        let sections = self.0.elf.sections.iter();
        let mut sections = sections.filter(|section| section.known == Some(Known::Signature));
        let Some(section) = sections.next() else {
            return Ok(None);
        };
        if let Some(second) = sections.next() {
            return Err(SignatureFault::Second {
                first: section.index,
                second: second.index,
            });
        }
        let malformed = |what| SignatureFault::Malformed { what };
        if section.kind != SHT_NOTE {
            return Err(malformed("its type is not SHT_NOTE"));
        }
        if section.allocated() {
            return Err(malformed("it is marked as loaded (SHF_ALLOC)"));
        }
        let note = Note::parse(section.data);
        let note = note.ok_or(malformed("it is not one note of the owner Xen"))?;
        if note.kind != Kind::RSA_SHA256 {
            return Err(SignatureFault::Kind { kind: note.kind });
        }
        let Range { start, end } = note.signature;
        Ok(Some(Signature {
            file: self.0.bytes,
            place: section.offset + start..section.offset + end,
        }))
    }

    /// Identifies the signer of a file for this machine, before any of the payload's
    /// contents are trusted.
    ///
    /// # Errors
    /// [`Refusal`] if signatures are enforced and none of the host's keys has signed it;
    /// nothing else is then checked.
    #[inline(never)]
    pub fn authenticate(
        self,
        loader: &Loader<'_, impl Host>,
    ) -> Result<Authenticated<'a>, Refusal> {
        let Signatures { keys, enforcement } = loader.host.signatures();
        if enforcement == Enforcement::Off {
            return Ok(Authenticated(self.0));
        }
        let signer = self.signer(keys)?;
        let mut file = self.0;
        let findings = &mut file.findings;
        match signer {
            Ok(name) => findings.signer = Some(copied(name)?),
            Err(fault) => {
                let enforced = enforcement == Enforcement::Enforce;
                findings
                    .problems
                    .push(Problem::Signature { fault, enforced });
                if enforced {
                    return Err(file.findings.refuse());
                }
            }
        }
        Ok(Authenticated(file))
    }

    /// The name of the one of `keys` that has signed it.
    fn signer<'k>(&self, keys: &'k [Key<'k>]) -> Result<Result<&'k str, SignatureFault>, NoMemory> {
        let signature = match self.signature() {
            Ok(Some(signature)) => signature,
            Ok(None) => return Ok(Err(SignatureFault::Missing)),
            Err(fault) => return Ok(Err(fault)),
        };
        let wrong = SignatureFault::Wrong { keys: keys.len() };
        Ok(signature.key(keys)?.map(Key::name).ok_or(wrong))
    }
}
