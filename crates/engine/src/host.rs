// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the engine needs from the hypervisor that it patches.

use crate::arch::Architecture;
use crate::patch::Patch;
use crate::{Function, Signatures};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use xsplice_abi::errno::Errno;
pub use xsplice_abi::payload::hook::Hook;
use xsplice_abi::sysctl;

/// The kind of memory at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    /// Permanent code.
    Text,
    /// Code or data that is freed after boot.
    Init,
    /// Other permanent memory.
    Data,
    /// Not part of the hypervisor.
    Outside,
}

/// What the hypervisor's own code assumes about a payload: violations would stop it,
/// or be followed blindly.
///
/// The default is the strictest: no processor features, no table of direct calls, landing
/// pads at all targets of indirect calls, and no `WARN`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Upper bound of processor feature numbers, exclusive.
    pub features: u16,
    /// Whether that is the number of all features. On ARM, it then stands for code that a
    /// function writes.
    pub all_features: bool,
    /// With this feature, an entry of `.altinstructions` may make an indirect call
    /// direct. `None` if such calls have a separate table.
    pub always: Option<u16>,
    /// Whether there is a separate table, `.alt_call_sites`.
    pub call_sites: bool,
    /// Whether targets of indirect calls start with `endbr64`; on ARM64 not.
    pub landing_pads: LandingPads,
    /// Whether bug frames may have their file names in payloads. Otherwise the hypervisor
    /// stops at a `WARN` there, as Xen's own core makes it on ARM64.
    pub file_names: bool,
}

/// Whether targets of indirect calls must start with `endbr64`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LandingPads {
    /// No: the hypervisor was compiled without landing pads.
    Unused,
    /// Only if the processor checks it, which is not known here.
    Wanted,
    /// Yes: the processor checks it.
    #[default]
    Checked,
}

/// How text must be writable in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteAccess {
    /// For [`Host::write_text`] only: an alias of the pages will do.
    Alias,
    /// At its own addresses too, that of payloads included: hooks run in the window.
    InPlace,
}

/// The hypervisor: a running one, an image on disk, or a test.
///
/// The engine calls a host from one context at a time and holds no locks. In methods
/// marked *in the window*, all other CPUs are stopped: they must not wait, allocate
/// or print.
///
/// A method with a default is for hosts that have nothing to do there; each says for
/// which. `examples/host.rs` is a small host.
pub trait Host {
    /// The architecture that its code is for: [`Native`](crate::Native) for a
    /// hypervisor.
    type Architecture: Architecture;

    /// Which one of [`Architecture`](Self::Architecture) it is.
    fn architecture(&self) -> Self::Architecture;

    /// The build-id; empty when there is none.
    fn build_id(&self) -> &[u8];

    /// The address of the symbol that the running hypervisor knows as `name`
    /// (`function` for a global one, `file.c#function` for a local one).
    fn lookup_symbol(&self, name: &[u8]) -> Option<u64>;

    /// What its own code assumes about payloads. By default the strictest:
    /// [`Limits::default`].
    fn limits(&self) -> Limits {
        Limits::default()
    }

