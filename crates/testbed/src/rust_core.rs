// SPDX-License-Identifier: MIT OR Apache-2.0

//! The Rust part of the hypervisor as one object that Xen's build can link.
//!
//! Debian's compiler is used, because Debian has the source of its `core` and
//! `alloc` too: they are compiled with Xen's hardening like everything else.

mod arm32;
mod arm64;
mod x86_64;

use crate::Machine;
use crate::{cache, command, packages};
use anyhow::bail;
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SectionFlags, SymbolKind, elf};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

const RUSTC: &str = "/usr/bin/rustc";
const CARGO: &str = "/usr/bin/cargo";

/// How the object is made for one machine.
struct Target {
    /// The shim's directory for it.
    shim: &'static str,
    /// The compiler's target, or the file that describes it.
    target: &'static str,
    /// The directory that the compiler puts its results into.
    directory: &'static str,
    /// The kind of the cache entry with `core` and `alloc`, and what it depends on.
    cached: (&'static str, &'static str),
    /// Code generation.
    code: &'static [&'static str],
    /// The linker, its format, and the program that removes symbols.
    link: [&'static str; 2],
    objcopy: &'static str,
    /// The symbols that the shim calls on this machine only.
    entries: &'static [&'static str],
    /// The relocations that Xen's link can perform.
    relocations: &'static [elf::RelocationType],
    /// The first instruction that must not be in Xen.
    foreign: fn(&[u8]) -> Option<(u64, String)>,
    /// The packages that it needs besides [`packages::RUST`].
    packages: &'static [&'static str],
}

/// How the object is made for a machine.
const fn target(machine: Machine) -> &'static Target {
    match machine {
        Machine::X86_64 => &x86_64::TARGET,
        Machine::Arm64 => &arm64::TARGET,
        Machine::Arm32 => &arm32::TARGET,
    }
}

/// The name of the shim's directory for a machine.
pub(crate) const fn shim(machine: Machine) -> &'static str {
    target(machine).shim
}

/// The symbols that the shim always calls; the rest of the library is linked only if
/// they need it.
const ENTRIES: [&str; 11] = [
    "xsplice_action",
    "xsplice_check",
    "xsplice_count",
    "xsplice_cpu_offline",
    "xsplice_cpu_online",
    "xsplice_get",
    "xsplice_init",
    "xsplice_list",
    "xsplice_run",
    "xsplice_show",
    "xsplice_upload",
];

/// The symbol that it calls to load microcode, and the feature that has it.
const MICROCODE: &str = "xsplice_microcode";
const FEATURE: &str = "microcode";

/// The symbol at the start of all code but the entries.
const REST: &str = "xsplice_core";

/// The entries, each under its own name, then the rest. Xen does not unwind.
const LAYOUT: &str = "SECTIONS {
  .text : { *(.text.xsplice_*) xsplice_core = .; *(.text .text.*) }
  /DISCARD/ : { *(.ARM.exidx* .ARM.extab*) }
}
";

/// Xen's symbol table stores the length of a name, compressed, in one byte.
const LONGEST_NAME: usize = 110;

/// Limit for the stack frame of one function, in bytes: Xen's stack has 8192, a
/// hypercall already uses some of it, and calls nest.
const LARGEST_FRAME: u32 = 1536;

/// Builds the object, which can load `microcode`, or only live-patch; returns its path.
pub fn object(machine: Machine, microcode: bool) -> anyhow::Result<PathBuf> {
    let made = target(machine);
    packages::ensure(packages::RUST)?;
    packages::ensure(made.packages)?;
    let sysroot = sysroot(made)?;
    println!("building the engine for Xen on {machine}");
    let target = Path::new("target/xen").to_owned();
    std::fs::create_dir_all(&target)?;
    let target = target.canonicalize()?;
    let mut flags = vec![format!("--sysroot={}", sysroot.display())];
    flags.extend(made.code.iter().map(|&flag| flag.to_owned()));
    // The other implementations use registers that Xen does not save.
    flags.extend(
        [
            "--cfg=sha2_backend=\"soft\"",
            "--cfg=sha2_backend_soft=\"compact\"",
        ]
        .map(str::to_owned),
    );
    command::output(
        Command::new(CARGO)
            .args([
                "rustc",
                "--locked",
                "--package",
                "xsplice-host-xen",
                "--lib",
            ])
            .args(["--profile", "xen", "--crate-type", "staticlib"])
            .args(["--features", if microcode { FEATURE } else { "" }])
            .args([
                "-Zjson-target-spec",
                "--target",
                made.target,
                "--target-dir",
            ])
            .arg(&target)
            // Panic messages contain paths as `crate-version/src/file.rs`.
            .args(["-Ztrim-paths", "--config", "profile.xen.trim-paths='all'"])
            .env("RUSTC", RUSTC)
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            .env_remove("RUSTUP_TOOLCHAIN"),
    )?;
    let built = target.join(made.directory);
    let object = match machine {
        Machine::X86_64 => target.join("livepatch-core.o"),
        Machine::Arm64 | Machine::Arm32 => built.join("livepatch-core.o"),
    };
    let mut entries = [&ENTRIES, made.entries].concat();
    entries.extend(microcode.then_some(MICROCODE));
    let library = built.join("xen/libxsplice_host_xen.a");
    prelink(made, &library, &object, &entries)?;
    check(made, &object)?;
    Ok(object)
}

