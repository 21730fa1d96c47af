// SPDX-License-Identifier: MIT OR Apache-2.0

//! Verdicts on payloads.

use crate::Image;
use crate::machine::Machine;
use serde::{Serialize, Serializer};
use std::fmt::Write as _;
use xsplice_engine::{Action, Cause, Engine, Failure, Loaded, Options, Policy};

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// The payload works, but somebody should know.
    Warning,
    /// The payload would load, but applying it would be refused.
    NotApplied,
    /// The payload would be refused when it is uploaded.
    NotLoaded,
}

/// One thing that is wrong with a payload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// The result that the hypervisor would give, such as `EINVAL`.
    pub errno: &'static str,
    /// The number of that result.
    pub code: i32,
    /// What is wrong, where, and what to do.
    pub message: String,
}

/// A function that a payload patches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Function {
    /// Its name in the payload; empty when it has none.
    pub name: String,
    /// Where it is in the hypervisor.
    #[serde(serialize_with = "hexadecimal")]
    pub old_addr: u64,
    /// Size there.
    pub old_size: u32,
    /// Size of the replacement.
    pub new_size: u32,
}

/// The verdict on one payload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Name it was loaded under.
    pub name: String,
    /// Whether it would load.
    pub loads: bool,
    /// Whether it would apply on what is applied before it, its hooks aside.
    pub applies: bool,
    /// Its build-id, when it has one that can be read.
    pub build_id: Option<String>,
    /// Everything that was found.
    pub problems: Vec<Problem>,
    /// How many further problems were found and not recorded.
    pub more_problems: usize,
    /// What it patches; empty when it would not load.
    pub functions: Vec<Function>,
    /// The strings that describe it.
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

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
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
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            loads: false,
            applies: false,
            build_id: None,
            problems: Vec::new(),
            more_problems: 0,
            functions: Vec::new(),
            metadata: Vec::new(),
        }
    }

    fn loaded(payload: &Loaded) -> Self {
        let function = |function: &xsplice_engine::Function| Function {
            name: function.name.clone(),
            old_addr: function.old_addr,
            old_size: function.old_size,
            new_size: function.new_size,
        };
        Self {
            loads: true,
            build_id: Some(hex(payload.build_id())),
            problems: payload.problems().iter().map(Problem::from).collect(),
            functions: payload.functions().iter().map(function).collect(),
            metadata: payload.metadata().to_vec(),
            ..Self::new(payload.name())
        }
    }
}

/// Loads and applies payloads, each with its name, in the order given.
///
/// A payload that would not load or apply leaves no trace on the others, but for
/// its name and its symbols when it is loaded.
#[must_use]
pub fn check<N: AsRef<str>, B: AsRef<[u8]>>(image: &Image, payloads: &[(N, B)]) -> Vec<Report> {
    let mut engine = Engine::new(Machine::new(image), Policy::Stock);
    let mut reports = Vec::with_capacity(payloads.len());
    for (name, file) in payloads {
        let name = name.as_ref();
        let mut report = match engine.upload(name, file.as_ref()) {
            Ok(payload) => Report::loaded(payload),
            Err(refusal) => {
                reports.push(Report {
                    problems: refusal.problems.iter().map(Problem::from).collect(),
                    more_problems: refusal.more,
                    ..Report::new(name)
                });
                continue;
            }
        };
        match engine.act(name, Action::Apply, Options::default()) {
            Ok(()) => report.applies = true,
            Err(failure) => report.problems.extend(Problem::of(&failure)),
        }
        reports.push(report);
    }
    reports
}
