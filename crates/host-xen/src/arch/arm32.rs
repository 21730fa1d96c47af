// SPDX-License-Identifier: MIT OR Apache-2.0

//! ARM32: what the compiler calls to copy and fill memory, by the names of the run-time
//! ABI for the Arm architecture; Xen has the functions of C.
#![expect(unsafe_code, reason = "the functions are in assembly")]

// SAFETY of the functions: they go to Xen's with the same addresses and sizes. In Rust,
// they would call themselves: the compiler knows what they do.
core::arch::global_asm!(
    ".pushsection .text.aeabi, \"ax\", %progbits",
    ".macro aeabi name",
    ".irp suffix, , 4, 8",
    ".global __aeabi_\\name\\suffix",
    ".type __aeabi_\\name\\suffix, %function",
    "__aeabi_\\name\\suffix:",
    ".endr",
    ".endm",
    "aeabi memcpy",
    "b memcpy",
    "aeabi memmove",
    "b memmove",
    // Address and size; the byte is last, which is second in C.
    "aeabi memclr",
    "mov r2, #0",
    "aeabi memset",
    "mov r3, r1",
    "mov r1, r2",
    "mov r2, r3",
    "b memset",
    ".popsection",
);
