// SPDX-License-Identifier: MIT OR Apache-2.0
//! State that is only visible before `main`.
//!
//! Rust's runtime opens `/dev/null` for closed standard descriptors, so `main` cannot
//! distinguish a closed standard output from `/dev/null`.

use std::sync::atomic::{AtomicBool, Ordering};

static CLOSED: AtomicBool = AtomicBool::new(false);

/// The C runtime calls this before `main`, and so before Rust's runtime runs.
// SAFETY (of the attribute): entries of `.init_array` are pointers to functions
// of C's calling convention, and this one neither unwinds nor needs what Rust's
// runtime sets up.
#[allow(unsafe_code)]
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = look;

extern "C" fn look() {
    let flags = rustix::io::fcntl_getfd(rustix::stdio::stdout());
    CLOSED.store(flags == Err(rustix::io::Errno::BADF), Ordering::Relaxed);
}

/// Whether the program was started without a standard output.
pub(crate) fn standard_output_was_closed() -> bool {
    CLOSED.load(Ordering::Relaxed)
}
