// SPDX-License-Identifier: MIT OR Apache-2.0
//! A second opinion on a payload: is the hypervisor with the payload applied
//! equivalent to the one built from the patched source?
//!
//! *What it is*: [`verify`] takes the running hypervisor's `xen-syms`, the payloads,
//! and a real build of the patched source: its `xen-syms`, and the `prelink.o` that
//! it was linked from. It applies the payloads to a model of the running hypervisor,
//! and then walks both hypervisors in step, from every function that both have:
//! instruction by instruction, and through every operand, pointer and table entry to
//! its target.
//!
//! *What it trusts*: the build of the patched source, and that `xen-syms` is the
//! running hypervisor. It does not trust the generator, and shares no code with it.
//!
//! *What it guarantees*: if it says that a payload is proved, then each function of
//! the patched hypervisor that can run after boot has a counterpart with the same
//! instructions, whose operands lead to counterparts; every variable has exactly one
//! counterpart, of the same size, class, alignment and initial value; every entry of
//! a table about code belongs to the counterpart; data in memory has the layout of
//! the patched source. Anything without a counterpart is reported.
//!
//! *What it cannot see*: whether values in memory keep their meaning where code
//! and layout allow both, such as an enumerator that gets another number (this
//! is noted); what hooks of a patch do while they run: they are compared with the patched
//! source's, and named. What those do that the generator makes is known, and is done to
//! the running hypervisor before it is compared.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

mod arch;
mod build;
mod class;
mod copy;
mod dwarf;
mod elf;
mod generated;
mod image;
mod objects;
mod payload;
mod plan;
mod prove;
mod record;
mod recorded;
mod running;
mod source;
mod tables;
mod types;
mod unnamed;
mod verdict;
mod witness;

pub use build::{Patched, build, built};
pub use generated::generated_hooks;
pub use plan::{Accepted, Level, Plan, Progress, Silent};
pub use recorded::Recorded;
pub use types::Types;
pub use verdict::{Difference, Kind, Verdict};

/// A file that cannot be used, and why.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {reason}")]
pub struct Unusable {
    what: String,
    reason: String,
}

impl Unusable {
    pub(crate) fn new(what: &str, reason: &dyn std::fmt::Display) -> Self {
        Self {
            what: what.to_owned(),
            reason: reason.to_string(),
        }
    }
}

/// The contents of a file, and its name for messages.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// The name.
    pub name: &'a str,
    /// The contents.
    pub data: &'a [u8],
}

/// The inputs of a comparison.
#[derive(Debug)]
pub struct Inputs<'a> {
    /// `xen-syms` of the running hypervisor.
    pub original: Input<'a>,
    /// The payloads, from the bottom up.
    pub payloads: Vec<Input<'a>>,
    /// `xen-syms` of the patched hypervisor.
    pub patched: Input<'a>,
    /// The `prelink.o` that it was linked from.
    pub objects: Input<'a>,
    /// The source file of each global symbol of the patched hypervisor, as far as
    /// it is known.
    pub files: BTreeMap<String, String>,
    /// The differences of types and the meaning of references in the patched
    /// hypervisor, if determined.
    pub types: Option<&'a Types>,
    /// Accepted differences.
    pub accepted: Accepted,
}

/// The running hypervisor with the payloads applied.
fn running(original: Input, payloads: &[Input]) -> Result<running::Running, Unusable> {
    let image = image::Image::read(original.name, original.data)?;
    recorded::check_order(&image.build_id, payloads)?;
    let running = running::Running::new(image);
    let mut running = running.map_err(|reason| Unusable::new(original.name, &reason))?;
    for payload in payloads {
        running.apply(payload)?;
    }
    Ok(running)
}

/// Checks that the hypervisor and the payloads are usable, for a caller that must
/// build the patched hypervisor first.
///
/// # Errors
/// The first input that cannot be used.
pub fn check(original: Input, payloads: &[Input]) -> Result<(), Unusable> {
    running(original, payloads).map(drop)
}

/// Compares.
///
/// # Errors
/// If an input cannot be used. Differences between the hypervisors are not an error,
/// but part of the [`Verdict`].
pub fn verify(inputs: &Inputs) -> Result<Verdict, Unusable> {
    let patched = image::Image::read(inputs.patched.name, inputs.patched.data)?;
    let mut objects = objects::Objects::read(&patched, inputs.objects.name, inputs.objects.data)?;
    let meant = inputs.types.iter().flat_map(|types| types.meant.values());
    objects.tell(&patched, meant.flatten());
    let running = running(inputs.original, &inputs.payloads)?;
    let lower_hooks = inputs.accepted.lower_hooks;
    let verdict = prove::prove(&patched, &objects, running, &inputs.files, lower_hooks);
    let mut verdict = verdict.map_err(|reason| Unusable::new(inputs.patched.name, &reason))?;
    match inputs.types {
        Some(types) => {
            verdict
                .differences
                .extend(types.differences.iter().cloned());
            verdict.notes.extend(types.notes.iter().cloned());
            verdict.types = types.same;
        }
        None => verdict.differences.push(Difference {
            kind: Kind::Layout,
            name: "types".to_owned(),
            message: "whether what is in memory keeps its layout was not looked at".to_owned(),
        }),
    }
    inputs.accepted.sort(&mut verdict);
    Ok(verdict)
}
