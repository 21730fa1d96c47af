// SPDX-License-Identifier: MIT OR Apache-2.0
//! The second opinion on payloads: it agrees with a good one, and gives the true
//! reason for each that is spoiled in one place.

use anyhow::{Context as _, ensure};
use object::read::elf::ElfFile64;
use object::{Endianness, Object as _, ObjectSection as _, ObjectSymbol as _};
use std::ops::Range;
use xsplice_e2e::{Base, base, build, local, patched, repository};
use xsplice_verify::{Accepted, Input, Inputs, Kind, Patched, Verdict};

const PATCH: &str = "examples/xen-4.17/two-files.patch";

/// Size in bytes of an entry of a relocation table.
const RELA: usize = 24;

struct Case {
    name: &'static str,
    spoil: fn(&mut Payload) -> anyhow::Result<()>,
    kind: Kind,
    /// What the reason names.
    named: &'static str,
}

const CASES: [Case; 12] = [
    Case {
        name: "a call leads to another function",
        spoil: |payload| payload.redirect(".rela.text", "xen_build_id", "strlcpy"),
        kind: Kind::NotReplaced,
        named: "xen_build_id",
    },
    Case {
        name: "a variable is taken for another",
        spoil: |payload| payload.redirect(".rela.text", "hardware_domain", "saved_cmdline"),
        kind: Kind::Class,
        named: "hardware_domain",
    },
    Case {
        name: "a reference leads a few bytes too far",
        spoil: |payload| payload.shift(".rela.text", "saved_cmdline", 8),
        kind: Kind::Class,
        named: "saved_cmdline",
    },
    Case {
        name: "an alternative is missing",
        spoil: |payload| payload.cut(".altinstructions", 14),
        kind: Kind::Code,
        named: "alternative is missing",
    },
    Case {
        name: "an exception table entry is missing",
        spoil: |payload| payload.cut(".ex_table", 8),
        kind: Kind::Code,
        named: "exception table entry is missing",
    },
    Case {
        name: "a function is not replaced",
        spoil: |payload| payload.cut(".livepatch.funcs", 104),
        kind: Kind::Constant,
        named: "xen_changeset",
    },
    Case {
        name: "the wrong function is replaced",
        spoil: |payload| {
            let (old, other) = (payload.old_address(0)?, payload.symbol("strlcpy")?);
            ensure!(old != other, "it is another");
            payload.set_old_address(0, other)
        },
        kind: Kind::Code,
        named: "strlcpy",
    },
    Case {
        name: "an instruction differs",
        spoil: |payload| {
            let code = payload.section(".text")?;
            payload.bytes[code.start] ^= 1;
            Ok(())
        },
        kind: Kind::Code,
        named: "the payload's code differs",
    },
    Case {
        name: "a string differs",
        spoil: |payload| {
            let text = payload.section(".rodata.str")?;
            payload.bytes[text.start] ^= 1;
            Ok(())
        },
        kind: Kind::Constant,
        named: "and not",
    },
    Case {
        name: "an alternative is for another feature",
        spoil: |payload| {
            let table = payload.section(".altinstructions")?;
            payload.bytes[table.start + 8] ^= 1;
            Ok(())
        },
        kind: Kind::Code,
        named: "alternative of",
    },
    Case {
        name: "a variable is read-only",
        spoil: |payload| payload.set_flags(".bss", object::elf::SHF_ALLOC.0),
        kind: Kind::Class,
        named: "the payload's read-only data",
    },
    Case {
        name: "what replaces a function is longer than it says",
        spoil: |payload| {
            let table = payload.section(".livepatch.funcs")?;
            payload.bytes[table.start + 24] ^= 1;
            Ok(())
        },
        kind: Kind::LeftOver,
        named: "sizes",
    },
];

