// SPDX-License-Identifier: MIT OR Apache-2.0
//! The commands under their own syntax.

use super::preflight::Preflight;
use super::replaced::Replaced;
use super::{TIMEOUT_MS, name_of, payload_file, verb};
use crate::output::{failed, say};
use anyhow::{Context, anyhow, bail};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use xsplice_abi::sysctl::NAME_SIZE;
use xsplice_abi::text::{escaped, is_deceptive};
use xsplice_dom0::{Action, Errno, Livepatch, Payload, Privcmd, State, version_info};

/// The admin commands.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Upload a payload without applying it.
    #[command(after_help = "Example:\n  xsplice upload xsa-480 xsa-480.livepatch")]
    Upload {
        /// Name for the payload.
        name: String,
        /// The payload.
        file: PathBuf,
        #[command(flatten)]
        preflight: Preflight,
    },
    /// Apply an uploaded payload.
    #[command(after_help = "Example:\n  xsplice apply xsa-480")]
    Apply {
        /// The payload.
        name: String,
        /// Check only that the payload is for this hypervisor, not which payloads it depends on.
        #[arg(long)]
        nodeps: bool,
        #[command(flatten)]
        limits: Limits,
    },
    /// Revert an applied payload.
    #[command(
        after_help = "Examples:\n  xsplice revert xsa-480\n  xsplice revert xsa-480 --timeout 100 --retries 20"
    )]
    Revert {
        /// The payload.
        name: String,
        #[command(flatten)]
        limits: Limits,
    },
    /// Revert all applied payloads and apply this one, in one action.
    #[command(
        after_help = "Examples:\n  xsplice upload all-fixes all-fixes.livepatch\n  xsplice replace all-fixes"
    )]
    Replace {
        /// The payload.
        name: String,
        /// File of an applied payload, to find out whether its variables are lost;
        /// repeat it for several. Installed files are found automatically.
        #[arg(long, value_name = "FILE")]
        on: Vec<PathBuf>,
        #[command(flatten)]
        limits: Limits,
    },
    /// Unload a payload that is not applied.
    #[command(after_help = "Example:\n  xsplice unload xsa-480")]
    Unload {
        /// The payload.
        name: String,
    },
    /// Upload and apply a payload; on failure, unload it again.
    #[command(after_help = "Example:\n  xsplice load xsa-480.livepatch")]
    Load {
        /// The payload.
        file: PathBuf,
        /// Name for the payload [default: the name of the file].
        #[arg(long)]
        name: Option<String>,
        /// Check only that the payload is for this hypervisor, not which payloads it depends on.
        #[arg(long)]
        nodeps: bool,
        #[command(flatten)]
        preflight: Preflight,
        #[command(flatten)]
        limits: Limits,
    },
    /// List the payloads in the hypervisor.
    #[command(after_help = "Examples:\n  xsplice list\n  xsplice list --json")]
    List,
    /// Show the running hypervisor.
    #[command(
        after_help = "Examples:\n  xsplice info\n  xsplice info --json | jq -r .hypervisor.build_id"
    )]
    Info,
}

/// How long a rendezvous may take, and how often it is retried.
#[derive(clap::Args, Clone, Copy)]
pub(crate) struct Limits {
    /// Rendezvous timeout in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = TIMEOUT_MS,
          value_parser = clap::value_parser!(u32).range(1..=4294))]
    timeout: u32,
    /// Retries after a rendezvous timeout.
    #[arg(long, value_name = "N", default_value_t = 5)]
    retries: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            timeout: TIMEOUT_MS,
            retries: 5,
        }
    }
}

