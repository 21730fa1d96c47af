// SPDX-License-Identifier: MIT OR Apache-2.0
//! A second opinion on a payload: is the hypervisor with the payload applied
//! the hypervisor that the patched source gives?
//!
//! *What it is*: [`verify`] takes the running hypervisor's `xen-syms`, the
//! payloads, and a real build of the patched source: its `xen-syms`, and the
//! `prelink.o` that it was linked from. It applies the payloads on paper and
//! then walks both hypervisors in step, from every function that both have:
//! instruction by instruction, and through every operand, pointer and table
//! entry to what that leads to.
//!
//! *What it trusts*: the build of the patched source, and that `xen-syms` is
//! what runs. Nothing of the generator: it shares no code with it.
//!
//! *What it guarantees*: if it says that a payload is proved, then each
//! function of the patched hypervisor that can run after boot has a counterpart
//! with the same instructions, whose operands lead to counterparts; every
//! variable has one counterpart, of the same size, class, alignment and initial
//! value; every entry of a table about code belongs to the counterpart. What
//! has none is named.
//!
//! *What it cannot see*: how the meaning of memory changes while no code and no
//! initial value does, such as two members of a structure that swap their names
//! in all of the source; hooks, which are no part of the patched hypervisor.
#![forbid(unsafe_code)]

mod build;
mod code;
mod image;
mod objects;
mod payload;
mod prove;
mod running;
mod source;
mod tables;
mod verdict;

pub use build::{Patched, build};
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

/// What is compared.
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
    /// Names of what was left out on request.
    pub left_out: Vec<String>,
}

/// Compares.
///
/// # Errors
/// If an input cannot be used. That the hypervisors differ is no error but a
/// [`Verdict`].
pub fn verify(inputs: &Inputs) -> Result<Verdict, Unusable> {
    let patched = image::Image::read(inputs.patched.name, inputs.patched.data)?;
    let objects = objects::Objects::read(&patched, inputs.objects.name, inputs.objects.data)?;
    let original = image::Image::read(inputs.original.name, inputs.original.data)?;
    let mut running = running::Running::new(original);
    for payload in &inputs.payloads {
        running.apply(payload)?;
    }
    let mut verdict = prove::prove(&patched, &objects, &running);
    let (left_out, differences) = std::mem::take(&mut verdict.differences)
        .into_iter()
        .partition(|difference| {
            inputs.left_out.iter().any(|name| {
                difference.name == *name || difference.name.ends_with(&format!("#{name}"))
            })
        });
    verdict.differences = differences;
    verdict.left_out = left_out;
    verdict.proved = verdict.differences.is_empty();
    Ok(verdict)
}
