// SPDX-License-Identifier: MIT OR Apache-2.0

//! Instruction lengths: opcode maps of the Intel SDM, volume 2, appendix A, and of
//! AMD's manual, volume 3, for XOP; 64-bit mode.
//!
//! This does not identify instructions. Invalid encodings may get a length; valid
//! ones always get the right one.

/// The bytes after an opcode.
#[derive(Clone, Copy)]
struct Shape {
    modrm: bool,
    /// Bytes after that.
    immediate: usize,
}

const fn shape(modrm: bool, immediate: usize) -> Shape {
    Shape { modrm, immediate }
}

/// Prefixes that change the length of the rest.
#[derive(Clone, Copy, Default)]
struct Prefixes {
    operand_size: bool,
    address_size: bool,
    repeat: bool,
    wide: bool,
}

impl Prefixes {
    /// Size of an immediate of the operand's size, which is at most 4.
    const fn immediate(self) -> usize {
        if self.operand_size && !self.wide {
            2
        } else {
            4
        }
    }
}

/// Longest instruction that a processor executes.
pub(super) const LONGEST: usize = 15;

/// Whether the byte is a prefix, REX included.
const fn is_prefix(byte: u8) -> bool {
    matches!(
        byte,
        0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3
    )
}

impl Prefixes {
    /// The prefixes of the first instruction of `code`, and their number.
    fn read(code: &[u8]) -> Option<(Self, usize)> {
        let mut prefixes = Self::default();
        for (at, byte) in code.iter().enumerate() {
            match byte {
                0x66 => prefixes.operand_size = true,
                0x67 => prefixes.address_size = true,
                0xf2 | 0xf3 => prefixes.repeat = true,
                // REX only counts directly before the opcode.
                0x40..=0x4f => {
                    prefixes.wide = byte & 8 != 0 && !is_prefix(*code.get(at + 1)?);
                }
                byte if is_prefix(*byte) => {}
                _ => return Some((prefixes, at)),
            }
        }
        None
    }
}

/// The length of the first instruction of `code`; `None` if it is truncated or
/// invalid.
pub(super) fn length(code: &[u8]) -> Option<usize> {
    let (prefixes, at) = Prefixes::read(code)?;
    let opcode = *code.get(at)?;
    let at = at + 1;
    let byte = |offset: usize| code.get(at + offset).copied();
    let (opcode_end, shape) = match opcode {
        0x0f => match byte(0)? {
            0x38 => (at + 2, shape(true, 0)),
            0x3a => (at + 2, shape(true, 1)),
            second => (at + 1, two_byte(second, prefixes)?),
        },
        0xc5 => (at + 2, vector(1, byte(1)?)?),
        0xc4 => (at + 3, vector(byte(0)? & 0x1f, byte(2)?)?),
        0x62 => (at + 4, vector(byte(0)? & 7, byte(3)?)?),
        0x8f if byte(0)? & 0x1f >= 8 => {
            let immediate = match byte(0)? & 0x1f {
                8 => 1,
                9 => 0,
                10 => 4,
                _ => return None,
            };
            (at + 3, shape(true, immediate))
        }
        _ => (at, one_byte(opcode, byte(0), prefixes)?),
    };
    let operand = if shape.modrm {
        memory(
            code.get(opcode_end..)?,
            opcode == 0x0f && matches!(byte(0), Some(0x20..=0x23)),
        )?
    } else {
        0
    };
    let length = opcode_end + operand + shape.immediate;
    (length <= code.len() && length <= LONGEST).then_some(length)
}

/// Size of ModRM, SIB and displacement.
fn memory(code: &[u8], always_register: bool) -> Option<usize> {
    let modrm = *code.first()?;
    let (mode, register) = (modrm >> 6, modrm & 7);
    if mode == 3 || always_register {
        return Some(1);
    }
    let sib = if register == 4 { 1 } else { 0 };
    let no_base = match sib {
        1 => *code.get(1)? & 7 == 5,
        _ => register == 5,
    };
    Some(match mode {
        0 if no_base => 1 + sib + 4,
        0 => 1 + sib,
        1 => 1 + sib + 1,
        _ => 1 + sib + 4,
    })
}