pub(crate) fn run(command: &Command, json: bool) -> ExitCode {
    match execute(command) {
        Ok(report) => {
            if json {
                say!("{:#}", report.value);
            } else {
                say!("{}", report.text);
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            let again = error
                .downcast_ref::<Errno>()
                .is_some_and(|e| matches!(*e, Errno::EAGAIN | Errno::EBUSY));
            failed(&error, again, json);
            if again {
                ExitCode::from(2)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

struct Report {
    text: String,
    value: Value,
    /// Whether the hypervisor did something.
    acted: bool,
}

fn done(name: &str, what: &str, state: Option<State>) -> Report {
    Report {
        text: format!("{}: {what}", escaped(name)),
        value: json!({ "name": name, "done": what, "state": state }),
        acted: true,
    }
}

fn execute(command: &Command) -> anyhow::Result<Report> {
    // Refuse locally what can be refused without the hypervisor.
    let file = match command {
        Command::Upload { name, file, .. } => Some((name.clone(), payload_file::read(file)?)),
        Command::Load { file, name, .. } => {
            let name = name.clone().unwrap_or_else(|| name_of(file));
            Some((name, payload_file::read(file)?))
        }
        _ => None,
    };
    match (command, &file) {
        // Another tool may have uploaded a payload under any name.
        (Command::Apply { name, .. } | Command::Revert { name, .. }, _)
        | (Command::Replace { name, .. } | Command::Unload { name }, _) => check_length(name)?,
        (_, Some((name, _))) => check_new_name(name)?,
        _ => {}
    }
    let hypervisor = Privcmd::open()?;
    if matches!(command, Command::Info) {
        return info(&hypervisor);
    }
    let livepatch = Livepatch::negotiate(&hypervisor).map_err(explain_interface)?;
    match command {
        Command::List => Ok(list(livepatch.list().map_err(explain_interface)?)),
        Command::Apply {
            name,
            nodeps,
            limits,
        } => act(&livepatch, name, Action::Apply, *nodeps, *limits),
        Command::Revert { name, limits } => act(&livepatch, name, Action::Revert, false, *limits),
        Command::Replace { name, on, limits } => {
            replace(&hypervisor, &livepatch, name, on, *limits)
        }
        Command::Unload { name } => act(&livepatch, name, Action::Unload, false, Limits::default()),
        Command::Info => info(&hypervisor),
        Command::Upload { preflight, .. } | Command::Load { preflight, .. } => {
            let Some((name, (data, identity))) = file else {
                bail!("no payload was read")
            };
            check_belongs(&hypervisor, &identity)?;
            preflight.run(&name, &data, &identity)?;
            livepatch
                .upload(&name, &data)
                .map_err(|e| explain_upload(e, &name))?;
            let Command::Load { nodeps, limits, .. } = command else {
                return Ok(done(&name, "uploaded", Some(State::Checked)));
            };
            match act(&livepatch, &name, Action::Apply, *nodeps, *limits) {
                Ok(report) => Ok(report),
                Err(error) => {
                    let unloaded = act(&livepatch, &name, Action::Unload, false, Limits::default());
                    Err(match unloaded {
                        Ok(_) => error.context(format!("{name} was unloaded again")),
                        Err(_) => error.context(format!("{name} stays uploaded")),
                    })
                }
            }
        }
    }
}

fn check_length(name: &str) -> anyhow::Result<()> {
    if name.len() >= NAME_SIZE {
        bail!(
            "a payload's name has at most {} bytes, this one {}",
            NAME_SIZE - 1,
            name.len()
        );
    }
    Ok(())
}

fn check_new_name(name: &str) -> anyhow::Result<()> {
    if name.is_empty() {
        bail!("a payload's name must not be empty");
    }
    check_length(name)?;
    if let Some(bad) = name
        .chars()
        .find(|c| is_deceptive(*c) || c.is_whitespace() || *c == '/')
    {
        bail!("the name {name:?} has the character {bad:?}: use letters, digits, '-', '_', '.'");
    }
    Ok(())
}

fn check_belongs(hypervisor: &Privcmd, identity: &payload_file::Identity) -> anyhow::Result<()> {
    let running = version_info(hypervisor)
        .map_err(explain_interface)?
        .build_id;
    let running =
        running.context("this hypervisor has no build-id, so payloads cannot be matched to it")?;
    if running != identity.hypervisor {
        let below = if identity.depends == identity.hypervisor {
            String::new()
        } else {
            format!(", on top of the payload with build-id {}", identity.depends)
        };
        bail!(
            "the payload is for the hypervisor with build-id {}{below}; \
             this host runs {running}: use the payload that was built from its xen-syms",
            identity.hypervisor
        );
    }
    Ok(())
}

/// Replaces the applied payloads, and reports whose variables were lost.
fn replace(
    hypervisor: &Privcmd,
    livepatch: &Livepatch<Privcmd>,
    name: &str,
    on: &[PathBuf],
    limits: Limits,
) -> anyhow::Result<Report> {
    let payloads = livepatch.list().map_err(explain_interface)?;
    let applied = payloads
        .into_iter()
        .filter(|payload| payload.status.state == State::Applied && payload.name != name);
    let applied: Vec<String> = applied.map(|payload| payload.name).collect();
    let running = version_info(hypervisor).map_err(explain_interface)?;
    let replaced = Replaced::look(&applied, on, running.build_id.as_deref())?;
    let mut report = act(livepatch, name, Action::Replace, false, limits)?;
    if report.acted {
        report.value["variables"] = json!(replaced);
        let lines = [vec![report.text], replaced.lines(name)].concat();
        report.text = lines.join("\n");
    }
    Ok(report)
}

/// Starts an action, waits until it completes, and retries after a rendezvous
/// timeout.
fn act(
    livepatch: &Livepatch<Privcmd>,
    name: &str,
    action: Action,
    nodeps: bool,
    limits: Limits,
) -> anyhow::Result<Report> {
    let called = &*escaped(name).to_string();
    let missing = |e: Errno| match e {
        Errno::ENOENT => {
            anyhow!("{called}: the hypervisor has no payload of this name; see `xsplice list`")
        }
        other => explain_interface(other),
    };
    let wanted = match action {
        Action::Apply | Action::Replace => Some(State::Applied),
        Action::Revert => Some(State::Checked),
        Action::Unload => None,
    };
    let before = livepatch.get(name).map_err(missing)?;
    if Some(before.state) == wanted && before.rc != -Errno::EAGAIN.0 {
        let what = match action {
            Action::Replace => {
                "no action needed: it is applied already, and replace is for a payload that is \
                 not; to make it the only one, revert the others"
            }
            _ => "no action needed",
        };
        return Ok(Report {
            acted: false,
            ..done(name, what, wanted)
        });
    }
    if action == Action::Unload && before.state == State::Applied {
        bail!("{called} is applied: revert it before it is unloaded");
    }
    let mut tries = 0;
    loop {
        let result = livepatch.act(name, action, limits.timeout * 1_000_000, nodeps);
        match result {
            Ok(()) => {
                let what = match action {
                    Action::Apply => "applied",
                    Action::Revert => "reverted",
                    Action::Replace => "applied, all others reverted",
                    Action::Unload => "unloaded",
                };
                return Ok(done(name, what, wanted));
            }
            Err(Errno::EBUSY | Errno::EAGAIN) if tries < limits.retries => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(20 << tries.min(5)));
            }
            Err(errno) => return Err(explain_action(errno, called, action, tries, limits)),
        }
    }
}

fn explain_interface(errno: Errno) -> anyhow::Error {
    let message = match errno {
        Errno::ENOSYS | Errno::EOPNOTSUPP => {
            "this hypervisor was built without live patching (CONFIG_LIVEPATCH)"
        }
        Errno::EACCES => {
            "the hypervisor refused every version of the sysctl interface that xsplice supports \
             (0x12 to 0x16, Xen 4.13 to 4.22): it is a different version of Xen, or its security \
             policy (XSM) does not allow this domain to patch it (`xl dmesg` then shows `avc: denied`)"
        }
        Errno::EPERM => "this domain may not patch the hypervisor: only the control domain may",
        _ => "the hypervisor refused",
    };
    anyhow::Error::new(ErrnoError(errno))
        .context(errno)
        .context(message)
}

fn explain_upload(errno: Errno, name: &str) -> anyhow::Error {
    let message = match errno {
        Errno::EEXIST => format!(
            "{name}: a payload of this name, or with this build-id or one of its symbols, is \
             already loaded"
        ),
        Errno::ENOENT => format!(
            "{name}: it refers to a symbol that neither the hypervisor nor a loaded payload defines"
        ),
        Errno::EINVAL | Errno::EOPNOTSUPP => {
            format!("{name}: the hypervisor refused it; its console says why (`xl dmesg`)")
        }
        _ => format!("{name}: the upload failed"),
    };
    anyhow::Error::new(ErrnoError(errno))
        .context(errno)
        .context(message)
}

fn explain_action(
    errno: Errno,
    name: &str,
    action: Action,
    tries: u32,
    limits: Limits,
) -> anyhow::Error {
    let verb = verb(action);
    let message = match errno {
        Errno::EBUSY | Errno::EAGAIN => format!(
            "{name}: {verb} timed out: the CPUs did not reach the rendezvous within {} ms in {} \
             tries; try again, or raise --timeout",
            limits.timeout,
            tries + 1
        ),
        Errno::EINVAL => format!(
            "{name}: the hypervisor refused to {verb} it: it depends on another payload, is not \
             the topmost, or was reverted and has variables (then unload and load it again)"
        ),
        _ => format!("{name}: {verb} failed"),
    };
    anyhow::Error::new(ErrnoError(errno))
        .context(errno)
        .context(message)
}

/// The error number at the root of an error chain.
#[derive(Debug)]
struct ErrnoError(Errno);

impl std::fmt::Display for ErrnoError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "error {}", self.0.0)
    }
}

