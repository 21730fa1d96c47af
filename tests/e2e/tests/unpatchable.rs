// SPDX-License-Identifier: MIT OR Apache-2.0
//! What must not be patched, and what a hypervisor trusts, on the symbols and the
//! code of real ones: the list names functions that they have, is complete, and is
//! asked about every byte; features and calls are those of this very hypervisor.

use anyhow::{Context as _, ensure};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use xsplice_abi::deny::{self, ROOTS, Where};
use xsplice_e2e::{Base, base, repository, rust_base};
use xsplice_host_image::{Image, check};

fn image(base: &Base) -> anyhow::Result<Image> {
    Ok(Image::parse(&std::fs::read(&base.xen_syms)?)?)
}

/// The minor version of the Xen of this tree.
fn minor(tree: &Path) -> anyhow::Result<u32> {
    let makefile = std::fs::read_to_string(tree.join("xen/Makefile"))?;
    let mut lines = makefile.lines().filter_map(|line| line.split_once('='));
    let (_, minor) = lines
        .find(|(name, _)| {
            name.trim_end_matches([' ', ':', '?'])
                .ends_with("XEN_SUBVERSION")
        })
        .context("the makefile has no minor version")?;
    Ok(minor.trim().parse()?)
}

/// The names in the list that should be functions of the hypervisor and are not.
fn missing(image: &Image, minor: u32, ours: bool) -> Vec<&'static str> {
    let here = |place| match place {
        Where::Everywhere => true,
        Where::OwnCore => !ours,
        Where::OurCore => ours,
        Where::Since(first) => minor >= first,
        Where::Some => false,
    };
    let wanted = ROOTS.iter().filter(|root| here(root.place));
    let is_there = |root: &deny::Root| image.text_symbols().any(|(_, name)| root.is(name));
    wanted
        .filter(|root| !is_there(root))
        .map(|root| root.name)
        .collect()
}

#[test]
fn the_list_names_functions_of_the_hypervisor() -> anyhow::Result<()> {
    let (own, ours) = (base()?, rust_base()?);
    let minor = minor(&own.tree)?;
    let images = [image(&own)?, image(&ours)?];
    for (image, is_ours) in images.iter().zip([false, true]) {
        let missing = missing(image, minor, is_ours);
        ensure!(missing.is_empty(), "no functions: {missing:?}");
    }
    let names: BTreeSet<&str> = images
        .iter()
        .flat_map(Image::text_symbols)
        .map(|(_, name)| name.split('.').next().unwrap_or_default())
        .collect();
    let some = ROOTS.iter().filter(|root| root.place == Where::Some);
    for name in some.map(|root| root.name).chain(deny::called()) {
        ensure!(names.contains(name), "{name} is in neither hypervisor");
    }
    Ok(())
}

/// The running hypervisor has the names only. Whatever the code of the image says
/// beyond the roots must be among them.
#[test]
fn the_list_has_what_the_code_calls() -> anyhow::Result<()> {
    for base in [base()?, rust_base()?] {
        let image = image(&base)?;
        let unnamed: Vec<_> = image
            .text_symbols()
            .filter(|(addr, name)| {
                let why = image.denied(*addr..addr + 1);
                why.is_some_and(|why| why != deny::ENTRY) && deny::reason(name).is_none()
            })
            .collect();
        ensure!(unnamed.is_empty(), "{unnamed:x?}");
    }
    Ok(())
}

/// A payload with one record.
fn payload(image: &Image, define: &[String]) -> anyhow::Result<Vec<u8>> {
    let directory = tempfile::tempdir()?;
    let output = directory.path().join("payload");
    let id: Vec<String> = image.build_id().iter().map(u8::to_string).collect();
    let id = id.join(",");
    let status = Command::new("gcc")
        .arg("-c")
        .args(["-DOWN_BYTE=1".to_owned(), format!("-DDEPENDS_ID={id}")])
        .args([format!("-DXEN_ID={id}"), "-DCALLEE=printk".to_owned()])
        .args(define)
        .arg("-o")
        .arg(&output)
        .arg(repository().join("crates/host-image/tests/fixture/payload.S"))
        .status()?;
    ensure!(status.success(), "gcc: {status}");
    Ok(std::fs::read(output)?)
}

