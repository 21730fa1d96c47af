// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the engine needs of the hypervisor that it patches.

use crate::patch::Patch;
use crate::{Function, Signatures};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use xsplice_abi::errno::Errno;
pub use xsplice_abi::payload::hook::Hook;

/// What an address of the hypervisor belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    /// Code that stays for as long as the hypervisor runs.
    Text,
    /// Code or data that is freed after boot.
    Init,
    /// Anything else that stays.
    Data,
    /// Not part of the hypervisor.
    Outside,
}

/// What the hypervisor's own code takes for granted of a payload: what it would
/// stop for, or follow without asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Numbers of processor features are less than this.
    pub features: u16,
    /// With this feature, an entry of `.altinstructions` may make a call through a
    /// pointer direct. `None` where such calls have a table of their own.
    pub always: Option<u16>,
    /// Whether there is one, `.alt_call_sites`.
    pub call_sites: bool,
    /// Whether what is called through pointers begins with `endbr64`.
    pub landing_pads: LandingPads,
}

/// Whether what is called through pointers must begin with `endbr64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LandingPads {
    /// No: the hypervisor was compiled without.
    Unused,
    /// Where the processor checks it, which is not known here.
    Wanted,
    /// Yes: the processor checks it.
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
/// The engine calls a host from one place at a time and holds no lock of its
/// own. Where a method says *in the window*, all other CPUs stand still: it must
/// not wait, allocate or print.
///
/// `examples/host.rs` is a small one.
pub trait Host {
    /// The build-id; empty when there is none.
    fn build_id(&self) -> &[u8];

    /// The address of the symbol that the running hypervisor knows as `name`
    /// (`function` for a global one, `file.c#function` for a local one).
    fn lookup_symbol(&self, name: &[u8]) -> Option<u64>;

    /// What its own code takes for granted of payloads.
    fn limits(&self) -> Limits;

