// SPDX-License-Identifier: MIT OR Apache-2.0

//! The same steps on ARM32 with both cores. Xen's own has two faults there: it stops the
//! host when a note of a payload is not aligned, as in Xen's test payloads, and half of
//! all calls out of payloads arrive one instruction too low. Its steps are made with
//! payloads whose section headers avoid both.

use crate::{HOOKED, OURS, STEPS, changed, make_all, make_both};
use anyhow::{Context as _, bail, ensure};
use object::read::elf::ElfFile32;
use object::{
    LittleEndian, Object as _, ObjectSection as _, ObjectSymbol as _, RelocationFlags,
    RelocationTarget, SectionFlags, SymbolSection, elf,
};
use std::collections::HashMap;
use xsplice_e2e::{Base, arm32_base, arm32_config, arm32_rust_base, own_payloads, result};
use xsplice_host_image::{Image, check};
use xsplice_lab::{Error, Host};

#[test]
fn xen_s_own_core_behaves_as_expected_with_both_tools_on_arm32() -> anyhow::Result<()> {
    let base = arm32_base()?;
    let xen = Symbols::of(&base)?;
    let image = Image::parse(&std::fs::read(&base.xen_syms)?)?;
    // The last one is used by no code, so that the file does not show it.
    let (known, all) = (FEATURES - 1, false);
    ensure!(features(&image) == (known, all), "{:?}", image.limits());
    let mut payloads = Vec::new();
    for path in own_payloads(&base)? {
        let place = format!("/lab/{}", path.file_name().unwrap_or_default().display());
        let unchanged = std::fs::read(&path)?;
        let right = xen.avoiding_faults(&unchanged);
        // The functions of these payloads that print make several calls, of both kinds.
        let hooked = HOOKED.iter().any(|(_, step, ..)| step.contains(&&*place));
        ensure!(right.is_err() == hooked, "{place}: {:?}", right.err());
        // The check knows of both faults.
        match right {
            Ok(right) => {
                let depends = !place.contains("no_xen_buildid");
                ensure!(loads(&image, &right) == depends, "{place}");
                payloads.push((place, right));
            }
            Err(_) => ensure!(!loads(&image, &unchanged), "{place}"),
        }
    }
    let mut host = Host::boot(&arm32_config(&base)?)?;
    for (place, payload) in &payloads {
        host.put(place, payload)?;
    }
    let nop = payload(&base, "xen_nop")?;
    let [theirs, ours] = make_both(&mut host, &base, &xen.avoiding_faults(&nop)?)?;
    for ((step, theirs), ours) in STEPS.iter().zip(theirs).zip(ours) {
        ensure!(ours == theirs, "{:?}: {ours:?}, not {theirs:?}", step.1);
    }
    our_own_commands(&mut host)?;
    an_unaligned_note_stops_the_host(host, &base, &image)
}

/// The number of processor features that Xen 4.17 knows (`ARM_NCAPS`).
const FEATURES: u16 = 18;

/// How many the check knows, and whether it knows that these are all.
fn features(image: &Image) -> (u16, bool) {
    let limits = image.limits();
    (limits.features, limits.all_features)
}

/// With Xen's test payloads as they are: our core has neither fault.
#[test]
fn our_core_behaves_as_expected_with_both_tools_on_arm32() -> anyhow::Result<()> {
    let base = arm32_rust_base()?;
    let image = Image::parse(&std::fs::read(&base.xen_syms)?)?;
    ensure!(features(&image) == (FEATURES, true), "{:?}", image.limits());
    for path in own_payloads(&base)? {
        let depends = !path.display().to_string().contains("no_xen_buildid");
        let right = loads(&image, &std::fs::read(&path)?) == depends;
        ensure!(right, "{}", path.display());
    }
    let mut host = Host::boot(&arm32_config(&base)?)?;
    make_all(&mut host, &base, &payload(&base, "xen_nop")?)?;
    our_own_commands(&mut host)?;
    changed::are_refused(&mut host, &base, &changed::ARM32)?;
    host.shut_down()?;
    Ok(())
}

fn loads(image: &Image, payload: &[u8]) -> bool {
    let reports = check(image, &[("payload", payload)]);
    reports.iter().all(|report| report.loads)
}

/// What our commands show has the published form.
fn our_own_commands(host: &mut Host) -> anyhow::Result<()> {
    const HELLO: &str = "/lab/xen_hello_world.livepatch";
    let json = |host: &mut Host, command: &str| -> anyhow::Result<_> {
        result(command, host.run(&["xsplice", command, "--json"])?.stdout)
    };
    let (loaded, gone): (&[_], &[_]) = (
        &[
            &["upload", "hello", HELLO][..],
            &["apply", "hello"],
            &["upload", "other", "/lab/xen_replace_world.livepatch"],
            &["replace", "other"],
        ],
        &[
            &["revert", "other"][..],
            &["unload", "other"],
            &["unload", "hello"],
            &["load", HELLO],
            &["revert", "xen_hello_world"],
            &["unload", "xen_hello_world"],
        ],
    );
    for (steps, extra) in [(loaded, "Hello Again Wor"), (gone, ".5")] {
        for step in steps {
            let output = xsplice_e2e::settled(host, &[&["xsplice"], *step].concat())?;
            ensure!(output.code == Some(0), "{step:?}: {output:?}");
        }
        let info = json(host, "info")?;
        ensure!(info["hypervisor"]["extra"] == extra, "{info:#}");
        let list = json(host, "list")?;
        let payloads = list["payloads"].as_array().map(Vec::len);
        ensure!(
            payloads == Some(if steps == loaded { 2 } else { 0 }),
            "{list:#}"
        );
    }
    Ok(())
}

