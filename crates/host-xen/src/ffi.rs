// SPDX-License-Identifier: MIT OR Apache-2.0

//! The Rust side of `shim/livepatch-rust.h`: the same names, types and order of
//! members, which both assert, and safe functions for what is sound.
#![expect(unsafe_code, reason = "everything here is an interface to C")]

use core::ffi::CStr;
use core::marker::PhantomData;
use core::ops::Range;
use core::ptr::NonNull;
use xsplice_engine::{Enforcement, WriteAccess};
use xsplice_rendezvous::Events;

/// Bytes with their length.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Text<'a> {
    data: *const u8,
    len: usize,
    from: PhantomData<&'a [u8]>,
}

impl<'a> From<&'a [u8]> for Text<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self {
            data: bytes.as_ptr(),
            len: bytes.len(),
            from: PhantomData,
        }
    }
}

impl<'a> From<&'a str> for Text<'a> {
    fn from(text: &'a str) -> Self {
        text.as_bytes().into()
    }
}

impl<'a> From<Text<'a>> for &'a [u8] {
    fn from(text: Text<'a>) -> Self {
        // SAFETY: C passes a matching pointer and length, as From does above.
        unsafe { core::slice::from_raw_parts(text.data, text.len) }
    }
}

/// Addresses.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Addresses {
    start: u64,
    end: u64,
}

impl Addresses {
    pub(crate) fn contains(&self, addr: u64) -> bool {
        (self.start..self.end).contains(&addr)
    }

    fn contains_all(&self, addr: u64, len: usize) -> bool {
        (self.start..=self.end).contains(&addr) && len as u64 <= self.end - addr
    }
}

impl Image {
    /// Copies the bytes at `addr`; false unless they are known to be readable.
    #[inline(always)]
    pub(crate) fn read(&self, addr: u64, buf: &mut [u8]) -> bool {
        let readable = [&self.text, &self.read_only, &self.data];
        let inside = |part: &&Addresses| part.contains_all(addr, buf.len());
        match usize::try_from(addr) {
            Ok(place) if readable.iter().any(inside) => {
                let place = core::ptr::with_exposed_provenance(place);
                // SAFETY: all of it is mapped for as long as the hypervisor runs;
                // Rust has nothing there.
                unsafe { core::ptr::copy_nonoverlapping(place, buf.as_mut_ptr(), buf.len()) };
                true
            }
            // SAFETY: C writes as many bytes as there are.
            _ => unsafe { xsplice_read_payload(addr, buf.as_mut_ptr(), buf.len()) },
        }
    }
}

impl From<Addresses> for Range<u64> {
    fn from(addresses: Addresses) -> Self {
        addresses.start..addresses.end
    }
}

impl From<&Range<u64>> for Addresses {
    fn from(range: &Range<u64>) -> Self {
        Self {
            start: range.start,
            end: range.end,
        }
    }
}

/// Addresses and properties of the hypervisor.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Image {
    pub(crate) text: Addresses,
    pub(crate) init: Addresses,
    pub(crate) read_only: Addresses,
    pub(crate) data: Addresses,
    pub(crate) features: u16,
    pub(crate) always: u16,
    pub(crate) call_sites: bool,
    pub(crate) landing_pads: bool,
}

/// A trusted key.
#[repr(C)]
pub(crate) struct Key {
    name: Text<'static>,
    modulus: *const u64,
    words: usize,
}

impl Key {
    /// Its name: a file name, which need not be UTF-8.
    pub(crate) fn name(&self) -> &'static str {
        str::from_utf8(self.name.into()).unwrap_or("?")
    }

    /// The modulus, least significant word first.
    pub(crate) fn modulus(&self) -> &'static [u64] {
        // SAFETY: pointer and length come from one constant table.
        unsafe { core::slice::from_raw_parts(self.modulus, self.words) }
    }
}

/// The command line's setting for unsigned payloads.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Setting {
    Unset,
    Off,
    Warn,
    Enforce,
}

/// The build's and the command line's settings for signatures.
#[repr(C)]
pub(crate) struct Signatures {
    keys: *const Key,
    nkeys: usize,
    enforcement: Setting,
    pub(crate) locked: bool,
}

impl Signatures {
    pub(crate) fn keys(&self) -> &'static [Key] {
        // SAFETY: as a key's modulus.
        unsafe { core::slice::from_raw_parts(self.keys, self.nkeys) }
    }

    /// The command line's setting, if there is one.
    pub(crate) fn requested(&self) -> Option<Enforcement> {
        match self.enforcement {
            Setting::Unset => None,
            Setting::Off => Some(Enforcement::Off),
            Setting::Warn => Some(Enforcement::Warn),
            Setting::Enforce => Some(Enforcement::Enforce),
        }
    }
}

