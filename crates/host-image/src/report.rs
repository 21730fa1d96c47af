// SPDX-License-Identifier: MIT OR Apache-2.0

//! Verdicts on payloads.

use crate::Image;
use crate::machine::Machine;
use serde::{Serialize, Serializer};
use std::ops::Range;
use xsplice_abi::note::hex;
use xsplice_engine::{
    Action, Cause, Enforcement, Engine, Failure, Guard, Host, Loaded, Options, Policy, Signatures,
};

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// The payload works, but this should be known.
    Warning,
    /// The payload would load, but applying it would be refused.
    NotApplied,
    /// The upload of the payload would be refused.
    NotLoaded,
}

/// A problem with a payload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Problem {
    /// Its severity.
    pub severity: Severity,
    /// The result that the hypervisor would return, such as `EINVAL`.
    pub errno: &'static str,
    /// The number of that result.
    pub code: i32,
    /// What is wrong, where, and what to do.
    pub message: String,
}

/// A function that a payload patches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Function {
    /// Its name in the payload; empty when it has none.
    pub name: String,
    /// Its address in the hypervisor.
    #[serde(serialize_with = "hexadecimal")]
    #[schemars(with = "String")]
    pub old_addr: u64,
    /// Size there.
    pub old_size: u32,
    /// Size of the replacement.
    pub new_size: u32,
    /// Number of bytes written over it.
    pub written: u64,
    #[serde(skip)]
    patched: Range<u64>,
    /// Code under these bytes that the hypervisor itself patches at boot: memory
    /// differs from the image there.
    #[serde(serialize_with = "hexadecimals")]
    #[schemars(with = "Vec<String>")]
    pub boot_time_sites: Vec<u64>,
    /// Data and code that holds its address: indirect calls reach the new function
    /// through the old entry point.
    #[serde(serialize_with = "hexadecimals")]
    #[schemars(with = "Vec<String>")]
    pub address_taken: Vec<u64>,
    /// Why it must not be patched: a CPU may run it while it is being overwritten.
    pub denied: Option<&'static str>,
}

/// The verdict on one payload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Report {
    /// Name it was loaded under.
    pub name: String,
    /// Whether it would load.
    pub loads: bool,
    /// Whether it would apply on top of the payloads before it, hooks aside.
    pub applies: bool,
    /// Whether it would replace the payloads before it, hooks aside.
    pub replaces: bool,
    /// The payloads that are applied at that point, from the bottom up.
    pub below: Vec<String>,
    /// Its build-id, if it has one that can be read.
    pub build_id: Option<String>,
    /// Who has signed it, if that was asked for.
    pub signer: Option<String>,
    /// All problems found while loading and applying it.
    pub problems: Vec<Problem>,
    /// Why it would not replace the applied payloads.
    pub replace_problems: Vec<Problem>,
    /// Payloads that it would replace and whose variables would be lost: their
    /// replacements start from initial values.
    pub replace_loses: Vec<String>,
    /// Number of further problems that were found but not recorded.
    pub more_problems: usize,
    /// Bytes that an apply writes in the window.
    pub apply_writes: u64,
    /// The same of a replace.
    pub replace_writes: u64,
    /// The functions that it patches; empty if it would not load.
    pub functions: Vec<Function>,
    /// Its metadata strings.
    pub metadata: Vec<String>,
}

// JSON numbers do not hold 64-bit addresses everywhere.
#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn hexadecimal<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{value:#x}"))
}

fn hexadecimals<S: Serializer>(values: &[u64], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(|value| format!("{value:#x}")))
}

impl From<&xsplice_engine::Problem> for Problem {
    fn from(problem: &xsplice_engine::Problem) -> Self {
        let severity = match problem.severity() {
            xsplice_engine::Severity::Warning => Severity::Warning,
            xsplice_engine::Severity::NotApplied => Severity::NotApplied,
            xsplice_engine::Severity::NotLoaded => Severity::NotLoaded,
        };
        let errno = problem.errno();
        Self {
            severity,
            errno: errno.name().unwrap_or("?"),
            code: errno.0,
            message: problem.to_string(),
        }
    }
}

impl Problem {
    /// The reasons why an action is not possible.
    fn of(failure: &Failure) -> Vec<Self> {
        match &failure.cause {
            Cause::Unmet { problems } => problems.iter().map(Self::from).collect(),
            cause => {
                let errno = failure.errno();
                vec![Self {
                    severity: Severity::NotApplied,
                    errno: errno.name().unwrap_or("?"),
                    code: errno.0,
                    message: cause.to_string(),
                }]
            }
        }
    }
}

impl Report {
    fn new(name: &str, below: Vec<String>) -> Self {
        Self {
            name: name.to_owned(),
            loads: false,
            applies: false,
            replaces: false,
            below,
            build_id: None,
            signer: None,
            problems: Vec::new(),
            replace_problems: Vec::new(),
            replace_loses: Vec::new(),
            more_problems: 0,
            apply_writes: 0,
            replace_writes: 0,
            functions: Vec::new(),
            metadata: Vec::new(),
        }
    }

    fn loaded(host: &impl Host, payload: &Loaded, below: Vec<String>) -> Self {
        let function = |function: &xsplice_engine::Function| Function {
            name: function.name(host),
            old_addr: function.old_addr,
            old_size: function.old_size,
            new_size: function.new_size,
            written: written(function),
            patched: function.patched(),
            boot_time_sites: Vec::new(),
            address_taken: Vec::new(),
            denied: None,
        };
        Self {
            loads: true,
            build_id: Some(hex(payload.build_id())),
            signer: payload.signer().map(str::to_owned),
            problems: payload.problems().iter().map(Problem::from).collect(),
            functions: payload.functions().iter().map(function).collect(),
            metadata: payload.metadata().to_vec(),
            ..Self::new(payload.name(), below)
        }
    }
}