/// Xen reads the notes of a payload by words, and ARM32's Xen has alignment checks on.
fn an_unaligned_note_stops_the_host(
    mut host: Host,
    base: &Base,
    image: &Image,
) -> anyhow::Result<()> {
    let unchanged = payload(base, "xen_hello_world")?;
    ensure!(!loads(image, &unchanged), "it would load");
    host.put("/lab/unaligned", &unchanged)?;
    match host.run(&[OURS, "upload", "unaligned", "/lab/unaligned"]) {
        Err(Error::Crashed(lines)) => {
            let lines = lines.join("\n");
            let expected = ["xen_build_id_check+", "Data Abort"];
            ensure!(expected.iter().all(|text| lines.contains(text)), "{lines}");
            Ok(())
        }
        other => bail!("Xen's own core has survived it: {other:?}"),
    }
}

fn payload(base: &Base, name: &str) -> anyhow::Result<Vec<u8>> {
    let path = base.test_payloads.join(format!("{name}.livepatch"));
    std::fs::read(&path).with_context(|| path.display().to_string())
}

/// The addresses of the hypervisor's symbols.
struct Symbols(HashMap<String, u64>);

impl Symbols {
    fn of(base: &Base) -> anyhow::Result<Self> {
        let data = std::fs::read(&base.xen_syms)?;
        let file = ElfFile32::<LittleEndian>::parse(&*data)?;
        let symbols = file.symbols();
        let symbols = symbols.map(|s| Ok((s.name()?.to_owned(), s.address())));
        Ok(Self(symbols.collect::<anyhow::Result<_>>()?))
    }

    /// The payload with other section headers: all sections are aligned, and code is
    /// where its calls arrive.
    ///
    /// # Errors
    /// If there are calls of both kinds in one section.
    fn avoiding_faults(&self, payload: &[u8]) -> anyhow::Result<Vec<u8>> {
        let mut payload = payload.to_vec();
        align(&mut payload)?;
        while let Some(before) = self.before_low_calls(&payload)? {
            // The word behind it belongs to the section as well, and those after it move.
            let size = word(&mut payload, before, SIZE)?;
            *size = (u32::from_le_bytes(*size) + WORD).to_le_bytes();
        }
        Ok(payload)
    }

    /// The section of code before the first one whose calls arrive too low.
    fn before_low_calls(&self, payload: &[u8]) -> anyhow::Result<Option<usize>> {
        let file = ElfFile32::<LittleEndian>::parse(payload)?;
        let places = places(&file);
        let mut before = None;
        for section in file.sections() {
            let Some(place) = places.get(&section.index()) else {
                continue;
            };
            let mut kinds = Vec::new();
            for (offset, relocation) in section.relocations() {
                let (RelocationFlags::Elf { r_type }, RelocationTarget::Symbol(symbol)) =
                    (relocation.flags(), relocation.target())
                else {
                    continue;
                };
                if r_type != elf::R_ARM_CALL && r_type != elf::R_ARM_JUMP24 {
                    continue;
                }
                let symbol = file.symbol_by_index(symbol)?;
                let name = symbol.name()?;
                let target = match symbol.section() {
                    SymbolSection::Section(index) => {
                        let place = places.get(&index).with_context(|| name.to_owned())?;
                        place + symbol.address()
                    }
                    _ => *self.0.get(name).with_context(|| name.to_owned())?,
                };
                // Xen drops the lowest bit of the distance, in words.
                let two = u64::from(2 * WORD);
                kinds.push((place + offset) % two != target % two);
            }
            match (kinds.contains(&true), kinds.contains(&false), before) {
                (false, ..) => before = Some(section.index().0),
                (true, false, Some(before)) => return Ok(Some(before)),
                _ => bail!("{}: not all calls can arrive", section.name()?),
            }
        }
        Ok(None)
    }
}

/// The size of an instruction.
const WORD: u32 = 4;

/// Where Xen puts each section of code, from the start of a page on.
fn places(file: &ElfFile32<'_, LittleEndian>) -> HashMap<object::SectionIndex, u64> {
    let mut end = 0;
    let code = file.sections().filter(|section| {
        let SectionFlags::Elf { sh_flags, .. } = section.flags() else {
            return false;
        };
        let wanted = elf::SHF_ALLOC | elf::SHF_EXECINSTR;
        sh_flags & (wanted | elf::SHF_WRITE) == wanted
    });
    code.map(|section| {
        let place = u64::next_multiple_of(end, section.align().max(1));
        end = place + section.size();
        (section.index(), place)
    })
    .collect()
}

/// Offsets of fields of a section header.
const SIZE: usize = 20;
const ALIGNMENT: usize = 32;

/// Aligns every section to words at least.
fn align(payload: &mut [u8]) -> anyhow::Result<()> {
    let sections = ElfFile32::<LittleEndian>::parse(&*payload)?
        .sections()
        .count();
    for index in 1..=sections {
        let alignment = word(payload, index, ALIGNMENT)?;
        let least = u32::from_le_bytes(*alignment).max(WORD);
        *alignment = least.to_le_bytes();
    }
    Ok(())
}

/// A field of the header of the section with this index.
fn word(payload: &mut [u8], index: usize, field: usize) -> anyhow::Result<&mut [u8; 4]> {
    const HEADER: usize = size_of::<elf::SectionHeader32<LittleEndian>>();
    let file = ElfFile32::<LittleEndian>::parse(&*payload)?;
    let table = file.elf_header().e_shoff.get(LittleEndian);
    let at = usize::try_from(table)? + index * HEADER + field;
    let field = payload
        .get_mut(at..)
        .and_then(|rest| rest.first_chunk_mut());
    field.context("no such section")
}
