// SPDX-License-Identifier: MIT OR Apache-2.0
//! From what the host has to what its policy wants: `xsplice plan` and `xsplice sync`.

use super::failure;
use super::status::look;
use super::{At, Wait, hypervisor, now, recorded, recorder};
use crate::admin::{Dom0, Missing, TIMEOUT_MS};
use crate::code::Code;
use crate::output::{Ended, complain, say};
use schemars::JsonSchema;
use serde::Serialize;
use std::process::ExitCode;
use xsplice_abi::text::escaped;
use xsplice_store::{
    Action, Event, Goal, Host as _, Identity, Journal, Outcome, Plan, Policy, Quarantine,
    Quarantined, Recorder, Request, Root, Step, Sync, SyncError, SyncSummary,
};

const PLAN: &str = "\
Examples:
  xsplice plan
  xsplice plan --level 2 --allow-downgrade

Checks everything that can be checked without changing anything. Exit codes: 0 if there
is nothing to do, 3 if there are steps, 1 if the plan cannot be carried out.";

const SYNC: &str = "\
Examples:
  xsplice sync
  xsplice sync --wait 60
  xsplice sync --level 2 --allow-downgrade

The policy is /etc/xsplice/host.toml: want = \"latest\" (the default without this file),
the name of a payload, or \"none\". If a step fails, the payload that was applied before
is restored, and the one that failed goes into quarantine.";

/// What to reach.
#[derive(clap::Args)]
struct Aim {
    /// Go to this level instead of the one that the policy wants.
    #[arg(long, value_name = "N")]
    level: Option<u32>,
    /// Allow the level to fall.
    #[arg(long)]
    allow_downgrade: bool,
    /// Allow the host to be without any payload for a moment: payloads with hooks that run
    /// before or after the CPUs are stopped cannot be replaced in one action.
    #[arg(long)]
    allow_gap: bool,
    /// Run without an administrator: apply again what this host had, and a new level only
    /// if the policy says `auto`.
    #[arg(long, conflicts_with = "level")]
    unattended: bool,
}

/// Arguments of `xsplice plan`.
#[derive(clap::Args)]
#[command(after_help = PLAN)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    aim: Aim,
    #[command(flatten)]
    at: At,
}

/// Arguments of `xsplice sync`.
#[derive(clap::Args)]
#[command(after_help = SYNC)]
pub(crate) struct SyncArgs {
    #[command(flatten)]
    aim: Aim,
    /// Release this payload from quarantine first.
    #[arg(long, value_name = "NAME")]
    release: Option<String>,
    /// Only accept what is applied as good, before an orderly shutdown.
    #[arg(long, conflicts_with_all = ["level", "allow_downgrade", "allow_gap", "unattended", "release"])]
    settle: bool,
    /// Rendezvous timeout in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = TIMEOUT_MS,
          value_parser = clap::value_parser!(u32).range(1..=4294))]
    timeout: u32,
    #[command(flatten)]
    wait: Wait,
    #[command(flatten)]
    at: At,
}

impl Aim {
    fn request(&self) -> Request {
        Request {
            level: self.level,
            allow_downgrade: self.allow_downgrade,
            allow_gap: self.allow_gap,
            unattended: self.unattended,
        }
    }
}

/// What `sync` would do.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Planned {
    /// The level that it has.
    from: u32,
    /// The level that it will have.
    to: u32,
    /// The steps.
    steps: Vec<Step>,
    /// What the policy allows and an administrator should know.
    warnings: Vec<String>,
}

/// What `sync` did.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Synced {
    /// The level before.
    from: u32,
    /// The level now; null if the hypervisor does not say, or what it has cannot be read in
    /// the store.
    level: Option<u32>,
    /// The steps that were done.
    steps: Vec<Step>,
    /// How often the hypervisor was busy.
    retries: u32,
    /// Whether the former payload was restored; null if it did not have to be, or that is
    /// not known.
    restored: Option<bool>,
    /// What went into quarantine.
    quarantined: Vec<Quarantined>,
    /// What the policy allows and an administrator should know.
    warnings: Vec<String>,
    /// What was done, and could not be recorded.
    unrecorded: Vec<String>,
}

pub(super) fn plan(args: &PlanArgs, json: bool) -> anyhow::Result<ExitCode> {
    let root = args.at.root();
    let (privcmd, base, _) = hypervisor()?;
    let host = ask(&privcmd, TIMEOUT_MS)?;
    let look = look(&root, &base, &host, &now()?)?;
    let (policy, request) = (&look.policy, args.aim.request());
    let observed = look.observed();
    let planned = Plan::permitted(policy, &request)
        .and_then(|()| Plan::make(&observed, &look.catalogue, policy, &look.record, &request));
    let checked = planned.map_err(SyncError::from).and_then(|plan| {
        check(&root, &host, &plan)?;
        Ok(plan)
    });
    let state = look.report(&root).condition.word();
    let plan = match checked {
        Ok(plan) => plan,
        Err(error) => {
            complain!("error: {error}");
            let ended = Ended::<Planned>::badly(failure::sync(&error, false));
            return Ok(ended.state(Some(state)).tell(json));
        }
    };
    let from = observed.level();
    let to = match plan.goal {
        Goal::Payload(entry) => entry.manifest.level,
        Goal::Nothing => 0,
        Goal::AsItIs => from,
    };
    if !json {
        match plan.steps.as_slice() {
            [] => say!("nothing to do: level {from}"),
            steps => {
                say!("from level {from} to level {to}:");
                steps.iter().for_each(|step| say!("  {step}"));
            }
        }
    }
    let warnings = plan.warnings(&look.catalogue);
    for warning in &warnings {
        complain!("warning: {warning}");
    }
    let any = !plan.steps.is_empty();
    let steps = plan.steps;
    let planned = Ended::well(Planned {
        from,
        to,
        steps,
        warnings,
    });
    Ok(planned.state(Some(state)).unwanted(any).tell(json))
}