    /// The required signatures of payloads. A host without keys ignores signatures.
    fn signatures(&self) -> Signatures<'_> {
        Signatures::default()
    }

    /// The kind of memory at `addr`; payloads are [`Region::Outside`].
    fn region(&self, addr: u64) -> Region;

    /// Fills `buf` with the current bytes at `addr`, in the hypervisor or in a
    /// payload's memory; false if some are missing.
    fn read(&self, addr: u64, buf: &mut [u8]) -> bool;

    /// Memory for a payload: `size` bytes (a multiple of the page size, 4096) at a
    /// page-aligned address within jump range of the hypervisor's text, writable and
    /// not executable. `None` if there is none.
    fn allocate(&self, size: u64) -> Option<Box<dyn Resident>>;

    /// Stops all CPUs, runs `window` once on this one, and releases them. Every CPU
    /// serialises its instruction stream before it resumes.
    ///
    /// # Errors
    /// [`Absent`] if the rendezvous was not reached within `timeout` ns; `window` has
    /// then not run.
    fn rendezvous(&self, timeout: u64, window: &mut dyn FnMut()) -> Result<(), Absent>;

    /// Gets ready for a [`rendezvous`](Self::rendezvous) in which text is
    /// written: the place for whatever takes time. All that the engine writes is
    /// in `range`.
    ///
    /// The default is for hosts whose text is always writable.
    ///
    /// # Errors
    /// Why it cannot be written; then nothing has changed.
    fn open_text(&self, _range: Range<u64>, _access: WriteAccess) -> Result<(), Errno> {
        Ok(())
    }

    /// Begins to write, *in the window*. If it succeeds, [`end_writing`](Self::end_writing)
    /// follows once, in the same window, unless [`fatal`](Self::fatal) is called before.
    /// The default is for hosts whose text is always writable.
    ///
    /// # Errors
    /// Why the hypervisor cannot be patched now; then nothing has changed.
    fn begin_writing(&self) -> Result<(), Errno> {
        Ok(())
    }

    /// Writes `bytes` at `addr`, *in the window*, between
    /// [`begin_writing`](Self::begin_writing) and [`end_writing`](Self::end_writing).
    /// The engine only writes to addresses that it has checked to be text.
    fn write_text(&self, addr: u64, bytes: &[u8]);

    /// Undoes [`begin_writing`](Self::begin_writing), *in the window*; not called if that
    /// failed. From now on, this CPU also runs the new code.
    fn end_writing(&self) {}

    /// Undoes [`open_text`](Self::open_text), even if there was no window.
    fn close_text(&self) {}

    /// Nanoseconds since an arbitrary point in time, also *in the window*. The default
    /// is for hosts without a clock: all [`Times`](crate::Times) are then 0.
    fn now(&self) -> u64 {
        0
    }

    /// A line for the hypervisor's log. Never called in the window.
    fn log(&self, line: fmt::Arguments<'_>);

    /// Stops the hypervisor, *in the window*: it is in an undefined state, because a hook
    /// failed half-way, and neither continuing nor undoing is safe.
    ///
    /// There is no default: a panic that unwinds would let the CPUs go on in this state,
    /// and only the host knows what stops it.
    fn fatal(&self, what: fmt::Arguments<'_>) -> !;

    /// The start of the function that contains the instruction at `addr`; `None` if
    /// unknown. Patched addresses are then assumed to be instruction boundaries.
    fn function_at(&self, addr: u64) -> Option<u64>;

    /// Why these bytes must not be overwritten: the reason of any function that
    /// contains one of them. `None` if they may be.
    ///
    /// There is no default: what a CPU may run while the others wait, what handles
    /// events that cannot be masked, and what writes text, must be denied, and only the
    /// host knows what that is. `xsplice_abi::deny` is Xen's list.
    fn denied(&self, patched: Range<u64>) -> Option<&'static str>;
}

/// The rendezvous was not reached.
#[derive(Debug, PartialEq, Eq)]
pub struct Absent {
    /// The step of the rendezvous that was not reached: all CPUs in it, or all with
    /// interrupts off.
    pub step: &'static str,
    /// The missing CPUs; empty if the rendezvous could not start.
    pub cpus: Vec<u32>,
}

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.step)?;
        let mut separator = "; missing: CPU ";
        for cpu in &self.cpus {
            write!(f, "{separator}{cpu}")?;
            separator = ", CPU ";
        }
        Ok(())
    }
}

/// The protection of a payload's pages that are no longer written. The others stay as
/// allocated, because each change must reach the TLBs of all CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Readable and executable.
    Text,
    /// Readable.
    ReadOnly,
}

/// A payload's memory in the hypervisor, with everything that the hypervisor has
/// registered about it. Dropping it releases everything.
pub trait Resident: fmt::Debug {
    /// The address of the first byte.
    fn base(&self) -> u64;

    /// The payload image under construction, before [`register`](Self::register).
    fn bytes(&self) -> &[u8];

    /// Mutable access; the initial contents are unspecified. A host that cannot
    /// build the payload in its final place returns a buffer and copies it when the
    /// payload is registered.
    fn bytes_mut(&mut self) -> &mut [u8];

