// SPDX-License-Identifier: MIT OR Apache-2.0

//! The same steps on ARM64 with our core and both tools; and payloads that our core
//! refuses there.

use crate::denied::{self, functions_on_the_deny_list_are_refused};
use crate::make_all;
use anyhow::{Context as _, ensure};
use object::{Object as _, ObjectSection as _};
use std::io::Write as _;
use std::ops::Range;
use xsplice_e2e::{Base, arm64_config, arm64_rust_base, base, settled};
use xsplice_host_image::{Image, Severity, check};
use xsplice_lab::Host;

#[test]
fn our_core_behaves_as_expected_with_both_tools_on_arm64() -> anyhow::Result<()> {
    let base = arm64_rust_base()?;
    let mut host = Host::boot(&arm64_config(&base)?)?;
    // Its compiler makes two instructions of the function, and the payload keeps the
    // second one.
    let nop = std::fs::read(base.test_payloads.join("xen_nop.livepatch"))?;
    make_all(&mut host, &base, &nop)?;
    hostile(&mut host, &base)?;
    functions_on_the_deny_list_are_refused(&mut host, &base, denied::ON_ARM64)?;
    host.shut_down()?;
    Ok(())
}

/// Files that the hypervisor must refuse without harm: each as the engine does on the
/// image, with the reason on the console.
fn hostile(host: &mut Host, base: &Base) -> anyhow::Result<()> {
    let image = Image::parse(&std::fs::read(&base.xen_syms)?)?;
    let files = files(base)?;
    let mut refused = 0;
    for (name, file) in &files {
        let path = format!("/lab/{name}");
        host.put(&path, file)?;
        let before = host.console().len();
        let output = host.run(&["/bin/xen-livepatch", "upload", name, &path])?;
        let console = host.console().split_off(before);
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
        ensure!(
            without_numbers(&console).contains(&reason),
            "{name}: {console}, not {reason}"
        );
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
fn files(arm64: &Base) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let good = std::fs::read(arm64.test_payloads.join("xen_hello_world.livepatch"))?;
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
    add(
        "replacement-far",
        replacement,
        &0x17ff_0000_u32.to_le_bytes(),
    )?;
    add(
        "replacement-adrp",
        replacement,
        &0x9000_0000_u32.to_le_bytes(),
    )?;
    // A record: name, new address, old address, sizes.
    let record = place(".livepatch.funcs")?.start;
    for (name, old_size) in [
        ("old-size-0", 0),
        ("old-size-3", 3),
        ("old-size-large", 1 << 20),
    ] {
        add(name, record + 28, &u32::to_le_bytes(old_size))?;
    }
    add("version", record + 32, &[3])?;
    // The type of each relocation of a function.
    let relocations = place(".rela.text.hi_func")?;
    for (index, start) in relocations.step_by(24).enumerate() {
        for (name, r_type) in [("unknown", 0x7f7f_7f7f_u32), ("two", 2)] {
            let name = format!("relocation-{index}-{name}");
            add(&name, start + 8, &r_type.to_le_bytes())?;
        }
    }
    Ok(files)
}