#[test]
fn each_spoiled_payload_is_caught_with_the_true_reason() -> anyhow::Result<()> {
    let base = base()?;
    let patch = repository().join(PATCH);
    let directory = tempfile::tempdir()?;
    let output = directory.path().join("good.livepatch");
    build(&base, &patch, &output)?;
    let good = std::fs::read(&output)?;
    let patched = patched(&base, &[patch])?;
    let syms = std::fs::read(&base.xen_syms)?;
    let verdict = opinion(&syms, &patched, &[&good])?;
    ensure!(verdict.proved, "{:#?}", verdict.differences);
    ensure!(verdict.from_payload == 5, "{verdict:?}");
    ensure!(
        verdict.functions > 4000 && verdict.objects > 2000,
        "{verdict:?}"
    );
    let none = opinion(&syms, &patched, &[])?;
    for name in ["compat_xen_version", "do_xen_version", "xen_changeset"] {
        let mut differences = none.differences.iter();
        ensure!(differences.any(|d| d.name == name), "{none:#?}");
    }
    for case in CASES {
        let mut payload = Payload {
            bytes: good.clone(),
        };
        (case.spoil)(&mut payload).context(case.name)?;
        let verdict = opinion(&syms, &patched, &[&payload.bytes]).context(case.name)?;
        let found = verdict
            .differences
            .iter()
            .any(|d| d.kind == case.kind && d.to_string().contains(case.named));
        ensure!(
            !verdict.proved && found,
            "{}: {:#?}",
            case.name,
            verdict.differences
        );
    }
    Ok(())
}

#[test]
fn the_command_builds_the_patched_hypervisor_and_says_what_it_found() -> anyhow::Result<()> {
    let base = base()?;
    let patch = repository().join(PATCH);
    let directory = tempfile::tempdir()?;
    let output = directory.path().join("good.livepatch");
    build(&base, &patch, &output)?;
    let other = repository().join("examples/xen-4.17/extra-version.patch");
    let good = verify(&base, &output, &[&patch])?;
    ensure!(good.status.success(), "{good:?}");
    // More was patched than the payload has.
    let bad = verify(&base, &output, &[&patch, &other])?;
    let verdict: serde_json::Value = serde_json::from_slice(&bad.stdout)?;
    let differences = verdict["differences"]
        .as_array()
        .context("no differences")?;
    ensure!(
        bad.status.code() == Some(1) && differences.len() == 1,
        "{verdict:#}"
    );
    ensure!(differences[0]["name"] == "xen_extra_version", "{verdict:#}");
    Ok(())
}

fn verify(
    base: &Base,
    payload: &std::path::Path,
    patches: &[&std::path::Path],
) -> anyhow::Result<std::process::Output> {
    let text = |path: &std::path::Path| path.display().to_string();
    let (payload, tree, syms) = (text(payload), text(&base.tree), text(&base.xen_syms));
    let mut arguments = vec![
        "verify",
        &payload,
        "--json",
        "-s",
        &tree,
        "--xen-syms",
        &syms,
    ];
    let patches: Vec<_> = patches.iter().map(|patch| text(patch)).collect();
    for patch in &patches {
        arguments.extend(["-p", patch]);
    }
    local(&arguments)
}

fn opinion(syms: &[u8], patched: &Patched, payloads: &[&[u8]]) -> anyhow::Result<Verdict> {
    let input = |name, data| Input { name, data };
    Ok(xsplice_verify::verify(&Inputs {
        original: input("xen-syms", syms),
        payloads: payloads.iter().map(|data| input("payload", data)).collect(),
        patched: input("patched", &patched.syms),
        objects: input("prelink.o", &patched.objects),
        files: patched.files.clone(),
        types: patched.types.as_ref(),
        accepted: Accepted::default(),
    })?)
}

/// A payload that is changed in place.
struct Payload {
    bytes: Vec<u8>,
}

