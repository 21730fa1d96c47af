// SPDX-License-Identifier: MIT OR Apache-2.0

//! From bytes to a well-formed ELF file.

use super::{File, Findings};
use crate::elf::Elf;
use crate::problem::Refusal;
use alloc::boxed::Box;
use xsplice_fallible as fallible;

/// A relocatable ELF file for this machine, within the loader's limits.
#[derive(Debug)]
pub struct Parsed<'a>(pub(super) Box<File<'a>>);

impl<'a> Parsed<'a> {
    /// Parses `file`, to be loaded as `name`.
    ///
    /// # Errors
    /// [`Refusal`] if it is not a payload file at all.
    #[inline(never)]
    pub fn parse(name: &str, file: &'a [u8]) -> Result<Self, Refusal> {
        let mut findings = Findings::new(name)?;
        let place = fallible::place()?;
        match Elf::parse(file, &mut findings.problems) {
            Some(elf) => Ok(Self(Box::write(
                place,
                File {
                    findings,
                    bytes: file,
                    elf,
                    build_id: b"",
                    depends: b"",
                },
            ))),
            None => Err(findings.refuse()),
        }
    }
}
