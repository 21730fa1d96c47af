// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a payload is, in a file beside it, which is signed.
//!
//! All of it but the name, the level, the fixes and the date is read from the payload. It
//! is made when the payload is complete and signed, because it has the hash of the file;
//! and not when the payload is built, because whoever releases it decides the level.

use crate::policy::Want;
use crate::{BuildId, Date, Identity, Sha256};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use xsplice_abi::payload::section;
use xsplice_abi::sysctl::NAME_SIZE;
use xsplice_abi::text::is_deceptive;
use xsplice_review::Payload;
use xsplice_review::report::recorded;

/// Version of the form of a [`Manifest`]: it rises when a key is removed or changes its
/// meaning. A manifest of another version is not used.
pub const SCHEMA: u32 = 1;

/// What a payload is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Manifest {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What the payload is called in the hypervisor; its file is `NAME.livepatch`.
    pub name: String,
    /// Build-id of the hypervisor that it is for.
    pub base: BuildId,
    /// Its own build-id.
    pub build_id: BuildId,
    /// SHA-256 of the file.
    pub sha256: Sha256,
    /// Rises with each payload for the same hypervisor.
    pub level: u32,
    /// What it fixes: names such as `XSA-480` or `CVE-2026-1234`.
    pub fixes: Vec<String>,
    /// The source patches, and how much of each is in the payload; null if the payload
    /// does not say.
    pub patches: Option<Vec<Patch>>,
    /// The stages at which it has hooks.
    pub hooks: Vec<String>,
    /// Whether it can replace others and be replaced: whether it has no hooks that run
    /// before or after the CPUs are stopped.
    pub replaceable: bool,
    /// The `key=value` texts that the hypervisor lists.
    pub metadata: Vec<String>,
    /// What it was compiled with.
    pub compiler: Option<String>,
    /// What built it.
    pub generator: Option<String>,
    /// When this was written.
    pub date: Date,
}

/// A source patch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Patch {
    /// Name of the file.
    pub name: String,
    /// Its SHA-256.
    pub sha256: Sha256,
    /// How many of its hunks are where.
    pub hunks: Hunks,
}

/// Numbers of hunks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Hunks {
    /// In the payload.
    pub in_payload: u32,
    /// Without effect on this hypervisor.
    pub without_effect: u32,
    /// Left out on request.
    pub left_out: u32,
}

/// What the publisher of a payload says about it.
#[derive(Debug, Clone)]
pub struct Release {
    /// Its name.
    pub name: String,
    /// Its level.
    pub level: u32,
    /// What it fixes.
    pub fixes: Vec<String>,
    /// When it is released.
    pub date: Date,
}

impl Manifest {
    /// The manifest of the payload `data`.
    ///
    /// # Errors
    /// If it is no payload that a store can have, with the reason.
    pub fn new(data: &[u8], release: Release) -> Result<Self, String> {
        let payload = Payload::read(data, None).map_err(|error| error.to_string())?;
        let missing = |what: &str| format!("the payload has no {what}");
        let build_id = payload.build_id.clone();
        let build_id = build_id.ok_or_else(|| missing(section::BUILD_ID))?;
        let base = payload.xen_depends.clone();
        let base = base.ok_or_else(|| missing(section::XEN_DEPENDS))?;
        if payload.depends.as_ref() != Some(&base) {
            return Err(
                "the payload depends on another payload; a store has payloads with all fixes, \
                 which depend on the hypervisor only: build one from all patches"
                    .to_owned(),
            );
        }
        let hooks: Vec<String> = payload.hooks.iter().map(|h| h.stage.clone()).collect();
        let says = |key: &str| {
            let entries = payload.metadata.iter();
            let value = entries.filter_map(|entry| entry.strip_prefix(key)?.strip_prefix('='));
            value.map(str::to_owned).next()
        };
        let manifest = Self {
            schema: SCHEMA,
            name: release.name,
            base: base.try_into()?,
            build_id: build_id.try_into()?,
            sha256: Sha256::of(data),
            level: release.level,
            fixes: release.fixes,
            patches: patches(&payload)?,
            replaceable: !hooks.iter().any(|stage| is_outside_window(stage)),
            hooks,
            compiler: says("compiler"),
            generator: says("generator"),
            metadata: payload.metadata,
            date: release.date,
        };
        manifest.check()?;
        Ok(manifest)
    }

