// SPDX-License-Identifier: MIT OR Apache-2.0

//! The runtime without a standard library: allocator and panic handler.
#![expect(unsafe_code, reason = "a global allocator hands out raw memory")]

use crate::ffi;
use core::alloc::{GlobalAlloc, Layout};
use core::panic::PanicInfo;
use xsplice_fallible::Message;

struct Heap;

#[global_allocator]
static HEAP: Heap = Heap;

// SAFETY: Xen's allocators return memory of the requested size and alignment, or
// none; `dealloc` gets the size that `alloc` got.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: any size and alignment may be requested.
        unsafe { ffi::xsplice_alloc(layout.size(), layout.align()) }
    }

    unsafe fn dealloc(&self, data: *mut u8, layout: Layout) {
        // SAFETY: the caller got it from `alloc` with this layout.
        unsafe { ffi::xsplice_free(data, layout.size()) }
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let message = Message::new(format_args!("{info}"));
    ffi::panic(str::from_utf8(message.bytes()).unwrap_or("panic"))
}
