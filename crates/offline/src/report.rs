//! Verdicts on payloads.

use crate::Image;
use serde::{Serialize, Serializer};
use std::fmt::Write as _;
use xsplice_engine::{Errno, Loader, Policy, Stack};

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
        let errno: Errno = problem.errno();
        Self {
            severity,
            errno: errno.name().unwrap_or("?"),
            code: errno.0,
            message: problem.to_string(),
        }
    }
}

/// Loads and applies payloads, each with its name, in the order given.
///
/// A payload that would not load leaves no trace; the next one is checked as if
/// it had not been there.
#[must_use]
pub fn check<N: AsRef<str>, B: AsRef<[u8]>>(image: &Image, payloads: &[(N, B)]) -> Vec<Report> {
    let mut stack = Stack::new();
    let mut reports = Vec::with_capacity(payloads.len());
    for (name, file) in payloads {
        let loader = Loader {
            host: image,
            stack: &stack,
            policy: Policy::Stock,
        };
        let loaded = loader.load(name.as_ref(), file.as_ref());
        let mut report = Report {
            name: name.as_ref().to_owned(),
            loads: loaded.is_ok(),
            applies: false,
            build_id: None,
            problems: Vec::new(),
            more_problems: 0,
            functions: Vec::new(),
            metadata: Vec::new(),
        };
        match loaded {
            Ok(payload) => {
                report.applies = payload.applies();
                report.build_id = Some(hex(payload.build_id()));
                report.problems = payload.problems().iter().map(Problem::from).collect();
                report.metadata = payload.metadata().to_vec();
                let function = |function: &xsplice_engine::Function| Function {
                    name: function.name.clone(),
                    old_addr: function.old_addr,
                    old_size: function.old_size,
                    new_size: function.new_size,
                };
                report.functions = payload.functions().iter().map(function).collect();
                stack.push(payload);
            }
            Err(refusal) => {
                report.problems = refusal.problems.iter().map(Problem::from).collect();
                report.more_problems = refusal.more;
            }
        }
        reports.push(report);
    }
    reports
}
