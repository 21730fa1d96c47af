// SPDX-License-Identifier: MIT OR Apache-2.0
//! A second, unprivileged domain on the hypervisor with our core: it may make
//! unprivileged queries, and must not patch.
//!
//! It is a PV domain with dom0's kernel. `domu/start-domain.c` starts it with Xen's
//! library, because the lab's dom0 has no toolstack.

use anyhow::{Context as _, ensure};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use xsplice_abi::errno::Errno;
use xsplice_e2e::{Base, config, rust_base};
use xsplice_lab::Host;
use xsplice_lab::initramfs::Initramfs;

/// Path of the driver in the domain.
const PRIVCMD: &str = "xen-privcmd.ko";

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {output:?}");
    Ok(())
}

/// Compiles the program that starts a domain, with the headers and libraries of
/// Debian's Xen.
fn start_domain(base: &Base, directory: &Path) -> anyhow::Result<PathBuf> {
    let public = base.tree.join("xen/include/public");
    let headers = directory.join("include/xen");
    let foreign = headers.join("foreign");
    std::fs::create_dir_all(&foreign)?;
    for entry in std::fs::read_dir(&public)? {
        let entry = entry?;
        symlink(entry.path(), headers.join(entry.file_name()))?;
    }
    let tools = base.tree.join("tools/include");
    for architecture in ["x86_32", "x86_64"] {
        let own = format!("arch-x86/xen-{architecture}.h");
        let from = [own.as_str(), "arch-x86/xen.h", "xen.h"].map(|name| public.join(name));
        // The output contains its own name.
        run(Command::new("python3")
            .current_dir(&foreign)
            .arg(tools.join("xen-foreign/mkheader.py"))
            .arg(architecture)
            .arg(format!("{architecture}.h"))
            .args(from))?;
    }
    let program = directory.join("start-domain");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/domu/start-domain.c");
    let libraries = base.libraries.first().context("no libraries")?;
    let mut libraries: Vec<PathBuf> = std::fs::read_dir(libraries)?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    libraries.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("libxenctrl.so.") || name.starts_with("libxenguest.so.")
    });
    run(Command::new("gcc")
        .args(["-Wall", "-Werror", "-D__XEN_TOOLS__", "-o"])
        .arg(&program)
        .arg("-I")
        .arg(&tools)
        .arg("-I")
        .arg(directory.join("include"))
        .arg(source)
        .args(libraries)
        .arg("-Wl,--allow-shlib-undefined"))?;
    Ok(program)
}

#[test]
fn an_unprivileged_domain_cannot_patch() -> anyhow::Result<()> {
    let base = rust_base()?;
    let directory = tempfile::tempdir()?;
    let mut guest = Initramfs::default();
    guest.directory("dev");
    guest.file(
        "init",
        0o755,
        &std::fs::read(env!("CARGO_BIN_EXE_in-domu"))?,
    );
    guest.file(PRIVCMD, 0o644, &std::fs::read(&base.privcmd)?);
    let initramfs = directory.path().join("guest");
    std::fs::write(&initramfs, guest.finish())?;

    let mut config = config(&base)?;
    let program = start_domain(&base, directory.path())?;
    config
        .programs
        .push(("bin/start-domain".to_owned(), program));
    config
        .files
        .push(("lab/kernel".to_owned(), base.kernel.clone()));
    config.files.push(("lab/guest".to_owned(), initramfs));
    let mut host = Host::boot(&config)?;
    let output = host.run(&[
        "start-domain",
        "/lab/kernel",
        "/lab/guest",
        "console=hvc0 rdinit=/init quiet",
    ])?;
    ensure!(output.code == Some(0), "{output:?}\n{}", host.console());
    let refused = format!("domu: live patching Err({})", Errno::EPERM.0);
    // The answer to the first shows that the hypervisor itself refuses the second.
    for line in ["domu: version Ok(", &refused] {
        ensure!(output.stdout.contains(line), "{output:?}");
    }
    host.shut_down()?;
    Ok(())
}
