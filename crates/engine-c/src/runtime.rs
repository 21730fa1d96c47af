// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a Rust program needs that has no standard library: memory and an end.
#![expect(unsafe_code, reason = "a global allocator hands out raw memory")]

use crate::host::xsplice_bytes;
use core::alloc::{GlobalAlloc, Layout};
use core::panic::PanicInfo;
use xsplice_fallible::Message;

unsafe extern "C" {
    /// Memory for the engine's own lists; null when there is none.
    fn xsplice_host_alloc(size: usize, align: usize) -> *mut u8;
    /// Takes back what `xsplice_host_alloc()` gave.
    fn xsplice_host_free(data: *mut u8, size: usize);
    /// Ends the hypervisor.
    fn xsplice_host_panic(what: xsplice_bytes) -> !;
}

struct Heap;

#[global_allocator]
static HEAP: Heap = Heap;

// SAFETY: the hypervisor gives memory of the size and alignment that it is asked for,
// or none; `dealloc` has the size that `alloc` had.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: any size and alignment may be asked for.
        unsafe { xsplice_host_alloc(layout.size(), layout.align()) }
    }

    unsafe fn dealloc(&self, data: *mut u8, layout: Layout) {
        // SAFETY: the caller got it from `alloc` with this layout.
        unsafe { xsplice_host_free(data, layout.size()) }
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let message = Message::new(format_args!("{info}"));
    // SAFETY: the hypervisor reads the text only.
    unsafe { xsplice_host_panic(message.bytes().into()) }
}
