// SPDX-License-Identifier: MIT OR Apache-2.0

//! What differs between the architectures of hypervisors: how code is decoded, and what
//! the image says of it.

mod aarch64;
mod arm;
mod arm32;
mod x86_64;

use crate::Image;
use std::collections::BTreeSet;
use std::ops::Range;
use xsplice_abi::special::{Entry, Table};
use xsplice_engine::{Any, Limits};

/// What an instruction does to the flow of control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// The next instruction follows.
    Next,
    /// It calls the code at this address.
    Call(u64),
    /// The code at this address follows.
    Jump(u64),
    /// The next instruction follows, or the code at this address.
    Branch(u64),
    /// It returns, or jumps through a register.
    Leaves,
    /// Nothing follows: it traps.
    Stops,
}

/// An instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) at: u64,
    pub(crate) next: u64,
    pub(crate) flow: Flow,
}

impl Step {
    /// The target of a direct call or jump.
    pub(crate) fn target(&self) -> Option<u64> {
        match self.flow {
            Flow::Call(target) | Flow::Jump(target) | Flow::Branch(target) => Some(target),
            Flow::Next | Flow::Leaves | Flow::Stops => None,
        }
    }
}

/// What host-image needs of an architecture.
pub(crate) trait Reader: std::fmt::Debug + Sync {
    /// The instructions of the code at `at`, in order.
    fn steps(&self, at: u64, code: &[u8]) -> Vec<Step>;

    /// The addresses for payloads of a hypervisor whose text starts and whose memory
    /// ends there.
    fn payload_area(&self, start: u64, end: u64) -> Range<u64>;

    /// Size of an entry of one of the hypervisor's tables.
    fn entry_size(&self, table: Table) -> u64;

    /// The entry at `at`.
    fn entry(&self, table: Table, entry: &[u8], at: u64) -> Option<Entry>;

    /// Why the hypervisor's own core cannot patch code of payloads, if so.
    fn keeps_payloads(&self) -> Option<&'static str>;

    /// The limits that the hypervisor imposes on payloads.
    fn limits(&self, image: &Image) -> Limits;

    /// Calls `found` with the address that code computes, and that of the instruction.
    fn each_address(&self, start: u64, code: &[u8], found: &mut dyn FnMut(u64, u64));

    /// The start addresses of functions outside the entry code that run on page tables
    /// without payloads.
    fn before_switch(&self, image: &Image) -> BTreeSet<u64>;
}

/// The reader for an architecture; `None` if images for it cannot be read.
pub(crate) fn reader(architecture: Any) -> Option<&'static dyn Reader> {
    match architecture {
        Any::X86_64 => Some(&x86_64::X86_64),
        Any::Aarch64 => Some(&aarch64::Aarch64),
        Any::Arm32 => Some(&arm32::Arm32),
        _ => None,
    }
}