/// `core` and `alloc` for Xen.
fn sysroot(target: &Target) -> anyhow::Result<PathBuf> {
    let version = command::output(Command::new(RUSTC).arg("--version"))?;
    let version = version.split(' ').nth(1).unwrap_or_default().to_owned();
    let (kind, recipe) = target.cached;
    cache::entry(kind, &version, recipe, |directory| {
        println!("compiling Rust {version}'s core and alloc for Xen");
        let library = PathBuf::from(format!("/usr/src/rustc-{version}/library"));
        let output = directory.join(format!("lib/rustlib/{}/lib", target.directory));
        std::fs::create_dir_all(&output)?;
        // Xen provides mem* itself; compiler_builtins stays empty.
        let builtins = directory.join("compiler_builtins.rs");
        let text = "#![feature(compiler_builtins)]\n#![compiler_builtins]\n#![no_std]\n";
        std::fs::write(&builtins, text)?;
        for (name, source) in [
            ("core", library.join("core/src/lib.rs")),
            ("compiler_builtins", builtins),
            ("alloc", library.join("alloc/src/lib.rs")),
        ] {
            command::output(
                Command::new(RUSTC)
                    .args(target.code)
                    .args([
                        "--target",
                        target.target,
                        "--edition=2024",
                        "--crate-type=rlib",
                    ])
                    .args(["-Copt-level=s", "-Ccodegen-units=1", "-Cpanic=abort"])
                    .args(["--cap-lints=allow", "-Cembed-bitcode=yes"])
                    // Build alloc without the infallible (aborting) allocation paths.
                    .args(["--cfg", "no_global_oom_handling"])
                    // Smaller code for sorting and searching.
                    .args(["--cfg", "feature=\"optimize_for_size\""])
                    .arg(format!("--remap-path-prefix={}=library", library.display()))
                    .args(["--crate-name", name, "-Cextra-filename=-xen"])
                    .arg(format!("--sysroot={}", directory.display()))
                    .arg("--out-dir")
                    .arg(&output)
                    .arg(source)
                    .env("RUSTC_BOOTSTRAP", "1"),
            )?;
        }
        Ok(())
    })
}

/// Links the library into one object that exports only the entries: the other names
/// would take a tenth of its size. A call trace shows them as
/// `xsplice_core+offset`, which the object `….names.o` beside it resolves.
fn prelink(target: &Target, library: &Path, object: &Path, entries: &[&str]) -> anyhow::Result<()> {
    let script = object.with_extension("lds");
    std::fs::write(&script, LAYOUT)?;
    let (whole, names) = (
        object.with_extension("whole.o"),
        object.with_extension("names.o"),
    );
    for (output, locals) in [(&names, None), (&whole, Some("--discard-all"))] {
        let [linker, format] = target.link;
        let mut link = Command::new(linker);
        link.args(["-m", format, "-r", "--gc-sections"]);
        link.args(locals).arg("-T").arg(&script);
        link.arg("-o").arg(output);
        for entry in entries {
            link.args(["-u", entry]);
        }
        command::output(link.arg(library))?;
    }
    let shown = entries.iter().chain([&REST]);
    let keep = shown.map(|symbol| format!("--keep-global-symbol={symbol}"));
    let objcopy = || Command::new(target.objcopy);
    command::output(objcopy().args(keep).arg(&whole))?;
    command::output(
        objcopy()
            .args(["--strip-unneeded", "-R", ".comment", "-R", ".eh_frame"])
            .args(["-R", ".note.gnu.property"])
            .args([&whole, object]),
    )?;
    // Those that are left are what relocations refer to.
    let names = object.with_extension("redefined");
    std::fs::write(&names, hidden(object)?)?;
    let redefined = format!("--redefine-syms={}", names.display());
    command::output(objcopy().arg(redefined).arg(object))?;
    Ok(())
}

