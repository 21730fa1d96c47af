// SPDX-License-Identifier: MIT OR Apache-2.0
//! Signatures on the real Xen: a core with keys only loads payloads that one of them has
//! signed, unless its command line says otherwise; and Xen without signatures loads
//! signed payloads like others.

use anyhow::{Context as _, bail, ensure};
use object::elf::{FileHeader32, FileHeader64, SHT_PROGBITS};
use object::read::elf::FileHeader as _;
use object::{LittleEndian, Object as _, ObjectSection as _, U32};
use std::ops::Range;
use std::path::Path;
use xsplice_e2e::{
    Base, arm32_config, arm32_locked_base, arm64_config, arm64_locked_base, base, config,
    debug_base, local, locked_base, repository, result, rust_base, settled, told, unsigned_config,
    without_signatures,
};
use xsplice_lab::Host;

const NAME: &str = "xen_hello_world.livepatch";

fn unsigned(base: &Base) -> anyhow::Result<Vec<u8>> {
    Ok(std::fs::read(base.test_payloads.join(NAME))?)
}

/// The payload, signed with a key of `tests/keys`.
fn signed(payload: &[u8], key: &str) -> anyhow::Result<Vec<u8>> {
    let directory = tempfile::tempdir()?;
    let text = |path: &Path| path.display().to_string();
    let (file, output) = (directory.path().join("in"), directory.path().join("out"));
    std::fs::write(&file, payload)?;
    let key = repository().join("tests/keys").join(key);
    let arguments = [
        "sign",
        "--key",
        &text(&key),
        &text(&file),
        "-o",
        &text(&output),
    ];
    let signed = local(&arguments)?;
    ensure!(signed.status.success(), "{signed:?}");
    Ok(std::fs::read(output)?)
}

/// Where a file has its section headers.
struct Headers {
    table: usize,
    size: usize,
    /// Where their number is.
    count: usize,
}

impl Headers {
    fn of(file: &[u8]) -> anyhow::Result<Self> {
        let wide = match object::FileKind::parse(file)? {
            object::FileKind::Elf64 => true,
            object::FileKind::Elf32 => false,
            kind => bail!("{kind:?}"),
        };
        let table = if wide {
            FileHeader64::<LittleEndian>::parse(file)?
                .e_shoff
                .get(LittleEndian)
        } else {
            let header = FileHeader32::<LittleEndian>::parse(file)?;
            header.e_shoff.get(LittleEndian).into()
        };
        let (size, count) = if wide { (64, 60) } else { (40, 48) };
        let table = usize::try_from(table)?;
        Ok(Self { table, size, count })
    }

    /// The bytes of the header of this section.
    fn place(&self, section: &object::Section<'_, '_>) -> Range<usize> {
        let start = self.table + section.index().0 * self.size;
        start..start + self.size
    }
}

/// Where the header of the last section is, which is the signature's; and where the
/// section is.
fn last_section(file: &[u8]) -> anyhow::Result<(Range<usize>, Range<usize>)> {
    let parsed = object::File::parse(file)?;
    let last = parsed.sections().last().context("there are no sections")?;
    let (start, size) = last.file_range().context("no contents")?;
    let start = usize::try_from(start)?;
    let contents = start..start + usize::try_from(size)?;
    Ok((Headers::of(file)?.place(&last), contents))
}

/// Where the header of the section with this name starts.
fn section_header(file: &[u8], name: &str) -> anyhow::Result<usize> {
    let parsed = object::File::parse(file)?;
    let section = parsed.section_by_name(name);
    let section = section.with_context(|| format!("there is no {name}"))?;
    Ok(Headers::of(file)?.place(&section).start)
}

