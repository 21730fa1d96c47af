// SPDX-License-Identifier: MIT OR Apache-2.0

//! `cargo xtask bench xen`: compares the hypervisor with our engine to Debian's, with
//! the same operations on both.
//!
//! Everything is measured twice: with instructions counted, which are nearly the same on
//! any machine, and with ticks. On x86-64, QEMU runs all CPUs in step with its count; an
//! ARM64 host does not boot that way, and the plugin counts alone. A QEMU plugin,
//! `xsplice-stopwatch`, does the measuring: neither hypervisor is modified, and no guest
//! clock is used.

mod code;
mod lab;
mod payload;
mod places;
mod report;

use crate::Arch;
use lab::{Lab, Measure, OPERATE};
use payload::{Image, Payload};
use places::Places;
use std::collections::BTreeSet;
use std::path::PathBuf;
use xsplice_testbed::arm64::ARM64;
use xsplice_testbed::base::Base;
use xsplice_testbed::size::Size;
use xsplice_testbed::{cache, hypervisor, programs, xen};

/// A series of measurements, by a count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Series {
    /// The upload of a payload, by its functions.
    Functions,
    /// The upload of a payload, by its symbols.
    Symbols,
    /// The upload of a large payload, by the number of payloads loaded before it.
    Loaded,
    /// The window of an apply, by functions.
    Apply,
    /// The same for functions on cold pages. QEMU has no translations of those, so
    /// writes there are like writes to data.
    ApplyCold,
    /// The window of a replace, by the number of replaced payloads.
    Replace,
}

/// Xen has few more functions that can be replaced, and on ARM64 fewer.
const FUNCTIONS: [usize; 4] = [10, 100, 1000, 3000];
const SYMBOLS: [usize; 4] = [10, 100, 1000, 5000];
const LOADED: [usize; 4] = [0, 1, 5, 10];
/// Functions, and symbols, of a large payload.
const LARGE: usize = 1000;
const APPLIED: [usize; 4] = [1, 10, 100, 1000];
const REPLACED: [usize; 2] = [10, 100];

/// Ticks or instructions.
type Results = Vec<(Series, usize, u64)>;

/// A hypervisor, and what is needed to measure it.
struct Subject {
    arch: Arch,
    engine: xen::Engine,
    base: Base,
    places: Places,
    plan: Plan,
    xsplice: PathBuf,
    operate: PathBuf,
    stopwatch: PathBuf,
}

/// The operations and their payloads, which are all on the host from the start,
/// because the line to it is slow.
struct Plan {
    uploaded: Vec<(Series, usize, Payload)>,
    applied: Vec<(Series, usize, Payload)>,
    replaced: Vec<(Vec<Payload>, Payload)>,
    /// One on top of the other.
    loaded: Vec<Payload>,
}

impl Plan {
    /// Everything except the operations on cold functions.
    fn new(image: &Image) -> anyhow::Result<Self> {
        let all = image.functions();
        let plain =
            |name: String, functions, symbols| image.payload(&name, 0..functions, symbols, None);
        let mut uploaded = Vec::new();
        for number in possible(FUNCTIONS, all, "functions") {
            let payload = plain(format!("functions{number}"), number, 0)?;
            uploaded.push((Series::Functions, number, payload));
        }
        for number in SYMBOLS {
            let payload = plain(format!("symbols{number}"), 1, number)?;
            uploaded.push((Series::Symbols, number, payload));
        }
        let mut applied = Vec::new();
        for number in possible(APPLIED, image.unchanged(), "functions that behave the same") {
            let payload = plain(format!("applied{number}"), number, 0)?;
            applied.push((Series::Apply, number, payload));
        }
        let mut replaced = Vec::new();
        for number in REPLACED {
            let mut stack: Vec<Payload> = Vec::new();
            for index in 0..number {
                let below = stack.last();
                let name = format!("stack{number}-{index}");
                stack.push(image.payload(&name, index..index + 1, 0, below)?);
            }
            let name = format!("top{number}");
            let top = image.payload(&name, number..number + 1, 0, None)?;
            replaced.push((stack, top));
        }
        let most = LOADED.into_iter().max().unwrap_or_default();
        let loaded = (0..=most).map(|index| plain(format!("large{index}"), LARGE, LARGE));
        Ok(Self {
            uploaded,
            applied,
            replaced,
            loaded: loaded.collect::<anyhow::Result<_>>()?,
        })
    }

    /// Adds the operations on the functions of `cold`, which never run.
    fn add_cold(&mut self, cold: &Image) -> anyhow::Result<()> {
        for number in possible(APPLIED, cold.functions(), "functions on cold pages") {
            let payload = cold.payload(&format!("cold{number}"), 0..number, 0, None)?;
            self.applied.push((Series::ApplyCold, number, payload));
        }
        Ok(())
    }

