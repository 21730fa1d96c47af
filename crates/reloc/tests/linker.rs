// SPDX-License-Identifier: MIT OR Apache-2.0

//! Compares every relocation of the tables with GNU ld.

use object::write::{Object, Relocation as Record, StandardSection, Symbol, SymbolSection};
use object::{
    Architecture, BinaryFormat, Endianness, Object as _, ObjectSection as _, RelocationFlags,
    SymbolFlags, SymbolKind, SymbolScope, elf,
};
use std::path::{Path, PathBuf};
use std::process::Command;
use xsplice_reloc::reloc::{Field, Origin, Range, Relocation, aarch64, arm32, x86_64};

/// Room for each relocated place.
const STEP: usize = 16;

struct Machine {
    architecture: Architecture,
    linker: &'static str,
    /// Link address of the text.
    text: u64,
    /// The largest address.
    last: u64,
    /// The contents before relocation, with this addend if the records have none.
    contents: fn(&Relocation, i64) -> u64,
    table: &'static [Relocation],
}

const MACHINES: [Machine; 3] = [
    Machine {
        architecture: Architecture::X86_64,
        linker: "ld",
        text: 0xffff_0000_0020_0000,
        last: u64::MAX,
        contents: |_, _| 0,
        table: x86_64::TABLE,
    },
    Machine {
        architecture: Architecture::Aarch64,
        linker: "aarch64-linux-gnu-ld",
        text: 0xffff_0000_0020_0000,
        last: u64::MAX,
        // movz x0, #0: the only instruction that a relocation turns into another.
        contents: |_, _| 0xd280_0000,
        table: aarch64::TABLE,
    },
    Machine {
        architecture: Architecture::Arm,
        linker: "arm-linux-gnueabihf-ld",
        text: 0x8020_0000,
        last: 0xffff_ffff,
        contents: arm32_instruction,
        table: arm32::TABLE,
    },
];

/// As GNU as encodes them: a word, `bl`, `movw` and `movt`.
fn arm32_instruction(relocation: &Relocation, addend: i64) -> u64 {
    let addend = addend.cast_unsigned();
    match relocation.field {
        Field::Branch => 0xeb00_0000 | addend >> 2 & 0x00ff_ffff,
        Field::Half { shift } => {
            let kind = if shift == 0 { 0xe300_0000 } else { 0xe340_0000 };
            kind | (addend & 0xf000) << 4 | addend & 0xfff
        }
        _ => addend & 0xffff_ffff,
    }
}

/// A relocation and its intended value.
type Case = (&'static Relocation, i64);

impl Machine {
    /// The section's bytes after the linker has processed `cases`, or its error.
    fn link(&self, name: &str, cases: &[Case]) -> Result<Vec<u8>, String> {
        let mut object = Object::new(BinaryFormat::Elf, self.architecture, Endianness::Little);
        let text = object.section_id(StandardSection::Text);
        for (index, case) in cases.iter().enumerate() {
            let place = self.place(case.0);
            let offset = object.append_section_data(text, &place, STEP as u64);
            let symbol = object.add_symbol(Symbol {
                name: format!("s{index}").into_bytes(),
                value: symbol(case, self.text + offset),
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
                addend: self.addend(),
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
            .arg(format!("-Ttext={:#x}", self.text))
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
        assert_eq!(text.address(), self.text);
        Ok(text.data().unwrap().to_vec())
    }

    /// The bytes of a place before it is relocated.
    fn place(&self, relocation: &Relocation) -> [u8; STEP] {
        let mut place = [0; STEP];
        place[..8].copy_from_slice(&(self.contents)(relocation, ADDEND).to_le_bytes());
        place
    }

    /// The addend that records have.
    fn addend(&self) -> i64 {
        match self.architecture {
            Architecture::Arm => 0,
            _ => ADDEND,
        }
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
            let cases = values.into_iter().map(move |value| (relocation, value));
            cases.filter(|case| symbol(case, self.text) <= self.last)
        })
    }
}

/// That of a branch on ARM32, which ld's limits assume.
const ADDEND: i64 = -8;

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
fn ours(case: &Case, place: u64, mut bytes: [u8; STEP]) -> Option<[u8; STEP]> {
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
            .zip((machine.text..).step_by(STEP))
            .zip(linked.chunks(STEP))
        {
            let ours = ours(case, at, machine.place(case.0)).unwrap();
            assert_eq!(ours, theirs, "{} of {:#x}", case.0.name, case.1);
        }
    }
}

/// The addends in instructions, as another reader of them sees them.
#[test]
fn addends_in_the_place_are_read_as_they_are_written() {
    for relocation in arm32::TABLE.iter().filter(|known| known.size != 0) {
        for addend in [0, -4, -8, 0x1800, 0x7ffc, -0x8000] {
            let place = arm32_instruction(relocation, addend).to_le_bytes();
            assert_eq!(
                relocation.addend(&place),
                Some(addend),
                "{}",
                relocation.name
            );
        }
    }
}

#[test]
fn values_that_do_not_fit_are_refused_by_both() {
    for machine in &MACHINES {
        let mut refused = 0;
        for case in machine.cases() {
            if ours(&case, machine.text, machine.place(case.0)).is_some() || as_another_sign(&case)
            {
                continue;
            }
            // For a branch out of range, ld adds a veneer; for one into the middle of
            // an instruction, it drops the low bits.
            let branch = case.0.origin == Origin::Place && case.0.align > 1;
            if branch && (matches!(case.0.bits, 26 | 28) || case.1 % 4 != 0) {
                continue;
            }
            let theirs = machine.link("bad", &[case]);
            let (name, value) = (case.0.name, case.1);
            assert!(theirs.is_err(), "{name} of {value:#x}: ld stores it");
            refused += 1;
        }
        // On ARM32, a word holds every address.
        let fitting = machine
            .table
            .iter()
            .all(|known| known.range == Range::Any || known.align > 1);
        assert!(
            fitting || refused >= machine.table.len() * 2 / 3,
            "only {refused}"
        );
    }
}
