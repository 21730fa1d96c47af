// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the hypervisor printed: its console ring.
//!
//! Reading does not empty the ring: other readers miss nothing.

use crate::privcmd::Hypervisor;
use crate::sysctl::sysctl;
use xsplice_abi::errno::Errno;
use xsplice_abi::sysctl::{InterfaceVersion, READ_CONSOLE, ReadConsole};
use zerocopy::little_endian::U64;

/// A place in what the hypervisor prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(u32);

/// How much is read in one call.
const PART: u32 = 16 << 10;
/// How many calls there are at most: rings have some hundred KiB.
const PARTS: usize = 256;

/// Where the next line that the hypervisor prints will be.
pub(crate) fn end<H: Hypervisor>(
    hypervisor: &H,
    version: InterfaceVersion,
) -> Result<Place, Errno> {
    Ok(read(hypervisor, version, Place(0))?.1)
}

/// What was printed from `place` on, as far as the ring still has it.
pub(crate) fn since<H: Hypervisor>(
    hypervisor: &H,
    version: InterfaceVersion,
    place: Place,
) -> Result<String, Errno> {
    let (text, _) = read(hypervisor, version, place)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Reads from `place` to the end. What is not in the ring any more, or not yet, starts
/// with the oldest that is.
fn read<H: Hypervisor>(
    hypervisor: &H,
    version: InterfaceVersion,
    mut place: Place,
) -> Result<(Vec<u8>, Place), Errno> {
    let mut text = Vec::new();
    let mut buffer = hypervisor.buffer(usize::try_from(PART).map_err(|_| Errno::E2BIG)?)?;
    for _ in 0..PARTS {
        let request = ReadConsole {
            incremental: 1,
            index: place.0.into(),
            buffer: U64::new(hypervisor.address(&buffer)),
            count: PART.into(),
            ..Default::default()
        };
        let buffers = &mut [&mut buffer];
        let (_, reply) = sysctl(hypervisor, version, READ_CONSOLE, &[], &request, buffers)?;
        let count = usize::try_from(reply.count.get()).map_err(|_| Errno::E2BIG)?;
        let part = buffer.as_ref().get(..count).ok_or(Errno::EINVAL)?;
        text.extend_from_slice(part);
        place = Place(reply.index.get());
        if reply.count.get() < PART {
            return Ok((text, place));
        }
    }
    // It prints faster than this reads.
    Err(Errno::EAGAIN)
}
