// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is asked of the hypervisor without changing anything: its payloads, and
//! what it is.

use super::explain::explain_interface;
use super::state_word;
use crate::output::{Ended, errno_name, failure, say};
use schemars::JsonSchema;
use serde::Serialize;
use std::process::ExitCode;
use xsplice_abi::text::escaped;
use xsplice_dom0::{Errno, Livepatch, Payload, Privcmd, VersionInfo, version_info};

/// The payloads that the hypervisor holds.
#[derive(Serialize, JsonSchema)]
pub(crate) struct List {
    /// In the order of upload.
    payloads: Vec<Listed>,
}

/// A payload that the hypervisor holds.
#[derive(Serialize, JsonSchema)]
struct Listed {
    /// Its name.
    name: String,
    /// Its state: `checked` (uploaded, not in use), `applied`, or another one that
    /// this version does not know.
    state: String,
    /// Error number of the last action on it by its name; null if that succeeded.
    errno: Option<String>,
    /// The `key=value` texts that it carries.
    metadata: Vec<String>,
    /// What is shown to people about the last action.
    #[serde(skip)]
    failed: Option<Errno>,
}

impl From<Payload> for Listed {
    fn from(payload: Payload) -> Self {
        let rc = payload.status.rc;
        let failed = (rc != 0).then_some(Errno(rc.wrapping_neg()));
        Self {
            name: payload.name,
            state: state_word(payload.status.state),
            errno: failed.map(errno_name),
            metadata: payload.metadata,
            failed,
        }
    }
}

/// The running hypervisor.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Info {
    /// What it says of itself.
    hypervisor: VersionInfo,
    /// Whether it has live patching; null if it does not say.
    live_patching: Option<bool>,
    /// Why it does not say whether it has live patching.
    reason: Option<String>,
    /// Version of the sysctl interface that it speaks, in hexadecimal.
    sysctl_interface: Option<String>,
    /// How many payloads it holds.
    payloads: Option<usize>,
}

/// `xsplice list`.
pub(super) fn list(json: bool) -> ExitCode {
    tell(ask_list(), list_text, json)
}

/// `xsplice info`.
pub(super) fn info(json: bool) -> ExitCode {
    tell(ask_info(), info_text, json)
}

fn tell<T: Serialize + JsonSchema>(
    found: anyhow::Result<T>,
    text: fn(&T) -> String,
    json: bool,
) -> ExitCode {
    match found {
        Ok(found) => {
            if !json {
                say!("{}", text(&found));
            }
            Ended::well(found).tell(json)
        }
        Err(error) => failure(&error, json),
    }
}

fn ask_list() -> anyhow::Result<List> {
    let hypervisor = Privcmd::open()?;
    let livepatch = Livepatch::negotiate(&hypervisor).map_err(explain_interface)?;
    let payloads = livepatch.list().map_err(explain_interface)?;
    let payloads = payloads.into_iter().map(Listed::from).collect();
    Ok(List { payloads })
}

fn list_text(list: &List) -> String {
    if list.payloads.is_empty() {
        return "no payloads are loaded".to_owned();
    }
    let lines = list.payloads.iter().map(|payload| {
        let failed = payload
            .failed
            .map_or(String::new(), |errno| format!(" (last action: {errno})"));
        let line = format!(
            "{:<32} {}{failed}  {}",
            escaped(&payload.name).to_string(),
            payload.state,
            escaped(&payload.metadata.join("; "))
        );
        line.trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn ask_info() -> anyhow::Result<Info> {
    let hypervisor = Privcmd::open()?;
    let version = version_info(&hypervisor).map_err(explain_interface)?;
    let livepatch =
        Livepatch::negotiate(&hypervisor).and_then(|l| Ok((l.interface_version(), l.list()?)));
    let info = Info {
        hypervisor: version,
        live_patching: None,
        reason: None,
        sysctl_interface: None,
        payloads: None,
    };
    Ok(match livepatch {
        Ok((interface, payloads)) => Info {
            live_patching: Some(true),
            sysctl_interface: Some(format!("{:#x}", interface.0)),
            payloads: Some(payloads.len()),
            ..info
        },
        Err(Errno::ENOSYS | Errno::EOPNOTSUPP) => Info {
            live_patching: Some(false),
            ..info
        },
        Err(errno) => Info {
            reason: Some(explain_interface(errno).to_string()),
            ..info
        },
    })
}

fn info_text(info: &Info) -> String {
    let version = &info.hypervisor;
    let built_in = match (info.live_patching, &info.reason) {
        (Some(true), _) => "yes".to_owned(),
        (Some(false), _) => "no".to_owned(),
        (None, reason) => format!("unknown ({})", reason.as_deref().unwrap_or_default()),
    };
    format!(
        "version            {}.{}{}\n\
         build-id           {}\n\
         compiler           {}\n\
         compiled           {} by {}\n\
         changeset          {}\n\
         live patching      {built_in}\n\
         sysctl interface   {}\n\
         payloads           {}",
        version.major,
        version.minor,
        version.extra,
        version.build_id.as_deref().unwrap_or("none"),
        version.compiler,
        version.compile_date,
        version.compiled_by,
        version.changeset,
        info.sysctl_interface.as_deref().unwrap_or("unknown"),
        info.payloads
            .map_or("unknown".to_owned(), |n| n.to_string()),
    )
}
