// SPDX-License-Identifier: MIT OR Apache-2.0
//! The sysctl hypercall.

use crate::privcmd::Hypervisor;
use xsplice_abi::errno::Errno;
use xsplice_abi::sysctl::{HYPERCALL, Header, InterfaceVersion, SYSCTL_SIZE};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Makes the sysctl `command`. Behind the header it has `start` and the request;
/// `buffers` are all that the request leads to. Returns the result, and the request
/// as the hypervisor left it.
pub(crate) fn sysctl<H: Hypervisor, T>(
    hypervisor: &H,
    version: InterfaceVersion,
    command: u32,
    start: &[u8],
    request: &T,
    buffers: &mut [&mut H::Buffer],
) -> Result<(i64, T), Errno>
where
    T: IntoBytes + FromBytes + Immutable + KnownLayout,
{
    let header = Header {
        cmd: command.into(),
        interface_version: version.0.into(),
    };
    let mut buffer = hypervisor.buffer(SYSCTL_SIZE)?;
    let sent = [header.as_bytes(), start, request.as_bytes()].concat();
    let place = buffer.as_mut().get_mut(..sent.len());
    place.ok_or(Errno::E2BIG)?.copy_from_slice(&sent);
    let address = hypervisor.address(&buffer);
    let mut all: Vec<&mut H::Buffer> = buffers.iter_mut().map(|b| &mut **b).collect();
    all.push(&mut buffer);
    let result = hypervisor.call(HYPERCALL, [address, 0], &mut all)?;
    let at = size_of::<Header>() + start.len();
    let reply = buffer.as_ref().get(at..sent.len()).unwrap_or_default();
    let reply = T::read_from_bytes(reply);
    Ok((result, reply.map_err(|_| Errno::EINVAL)?))
}
