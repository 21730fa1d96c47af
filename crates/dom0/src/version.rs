// SPDX-License-Identifier: MIT OR Apache-2.0
//! Version information of a hypervisor.

use crate::privcmd::Hypervisor;
use xsplice_abi::errno::Errno;
use xsplice_abi::machine::Machine;
use xsplice_abi::sysctl::version;

/// The answers of the `xen_version` hypercall.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub struct VersionInfo {
    /// Major version.
    pub major: u16,
    /// Minor version.
    pub minor: u16,
    /// The suffix after the two numbers.
    pub extra: String,
    /// The compiler.
    pub compiler: String,
    /// Who compiled it.
    pub compiled_by: String,
    /// When it was compiled.
    pub compile_date: String,
    /// Revision of the source.
    pub changeset: String,
    /// Build-id in hexadecimal; `None` if it has none, or hides it from this domain.
    pub build_id: Option<String>,
}

/// Further answers of the `xen_version` hypercall.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Details {
    /// The kinds of guests that it runs.
    pub capabilities: String,
    /// Its command line.
    pub command_line: String,
    /// The domain of the machine that compiled it.
    pub compile_domain: String,
    /// The size of a page in bytes.
    pub page_size: i64,
    /// Where its part of the address space of a guest begins.
    pub virtual_start: u64,
}

/// The first version with `LIVEPATCH_FLAG_FORCE`, and with the classic tool that sets it.
pub const FORCE_SINCE: (u16, u16) = (4, 19);

/// Queries the hypervisor's version: major and minor.
///
/// # Errors
/// The hypervisor's error.
pub fn version<H: Hypervisor>(hypervisor: &H) -> Result<(u16, u16), Errno> {
    let number = hypervisor.call(version::HYPERCALL, [version::VERSION, 0], &mut [])?;
    let half = |shift: u32| u16::try_from((number >> shift) & 0xffff).unwrap_or(0);
    Ok((half(16), half(0)))
}

/// Queries the hypervisor's version information.
///
/// # Errors
/// The hypervisor's error.
pub fn version_info<H: Hypervisor>(hypervisor: &H) -> Result<VersionInfo, Errno> {
    let (major, minor) = version(hypervisor)?;
    let compile = ask(hypervisor, version::COMPILE_INFO, 144)?;
    Ok(VersionInfo {
        major,
        minor,
        extra: text(&ask(hypervisor, version::EXTRA_VERSION, 16)?),
        compiler: text(&compile[..64]),
        compiled_by: text(&compile[64..80]),
        compile_date: text(&compile[112..]),
        changeset: text(&ask(hypervisor, version::CHANGESET, 64)?),
        build_id: build_id(hypervisor)?,
    })
}

/// Queries the hypervisor's further version information.
///
/// # Errors
/// The hypervisor's error.
pub fn details<H: Hypervisor>(hypervisor: &H) -> Result<Details, Errno> {
    let compile = ask(hypervisor, version::COMPILE_INFO, 144)?;
    let parameters = ask(hypervisor, version::PLATFORM_PARAMETERS, 8)?;
    let virtual_start = parameters.try_into().map_or(0, u64::from_le_bytes);
    Ok(Details {
        capabilities: text(&ask(hypervisor, version::CAPABILITIES, 1024)?),
        command_line: text(&ask(hypervisor, version::COMMAND_LINE, 1024)?),
        compile_domain: text(&compile[80..112]),
        page_size: hypervisor.call(version::HYPERCALL, [version::PAGE_SIZE, 0], &mut [])?,
        virtual_start,
    })
}

/// Queries the machine that the hypervisor runs on; `None` if this project does not
/// know it.
///
/// # Errors
/// The hypervisor's error.
pub fn machine<H: Hypervisor>(hypervisor: &H) -> Result<Option<Machine>, Errno> {
    let capabilities = text(&ask(hypervisor, version::CAPABILITIES, 1024)?);
    Ok(Machine::from_capabilities(&capabilities))
}

/// Queries the hypervisor's build-id, in hexadecimal; `None` if it has none, or hides it
/// from this domain.
///
/// # Errors
/// The hypervisor's error.
pub fn build_id<H: Hypervisor>(hypervisor: &H) -> Result<Option<String>, Errno> {
    const ROOM: u32 = 1024;
    let mut buffer = hypervisor.buffer(4 + ROOM as usize)?;
    buffer.as_mut()[..4].copy_from_slice(&ROOM.to_le_bytes());
    let address = hypervisor.address(&buffer);
    match hypervisor.call(
        version::HYPERCALL,
        [version::BUILD_ID, address],
        &mut [&mut buffer],
    ) {
        Ok(length) => {
            let length = usize::try_from(length).unwrap_or(0);
            let id = buffer.as_ref()[4..].get(..length).unwrap_or_default();
            Ok(Some(xsplice_abi::note::hex(id)))
        }
        Err(Errno::ENODATA | Errno::ENOSYS | Errno::EPERM) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn ask<H: Hypervisor>(hypervisor: &H, question: u64, size: usize) -> Result<Vec<u8>, Errno> {
    let mut buffer = hypervisor.buffer(size)?;
    let address = hypervisor.address(&buffer);
    hypervisor.call(version::HYPERCALL, [question, address], &mut [&mut buffer])?;
    Ok(buffer.as_ref().to_vec())
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
