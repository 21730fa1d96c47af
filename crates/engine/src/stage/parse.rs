// SPDX-License-Identifier: MIT OR Apache-2.0

//! From bytes to a well-formed ELF file.

use super::{File, Findings};
use crate::arch::Architecture;
use crate::elf::{Elf, architecture_of};
use crate::problem::Refusal;
use alloc::boxed::Box;
use xsplice_fallible::{self as fallible, NoMemory};

/// A relocatable ELF file for a machine, within the loader's limits.
#[derive(Debug)]
pub struct Parsed<'a>(pub(super) Box<File<'a>>);

impl<'a> Parsed<'a> {
    /// Parses `file`, to be loaded as `name`, whatever machine it is for.
    ///
    /// # Errors
    /// [`Refusal`] if it is not a payload file at all.
    pub fn parse(name: &str, file: &'a [u8]) -> Result<Self, Refusal> {
        Self::parse_for(architecture_of(file), name, file)
    }

    /// Parses `file`, which must be for this architecture.
    #[inline(never)]
    pub(super) fn parse_for(
        architecture: impl Architecture,
        name: &str,
        file: &'a [u8],
    ) -> Result<Self, Refusal> {
        let mut file = File::boxed(name, file)?;
        let File {
            findings,
            elf,
            bytes,
            ..
        } = &mut *file;
        match elf.parse(architecture, bytes, &mut findings.problems) {
            Some(()) => Ok(Self(file)),
            None => Err(file.findings.refuse()),
        }
    }
}

impl<'a> File<'a> {
    /// A file that is still to be parsed. (Not inlined: the stack is deepest while it is.)
    #[inline(never)]
    fn boxed(name: &str, bytes: &'a [u8]) -> Result<Box<Self>, NoMemory> {
        let findings = Findings::new(name)?;
        let place = fallible::place()?;
        Ok(Box::write(
            place,
            Self {
                findings,
                bytes,
                elf: Elf::default(),
                build_id: b"",
                depends: b"",
            },
        ))
    }
}
