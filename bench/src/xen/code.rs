// SPDX-License-Identifier: MIT OR Apache-2.0

//! What differs between machines in the code that is measured and that payloads have.

use crate::Arch;
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic};
use object::elf;
use xsplice_abi::trampoline::{self, arm64};

/// Size of a jump on x86-64.
const JUMP: usize = trampoline::SIZE as usize;
/// Size of a landing pad there, which is kept.
const ENDBR: usize = trampoline::LANDING_PAD_SIZE as usize;
/// Size of an instruction on ARM64.
const WORD: usize = arm64::SIZE as usize;

/// A jump whose target is not filled in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Jump {
    pub(super) code: &'static [u8],
    /// Where the field is that a relocation of this type fills.
    pub(super) field: u64,
    pub(super) r_type: u32,
    pub(super) addend: i64,
}

/// A jump for `arch`.
pub(super) const fn jump(arch: Arch) -> Jump {
    match arch {
        Arch::X86_64 => Jump {
            code: &[trampoline::OPCODE, 0, 0, 0, 0],
            field: 1,
            r_type: elf::R_X86_64_PC32.0,
            addend: -4,
        },
        Arch::Arm64 => Jump {
            code: &[0, 0, 0, 0x14],
            field: 0,
            r_type: elf::R_AARCH64_JUMP26.0,
            addend: 0,
        },
    }
}

/// The most bytes at the start of a function that patching changes or skips.
pub(super) const fn patched(arch: Arch) -> usize {
    match arch {
        Arch::X86_64 => JUMP + ENDBR,
        Arch::Arm64 => WORD,
    }
}

/// The complete instructions at the start of `code` that patching overwrites, if they are
/// position-independent and nothing in `code` jumps into their middle.
pub(super) fn start(arch: Arch, code: &[u8]) -> Option<&[u8]> {
    match arch {
        Arch::X86_64 => start_x86(code),
        Arch::Arm64 => start_arm64(code),
    }
}

/// The return addresses of the calls to `function` in `code`, which is at `start`.
pub(super) fn returns(arch: Arch, code: &[u8], start: u64, function: u64) -> Vec<u64> {
    match arch {
        Arch::X86_64 => Decoder::with_ip(64, code, start, DecoderOptions::NONE)
            .into_iter()
            .filter(|call| call.flow_control() == FlowControl::Call)
            .filter(|call| call.near_branch_target() == function)
            .map(|call| call.next_ip())
            .collect(),
        Arch::Arm64 => {
            /// `bl` is `b` with this bit in its last byte.
            const LINK: u8 = 0x80;
            let words = (start..).step_by(WORD).zip(code.as_chunks::<WORD>().0);
            let calls = words.filter(|(at, word)| {
                let mut call = arm64::branch(*at, function);
                if let Some([.., last]) = &mut call {
                    *last |= LINK;
                }
                call.as_ref() == Some(*word)
            });
            calls.map(|(at, _)| at + WORD as u64).collect()
        }
    }
}

/// One instruction: not one that counts from its own address, nor a branch, nor one that
/// changes the processor's state.
fn start_arm64(code: &[u8]) -> Option<&[u8]> {
    let first = code.first_chunk::<WORD>()?;
    let word = u32::from_le_bytes(*first);
    let address = word & 0x1f00_0000 == 0x1000_0000;
    let literal = word & 0x3b00_0000 == 0x1800_0000;
    let branch = word & 0x1c00_0000 == 0x1400_0000;
    // What is not allocated is no instruction.
    let none = word & 0x1e00_0000 == 0;
    (!address && !literal && !branch && !none).then_some(first)
}

/// The complete instructions that a jump after an optional landing pad overwrites, if
/// they are position-independent and nothing in `code` jumps into their middle.
fn start_x86(code: &[u8]) -> Option<&[u8]> {
    let mut least = JUMP;
    let mut end = 0;
    for instruction in &mut Decoder::new(64, code, DecoderOptions::NONE) {
        if instruction.mnemonic() == Mnemonic::Endbr64 {
            least += ENDBR;
        }
        // Apparent padding may be patched at boot.
        let fixed = instruction.is_ip_rel_memory_operand()
            || instruction.flow_control() != FlowControl::Next
            || matches!(instruction.mnemonic(), Mnemonic::Nop | Mnemonic::INVALID);
        if fixed {
            return None;
        }
        end = usize::try_from(instruction.next_ip()).ok()?;
        if end >= least {
            break;
        }
    }
    let inside = |instruction: &Instruction| (1..end as u64).contains(&instruction.near_branch64());
    let mut all = Decoder::new(64, code, DecoderOptions::NONE);
    (end >= least && !all.iter().any(|instruction| inside(&instruction))).then(|| &code[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_position_independent_instructions_are_taken() {
        const RETURN: &[u8] = &[0xc3];
        let code = |start: &[u8]| [start, RETURN].concat();
        // push %rbp; mov %rsp,%rbp; push %rbx
        let plain = [0x55, 0x48, 0x89, 0xe5, 0x53];
        assert_eq!(start_x86(&code(&plain)), Some(&plain[..]));
        // With a landing pad, more of them are needed.
        let padded = [&trampoline::LANDING_PAD, &plain[..]].concat();
        assert_eq!(start_x86(&code(&padded)), Some(&padded[..]));
        assert_eq!(start_x86(&code(&padded[..8])), None);
        // lea 0x0(%rip),%rax
        assert_eq!(start_x86(&code(&[0x48, 0x8d, 0x05, 0, 0, 0, 0])), None);
        // jmp to the second instruction
        assert_eq!(start_x86(&[&plain[..], &[0xeb, 0xfa]].concat()), None);
        // jmp to the first, which is the new function's then
        assert!(start_x86(&[&plain[..], &[0xeb, 0xf9]].concat()).is_some());
    }

    #[test]
    fn on_arm64_too() {
        let first = |word: u32| start(Arch::Arm64, &word.to_le_bytes()).is_some();
        // stp x29, x30, [sp, #-16]!; mov w0, #1
        assert!(first(0xa9bf_7bfd) && first(0x5280_0020));
        // adrp x0; b; ret; ldr x0 of a literal; nop; udf
        for word in [
            0x9000_0000,
            0x1400_0001,
            0xd65f_03c0,
            0x5800_0040,
            0xd503_201f,
            0,
        ] {
            assert!(!first(word), "{word:#x}");
        }
        // nop; bl to the start; bl to the next instruction
        let code = [0xd503_201f_u32, 0x97ff_ffff, 0x9400_0001];
        let code: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(returns(Arch::Arm64, &code, 0x1000, 0x1000), [0x1008]);
    }
}
