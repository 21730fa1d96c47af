// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is in the store: `xsplice install`, `xsplice remove`, and the manifest that
//! `xsplice sign` writes.

use super::{At, Wait, recorded, recorder};
use crate::code::Code;
use crate::output::{Ended, complain, say, shown};
use crate::signature::read_payload;
use anyhow::Context as _;
use schemars::JsonSchema;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;
use xsplice_abi::text::escaped;
use xsplice_store::{
    Action, BuildId, Date, Event, Identity, Incoming, Journal, Keys, Manifest, Outcome, Paths,
    Policy, Progress, Release, Removal, Signer,
};
use xsplice_system::file;

const INSTALL: &str = "\
Examples:
  xsplice install fixes-3.livepatch
  xsplice install fixes-3.livepatch --level 3 --fix XSA-480

The manifest, FILE.json, and its signature, FILE.json.sig, are beside the payload:
`xsplice sign --level` writes them. For a payload without a manifest, --level makes one
that is not signed. A host with keys in /etc/xsplice/keys.d accepts only what one of them
has signed. Installing applies nothing: `xsplice sync` does that.";

/// Arguments of `xsplice install`.
#[derive(clap::Args)]
#[command(after_help = INSTALL)]
pub(crate) struct InstallArgs {
    /// The payloads.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Make a manifest with this level for a payload that has none.
    #[arg(long, value_name = "N")]
    level: Option<u32>,
    /// What the payload fixes, such as `XSA-480`; repeat it for several.
    #[arg(long = "fix", value_name = "NAME", requires = "level")]
    fixes: Vec<String>,
    #[command(flatten)]
    wait: Wait,
    #[command(flatten)]
    at: At,
}

/// Arguments of `xsplice remove`.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  xsplice remove fixes-2\n\nAn applied payload stays applied. One \
                  that the host would apply again after a boot is not removed."
)]
pub(crate) struct RemoveArgs {
    /// The payload.
    name: String,
    #[command(flatten)]
    wait: Wait,
    #[command(flatten)]
    at: At,
}

/// The payloads that were given.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Installed {
    payloads: Vec<Put>,
}

/// A payload that is in the store now.
#[derive(Serialize, JsonSchema)]
struct Put {
    #[serde(flatten)]
    payload: Identity,
    /// Build-id of the hypervisor that it is for.
    base: BuildId,
    /// Who has signed its manifest.
    signer: Signer,
    /// Whether it was not there before.
    new: bool,
}

/// What was removed from the store.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Removed {
    /// The payload's files, one for each hypervisor it was there for.
    files: Vec<String>,
}

/// The manifest of the payload `data`, which is in a file with the name of `path`.
pub(crate) fn manifest(
    data: &[u8],
    path: &Path,
    level: u32,
    fixes: &[String],
) -> anyhow::Result<Manifest> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.strip_suffix(Paths::PAYLOAD).with_context(|| {
        format!(
            "{}: the file of a payload with a manifest is called NAME.livepatch",
            shown(path)
        )
    })?;
    let release = Release {
        name: name.to_owned(),
        level,
        fixes: fixes.to_vec(),
        date: Date::new(SystemTime::now()),
    };
    let manifest = Manifest::new(data, release).map_err(anyhow::Error::msg);
    manifest.with_context(|| shown(path))
}

/// The payload at `path`, with what is beside it.
fn read(path: &Path, args: &InstallArgs) -> anyhow::Result<Incoming> {
    let payload = read_payload(path)?;
    let place = Paths::manifest(path);
    let sign = Paths::signature(&place);
    let optional = |path: &Path| match path.exists() {
        true => file::read(path).map(Some).with_context(|| shown(path)),
        false => Ok(None),
    };
    match (optional(&place)?, args.level) {
        (Some(manifest), None) => Ok(Incoming {
            payload,
            manifest,
            signature: optional(&sign)?,
        }),
        (Some(_), Some(_)) => Err(Code::Invalid.error(format!(
            "{}: it has a manifest, which says the level: leave out --level",
            shown(path)
        ))),
        (None, None) => Err(Code::Invalid.error(format!(
            "{}: there is no manifest, {}: `xsplice sign --level` writes a signed one, and \
             --level makes one that is not signed",
            shown(path),
            shown(&place)
        ))),
        (None, Some(level)) => Ok(Incoming {
            manifest: manifest(&payload, path, level, &args.fixes)?
                .to_json()?
                .into_bytes(),
            payload,
            signature: None,
        }),
    }
}

pub(super) fn install(args: &InstallArgs, json: bool) -> anyhow::Result<ExitCode> {
    if args.level.is_some() && args.files.len() > 1 {
        let words = "each payload has its own level: with --level, give one file";
        return Err(Code::Invalid.error(words));
    }
    let incoming = args.files.iter().map(|path| Ok((path, read(path, args)?)));
    let incoming: Vec<(&PathBuf, Incoming)> = incoming.collect::<anyhow::Result<_>>()?;
    let root = args.at.root();
    let _lock = args.wait.take(&root)?;
    let policy = Policy::read(&root)?;
    let verify = Keys::read(&root).verify(&policy);
    let log = Journal::new(&root);
    let recorder = recorder(&root, &log)?;
    let mut payloads = Vec::new();
    for (path, incoming) in incoming {
        let judged = incoming.judge(&root, &policy, &recorder.now.date);
        let judged = judged.with_context(|| shown(path))?;
        let entry = &judged.entry;
        let payload = entry.manifest.identity();
        if let Some(warning) = entry.warning(verify) {
            complain!("warning: {warning}");
        }
        if judged.is_new {
            let event = Event {
                base: Some(entry.manifest.base.clone()),
                signer: Some(entry.signer.to_string()),
                ..Event::new(Action::Install, Outcome::Begun, Some(payload.clone()))
            };
            let installed = recorded(&recorder, event, || judged.write(&root));
            installed.with_context(|| shown(path))?;
        }
        payloads.push(Put {
            payload,
            base: entry.manifest.base.clone(),
            signer: entry.signer.clone(),
            new: judged.is_new,
        });
    }
    if !json {
        for put in &payloads {
            let (name, level) = (&put.payload.name, put.payload.level);
            let there = if put.new { "" } else { " (already installed)" };
            say!(
                "{name}: level {level} for {}, signed by {}{there}",
                put.base,
                put.signer
            );
        }
    }
    let changed = payloads.iter().any(|put| put.new);
    Ok(Ended::well(Installed { payloads })
        .changed(changed)
        .tell(json))
}

pub(super) fn remove(args: &RemoveArgs, json: bool) -> anyhow::Result<ExitCode> {
    let root = args.at.root();
    let _lock = args.wait.take(&root)?;
    let log = Journal::new(&root);
    let recorder = recorder(&root, &log)?;
    let removal = Removal::of(&root, &Progress::read(&root)?, &args.name)?;
    let event = Event {
        name: Some(args.name.clone()),
        ..Event::new(Action::Remove, Outcome::Begun, None)
    };
    let removed = recorded(&recorder, event, || removal.carry_out(&root));
    removed.with_context(|| escaped(&args.name).to_string())?;
    let files: Vec<String> = removal.payloads().iter().map(|path| shown(path)).collect();
    if !json {
        files.iter().for_each(|file| say!("{file}: removed"));
    }
    Ok(Ended::well(Removed { files }).changed(true).tell(json))
}
