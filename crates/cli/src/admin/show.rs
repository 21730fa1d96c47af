// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is asked of the hypervisor without changing anything: its payloads, and
//! what it is.

use super::explain::explain_interface;
use super::host::{Dom0, loaded};
use super::state_word;
use crate::output::{Ended, complain, errno_name, failure, say};
use crate::store;
use anyhow::anyhow;
use schemars::JsonSchema;
use serde::Serialize;
use std::process::ExitCode;
use xsplice_abi::text::escaped;
use xsplice_dom0::{
    Details, Errno, Livepatch, Payload, Privcmd, VersionInfo, details, version_info,
};
use xsplice_store::{Known, Loaded};

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
    /// The rest of it.
    #[serde(flatten)]
    known: Known,
    /// What is shown to people about the last action.
    #[serde(skip)]
    failed: Option<Errno>,
}

impl Listed {
    fn new(payload: Payload, known: Known) -> Self {
        let rc = payload.status.rc;
        let failed = (rc != 0).then_some(Errno(rc.wrapping_neg()));
        Self {
            name: payload.name,
            state: state_word(payload.status.state),
            errno: failed.map(errno_name),
            metadata: payload.metadata,
            known,
            failed,
        }
    }
}

/// Other forms of `xsplice info`.
#[derive(clap::ValueEnum, Clone, Copy)]
pub(crate) enum Format {
    /// The lines of `xl info` about the hypervisor itself.
    Xl,
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

/// `xsplice info`; in the form that `xl info` has if `format` says so.
pub(super) fn info(format: Option<Format>, json: bool) -> ExitCode {
    match format {
        None => tell(ask_info(), info_text, json),
        Some(Format::Xl) if json => failure(&anyhow!("use either --json or --format"), json),
        Some(Format::Xl) => match ask_details() {
            Ok((version, details)) => {
                say!("{}", xl_text(&version, &details));
                ExitCode::SUCCESS
            }
            Err(error) => failure(&error, json),
        },
    }
}

fn ask_details() -> anyhow::Result<(VersionInfo, Details)> {
    let hypervisor = Privcmd::open()?;
    let version = version_info(&hypervisor).map_err(explain_interface)?;
    let details = details(&hypervisor).map_err(explain_interface)?;
    Ok((version, details))
}

/// The lines of `xl info` about the hypervisor itself.
fn xl_text(version: &VersionInfo, details: &Details) -> String {
    let full = format!("{}.{}{}", version.major, version.minor, version.extra);
    let lines = [
        ("xen_major", version.major.to_string()),
        ("xen_minor", version.minor.to_string()),
        ("xen_extra", version.extra.clone()),
        ("xen_version", full),
        ("xen_caps", details.capabilities.clone()),
        ("xen_pagesize", details.page_size.to_string()),
        (
            "platform_params",
            format!("virt_start={:#x}", details.virtual_start),
        ),
        ("xen_changeset", version.changeset.clone()),
        ("xen_commandline", details.command_line.clone()),
        ("cc_compiler", version.compiler.clone()),
        ("cc_compile_by", version.compiled_by.clone()),
        ("cc_compile_domain", details.compile_domain.clone()),
        ("cc_compile_date", version.compile_date.clone()),
        ("build_id", version.build_id.clone().unwrap_or_default()),
    ];
    let lines = lines.map(|(key, value)| format!("{key:<22} : {}", escaped(&value)));
    lines.join("\n")
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
    let known = known(&hypervisor, loaded(&livepatch, &payloads)).unwrap_or_else(|error| {
        complain!("warning: the store is not used: {error:#}");
        vec![Known::default(); payloads.len()]
    });
    let listed = payloads.into_iter().zip(known);
    let payloads = listed.map(|(payload, known)| Listed::new(payload, known));
    Ok(List {
        payloads: payloads.collect(),
    })
}

/// What the store of this host knows about what is `loaded`.
fn known(hypervisor: &Privcmd, loaded: Vec<Loaded>) -> anyhow::Result<Vec<Known>> {
    let (_, base) = Dom0::version(hypervisor)?;
    store::known(&base, loaded)
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
        let details = store::details(&payload.known).into_iter();
        let details = details.map(|(what, value)| format!("  {what:<10}{}", escaped(&value)));
        let lines = std::iter::once(line.trim_end().to_owned()).chain(details);
        lines.collect::<Vec<_>>().join("\n")
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
        escaped(&version.extra),
        version.build_id.as_deref().unwrap_or("none"),
        escaped(&version.compiler),
        escaped(&version.compile_date),
        escaped(&version.compiled_by),
        escaped(&version.changeset),
        info.sysctl_interface.as_deref().unwrap_or("unknown"),
        info.payloads
            .map_or("unknown".to_owned(), |n| n.to_string()),
    )
}