#[repr(C)]
pub(crate) struct Symbol<'a> {
    pub(crate) name: Text<'a>,
    pub(crate) addr: u64,
    pub(crate) size: u64,
    pub(crate) new: bool,
}

#[repr(C)]
pub(crate) struct Payload<'a> {
    pub(crate) name: Text<'a>,
    pub(crate) build_id: Text<'a>,
    pub(crate) depends: Text<'a>,
    pub(crate) text: Addresses,
    pub(crate) data: Addresses,
    pub(crate) read_only: Addresses,
    pub(crate) funcs: Addresses,
    pub(crate) alternatives: Addresses,
    pub(crate) exceptions: Addresses,
    pub(crate) bug_frames: [Addresses; 4],
    pub(crate) call_sites: Addresses,
    pub(crate) metadata: Addresses,
    pub(crate) symbols: *const Symbol<'a>,
    pub(crate) nsymbols: usize,
}

#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum Protection {
    Text,
    ReadOnly,
}

#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum Hook {
    Load,
    Unload,
    PreApply,
    Apply,
    PostApply,
    PreRevert,
    Revert,
    PostRevert,
}

/// An unmaskable event.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum Event {
    Nmi,
    MachineCheck,
}

impl From<Event> for Events {
    fn from(event: Event) -> Self {
        match event {
            Event::Nmi => Self::NMI,
            Event::MachineCheck => Self::MACHINE_CHECK,
        }
    }
}

/// A phase in which CPUs load microcode.
#[cfg(feature = "microcode")]
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum Phase {
    PrimaryLoads,
    SiblingReads,
}

/// The position in a list of payloads and their functions.
#[repr(C)]
pub(crate) struct Cursor {
    pub(crate) payload: u32,
    pub(crate) function: u32,
}

#[repr(C)]
pub(crate) struct Status {
    pub(crate) state: u32,
    pub(crate) result: i32,
    pub(crate) applied: *mut bool,
    pub(crate) nfuncs: usize,
}

/// An entry of the list.
#[repr(C)]
pub(crate) struct Entry {
    pub(crate) base: u64,
    pub(crate) state: u32,
    pub(crate) result: i32,
}

/// The size of a pointer.
const W: usize = size_of::<*const u8>();

/// Asserts what `shim/livepatch-rust.h` asserts of the same structures and numbers.
macro_rules! layout {
    ($(struct $name:ident: $size:expr => { $($member:ident: $offset:expr),* })*
     $(enum $kind:ident { $($variant:ident: $number:literal),* })*) => {
        const _: () = {
            $(
                assert!(size_of::<$name>() == $size);
                $(assert!(core::mem::offset_of!($name, $member) == $offset);)*
            )*
            $(
                assert!(size_of::<$kind>() == 4);
                $(assert!($kind::$variant as u32 == $number);)*
            )*
        };
    };
}

layout! {
    struct Text: 2 * W => { data: 0, len: W }
    struct Addresses: 16 => { start: 0, end: 8 }
    struct Image: 72 => { text: 0, init: 16, read_only: 32, data: 48, features: 64, always: 66, call_sites: 68, landing_pads: 69 }
    struct Key: 4 * W => { name: 0, modulus: 2 * W, words: 3 * W }
    struct Signatures: 2 * W + 8 => { keys: 0, nkeys: W, enforcement: 2 * W, locked: 2 * W + 4 }
    struct Symbol: 2 * W + 24 => { name: 0, addr: 2 * W, size: 2 * W + 8, new: 2 * W + 16 }
    struct Payload: 8 * W + 192 => { name: 0, build_id: 2 * W, depends: 4 * W, text: 6 * W, data: 6 * W + 16, read_only: 6 * W + 32, funcs: 6 * W + 48, alternatives: 6 * W + 64, exceptions: 6 * W + 80, bug_frames: 6 * W + 96, call_sites: 6 * W + 160, metadata: 6 * W + 176, symbols: 6 * W + 192, nsymbols: 7 * W + 192 }
    struct Cursor: 8 => { payload: 0, function: 4 }
    struct Status: 2 * W + 8 => { state: 0, result: 4, applied: 8, nfuncs: W + 8 }
    struct Entry: 16 => { base: 0, state: 8, result: 12 }
    enum Setting { Unset: 0, Off: 1, Warn: 2, Enforce: 3 }
    enum Protection { Text: 0, ReadOnly: 1 }
    enum Hook { Load: 0, Unload: 1, PreApply: 2, Apply: 3, PostApply: 4, PreRevert: 5, Revert: 6, PostRevert: 7 }
    enum Event { Nmi: 0, MachineCheck: 1 }
}

#[cfg(feature = "microcode")]
layout! {
    enum Phase { PrimaryLoads: 0, SiblingReads: 1 }
}

