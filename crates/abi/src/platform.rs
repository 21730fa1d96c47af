// SPDX-License-Identifier: MIT OR Apache-2.0
//! The platform hypercall's operation that loads microcode (public headers,
//! `platform.h`, `XENPF_microcode_update`).

use zerocopy::little_endian::{U32, U64};

/// `__HYPERVISOR_platform_op`.
pub const HYPERCALL: u64 = 7;
/// `XENPF_INTERFACE_VERSION`, the same from Xen 4.17 to 4.22.
pub const INTERFACE_VERSION: u32 = 0x0300_0001;
/// `XENPF_microcode_update`.
pub const MICROCODE_UPDATE: u32 = 35;
/// Size of `struct xen_platform_op` in bytes.
pub const PLATFORM_OP_SIZE: usize = 136;

structure! {
    /// The start of `struct xen_platform_op`, with `struct xenpf_microcode_update`.
    MicrocodeUpdate = 24 {
        /// [`MICROCODE_UPDATE`].
        cmd: U32 = 0,
        /// [`INTERFACE_VERSION`].
        interface_version: U32 = 4,
        /// Address of the microcode.
        data: U64 = 8,
        /// Its length in bytes.
        length: U32 = 16,
        /// Not used.
        pad: U32 = 20,
    }
}
