//! What the engine needs to know about the hypervisor it patches.

use core::ops::Range;

/// What an address of the hypervisor belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    /// Code that stays for as long as the hypervisor runs.
    Text,
    /// Code or data that is freed after boot.
    Init,
    /// Anything else that stays.
    Data,
    /// Not part of the hypervisor.
    Outside,
}

/// The hypervisor: running, or its image.
pub trait Host {
    /// The build-id; empty when there is none.
    fn build_id(&self) -> &[u8];

    /// The address of the symbol that the running hypervisor knows as `name`
    /// (`function` for a global one, `file.c#function` for a local one).
    fn lookup_symbol(&self, name: &[u8]) -> Option<u64>;

    /// What `addr` belongs to.
    fn region(&self, addr: u64) -> Region;

    /// Fills `buf` with the bytes at `addr`; false when they are not all there.
    fn read(&self, addr: u64, buf: &mut [u8]) -> bool;

    /// The addresses at which payloads are placed; the start is page-aligned.
    fn payload_area(&self) -> Range<u64>;
}
