// SPDX-License-Identifier: MIT OR Apache-2.0

//! The AArch64 relocations that can occur in code for a hypervisor.
//!
//! From "ELF for the Arm 64-bit Architecture" (IHI 0056), "Relocation". Those
//! for global offset tables, thread-local storage and shared objects are left
//! out: a freestanding image has none of the three.

use super::{Field, Origin, Range, Relocation};

/// Data: the value fills `size` bytes. A narrow value may be signed or unsigned, even
/// if it is relative.
const fn data(r_type: u32, name: &'static str, size: usize, origin: Origin) -> Relocation {
    Relocation::data(r_type, name, size, origin, Range::Either)
}

/// A field of an instruction: `bits` of the value are checked, those from `align` on
/// are stored.
const fn code(
    (r_type, name): (u32, &'static str),
    origin: Origin,
    (range, bits): (Range, u32),
    align: u64,
    field: Field,
) -> Relocation {
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

/// A branch, or a load of a literal: a distance in words, from bit `at` on.
const fn distance(r_type: u32, name: &'static str, bits: u32, at: u32) -> Relocation {
    let (shift, width) = (2, bits - 2);
    let field = Field::Bits { at, width, shift };
    code(
        (r_type, name),
        Origin::Place,
        (Range::Signed, bits),
        4,
        field,
    )
}

/// The low 12 bits of an address, in units of what is loaded or stored there.
const fn low(r_type: u32, name: &'static str, shift: u32) -> Relocation {
    let (at, width) = (10, 12 - shift);
    let field = Field::Bits { at, width, shift };
    code(
        (r_type, name),
        Origin::Zero,
        (Range::Any, 64),
        1 << shift,
        field,
    )
}

/// 16 bits of an address, from bit `16 * group` on.
const fn group(r_type: u32, name: &'static str, group: u32, range: Range) -> Relocation {
    sixteen((r_type, name), Origin::Zero, group, range)
}

/// 16 bits of a distance, from bit `16 * group` on.
const fn relative(r_type: u32, name: &'static str, group: u32, range: Range) -> Relocation {
    sixteen((r_type, name), Origin::Place, group, range)
}

const fn sixteen(
    kind: (u32, &'static str),
    origin: Origin,
    group: u32,
    range: Range,
) -> Relocation {
    let shift = 16 * group;
    let field = match range {
        Range::Signed => Field::Move { shift },
        _ => Field::Bits {
            at: 5,
            width: 16,
            shift,
        },
    };
    let bits = match range {
        // The instruction carries the sign.
        Range::Signed => shift + 17,
        _ => shift + 16,
    };
    code(kind, origin, (range, bits), 1, field)
}

/// A distance from this instruction, or of the pages of both.
const fn address(r_type: u32, name: &'static str, origin: Origin, range: Range) -> Relocation {
    let shift = match origin {
        Origin::Page => 12,
        _ => 0,
    };
    let field = Field::Address { shift };
    code((r_type, name), origin, (range, 21 + shift), 1, field)
}

/// All supported relocations, ordered by type.
pub const TABLE: &[Relocation] = &[
    Relocation::data(0, "R_AARCH64_NONE", 0, Origin::Zero, Range::Any),
    data(257, "R_AARCH64_ABS64", 8, Origin::Zero),
    data(258, "R_AARCH64_ABS32", 4, Origin::Zero),
    data(259, "R_AARCH64_ABS16", 2, Origin::Zero),
    data(260, "R_AARCH64_PREL64", 8, Origin::Place),
    data(261, "R_AARCH64_PREL32", 4, Origin::Place),
    data(262, "R_AARCH64_PREL16", 2, Origin::Place),
    group(263, "R_AARCH64_MOVW_UABS_G0", 0, Range::Unsigned),
    group(264, "R_AARCH64_MOVW_UABS_G0_NC", 0, Range::Any),
    group(265, "R_AARCH64_MOVW_UABS_G1", 1, Range::Unsigned),
    group(266, "R_AARCH64_MOVW_UABS_G1_NC", 1, Range::Any),
    group(267, "R_AARCH64_MOVW_UABS_G2", 2, Range::Unsigned),
    group(268, "R_AARCH64_MOVW_UABS_G2_NC", 2, Range::Any),
    group(269, "R_AARCH64_MOVW_UABS_G3", 3, Range::Any),
    group(270, "R_AARCH64_MOVW_SABS_G0", 0, Range::Signed),
    group(271, "R_AARCH64_MOVW_SABS_G1", 1, Range::Signed),
    group(272, "R_AARCH64_MOVW_SABS_G2", 2, Range::Signed),
    distance(273, "R_AARCH64_LD_PREL_LO19", 21, 5),
    address(274, "R_AARCH64_ADR_PREL_LO21", Origin::Place, Range::Signed),
    address(
        275,
        "R_AARCH64_ADR_PREL_PG_HI21",
        Origin::Page,
        Range::Signed,
    ),
    address(
        276,
        "R_AARCH64_ADR_PREL_PG_HI21_NC",
        Origin::Page,
        Range::Any,
    ),
    low(277, "R_AARCH64_ADD_ABS_LO12_NC", 0),
    low(278, "R_AARCH64_LDST8_ABS_LO12_NC", 0),
    distance(279, "R_AARCH64_TSTBR14", 16, 5),
    distance(280, "R_AARCH64_CONDBR19", 21, 5),
    distance(282, "R_AARCH64_JUMP26", 28, 0),
    distance(283, "R_AARCH64_CALL26", 28, 0),
    low(284, "R_AARCH64_LDST16_ABS_LO12_NC", 1),
    low(285, "R_AARCH64_LDST32_ABS_LO12_NC", 2),
    low(286, "R_AARCH64_LDST64_ABS_LO12_NC", 3),
    relative(287, "R_AARCH64_MOVW_PREL_G0", 0, Range::Signed),
    relative(288, "R_AARCH64_MOVW_PREL_G0_NC", 0, Range::Any),
    relative(289, "R_AARCH64_MOVW_PREL_G1", 1, Range::Signed),
    relative(290, "R_AARCH64_MOVW_PREL_G1_NC", 1, Range::Any),
    relative(291, "R_AARCH64_MOVW_PREL_G2", 2, Range::Signed),
    relative(292, "R_AARCH64_MOVW_PREL_G2_NC", 2, Range::Any),
    relative(293, "R_AARCH64_MOVW_PREL_G3", 3, Range::Signed),
    low(299, "R_AARCH64_LDST128_ABS_LO12_NC", 4),
];

const PLACES: [u8; TABLE[TABLE.len() - 1].r_type as usize + 1] = super::places(TABLE);

/// The description of relocation type `r_type`, if supported.
///
/// ```
/// use xsplice_reloc::reloc::aarch64;
///
/// // The offset of a branch has 26 bits and counts instructions.
/// let call = aarch64::lookup(283).unwrap();
/// assert_eq!((call.name, call.align), ("R_AARCH64_CALL26", 4));
/// let mut branch = 0x9400_0000_u32.to_le_bytes();
/// call.write(&mut branch, 0x100).unwrap();
/// assert_eq!(u32::from_le_bytes(branch), 0x9400_0040);
/// ```
#[must_use]
pub fn lookup(r_type: u32) -> Option<&'static Relocation> {
    super::lookup(TABLE, &PLACES, r_type)
}