    /// Who must have signed the payloads. Without keys of its own, a host does not look
    /// at signatures.
    fn signatures(&self) -> Signatures<'_> {
        Signatures::default()
    }

    /// What `addr` belongs to; payloads are [`Region::Outside`].
    fn region(&self, addr: u64) -> Region;

    /// Fills `buf` with the bytes that are at `addr` now, in the hypervisor or
    /// in a payload's memory; false when they are not all there.
    fn read(&self, addr: u64, buf: &mut [u8]) -> bool;

    /// Memory for a payload: `size` bytes (a multiple of the page size, 4096)
    /// at a page-aligned address near enough to the hypervisor's text for a
    /// jump, writable and not executable. `None` when there is none.
    fn allocate(&self, size: u64) -> Option<Box<dyn Resident>>;

    /// Stops all CPUs, runs `window` once on this one, and lets them go. Every
    /// CPU synchronises its instruction stream before it goes on.
    ///
    /// # Errors
    /// [`Absent`] when the CPUs did not come together within `timeout` ns;
    /// `window` has not run then.
    fn rendezvous(&self, timeout: u64, window: &mut dyn FnMut()) -> Result<(), Absent>;

    /// Gets ready for a [`rendezvous`](Self::rendezvous) in which text is
    /// written: the place for whatever takes time. All that the engine writes is
    /// in `range`.
    ///
    /// # Errors
    /// Why it cannot be written; nothing has changed then.
    fn open_text(&self, range: Range<u64>, access: WriteAccess) -> Result<(), Errno>;

    /// Begins to write, *in the window*.
    ///
    /// # Errors
    /// Why the hypervisor must not be patched now; nothing has changed then.
    fn begin_writing(&self) -> Result<(), Errno>;

    /// Writes `bytes` at `addr`, *in the window*, between
    /// [`begin_writing`](Self::begin_writing) and
    /// [`end_writing`](Self::end_writing). The engine writes only where it has
    /// checked that there is text.
    fn write_text(&self, addr: u64, bytes: &[u8]);

    /// Undoes [`begin_writing`](Self::begin_writing), *in the window*. From now
    /// on, this CPU too runs what was written.
    fn end_writing(&self);

    /// Undoes [`open_text`](Self::open_text), whether there was a window or not.
    fn close_text(&self);

    /// Nanoseconds since some moment in the past, also *in the window*.
    fn now(&self) -> u64;

    /// A line for the hypervisor's log. Never called in the window.
    fn log(&self, line: fmt::Arguments<'_>);

    /// The machine is in no defined state: a hook failed half-way, so that
    /// neither going on nor going back is safe. Called *in the window*.
    fn fatal(&self, what: fmt::Arguments<'_>) -> !;

    /// Where the function begins that has the instruction at `addr`; `None` when
    /// that is not known. Addresses to be patched are then taken for the
    /// beginning of an instruction.
    fn function_at(&self, addr: u64) -> Option<u64>;

    /// Why these bytes must not be written over: the reason of any function that one
    /// of them belongs to. `None` when they may be.
    ///
    /// There is no default: what a CPU may run while the others wait, what handles
    /// events that cannot be masked, and what writes text, must be denied, and only the
    /// host knows what that is. `xsplice_abi::deny` is Xen's list.
    fn denied(&self, patched: Range<u64>) -> Option<&'static str>;
}

/// The CPUs did not come together.
#[derive(Debug, PartialEq, Eq)]
pub struct Absent {
    /// Which of the rendezvous' two steps was not reached: all CPUs in it, or
    /// all with their interrupts off.
    pub step: &'static str,
    /// The CPUs that did not come; empty when the rendezvous could not begin.
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

/// How pages of a payload are protected that are not written any more. The others
/// stay as they were allocated: each change has to reach the TLBs of all CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Readable and executable.
    Text,
    /// Readable.
    ReadOnly,
}

/// A payload's memory in the hypervisor, with everything that the hypervisor
/// knows about it. Dropping it takes back all of it.
pub trait Resident: fmt::Debug {
    /// The address of the first byte.
    fn base(&self) -> u64;

    /// The payload image under construction, before [`register`](Self::register).
    fn bytes(&self) -> &[u8];

    /// Mutable access; the initial contents are unspecified. A host that cannot
    /// build the payload in its final place returns a buffer and copies it when the
    /// payload is registered.
    fn bytes_mut(&mut self) -> &mut [u8];

    /// Takes over the payload, which is made, and its tables: applies its
    /// alternatives, sorts and registers its exception table, registers its bug
    /// frames and its text. Nothing is protected yet.
    ///
    /// # Errors
    /// The result that the upload gives.
    fn register(&mut self, payload: &Description<'_>) -> Result<(), Errno>;

    /// Protects the pages `range`.
    ///
    /// # Errors
    /// The result that the upload gives.
    fn protect(&mut self, range: Range<u64>, protection: Protection) -> Result<(), Errno>;

    /// Calls the hook that is at `addr`. [`Hook::Load`], [`Hook::Unload`],
    /// [`Hook::Apply`] and [`Hook::Revert`] are called *in the window*. What the
    /// hook changes in its payload's record is put into `status`.
    ///
    /// # Errors
    /// What the hook returned. Hooks that return nothing never fail.
    fn call(&mut self, hook: Hook, addr: u64, status: &mut Status<'_>) -> Result<(), Errno>;
}

/// What a host is told about a payload.
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
    /// What it patches, in the order of [`funcs`](Self::funcs).
    pub functions: &'a [Function],
    /// `.altinstructions`, to be applied by [`Resident::register`].
    pub alternatives: Range<u64>,
    /// `.ex_table`, to be sorted and registered.
    pub exceptions: Range<u64>,
    /// `.bug_frames.0` to `.bug_frames.3`.
    pub bug_frames: [Range<u64>; 4],
    /// `.alt_call_sites`, to be made direct calls by [`Resident::register`].
    pub call_sites: Range<u64>,
    /// Build-id of the payload.
    pub build_id: &'a [u8],
    /// Build-id that it depends on.
    pub depends: &'a [u8],
    /// `.modinfo`: strings that each end with a zero byte.
    pub metadata: Range<u64>,
    /// Symbols in its sections that a person may want to see in a backtrace.
    pub symbols: &'a [Symbol<'a>],
}

/// A symbol of a payload.
#[derive(Debug, PartialEq, Eq)]
pub struct Symbol<'a> {
    /// Its name, as it stands in the payload: any bytes but zeros.
    pub name: &'a [u8],
    /// Its address.
    pub addr: u64,
    /// Its size in bytes; 0 when it has none.
    pub size: u64,
    /// Whether neither the hypervisor nor a payload has one of that name.
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

/// The part of a payload's record that its hooks see and may change.
#[derive(Debug)]
pub struct Status<'a> {
    /// Whether it is applied.
    pub state: &'a mut State,
    /// Result of the last action: 0, or a negative error number.
    pub result: i32,
    /// For each function whether it is patched. An apply or revert hook sets
    /// these: all of them, or it fails and changes none.
    pub applied: &'a mut [bool],
    /// What is to be written for each function, for a hook that lets the
    /// hypervisor do it.
    pub patches: &'a [Patch],
}

impl Status<'_> {
    /// Marks all functions as patched or not, as a hook does that is called in
    /// place of an apply or revert and succeeds.
    pub fn settle(&mut self, hook: Hook) {
        match hook {
            Hook::Apply => self.applied.fill(true),
            Hook::Revert => self.applied.fill(false),
            _ => {}
        }
    }
}
