// SPDX-License-Identifier: MIT OR Apache-2.0

//! Compiles the hypervisor and its payloads, which are embedded in the library.

use object::{Object as _, ObjectSymbol as _, SymbolKind};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Payloads: source, identification, what it depends on, further definitions.
const PAYLOADS: [(&str, &str, &str, &[&str]); 4] = [
    ("grant", "0xb1", "0xaa", &[]),
    ("version", "0xb2", "0xb1", &[]),
    ("hooked", "0xb4", "0xaa", &["-DHOOKS"]),
    ("cumulative", "0xb3", "0xaa", &[]),
];
/// Position-independent, so that it can be linked and loaded anywhere; an unmodified
/// Xen supports all relocations that remain.
const CODE: [&str; 6] = [
    "-O2",
    "-ffreestanding",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=hypervisor");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("no OUT_DIR")?);
    let image = out.join("hypervisor");
    // An address range that neither the process nor AddressSanitizer's shadow uses.
    let link = [
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,-e,hypercall,-Ttext-segment=0x200000000000,-z,separate-code",
        // Nothing of it is freed after boot.
        "-Wl,--defsym=__init_begin=0,--defsym=__init_end=0",
        &format!("-Wl,--build-id=0x{}", "aa".repeat(20)),
    ];
    cc("hypervisor.c", &image, &link)?;
    let hypervisor = sizes(&image)?;
    for (name, id, depends, more) in PAYLOADS {
        let object = out.join(format!("{name}.livepatch"));
        let source = match name {
            "hooked" => "version.c".to_owned(),
            name => format!("{name}.c"),
        };
        let mut flags = vec!["-c".to_owned()];
        flags.extend([format!("-DBUILD_ID={id}"), format!("-DDEPENDS={depends}")]);
        flags.extend(more.iter().map(|flag| (*flag).to_owned()));
        // Once for the sizes of the new functions, and then with them.
        cc(&source, &object, &flags)?;
        flags.extend(hypervisor.iter().cloned());
        flags.extend(sizes(&object)?);
        cc(&source, &object, &flags)?;
    }
    Ok(())
}

fn cc<S: AsRef<str>>(source: &str, output: &Path, flags: &[S]) -> Result<(), Box<dyn Error>> {
    let (compiler, options) = compiler();
    let mut command = Command::new(compiler);
    command
        .args(options)
        .args(CODE)
        .args(flags.iter().map(AsRef::as_ref));
    command.arg("-o").arg(output);
    command.arg(Path::new("hypervisor").join(source));
    let status = command
        .status()
        .map_err(|error| format!("a C compiler is needed, as `{compiler}`: {error}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{command:?} failed").into())
    }
}

/// The C compiler for the machine that the library is for, and its options.
fn compiler() -> (&'static str, &'static [&'static str]) {
    let variable = |name| std::env::var(name).unwrap_or_default();
    let program = match variable("TARGET") == variable("HOST") {
        true => "cc",
        false => "aarch64-linux-gnu-gcc",
    };
    match variable("CARGO_CFG_TARGET_ARCH").as_str() {
        // There is no library that has functions for atomic accesses.
        "aarch64" => (program, &["-mno-outline-atomics"]),
        _ => (program, &[]),
    }
}

/// Definitions of `SIZE_f` for all functions f.
fn sizes(object: &Path) -> Result<Vec<String>, Box<dyn Error>> {
    let file = std::fs::read(object)?;
    let file = object::File::parse(&*file)?;
    let functions = file.symbols().filter(|s| s.kind() == SymbolKind::Text);
    Ok(functions
        .filter_map(|s| Some(format!("-DSIZE_{}={}", s.name().ok()?, s.size())))
        .collect())
}
