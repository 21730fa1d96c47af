// SPDX-License-Identifier: MIT OR Apache-2.0

//! The engine's host as a table of C functions.
#![expect(unsafe_code, reason = "everything here is an interface to C")]

use alloc::boxed::Box;
use core::ffi::{CStr, c_char, c_void};
use core::fmt::{self, Write as _};
use core::ops::Range;
use core::ptr::NonNull;
use xsplice_engine::{
    Absent, Description, Errno, Hook, Host, LandingPads, Limits, NATIVE, Native, Protection,
    Region, Resident, State, Status, WriteAccess,
};
use xsplice_fallible::{self as fallible, Message};

/// Bytes with their length, not zero-terminated; valid for the call they are passed to.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct xsplice_bytes {
    /// The first byte; not null, even when there are none.
    pub data: *const u8,
    /// Their number.
    pub len: usize,
}

impl From<&[u8]> for xsplice_bytes {
    fn from(bytes: &[u8]) -> Self {
        Self {
            data: bytes.as_ptr(),
            len: bytes.len(),
        }
    }
}

impl xsplice_bytes {
    /// # Safety
    /// The bytes are valid and not changed while the result is in use.
    pub(crate) unsafe fn get<'a>(self) -> &'a [u8] {
        if self.data.is_null() {
            return &[];
        }
        // SAFETY: guaranteed by the caller.
        unsafe { core::slice::from_raw_parts(self.data, self.len) }
    }
}

/// Addresses from `start` up to, but not including, `end`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct xsplice_range {
    /// The first address.
    pub start: u64,
    /// The address after the last one.
    pub end: u64,
}

impl From<&Range<u64>> for xsplice_range {
    fn from(range: &Range<u64>) -> Self {
        Self {
            start: range.start,
            end: range.end,
        }
    }
}

/// `region()`: permanent code.
pub const XSPLICE_REGION_TEXT: u32 = 1;
/// `region()`: code or data that is freed after boot.
pub const XSPLICE_REGION_INIT: u32 = 2;
/// `region()`: other permanent memory.
pub const XSPLICE_REGION_DATA: u32 = 3;
/// `region()`: not part of the hypervisor.
pub const XSPLICE_REGION_OUTSIDE: u32 = 4;

/// `open_text()`: for `write_text()` only; an alias of the pages will do.
pub const XSPLICE_ACCESS_ALIAS: u32 = 0;
/// `open_text()`: hooks run in the window: text must be writable at its own addresses,
/// that of payloads included.
pub const XSPLICE_ACCESS_IN_PLACE: u32 = 1;

/// `protect()`: readable and executable.
pub const XSPLICE_PROTECT_TEXT: u32 = 0;
/// `protect()`: readable.
pub const XSPLICE_PROTECT_READ_ONLY: u32 = 1;

/// `call()`: before the functions are patched, in the window; returns nothing.
pub const XSPLICE_HOOK_LOAD: u32 = 0;
/// `call()`: after the functions are restored, in the window; returns nothing.
pub const XSPLICE_HOOK_UNLOAD: u32 = 1;
/// `call()`: before an apply; can veto it.
pub const XSPLICE_HOOK_PRE_APPLY: u32 = 2;
/// `call()`: in place of an apply, in the window.
pub const XSPLICE_HOOK_APPLY: u32 = 3;
/// `call()`: after an apply; returns nothing.
pub const XSPLICE_HOOK_POST_APPLY: u32 = 4;
/// `call()`: before a revert; can veto it.
pub const XSPLICE_HOOK_PRE_REVERT: u32 = 5;
/// `call()`: in place of a revert, in the window.
pub const XSPLICE_HOOK_REVERT: u32 = 6;
/// `call()`: after a revert; returns nothing.
pub const XSPLICE_HOOK_POST_REVERT: u32 = 7;

/// What the hypervisor's own code assumes about a payload.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct xsplice_limits {
    /// The number of processor features.
    pub features: u16,
    /// With this feature, an entry of .altinstructions may make an indirect call direct;
    /// 0 if there is none.
    pub always: u16,
    /// Whether payloads use .alt_call_sites for that.
    pub call_sites: bool,
    /// Whether the processor checks that targets of indirect calls start with endbr64.
    pub landing_pads: bool,
}

/// Memory for a payload.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct xsplice_memory {
    /// Its address, page-aligned, within jump range of the text.
    pub base: u64,
    /// Where the engine builds it: that address, or a buffer that `register_payload()`
    /// copies there. Valid until `free()`.
    pub bytes: *mut u8,
}

