// SPDX-License-Identifier: MIT OR Apache-2.0

//! A simulated hypervisor for tests of the engine, which can fail wherever a host can;
//! payloads for it, written section by section; and a model of their states.
//!
//! Not for use outside of tests: it panics when the engine breaks the contract of
//! [`Host`](xsplice_engine::Host).
#![forbid(unsafe_code)]

mod host;
pub mod model;
mod payload;
pub mod payloads;

pub use host::{Hypervisor, Machine, Memory, Noted, Registered};
pub use payload::{Func, Payload, func};

use xsplice_engine::{Engine, Loader, Policy, Refusal, Stack, Verified};

/// Where the text begins.
pub const TEXT: u64 = 0xffff_82d0_4020_0000;
/// The function `target`, which has no landing pad.
pub const TARGET: u64 = TEXT + 0x100;
/// The function `endbr_target`, which begins with a landing pad.
pub const ENDBR_TARGET: u64 = TEXT + 0x200;
/// The function `small`: real instructions, and bytes that are none.
pub const SMALL: u64 = TEXT + 0x300;
/// Code on the host's deny-list.
pub const DENIED: u64 = TEXT + 0x400;
/// The function `at_boot`, in text that is freed after boot.
pub const INIT: u64 = TEXT + 0x10000;
/// Freed after boot; the function at `USES_BOOT_DATA` has its address.
pub const BOOT_DATA: u64 = INIT + 0x40;
/// Code that has the address of [`BOOT_DATA`].
pub const USES_BOOT_DATA: u64 = TEXT + 0x380;
/// Where payloads are put.
pub const PAYLOADS: u64 = TEXT + 0x20000;
/// Where the hypervisor for ARM32 has what the others have at `addr`.
pub const fn on_arm32(addr: u64) -> u64 {
    addr - TEXT + 0x20_0000
}
/// The build-id of the hypervisor.
pub const XEN_ID: [u8; 20] = [0x11; 20];
/// The build-id of most payloads.
pub const OWN_ID: [u8; 20] = [0x22; 20];

/// Loads a payload on a fresh hypervisor.
///
/// # Errors
/// The engine's.
pub fn load(file: &[u8]) -> Result<Verified<'_>, Refusal> {
    Loader {
        host: &Hypervisor::new(),
        stack: &Stack::new(),
        policy: Policy::Stock,
    }
    .load("test", file)
}

/// An engine on a fresh hypervisor.
pub fn engine() -> Engine<Hypervisor> {
    Engine::new(Hypervisor::new(), Policy::Stock)
}

/// Whether a problem is one of a kind, as a closure: `is!(section: Empty)`, or with a
/// guard `is!(file: Missing { name } if *name == missing)`. What is a problem by itself
/// is `is!(problem: NameTaken)`.
#[macro_export]
macro_rules! is {
    (problem: $($pattern:tt)*) => {
        |problem: &::xsplice_engine::Problem| {
            matches!(problem, ::xsplice_engine::Problem::$($pattern)*)
        }
    };
    (file: $($pattern:tt)*) => {
        $crate::is!(@ fault, File(fault), FileFault, $($pattern)*)
    };
    (section: $($pattern:tt)*) => {
        $crate::is!(@ fault, Section { fault, .. }, SectionFault, $($pattern)*)
    };
    (symbol: $($pattern:tt)*) => {
        $crate::is!(@ fault, Symbol { fault, .. }, SymbolFault, $($pattern)*)
    };
    (relocation: $($pattern:tt)*) => {
        $crate::is!(@ fault, Relocation { fault, .. }, RelocationFault, $($pattern)*)
    };
    (function: $($pattern:tt)*) => {
        $crate::is!(@ fault, Function { fault, .. }, FunctionFault, $($pattern)*)
    };
    (entry: $($pattern:tt)*) => {
        $crate::is!(@ fault, Entry { fault, .. }, EntryFault, $($pattern)*)
    };
    (@ $fault:ident, $variant:ident $holder:tt, $kind:ident, $($pattern:tt)*) => {
        |problem: &::xsplice_engine::Problem| match problem {
            ::xsplice_engine::Problem::$variant $holder => {
                matches!($fault, ::xsplice_engine::$kind::$($pattern)*)
            }
            _ => false,
        }
    };
}
