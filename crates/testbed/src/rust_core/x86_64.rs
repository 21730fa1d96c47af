// SPDX-License-Identifier: MIT OR Apache-2.0

//! x86-64.

use super::{LARGEST_FRAME, Target};
use iced_x86::{
    CpuidFeature, Decoder, DecoderOptions, FlowControl, Formatter as _, GasFormatter, Mnemonic,
    OpKind, Register,
};
use object::elf;

pub(super) static TARGET: Target = Target {
    shim: "x86_64",
    target: "crates/host-xen/x86_64-xen.json",
    directory: "x86_64-xen",
    cached: ("rust-core", RECIPE),
    code: CODE,
    link: ["ld", "elf_x86_64"],
    objcopy: "objcopy",
    // NMIs and machine checks.
    entries: &["xsplice_handled", "xsplice_hold"],
    relocations: &[
        elf::R_X86_64_64,
        elf::R_X86_64_PC32,
        elf::R_X86_64_PLT32,
        elf::R_X86_64_PC64,
    ],
    foreign,
    packages: &[],
};

/// Code generation for Xen: its thunks for returns and indirect branches, landing
/// pads, no jump tables, and no unwinding.
const CODE: &[&str] = &[
    "-Zunstable-options",
    "-Zretpoline-external-thunk",
    "-Zfunction-return=thunk-extern",
    "-Zcf-protection=branch",
    "-Cjump-tables=no",
    "-Cforce-unwind-tables=no",
    "-Csymbol-mangling-version=v0",
];

/// The inputs of the build of `core` and `alloc`, for its cache key.
const RECIPE: &str = concat!(
    include_str!("../rust_core.rs"),
    include_str!("x86_64.rs"),
    include_str!("../../../host-xen/x86_64-xen.json")
);

/// Instruction sets that do not use registers that Xen does not save.
const PLAIN: [CpuidFeature; 10] = [
    CpuidFeature::INTEL8086,
    CpuidFeature::INTEL186,
    CpuidFeature::INTEL286,
    CpuidFeature::INTEL386,
    CpuidFeature::INTEL486,
    CpuidFeature::X64,
    CpuidFeature::CMOV,
    CpuidFeature::MULTIBYTENOP,
    CpuidFeature::CET_IBT,
    CpuidFeature::PAUSE,
];

/// The first instruction that uses registers that Xen does not save, branches
/// without its thunks, or allocates too large a stack frame.
fn foreign(code: &[u8]) -> Option<(u64, String)> {
    // The compiler emits `bsf` with a prefix where both encodings mean the same.
    let mut instructions = Decoder::new(64, code, DecoderOptions::NO_MPFX_0FBC);
    let foreign = instructions.iter().find(|instruction| {
        let frame = instruction.mnemonic() == Mnemonic::Sub
            && instruction.op0_register() == Register::RSP
            && instruction.op1_kind() != OpKind::Register
            && instruction.immediate(1) > LARGEST_FRAME.into();
        let unhardened = matches!(
            instruction.flow_control(),
            FlowControl::Return | FlowControl::IndirectBranch | FlowControl::IndirectCall
        );
        let mut features = instruction.cpuid_features().iter();
        frame || unhardened || !features.all(|feature| PLAIN.contains(feature))
    })?;
    let mut text = String::new();
    GasFormatter::new().format(&foreign, &mut text);
    Some((foreign.ip(), text))
}