/// A finished payload. Everything in it is valid for the call.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct xsplice_description {
    /// Its name.
    pub name: xsplice_bytes,
    /// Its build-id.
    pub build_id: xsplice_bytes,
    /// The build-id that it depends on.
    pub depends: xsplice_bytes,
    /// Code; not rounded to pages.
    pub text: xsplice_range,
    /// Writable data.
    pub data: xsplice_range,
    /// Read-only data.
    pub read_only: xsplice_range,
    /// .livepatch.funcs: records whose old addresses are filled in.
    pub funcs: xsplice_range,
    /// .altinstructions, to be applied.
    pub alternatives: xsplice_range,
    /// .ex_table, to be sorted and registered.
    pub exceptions: xsplice_range,
    /// .bug_frames.0 to .bug_frames.3.
    pub bug_frames: [xsplice_range; 4],
    /// .alt_call_sites, to be made direct calls.
    pub call_sites: xsplice_range,
    /// .modinfo: strings that each end with a zero byte.
    pub metadata: xsplice_range,
}

/// The part of a payload's record that its hooks see and may change.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct xsplice_record {
    /// `XSPLICE_STATE_CHECKED` or `XSPLICE_STATE_APPLIED`.
    pub state: u32,
    /// Result of the last action: 0, or a negative error number.
    pub result: i32,
    /// For each function, whether it is patched. An apply or revert hook sets all of
    /// them, or fails and changes none.
    pub applied: *mut bool,
    /// The number of functions.
    pub functions: usize,
}

/// The hypervisor: functions that the engine calls, each with `context`. Those that may
/// be null say so. *In the window* all other CPUs are stopped: such a function must not
/// wait, allocate or print.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct xsplice_host {
    /// Passed to each function.
    pub context: *mut c_void,
    /// The build-id; valid for as long as the engine.
    pub build_id: xsplice_bytes,
    /// What its own code assumes about payloads.
    pub limits: xsplice_limits,
    /// The address of a symbol, 0 if there is none: `function` for a global one,
    /// `file.c#function` for a local one.
    pub lookup_symbol:
        Option<unsafe extern "C" fn(context: *mut c_void, name: xsplice_bytes) -> u64>,
    /// `XSPLICE_REGION_...`; payloads are outside.
    pub region: Option<unsafe extern "C" fn(context: *mut c_void, addr: u64) -> u32>,
    /// Copies the `len` bytes at `addr`, in the hypervisor or in a payload's memory;
    /// false if some are missing.
    pub read: Option<
        unsafe extern "C" fn(context: *mut c_void, addr: u64, buf: *mut u8, len: usize) -> bool,
    >,
    /// The start of the function that contains the instruction at `addr`; 0 if unknown.
    pub function_at: Option<unsafe extern "C" fn(context: *mut c_void, addr: u64) -> u64>,
    /// Why these bytes must not be overwritten, as a static string; null if they may be.
    /// Code that a CPU may run while the others wait, that handles events which cannot be
    /// masked, or that writes text, must be denied.
    pub denied:
        Option<unsafe extern "C" fn(context: *mut c_void, patched: xsplice_range) -> *const c_char>,
    /// Memory for a payload: `size` bytes, whole pages, writable and not executable;
    /// false if there is none.
    pub allocate: Option<
        unsafe extern "C" fn(context: *mut c_void, size: u64, memory: *mut xsplice_memory) -> bool,
    >,
    /// Releases a payload's memory and everything that is registered about it.
    pub free: Option<unsafe extern "C" fn(context: *mut c_void, memory: xsplice_memory)>,
    /// Takes over the finished payload and registers its tables. Nothing is protected
    /// yet. Null if the hypervisor has no use for tables and `memory.bytes` is always at
    /// `memory.base`; a payload for which that is not so is refused.
    pub register_payload: Option<
        unsafe extern "C" fn(
            context: *mut c_void,
            memory: xsplice_memory,
            payload: *const xsplice_description,
        ) -> i32,
    >,
    /// Protects pages of a payload: `XSPLICE_PROTECT_...`. Null if payloads run as
    /// allocated.
    pub protect: Option<
        unsafe extern "C" fn(
            context: *mut c_void,
            memory: xsplice_memory,
            pages: xsplice_range,
            protection: u32,
        ) -> i32,
    >,
    /// Calls the hook at `addr`: `XSPLICE_HOOK_...`.
    pub call: Option<
        unsafe extern "C" fn(
            context: *mut c_void,
            memory: xsplice_memory,
            hook: u32,
            addr: u64,
            record: *mut xsplice_record,
        ) -> i32,
    >,
    /// Stops all CPUs, calls `window(argument)` once on this one, and releases them; each
    /// serialises its instruction stream before it resumes. False if the rendezvous was
    /// not reached within `timeout` ns; `window` has then not run.
    pub rendezvous: Option<
        unsafe extern "C" fn(
            context: *mut c_void,
            timeout: u64,
            window: unsafe extern "C" fn(argument: *mut c_void),
            argument: *mut c_void,
        ) -> bool,
    >,
    /// Gets ready for a rendezvous in which text of `range` is written:
    /// `XSPLICE_ACCESS_...`. Null if text is always writable.
    pub open_text: Option<
        unsafe extern "C" fn(context: *mut c_void, range: xsplice_range, access: u32) -> i32,
    >,
    /// Begins to write, *in the window*. Null if text is always writable.
    pub begin_writing: Option<unsafe extern "C" fn(context: *mut c_void) -> i32>,
    /// Writes, *in the window*.
    pub write_text:
        Option<unsafe extern "C" fn(context: *mut c_void, addr: u64, bytes: xsplice_bytes)>,
    /// Undoes `begin_writing()`, *in the window*; may be null.
    pub end_writing: Option<unsafe extern "C" fn(context: *mut c_void)>,
    /// Undoes `open_text()`, even if there was no window; may be null.
    pub close_text: Option<unsafe extern "C" fn(context: *mut c_void)>,
    /// Nanoseconds since an arbitrary point in time, also *in the window*. Null if there
    /// is no clock.
    pub now: Option<unsafe extern "C" fn(context: *mut c_void) -> u64>,
    /// A part of the log; lines end with a newline.
    pub log: Option<unsafe extern "C" fn(context: *mut c_void, text: xsplice_bytes)>,
    /// The machine is in an undefined state: does not return. Called *in the window*.
    /// Null if a panic stops the hypervisor.
    pub fatal: Option<unsafe extern "C" fn(context: *mut c_void, what: xsplice_bytes)>,
}

