// SPDX-License-Identifier: MIT OR Apache-2.0

//! From bytes to a well-formed ELF file.

use super::Findings;
use crate::elf::Elf;
use crate::problem::Refusal;

/// A relocatable ELF file for this machine, within the loader's limits.
#[derive(Debug)]
pub struct Parsed<'a> {
    pub(super) findings: Findings,
    pub(super) elf: Elf<'a>,
}

impl<'a> Parsed<'a> {
    /// Parses `file`, which is to be loaded under `name`.
    ///
    /// # Errors
    /// [`Refusal`] when it is not a payload file at all.
    pub fn parse(name: &str, file: &'a [u8]) -> Result<Self, Refusal> {
        let mut findings = Findings::new(name);
        match Elf::parse(file, &mut findings.problems) {
            Some(elf) => Ok(Self { findings, elf }),
            None => Err(findings.refuse()),
        }
    }
}
