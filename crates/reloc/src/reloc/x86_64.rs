// SPDX-License-Identifier: MIT OR Apache-2.0

//! The x86-64 relocations that can occur in code for a hypervisor.
//!
//! From the System V Application Binary Interface, AMD64 Architecture
//! Processor Supplement, table 4.10 ("Relocation Types"). Those for global
//! offset tables, thread-local storage and shared objects are left out: a
//! freestanding image has none of the three.

use super::{Origin, Range, Relocation};

/// Nothing to do.
pub const R_X86_64_NONE: u32 = 0;
/// `S + A`, 8 bytes.
pub const R_X86_64_64: u32 = 1;
/// `S + A - P`, 4 bytes.
pub const R_X86_64_PC32: u32 = 2;
/// `L + A - P`, 4 bytes; without procedure linkage table the same as `PC32`.
pub const R_X86_64_PLT32: u32 = 4;
/// `S + A`, 4 bytes, zero-extended.
pub const R_X86_64_32: u32 = 10;
/// `S + A`, 4 bytes, sign-extended.
pub const R_X86_64_32S: u32 = 11;
/// `S + A`, 2 bytes.
pub const R_X86_64_16: u32 = 12;
/// `S + A - P`, 2 bytes.
pub const R_X86_64_PC16: u32 = 13;
/// `S + A`, 1 byte.
pub const R_X86_64_8: u32 = 14;
/// `S + A - P`, 1 byte.
pub const R_X86_64_PC8: u32 = 15;
/// `S + A - P`, 8 bytes.
pub const R_X86_64_PC64: u32 = 24;

const fn absolute(r_type: u32, name: &'static str, size: usize, range: Range) -> Relocation {
    Relocation::data(r_type, name, size, Origin::Zero, range)
}

const fn relative(r_type: u32, name: &'static str, size: usize) -> Relocation {
    Relocation::data(r_type, name, size, Origin::Place, Range::Signed)
}

/// All supported relocations, ordered by type.
pub const TABLE: &[Relocation] = &[
    absolute(R_X86_64_NONE, "R_X86_64_NONE", 0, Range::Any),
    absolute(R_X86_64_64, "R_X86_64_64", 8, Range::Any),
    relative(R_X86_64_PC32, "R_X86_64_PC32", 4),
    relative(R_X86_64_PLT32, "R_X86_64_PLT32", 4),
    absolute(R_X86_64_32, "R_X86_64_32", 4, Range::Unsigned),
    absolute(R_X86_64_32S, "R_X86_64_32S", 4, Range::Signed),
    absolute(R_X86_64_16, "R_X86_64_16", 2, Range::Either),
    relative(R_X86_64_PC16, "R_X86_64_PC16", 2),
    absolute(R_X86_64_8, "R_X86_64_8", 1, Range::Either),
    relative(R_X86_64_PC8, "R_X86_64_PC8", 1),
    relative(R_X86_64_PC64, "R_X86_64_PC64", 8),
];

const PLACES: [u8; TABLE[TABLE.len() - 1].r_type as usize + 1] = super::places(TABLE);

/// The description of relocation type `r_type`, if supported.
///
/// ```
/// use xsplice_reloc::reloc::x86_64;
///
/// let relocation = x86_64::lookup(x86_64::R_X86_64_32S).unwrap();
/// assert_eq!((relocation.size, relocation.bounds().1), (4, i64::from(i32::MAX)));
/// assert!(x86_64::lookup(99).is_none());
/// ```
#[must_use]
pub fn lookup(r_type: u32) -> Option<&'static Relocation> {
    super::lookup(TABLE, &PLACES, r_type)
}
