// SPDX-License-Identifier: MIT OR Apache-2.0

//! Relocations: which field they fill, how the value is computed, and which
//! values fit.

pub mod aarch64;
pub mod arm32;
pub mod x86_64;

use core::fmt;
use thiserror::Error;

/// Which values a relocated field can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// The field is sign-extended on use.
    Signed,
    /// The field is zero-extended on use.
    Unsigned,
    /// The field is as wide as its use, so signed and unsigned values are valid.
    Either,
    /// The field holds part of the value; the rest is ignored.
    Any,
}

/// What is subtracted from the address that a relocation refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nothing.
    Zero,
    /// The address of the field.
    Place,
    /// The page of 4096 bytes that the field is in, from the page that the
    /// address is in.
    Page,
}

/// Where the value is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// All bytes of the place, little-endian.
    Whole,
    /// `width` bits of an instruction from bit `at` on; they take the value's
    /// bits from bit `shift` on.
    Bits {
        /// Lowest bit of the field.
        at: u32,
        /// Bits in the field.
        width: u32,
        /// Lowest bit of the value that is stored.
        shift: u32,
    },
    /// The 21 bits of AArch64's `adr` and `adrp`: the lowest two from bit 29 on,
    /// the others from bit 5 on.
    Address {
        /// Lowest bit of the value that is stored.
        shift: u32,
    },
    /// The 16 bits of AArch64's `movz`, which becomes `movn` when the value is
    /// negative.
    Move {
        /// Lowest bit of the value that is stored.
        shift: u32,
    },
    /// The 16 bits of ARM32's `movw` and `movt`: the lowest twelve from bit 0 on, the
    /// others from bit 16 on.
    Half {
        /// Lowest bit of the value that is stored.
        shift: u32,
    },
    /// The 24 bits of ARM32's `b` and `bl`, which count instructions. `blx` has one bit
    /// more, and changes to Thumb code: it is not written.
    Branch,
}

/// One kind of relocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relocation {
    /// The type, as in the low half of `r_info`.
    pub r_type: u32,
    /// Its name in the architecture's ABI document.
    pub name: &'static str,
    /// Size of the place in bytes: 0 (nothing to do), 1, 2, 4 or 8.
    pub size: usize,
    /// What the value is relative to.
    pub origin: Origin,
    /// Which values fit.
    pub range: Range,
    /// The number of bits that [`range`](Self::range) applies to.
    pub bits: u32,
    /// Required alignment of the value; a power of two.
    pub align: u64,
    /// The bits of the place that are written.
    pub field: Field,
    /// The smallest and the largest value that fit, precomputed from range and bits
    /// for checks of many values.
    bounds: (i64, i64),
}

/// A value that does not fit the field of its relocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "{name} cannot hold {}: the field takes {}{min} to {max}",
    signed(*.value), Multiples(*.align)
)]
pub struct Overflow {
    /// Name of the relocation.
    pub name: &'static str,
    /// The value to store.
    pub value: u64,
    /// Smallest value that fits.
    pub min: i64,
    /// Largest value that fits.
    pub max: i64,
    /// Required alignment of values.
    pub align: u64,
}

struct Multiples(u64);

impl fmt::Display for Multiples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            1 => Ok(()),
            align => write!(f, "multiples of {align} from "),
        }
    }
}

/// Why a relocated field could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WriteError {
    /// The value does not fit.
    #[error(transparent)]
    Overflow(#[from] Overflow),
    /// The place has fewer bytes than the field.
    #[error("{name} fills {size} bytes, but only {available} are left in the section")]
    OutOfBounds {
        /// Name of the relocation.
        name: &'static str,
        /// Width of the field.
        size: usize,
        /// Bytes between the place and the end of the section.
        available: usize,
    },
    /// The branch changes to Thumb code.
    #[error("{name} is at a blx instruction, which changes to Thumb code: compile with -marm")]
    Thumb {
        /// Name of the relocation.
        name: &'static str,
    },
}