impl std::error::Error for ErrnoError {}

fn list(payloads: Vec<Payload>) -> Report {
    let value = json!({ "payloads": payloads });
    if payloads.is_empty() {
        return Report {
            text: "no payloads are loaded".to_owned(),
            value,
            acted: false,
        };
    }
    let lines: Vec<String> = payloads
        .iter()
        .map(|payload| {
            let state = match payload.status.state {
                State::Checked => "checked".to_owned(),
                State::Applied => "applied".to_owned(),
                State::Unknown(number) => format!("state {number}"),
            };
            let rc = match payload.status.rc {
                0 => String::new(),
                rc => format!(" (last action: {})", Errno(rc.wrapping_neg())),
            };
            format!(
                "{:<32} {state}{rc}  {}",
                escaped(&payload.name).to_string(),
                escaped(&payload.metadata.join("; "))
            )
            .trim_end()
            .to_owned()
        })
        .collect();
    Report {
        text: lines.join("\n"),
        value,
        acted: false,
    }
}

fn info(hypervisor: &Privcmd) -> anyhow::Result<Report> {
    let version = version_info(hypervisor).map_err(explain_interface)?;
    let livepatch =
        Livepatch::negotiate(hypervisor).and_then(|l| Ok((l.interface_version(), l.list()?)));
    let (built_in, interface, payloads) = match livepatch {
        Ok((interface, payloads)) => ("yes".to_owned(), Some(interface.0), Some(payloads.len())),
        Err(Errno::ENOSYS | Errno::EOPNOTSUPP) => ("no".to_owned(), None, None),
        Err(errno) => (
            format!("unknown ({})", explain_interface(errno)),
            None,
            None,
        ),
    };
    let text = format!(
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
        interface.map_or("unknown".to_owned(), |v| format!("{v:#x}")),
        payloads.map_or("unknown".to_owned(), |n| n.to_string()),
    );
    let value = json!({
        "hypervisor": version,
        "live_patching": built_in,
        "sysctl_interface": interface,
        "payloads": payloads,
    });
    Ok(Report {
        text,
        value,
        acted: false,
    })
}
