// SPDX-License-Identifier: MIT OR Apache-2.0
//! Loading microcode.

use crate::privcmd::Hypervisor;
use xsplice_abi::errno::Errno;
use xsplice_abi::platform::{
    HYPERCALL, INTERFACE_VERSION, MICROCODE_UPDATE, MicrocodeUpdate, PLATFORM_OP_SIZE,
};
use zerocopy::IntoBytes as _;
use zerocopy::little_endian::U64;

/// Has all CPUs load the microcode that `data` has for them, in the format of their
/// vendor.
///
/// # Errors
/// The hypervisor's error.
pub fn load_microcode<H: Hypervisor>(hypervisor: &H, data: &[u8]) -> Result<(), Errno> {
    let mut microcode = hypervisor.buffer(data.len())?;
    microcode.as_mut().copy_from_slice(data);
    let request = MicrocodeUpdate {
        cmd: MICROCODE_UPDATE.into(),
        interface_version: INTERFACE_VERSION.into(),
        data: U64::new(hypervisor.address(&microcode)),
        length: u32::try_from(data.len()).map_err(|_| Errno::E2BIG)?.into(),
        ..Default::default()
    };
    let request = request.as_bytes();
    let mut buffer = hypervisor.buffer(PLATFORM_OP_SIZE)?;
    buffer.as_mut()[..request.len()].copy_from_slice(request);
    let address = hypervisor.address(&buffer);
    let buffers = &mut [&mut microcode, &mut buffer];
    hypervisor.call(HYPERCALL, [address, 0], buffers).map(drop)
}
