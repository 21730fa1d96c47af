// SPDX-License-Identifier: MIT OR Apache-2.0
//! The deny-list on a running hypervisor with our core.

use anyhow::{Context as _, ensure};
use object::{Object as _, ObjectSection as _};
use std::mem::offset_of;
use xsplice_abi::payload::LivepatchFunc;
use xsplice_e2e::{Base, build, example};
use xsplice_host_image::{Image, Problem, check};
use xsplice_lab::Host;

/// Functions of Xen on x86-64 on the list, with the beginning of the reason.
pub(super) const ON_X86_64: &[(&str, &str)] = &[
    ("do_nmi", "NMIs or machine checks run it"),
    ("clear_bhb_loops", "CPUs run it on their way into or out of"),
    ("lstar_enter", "CPUs run it on their way into or out of"),
    ("kexec_reloc", "kexec copies it"),
];
/// Those that only Xen on ARM64 has.
pub(super) const ON_ARM64: &[(&str, &str)] = &[
    ("do_trap_hyp_serror", "SErrors run it"),
    ("ticks_to_ns", "it runs while the code is being patched"),
];

/// Payloads that patch such functions, which no generator would make.
pub(super) fn functions_on_the_deny_list_are_refused(
    host: &mut Host,
    base: &Base,
    denied: &[(&str, &str)],
) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let payload = directory.path().join("denied.livepatch");
    let patch = example(base, "extra-version")?;
    build(base, &patch, &payload)?;
    let mut payload = std::fs::read(payload)?;
    let records = {
        let file = object::File::parse(payload.as_slice())?;
        let section = file.section_by_name(".livepatch.funcs");
        let range = section.and_then(|section| section.file_range());
        range.context("there are no records")?.0
    };
    let old_addr = usize::try_from(records)? + offset_of!(LivepatchFunc, old_addr);
    let image = Image::parse(&std::fs::read(&base.xen_syms)?)?;
    for (function, reason) in denied {
        let addr = image
            .lookup_symbol(function.as_bytes())
            .with_context(|| (*function).to_owned())?;
        let field = payload.get_mut(old_addr..old_addr + 8);
        field
            .context("no record")?
            .copy_from_slice(&addr.to_le_bytes());
        let file = format!("/lab/{function}.livepatch");
        host.put(&file, &payload)?;
        let output = host.run(&["xsplice", "upload", function, &file])?;
        ensure!(
            output.code == Some(1) && output.stderr.contains("not permitted"),
            "{function}: {output:?}"
        );
        let console = host.console();
        let title = format!("livepatch: {function} was not loaded (EPERM)");
        let lines = console.lines().skip_while(|line| !line.contains(&title));
        let reason = format!("must not be patched: {reason}");
        ensure!(
            lines.take(12).any(|line| line.contains(&reason)),
            "{function}: {console}"
        );
        let [report] = check(&image, &[("denied", &payload)])
            .try_into()
            .map_err(|_| anyhow::anyhow!("one report"))?;
        let refused =
            |problem: &Problem| problem.errno == "EPERM" && problem.message.contains(&reason);
        ensure!(
            report.problems.iter().any(refused),
            "{function}: {report:?}"
        );
    }
    Ok(())
}
