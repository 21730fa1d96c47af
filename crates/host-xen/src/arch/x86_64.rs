// SPDX-License-Identifier: MIT OR Apache-2.0

//! x86-64.
#![expect(unsafe_code, reason = "code is written")]

use crate::ffi;
use xsplice_engine::X86_64;

/// Writes code, in the window; `addr` is where it can be written.
pub(crate) fn text_write(addr: u64, bytes: &[u8]) {
    /// Fast path: a trampoline is stored inline; a call would take longer.
    type Jump = [u8; X86_64::JUMP_SIZE];
    match (<&Jump>::try_from(bytes), usize::try_from(addr)) {
        (Ok(jump), Ok(addr)) => {
            let place = core::ptr::with_exposed_provenance_mut::<Jump>(addr);
            // SAFETY: the engine has checked that this is text, and has opened it; no
            // CPU runs it, and no reference points to it.
            unsafe { place.write(*jump) }
        }
        _ => ffi::text_write(addr, bytes),
    }
}