/// Checks the payload that the plan uploads, as a sync does.
fn check(root: &Root, host: &Dom0, plan: &Plan) -> Result<(), SyncError> {
    let Some(entry) = plan.uploaded() else {
        return Ok(());
    };
    let name = entry.manifest.name.clone();
    let checked = host.check(&name, &entry.read(root)?);
    checked.map_err(|fault| SyncError::Check { name, fault })
}

/// The hypervisor, which must have live patching.
fn ask(privcmd: &xsplice_dom0::Privcmd, timeout: u32) -> anyhow::Result<Dom0<'_>> {
    Dom0::new(privcmd, timeout).map_err(|missing| match missing {
        Missing::LivePatching => {
            let words = "this hypervisor was built without live patching (CONFIG_LIVEPATCH)";
            Code::LivePatchingMissing.error(words)
        }
        Missing::Answer(error) => error,
    })
}

pub(super) fn sync(args: &SyncArgs, json: bool) -> anyhow::Result<ExitCode> {
    let root = args.at.root();
    let (privcmd, base, _) = hypervisor()?;
    let mut host = ask(&privcmd, args.timeout)?;
    let _lock = args.wait.take(&root)?;
    let policy = Policy::read(&root)?;
    let log = Journal::new(&root);
    let recorder = recorder(&root, &log)?;
    if let Some(name) = &args.release {
        release(&root, &recorder, name)?;
    }
    let sync = Sync {
        disk: &root,
        host: &mut host,
        base: &base,
        policy: &policy,
        request: &args.aim.request(),
        recorder,
    };
    let ended = if args.settle {
        sync.settle_now()
    } else {
        sync.run()
    };
    let state = look(&root, &base, &host, &now()?).map(|look| look.report(&root).condition.word());
    let state = state.ok();
    let changed = ended.changed || args.release.is_some();
    let error = ended.error.as_ref();
    let failure = error.map(|error| failure::sync(error, changed));
    if !json {
        tell(&ended, state);
    }
    complain_of(&ended);
    let synced = Synced {
        from: ended.from,
        level: ended.level,
        steps: ended.steps,
        retries: ended.retries,
        restored: ended.restored,
        quarantined: ended.quarantined,
        warnings: ended.warnings,
        unrecorded: ended.unrecorded,
    };
    let ended = Ended::well(synced).changed(changed).state(state);
    Ok(ended.but(failure).tell(json))
}

/// Prints what went wrong, and what the policy allows.
fn complain_of(ended: &SyncSummary) {
    for warning in &ended.warnings {
        complain!("warning: {warning}");
    }
    if let Some(error) = &ended.error {
        complain!("error: {error}");
        if ended.has_less() {
            complain!(
                "error: this host has less than before: it had level {}",
                ended.from
            );
        }
        if ended.level.is_none() && ended.changed {
            complain!("error: what this host has now is not known: `xsplice status` shows it");
        }
        for line in error.fault().iter().flat_map(|fault| &fault.console) {
            complain!("  hypervisor: {line}");
        }
    }
    for unrecorded in &ended.unrecorded {
        complain!("error: not recorded: {unrecorded}");
    }
}

/// Prints what was done, for people.
fn tell(ended: &SyncSummary, state: Option<&str>) {
    for step in &ended.steps {
        say!("{step}: done");
    }
    for quarantined in &ended.quarantined {
        let name = escaped(&quarantined.payload.name);
        say!("{name}: in quarantine: {}", quarantined.reason);
    }
    match ended.restored {
        Some(true) => say!("what was applied before is restored"),
        Some(false) => say!("what was applied before could not be restored"),
        None => {}
    }
    let level = ended
        .level
        .map_or("unknown".to_owned(), |level| level.to_string());
    say!("level {level}, {}", state.unwrap_or("state unknown"));
}

fn release(root: &Root, recorder: &Recorder<Root>, name: &str) -> anyhow::Result<()> {
    let mut quarantine = Quarantine::read(root)?;
    let named = quarantine
        .all()
        .iter()
        .map(|quarantined| &quarantined.payload);
    let named = named.filter(|payload| payload.name == name).cloned();
    let named: Vec<Identity> = named.collect();
    if named.is_empty() {
        let name = escaped(name);
        let words = format!("{name}: no payload of this name is in quarantine");
        return Err(Code::NotThere.error(words));
    }
    for payload in named {
        let event = Event::new(Action::Release, Outcome::Begun, Some(payload.clone()));
        recorded(recorder, event, || quarantine.release(root, &payload))?;
    }
    Ok(())
}
