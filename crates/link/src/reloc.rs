//! Relocations: which field they fill, how the value is computed, and which
//! values fit.

use thiserror::Error;

/// Which values a relocated field can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// The field is sign-extended when it is used.
    Signed,
    /// The field is zero-extended when it is used.
    Unsigned,
    /// The field is as wide as its use, so both readings of it are valid.
    Either,
}

/// One kind of relocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relocation {
    /// The type as it stands in the low half of `r_info`.
    pub r_type: u32,
    /// The name that the architecture's ABI document gives it.
    pub name: &'static str,
    /// Width of the field in bytes: 0 (no field), 1, 2, 4 or 8.
    pub size: usize,
    /// Whether the address of the field is subtracted from the value.
    pub pc_relative: bool,
    /// Which values fit the field.
    pub range: Range,
}

/// A value that does not fit the field of its relocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{name} cannot hold {}: the field takes {min} to {max}", signed(*.value))]
pub struct Overflow {
    /// Name of the relocation.
    pub name: &'static str,
    /// The value that was to be stored.
    pub value: u64,
    /// Smallest value that fits.
    pub min: i64,
    /// Largest value that fits.
    pub max: i64,
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
}

const fn signed(value: u64) -> i64 {
    value.cast_signed()
}

impl Relocation {
    /// The value of the field: `S + A`, less `P` for a PC-relative one.
    ///
    /// Arithmetic is modulo 2^64, as addresses are; [`verify`](Self::verify)
    /// says whether the result fits.
    #[must_use]
    pub const fn value(&self, symbol: u64, addend: i64, place: u64) -> u64 {
        let value = symbol.wrapping_add_signed(addend);
        if self.pc_relative {
            value.wrapping_sub(place)
        } else {
            value
        }
    }

    /// The smallest and the largest value that fit, read as signed numbers.
    #[must_use]
    pub const fn bounds(&self) -> (i64, i64) {
        let (smallest, signed_max, unsigned_max) = match self.size {
            1 => (i8::MIN as i64, i8::MAX as i64, u8::MAX as i64),
            2 => (i16::MIN as i64, i16::MAX as i64, u16::MAX as i64),
            4 => (i32::MIN as i64, i32::MAX as i64, u32::MAX as i64),
            // No field, or a field as wide as an address: everything fits.
            _ => return (i64::MIN, i64::MAX),
        };
        match self.range {
            Range::Signed => (smallest, signed_max),
            Range::Unsigned => (0, unsigned_max),
            Range::Either => (smallest, unsigned_max),
        }
    }

    /// Whether `value` fits the field.
    ///
    /// # Errors
    /// [`Overflow`] with the value and the bounds when it does not.
    pub const fn verify(&self, value: u64) -> Result<(), Overflow> {
        let (min, max) = self.bounds();
        if signed(value) < min || signed(value) > max {
            return Err(Overflow {
                name: self.name,
                value,
                min,
                max,
            });
        }
        Ok(())
    }

    /// Stores `value` at the start of `dest`, which begins at the field.
    ///
    /// Nothing is written unless the value fits and all of the field is there.
    ///
    /// # Errors
    /// [`WriteError`] says which of the two failed.
    pub fn write(&self, dest: &mut [u8], value: u64) -> Result<(), WriteError> {
        self.verify(value)?;
        let available = dest.len();
        let bytes = value.to_le_bytes();
        match (dest.get_mut(..self.size), bytes.get(..self.size)) {
            (Some(field), Some(bytes)) => {
                field.copy_from_slice(bytes);
                Ok(())
            }
            _ => Err(WriteError::OutOfBounds {
                name: self.name,
                size: self.size,
                available,
            }),
        }
    }

    /// The field at the start of `bytes`, sign-extended; `None` when `bytes`
    /// is shorter than the field.
    #[must_use]
    pub fn read(&self, bytes: &[u8]) -> Option<i64> {
        Some(match self.size {
            1 => i64::from(i8::from_le_bytes(*bytes.first_chunk()?)),
            2 => i64::from(i16::from_le_bytes(*bytes.first_chunk()?)),
            4 => i64::from(i32::from_le_bytes(*bytes.first_chunk()?)),
            8 => i64::from_le_bytes(*bytes.first_chunk()?),
            _ => 0,
        })
    }
}

/// The x86-64 relocations that can occur in code for a hypervisor.
///
/// From the System V Application Binary Interface, AMD64 Architecture
/// Processor Supplement, table 4.10 ("Relocation Types"). Those for global
/// offset tables, thread-local storage and shared objects are left out: a
/// freestanding image has none of the three.
pub mod x86_64 {
    use super::{Range, Relocation};

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
        Relocation {
            r_type,
            name,
            size,
            pc_relative: false,
            range,
        }
    }

    const fn relative(r_type: u32, name: &'static str, size: usize) -> Relocation {
        Relocation {
            r_type,
            name,
            size,
            pc_relative: true,
            range: Range::Signed,
        }
    }

    /// Every relocation that is known, in the order of their types.
    pub const TABLE: &[Relocation] = &[
        absolute(R_X86_64_NONE, "R_X86_64_NONE", 0, Range::Either),
        absolute(R_X86_64_64, "R_X86_64_64", 8, Range::Either),
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

    /// The description of relocation type `r_type`, if it is a known one.
    #[must_use]
    pub fn lookup(r_type: u32) -> Option<&'static Relocation> {
        TABLE.iter().find(|relocation| relocation.r_type == r_type)
    }
}

#[cfg(test)]
mod tests {
    use super::{Overflow, WriteError, x86_64::*};

    fn fits(r_type: u32, value: i64) -> bool {
        lookup(r_type)
            .unwrap()
            .verify(value.cast_unsigned())
            .is_ok()
    }

    #[test]
    fn bounds_are_inclusive_and_one_further_overflows() {
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
    fn a_field_that_is_cut_off_is_an_error() {
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
                max: 127
            }
        );
        assert_eq!(
            error.to_string(),
            "R_X86_64_PC8 cannot hold 200: the field takes -128 to 127"
        );
    }

    #[test]
    fn types_are_unique_and_unknown_ones_are_not_found() {
        for relocation in TABLE {
            assert_eq!(lookup(relocation.r_type), Some(relocation));
        }
        assert_eq!(lookup(9), None); // R_X86_64_GOTPCREL
        assert_eq!(lookup(u32::MAX), None);
    }
}
