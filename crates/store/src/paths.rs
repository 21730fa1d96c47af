// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where everything is.

use std::path::{Path, PathBuf};

/// The paths of the store's files, as the host sees them.
///
/// | path | what |
/// |---|---|
/// | `/usr/lib/xen-livepatch/BUILD-ID/` | payloads from packages, for the hypervisor with this build-id |
/// | `/var/lib/xsplice/store/BUILD-ID/` | payloads that were installed |
/// | `/var/lib/xsplice/quarantine/` | payloads that are no longer applied |
/// | `/var/lib/xsplice/progress.json` | what the host has reached, and what is under way |
/// | `/var/lib/xsplice/history.jsonl` | what was done |
/// | `/etc/xsplice/host.toml` | the policy |
/// | `/etc/xsplice/keys.d/*.pem` | whose manifests count |
/// | `/run/xsplice/lock` | held by who changes any of this |
///
/// A payload `NAME.livepatch` has its manifest beside it, `NAME.livepatch.json`, and the
/// manifest's signature, `NAME.livepatch.json.sig`.
#[derive(Debug, Clone, Copy)]
pub struct Paths;

impl Paths {
    /// How the names of payloads end.
    pub const PAYLOAD: &str = ".livepatch";
    /// What the name of a manifest has after the payload's.
    pub const MANIFEST: &str = ".json";
    /// What the name of a signature has after the manifest's.
    pub const SIGNATURE: &str = ".sig";

    /// Payloads from packages.
    #[must_use]
    pub fn vendor() -> PathBuf {
        "/usr/lib/xen-livepatch".into()
    }

    /// Payloads that were installed.
    #[must_use]
    pub fn store() -> PathBuf {
        "/var/lib/xsplice/store".into()
    }

    /// Payloads that are no longer applied.
    #[must_use]
    pub fn quarantine() -> PathBuf {
        "/var/lib/xsplice/quarantine".into()
    }

    /// What the host has reached.
    #[must_use]
    pub fn progress() -> PathBuf {
        "/var/lib/xsplice/progress.json".into()
    }

    /// What was done.
    #[must_use]
    pub fn history() -> PathBuf {
        "/var/lib/xsplice/history.jsonl".into()
    }

    /// The policy.
    #[must_use]
    pub fn policy() -> PathBuf {
        "/etc/xsplice/host.toml".into()
    }

    /// Whose manifests count.
    #[must_use]
    pub fn keys() -> PathBuf {
        "/etc/xsplice/keys.d".into()
    }

    /// Held by who changes any of this.
    #[must_use]
    pub fn lock() -> PathBuf {
        "/run/xsplice/lock".into()
    }

    /// The manifest of the payload at `payload`.
    #[must_use]
    pub fn manifest(payload: &Path) -> PathBuf {
        with(payload, Self::MANIFEST)
    }

    /// The signature of the manifest at `manifest`.
    #[must_use]
    pub fn signature(manifest: &Path) -> PathBuf {
        with(manifest, Self::SIGNATURE)
    }
}

fn with(path: &Path, end: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(end);
    path.into()
}