fn one_byte(opcode: u8, next: Option<u8>, prefixes: Prefixes) -> Option<Shape> {
    let full = prefixes.immediate();
    Some(match opcode {
        0x00..=0x3f => match opcode & 7 {
            0..=3 => shape(true, 0),
            4 => shape(false, 1),
            5 => shape(false, full),
            _ => return None,
        },
        0x63 | 0x84..=0x8f | 0xd0..=0xd3 | 0xd8..=0xdf | 0xfe | 0xff => shape(true, 0),
        0x68 | 0xa9 => shape(false, full),
        0x69 | 0x81 | 0xc7 => shape(true, full),
        0x6a | 0x70..=0x7f | 0xa8 | 0xb0..=0xb7 | 0xcd | 0xe0..=0xe7 | 0xeb => shape(false, 1),
        0x6b | 0x80 | 0x83 | 0xc0 | 0xc1 | 0xc6 => shape(true, 1),
        0xa0..=0xa3 => shape(false, if prefixes.address_size { 4 } else { 8 }),
        0xb8..=0xbf if prefixes.wide => shape(false, 8),
        0xb8..=0xbf => shape(false, full),
        0xc2 | 0xca => shape(false, 2),
        0xc8 => shape(false, 3),
        0xe8 | 0xe9 => shape(false, 4),
        // Only test, of the group, has an immediate.
        0xf6 if next? & 0x30 == 0 => shape(true, 1),
        0xf7 if next? & 0x30 == 0 => shape(true, full),
        0xf6 | 0xf7 => shape(true, 0),
        0x50..=0x5f
        | 0x6c..=0x6f
        | 0x90..=0x99
        | 0x9b..=0x9f
        | 0xa4..=0xa7
        | 0xaa..=0xaf
        | 0xc3
        | 0xc9
        | 0xcb
        | 0xcc
        | 0xcf
        | 0xd7
        | 0xec..=0xef
        | 0xf1
        | 0xf4
        | 0xf5
        | 0xf8..=0xfd => shape(false, 0),
        _ => return None,
    })
}

fn two_byte(opcode: u8, prefixes: Prefixes) -> Option<Shape> {
    Some(match opcode {
        0x05..=0x09
        | 0x0b
        | 0x0e
        | 0x30..=0x35
        | 0x37
        | 0x77
        | 0xa0..=0xa2
        | 0xa8..=0xaa
        | 0xc8..=0xcf => shape(false, 0),
        0x80..=0x8f => shape(false, 4),
        0x0f | 0x70..=0x73 | 0xa4 | 0xac | 0xba | 0xc2 | 0xc4..=0xc6 => shape(true, 1),
        // extrq and insertq.
        0x78 if prefixes.operand_size || prefixes.repeat => shape(true, 2),
        0x04 | 0x0a | 0x0c | 0x24..=0x27 | 0x36 | 0x39..=0x3f | 0x7a | 0x7b => return None,
        _ => shape(true, 0),
    })
}

/// The bytes after an opcode with a VEX or EVEX prefix.
fn vector(map: u8, opcode: u8) -> Option<Shape> {
    Some(match (map, opcode) {
        (1, 0x77) => shape(false, 0),
        (1, 0x70..=0x73 | 0xc2 | 0xc4..=0xc6) | (3, _) => shape(true, 1),
        (1 | 2 | 5 | 6, _) => shape(true, 0),
        _ => return None,
    })
}