/// What is to be refused: a name, the payload, the error number, and what the console
/// says.
type Refused = (&'static str, Vec<u8>, &'static str, &'static str);

const WRONG: &str = "is not that of any of the 2 keys of this hypervisor, or the payload was \
                     changed after it was signed";

/// No signature, or one that is not that of the payload.
fn unproved(payload: &[u8]) -> anyhow::Result<Vec<Refused>> {
    let good = signed(payload, "vendor.key")?;
    let (_, section) = last_section(&good)?;
    let changed = |change: &dyn Fn(&mut Vec<u8>)| altered(&good, change);
    let count = Headers::of(&good)?.count;
    // The names of payloads, one of which the same key has signed.
    let mut longer = payload.to_vec();
    longer.push(0);
    let another = signed(&longer, "vendor.key")?;
    let (_, from) = last_section(&another)?;
    Ok(vec![
        (
            "unsigned",
            payload.to_vec(),
            "EPERM",
            "the payload is not signed",
        ),
        ("other-key", signed(payload, "other.key")?, "EPERM", WRONG),
        (
            "another-payload-s",
            changed(&|file| file[section.clone()].copy_from_slice(&another[from.clone()])),
            "EPERM",
            WRONG,
        ),
        (
            "no-signature-yet",
            changed(&|file| file[section.start + 16..section.end].fill(0)),
            "EPERM",
            WRONG,
        ),
        (
            "flipped-bit",
            changed(&|file| file[section.end - 1] ^= 1),
            "EPERM",
            WRONG,
        ),
        (
            "flipped-bit-of-the-payload",
            changed(&|file| flip_text(file)),
            "EPERM",
            WRONG,
        ),
        // The table has one section less, and the name stays behind.
        (
            "stripped",
            changed(&|file| file[count] -= 1),
            "EPERM",
            "the payload is not signed",
        ),
    ])
}

fn altered(payload: &[u8], change: &dyn Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut file = payload.to_vec();
    change(&mut file);
    file
}

/// Signatures in a form that does not exist.
fn malformed(payload: &[u8]) -> anyhow::Result<Vec<Refused>> {
    let good = signed(payload, "vendor.key")?;
    let (header, section) = last_section(&good)?;
    // A section that makes no difference becomes a second signature.
    let comment = section_header(&good, ".comment")?;
    let changed = |change: &dyn Fn(&mut Vec<u8>)| altered(&good, change);
    Ok(vec![
        (
            "twice",
            changed(&|file| file.copy_within(header.clone(), comment)),
            "EINVAL",
            "has the section .note.Xen.signature twice",
        ),
        (
            "wrong-type",
            changed(&|file| {
                let kind = U32::new(LittleEndian, SHT_PROGBITS);
                file[header.start + 4..header.start + 8]
                    .copy_from_slice(object::pod::bytes_of(&kind));
            }),
            "EINVAL",
            "its type is not SHT_NOTE",
        ),
        (
            "other-algorithm",
            changed(&|file| file[section.start + 10] = 1),
            "EOPNOTSUPP",
            "the payload is signed with version 1, algorithm 1, hash 0",
        ),
    ])
}

/// Changes a bit of the first section that has code.
fn flip_text(file: &mut [u8]) {
    let place = file
        .windows(4)
        .position(|bytes| bytes == b"Hell")
        .unwrap_or(100);
    file[place] ^= 1;
}

/// What a command in dom0 prints; it succeeds.
fn done(host: &mut Host, argv: &[&str]) -> anyhow::Result<String> {
    let output = settled(host, argv)?;
    ensure!(
        output.code == Some(0),
        "{argv:?}: {output:?}\n{}",
        host.console()
    );
    Ok(output.stdout)
}

const ENFORCED: &str = "livepatch: payloads must be signed; keys: large, vendor";

#[test]
fn by_default_a_core_with_keys_only_loads_what_they_signed() -> anyhow::Result<()> {
    let base = debug_base()?;
    only_signed_payloads_load(&base, Host::boot(&config(&base)?)?)
}

#[test]
fn a_locked_core_ignores_what_the_command_line_says_of_signatures() -> anyhow::Result<()> {
    let base = locked_base()?;
    only_signed_payloads_load(&base, Host::boot(&unsigned_config(&base)?)?)
}

#[test]
fn so_does_one_on_arm64() -> anyhow::Result<()> {
    let base = arm64_locked_base()?;
    let config = without_signatures(arm64_config(&base)?);
    only_signed_payloads_load(&base, Host::boot(&config)?)
}

#[test]
fn and_on_arm32() -> anyhow::Result<()> {
    let base = arm32_locked_base()?;
    let config = without_signatures(arm32_config(&base)?);
    only_signed_payloads_load(&base, Host::boot(&config)?)
}

fn only_signed_payloads_load(base: &Base, mut host: Host) -> anyhow::Result<()> {
    let payload = unsigned(base)?;
    ensure!(host.console().contains(ENFORCED), "{}", host.console());
    for (name, file, errno, reason) in [unproved(&payload)?, malformed(&payload)?].concat() {
        let path = format!("/lab/{name}");
        host.put(&path, &file)?;
        let output = host.run(&["xsplice", "--json", "upload", name, &path])?;
        let said = told("upload", &output.stdout)?;
        ensure!(
            said["error"]["errno"] == errno && said["changed"] == false,
            "{name}: {said:#}\n{}",
            host.console()
        );
        let line = format!("livepatch: {name} was not loaded ({errno})");
        // The reason is on the next line.
        let behind = |console: &str| Some(console.split_once(&line)?.1.to_owned());
        let console = host.printed(0, &line, |console| {
            behind(console).is_some_and(|said| said.matches('\n').count() > 1)
        })?;
        let said = behind(&console).unwrap_or_default();
        let said = said.lines().nth(1).unwrap_or_default();
        ensure!(said.contains(reason), "{name}: {said}");
    }
    let listed = result("list", done(&mut host, &["xsplice", "list", "--json"])?)?;
    ensure!(listed["payloads"] == serde_json::json!([]), "{listed}");

    for (name, key, signer) in [
        ("small", "vendor.key", "vendor"),
        ("large", "large.key", "large"),
    ] {
        let path = format!("/lab/{name}");
        host.put(&path, &signed(&payload, key)?)?;
        done(&mut host, &["xsplice", "load", &path])?;
        let extra = done(&mut host, &["xsplice", "info"])?;
        ensure!(extra.contains("Hello World"), "{extra}");
        let shown = host.press('x', &format!("signed by {signer}"))?;
        ensure!(shown.contains(&format!("{name}: Applied")), "{shown}");
        done(&mut host, &["xsplice", "revert", name])?;
        done(&mut host, &["xsplice", "unload", name])?;
    }
    host.shut_down()?;
    Ok(())
}

#[test]
fn the_command_line_can_do_without_signatures() -> anyhow::Result<()> {
    let base = debug_base()?;
    let payload = unsigned(&base)?;
    let mut warned = unsigned_config(&base)?;
    warned.xen_arguments = "livepatch-signatures=warn".to_owned();
    for (config, boot, upload) in [
        (
            warned,
            "unsigned payloads are loaded with a warning; keys: large, vendor",
            Some("hello was loaded, but the payload is not signed"),
        ),
        (
            unsigned_config(&base)?,
            "signatures of payloads are not checked; keys: large, vendor",
            None,
        ),
    ] {
        let mut host = Host::boot(&config)?;
        ensure!(host.console().contains(boot), "{}", host.console());
        host.put("/lab/hello", &payload)?;
        done(&mut host, &["xsplice", "load", "/lab/hello"])?;
        let console = host.console();
        let expected = upload.unwrap_or("payload is not signed");
        ensure!(console.contains(expected) == upload.is_some(), "{console}");
        host.shut_down()?;
    }
    Ok(())
}

#[test]
fn without_keys_signatures_make_no_difference() -> anyhow::Result<()> {
    for base in [base()?, rust_base()?] {
        let payload = signed(&unsigned(&base)?, "other.key")?;
        let mut host = Host::boot(&config(&base)?)?;
        host.put("/lab/hello", &payload)?;
        done(&mut host, &["xsplice", "load", "/lab/hello"])?;
        let extra = done(&mut host, &["xsplice", "info"])?;
        ensure!(extra.contains("Hello World"), "{extra}");
        done(&mut host, &["xsplice", "revert", "hello"])?;
        let console = host.console();
        let mut lines = console.lines().filter(|line| line.contains("livepatch"));
        ensure!(!lines.any(|line| line.contains("signature")), "{console}");
        host.shut_down()?;
    }
    Ok(())
}

#[test]
fn a_core_without_keys_can_refuse_everything() -> anyhow::Result<()> {
    let base = rust_base()?;
    let payload = signed(&unsigned(&base)?, "vendor.key")?;
    let mut config = config(&base)?;
    config.xen_arguments = "livepatch-signatures=enforce".to_owned();
    let mut host = Host::boot(&config)?;
    host.put("/lab/hello", &payload)?;
    let output = host.run(&["xsplice", "upload", "hello", "/lab/hello"])?;
    ensure!(output.code == Some(1), "{output:?}");
    let line = "is not that of any of the 0 keys of this hypervisor";
    ensure!(host.console().contains(line), "{}", host.console());
    host.shut_down()?;
    Ok(())
}