    fn payloads(&self) -> impl Iterator<Item = &Payload> {
        let alone = self.uploaded.iter().chain(&self.applied);
        let alone = alone.map(|(.., payload)| payload);
        let replaced = self.replaced.iter();
        let replaced = replaced.flat_map(|(stack, top)| stack.iter().chain([top]));
        alone.chain(replaced).chain(&self.loaded)
    }
}

/// The `numbers` of which there are enough; the others are named.
fn possible<const N: usize>(
    numbers: [usize; N],
    there: usize,
    what: &str,
) -> impl Iterator<Item = usize> {
    numbers.into_iter().filter(move |&number| {
        let enough = number <= there;
        if !enough {
            eprintln!("there are only {there} {what}: {number} of them are not measured");
        }
        enough
    })
}

impl Subject {
    /// The hypervisor's pages that run at boot and during uploads, applies and
    /// reverts.
    fn run_pages(&self) -> anyhow::Result<BTreeSet<u64>> {
        let mut lab = Lab::boot(self, Measure::Pages)?;
        measure(&mut lab, self)?;
        lab.pages()
    }
}

/// Measures both hypervisors for `arch`.
pub(crate) fn run(arch: Arch) -> anyhow::Result<()> {
    let (xsplice, operate) = match arch {
        Arch::X86_64 => (
            programs::build_xsplice()?,
            programs::build_example("xsplice-dom0", OPERATE)?,
        ),
        Arch::Arm64 => (
            ARM64.build_xsplice()?,
            programs::build_example_for(&ARM64, "xsplice-dom0", OPERATE)?,
        ),
    };
    let stopwatch = programs::build_shared("xsplice-stopwatch")?;
    let subject = |engine, base: Base| -> anyhow::Result<Subject> {
        let image = Image::read(arch, &base.xen_syms)?;
        let mut subject = Subject {
            arch,
            engine,
            places: Places::find(arch, &base.xen_syms)?,
            plan: Plan::new(&image)?,
            base,
            xsplice: xsplice.clone(),
            operate: operate.clone(),
            stopwatch: stopwatch.clone(),
        };
        let cold = image.cold(&subject.run_pages()?);
        subject.plan.add_cold(&cold)?;
        Ok(subject)
    };
    let _hypervisors = cache::hold_hypervisors()?;
    let theirs = subject(xen::Engine::C, hypervisor::base(arch.machine())?)?;
    let rust = xen::Build::new(xen::Engine::Rust);
    let ours = std::fs::read_to_string(xen::build(arch.machine(), &rust)?)?;
    let ours = subject(xen::Engine::Rust, serde_json::from_str(&ours)?)?;
    let size = Size::of(&ours.base.xen, &theirs.base.xen)?;
    let (mut counted, mut timed, mut idle) = (Vec::new(), Vec::new(), Vec::new());
    for subject in [&theirs, &ours] {
        let mut lab = Lab::boot(subject, Measure::Instructions)?;
        idle.push(lab.idle()?);
        counted.push(measure(&mut lab, subject)?);
    }
    for subject in [&theirs, &ours] {
        let mut lab = Lab::boot(subject, Measure::Ticks)?;
        timed.push(measure(&mut lab, subject)?);
    }
    report::print(arch, &counted, &timed, &idle, &size);
    Ok(())
}

fn measure(lab: &mut Lab, Subject { engine, plan, .. }: &Subject) -> anyhow::Result<Results> {
    let (what, mut results) = (lab.measure, Vec::new());
    let mut note = |series, number, value| {
        eprintln!("{engine:?}, {what:?}: {series:?} {number}: {value}");
        results.push((series, number, value));
    };
    // Uploads first: during an action, a hypercall is repeated many times, and the
    // stopwatch's output is limited.
    for (series, number, payload) in &plan.uploaded {
        note(*series, *number, lab.upload(payload)?);
    }
    for (loaded, payload) in plan.loaded.iter().enumerate() {
        if LOADED.contains(&loaded) {
            note(Series::Loaded, loaded, lab.upload(payload)?);
        }
        lab.load(payload)?;
    }
    for payload in plan.loaded.iter().rev() {
        lab.unload(payload)?;
    }
    for (series, functions, payload) in &plan.applied {
        note(*series, *functions, lab.apply(payload)?);
    }
    for (stack, top) in &plan.replaced {
        note(Series::Replace, stack.len(), lab.replace(stack, top)?);
    }
    Ok(results)
}
