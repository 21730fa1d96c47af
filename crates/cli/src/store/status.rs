// SPDX-License-Identifier: MIT OR Apache-2.0
//! The state of the host: `xsplice status`, `xsplice history`, `xsplice metrics`.

use super::{At, hypervisor, now};
use crate::admin::{Dom0, Missing, TIMEOUT_MS};
use crate::code::Code;
use crate::output::{Ended, Failure, Kind, complain, say, shown};
use anyhow::Context as _;
use schemars::JsonSchema;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;
use xsplice_abi::text::escaped;
use xsplice_review::Payload;
use xsplice_store::{
    Break, Broken, BuildId, Catalogue, Date, History, Host, HostRecord, Known, Line, Loaded,
    Moment, Observed, Policy, Progress, Quarantine, Report, Root, Sha256, Trust,
};
use xsplice_system::{file, lines};

const STATUS: &str = "\
Examples:
  xsplice status
  xsplice status --check || xsplice sync
  xsplice status --json | jq -r .state

States: current, behind, nothing-to-apply, held, apply-failed, quarantined, unverified,
diverged, store-damaged, hypervisor-unknown, reboot-required, no-livepatch. With --check,
the exit code is 3 unless the host has what its policy wants (current, nothing-to-apply).";

const HISTORY: &str = "\
Examples:
  xsplice history
  xsplice history --since 2026-11-29T00:00:00Z
  xsplice history --verify

Each line has the hash of the one before, across rotated files, history.jsonl.1 and so on.
Exit codes: 1 if lines were changed, removed, added or reordered; 0 with a note if a line is
incomplete because the host went down, if lines predate the hashes, or if older files are
missing. Missing last lines, or a history rewritten as a whole, are noticed only with --anchor.";

const METRICS: &str = "\
Examples:
  xsplice metrics
  xsplice metrics -o /var/lib/prometheus/node-exporter/xsplice.prom";

/// Arguments of `xsplice status`.
#[derive(clap::Args)]
#[command(after_help = STATUS)]
pub(crate) struct StatusArgs {
    /// Exit with 3 if the host does not have what its policy wants.
    #[arg(long)]
    check: bool,
    /// List the functions that each applied payload replaces.
    #[arg(long)]
    functions: bool,
    #[command(flatten)]
    at: At,
}

/// Arguments of `xsplice history`.
#[derive(clap::Args)]
#[command(after_help = HISTORY)]
pub(crate) struct HistoryArgs {
    /// Only say whether it is as it was written, and print the hash of the last line.
    #[arg(long)]
    verify: bool,
    /// A line must have this hash, which `--verify` printed earlier: then the lines up to
    /// it are still here.
    #[arg(long, value_name = "SHA256", requires = "verify", value_parser = sha256)]
    anchor: Option<Sha256>,
    /// Start at this date, in UTC.
    #[arg(long, value_name = "DATE", value_parser = date)]
    since: Option<Date>,
    #[command(flatten)]
    at: At,
}

/// Arguments of `xsplice metrics`.
#[derive(clap::Args)]
#[command(after_help = METRICS)]
pub(crate) struct MetricsArgs {
    /// The file to write; `-` is standard output.
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
    #[command(flatten)]
    at: At,
}

fn date(text: &str) -> Result<Date, String> {
    text.to_owned().try_into()
}

fn sha256(text: &str) -> Result<Sha256, String> {
    text.to_owned().try_into()
}

/// The state of the host.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Status {
    #[serde(flatten)]
    report: Report,
    /// What is replaced by which payload; null if it was not asked for.
    functions: Option<Vec<Replacement>>,
}

/// The functions of the hypervisor that a payload replaces.
#[derive(Serialize, JsonSchema)]
struct Replacement {
    /// The payload.
    payload: String,
    /// Their names; null if the store does not have the payload.
    functions: Option<Vec<String>>,
}

/// What was done.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Past {
    /// The oldest first.
    lines: Vec<Line>,
    /// Where the chain of hashes does not prove that lines are as they were written.
    broken: Vec<Broken>,
    /// Whether all lines are proved to be as they were written, but for the last ones, which
    /// may be missing.
    whole: bool,
    /// SHA-256 of the last line; null if there is none.
    last: Option<Sha256>,
}

/// The metrics.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Exposed {
    /// In Prometheus's text format.
    metrics: String,
}

/// All that there is to see.
pub(super) struct Look {
    pub(super) policy: Policy,
    pub(super) catalogue: Catalogue,
    pub(super) record: HostRecord,
    quarantine: Quarantine,
    loaded: Vec<Loaded>,
    now: Moment,
}

/// Looks at the host, the store and the hypervisor.
pub(super) fn look(
    root: &Root,
    base: &BuildId,
    host: &impl Host,
    now: &Moment,
) -> anyhow::Result<Look> {
    let loaded = host.list().map_err(|fault| match fault.errno {
        Some(errno) => {
            let words = "the hypervisor does not list its payloads";
            anyhow::Error::new(errno).context(Code::HypervisorRefused.says(words))
        }
        None => Code::HypervisorRefused.error(fault.message),
    })?;
    look_at(root, base, loaded, now)
}

