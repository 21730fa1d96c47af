// SPDX-License-Identifier: MIT OR Apache-2.0

//! The keys that a hypervisor is built with: who may sign its payloads.

use anyhow::{Context as _, bail, ensure};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use xsplice_signing::PublicKey;

/// Public keys, and whether Xen's command line can do without them.
#[derive(Clone, Debug, clap::Args)]
pub struct Keys {
    /// Directory with the public keys of who may sign payloads, in PEM or DER, or
    /// certificates: `NAME.pem` or `NAME.der` each. Signatures are enforced then.
    #[arg(long = "keys", value_name = "DIR")]
    pub directory: Option<PathBuf>,
    /// Have signatures enforced whatever Xen's command line says.
    #[arg(long, requires = "directory")]
    pub lock_signatures: bool,
}

impl Keys {
    /// No keys.
    pub const NONE: Self = Self {
        directory: None,
        lock_signatures: false,
    };

    /// `livepatch-keys.h`, the table in the hypervisor; `None` without keys.
    pub fn header(&self) -> anyhow::Result<Option<String>> {
        let Some(directory) = &self.directory else {
            return Ok(None);
        };
        let keys = read(directory).with_context(|| directory.display().to_string())?;
        header(&keys, self.lock_signatures).map(Some)
    }
}

/// The keys in `directory`, in the order of their names.
fn read(directory: &Path) -> anyhow::Result<Vec<PublicKey>> {
    let mut keys = BTreeMap::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let extension = path.extension().unwrap_or_default();
        if extension != "pem" && extension != "der" {
            continue;
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        ensure!(
            name.chars().all(plain),
            "{}: the name of a key has letters, digits, and ._- only",
            path.display()
        );
        let context = || path.display().to_string();
        let key = PublicKey::read(&name, &std::fs::read(&path).with_context(context)?);
        let key = key.with_context(context)?;
        if keys.insert(name.clone().into_owned(), key).is_some() {
            bail!("{}: there is another key {name}", path.display());
        }
    }
    ensure!(!keys.is_empty(), "there is no key, NAME.pem or NAME.der");
    Ok(keys.into_values().collect())
}

fn header(keys: &[PublicKey], locked: bool) -> anyhow::Result<String> {
    let mut text = format!(
        "/* SPDX-License-Identifier: GPL-2.0-only */\n\
         /* Who may sign payloads; written by `cargo xtask xen build --keys`. */\n\n\
         #define XSPLICE_SIGNATURES_LOCKED {locked}\n\n"
    );
    for (index, key) in keys.iter().enumerate() {
        writeln!(text, "static const uint64_t modulus_{index}[] = {{")?;
        for word in key.modulus() {
            writeln!(text, "    {word:#018x},")?;
        }
        text.push_str("};\n\n");
    }
    text.push_str("static const struct xsplice_key keys[] = {\n");
    for (index, key) in keys.iter().enumerate() {
        let (name, length, words) = (key.name(), key.name().len(), key.modulus().len());
        writeln!(
            text,
            "    {{ {{ \"{name}\", {length} }}, modulus_{index}, {words} }},"
        )?;
    }
    text.push_str("};\n");
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRUSTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/keys/trusted");

    fn keys(directory: &Path) -> Keys {
        Keys {
            directory: Some(directory.to_owned()),
            lock_signatures: false,
        }
    }

    #[test]
    fn the_table_has_every_key_by_its_name() -> anyhow::Result<()> {
        let trusted = keys(Path::new(TRUSTED));
        let text = trusted.header()?.context("a table")?;
        for line in [
            "#define XSPLICE_SIGNATURES_LOCKED false",
            "    { { \"large\", 5 }, modulus_0, 64 },",
            "    { { \"vendor\", 6 }, modulus_1, 32 },",
        ] {
            assert!(text.lines().any(|found| found == line), "{text}");
        }
        let words = text.lines().filter(|line| line.starts_with("    0x"));
        assert_eq!(words.count(), 64 + 32);
        let locked = Keys {
            lock_signatures: true,
            ..trusted
        };
        let text = locked.header()?.context("a table")?;
        assert!(text.contains("#define XSPLICE_SIGNATURES_LOCKED true\n"));
        assert_eq!(Keys::NONE.header()?, None);
        Ok(())
    }

    #[test]
    fn directories_without_keys_are_refused() -> anyhow::Result<()> {
        let directory = tempfile::tempdir()?;
        let refused = || match keys(directory.path()).header() {
            Ok(_) => bail!("it is taken"),
            Err(error) => Ok(format!("{error:#}")),
        };
        assert!(refused()?.contains("there is no key"));
        let vendor = std::fs::read(Path::new(TRUSTED).join("vendor.pem"))?;
        std::fs::write(directory.path().join("a\"b.pem"), &vendor)?;
        assert!(refused()?.contains("letters, digits"));
        std::fs::remove_file(directory.path().join("a\"b.pem"))?;
        std::fs::write(directory.path().join("a.pem"), &vendor)?;
        assert!(keys(directory.path()).header()?.is_some());
        std::fs::write(directory.path().join("a.der"), &vendor)?;
        assert!(refused()?.contains("there is another key a"));
        std::fs::write(directory.path().join("a.der"), "text")?;
        assert!(refused()?.contains("neither a public key nor a certificate"));
        Ok(())
    }
}
