// SPDX-License-Identifier: MIT OR Apache-2.0

//! The runtime without a standard library: allocator and panic handler.
#![expect(unsafe_code, reason = "a global allocator hands out raw memory")]

use crate::ffi;
use core::alloc::{GlobalAlloc, Layout};
use core::fmt::{self, Write as _};
use core::panic::PanicInfo;

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

/// Keeps what fits: nothing can be allocated in a panic.
struct Message {
    bytes: [u8; 256],
    len: usize,
}

impl fmt::Write for Message {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let free = self.bytes.len().saturating_sub(self.len);
        let text = text.get(..text.floor_char_boundary(free)).unwrap_or("");
        let end = self.len.saturating_add(text.len());
        if let Some(place) = self.bytes.get_mut(self.len..end) {
            place.copy_from_slice(text.as_bytes());
            self.len = end;
        }
        Ok(())
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let mut message = Message {
        bytes: [0; 256],
        len: 0,
    };
    // It never fails.
    let _ = write!(message, "{info}");
    let text = message.bytes.get(..message.len).unwrap_or_default();
    ffi::panic(str::from_utf8(text).unwrap_or("panic"))
}