    /// Takes over the finished payload and its tables: applies its alternatives,
    /// sorts and registers its exception table, registers its bug frames and its
    /// text. Nothing is protected yet.
    ///
    /// # Errors
    /// The result that the upload gives.
    fn register(&mut self, payload: &Description<'_>) -> Result<(), Errno>;

    /// Protects the pages `range`.
    ///
    /// # Errors
    /// The result that the upload gives.
    fn protect(&mut self, range: Range<u64>, protection: Protection) -> Result<(), Errno>;

    /// Calls the hook at `addr`. [`Hook::Load`], [`Hook::Unload`], [`Hook::Apply`]
    /// and [`Hook::Revert`] are called *in the window*. Changes by the hook to its
    /// payload's record are copied to `status`.
    ///
    /// # Errors
    /// What the hook returned. Hooks that return nothing never fail.
    fn call(&mut self, hook: Hook, addr: u64, status: &mut Status<'_>) -> Result<(), Errno>;
}

/// A payload as described to the host.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Description<'a> {
    /// Its name.
    pub name: &'a str,
    /// Addresses of code; whole sections, not rounded to pages.
    pub text: Range<u64>,
    /// Addresses of writable data.
    pub data: Range<u64>,
    /// Addresses of read-only data.
    pub read_only: Range<u64>,
    /// `.livepatch.funcs`: records whose old addresses are filled in.
    pub funcs: Range<u64>,
    /// The functions that it patches, in the order of [`funcs`](Self::funcs).
    pub functions: &'a [Function],
    /// `.altinstructions`, to be applied by [`Resident::register`].
    pub alternatives: Range<u64>,
    /// `.ex_table`, to be sorted and registered.
    pub exceptions: Range<u64>,
    /// `.bug_frames.0` to `.bug_frames.3`.
    pub bug_frames: [Range<u64>; 4],
    /// `.alt_call_sites`, which [`Resident::register`] makes direct calls.
    pub call_sites: Range<u64>,
    /// Build-id of the payload.
    pub build_id: &'a [u8],
    /// Build-id that it depends on.
    pub depends: &'a [u8],
    /// `.modinfo`: strings that each end with a zero byte.
    pub metadata: Range<u64>,
    /// Symbols in its sections, for backtraces.
    pub symbols: &'a [Symbol<'a>],
}

impl Description<'_> {
    /// Whether the host has something to register or apply, and so must refuse the
    /// payload if it cannot.
    #[must_use]
    pub fn has_tables(&self) -> bool {
        let tables = [&self.alternatives, &self.exceptions, &self.call_sites];
        let mut tables = tables.into_iter().chain(&self.bug_frames);
        tables.any(|table| !table.is_empty())
    }
}

/// A symbol of a payload.
#[derive(Debug, PartialEq, Eq)]
pub struct Symbol<'a> {
    /// Its name, as in the payload: any bytes but zeros.
    pub name: &'a [u8],
    /// Its address.
    pub addr: u64,
    /// Its size in bytes; 0 if it has none.
    pub size: u64,
    /// Whether neither the hypervisor nor a payload has a symbol of that name.
    pub new: bool,
}

/// Whether a payload is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Loaded (`LIVEPATCH_STATE_CHECKED`).
    Checked,
    /// Loaded and applied (`LIVEPATCH_STATE_APPLIED`).
    Applied,
}

impl State {
    /// The number of the state in Xen's interface, and in the records that hooks see.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::Checked => sysctl::STATE_CHECKED,
            Self::Applied => sysctl::STATE_APPLIED,
        }
    }

    /// The state that a hook left in its payload's record: [`Applied`](Self::Applied) or,
    /// with any other number, [`Checked`](Self::Checked).
    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        match number {
            sysctl::STATE_APPLIED => Self::Applied,
            _ => Self::Checked,
        }
    }
}

/// The part of a payload's record that its hooks see and may change.
#[derive(Debug)]
pub struct Status<'a> {
    /// Whether it is applied.
    pub state: &'a mut State,
    /// Result of the last action: 0, or a negative error number.
    pub result: i32,
    /// For each function, whether it is patched. An apply or revert hook sets all of
    /// them, or fails and changes none.
    pub applied: &'a mut [bool],
    /// The write for each function, for a hook that lets the hypervisor do it.
    pub patches: &'a [Patch],
}

impl Status<'_> {
    /// Marks all functions as patched or not, like a successful apply or revert hook.
    pub fn settle(&mut self, hook: Hook) {
        match hook {
            Hook::Apply => self.applied.fill(true),
            Hook::Revert => self.applied.fill(false),
            _ => {}
        }
    }
}