const fn hook_number(hook: Hook) -> u32 {
    match hook {
        Hook::Load => XSPLICE_HOOK_LOAD,
        Hook::Unload => XSPLICE_HOOK_UNLOAD,
        Hook::PreApply => XSPLICE_HOOK_PRE_APPLY,
        Hook::Apply => XSPLICE_HOOK_APPLY,
        Hook::PostApply => XSPLICE_HOOK_POST_APPLY,
        Hook::PreRevert => XSPLICE_HOOK_PRE_REVERT,
        Hook::Revert => XSPLICE_HOOK_REVERT,
        Hook::PostRevert => XSPLICE_HOOK_POST_REVERT,
    }
}

macro_rules! table {
    (required { $($name:ident: fn($($kind:ty),*) $(-> $result:ty)?;)* }
     optional { $($optional:ident: fn($($argument:ty),*) $(-> $returns:ty)?;)* }) => {
        /// An [`xsplice_host`] with all required functions.
        #[derive(Clone, Copy, Debug)]
        pub(crate) struct Table {
            context: *mut c_void,
            build_id: xsplice_bytes,
            limits: xsplice_limits,
            $($name: unsafe extern "C" fn(*mut c_void $(, $kind)*) $(-> $result)?,)*
            $($optional: Option<unsafe extern "C" fn(*mut c_void $(, $argument)*) $(-> $returns)?>,)*
        }

        impl Table {
            /// `None` if a required function is missing.
            pub(crate) fn new(host: &xsplice_host) -> Option<Self> {
                Some(Self {
                    context: host.context,
                    build_id: host.build_id,
                    limits: host.limits,
                    $($name: host.$name?,)*
                    $($optional: host.$optional,)*
                })
            }
        }
    };
}

