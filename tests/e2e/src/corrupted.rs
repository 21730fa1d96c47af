// SPDX-License-Identifier: MIT OR Apache-2.0
//! Payloads that are corrupted in one place, and what the second opinion says of them.

use crate::{Base, base, build, build_with, patched};
use anyhow::{Context as _, bail, ensure};
use object::build::elf::{Builder, Section, SectionData};
use object::read::elf::{ElfFile64, ElfSymbol64};
use object::{
    Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SymbolKind,
};
use std::ops::Range;
use std::path::{Path, PathBuf};
use xsplice_verify::{Accepted, Difference, Input, Inputs, Kind, Patched, Verdict};

/// Size in bytes of an entry of a relocation table.
const RELA: usize = 24;

/// A corrupted payload, and what must be said of it.
#[derive(Debug)]
pub struct Case {
    /// What it is about.
    pub name: &'static str,
    /// Corrupts it.
    pub spoil: fn(&mut Payload) -> anyhow::Result<()>,
    /// The kind of a difference that must be found.
    pub kind: Kind,
    /// What the reason names.
    pub named: &'static str,
}

/// Payloads that are good, and the hypervisor that they make.
#[derive(Debug)]
pub struct Good {
    syms: Vec<u8>,
    patched: Patched,
    payloads: Vec<Vec<u8>>,
    accepted: Accepted,
}

impl Good {
    /// A payload of each of `patches`, which have nothing to do with each other.
    ///
    /// # Errors
    /// If one cannot be built.
    pub fn build(base: &Base, patches: &[PathBuf]) -> anyhow::Result<Self> {
        let payloads = separate(base, patches)?;
        Ok(Self {
            syms: std::fs::read(&base.xen_syms)?,
            patched: patched(base, patches, &[patches.len()], &payloads)?,
            payloads,
            accepted: Accepted::default(),
        })
    }

    /// As [`Self::build`], and a payload of `top` on top of that of the first patch.
    ///
    /// # Errors
    /// If one cannot be built.
    pub fn stacked(base: &Base, patches: &[PathBuf], top: &Path) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let [below, output] = ["below", "top"].map(|name| directory.path().join(name));
        let mut payloads = separate(base, patches)?;
        std::fs::write(&below, payloads.first().context("a payload below")?)?;
        let first = patches.first().context("a patch below")?;
        let text = |path: &Path| path.display().to_string();
        let more = [
            "--on".to_owned(),
            text(&below),
            "--on-patch".to_owned(),
            text(first),
        ];
        build_with(base, top, &output, &more)?;
        payloads.push(std::fs::read(&output)?);
        let all: Vec<PathBuf> = patches.iter().cloned().chain([top.to_owned()]).collect();
        Ok(Self {
            syms: std::fs::read(&base.xen_syms)?,
            patched: patched(base, &all, &[patches.len(), 1], &payloads)?,
            payloads,
            accepted: Accepted::default(),
        })
    }

    /// The same with these differences accepted.
    #[must_use]
    pub fn accepting(self, accepted: Accepted) -> Self {
        Self { accepted, ..self }
    }

    /// The payloads.
    #[must_use]
    pub fn payloads(&self) -> &[Vec<u8>] {
        &self.payloads
    }

    /// That they are good.
    ///
    /// # Errors
    /// If not.
    pub fn proved(&self) -> anyhow::Result<Verdict> {
        let verdict = self.opinion(&self.payloads)?;
        ensure!(verdict.proved, "{:#?}", verdict.differences);
        Ok(verdict)
    }

    /// What is said of others in their place.
    ///
    /// # Errors
    /// If they cannot be used.
    pub fn opinion(&self, payloads: &[Vec<u8>]) -> anyhow::Result<Verdict> {
        self.opinion_on(&self.syms, payloads)
    }

    /// What is said of the payloads on a running hypervisor that is corrupted.
    ///
    /// # Errors
    /// If it cannot be used.
    pub fn on_corrupted(
        &self,
        spoil: impl FnOnce(&mut Vec<u8>) -> anyhow::Result<()>,
    ) -> anyhow::Result<Verdict> {
        let mut syms = self.syms.clone();
        spoil(&mut syms)?;
        self.opinion_on(&syms, &self.payloads)
    }

    fn opinion_on(&self, syms: &[u8], payloads: &[Vec<u8>]) -> anyhow::Result<Verdict> {
        let input = |name, data| Input { name, data };
        let named = payloads.iter().map(|data| input("payload", data));
        Ok(xsplice_verify::verify(&Inputs {
            original: input("xen-syms", syms),
            payloads: named.collect(),
            patched: input("patched", &self.patched.syms),
            objects: input("prelink.o", &self.patched.objects),
            files: self.patched.files.clone(),
            types: self.patched.types.as_ref(),
            accepted: self.accepted.clone(),
        })?)
    }

    /// Corrupts the payload at `index` in the way of each of `cases`.
    ///
    /// # Errors
    /// With all that is not found.
    pub fn caught(&self, index: usize, cases: &[Case]) -> anyhow::Result<()> {
        let mut missed = Vec::new();
        for case in cases {
            let mut payloads = self.payloads.clone();
            let mut payload = Payload {
                bytes: std::mem::take(&mut payloads[index]),
            };
            (case.spoil)(&mut payload).context(case.name)?;
            payloads[index] = payload.bytes;
            let (found, said) = match self.opinion(&payloads) {
                Ok(verdict) => {
                    let right =
                        |d: &Difference| d.kind == case.kind && d.to_string().contains(case.named);
                    let found = !verdict.proved && verdict.differences.iter().any(right);
                    (found, format!("{:#?}", verdict.differences))
                }
                Err(error) => (error.to_string().contains(case.named), error.to_string()),
            };
            if !found {
                missed.push(format!("{}: {said}", case.name));
            }
        }
        ensure!(missed.is_empty(), "{}", missed.join("\n"));
        Ok(())
    }
}