/// Looks at the host and the store, for a hypervisor that holds what is `loaded`.
fn look_at(root: &Root, base: &BuildId, loaded: Vec<Loaded>, now: &Moment) -> anyhow::Result<Look> {
    let policy = Policy::read(root)?;
    let mut progress = Progress::read(root)?;
    let mut quarantine = Quarantine::read(root)?;
    for quarantined in progress.recover(now) {
        quarantine.insert(quarantined);
    }
    let record = progress.of(base);
    let trust = Trust {
        policy: &policy,
        record: &record,
        date: &now.date,
    };
    let catalogue = Catalogue::read(root, base, &trust, &quarantine);
    Ok(Look {
        catalogue,
        record,
        policy,
        quarantine,
        loaded,
        now: now.clone(),
    })
}

impl Look {
    pub(super) fn observed(&self) -> Observed<'_> {
        Observed::new(self.loaded.clone(), &self.catalogue)
    }

    pub(super) fn report(&self, root: &Root) -> Report {
        let report = Report::new(
            &self.observed(),
            &self.catalogue,
            &self.policy,
            &self.record,
            &self.quarantine,
            &self.now,
        );
        report.with_boot(root)
    }

    /// What is replaced by which payload.
    fn functions(&self, root: &Root) -> anyhow::Result<Vec<Replacement>> {
        let observed = self.observed();
        let applied = observed.applied().map(|(loaded, entry)| {
            let functions = entry.map(|entry| -> anyhow::Result<Vec<String>> {
                let payload = Payload::read(&entry.read(root)?, None)?;
                Ok(payload.functions.into_iter().map(|f| f.name).collect())
            });
            Ok(Replacement {
                payload: loaded.name.clone(),
                functions: functions.transpose()?,
            })
        });
        applied.collect()
    }
}

pub(super) fn status(args: &StatusArgs, json: bool) -> anyhow::Result<ExitCode> {
    let root = args.at.root();
    let (privcmd, base, _) = hypervisor()?;
    let status = match Dom0::new(&privcmd, TIMEOUT_MS) {
        Ok(host) => {
            let look = look(&root, &base, &host, &now()?)?;
            Status {
                report: look.report(&root),
                functions: args.functions.then(|| look.functions(&root)).transpose()?,
            }
        }
        Err(Missing::LivePatching) => Status {
            report: Report::without_live_patching(Some(base)),
            functions: None,
        },
        Err(Missing::Answer(error)) => return Err(error),
    };
    if !json {
        lines::print(format_args!("{}", text(&status)));
    }
    let condition = status.report.condition;
    let unwanted = args.check && !condition.is_as_wanted();
    let ended = Ended::well(status).state(Some(condition.word()));
    Ok(ended.unwanted(unwanted).tell(json))
}

fn text(status: &Status) -> String {
    let report = &status.report;
    let mut text = String::new();
    let mut line = |what: &str, value: &str| {
        let value = escaped(value).to_string();
        text += format!("{what:<12}{value}").trim_end();
        text.push('\n');
    };
    line("state", report.condition.word());
    if let Some(reason) = &report.reason {
        line("reason", reason);
    }
    let base = report.base.as_ref();
    line("hypervisor", base.map_or("unknown", BuildId::as_str));
    let wanted = report
        .wanted
        .map_or("unknown".to_owned(), |level| level.to_string());
    let settling = if report.settling {
        ", not yet settled"
    } else {
        ""
    };
    line(
        "level",
        &format!("{} (wanted: {wanted}{settling})", report.level),
    );
    for payload in &report.payloads {
        line("payload", &format!("{}, {}", payload.name, payload.state));
        for (what, value) in details(&payload.known) {
            line(&format!("  {what}"), &value);
        }
    }
    for replacement in status.functions.iter().flatten() {
        let functions = replacement.functions.as_ref();
        let functions = functions.map_or("not in the store".to_owned(), |names| names.join(" "));
        line("replaces", &format!("{}: {functions}", replacement.payload));
    }
    for quarantined in &report.quarantine {
        let (name, since) = (&quarantined.payload.name, &quarantined.date);
        let reason = format!("{name}, since {since}: {}", quarantined.reason);
        line("quarantine", &reason);
    }
    for warning in &report.warnings {
        line("warning", warning);
    }
    if let Some(reboot) = &report.reboot {
        line("reboot", reboot);
    }
    if let Some(unknown) = &report.reboot_unknown {
        line("reboot", &format!("not known whether it is due: {unknown}"));
    }
    for damaged in &report.damaged {
        line(
            "not used",
            &format!("{}: {}", damaged.path.display(), damaged.reason),
        );
    }
    text
}

