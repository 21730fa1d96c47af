// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hypercalls through `/dev/xen/hypercall` and `/dev/xen/privcmd`.
#![expect(
    unsafe_code,
    reason = "hypercalls and the memory they use are the operating system's ABI"
)]

use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode};
use rustix::mm::{MapFlags, ProtFlags};
use std::ffi::c_void;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use xsplice_abi::errno::Errno;

/// A target for hypercalls: the running Xen, or a test's fake.
///
/// This trait cannot be named outside this crate: hypercalls write to addresses in
/// their arguments, and only this crate's requests, whose addresses all point to the
/// buffers passed with them, may be made.
pub trait Hypervisor {
    /// Memory that the hypervisor can read and write.
    type Buffer: AsRef<[u8]> + AsMut<[u8]>;

    /// Allocates zeroed memory for a hypercall.
    ///
    /// # Errors
    /// If there is none.
    fn buffer(&self, size: usize) -> Result<Self::Buffer, Errno>;

    /// The address of a buffer, as the hypervisor sees it.
    fn address(&self, buffer: &Self::Buffer) -> u64;

    /// Makes the hypercall `op`. `buffers` are all memory that the arguments point
    /// to.
    ///
    /// # Errors
    /// The hypervisor's error.
    fn call(
        &self,
        op: u64,
        arguments: [u64; 2],
        buffers: &mut [&mut Self::Buffer],
    ) -> Result<i64, Errno>;
}

/// Why the hypercall interface cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// This is not a Xen host.
    #[error(
        "this system does not run on Xen, or has no privcmd driver: there is no /dev/xen/hypercall \
         or /dev/xen/privcmd (in dom0, load the module xen-privcmd)"
    )]
    NoXen,
    /// The caller may not open the device.
    #[error("{path}: {errno}; only root in dom0 may patch the hypervisor")]
    NotAllowed {
        /// The device.
        path: &'static str,
        /// The kernel's error.
        errno: Errno,
    },
    /// The device cannot be opened for another reason.
    #[error("{path}: {errno}; is the xen-privcmd driver working in this domain?")]
    Unusable {
        /// The device.
        path: &'static str,
        /// The kernel's error.
        errno: Errno,
    },
}

/// The kernel's privcmd driver.
#[derive(Debug)]
pub struct Privcmd {
    calls: OwnedFd,
    /// The device that provides memory for hypercalls; older kernels have none.
    memory: Option<OwnedFd>,
}

const PRIVCMD: &str = "/dev/xen/privcmd";
const MEMORY: &str = "/dev/xen/hypercall";

impl Privcmd {
    /// Opens the driver.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open() -> Result<Self, OpenError> {
        let open = |path: &'static str| {
            rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|e| {
                let errno = Errno(e.raw_os_error());
                match errno {
                    Errno::ENOENT => OpenError::NoXen,
                    Errno::EACCES | Errno::EPERM => OpenError::NotAllowed { path, errno },
                    _ => OpenError::Unusable { path, errno },
                }
            })
        };
        let calls = open(PRIVCMD)?;
        let memory = match open(MEMORY) {
            Ok(memory) => Some(memory),
            Err(OpenError::NoXen) => None,
            Err(error) => return Err(error),
        };
        Ok(Self { calls, memory })
    }
}

/// Page-aligned memory at a fixed address.
#[derive(Debug)]
pub struct Pages {
    start: NonNull<u8>,
    mapped: usize,
    size: usize,
}

impl AsRef<[u8]> for Pages {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `start` is a mapping of at least `size` readable bytes that
        // lives as long as `self` and that nothing else refers to; outside of
        // a hypercall, which borrows `self` mutably, nobody writes to it.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.size) }
    }
}

impl AsMut<[u8]> for Pages {
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_ref`; the mapping is writable and `self` is
        // borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.size) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `Privcmd::buffer` made, of this
        // size, and no reference into it can outlive `self`.
        let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.mapped) };
        debug_assert!(unmapped.is_ok(), "unmapping a whole mapping cannot fail");
    }
}

/// `struct privcmd_hypercall`.
#[repr(C)]
struct Hypercall {
    op: u64,
    arguments: [u64; 5],
}

/// `IOCTL_PRIVCMD_HYPERCALL`: `_IOC(_IOC_NONE, 'P', 0, sizeof(struct privcmd_hypercall))`.
const IOCTL_HYPERCALL: Opcode = (48 << 16) | ((b'P' as Opcode) << 8);
const _: () = assert!(size_of::<Hypercall>() == 48);

// SAFETY: the opcode takes a pointer to `Hypercall`, which `as_ptr` gives, and
// returns the hypercall's result as the ioctl's.
unsafe impl Ioctl for Hypercall {
    type Output = i64;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        IOCTL_HYPERCALL
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(self).cast()
    }

    unsafe fn output_from_ptr(output: IoctlOutput, _: *mut c_void) -> rustix::io::Result<i64> {
        Ok(output.into())
    }
}

impl Hypervisor for Privcmd {
    type Buffer = Pages;

    fn buffer(&self, size: usize) -> Result<Pages, Errno> {
        let mapped = size.max(1).next_multiple_of(4096);
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let none = std::ptr::null_mut();
        let start = match &self.memory {
            // SAFETY: a new mapping at an address of the kernel's choice
            // overlaps nothing.
            Some(device) => unsafe {
                rustix::mm::mmap(none, mapped, protection, MapFlags::SHARED, device, 0)
            },
            // SAFETY: as above.
            None => unsafe {
                let flags = MapFlags::PRIVATE | MapFlags::LOCKED | MapFlags::POPULATE;
                rustix::mm::mmap_anonymous(none, mapped, protection, flags)
            },
        };
        let start = start.map_err(|e| Errno(e.raw_os_error()))?;
        let start = NonNull::new(start.cast::<u8>()).ok_or(Errno::ENOMEM)?;
        let mut pages = Pages {
            start,
            mapped,
            size,
        };
        // Touch every page, so that none is missing during the hypercall.
        pages.as_mut().fill(0);
        Ok(pages)
    }

    fn address(&self, buffer: &Pages) -> u64 {
        buffer.start.as_ptr().addr() as u64
    }

    fn call(
        &self,
        op: u64,
        [first, second]: [u64; 2],
        _buffers: &mut [&mut Pages],
    ) -> Result<i64, Errno> {
        let request = Hypercall {
            op,
            arguments: [first, second, 0, 0, 0],
        };
        // SAFETY: `request` is what this ioctl takes. The addresses in it lead
        // to `_buffers`, which are borrowed mutably until the call is over.
        unsafe { rustix::ioctl::ioctl(&self.calls, request) }.map_err(|e| Errno(e.raw_os_error()))
    }
}