impl Payload {
    fn elf(&self) -> anyhow::Result<ElfFile64<'_, Endianness>> {
        Ok(ElfFile64::parse(&*self.bytes)?)
    }

    /// Where the contents of a section are in the file.
    fn section(&self, name: &str) -> anyhow::Result<Range<usize>> {
        let elf = self.elf()?;
        let section = elf.section_by_name(name).context(name.to_owned())?;
        let (offset, size) = section.file_range().context(name.to_owned())?;
        Ok(usize::try_from(offset)?..usize::try_from(offset + size)?)
    }

    /// Where its header is in the file.
    fn header(&self, name: &str) -> anyhow::Result<usize> {
        let elf = self.elf()?;
        let section = elf.section_by_name(name).context(name.to_owned())?;
        let table = u64::from_le_bytes(self.bytes[0x28..0x30].try_into()?);
        let size = size_of_val(section.elf_section_header());
        Ok(usize::try_from(table)? + section.index().0 * size)
    }

    fn put(&mut self, at: usize, value: u64) {
        self.bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    fn set_flags(&mut self, section: &str, flags: u64) -> anyhow::Result<()> {
        let header = self.header(section)?;
        self.put(header + 8, flags);
        Ok(())
    }

    /// Takes the last `size` bytes off a section, and the relocations in them.
    fn cut(&mut self, section: &str, size: u64) -> anyhow::Result<()> {
        let header = self.header(section)?;
        let elf = self.elf()?;
        let whole = elf.section_by_name(section).context("it is there")?.size();
        let rela = format!(".rela{section}");
        let relocations = self.section(&rela)?;
        let offset =
            |at: usize| u64::from_le_bytes(self.bytes[at..at + 8].try_into().unwrap_or_default());
        let kept = relocations
            .clone()
            .step_by(RELA)
            .filter(|&at| offset(at) < whole - size);
        let kept = (kept.count() * RELA) as u64;
        let rela_header = self.header(&rela)?;
        self.put(header + 0x20, whole - size);
        self.put(rela_header + 0x20, kept);
        Ok(())
    }

    /// Where the first relocation against `symbol` is in the file.
    fn relocation(&self, section: &str, symbol: &str) -> anyhow::Result<usize> {
        let index = self.index(symbol)?;
        let mut all = self.section(section)?.step_by(RELA);
        all.find(|&at| self.bytes[at + 12..at + 16] == index.to_le_bytes())
            .with_context(|| format!("nothing leads to {symbol}"))
    }

    fn index(&self, symbol: &str) -> anyhow::Result<u32> {
        let elf = self.elf()?;
        let mut symbols = elf.symbols();
        let found = symbols
            .find(|s| s.name() == Ok(symbol))
            .context(symbol.to_owned())?;
        Ok(u32::try_from(found.index().0)?)
    }

    fn redirect(&mut self, section: &str, from: &str, to: &str) -> anyhow::Result<()> {
        let (at, to) = (self.relocation(section, from)?, self.index(to)?);
        self.bytes[at + 12..at + 16].copy_from_slice(&to.to_le_bytes());
        Ok(())
    }

    fn shift(&mut self, section: &str, symbol: &str, by: u64) -> anyhow::Result<()> {
        let at = self.relocation(section, symbol)? + 16;
        let addend = u64::from_le_bytes(self.bytes[at..at + 8].try_into()?);
        self.put(at, addend.wrapping_add(by));
        Ok(())
    }

    /// The address that the hypervisor has for `symbol`.
    fn symbol(&self, symbol: &str) -> anyhow::Result<u64> {
        let syms = std::fs::read(base()?.xen_syms)?;
        let elf = ElfFile64::<Endianness>::parse(&*syms)?;
        let found = elf.symbol_by_name(symbol).context(symbol.to_owned())?;
        Ok(found.address())
    }

    fn old_address(&self, record: usize) -> anyhow::Result<u64> {
        let at = self.section(".livepatch.funcs")?.start + record * 104 + 16;
        Ok(u64::from_le_bytes(self.bytes[at..at + 8].try_into()?))
    }

    fn set_old_address(&mut self, record: usize, address: u64) -> anyhow::Result<()> {
        let at = self.section(".livepatch.funcs")?.start + record * 104 + 16;
        self.put(at, address);
        Ok(())
    }
}
