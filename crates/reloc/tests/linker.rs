// SPDX-License-Identifier: MIT OR Apache-2.0

//! Compares every relocation of the tables with GNU ld.

use object::write::{Object, Relocation as Record, StandardSection, Symbol, SymbolSection};
use object::{
    Architecture, BinaryFormat, Endianness, Object as _, ObjectSection as _, RelocationFlags,
    SymbolFlags, SymbolKind, SymbolScope, elf,
};
use std::path::{Path, PathBuf};
use std::process::Command;
use xsplice_reloc::reloc::{Origin, Range, Relocation, aarch64, x86_64};

/// Link address of the text.
const TEXT: u64 = 0xffff_0000_0020_0000;
/// Room for each relocated place.
const STEP: usize = 16;

struct Machine {
    architecture: Architecture,
    linker: &'static str,
    /// The contents before relocation.
    instruction: u64,
    table: &'static [Relocation],
}

const MACHINES: [Machine; 2] = [
    Machine {
        architecture: Architecture::X86_64,
        linker: "ld",
        instruction: 0,
        table: x86_64::TABLE,
    },
    Machine {
        architecture: Architecture::Aarch64,
        linker: "aarch64-linux-gnu-ld",
        // movz x0, #0: the only instruction that a relocation turns into another.
        instruction: 0xd280_0000,
        table: aarch64::TABLE,
    },
];

/// A relocation and its intended value.
type Case = (&'static Relocation, i64);

impl Machine {
    /// The section's bytes after the linker has processed `cases`, or its error.
    fn link(&self, name: &str, cases: &[Case]) -> Result<Vec<u8>, String> {
        let mut object = Object::new(BinaryFormat::Elf, self.architecture, Endianness::Little);
        let text = object.section_id(StandardSection::Text);
        for (index, case) in cases.iter().enumerate() {
            let mut place = [0; STEP];
            place[..8].copy_from_slice(&self.instruction.to_le_bytes());
            let offset = object.append_section_data(text, &place, STEP as u64);
            let symbol = object.add_symbol(Symbol {
                name: format!("s{index}").into_bytes(),
                value: symbol(case, TEXT + offset),
                size: 0,
                kind: SymbolKind::Data,
                scope: SymbolScope::Linkage,
                weak: false,
                section: SymbolSection::Absolute,
                flags: SymbolFlags::None,
            });
            let r_type = elf::RelocationType(case.0.r_type);
            let record = Record {
                offset,
                symbol,
                addend: ADDEND,
                flags: RelocationFlags::Elf { r_type },
            };
            object.add_relocation(text, record).unwrap();
        }
        let path = |end: &str| -> PathBuf {
            let file = format!("{}-{name}.{end}", self.linker);
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(file)
        };
        let (input, output) = (path("o"), path("elf"));
        std::fs::write(&input, object.write().unwrap()).unwrap();
        let mut command = Command::new(self.linker);
        command
            .arg(format!("-Ttext={TEXT:#x}"))
            .args(["-e", "0", "-z", "max-page-size=4096", "-o"])
            .args([&output, &input]);
        let done = command.output().unwrap_or_else(|error| {
            panic!(
                "{}: {error}; `cargo xtask test` installs what the tests need",
                self.linker
            )
        });
        assert!(done.status.code().is_some(), "{command:?} crashed");
        if !done.status.success() {
            return Err(String::from_utf8_lossy(&done.stderr).into_owned());
        }
        let linked = std::fs::read(output).unwrap();
        let linked = object::File::parse(&*linked).unwrap();
        let text = linked.section_by_name(".text").unwrap();
        assert_eq!(text.address(), TEXT);
        Ok(text.data().unwrap().to_vec())
    }

    /// Values around both bounds, and some between.
    fn cases(&self) -> impl Iterator<Item = Case> {
        self.table.iter().flat_map(|relocation| {
            let (min, max) = relocation.bounds();
            let align = match relocation.origin {
                Origin::Page => 4096,
                _ => relocation.align.cast_signed(),
            };
            let mut values = vec![
                min,
                min.wrapping_add(align),
                min.wrapping_sub(align),
                max.wrapping_sub(align - 1),
                max.wrapping_add(1),
                0x1234_5678_9abc_def0 & max,
                -0x1234_5678 & max,
                -align,
                0,
                align,
                i64::MIN,
                i64::MAX,
            ];
            values.iter_mut().for_each(|value| *value &= -align);
            if relocation.align > 1 {
                values.push(1);
            }
            values.sort_unstable();
            values.dedup();
            values.into_iter().map(move |value| (relocation, value))
        })
    }
}

const ADDEND: i64 = -4;

/// The symbol value that gives a relocation at `place` its intended value.
fn symbol((relocation, value): &Case, place: u64) -> u64 {
    let from = match relocation.origin {
        Origin::Zero => 0,
        Origin::Place => place,
        Origin::Page => place & !0xfff,
    };
    from.wrapping_add_signed(*value)
        .wrapping_add_signed(-ADDEND)
}

/// Our result for the place.
fn ours(case: &Case, place: u64, before: u64) -> Option<[u8; STEP]> {
    let mut bytes = [0; STEP];
    bytes[..8].copy_from_slice(&before.to_le_bytes());
    let value = case.0.value(symbol(case, place), ADDEND, place);
    assert_eq!(value.cast_signed(), case.1, "{}", case.0.name);
    case.0.write(&mut bytes, value).ok()?;
    Some(bytes)
}

/// Whether the value fits narrow data only as signed or only as unsigned. There, ld's
/// rules differ between machines, and the ABIs allow both or are silent.
fn as_another_sign((relocation, value): &Case) -> bool {
    let narrow = relocation.range == Range::Either || relocation.size < 4;
    if !narrow || relocation.bits == 64 {
        return false;
    }
    let (half, all) = (1_i64 << (relocation.bits - 1), 1_i64 << relocation.bits);
    !(0..half).contains(value) && (-all..all).contains(value)
}

#[test]
fn values_that_fit_are_stored_as_by_the_linker() {
    for machine in &MACHINES {
        let good: Vec<Case> = machine
            .cases()
            .filter(|case| case.0.verify(case.1.cast_unsigned()).is_ok())
            .filter(|case| !as_another_sign(case))
            .collect();
        let linked = machine.link("good", &good).unwrap();
        assert!(good.len() > 4 * machine.table.len());
        for ((case, at), theirs) in good
            .iter()
            .zip((TEXT..).step_by(STEP))
            .zip(linked.chunks(STEP))
        {
            let ours = ours(case, at, machine.instruction).unwrap();
            assert_eq!(ours, theirs, "{} of {:#x}", case.0.name, case.1);
        }
    }
}

#[test]
fn values_that_do_not_fit_are_refused_by_both() {
    for machine in &MACHINES {
        let mut refused = 0;
        for case in machine.cases() {
            if ours(&case, TEXT, machine.instruction).is_some() || as_another_sign(&case) {
                continue;
            }
            // For a branch out of range, ld adds a veneer; for one into the middle of
            // an instruction, it drops the low bits.
            let branch = case.0.origin == Origin::Place && case.0.align > 1;
            if branch && (case.0.bits == 28 || case.1 % 4 != 0) {
                continue;
            }
            let theirs = machine.link("bad", &[case]);
            let (name, value) = (case.0.name, case.1);
            assert!(theirs.is_err(), "{name} of {value:#x}: ld stores it");
            refused += 1;
        }
        assert!(refused >= machine.table.len() * 2 / 3, "only {refused}");
    }
}