const fn signed(value: u64) -> i64 {
    value.cast_signed()
}

/// An index of the types below `N` into `table`, for fast lookups; the index of an
/// unknown type is past the end.
const fn places<const N: usize>(table: &[Relocation]) -> [u8; N] {
    let mut places = [u8::MAX; N];
    let mut place = 0;
    while (place as usize) < table.len() {
        places[table[place as usize].r_type as usize] = place;
        place += 1;
    }
    places
}

/// The description of relocation type `r_type` in `table`, with the index `places`.
#[inline]
fn lookup(table: &'static [Relocation], places: &[u8], r_type: u32) -> Option<&'static Relocation> {
    let place = places.get(usize::try_from(r_type).ok()?)?;
    table.get(usize::from(*place))
}

impl Range {
    /// The smallest and the largest value in `bits` bits.
    const fn bounds(self, bits: u32) -> (i64, i64) {
        // A field as wide as an address holds any value.
        if bits >= 64 || matches!(self, Self::Any) {
            return (i64::MIN, i64::MAX);
        }
        let signed_max = (1 << (bits - 1)) - 1;
        let unsigned_max = (1_u64 << bits) - 1;
        let unsigned_max = unsigned_max.cast_signed();
        match self {
            Self::Signed => (-signed_max - 1, signed_max),
            Self::Unsigned => (0, unsigned_max),
            Self::Either | Self::Any => (-signed_max - 1, unsigned_max),
        }
    }
}

impl Relocation {
    /// A value that fills the whole place.
    const fn data(
        r_type: u32,
        name: &'static str,
        size: usize,
        origin: Origin,
        range: Range,
    ) -> Self {
        let bits = match size {
            1 => 8,
            2 => 16,
            4 => 32,
            _ => 64,
        };
        Self {
            r_type,
            name,
            size,
            origin,
            range,
            bits,
            align: 1,
            field: Field::Whole,
            bounds: range.bounds(bits),
        }
    }

    /// Whether the value depends on where the field is.
    #[must_use]
    pub const fn pc_relative(&self) -> bool {
        !matches!(self.origin, Origin::Zero)
    }

    /// The value of the field: `S + A`, less what it is relative to.
    ///
    /// Arithmetic is modulo 2^64, like addresses; [`verify`](Self::verify) checks
    /// whether the result fits.
    #[must_use]
    pub const fn value(&self, symbol: u64, addend: i64, place: u64) -> u64 {
        const PAGE: u64 = !0xfff;
        let value = symbol.wrapping_add_signed(addend);
        match self.origin {
            Origin::Zero => value,
            Origin::Place => value.wrapping_sub(place),
            Origin::Page => (value & PAGE).wrapping_sub(place & PAGE),
        }
    }

    /// The smallest and the largest value that fit, as signed numbers.
    #[must_use]
    pub const fn bounds(&self) -> (i64, i64) {
        self.bounds
    }

    /// Whether `value` fits the field.
    ///
    /// # Errors
    /// [`Overflow`] with the value and the bounds if it does not.
    pub const fn verify(&self, value: u64) -> Result<(), Overflow> {
        let (min, max) = self.bounds;
        if signed(value) < min || signed(value) > max || value & (self.align - 1) != 0 {
            return Err(Overflow {
                name: self.name,
                value,
                min,
                max,
                align: self.align,
            });
        }
        Ok(())
    }

    /// Stores `value` at the start of `dest`, which starts at the field.
    ///
    /// ```
    /// use xsplice_reloc::reloc::x86_64::{self, R_X86_64_PC32};
    ///
    /// let relocation = x86_64::lookup(R_X86_64_PC32).unwrap();
    /// let (symbol, place) = (0xffff_82d0_4020_1000, 0xffff_82d0_4020_0000);
    /// // The displacement of a call is from the end of its field.
    /// let value = relocation.value(symbol, -4, place);
    /// let mut code = [0xe8, 0, 0, 0, 0];
    /// relocation.write(&mut code[1..], value)?;
    /// assert_eq!(code, [0xe8, 0xfc, 0x0f, 0, 0]);
    ///
    /// let too_far = relocation.value(0, 0, place);
    /// let refused = relocation.write(&mut code[1..], too_far).unwrap_err();
    /// assert!(refused.to_string().starts_with("R_X86_64_PC32 cannot hold"));
    /// # Ok::<(), xsplice_reloc::reloc::WriteError>(())
    /// ```
    ///
    /// Nothing is written unless the value fits and `dest` has the complete field.
    ///
    /// # Errors
    /// [`WriteError`] says what failed.
    #[inline]
    pub fn write(&self, dest: &mut [u8], value: u64) -> Result<(), WriteError> {
        self.verify(value)?;
        let available = dest.len();
        let place = dest.get_mut(..self.size).ok_or(WriteError::OutOfBounds {
            name: self.name,
            size: self.size,
            available,
        })?;
        let value = match self.field {
            Field::Whole => value,
            _ => self.instruction(place, value)?,
        };
        let bytes = value.to_le_bytes();
        // A constant size lets the compiler use a single store.
        match place.len() {
            4 => place.copy_from_slice(&bytes[..4]),
            8 => place.copy_from_slice(&bytes),
            _ => place
                .iter_mut()
                .zip(bytes)
                .for_each(|(byte, new)| *byte = new),
        }
        Ok(())
    }

    /// The instruction at `place` with `value` in its field. (Not inlined: no field of
    /// x86-64 is a part of one.)
    #[inline(never)]
    fn instruction(&self, place: &[u8], value: u64) -> Result<u64, WriteError> {
        let before = load(place);
        if self.field == Field::Branch && is_blx(before) {
            return Err(WriteError::Thumb { name: self.name });
        }
        Ok(self.field.insert(before, value))
    }

    /// Clears the field at the start of `place`: what stays does not depend on the value.
    /// A place that is cut short stays as it is.
    ///
    /// ```
    /// use xsplice_reloc::reloc::aarch64;
    ///
    /// let call = aarch64::lookup(283).unwrap();
    /// let mut branch = 0x9400_0040_u32.to_le_bytes();
    /// call.erase(&mut branch);
    /// assert_eq!(u32::from_le_bytes(branch), 0x9400_0000);
    /// ```
    pub fn erase(&self, place: &mut [u8]) {
        if let Some(place) = place.get_mut(..self.size) {
            let rest = self.field.insert(load(place), 0).to_le_bytes();
            place.copy_from_slice(&rest[..self.size]);
        }
    }

    /// The value that the field at the start of `bytes` holds, sign-extended
    /// unless the field is known to be unsigned; `None` when `bytes` is shorter
    /// than the place.
    #[must_use]
    pub fn read(&self, bytes: &[u8]) -> Option<i64> {
        let place = load(bytes.get(..self.size)?);
        let unused = match self.field {
            Field::Whole => 64_u32.checked_sub(self.bits)?,
            Field::Bits { width, shift, .. } => 64 - width - shift,
            Field::Address { shift } => 64 - 21 - shift,
            // The topmost group has no sign besides its own.
            Field::Move { shift } => (64_u32 - 17).saturating_sub(shift),
            Field::Half { shift } => 64 - 16 - shift,
            Field::Branch => 64 - 26,
        };
        let value = self.field.extract(place);
        Some(match (self.field, self.range) {
            (Field::Bits { .. } | Field::Half { .. }, Range::Unsigned | Range::Any) => {
                signed(value)
            }
            _ => signed(value) << unused >> unused,
        })
    }

    /// The addend that is in the place, for records that have none (`SHT_REL`); `None`
    /// when `bytes` is shorter than the place.
    ///
    /// ```
    /// use xsplice_reloc::reloc::arm32;
    ///
    /// // movw r0, #0x1800; movt r0, #0x1800: both have the whole addend.
    /// for (r_type, word) in [(43, 0xe301_0800_u32), (44, 0xe341_0800)] {
    ///     let half = arm32::lookup(r_type).unwrap();
    ///     assert_eq!(half.addend(&word.to_le_bytes()), Some(0x1800));
    /// }
    /// ```
    #[must_use]
    pub fn addend(&self, bytes: &[u8]) -> Option<i64> {
        let held = self.read(bytes)?;
        Some(match self.field {
            // A signed number, in the upper half of an address too.
            Field::Half { shift } => held << (64 - 16 - shift) >> (64 - 16),
            _ => held,
        })
    }
}

/// Whether the ARM32 instruction has the condition that only `blx` has.
const fn is_blx(word: u64) -> bool {
    word >> 28 == 0xf
}

/// Up to 8 bytes as a little-endian number.
fn load(bytes: &[u8]) -> u64 {
    let bytes = bytes.iter().rev();
    bytes.fold(0, |value, byte| value << 8 | u64::from(*byte))
}

const fn mask(width: u32) -> u64 {
    (1 << width) - 1
}

/// Bits 30 and 29 of a 16-bit move: its kind.
const MOVE_KIND: u64 = 3 << 29;
/// `movz`; `movn` has neither bit.
const MOVZ: u64 = 2 << 29;

impl Field {
    /// The contents of a place with `value` in its field.
    const fn insert(self, place: u64, value: u64) -> u64 {
        match self {
            Self::Whole => value,
            Self::Bits { at, width, shift } => {
                place & !(mask(width) << at) | (value >> shift & mask(width)) << at
            }
            Self::Address { shift } => {
                let value = value >> shift;
                let (low, high) = (value & mask(2), value >> 2 & mask(19));
                place & !(mask(2) << 29 | mask(19) << 5) | low << 29 | high << 5
            }
            Self::Move { shift } => {
                let negative = signed(value) < 0;
                let (kind, value) = if negative { (0, !value) } else { (MOVZ, value) };
                let field = (value >> shift & mask(16)) << 5;
                place & !(MOVE_KIND | mask(16) << 5) | kind | field
            }
            Self::Half { shift } => {
                let value = value >> shift;
                let (low, high) = (value & mask(12), value >> 12 & mask(4));
                place & !(mask(4) << 16 | mask(12)) | high << 16 | low
            }
            Self::Branch => place & !mask(24) | value >> 2 & mask(24),
        }
    }

    /// The value that [`insert`](Self::insert) stored, with zeros below.
    const fn extract(self, place: u64) -> u64 {
        match self {
            Self::Whole => place,
            Self::Bits { at, width, shift } => (place >> at & mask(width)) << shift,
            Self::Address { shift } => {
                (place >> 29 & mask(2) | (place >> 5 & mask(19)) << 2) << shift
            }
            Self::Move { shift } => {
                let value = place >> 5 & mask(16);
                let negative = place & MOVE_KIND == 0;
                (if negative { !value } else { value }) << shift
            }
            Self::Half { shift } => (place & mask(12) | (place >> 16 & mask(4)) << 12) << shift,
            Self::Branch => (place & mask(24)) << 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Field, Overflow, WriteError, x86_64::*};

    fn fits(r_type: u32, value: i64) -> bool {
        lookup(r_type)
            .unwrap()
            .verify(value.cast_unsigned())
            .is_ok()
    }

    #[test]
    fn bounds_are_inclusive_and_one_beyond_overflows() {
        // (type, smallest, largest)
        for (r_type, min, max) in [
            (R_X86_64_32, 0, 0xffff_ffff),
            (R_X86_64_32S, -0x8000_0000, 0x7fff_ffff),
            (R_X86_64_PC32, -0x8000_0000, 0x7fff_ffff),
            (R_X86_64_PLT32, -0x8000_0000, 0x7fff_ffff),
            (R_X86_64_16, -0x8000, 0xffff),
            (R_X86_64_PC16, -0x8000, 0x7fff),
            (R_X86_64_8, -0x80, 0xff),
            (R_X86_64_PC8, -0x80, 0x7f),
        ] {
            assert!(fits(r_type, min) && fits(r_type, max), "type {r_type}");
            assert!(
                !fits(r_type, min - 1) && !fits(r_type, max + 1),
                "type {r_type}"
            );
            assert!(
                !fits(r_type, i64::MIN) && !fits(r_type, i64::MAX),
                "type {r_type}"
            );
        }
        for r_type in [R_X86_64_64, R_X86_64_PC64, R_X86_64_NONE] {
            assert!(fits(r_type, i64::MIN) && fits(r_type, -1) && fits(r_type, i64::MAX));
        }
    }

    #[test]
    fn values_follow_the_formulas_modulo_the_address_space() {
        let text = 0xffff_82d0_4020_0000;
        let pc32 = lookup(R_X86_64_PC32).unwrap();
        assert_eq!(pc32.value(text + 0x100, -4, text), 0xfc);
        assert_eq!(pc32.value(text, -4, text + 0x100).cast_signed(), -0x104);
        assert_eq!(lookup(R_X86_64_64).unwrap().value(text, 8, 1), text + 8);
        assert_eq!(lookup(R_X86_64_64).unwrap().value(u64::MAX, 1, 0), 0);
    }

    #[test]
    fn written_fields_read_back_and_touch_nothing_else() {
        for relocation in TABLE {
            let (min, max) = relocation.bounds();
            for value in [min, -1, 0, 1, max] {
                let mut bytes = [0xa5; 12];
                let wrote = relocation.write(&mut bytes, value.cast_unsigned());
                assert_eq!(
                    wrote.is_ok(),
                    value >= min && value <= max,
                    "{}",
                    relocation.name
                );
                let untouched = if wrote.is_ok() { relocation.size } else { 0 };
                assert!(bytes[untouched..].iter().all(|byte| *byte == 0xa5));
                if wrote.is_ok() && relocation.size != 0 {
                    let bits = 64 - 8 * u32::try_from(relocation.size).unwrap();
                    assert_eq!(relocation.read(&bytes), Some(value << bits >> bits));
                }
            }
        }
    }

    #[test]
    fn a_truncated_field_is_an_error() {
        for relocation in TABLE.iter().filter(|relocation| relocation.size != 0) {
            let mut bytes = [0; 8];
            let short = &mut bytes[..relocation.size - 1];
            assert_eq!(relocation.read(short), None);
            assert_eq!(
                relocation.write(short, 0),
                Err(WriteError::OutOfBounds {
                    name: relocation.name,
                    size: relocation.size,
                    available: relocation.size - 1
                })
            );
        }
    }

    #[test]
    fn overflow_names_value_and_bounds() {
        extern crate alloc;
        use alloc::string::ToString;
        let error = lookup(R_X86_64_PC8).unwrap().verify(200).unwrap_err();
        assert_eq!(
            error,
            Overflow {
                name: "R_X86_64_PC8",
                value: 200,
                min: -128,
                max: 127,
                align: 1,
            }
        );
        assert_eq!(
            error.to_string(),
            "R_X86_64_PC8 cannot hold 200: the field takes -128 to 127"
        );
        let call = super::aarch64::lookup(283).unwrap();
        assert_eq!(
            call.verify(6).unwrap_err().to_string(),
            "R_AARCH64_CALL26 cannot hold 6: the field takes multiples of 4 from -134217728 to \
             134217727"
        );
    }

    #[test]
    fn instruction_fields_hold_their_part_of_the_value() {
        for relocation in super::aarch64::TABLE.iter().chain(super::arm32::TABLE) {
            let (name, align) = (relocation.name, relocation.align.cast_signed());
            let (min, max) = relocation.bounds();
            let stored = match relocation.field {
                Field::Whole => continue,
                Field::Bits { width, shift, .. } => (width, shift),
                Field::Address { shift } => (21, shift),
                Field::Move { shift } => (17, shift),
                Field::Half { shift } => (16, shift),
                Field::Branch => (24, 2),
            };
            for value in [min, -16 * align, 0, 16 * align, max].map(|v| v & -align) {
                for before in [0_u32, 0x5555_5555, u32::MAX] {
                    let mut bytes = before.to_le_bytes();
                    if relocation.write(&mut bytes, value.cast_unsigned()).is_err() {
                        continue;
                    }
                    let (width, shift) = stored;
                    let kept = value.cast_unsigned() >> shift & ((1 << width) - 1);
                    let read = relocation.read(&bytes).unwrap().cast_unsigned();
                    assert_eq!(read >> shift & ((1 << width) - 1), kept, "{name} {value}");
                    let changed = (before ^ u32::from_le_bytes(bytes)).count_ones();
                    assert!(changed <= width + 1, "{name} {value}");
                }
            }
        }
    }

    #[test]
    fn relocations_relative_to_the_field() {
        for relocation in TABLE {
            let relative = relocation.name.contains("PC") || relocation.name.contains("PLT");
            assert_eq!(relocation.pc_relative(), relative, "{}", relocation.name);
        }
        // R_ARM_ABS32, _REL32, _CALL, _MOVT_ABS and _MOVT_PREL.
        for (r_type, relative) in [(2, false), (3, true), (28, true), (44, false), (46, true)] {
            let relocation = super::arm32::lookup(r_type).unwrap();
            assert_eq!(relocation.pc_relative(), relative, "{}", relocation.name);
        }
        // R_AARCH64_ABS64, _CALL26 and _ADR_PREL_PG_HI21.
        for (r_type, relative) in [(257, false), (283, true), (275, true)] {
            let relocation = super::aarch64::lookup(r_type).unwrap();
            assert_eq!(relocation.pc_relative(), relative, "{}", relocation.name);
        }
    }

    /// `blx` changes to Thumb code, and so does the address of a Thumb function.
    #[test]
    fn branches_to_thumb_code_are_refused() {
        let [call, jump] = [28, 29].map(|r_type| super::arm32::lookup(r_type).unwrap());
        let blx = 0xfa00_0000_u32.to_le_bytes();
        for relocation in [call, jump] {
            let mut bytes = blx;
            let name = relocation.name;
            assert_eq!(
                relocation.write(&mut bytes, 0x100),
                Err(WriteError::Thumb { name })
            );
            assert_eq!(bytes, blx);
            assert!(relocation.verify(0x101).is_err() && relocation.verify(0x100).is_ok());
        }
    }

    #[test]
    fn unsigned_fields_are_read_as_unsigned() {
        // R_AARCH64_MOVW_UABS_G0, _G1_NC, _LDST8_ABS_LO12_NC and _LDST64_ABS_LO12_NC.
        for (r_type, value) in [
            (263, 0xffff),
            (266, 0xffff_0000),
            (278, 0xfff),
            (286, 0xff8),
        ] {
            let relocation = super::aarch64::lookup(r_type).unwrap();
            let mut bytes = [0; 4];
            relocation.write(&mut bytes, value).unwrap();
            let read = relocation.read(&bytes).map(i64::cast_unsigned);
            assert_eq!(read, Some(value), "{}", relocation.name);
        }
    }

    #[test]
    fn types_are_unique_and_unknown_ones_are_not_found() {
        for relocation in TABLE {
            assert_eq!(lookup(relocation.r_type), Some(relocation));
        }
        for relocation in super::aarch64::TABLE {
            let found = super::aarch64::lookup(relocation.r_type);
            assert_eq!(found, Some(relocation));
        }
        for relocation in super::arm32::TABLE {
            let found = super::arm32::lookup(relocation.r_type);
            assert_eq!(found, Some(relocation));
        }
        assert_eq!(lookup(9), None); // R_X86_64_GOTPCREL
        assert_eq!(lookup(u32::MAX), None);
    }
}