table! {
    required {
        lookup_symbol: fn(xsplice_bytes) -> u64;
        region: fn(u64) -> u32;
        read: fn(u64, *mut u8, usize) -> bool;
        function_at: fn(u64) -> u64;
        denied: fn(xsplice_range) -> *const c_char;
        allocate: fn(u64, *mut xsplice_memory) -> bool;
        free: fn(xsplice_memory);
        call: fn(xsplice_memory, u32, u64, *mut xsplice_record) -> i32;
        rendezvous: fn(u64, unsafe extern "C" fn(*mut c_void), *mut c_void) -> bool;
        write_text: fn(u64, xsplice_bytes);
        log: fn(xsplice_bytes);
    }
    optional {
        open_text: fn(xsplice_range, u32) -> i32;
        begin_writing: fn() -> i32;
        end_writing: fn();
        close_text: fn();
        now: fn() -> u64;
        register_payload: fn(xsplice_memory, *const xsplice_description) -> i32;
        protect: fn(xsplice_memory, xsplice_range, u32) -> i32;
        fatal: fn(xsplice_bytes);
    }
}

/// Calls a function of the table; with `?`, one that may be missing. One soundness
/// argument for all of them: the hypervisor has promised, when it made the engine, that
/// each does what the header says with `context`; the other arguments are numbers, and
/// pointers to what outlives the call.
macro_rules! ask {
    ($table:expr, $name:ident? $(, $argument:expr)*) => {
        // SAFETY: see the macro.
        $table.$name.map(|function| unsafe { function($table.context $(, $argument)*) })
    };
    ($table:expr, $name:ident $(, $argument:expr)*) => {
        // SAFETY: see the macro.
        unsafe { ($table.$name)($table.context $(, $argument)*) }
    };
}

/// Passes each part of a text to the log.
struct Log<'t>(&'t Table);

impl fmt::Write for Log<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        ask!(self.0, log, text.as_bytes().into());
        Ok(())
    }
}

impl Host for Table {
    type Architecture = Native;

    fn architecture(&self) -> Native {
        NATIVE
    }

    fn build_id(&self) -> &[u8] {
        // SAFETY: the hypervisor has promised that it stays valid.
        unsafe { self.build_id.get() }
    }

    fn lookup_symbol(&self, name: &[u8]) -> Option<u64> {
        let addr = ask!(self, lookup_symbol, name.into());
        (addr != 0).then_some(addr)
    }

    fn limits(&self) -> Limits {
        Limits {
            features: self.limits.features,
            all_features: true,
            always: Some(self.limits.always).filter(|always| *always != 0),
            call_sites: self.limits.call_sites,
            landing_pads: match self.limits.landing_pads {
                true => LandingPads::Checked,
                false => LandingPads::Unused,
            },
            // Its handler is written for payloads, or it does not register their frames.
            file_names: true,
        }
    }

    fn region(&self, addr: u64) -> Region {
        match ask!(self, region, addr) {
            XSPLICE_REGION_TEXT => Region::Text,
            XSPLICE_REGION_INIT => Region::Init,
            XSPLICE_REGION_DATA => Region::Data,
            _ => Region::Outside,
        }
    }

    fn read(&self, addr: u64, buf: &mut [u8]) -> bool {
        ask!(self, read, addr, buf.as_mut_ptr(), buf.len())
    }

    fn allocate(&self, size: u64) -> Option<Box<dyn Resident>> {
        let len = usize::try_from(size).ok()?;
        let place = fallible::place().ok()?;
        let mut memory = xsplice_memory {
            base: 0,
            bytes: core::ptr::null_mut(),
        };
        if !ask!(self, allocate, size, &raw mut memory) {
            return None;
        }
        let place = Box::write(
            place,
            Place {
                table: *self,
                memory,
                len,
            },
        );
        // Without a buffer, `place` is dropped here and releases the memory. Rust must not
        // see uninitialised bytes.
        let bytes = NonNull::new(memory.bytes)?;
        // SAFETY: the hypervisor has given `len` bytes to the engine.
        unsafe { bytes.write_bytes(0, len) };
        Some(place)
    }

    fn rendezvous(&self, timeout: u64, window: &mut dyn FnMut()) -> Result<(), Absent> {
        unsafe extern "C" fn run(argument: *mut c_void) {
            // SAFETY: it is the reference below, which is borrowed for the whole call.
            let window = unsafe { &mut *argument.cast::<&mut dyn FnMut()>() };
            window();
        }
        let mut window = window;
        let argument = (&raw mut window).cast();
        match ask!(self, rendezvous, timeout, run, argument) {
            true => Ok(()),
            false => Err(Absent {
                step: "the hypervisor did not stop all CPUs in time",
                cpus: alloc::vec::Vec::new(),
            }),
        }
    }

