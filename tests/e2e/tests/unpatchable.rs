// SPDX-License-Identifier: MIT OR Apache-2.0
//! The deny-list, and what a hypervisor trusts, checked on the symbols and the code
//! of real ones: the list names functions that exist, is complete, and is consulted
//! for every byte; features and calls are those of this hypervisor.

use anyhow::{Context as _, bail, ensure};
use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use xsplice_abi::deny::{self, ROOTS, Where, Why};
use xsplice_abi::machine::Machine;
use xsplice_abi::symbol::RuntimeName;
use xsplice_e2e::{
    Base, arm32_base, arm64_base, arm64_rust_base, base, debug_base, repository, rust_base,
};
use xsplice_engine::Region;
use xsplice_host_image::{Image, Part, check};

fn image(base: &Base) -> anyhow::Result<Image> {
    Ok(Image::parse(&std::fs::read(&base.xen_syms)?)?)
}

/// A hypervisor that the list is checked against.
struct Hypervisor {
    file: PathBuf,
    machine: Machine,
    image: Image,
    /// The minor version of its Xen 4.
    minor: u32,
}

impl Hypervisor {
    fn read(file: PathBuf) -> anyhow::Result<Self> {
        let name = file.display().to_string();
        let image = std::fs::read(&file).with_context(|| name.clone())?;
        let image = Image::parse(&image).with_context(|| name.clone())?;
        let minor = minor(&image).with_context(|| name.clone())?;
        ensure!(
            minor >= 17,
            "{name}: 4.{minor} is older than what is supported"
        );
        let machine = Machine::X86_64;
        Ok(Self {
            file,
            machine,
            image,
            minor,
        })
    }

    fn has(&self, name: &str) -> bool {
        self.image.lookup_symbol(name.as_bytes()).is_some()
    }

    /// Why the list denies its function `name`, if so.
    fn reason(&self, name: &str) -> Option<&'static str> {
        deny::reason(self.machine, name)
    }

    /// Whether it has our live-patch core.
    fn is_ours(&self) -> bool {
        self.has("xsplice_now")
    }

    /// Names in the list that should be functions of it but are not.
    fn missing(&self) -> Vec<&'static str> {
        let here = |place| match place {
            Where::Everywhere => true,
            Where::OwnCore => !self.is_ours(),
            Where::OwnCoreSince(first) => !self.is_ours() && self.minor >= first,
            Where::OurCore => self.is_ours(),
            Where::Since(first) => self.minor >= first,
            Where::Some => false,
        };
        let wanted = ROOTS.iter().filter(|root| here(root.place));
        let is_there = |root: &deny::Root| self.image.text_symbols().any(|(_, name)| root.is(name));
        let missing = wanted.filter(|root| !is_there(root)).map(|root| root.name);
        let edges = deny::AREAS.iter().flat_map(|area| area.edges);
        missing
            .chain(edges.filter(|name| !self.has(name)))
            .collect()
    }

    /// Names that it should not have, but has.
    fn unexpected(&self) -> Vec<&'static str> {
        let first = |root: &deny::Root| match root.place {
            Where::Since(first) | Where::OwnCoreSince(first) => first,
            _ => 0,
        };
        let early = ROOTS.iter().filter(|root| self.minor < first(root));
        let is_there = |root: &deny::Root| self.image.text_symbols().any(|(_, name)| root.is(name));
        early
            .filter(|root| is_there(root))
            .map(|root| root.name)
            .collect()
    }

    /// Callers of the code that writes that are not in the list.
    fn callers(&self) -> Vec<&str> {
        let writes = |root: &&deny::Root| {
            root.why == Why::Writes && matches!(root.place, Where::OwnCore | Where::OurCore)
        };
        let is_one = |name: &str| ROOTS.iter().filter(writes).any(|root| root.is(name));
        let text = || self.image.text_symbols();
        let targets = text()
            .filter(|(_, name)| is_one(name))
            .map(|(addr, _)| addr);
        let calls = callers(&self.image, &targets.collect());
        let callers = calls
            .into_iter()
            .filter_map(|at| self.image.function_at(at));
        let callers: BTreeSet<u64> = callers.collect();
        let callers = text().filter(|(addr, _)| callers.contains(addr));
        let unknown = callers.filter(|(_, name)| self.reason(name).is_none());
        unknown.map(|(_, name)| name).collect()
    }

    /// Functions that must not be patched according to its code, but are not in the
    /// list.
    fn unnamed(&self) -> Vec<(u64, &str)> {
        let in_area = |addr: u64| {
            deny::AREAS.iter().any(|area| {
                let edges = area
                    .edges
                    .map(|name| self.image.lookup_symbol(name.as_bytes()));
                matches!(edges, [Some(start), Some(end)] if (start..end).contains(&addr))
            })
        };
        let denied = |addr: u64| self.image.denied(addr..addr + 1).is_some();
        let all = self.image.text_symbols();
        all.filter(|(addr, name)| denied(*addr) && self.reason(name).is_none())
            .filter(|(addr, _)| !in_area(*addr))
            .collect()
    }
}