/// What is known about a payload, each with what it is.
pub(crate) fn details(known: &Known) -> Vec<(&'static str, String)> {
    let fixes = known.fixes.join(" ");
    let id = |id: &Option<BuildId>| id.as_ref().map(ToString::to_string);
    // Of a payload that the store does not have, it would be all there is to say.
    let position = known.position.filter(|_| known.level.is_some());
    let all = [
        ("level", known.level.map(|level| level.to_string())),
        ("fixes", Some(fixes).filter(|fixes| !fixes.is_empty())),
        ("signer", known.signer.as_ref().map(ToString::to_string)),
        ("build-id", id(&known.build_id)),
        ("sha256", known.sha256.as_ref().map(ToString::to_string)),
        ("depends", id(&known.depends)),
        ("position", position.map(|at| at.to_string())),
    ];
    let known = all.into_iter();
    known
        .filter_map(|(what, value)| Some((what, value?)))
        .collect()
}

/// What the store of this host knows about what a hypervisor holds.
///
/// # Errors
/// If the policy of the host, or what this program has written, cannot be read.
pub(crate) fn known(base: &BuildId, loaded: Vec<Loaded>) -> anyhow::Result<Vec<Known>> {
    let look = look_at(&Root::new("/".as_ref()), base, loaded, &now()?)?;
    Ok(Known::of(&look.observed()))
}

/// Whether the payload `name` in the hypervisor is known to be from a file with these `data`.
pub(crate) fn is_uploaded(name: &str, data: &[u8]) -> anyhow::Result<bool> {
    let history = History::read(&Root::new("/".as_ref()))?;
    Ok(history.is_uploaded(&now()?, name, &Sha256::of(data)))
}

pub(super) fn history(args: &HistoryArgs, json: bool) -> anyhow::Result<ExitCode> {
    let history = History::read(&args.at.root())?;
    let failure = changed(&history, args.anchor.as_ref());
    let mut past = Past {
        whole: history.is_whole(),
        last: history.last().cloned(),
        lines: history.lines,
        broken: history.broken,
    };
    for broken in &past.broken {
        let severity = match broken.kind {
            Break::Changed => "error",
            Break::Torn | Break::WithoutHash | Break::OlderMissing => "note",
        };
        complain!("{severity}: {broken}");
    }
    if !json && args.verify && failure.is_none() {
        say!("{}", verdict(&past));
    }
    if let Some(since) = &args.since {
        past.lines.retain(|line| line.date >= *since);
    }
    if !json && !args.verify {
        past.lines.iter().for_each(|line| say!("{}", entry(line)));
    }
    Ok(Ended::well(past).but(failure).tell(json))
}

/// Why the history is not as it was written.
fn changed(history: &History, anchor: Option<&Sha256>) -> Option<Failure> {
    let broken = history.changed().next();
    let refused = |why: String| Failure::new(Kind::Refused, why).with_code(Code::HistoryChanged);
    let broken = broken.map(|broken| refused(broken.to_string()));
    let missing = anchor.filter(|anchor| !history.has(anchor)).map(|anchor| {
        let message = format!(
            "no line has the SHA-256 {anchor}: lines at the end were removed, or all were \
             rewritten"
        );
        complain!("error: {message}");
        refused(message)
    });
    broken.or(missing)
}

/// What `--verify` found out, if nothing was changed.
fn verdict(past: &Past) -> String {
    let count = past.lines.len();
    let proved = match past.whole {
        true => "the chain is whole",
        false => "nothing was changed in the lines that have a hash, and not all is proved",
    };
    let last = past.last.as_ref();
    let last = last.map_or_else(String::new, |last| format!("\nlast line: {last}"));
    format!("{count} lines: {proved}{last}")
}

/// A line for people.
fn entry(line: &Line) -> String {
    let event = &line.event;
    let payload = event.payload.as_ref().map(|payload| &payload.name);
    let name = payload.or(event.name.as_ref()).map_or("-", |name| name);
    let user = line.user.map_or("-".to_owned(), |user| user.to_string());
    let message = event.message.as_deref().unwrap_or_default();
    let text = format!(
        "{}  {:<10} {:<6} {name}  {user}  {message}",
        line.date,
        event.action.word(),
        event.outcome.word()
    );
    escaped(text.trim_end()).to_string()
}

pub(super) fn metrics(args: &MetricsArgs, json: bool) -> anyhow::Result<ExitCode> {
    let root = args.at.root();
    let (privcmd, base, version) = hypervisor()?;
    let report = match Dom0::new(&privcmd, TIMEOUT_MS) {
        Ok(host) => look(&root, &base, &host, &now()?)?.report(&root),
        Err(Missing::LivePatching) => Report::without_live_patching(Some(base)),
        Err(Missing::Answer(error)) => return Err(error),
    };
    let metrics = xsplice_store::metrics(&report, &History::read(&root)?, &version);
    let to_file = args.output.as_os_str() != "-";
    if to_file || !json {
        let written = file::write(&args.output, metrics.as_bytes());
        written.with_context(|| format!("cannot write {}", shown(&args.output)))?;
    }
    let state = report.condition.word();
    let ended = Ended::well(Exposed { metrics }).changed(to_file);
    Ok(ended.state(Some(state)).tell(json))
}