    fn open_text(&self, range: Range<u64>, access: WriteAccess) -> Result<(), Errno> {
        let access = match access {
            WriteAccess::Alias => XSPLICE_ACCESS_ALIAS,
            WriteAccess::InPlace => XSPLICE_ACCESS_IN_PLACE,
        };
        ask!(self, open_text?, (&range).into(), access).map_or(Ok(()), Errno::check)
    }

    fn begin_writing(&self) -> Result<(), Errno> {
        ask!(self, begin_writing?).map_or(Ok(()), Errno::check)
    }

    fn write_text(&self, addr: u64, bytes: &[u8]) {
        ask!(self, write_text, addr, bytes.into());
    }

    fn end_writing(&self) {
        ask!(self, end_writing?);
    }

    fn close_text(&self) {
        ask!(self, close_text?);
    }

    fn now(&self) -> u64 {
        ask!(self, now?).unwrap_or(0)
    }

    fn log(&self, line: fmt::Arguments<'_>) {
        // `write_str` never fails.
        let _ = writeln!(Log(self), "{line}");
    }

    #[expect(clippy::panic, reason = "nothing else may run")]
    fn fatal(&self, what: fmt::Arguments<'_>) -> ! {
        ask!(self, fatal?, Message::new(what).bytes().into());
        // There is none, or it has returned nevertheless: nothing else may run.
        panic!("{what}")
    }

    fn function_at(&self, addr: u64) -> Option<u64> {
        let start = ask!(self, function_at, addr);
        (start != 0).then_some(start)
    }

    fn denied(&self, patched: Range<u64>) -> Option<&'static str> {
        let reason = ask!(self, denied, (&patched).into());
        if reason.is_null() {
            return None;
        }
        // SAFETY: it is a static string.
        let reason = unsafe { CStr::from_ptr(reason) };
        Some(reason.to_str().unwrap_or("the hypervisor denies it"))
    }
}

/// A payload's memory.
#[derive(Debug)]
struct Place {
    table: Table,
    memory: xsplice_memory,
    len: usize,
}

impl Place {
    /// Whether the engine builds the payload where it runs.
    fn is_in_place(&self) -> bool {
        u64::try_from(self.memory.bytes.addr()) == Ok(self.memory.base)
    }
}

impl Resident for Place {
    fn base(&self) -> u64 {
        self.memory.base
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: `allocate` has initialised all of it, and until it is registered only
        // the engine writes there, through this borrow.
        unsafe { core::slice::from_raw_parts(self.memory.bytes, self.len) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: see above.
        unsafe { core::slice::from_raw_parts_mut(self.memory.bytes, self.len) }
    }

    fn register(&mut self, payload: &Description<'_>) -> Result<(), Errno> {
        let description = xsplice_description {
            name: payload.name.as_bytes().into(),
            build_id: payload.build_id.into(),
            depends: payload.depends.into(),
            text: (&payload.text).into(),
            data: (&payload.data).into(),
            read_only: (&payload.read_only).into(),
            funcs: (&payload.funcs).into(),
            alternatives: (&payload.alternatives).into(),
            exceptions: (&payload.exceptions).into(),
            bug_frames: payload.bug_frames.each_ref().map(Into::into),
            call_sites: (&payload.call_sites).into(),
            metadata: (&payload.metadata).into(),
        };
        let table = self.table;
        match ask!(
            table,
            register_payload?,
            self.memory,
            &raw const description
        ) {
            Some(code) => Errno::check(code),
            None if payload.has_tables() || !self.is_in_place() => Err(Errno::EOPNOTSUPP),
            None => Ok(()),
        }
    }

    fn protect(&mut self, range: Range<u64>, protection: Protection) -> Result<(), Errno> {
        let protection = match protection {
            Protection::Text => XSPLICE_PROTECT_TEXT,
            Protection::ReadOnly => XSPLICE_PROTECT_READ_ONLY,
        };
        let table = self.table;
        let protected = ask!(table, protect?, self.memory, (&range).into(), protection);
        protected.map_or(Ok(()), Errno::check)
    }

    fn call(&mut self, hook: Hook, addr: u64, status: &mut Status<'_>) -> Result<(), Errno> {
        let mut record = xsplice_record {
            state: status.state.number(),
            result: status.result,
            applied: status.applied.as_mut_ptr(),
            functions: status.applied.len(),
        };
        let (table, hook) = (self.table, hook_number(hook));
        let code = ask!(table, call, self.memory, hook, addr, &raw mut record);
        *status.state = State::from_number(record.state);
        Errno::check(code)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let table = self.table;
        ask!(table, free, self.memory);
    }
}