/// What the code for ARM says is in the list too, and what the list says is denied.
#[test]
fn the_list_is_complete_on_arm64_and_arm32() -> anyhow::Result<()> {
    let mut nowhere: BTreeSet<&str> = deny::of_machine(Machine::Arm64)
        .iter()
        .map(|(name, _)| *name)
        .collect();
    for (machine, base) in [
        (Machine::Arm64, arm64_base()?),
        (Machine::Arm64, arm64_rust_base()?),
        (Machine::Arm32, arm32_base()?),
    ] {
        let hypervisor = Hypervisor {
            machine,
            image: image(&base)?,
            file: base.xen_syms,
            minor: 17,
        };
        let unnamed = hypervisor.unnamed();
        let name = hypervisor.file.display();
        ensure!(unnamed.is_empty(), "{name}: {unnamed:x?}");
        let denied = |name: &str| {
            let addr = hypervisor.image.lookup_symbol(name.as_bytes());
            addr.is_some_and(|addr| hypervisor.image.denied(addr..addr + 4).is_some())
        };
        for name in ["check_for_livepatch_work", "get_s_time", "memcpy"] {
            ensure!(denied(name), "{name} is not denied");
        }
        ensure!(!denied("xen_extra_version"), "it may be patched");
        for (addr, function) in hypervisor.image.text_symbols() {
            let function = RuntimeName::parse(function).name;
            let own = deny::of_machine(machine).iter();
            if own.map(|(name, _)| *name).any(|name| name == function) {
                nowhere.remove(function);
                let denied = hypervisor.image.denied(addr..addr + 4);
                ensure!(
                    denied.is_some(),
                    "{}: {function} is not denied",
                    hypervisor.file.display()
                );
            }
        }
    }
    ensure!(nowhere.is_empty(), "in none of them: {nowhere:?}");
    Ok(())
}

/// Xen's own core writes to them outside of its mapping; ours maps them.
#[test]
fn functions_of_payloads_are_denied_on_arm64_without_our_core() -> anyhow::Result<()> {
    for (base, expected) in [(arm64_base()?, true), (arm64_rust_base()?, false)] {
        let image = image(&base)?;
        let start = image.lookup_symbol(b"_start").context("_start")?;
        // Where Xen 4.17 has its payloads.
        let payload = start + (8 << 20);
        let denied = image.denied(payload..payload + 4);
        ensure!(denied.is_some() == expected, "{base:?}: {denied:?}");
    }
    Ok(())
}

/// Addresses of calls and jumps to one of `targets`.
fn callers<'i>(image: &'i Image, targets: &BTreeSet<u64>) -> Vec<u64> {
    let text = image.sections().filter(|part| part.region == Region::Text);
    let calls = |part: Part<'i>| {
        let places = (part.range.start..).zip(part.data.windows(5));
        places.filter_map(|(at, code)| match code {
            [0xe8 | 0xe9, offset @ ..] => {
                let offset = i32::from_le_bytes(offset.try_into().ok()?);
                Some((at, (at + 5).wrapping_add_signed(offset.into())))
            }
            _ => None,
        })
    };
    let calls = text.flat_map(calls);
    calls
        .filter(|(_, to)| targets.contains(to))
        .map(|(at, _)| at)
        .collect()
}

