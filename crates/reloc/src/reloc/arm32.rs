// SPDX-License-Identifier: MIT OR Apache-2.0

//! The ARM32 relocations that can occur in code for a hypervisor.
//!
//! From "ELF for the Arm Architecture" (IHI 0044), "Relocation codes table". Left out
//! are those for Thumb code, global offset tables, thread-local storage, shared objects
//! and unwinding. Compilers write records without addends (`SHT_REL`):
//! [`Relocation::addend`] reads them from the place.
//!
//! An address of a Thumb function has its lowest bit set. No branch of ARM code holds
//! such a distance, so it is refused by its alignment.

use super::{Field, Origin, Range, Relocation};

/// Data as wide as an address: addresses are modulo 2^32, so every value fits.
const fn data(r_type: u32, name: &'static str, origin: Origin) -> Relocation {
    Relocation::data(r_type, name, 4, origin, Range::Any)
}

/// The distance of a branch.
const fn branch(r_type: u32, name: &'static str) -> Relocation {
    code((r_type, name), Origin::Place, Range::Signed, Field::Branch)
}

/// 16 bits of an address or a distance, from bit `shift` on.
const fn half(r_type: u32, name: &'static str, origin: Origin, shift: u32) -> Relocation {
    code((r_type, name), origin, Range::Any, Field::Half { shift })
}

/// A field of an instruction.
const fn code(
    (r_type, name): (u32, &'static str),
    origin: Origin,
    range: Range,
    field: Field,
) -> Relocation {
    let (bits, align) = match field {
        Field::Branch => (26, 4),
        _ => (32, 1),
    };
    Relocation {
        r_type,
        name,
        size: 4,
        origin,
        range,
        bits,
        align,
        field,
        bounds: range.bounds(bits),
    }
}

/// All supported relocations, ordered by type.
pub const TABLE: &[Relocation] = &[
    Relocation::data(0, "R_ARM_NONE", 0, Origin::Zero, Range::Any),
    data(2, "R_ARM_ABS32", Origin::Zero),
    data(3, "R_ARM_REL32", Origin::Place),
    branch(28, "R_ARM_CALL"),
    branch(29, "R_ARM_JUMP24"),
    half(43, "R_ARM_MOVW_ABS_NC", Origin::Zero, 0),
    half(44, "R_ARM_MOVT_ABS", Origin::Zero, 16),
    half(45, "R_ARM_MOVW_PREL_NC", Origin::Place, 0),
    half(46, "R_ARM_MOVT_PREL", Origin::Place, 16),
];

const PLACES: [u8; TABLE[TABLE.len() - 1].r_type as usize + 1] = super::places(TABLE);

/// The description of relocation type `r_type`, if supported.
///
/// ```
/// use xsplice_reloc::reloc::arm32;
///
/// // The distance of a branch has 26 bits and counts instructions.
/// let call = arm32::lookup(28).unwrap();
/// assert_eq!((call.name, call.align), ("R_ARM_CALL", 4));
/// let mut branch = 0xebff_fffe_u32.to_le_bytes();
/// // Processors count from the second instruction after the branch.
/// assert_eq!(call.addend(&branch), Some(-8));
/// call.write(&mut branch, 0x100 - 8).unwrap();
/// assert_eq!(u32::from_le_bytes(branch), 0xeb00_003e);
/// ```
#[must_use]
pub fn lookup(r_type: u32) -> Option<&'static Relocation> {
    super::lookup(TABLE, &PLACES, r_type)
}