#[test]
fn every_patched_byte_is_asked_about() -> anyhow::Result<()> {
    let base = base()?;
    let image = image(&base)?;
    let at = |name: &str| {
        image
            .lookup_symbol(name.as_bytes())
            .context(name.to_owned())
    };
    let record = |addr: u64, no_ops: bool| {
        let mut define = vec![format!("-DOLD_ADDR={addr:#x}"), "-DNEW_SIZE=13".to_owned()];
        if no_ops {
            define.push("-DNEW_ADDR=0".to_owned());
        }
        define
    };
    let edge = "CPUs run it on their way into or out of the hypervisor";
    for (what, define, reason) in [
        ("padding", record(at("do_nmi")? - 12, true), "NMIs"),
        ("a jump", record(at("do_nmi")? - 4, false), "NMIs"),
        ("its middle", record(at("do_nmi")? + 16, false), "NMIs"),
        ("entry code", record(at("clear_bhb_loops")?, false), edge),
        (
            "the return thunk",
            record(at("__x86_return_thunk")?, false),
            edge,
        ),
    ] {
        let payload = payload(&image, &define)?;
        let report = check(&image, &[("payload", &payload)])
            .pop()
            .context(what)?;
        let refused = report.problems.iter().any(|problem| {
            problem.errno == "EPERM"
                && problem.message.contains("must not be patched")
                && problem.message.contains(reason)
        });
        ensure!(!report.loads && refused, "{what}: {report:#?}");
    }
    Ok(())
}

/// What is wrong with an alternative of this feature for a call through a pointer.
fn problems(image: &Image, feature: u16, pointer: &str) -> anyhow::Result<String> {
    let old_addr = image.lookup_symbol(b"xen_extra_version");
    let define = [
        format!("-DOLD_ADDR={:#x}", old_addr.context("xen_extra_version")?),
        format!("-DFEATURE={feature}"),
        format!("-DPOINTER={pointer}"),
    ];
    let payload = payload(image, &define)?;
    let report = check(image, &[("payload", &payload)]).pop();
    let problems = report.context("no report")?.problems.into_iter();
    let all: Vec<String> = problems.map(|problem| problem.message).collect();
    Ok(all.join("; "))
}

/// The number that a header of the tree defines.
fn defined(tree: &Path, header: &str, name: &str) -> anyhow::Result<u16> {
    let text = std::fs::read_to_string(tree.join("xen").join(header))?;
    let prefix = format!("#define {name} ");
    let mut values = text.lines().filter_map(|line| line.strip_prefix(&prefix));
    let value = values.next().with_context(|| name.to_owned())?;
    Ok(value.trim().parse()?)
}

#[test]
fn alternatives_are_held_against_this_hypervisor() -> anyhow::Result<()> {
    let base = base()?;
    let image = image(&base)?;
    let limits = image.limits();
    let features = "arch/x86/include/asm/cpufeatures.h";
    let words = defined(
        &base.tree,
        "include/xen/lib/x86/cpuid-autogen.h",
        "FEATURESET_NR_ENTRIES",
    )? + defined(&base.tree, features, "X86_NR_SYNTH")?
        + defined(&base.tree, features, "X86_NR_BUG")?;
    ensure!(limits.features == 32 * words, "{limits:?}, {words} words");
    let always = limits.always.context("no call becomes direct")?;
    for (feature, pointer) in [(always, "printk"), (always, "0")] {
        let found = problems(&image, feature, pointer)?;
        ensure!(found.is_empty(), "{feature}, {pointer}: {found}");
    }
    for (feature, pointer, words) in [
        (limits.features, "printk", "processor feature"),
        (0x7fff, "printk", "processor feature"),
        (always, "0x1000", "leads to no code"),
        (always, "saved_cmdline", "leads to no code"),
        (always - 1, "printk", "a branch to itself"),
    ] {
        let found = problems(&image, feature, pointer)?;
        ensure!(found.contains(words), "{feature}, {pointer}: {found:?}");
    }
    Ok(())
}
