// SPDX-License-Identifier: MIT OR Apache-2.0
//! A host with a store of its own: the levels in it are payloads with a signed manifest.

use crate::{Base, config, local, repository, settled, told};
use anyhow::ensure;
use serde_json::Value;
use std::path::Path;
use xsplice_lab::Host;

/// Boots a host that has, to install, Xen's own test payloads `names` as levels from 1 on,
/// signed by a key that it trusts; and `in-dom0`.
///
/// # Errors
/// If it does not boot.
pub fn host_with_levels(base: &Base, names: &[&str], in_dom0: &Path) -> anyhow::Result<Host> {
    let directory = tempfile::tempdir()?;
    let mut config = config(base)?;
    for (index, name) in names.iter().enumerate() {
        let file = format!("fixes-{}.livepatch", index + 1);
        let path = directory.path().join(&file);
        std::fs::copy(base.test_payloads.join(name), &path)?;
        sign(&path, index + 1)?;
        for end in ["", ".json", ".json.sig"] {
            let file = format!("{file}{end}");
            config
                .files
                .push((format!("new/{file}"), directory.path().join(file)));
        }
    }
    let key = repository().join("tests/keys/trusted/vendor.pem");
    config
        .files
        .push(("etc/xsplice/keys.d/vendor.pem".to_owned(), key));
    config
        .programs
        .push(("bin/in-dom0".to_owned(), in_dom0.to_owned()));
    Ok(Host::boot(&config)?)
}

/// Writes the manifest of the payload at `path`, which a key has signed; with the payload's
/// own signature, which stock Xen ignores.
///
/// # Errors
/// If it is refused.
pub fn sign(path: &Path, level: usize) -> anyhow::Result<()> {
    let key = repository().join("tests/keys/vendor.key");
    let (path, key) = (path.display().to_string(), key.display().to_string());
    let level = level.to_string();
    let signed = local(&["sign", "--key", &key, &path, "--level", &level])?;
    ensure!(signed.status.success(), "{signed:?}");
    Ok(())
}

/// Puts a level into the store.
///
/// # Errors
/// If it is refused.
pub fn install(host: &mut Host, level: u32) -> anyhow::Result<()> {
    let file = format!("/new/fixes-{level}.livepatch");
    let output = host.run(&["xsplice", "install", &file, "--json"])?;
    ensure!(output.code == Some(0), "{output:?}");
    told("install", &output.stdout)?;
    Ok(())
}

/// Has the host reach what its store wants; returns what it tells.
///
/// # Errors
/// If it ends with another code.
pub fn sync(host: &mut Host, options: &[&str], code: i32) -> anyhow::Result<Value> {
    let argv = [&["xsplice", "sync", "--timeout", "300", "--json"], options].concat();
    let output = settled(host, &argv)?;
    ensure!(output.code == Some(code), "{output:?}\n{}", host.console());
    told("sync", &output.stdout)
}
