// SPDX-License-Identifier: MIT OR Apache-2.0
//! The console output of a hypervisor with our core, in a ring that keeps few lines:
//! all that some administrators will see.

use anyhow::{Context as _, ensure};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};
use xsplice_e2e::{Base, build, example, forged, settled};
use xsplice_engine::{Brief, hex};
use xsplice_host_image::{Image, check};
use xsplice_lab::Host;

/// The console's lines from the one with `title` on, each starting at "livepatch: ".
fn from<'c>(console: &'c str, title: &str) -> anyhow::Result<Vec<&'c str>> {
    let lines = console.lines();
    let lines: Vec<&str> = lines.skip_while(|line| !line.contains(title)).collect();
    ensure!(!lines.is_empty(), "{title}: not in\n{console}");
    let lines = lines.into_iter();
    Ok(lines
        .map_while(|line| line.split_once("(XEN) "))
        .map(|(_, line)| {
            line.split_once("livepatch: ")
                .map_or(line, |(_, said)| said)
        })
        .collect())
}

/// An apply and the key `x` print the payload's metadata, escaped so that it cannot
/// forge a console line or set a colour.
pub(super) fn metadata_is_printed(host: &mut Host, base: &Base) -> anyhow::Result<()> {
    let payload = forged::payload(base, false)?;
    host.put("/lab/told.livepatch", &payload)?;
    let before = host.console().len();
    let uploaded = host.run(&["xsplice", "upload", "told", "/lab/told.livepatch"])?;
    ensure!(uploaded.code == Some(0), "{uploaded:?}");
    let applied = settled(host, &["xsplice", "apply", "told"])?;
    ensure!(applied.code == Some(0), "{applied:?}");
    let listed = host.press('x', " bytes at 0x")?;
    let console = host.console().split_off(before);

    let metadata = r"author=\nlp_1-1_1-2";
    let done = from(&console, "told: apply done; waited ")?;
    let said = done.get(1..).unwrap_or_default().iter();
    let mut said = said.take_while(|line| line.starts_with("  "));
    ensure!(said.any(|line| line.contains(metadata)), "{done:#?}");

    let lines = from(&listed, "livepatch: told: Applied, result 0, at 0x")?;
    let image = Image::parse(&std::fs::read(&base.xen_syms)?)?;
    let old = image.lookup_symbol(b"xen_extra_version");
    let old = old.context("xen_extra_version")?;
    let id = hex(image.build_id());
    for wanted in [
        format!("build-id {}", "5a".repeat(20)),
        format!("depends on {id}"),
        metadata.to_owned(),
        format!(" at {old:#x}, 12 -> "),
    ] {
        let found = lines
            .iter()
            .any(|line| line.starts_with("  ") && line.contains(&wanted));
        ensure!(found, "{wanted}: not in {lines:#?}");
    }
    ensure!(!console.contains(['\u{1b}', '\u{202e}']), "{console:?}");

    for command in ["revert", "unload"] {
        let output = settled(host, &["xsplice", command, "told"])?;
        ensure!(output.code == Some(0), "{output:?}");
    }
    Ok(())
}

/// A payload with many problems gets few lines, with the number of the rest; they are
/// the first ones of the pre-flight check, without terminal control sequences.
pub(super) fn a_refusal_is_short(host: &mut Host, base: &Base) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("long.livepatch");
    build(base, &example(base, "two-files")?, &path)?;
    let payload = spoiled(&std::fs::read(path)?)?;
    host.put("/lab/long.livepatch", &payload)?;
    let uploaded = host.run(&["xsplice", "upload", "long", "/lab/long.livepatch"])?;
    ensure!(uploaded.code == Some(1), "{uploaded:?}");

    let console = host.console();
    let lines = from(&console, "livepatch: long was not loaded (")?;
    let said = lines.get(1..).unwrap_or_default().iter();
    let said: Vec<&str> = said.map_while(|line| line.strip_prefix("  ")).collect();
    let image = Image::parse(&std::fs::read(&base.xen_syms)?)?;
    let [report] = check(&image, &[("long", &payload)])
        .try_into()
        .map_err(|_| anyhow::anyhow!("one report"))?;
    let all = report
        .problems
        .iter()
        .map(|problem| problem.message.as_str());
    let mut expected: Vec<String> = all
        .clone()
        .take(Brief::PROBLEMS)
        .map(str::to_owned)
        .collect();
    let more = all.len().saturating_sub(Brief::PROBLEMS) + report.more_problems;
    ensure!(more > 0, "{} problems are few", all.len());
    expected.push(format!("and {more} more; `xsplice check` shows all"));
    ensure!(said == expected, "{said:#?}, not {expected:#?}");
    let harmless = |line: &&str| !line.contains(char::is_control);
    ensure!(said.iter().all(harmless), "{said:?}");
    ensure!(said.iter().any(|line| line.contains(r"\x1b")), "{said:#?}");
    Ok(())
}

/// Gives each relocation of the text an invalid type, and each symbol name a terminal
/// control sequence at its start.
fn spoiled(payload: &[u8]) -> anyhow::Result<Vec<u8>> {
    const RELOCATION_SIZE: usize = 24;
    const TYPE: usize = 8;
    const NO_TYPE: u32 = 0xff;
    let mut data = payload.to_vec();
    let file = object::File::parse(payload)?;
    let table = |name| -> anyhow::Result<usize> {
        let section = file.section_by_name(name).context(name)?;
        Ok(usize::try_from(section.file_range().context(name)?.0)?)
    };
    let strings = table(".strtab")?;
    let names = file.section_by_name(".strtab").context(".strtab")?.data()?;
    for symbol in file.symbols().filter(|symbol| symbol.is_undefined()) {
        let name = symbol.name()?.as_bytes();
        let place = names.windows(name.len() + 1);
        let mut place = place
            .enumerate()
            .filter(|(_, there)| there.split_last() == Some((&0, name)) && !name.is_empty());
        if let Some((at, _)) = place.next() {
            data[strings + at] = 0x1b;
        }
    }
    for section in file.sections() {
        let relocations = section.name()?.strip_prefix(".rela.text");
        if relocations.is_some() && section.kind() != object::SectionKind::Text {
            let (at, size) = section.file_range().context("no relocations")?;
            let (at, size) = (usize::try_from(at)?, usize::try_from(size)?);
            for place in (at..at + size).step_by(RELOCATION_SIZE) {
                data[place + TYPE..place + TYPE + 4].copy_from_slice(&NO_TYPE.to_le_bytes());
            }
        }
    }
    Ok(data)
}