    /// Whether it is the manifest of the payload `data`: whether that has the hash, and
    /// says the same of itself in all that decides how it is applied.
    ///
    /// # Errors
    /// If not, with the reason.
    pub(crate) fn check_payload(&self, data: &[u8]) -> Result<(), String> {
        if Sha256::of(data) != self.sha256 {
            return Err(
                "it is not the payload that its manifest is for: its SHA-256 differs".to_owned(),
            );
        }
        let release = Release {
            name: self.name.clone(),
            level: self.level,
            fixes: self.fixes.clone(),
            date: self.date.clone(),
        };
        let payload = Self::new(data, release)?;
        let differs = match () {
            () if payload.base != self.base => "hypervisor that it is for",
            () if payload.build_id != self.build_id => "build-id",
            () if payload.metadata != self.metadata => "metadata",
            () if payload.hooks != self.hooks => "hooks",
            () if payload.replaceable != self.replaceable => "replaceability",
            () => return Ok(()),
        };
        Err(format!(
            "the manifest and the payload disagree about its {differs}"
        ))
    }

    /// The manifest in a file.
    ///
    /// # Errors
    /// If it is not a manifest, or is inconsistent, with the reason.
    pub fn parse(data: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Version {
            schema: u32,
        }
        let no_manifest = |error: serde_json::Error| format!("not a manifest: {error}");
        let Version { schema } = serde_json::from_slice(data).map_err(no_manifest)?;
        if schema != SCHEMA {
            return Err(format!(
                "the manifest is in version {schema}, and only {SCHEMA} is known: use the version \
                 of xsplice that it is for"
            ));
        }
        let manifest: Self = serde_json::from_slice(data).map_err(no_manifest)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The file.
    ///
    /// # Errors
    /// If it cannot be written as JSON.
    pub fn to_json(&self) -> crate::Result<String> {
        let json = crate::disk::json(self)?;
        Ok(format!("{json:#}\n"))
    }

    /// As records name the payload.
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity {
            name: self.name.clone(),
            build_id: self.build_id.clone(),
            sha256: self.sha256.clone(),
            level: self.level,
        }
    }

    /// Refuses what would be a path, a line, or something else than it seems.
    fn check(&self) -> Result<(), String> {
        check_name(&self.name)?;
        if self.level == 0 {
            return Err("the lowest level is 1; 0 is a host without payload".to_owned());
        }
        check_fixes(&self.fixes)
    }
}

/// Whether hooks of this stage run before or after the CPUs are stopped: then the
/// payload cannot be replaced, nor replace another.
fn is_outside_window(stage: &str) -> bool {
    stage.starts_with("pre") || stage.starts_with("post")
}

/// Refuses what cannot be the name of a fix.
pub(crate) fn check_fixes(fixes: &[String]) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    let mut fixes = fixes.iter();
    match fixes.find(|fix| fix.is_empty() || !fix.chars().all(plain)) {
        Some(bad) => Err(format!(
            "{bad:?} is not the name of a fix, such as XSA-480: use letters, digits, '-', '.'"
        )),
        None => Ok(()),
    }
}

/// Refuses a name that a payload in a store cannot have.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
        let shown: String = name.chars().filter(|c| !is_deceptive(*c)).collect();
        return Err(format!(
            "{shown:?} cannot be the name of a payload in a store: use letters, digits, '-', '_', \
             '.', the last not at the beginning"
        ));
    }
    if name.len() >= NAME_SIZE {
        return Err(format!(
            "a payload's name has at most {} bytes, this one {}",
            NAME_SIZE - 1,
            name.len()
        ));
    }
    if Want::WORDS.contains(&name) {
        return Err(format!(
            "a payload cannot be called {name}: that word means something else"
        ));
    }
    Ok(())
}