/// A payload of each of `patches`.
fn separate(base: &Base, patches: &[PathBuf]) -> anyhow::Result<Vec<Vec<u8>>> {
    let directory = tempfile::tempdir()?;
    let payloads = patches.iter().map(|patch| {
        let output = directory.path().join("good.livepatch");
        build(base, patch, &output)?;
        Ok(std::fs::read(&output)?)
    });
    payloads.collect()
}

/// The section `name`.
fn section_of<'a, 'data>(
    file: &'a mut Builder<'data>,
    name: &str,
) -> anyhow::Result<&'a mut Section<'data>> {
    let mut sections = file.sections.iter_mut();
    let found = sections.find(|section| section.name.as_slice() == name.as_bytes());
    found.with_context(|| format!("no section {name}"))
}

/// A payload that is changed in place.
#[derive(Debug)]
pub struct Payload {
    /// The file.
    pub bytes: Vec<u8>,
}

impl Payload {
    fn elf(&self) -> anyhow::Result<ElfFile64<'_, Endianness>> {
        Ok(ElfFile64::parse(&*self.bytes)?)
    }

    /// Where the contents of a section are in the file.
    ///
    /// # Errors
    /// If the payload has no such thing.
    pub fn section(&self, name: &str) -> anyhow::Result<Range<usize>> {
        let file = object::File::parse(&*self.bytes)?;
        let section = file.section_by_name(name).context(name.to_owned())?;
        let (offset, size) = section.file_range().context(name.to_owned())?;
        Ok(usize::try_from(offset)?..usize::try_from(offset + size)?)
    }

    /// Where its header is in the file.
    ///
    /// # Errors
    /// If the payload has no such thing.
    pub fn header(&self, name: &str) -> anyhow::Result<usize> {
        let elf = self.elf()?;
        let section = elf.section_by_name(name).context(name.to_owned())?;
        let table = u64::from_le_bytes(self.bytes[0x28..0x30].try_into()?);
        let size = size_of_val(section.elf_section_header());
        Ok(usize::try_from(table)? + section.index().0 * size)
    }

    /// Writes a number.
    pub fn put(&mut self, at: usize, value: u64) {
        self.bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    /// Where the first relocation against `symbol` is in the file.
    ///
    /// # Errors
    /// If the payload has no such thing.
    pub fn relocation(&self, section: &str, symbol: &str) -> anyhow::Result<usize> {
        let index = self.index(symbol)?;
        let mut all = self.section(section)?.step_by(RELA);
        all.find(|&at| self.bytes[at + 12..at + 16] == index.to_le_bytes())
            .with_context(|| format!("nothing leads to {symbol}"))
    }

    /// The index of a symbol, which can be that of a section.
    ///
    /// # Errors
    /// If the payload has no such thing.
    pub fn index(&self, symbol: &str) -> anyhow::Result<u32> {
        let elf = self.elf()?;
        let section = elf.section_by_name(symbol).map(|section| section.index());
        let is_section = |s: &ElfSymbol64<'_, '_>| {
            s.kind() == SymbolKind::Section && s.section_index() == section
        };
        let mut symbols = elf.symbols();
        let found = symbols
            .find(|s| s.name() == Ok(symbol) || is_section(s))
            .context(symbol.to_owned())?;
        Ok(u32::try_from(found.index().0)?)
    }

    /// Adds to the addend of the `index`th relocation of a section.
    ///
    /// # Errors
    /// If the payload has no such thing.
    pub fn add(&mut self, section: &str, index: usize, by: i64) -> anyhow::Result<()> {
        let at = self.section(section)?.start + index * RELA + 16;
        let addend = u64::from_le_bytes(self.bytes[at..at + 8].try_into()?);
        self.put(at, addend.wrapping_add_signed(by));
        Ok(())
    }

    /// Makes the `index`th relocation of a section lead to `symbol`.
    ///
    /// # Errors
    /// If the payload has no such thing.
    pub fn turn(&mut self, section: &str, index: usize, symbol: &str) -> anyhow::Result<()> {
        let (at, to) = (
            self.section(section)?.start + index * RELA,
            self.index(symbol)?,
        );
        self.bytes[at + 12..at + 16].copy_from_slice(&to.to_le_bytes());
        Ok(())
    }

    /// Makes each relocation against `from` that is `distance` from it lead to `to`, at
    /// `to_distance`.
    ///
    /// # Errors
    /// If the payload has no such thing.
    pub fn turn_all(
        &mut self,
        section: &str,
        (from, distance): (&str, i64),
        (to, to_distance): (&str, i64),
    ) -> anyhow::Result<()> {
        let old = [
            &self.index(from)?.to_le_bytes()[..],
            &distance.to_le_bytes(),
        ]
        .concat();
        let new = [
            &self.index(to)?.to_le_bytes()[..],
            &to_distance.to_le_bytes(),
        ]
        .concat();
        let mut turned = 0;
        for at in self.section(section)?.step_by(RELA) {
            let place = at + 12..at + RELA;
            if self.bytes[place.clone()] == old {
                self.bytes[place].copy_from_slice(&new);
                turned += 1;
            }
        }
        ensure!(turned != 0, "nothing leads to {from}{distance:+}");
        Ok(())
    }

    /// Makes the `index`th relocation of a section lead to an address of the hypervisor,
    /// from `symbol`, which is an absolute one.
    ///
    /// # Errors
    /// If the payload has no such thing.
    pub fn aim(
        &mut self,
        section: &str,
        index: usize,
        symbol: &str,
        address: u64,
    ) -> anyhow::Result<()> {
        let distance = address.wrapping_sub(self.value(symbol)?);
        self.turn(section, index, symbol)?;
        let at = self.section(section)?.start + index * RELA + 16;
        self.put(at, distance);
        Ok(())
    }

    /// Puts a trap in place of the function whose name has `name` in it.
    ///
    /// # Errors
    /// If the payload has no such thing.
    pub fn trap(&mut self, name: &str) -> anyhow::Result<()> {
        const SYMBOL: usize = 24;
        const UD2: [u8; 2] = [0x0f, 0x0b];
        let elf = self.elf()?;
        let mut symbols = elf.symbols();
        let symbol = symbols.find(|s| s.name().is_ok_and(|n| n.contains(name)));
        let symbol = symbol.context(name.to_owned())?;
        let section = elf.section_by_index(symbol.section_index().context("it is there")?)?;
        let (start, _) = section.file_range().context("it has contents")?;
        let (at, index) = (usize::try_from(start + symbol.address())?, symbol.index().0);
        self.bytes[at..at + UD2.len()].copy_from_slice(&UD2);
        let entry = self.section(".symtab")?.start + index * SYMBOL;
        self.put(entry + 16, UD2.len() as u64);
        Ok(())
    }

    /// Flips a bit of a section.
    ///
    /// # Errors
    /// If the payload has no such thing.
    pub fn flip(&mut self, section: &str, offset: usize) -> anyhow::Result<()> {
        let at = self.section(section)?.start + offset;
        self.bytes[at] ^= 1;
        Ok(())
    }

    /// Gives a section another alignment.
    ///
    /// # Errors
    /// If the payload has no such thing.
    pub fn set_alignment(&mut self, section: &str, alignment: u64) -> anyhow::Result<()> {
        let header = self.header(section)?;
        self.put(header + 0x30, alignment);
        Ok(())
    }

    /// Makes a symbol of the hypervisor a number.
    ///
    /// # Errors
    /// If the payload has no such thing.
    pub fn make_absolute(&mut self, symbol: &str, address: u64) -> anyhow::Result<()> {
        const SIZE: usize = 24;
        let entry = self.section(".symtab")?.start + usize::try_from(self.index(symbol)?)? * SIZE;
        self.bytes[entry + 6..entry + 8].copy_from_slice(&object::elf::SHN_ABS.0.to_le_bytes());
        self.put(entry + 8, address);
        Ok(())
    }

    /// Adds to the addend of the first relocation against `symbol`.
    ///
    /// # Errors
    /// If the payload has no such thing.
    pub fn shift(&mut self, section: &str, symbol: &str, by: u64) -> anyhow::Result<()> {
        let at = self.relocation(section, symbol)? + 16;
        let addend = u64::from_le_bytes(self.bytes[at..at + 8].try_into()?);
        self.put(at, addend.wrapping_add(by));
        Ok(())
    }

    /// Adds to the addend of the relocation against `symbol` after the first.
    ///
    /// # Errors
    /// If the payload has no such thing.
    pub fn shift_next(&mut self, section: &str, symbol: &str, by: u64) -> anyhow::Result<()> {
        let index = self.index(symbol)?.to_le_bytes();
        let mut all = self.section(section)?.step_by(RELA);
        let against = |at: &usize| self.bytes[at + 12..at + 16] == index;
        let second = all.by_ref().filter(against).nth(1);
        let at = second.with_context(|| format!("only one leads to {symbol}"))? + 16;
        let addend = u64::from_le_bytes(self.bytes[at..at + 8].try_into()?);
        self.put(at, addend.wrapping_add(by));
        Ok(())
    }

    /// Where the contents of `section` have what the `nth` relocation against `symbol`
    /// fills. This works for files of 32 bits too, as all that follows.
    ///
    /// # Errors
    /// If the payload has no such thing.
    pub fn place(&self, section: &str, symbol: &str, nth: usize) -> anyhow::Result<usize> {
        let file = object::File::parse(&*self.bytes)?;
        let symbol = file.symbols().find(|s| s.name() == Ok(symbol));
        let target = RelocationTarget::Symbol(symbol.context("no such symbol")?.index());
        let section = file.section_by_name(section).context("no such section")?;
        let (start, _) = section.file_range().context("it has no contents")?;
        let mut against = section.relocations().filter(|(_, r)| r.target() == target);
        let (offset, _) = against.nth(nth).context("no such relocation")?;
        Ok(usize::try_from(start + offset)?)
    }

    /// Adds to the word that is at an offset of the file.
    ///
    /// # Errors
    /// If it is too short.
    pub fn add_to_word(&mut self, at: usize, by: u32) -> anyhow::Result<()> {
        let word = self
            .bytes
            .get_mut(at..)
            .and_then(|rest| rest.first_chunk_mut());
        let word: &mut [u8; 4] = word.context("it is too short")?;
        *word = u32::from_le_bytes(*word).wrapping_add(by).to_le_bytes();
        Ok(())
    }

    /// Makes the `nth` relocation of `section` against `from` lead to `to`.
    ///
    /// # Errors
    /// If the payload has no such thing.
    pub fn retarget(
        &mut self,
        section: &str,
        (from, nth): (&str, usize),
        to: &str,
    ) -> anyhow::Result<()> {
        self.rewrite(|file| {
            let symbol = |name: &str| {
                let mut symbols = file.symbols.iter();
                let found = symbols.find(|symbol| symbol.name.as_slice() == name.as_bytes());
                found.map(|s| s.id()).with_context(|| name.to_owned())
            };
            let (from, to) = (symbol(from)?, symbol(to)?);
            let SectionData::Relocation(all) = &mut section_of(file, section)?.data else {
                bail!("{section} has no relocations");
            };
            let mut against = all.iter_mut().filter(|r| r.symbol == Some(from));
            against.nth(nth).context("no such relocation")?.symbol = Some(to);
            Ok(())
        })
    }

    /// Takes the last `size` bytes off a section, and the relocations in them.
    ///
    /// # Errors
    /// If the payload has no such thing.
    pub fn shorten(&mut self, section: &str, size: usize) -> anyhow::Result<()> {
        self.rewrite(|file| {
            let SectionData::Data(bytes) = &mut section_of(file, section)?.data else {
                bail!("{section} has no contents");
            };
            let kept = bytes.len().checked_sub(size).context("it is too short")?;
            bytes.to_mut().truncate(kept);
            let rel = [".rela", ".rel"].map(|prefix| format!("{prefix}{section}"));
            for table in &mut file.sections {
                if let SectionData::Relocation(all) = &mut table.data
                    && rel
                        .iter()
                        .any(|name| table.name.as_slice() == name.as_bytes())
                {
                    all.retain(|relocation| relocation.r_offset < kept as u64);
                }
            }
            Ok(())
        })
    }

    /// Makes a section read-only.
    ///
    /// # Errors
    /// If the payload has no such thing.
    pub fn make_read_only(&mut self, section: &str) -> anyhow::Result<()> {
        self.rewrite(|file| {
            section_of(file, section)?.sh_flags = object::elf::SHF_ALLOC;
            Ok(())
        })
    }

    fn rewrite(
        &mut self,
        change: impl FnOnce(&mut Builder<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut file = Builder::read(&*self.bytes)?;
        change(&mut file)?;
        let mut written = Vec::new();
        file.write(&mut written)?;
        self.bytes = written;
        Ok(())
    }

    /// The address that the hypervisor has for `symbol`.
    ///
    /// # Errors
    /// If it has none.
    pub fn symbol(&self, symbol: &str) -> anyhow::Result<u64> {
        let syms = std::fs::read(base()?.xen_syms)?;
        let elf = ElfFile64::<Endianness>::parse(&*syms)?;
        let found = elf.symbol_by_name(symbol).context(symbol.to_owned())?;
        Ok(found.address())
    }

    /// The address of the function that a record replaces.
    ///
    /// # Errors
    /// If the payload has no such thing.
    pub fn old_address(&self, record: usize) -> anyhow::Result<u64> {
        let at = self.section(".livepatch.funcs")?.start + record * 104 + 16;
        Ok(u64::from_le_bytes(self.bytes[at..at + 8].try_into()?))
    }

    /// Makes a record replace what is at another address.
    ///
    /// # Errors
    /// If the payload has no such thing.
    pub fn set_old_address(&mut self, record: usize, address: u64) -> anyhow::Result<()> {
        let at = self.section(".livepatch.funcs")?.start + record * 104 + 16;
        self.put(at, address);
        Ok(())
    }

    /// The value of a symbol of the payload.
    ///
    /// # Errors
    /// If it has no such symbol.
    pub fn value(&self, symbol: &str) -> anyhow::Result<u64> {
        let elf = self.elf()?;
        let mut symbols = elf.symbols();
        let found = symbols.find(|s| s.name() == Ok(symbol));
        Ok(found.context(symbol.to_owned())?.address())
    }

    /// The row of a table that begins with a pointer to `symbol`: where it is in the
    /// file.
    ///
    /// # Errors
    /// If the payload has no such thing.
    pub fn row(&self, symbol: &str) -> anyhow::Result<usize> {
        let relocation = self.relocation(".rela.rodata", symbol)?;
        let offset = u64::from_le_bytes(self.bytes[relocation..relocation + 8].try_into()?);
        Ok(self.section(".rodata")?.start + usize::try_from(offset)?)
    }

    /// Makes all relocations of a section against another section's start plus `from`
    /// lead to its start plus `to`.
    ///
    /// # Errors
    /// If the payload has no such thing.
    pub fn move_all(
        &mut self,
        section: &str,
        other: &str,
        (from, to): (u64, u64),
    ) -> anyhow::Result<()> {
        let places = self.against(section, other, from)?;
        places.into_iter().for_each(|at| self.put(at + 16, to));
        Ok(())
    }

    /// Where the relocations of a section against another section's start plus `addend`
    /// are in the file.
    ///
    /// # Errors
    /// If there are none.
    pub fn against(&self, section: &str, other: &str, addend: u64) -> anyhow::Result<Vec<usize>> {
        let elf = self.elf()?;
        let other = elf.section_by_name(other).context("section")?.index();
        let mut symbols = elf.symbols();
        let symbol = symbols
            .find(|s| s.kind() == object::SymbolKind::Section && s.section_index() == Some(other));
        let index = u32::try_from(symbol.context("symbol")?.index().0)?;
        let places = self.section(section)?.step_by(RELA);
        let places: Vec<usize> = places
            .filter(|at| self.bytes[at + 12..at + 16] == index.to_le_bytes())
            .filter(|at| self.bytes[at + 16..at + 24] == addend.to_le_bytes())
            .collect();
        ensure!(!places.is_empty(), "nothing leads to {addend:#x}");
        Ok(places)
    }

    /// Puts `new` wherever the names of symbols have `old`, which is as long.
    ///
    /// # Errors
    /// If the payload has no such thing.
    pub fn rename(&mut self, old: &str, new: &str) -> anyhow::Result<()> {
        let names = self.section(".strtab")?;
        ensure!(old.len() == new.len(), "{new} is not as long");
        let mut found = false;
        for at in names.start..names.end - old.len() {
            if self.bytes[at..at + old.len()] == *old.as_bytes() {
                self.bytes[at..at + old.len()].copy_from_slice(new.as_bytes());
                found = true;
            }
        }
        ensure!(found, "nothing is called {old}");
        Ok(())
    }
}
