// SPDX-License-Identifier: MIT OR Apache-2.0

//! Payloads for ARM that our core refuses: one field of a valid one is changed.

use anyhow::{Context as _, ensure};
use object::{Object as _, ObjectSection as _};
use std::io::Write as _;
use std::ops::Range;
use xsplice_e2e::{Base, base, settled};
use xsplice_host_image::{Image, Severity, check};
use xsplice_lab::Host;

/// How a machine's payloads are written.
pub(crate) struct Form {
    /// A branch that leads out of a replacement, to no code.
    far: u32,
    /// An instruction that uses its own address.
    own_address: u32,
    /// Where the old size is in a function's record.
    old_size: usize,
    /// The relocations of a function.
    relocations: &'static str,
    /// The size of one of them, and where its type is.
    relocation: usize,
    r_type: usize,
}

pub(crate) const ARM64: Form = Form {
    far: 0x17ff_0000,
    own_address: 0x9000_0000, // adrp x0, .
    old_size: 28,
    relocations: ".rela.text.hi_func",
    relocation: 24,
    r_type: 8,
};

pub(crate) const ARM32: Form = Form {
    far: 0xea7f_0000,
    own_address: 0xe59f_0000, // ldr r0, [pc]
    old_size: 16,
    relocations: ".rel.text.hi_func",
    relocation: 8,
    r_type: 4,
};

/// Files that the hypervisor must refuse without harm: each as the engine does on the
/// image, with the reason on the console.
pub(crate) fn are_refused(host: &mut Host, base: &Base, form: &Form) -> anyhow::Result<()> {
    let image = Image::parse(&std::fs::read(&base.xen_syms)?)?;
    let files = files(base, form)?;
    let mut refused = 0;
    for (name, file) in &files {
        let path = format!("/lab/{name}");
        host.put(&path, file)?;
        let before = host.console().len();
        let output = host.run(&["/bin/xen-livepatch", "upload", name, &path])?;
        let [report] = check(&image, &[(name, file)])
            .try_into()
            .map_err(|_| anyhow::anyhow!("one report"))?;
        ensure!(
            (output.code == Some(0)) == report.loads,
            "{name}: {output:?}, on the image {report:#?}"
        );
        if report.loads {
            let unloaded = settled(host, &["/bin/xen-livepatch", "unload", name])?;
            ensure!(unloaded.code == Some(0), "{name}: {unloaded:?}");
            continue;
        }
        refused += 1;
        let mut problems = report.problems.iter();
        let first = problems.find(|problem| problem.severity == Severity::NotLoaded);
        let first = first.with_context(|| format!("{name}: no reason"))?;
        let error = format!("Error {}: ", first.code.unsigned_abs());
        let said = format!("{}{}", output.stdout, output.stderr);
        ensure!(said.contains(&error), "{name}: {said}, not {error}");
        let reason = without_numbers(&first.message);
        let is_there = |console: &str| without_numbers(console).contains(&reason);
        let printed = host.printed(before, &reason, is_there);
        printed.with_context(|| name.clone())?;
    }
    let line = format!("{} files, {refused} refused\n", files.len());
    std::io::stderr().write_all(line.as_bytes())?;
    ensure!(refused * 2 > files.len(), "{line}");
    Ok(())
}

/// Payloads have other addresses in the hypervisor than on the image, and distances.
fn without_numbers(text: &str) -> String {
    let mut parts = text.split("0x");
    let mut without = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        without.push_str(part.trim_start_matches(|c: char| c.is_ascii_hexdigit()));
    }
    without.retain(|c| !c.is_ascii_digit());
    without
}

/// A valid payload, and what is made of it by changing one field that the hypervisor
/// trusts.
fn files(arm: &Base, form: &Form) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let good = std::fs::read(arm.test_payloads.join("xen_hello_world.livepatch"))?;
    let other = base()?.test_payloads.join("xen_hello_world.livepatch");
    let mut files = vec![("x86-64".to_owned(), std::fs::read(other)?)];
    let mut add = |name: &str, at: usize, bytes: &[u8]| -> anyhow::Result<()> {
        let mut file = good.clone();
        let field = file.get_mut(at..at + bytes.len()).context("a field")?;
        field.copy_from_slice(bytes);
        files.push((name.to_owned(), file));
        Ok(())
    };
    add("machine", 18, &[40])?;
    let place = |name: &str| -> anyhow::Result<Range<usize>> {
        let file = object::File::parse(good.as_slice())?;
        let section = file.section_by_name(name).context(name.to_owned())?;
        let (start, size) = section.file_range().context("no contents")?;
        let start = usize::try_from(start)?;
        Ok(start..start + usize::try_from(size)?)
    };
    // An alternative ends with its feature and two lengths.
    let alternative = place(".altinstructions")?.end - 4;
    add("feature", alternative, &[19, 0])?;
    add("callback", alternative, &[18, 0])?;
    add("no-lengths", alternative + 2, &[0, 0])?;
    add("longer", alternative + 3, &[8])?;
    add("shorter", alternative + 3, &[0])?;
    add("half", alternative + 2, &[2, 2])?;
    let replacement = place(".altinstr_replacement")?.start;
    add("replacement-far", replacement, &form.far.to_le_bytes())?;
    let own = form.own_address.to_le_bytes();
    add("replacement-own-address", replacement, &own)?;
    // A record: name, new address, old address, sizes.
    let record = place(".livepatch.funcs")?.start;
    for (name, old_size) in [
        ("old-size-0", 0),
        ("old-size-3", 3),
        ("old-size-large", 1 << 20),
    ] {
        add(name, record + form.old_size, &u32::to_le_bytes(old_size))?;
    }
    add("version", record + form.old_size + 4, &[3])?;
    // The type of each relocation of a function.
    let relocations = place(form.relocations)?;
    for (index, start) in relocations.step_by(form.relocation).enumerate() {
        for (name, r_type) in [("unknown", 0x7f), ("two", 2)] {
            let name = format!("relocation-{index}-{name}");
            add(&name, start + form.r_type, &[r_type])?;
        }
    }
    Ok(files)
}