/// The source patches, with the hunks that the build record has for each.
///
/// # Errors
/// If the payload's metadata has something else than a SHA-256 for one.
fn patches(payload: &Payload) -> Result<Option<Vec<Patch>>, String> {
    let Some(record) = &payload.record else {
        return Ok(None);
    };
    let patches = recorded(payload).map(|(name, sha256)| {
        let mut hunks = Hunks::default();
        for hunk in record.hunks.iter().filter(|hunk| hunk.patch == name) {
            let count = match hunk.effect.as_str() {
                "in_payload" | "alternative" => &mut hunks.in_payload,
                "left_out" => &mut hunks.left_out,
                _ => &mut hunks.without_effect,
            };
            *count = count.saturating_add(1);
        }
        Ok(Patch {
            name: name.to_owned(),
            sha256: sha256.to_owned().try_into()?,
            hunks,
        })
    });
    patches.collect::<Result<_, _>>().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::SectionKind;
    use std::time::SystemTime;
    use xsplice_abi::record;
    use xsplice_test_host::{Payload, XEN_ID, func};

    fn release(name: &str, level: u32) -> Release {
        Release {
            name: name.to_owned(),
            level,
            fixes: vec!["XSA-480".to_owned()],
            date: Date::new(SystemTime::UNIX_EPOCH),
        }
    }

    fn payload() -> Payload {
        Payload::new(&[func("target")])
    }

    #[test]
    fn what_the_payload_says_is_in_the_manifest() {
        let mut payload = payload().hooks(".livepatch.hooks.load", 1);
        let hash = "ab".repeat(32);
        let metadata = format!("generator=xsplice 9\0compiler=gcc\0patch=a.patch sha256:{hash}\0");
        payload.section(
            ".modinfo",
            SectionKind::ReadOnlyData,
            metadata.as_bytes(),
            1,
        );
        let effects = ["in_payload", "alternative", "left_out", "none", "unused"];
        let hunks = effects
            .map(|e| format!(r#"{{"patch":"a.patch","effect":"{e}"}}"#))
            .join(",");
        let json = format!(r#"{{"hunks":[{hunks}]}}"#);
        let note = record::note(&json);
        payload.section(record::SECTION, SectionKind::Note, &note, 4);
        let data = payload.bytes();
        let manifest = Manifest::new(&data, release("fixes", 3)).expect("it is good");
        assert_eq!(manifest.base.as_str(), xsplice_abi::note::hex(&XEN_ID));
        assert_eq!(manifest.compiler.as_deref(), Some("gcc"));
        assert_eq!(manifest.generator.as_deref(), Some("xsplice 9"));
        assert_eq!(
            (manifest.hooks.as_slice(), manifest.replaceable),
            (&["load".to_owned()][..], true)
        );
        let hunks = Hunks {
            in_payload: 2,
            without_effect: 2,
            left_out: 1,
        };
        let patch = Patch {
            name: "a.patch".to_owned(),
            sha256: hash.try_into().expect("it is one"),
            hunks,
        };
        assert_eq!(manifest.patches, Some(vec![patch]));
        assert_eq!(
            Manifest::parse(manifest.to_json().expect("JSON").as_bytes()),
            Ok(manifest)
        );
    }

    #[test]
    fn a_payload_without_a_record_does_not_seem_to_have_no_patches() {
        let manifest = Manifest::new(&payload().bytes(), release("fixes", 1)).expect("it is good");
        assert_eq!(manifest.patches, None);
    }

    #[test]
    fn hooks_outside_of_the_window_are_noticed() {
        for stage in ["preapply", "postapply", "prerevert", "postrevert"] {
            let data = payload()
                .hooks(&format!(".livepatch.hooks.{stage}"), 1)
                .bytes();
            let manifest = Manifest::new(&data, release("fixes", 1)).expect("it is good");
            assert!(!manifest.replaceable, "{stage}");
        }
        let data = payload().hooks(".livepatch.hooks.apply", 1).bytes();
        let manifest = Manifest::new(&data, release("fixes", 1)).expect("it is good");
        assert!(manifest.replaceable);
    }

    #[test]
    fn what_a_store_cannot_have_is_refused() {
        let data = payload().bytes();
        for (name, level, fixes) in [
            ("", 1, "XSA-1"),
            ("../fixes", 1, "XSA-1"),
            (".fixes", 1, "XSA-1"),
            ("fix\u{202e}es", 1, "XSA-1"),
            ("latest", 1, "XSA-1"),
            ("none", 1, "XSA-1"),
            ("fixes", 0, "XSA-1"),
            ("fixes", 1, "XSA 1"),
            ("fixes", 1, ""),
        ] {
            let mut release = release(name, level);
            release.fixes = vec![fixes.to_owned()];
            assert!(
                Manifest::new(&data, release).is_err(),
                "{name:?} {level} {fixes:?}"
            );
        }
        let long = "x".repeat(NAME_SIZE);
        assert!(Manifest::new(&data, release(&long, 1)).is_err());
        let stacked = Payload::on(&[9; 20], &[8; 20], &[func("target")]).bytes();
        let error = Manifest::new(&stacked, release("fixes", 1)).expect_err("it is stacked");
        assert!(error.contains("depends on another payload"), "{error}");
        assert!(Manifest::new(b"no payload", release("fixes", 1)).is_err());
    }

    #[test]
    fn a_file_is_a_manifest_as_a_whole_or_none() {
        let good = Manifest::new(&payload().bytes(), release("fixes", 3)).expect("it is good");
        let json = good.to_json().expect("JSON");
        for end in 0..json.trim_end().len() {
            assert!(Manifest::parse(&json.as_bytes()[..end]).is_err(), "{end}");
        }
        for (from, to) in [
            ("\"schema\": 1", "\"schema\": 2"),
            ("\"level\": 3", "\"level\": 0"),
            ("\"level\": 3", "\"level\": -1"),
            ("\"name\": \"fixes\"", "\"name\": \"../fixes\""),
            ("\"base\": \"11", "\"base\": \"/1"),
            ("\"sha256\": \"", "\"sha256\": \"0"),
            ("1970-01-01", "1970-01-99"),
        ] {
            assert!(json.contains(from), "{from}: {json}");
            assert!(
                Manifest::parse(json.replace(from, to).as_bytes()).is_err(),
                "{to}"
            );
        }
    }
}