/// Number of bytes written over a function.
fn written(function: &xsplice_engine::Function) -> u64 {
    let range = function.patched();
    range.end - range.start
}

/// The hypervisor and guard that payloads are checked against.
#[derive(Clone, Copy, Debug)]
pub struct Checker<'i> {
    image: &'i Image,
    guard: Guard,
    signatures: Signatures<'i>,
}

/// A payload that was checked, and how it entered the hypervisor.
struct Past<'p> {
    name: &'p str,
    file: &'p [u8],
    action: Option<Action>,
}

impl<'i> Checker<'i> {
    /// Checks against a hypervisor that uses [`Guard::Both`].
    #[must_use]
    pub const fn new(image: &'i Image) -> Self {
        Self {
            image,
            guard: Guard::Both,
            signatures: Signatures {
                keys: &[],
                enforcement: Enforcement::Off,
            },
        }
    }

    /// Sets a different guard.
    #[must_use]
    pub const fn with_guard(self, guard: Guard) -> Self {
        Self { guard, ..self }
    }

    /// Demands signatures: without, they are not checked.
    #[must_use]
    pub const fn with_signatures(self, signatures: Signatures<'i>) -> Self {
        Self { signatures, ..self }
    }

    /// Loads payloads, each with its name, in the order given, and applies each; one
    /// that cannot be applied but can replace the applied ones does that.
    ///
    /// A payload that would not load, apply or replace does not affect the others,
    /// except by its name and symbols once loaded.
    #[must_use]
    pub fn check<N: AsRef<str>, B: AsRef<[u8]>>(&self, payloads: &[(N, B)]) -> Vec<Report> {
        let mut engine = self.engine(&[]);
        let mut past = Vec::with_capacity(payloads.len());
        let mut reports = Vec::with_capacity(payloads.len());
        for (name, file) in payloads {
            let (name, file) = (name.as_ref(), file.as_ref());
            let (report, action) = self.check_one(&mut engine, &past, name, file);
            if report.loads {
                past.push(Past { name, file, action });
            }
            reports.push(report);
        }
        self.look_around(&mut reports);
        reports
    }

    /// The state after `past`.
    fn engine(&self, past: &[Past<'_>]) -> Engine<Machine<'i>> {
        let machine = Machine::new(self.image).with_signatures(self.signatures);
        let policy = match self.image.has_our_core() {
            true => Policy::Engine,
            false => Policy::Stock,
        };
        let mut engine = Engine::new(machine, policy).with_guard(self.guard);
        for Past { name, file, action } in past {
            // It succeeded before, so it does again.
            let loaded = engine.upload(name, file).is_ok();
            if let Some(action) = action.filter(|_| loaded) {
                let _: Result<(), Failure> = engine.act(name, action, Options::default());
            }
        }
        engine
    }

    fn check_one(
        &self,
        engine: &mut Engine<Machine<'i>>,
        past: &[Past<'_>],
        name: &str,
        file: &[u8],
    ) -> (Report, Option<Action>) {
        let applied = engine.stack().applied();
        let below = applied.map(|payload| payload.name().to_owned()).collect();
        let reverts: u64 = engine
            .stack()
            .applied()
            .flat_map(Loaded::functions)
            .map(written)
            .sum();
        let with_variables = engine.stack().applied().filter(|p| p.has_variables());
        let variables = with_variables.map(|p| p.name().to_owned()).collect();
        if let Err(refusal) = engine.upload(name, file) {
            let report = Report {
                problems: refusal.problems.iter().map(Problem::from).collect(),
                more_problems: refusal.more,
                ..Report::new(name, below)
            };
            return (report, None);
        }
        let Some(payload) = engine.stack().loaded().last() else {
            return (Report::new(name, below), None);
        };
        let mut report = Report::loaded(engine.host(), payload, below);
        report.apply_writes = report.functions.iter().map(|f| f.written).sum();
        report.replace_writes = report.apply_writes + reverts;

        let mut replaced = self.engine(past);
        let replace = match replaced.upload(name, file) {
            Ok(_) => replaced.act(name, Action::Replace, Options::default()),
            // It was just loaded, on the same state.
            Err(_) => return (report, None),
        };
        match replace {
            Ok(()) => {
                report.replaces = true;
                report.replace_loses = variables;
            }
            Err(failure) => report.replace_problems = Problem::of(&failure),
        }
        let action = match engine.act(name, Action::Apply, Options::default()) {
            Ok(()) => {
                report.applies = true;
                Some(Action::Apply)
            }
            Err(failure) => {
                report.problems.extend(Problem::of(&failure));
                report.replaces.then(|| {
                    *engine = replaced;
                    Action::Replace
                })
            }
        };
        (report, action)
    }

    /// Adds what the image reveals about the functions.
    fn look_around(&self, reports: &mut [Report]) {
        let surroundings = self.image.surroundings();
        for function in reports.iter_mut().flat_map(|report| &mut report.functions) {
            let start = function.old_addr;
            function.boot_time_sites = surroundings.boot_time_sites(&function.patched);
            function.address_taken = surroundings.address_taken(start).to_vec();
        }
    }
}

/// Loads and applies payloads on an image: [`Checker::check`] without options.
#[must_use]
pub fn check<N: AsRef<str>, B: AsRef<[u8]>>(image: &Image, payloads: &[(N, B)]) -> Vec<Report> {
    Checker::new(image).check(payloads)
}
