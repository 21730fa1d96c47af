// SPDX-License-Identifier: MIT OR Apache-2.0

//! Executable memory: the only module with `unsafe`.
#![expect(
    unsafe_code,
    reason = "pages are mapped, protected, written, and run as code"
)]

use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use std::ffi::c_void;
use std::ops::Range;
use std::ptr::{with_exposed_provenance, with_exposed_provenance_mut};

/// Pages that nothing else in this process uses.
#[derive(Debug)]
pub(crate) struct Mapping {
    range: Range<usize>,
}

impl Mapping {
    /// Maps zeroed pages, readable and writable, at `range`.
    ///
    /// # Errors
    /// `EEXIST` if something is already mapped there.
    pub(crate) fn new(range: Range<usize>) -> Result<Self, Errno> {
        let flags = MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let at: *mut c_void = with_exposed_provenance_mut(range.start);
        // SAFETY: FIXED_NOREPLACE maps only where nothing is mapped.
        unsafe { mmap_anonymous(at, range.len(), protection, flags) }?;
        Ok(Self { range })
    }

    pub(crate) fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    fn contains(&self, addr: usize, len: usize) -> bool {
        let end = addr.checked_add(len);
        self.range.start <= addr && end.is_some_and(|end| end <= self.range.end)
    }

    /// Copies the bytes at `addr`; false unless this mapping has all of them.
    pub(crate) fn read(&self, addr: usize, buf: &mut [u8]) -> bool {
        if !self.contains(addr, buf.len()) {
            return false;
        }
        for (at, byte) in (addr..).zip(buf) {
            // SAFETY: it is in this mapping, which is readable. Others may write
            // it at the same time (data of running code): volatile, bytewise.
            *byte = unsafe { with_exposed_provenance::<u8>(at).read_volatile() };
        }
        true
    }

    /// Writes `bytes` at `addr`; false unless the whole range is in this mapping. The
    /// pages must be writable.
    pub(crate) fn write(&self, addr: usize, bytes: &[u8]) -> bool {
        if !self.contains(addr, bytes.len()) {
            return false;
        }
        for (at, byte) in (addr..).zip(bytes) {
            // SAFETY: it is in this mapping. No Rust reference points to it; CPUs
            // that run it are stopped, or do not know of it yet.
            unsafe { with_exposed_provenance_mut::<u8>(at).write_volatile(*byte) };
        }
        #[cfg(target_arch = "aarch64")]
        publish(addr, bytes.len());
        true
    }

    /// Changes the protection of pages of this mapping; false if they are not in it.
    pub(crate) fn protect(&self, pages: Range<usize>, flags: MprotectFlags) -> Result<(), Errno> {
        if !self.contains(pages.start, pages.len()) {
            return Err(Errno::INVAL);
        }
        let at: *mut c_void = with_exposed_provenance_mut(pages.start);
        // SAFETY: these pages are in this mapping, to which no reference points.
        unsafe { mprotect(at, pages.len(), flags) }
    }

    /// Calls the hypervisor's entry point at `addr`.
    pub(crate) fn enter(&self, addr: usize, number: u64, a: u64, b: u64) -> i64 {
        assert!(self.contains(addr, 1), "{addr:#x} is not in the image");
        let code: *const () = with_exposed_provenance(addr);
        // SAFETY: `addr` is the image's symbol `hypercall`, a C function of this
        // type, mapped executable.
        let entry: extern "C" fn(u64, u64, u64) -> i64 = unsafe { std::mem::transmute(code) };
        entry(number, a, b)
    }

    /// Calls the hook at `addr` with its record.
    pub(crate) fn call_hook(&self, addr: usize, record: &mut Record) -> i32 {
        let code: *const () = with_exposed_provenance(addr);
        // SAFETY: the engine has checked that `addr` is code that is not freed; that
        // it is a hook is the author's responsibility, as in a hypervisor. Hooks that
        // take nothing or return nothing can be called like this too in the C calling
        // conventions of x86-64 and ARM64; their result is not used.
        let hook: extern "C" fn(*mut Record) -> i32 = unsafe { std::mem::transmute(code) };
        hook(record)
    }
}

/// Makes this CPU fetch anew what it runs next.
pub(crate) fn synchronise() {
    // CPUID serialises the instruction stream.
    #[cfg(target_arch = "x86_64")]
    std::hint::black_box(std::arch::x86_64::__cpuid(0));
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a barrier changes neither memory nor registers.
    unsafe {
        std::arch::asm!("isb", options(nostack, preserves_flags));
    }
}

/// Makes written bytes visible to instruction fetches. Source: Arm Architecture Reference
/// Manual for A-profile, "Caches and memory hierarchy".
#[cfg(target_arch = "aarch64")]
fn publish(addr: usize, len: usize) {
    /// The smallest line of a cache that the architecture allows.
    const LINE: usize = 16;
    let first = addr / LINE * LINE;
    for at in (first..addr.saturating_add(len)).step_by(LINE) {
        // SAFETY: the line is in a mapping that is there; cleaning it changes no contents.
        unsafe { std::arch::asm!("dc cvau, {}", in(reg) at, options(nostack, preserves_flags)) };
    }
    // SAFETY: a barrier changes neither memory nor registers.
    unsafe { std::arch::asm!("dsb ish", options(nostack, preserves_flags)) };
    for at in (first..addr.saturating_add(len)).step_by(LINE) {
        // SAFETY: as above; the instruction is fetched again.
        unsafe { std::arch::asm!("ic ivau, {}", in(reg) at, options(nostack, preserves_flags)) };
    }
    // SAFETY: as above.
    unsafe { std::arch::asm!("dsb ish", "isb", options(nostack, preserves_flags)) };
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let at: *mut c_void = with_exposed_provenance_mut(self.range.start);
        // SAFETY: it was mapped by `new`, and those that run its code keep it alive.
        // The range is valid, so this cannot fail.
        let _: Result<(), Errno> = unsafe { munmap(at, self.range.len()) };
    }
}

/// A payload's record as its hooks see it; `struct payload` of `payload.h`.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Record {
    pub(crate) state: u32,
    pub(crate) result: i32,
}