/// The minor version of a Xen 4: the number that its function for that returns.
fn minor(image: &Image) -> anyhow::Result<u32> {
    const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
    const NO_OP: [u8; 4] = [0x66, 0x0f, 0x1f, 0x01];
    let at = image.lookup_symbol(b"xen_minor_version");
    let at = at.context("it has no xen_minor_version")?;
    let mut code = [0; 9];
    ensure!(image.read(at, &mut code), "xen_minor_version is not in it");
    let [a, b, c, d, rest @ ..] = code;
    let start = if [ENDBR64, NO_OP].contains(&[a, b, c, d]) {
        rest
    } else {
        [a, b, c, d, rest[0]]
    };
    // mov $N, %eax
    let [0xb8, number @ ..] = start else {
        bail!("xen_minor_version does not begin with a number: {code:02x?}");
    };
    Ok(u32::from_le_bytes(number))
}

/// Debian's Xen, the same with our core, a debug build of that, and the `xen-syms`
/// files of other versions in the directory that `XSPLICE_XEN_SYMS` names.
fn hypervisors() -> anyhow::Result<Vec<Hypervisor>> {
    let mut files = vec![
        base()?.xen_syms,
        rust_base()?.xen_syms,
        debug_base()?.xen_syms,
    ];
    if let Some(directory) = std::env::var_os("XSPLICE_XEN_SYMS") {
        let directory = Path::new(&directory);
        let entries = std::fs::read_dir(directory)
            .with_context(|| format!("XSPLICE_XEN_SYMS: {}", directory.display()))?;
        let known = files.len();
        for entry in entries {
            files.push(entry?.path());
        }
        ensure!(
            files.len() > known,
            "XSPLICE_XEN_SYMS: {} is empty",
            directory.display()
        );
    }
    files.into_iter().map(Hypervisor::read).collect()
}

#[test]
fn the_list_names_functions_of_the_hypervisor() -> anyhow::Result<()> {
    let all = hypervisors()?;
    let mut wrong = Vec::new();
    for one in &all {
        let (missing, unexpected, callers) = (one.missing(), one.unexpected(), one.callers());
        let unnamed = one.unnamed();
        let line = format!("{} (4.{})\n", one.file.display(), one.minor);
        std::io::stderr().write_all(line.as_bytes())?;
        if !missing.is_empty() {
            wrong.push(format!("{line}  no functions: {missing:?}"));
        }
        if !unexpected.is_empty() {
            wrong.push(format!(
                "{line}  are there before their version: {unexpected:?}"
            ));
        }
        if !callers.is_empty() {
            wrong.push(format!(
                "{line}  call what writes, and are not in the list: {callers:?}"
            ));
        }
        // The running hypervisor has the names only.
        if !unnamed.is_empty() {
            let some = &unnamed[..unnamed.len().min(20)];
            let all = unnamed.len();
            wrong.push(format!("{line}  not in the list, {all} in all: {some:x?}"));
        }
    }
    let names: BTreeSet<&str> = all
        .iter()
        .flat_map(|one| one.image.text_symbols())
        .map(|(_, name)| name.split('.').next().unwrap_or_default())
        .collect();
    let some = ROOTS.iter().filter(|root| root.place == Where::Some);
    let some = some.map(|root| root.name).chain(deny::called());
    // Or where this compiler inlines it.
    let source = std::fs::read_to_string(base()?.tree.join("xen/common/livepatch.c"))?;
    let inlined = |name: &str| source.contains(&format!(" {name}("));
    let nowhere = some.filter(|name| !names.contains(name) && !inlined(name));
    let nowhere: Vec<&str> = nowhere.collect();
    if !nowhere.is_empty() {
        wrong.push(format!("in none of them: {nowhere:?}"));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
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
fn the_list_is_consulted_for_every_patched_byte() -> anyhow::Result<()> {
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
            "copied code",
            record(at("kexec_reloc")? + 16, false),
            "kexec copies it",
        ),
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

/// The problems of an alternative with this feature for an indirect call.
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
fn alternatives_are_checked_against_this_hypervisor() -> anyhow::Result<()> {
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