/// New names for the local symbols of an object: Xen's symbol table leaves out those that
/// begin with `$`. The linker drops those that begin with `.L` in sections that it merges.
fn hidden(path: &Path) -> anyhow::Result<String> {
    let data = std::fs::read(path)?;
    let file = object::File::parse(data.as_slice())?;
    let symbols = file.symbols().filter(|symbol| {
        let named = symbol.kind() != SymbolKind::Section && symbol.kind() != SymbolKind::File;
        let dropped = symbol.name().is_ok_and(|name| name.starts_with(".L"))
            && symbol
                .section_index()
                .and_then(|index| file.section_by_index(index).ok())
                .is_some_and(|section| is_merged(section.flags()));
        named && symbol.is_local() && symbol.is_definition() && !dropped
    });
    let names = symbols.map(|symbol| symbol.name());
    let names = names.collect::<Result<BTreeSet<_>, _>>()?;
    let names = names.into_iter().filter(|name| !name.starts_with('$'));
    let lines = names.enumerate();
    Ok(lines.map(|(n, name)| format!("{name} $L{n}\n")).collect())
}

/// Whether the linker keeps one of equal constants.
fn is_merged(flags: SectionFlags) -> bool {
    matches!(flags, SectionFlags::Elf { sh_flags, .. } if sh_flags.contains(elf::SHF_MERGE))
}

/// Refuses code that must not get into the hypervisor, and lists all of it.
fn check(target: &Target, path: &Path) -> anyhow::Result<()> {
    let data = std::fs::read(path)?;
    let file = object::File::parse(data.as_slice())?;
    let mut problems = BTreeSet::new();
    for section in file.sections() {
        let name = section.name()?;
        let SectionFlags::Elf {
            sh_flags: flags, ..
        } = section.flags()
        else {
            bail!("{} is no ELF file", path.display());
        };
        let both = elf::SHF_WRITE | elf::SHF_EXECINSTR;
        if flags.contains(both) {
            problems.insert(format!("section {name} is writable and executable"));
        }
        for (_, relocation) in section.relocations() {
            let object::RelocationFlags::Elf { r_type } = relocation.flags() else {
                continue;
            };
            if !target.relocations.contains(&r_type) {
                problems.insert(format!(
                    "section {name} has a relocation of type {r_type:?}"
                ));
            }
        }
        if let Some(path) = absolute_path(section.data()?) {
            problems.insert(format!(
                "section {name} contains {path}, a path of this machine"
            ));
        }
        if flags.contains(elf::SHF_EXECINSTR) {
            let foreign = (target.foreign)(section.data()?);
            problems.extend(foreign.map(|(at, text)| {
                format!("section {name}+{at:#x}: {text} must not be used in Xen")
            }));
        }
    }
    for symbol in file.symbols() {
        let name = symbol.name()?;
        if name.len() > LONGEST_NAME {
            problems.insert(format!("symbol {name} is too long for Xen's table"));
        }
    }
    if !problems.is_empty() {
        let problems: Vec<String> = problems.into_iter().collect();
        bail!(
            "the Rust object is not fit for Xen:\n{}",
            problems.join("\n")
        );
    }
    Ok(())
}

/// An absolute path of a source file in the texts of panics.
fn absolute_path(data: &[u8]) -> Option<String> {
    const SOURCE: &[u8] = b".rs";
    let in_path = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-+@".contains(byte);
    let mut ends = (0..data.len()).filter(|at| data[*at..].starts_with(SOURCE));
    ends.find_map(|end| {
        let start = data[..end].iter().rposition(|byte| !in_path(byte));
        let path = &data[start.map_or(0, |at| at + 1)..end + SOURCE.len()];
        (path.first() == Some(&b'/')).then(|| String::from_utf8_lossy(path).into_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absolute_paths_of_sources_are_found_among_other_texts() {
        let relative = b"a/b must not be\0crates/engine/src/elf.rs\x01 /: sha2-0.11/src/lib.rs";
        assert_eq!(absolute_path(relative), None);
        for path in ["/usr/src/rustc/library/core/src/a.rs", "/a.rs"] {
            let text = format!("library/core/src/cell.rs\0 {path}not found");
            assert_eq!(absolute_path(text.as_bytes()).as_deref(), Some(path));
        }
    }
}