#[repr(C)]
struct RawMemory {
    opaque: [u8; 0],
}

unsafe extern "C" {
    #[cfg(target_os = "none")]
    pub(crate) fn xsplice_alloc(size: usize, align: usize) -> *mut u8;
    #[cfg(target_os = "none")]
    pub(crate) fn xsplice_free(data: *mut u8, size: usize);
    fn xsplice_print(line: Text<'_>);
    #[cfg(target_os = "none")]
    fn xsplice_panic(what: Text<'_>) -> !;
    #[link_name = "xsplice_now"]
    pub(crate) safe fn now() -> u64;
    #[link_name = "xsplice_image"]
    pub(crate) safe fn image() -> Image;
    #[link_name = "xsplice_build_id"]
    pub(crate) safe fn build_id() -> Text<'static>;
    #[link_name = "xsplice_signatures"]
    pub(crate) safe fn signatures() -> Signatures;
    fn xsplice_lookup(name: *const core::ffi::c_char) -> u64;
    safe fn xsplice_function_at(addr: u64) -> u64;
    fn xsplice_next_symbol(index: &mut u32, addr: &mut u64, name: *mut core::ffi::c_char) -> bool;
    fn xsplice_read_payload(addr: u64, buf: *mut u8, len: usize) -> bool;

    safe fn xsplice_memory_new(size: u64) -> Option<NonNull<RawMemory>>;
    fn xsplice_memory_drop(memory: NonNull<RawMemory>);
    fn xsplice_memory_base(memory: NonNull<RawMemory>) -> u64;
    fn xsplice_memory_register(memory: NonNull<RawMemory>, payload: &Payload<'_>) -> i32;
    fn xsplice_memory_protect(
        memory: NonNull<RawMemory>,
        pages: Addresses,
        protection: Protection,
    ) -> i32;
    fn xsplice_memory_saved(memory: NonNull<RawMemory>, index: usize, addr: u64, bytes: Text<'_>);
    fn xsplice_memory_call(
        memory: NonNull<RawMemory>,
        hook: Hook,
        addr: u64,
        status: &mut Status,
    ) -> i32;

    #[link_name = "xsplice_rendezvous_begin"]
    pub(crate) safe fn rendezvous_begin() -> bool;
    #[link_name = "xsplice_rendezvous_end"]
    pub(crate) safe fn rendezvous_end();
    #[link_name = "xsplice_cpu"]
    pub(crate) safe fn cpu() -> u32;
    #[link_name = "xsplice_relax"]
    pub(crate) safe fn relax();
    fn xsplice_kick(cpu: u32);
    #[link_name = "xsplice_mask"]
    pub(crate) safe fn mask();
    #[link_name = "xsplice_unmask"]
    pub(crate) safe fn unmask();
    #[link_name = "xsplice_synchronise"]
    pub(crate) safe fn synchronise();
    fn xsplice_window_begin();
    fn xsplice_window_end();
    #[link_name = "xsplice_replay"]
    pub(crate) safe fn replay(event: Event);
    #[cfg(feature = "microcode")]
    #[link_name = "xsplice_microcode_first"]
    pub(crate) safe fn microcode_first() -> i32;
    #[cfg(feature = "microcode")]
    #[link_name = "xsplice_microcode_in_nmi"]
    pub(crate) safe fn microcode_in_nmi() -> bool;
    #[cfg(feature = "microcode")]
    #[link_name = "xsplice_microcode_work"]
    pub(crate) safe fn microcode_work(phase: Phase);
    fn xsplice_text_open(range: Addresses, hooks: bool, distance: &mut u64) -> i32;
    fn xsplice_text_begin() -> i32;
    fn xsplice_text_write(addr: u64, bytes: *const u8, len: usize);
    fn xsplice_text_end();
    fn xsplice_text_close();
}

/// Prints a line to the console.
pub(crate) fn print(line: &[u8]) {
    // SAFETY: C reads the text only.
    unsafe { xsplice_print(line.into()) }
}

/// Stops the hypervisor.
#[cfg(target_os = "none")]
pub(crate) fn panic(what: &str) -> ! {
    // SAFETY: C reads the text only.
    unsafe { xsplice_panic(what.into()) }
}

/// The address of a symbol of the hypervisor.
pub(crate) fn lookup(name: &CStr) -> Option<u64> {
    // SAFETY: C reads the name up to its end.
    let addr = unsafe { xsplice_lookup(name.as_ptr()) };
    (addr != 0).then_some(addr)
}

/// The start of the function that contains `addr`, also in a payload.
pub(crate) fn function_at(addr: u64) -> Option<u64> {
    Some(xsplice_function_at(addr)).filter(|start| *start != 0)
}

/// Most bytes that C writes for a name, including its terminator.
pub(crate) const NAME_SIZE: usize = 128;

/// Address and name of the hypervisor's symbol at `index`, which is advanced. They
/// are sorted by address; the name of a local one has its file in front.
pub(crate) fn next_symbol<'a>(
    index: &mut u32,
    buf: &'a mut [u8; NAME_SIZE],
) -> Option<(u64, &'a [u8])> {
    let mut addr = 0;
    // SAFETY: C writes no more than `NAME_SIZE` bytes.
    let more = unsafe { xsplice_next_symbol(index, &mut addr, buf.as_mut_ptr().cast()) };
    let name = CStr::from_bytes_until_nul(buf).ok()?;
    more.then_some((addr, name.to_bytes()))
}

/// Kicks `cpu` so that it enters the rendezvous check.
pub(crate) fn kick(cpu: u32) {
    // SAFETY: the rendezvous has as many CPUs as the shim has tasklets.
    unsafe { xsplice_kick(cpu) }
}

/// Runs `window`; all other CPUs are stopped.
pub(crate) fn in_window(window: impl FnOnce()) {
    // SAFETY: begin and end belong together, as here.
    unsafe { xsplice_window_begin() };
    window();
    // SAFETY: see above.
    unsafe { xsplice_window_end() };
}

/// Prepares writing text in `range`, at `distance` from its address.
pub(crate) fn text_open(range: &Range<u64>, access: WriteAccess, distance: &mut u64) -> i32 {
    // SAFETY: the engine calls it before a rendezvous, and closes the text
    // afterwards.
    unsafe { xsplice_text_open(range.into(), access == WriteAccess::InPlace, distance) }
}

/// Begins to write text, in the window.
pub(crate) fn text_begin() -> i32 {
    // SAFETY: the engine calls it in the window, while all other CPUs are stopped.
    unsafe { xsplice_text_begin() }
}

/// Writes code, in the window; `addr` is where it can be written.
pub(crate) fn text_write(addr: u64, bytes: &[u8]) {
    // SAFETY: the engine has checked that this is text, and has opened it; no CPU runs
    // it, and no reference points to it.
    unsafe { xsplice_text_write(addr, bytes.as_ptr(), bytes.len()) }
}

/// Undoes [`text_begin`].
pub(crate) fn text_end() {
    // SAFETY: as text_begin.
    unsafe { xsplice_text_end() }
}

/// Undoes [`text_open`].
pub(crate) fn text_close() {
    // SAFETY: as text_open.
    unsafe { xsplice_text_close() }
}

/// A payload's memory, with its record.
pub(crate) struct Memory {
    raw: NonNull<RawMemory>,
    base: u64,
    len: usize,
}

impl Memory {
    pub(crate) fn new(size: u64) -> Option<Self> {
        let len = usize::try_from(size).ok()?;
        let raw = xsplice_memory_new(size)?;
        // SAFETY: it is valid until dropped.
        let base = unsafe { xsplice_memory_base(raw) };
        Some(Self { raw, base, len })
    }

    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    /// Its contents, which nothing else accesses before it is registered.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: all of it was initialised on creation, and until the pages are
        // protected only the caller writes to them.
        unsafe { core::slice::from_raw_parts(self.start(), self.len) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: see above.
        unsafe { core::slice::from_raw_parts_mut(self.start(), self.len) }
    }

    fn start(&self) -> *mut u8 {
        core::ptr::with_exposed_provenance_mut(usize::try_from(self.base).unwrap_or(0))
    }

    pub(crate) fn register(&mut self, payload: &Payload<'_>) -> i32 {
        // SAFETY: the engine has checked that all addresses are in these pages, and
        // the tables there; C copies everything else that it keeps.
        unsafe { xsplice_memory_register(self.raw, payload) }
    }

    pub(crate) fn protect(&mut self, pages: &Range<u64>, protection: Protection) -> i32 {
        // SAFETY: the engine only passes pages of this memory.
        unsafe { xsplice_memory_protect(self.raw, pages.into(), protection) }
    }

    pub(crate) fn saved(&mut self, index: usize, addr: u64, bytes: &[u8]) {
        // SAFETY: the engine has as many patches as the payload has functions.
        unsafe { xsplice_memory_saved(self.raw, index, addr, bytes.into()) }
    }

    pub(crate) fn call(&mut self, hook: Hook, addr: u64, status: &mut Status) -> i32 {
        // SAFETY: the engine has checked that this is permanent code of the payload;
        // that it is a hook is its author's responsibility. `status` has one element
        // for each function.
        unsafe { xsplice_memory_call(self.raw, hook, addr, status) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: there are no more references to it.
        unsafe { xsplice_memory_drop(self.raw) }
    }
}