/// The start and end of the instruction of `code` that spans `at`, not one that
/// starts there. `Err` with the end of the decodable code, if that is before `at`.
pub(super) fn across(code: &[u8], at: usize) -> Result<Option<(usize, usize)>, usize> {
    let mut begin = 0;
    while begin < at {
        let end = begin + code.get(begin..).and_then(length).ok_or(begin)?;
        if end > at {
            return Ok(Some((begin, end)));
        }
        begin = end;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::{across, length};
    use iced_x86::{Decoder, DecoderOptions};

    /// What the reference says; `None` for what is no instruction.
    fn reference(code: &[u8]) -> Option<usize> {
        let mut decoder = Decoder::new(64, code, DecoderOptions::NONE);
        let instruction = decoder.decode();
        (!instruction.is_invalid()).then(|| instruction.len())
    }

    fn compare(code: &[u8]) {
        if let Some(expected) = reference(code) {
            assert_eq!(length(code), Some(expected), "{code:02x?}");
        }
    }

    /// Prefixes, all opcodes of all maps, all ModRM bytes.
    #[test]
    fn every_opcode() {
        let prefixes: [&[u8]; 10] = [
            &[],
            &[0x66],
            &[0x67],
            &[0xf2],
            &[0xf3],
            &[0x48],
            &[0x66, 0x48],
            &[0x48, 0x66],
            &[0x41],
            &[0xf0, 0x64, 0x4f],
        ];
        let maps: [&[u8]; 4] = [&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
        for (prefix, map) in prefixes.iter().flat_map(|p| maps.map(|m| (p, m))) {
            for opcode in 0..=255 {
                for modrm in 0..=255 {
                    for sib in [0x00, 0x25, 0x6d] {
                        let tail = [opcode, modrm, sib, 1, 2, 3, 4, 5, 6, 7, 8];
                        compare(&[*prefix, map, &tail].concat());
                    }
                }
            }
        }
    }

    #[test]
    fn every_vector_opcode() {
        let tail = [0x25, 1, 2, 3, 4, 5, 6];
        for (second, third, opcode) in (0..=255)
            .flat_map(|a| [0x78, 0x79, 0x7a, 0x7b, 0xf9].map(|b| (a, b)))
            .flat_map(|(a, b)| (0..=255).map(move |c| (a, b, c)))
        {
            for modrm in [0x05, 0x44, 0xc0, 0xd8] {
                compare(&[&[0xc5, second, opcode, modrm][..], &tail].concat());
                compare(&[&[0xc4, second, third, opcode, modrm][..], &tail].concat());
                compare(&[&[0x8f, second, third, opcode, modrm][..], &tail].concat());
                for fourth in [0x08, 0x28, 0x48] {
                    let code = [0x62, second, third | 4, fourth, opcode, modrm];
                    compare(&[&code[..], &tail].concat());
                }
            }
        }
    }

    /// Whatever they would be, nobody says how long.
    #[test]
    fn opcodes_that_no_processor_has() {
        let none = [0x04, 0x0a, 0x0c].into_iter();
        let none = none.chain(0x24..=0x27).chain([0x36, 0x7a, 0x7b]);
        for opcode in none.chain(0x3b..=0x3f) {
            let code = [0x0f, opcode, 0xc0, 1, 2, 3, 4, 5];
            assert_eq!(length(&code), None, "{code:02x?}");
        }
    }

    #[test]
    fn instructions_that_are_cut_off() {
        let code = [0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0];
        for end in 0..code.len() {
            assert_eq!(length(&code[..end]), None, "{end} bytes");
        }
        assert_eq!(length(&code), Some(10));
        assert_eq!(length(&[0x66; 16]), None);
    }

    #[test]
    fn boundaries() {
        // mov $17, %eax; jmp +0
        let code = [0xb8, 17, 0, 0, 0, 0xe9, 0, 0, 0, 0];
        assert_eq!(across(&code, 0), Ok(None));
        assert_eq!(across(&code, 5), Ok(None));
        assert_eq!(across(&code, 9), Ok(Some((5, 10))));
        assert_eq!(across(&code, 10), Ok(None));
        assert_eq!(across(&[0x90, 0x06], 2), Err(1));
    }
}
