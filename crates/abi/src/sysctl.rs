// SPDX-License-Identifier: MIT OR Apache-2.0
//! The sysctl hypercall's live-patch operations (public headers, `sysctl.h`,
//! `XEN_SYSCTL_livepatch_op`).
//!
//! A request is a [`Header`], an operation header [`Op`] and one of the
//! operation's structures, all in one buffer of [`SYSCTL_SIZE`] bytes.

use zerocopy::little_endian::{I32, U16, U32, U64};

/// `__HYPERVISOR_sysctl`.
pub const HYPERCALL: u64 = 35;
/// `XEN_SYSCTL_livepatch_op`.
pub const LIVEPATCH_OP: u32 = 27;
/// Size of `struct xen_sysctl` in bytes.
pub const SYSCTL_SIZE: usize = 136;
/// `XEN_LIVEPATCH_NAME_SIZE`: the longest name in bytes, with its zero.
pub const NAME_SIZE: usize = 128;

/// `XEN_SYSCTL_INTERFACE_VERSION`.
///
/// ```
/// use xsplice_abi::sysctl::InterfaceVersion;
///
/// let xen_4_13 = InterfaceVersion(0x12);
/// assert!(InterfaceVersion::ALL.contains(&xen_4_13));
/// assert!(!xen_4_13.has_flags_and_metadata());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceVersion(pub u32);

impl InterfaceVersion {
    /// All supported versions, the most common first: 0x15 is Xen 4.17 to 4.20, 0x16
    /// 4.21 and 4.22, 0x14 4.16, 0x13 4.14 and 4.15, 0x12 4.13.
    pub const ALL: [Self; 5] = [Self(0x15), Self(0x16), Self(0x14), Self(0x13), Self(0x12)];

    /// Whether actions have flags, and whether listing gives metadata.
    pub const fn has_flags_and_metadata(self) -> bool {
        self.0 >= 0x13
    }

    /// Whether listing takes the sizes of the buffers.
    pub const fn list_takes_sizes(self) -> bool {
        self.0 >= 0x16
    }
}

structure! {
    /// The start of `struct xen_sysctl`.
    Header = 8 {
        /// Which sysctl: [`LIVEPATCH_OP`].
        cmd: U32 = 0,
        /// [`InterfaceVersion`].
        interface_version: U32 = 4,
    }
}

structure! {
    /// The start of `struct xen_sysctl_livepatch_op`.
    Op = 8 {
        /// [`UPLOAD`], [`GET`], [`LIST`] or [`ACTION`].
        cmd: U32 = 0,
        /// [`FLAG_FORCE`] or zero. Before Xen 4.19 it is padding: anything but zero is
        /// refused with `EINVAL`.
        flags: U32 = 4,
    }
}

/// `LIVEPATCH_FLAG_FORCE`: skip checks that can be skipped. No Xen up to 4.22 has any.
pub const FLAG_FORCE: u32 = 1;

/// `XEN_SYSCTL_LIVEPATCH_UPLOAD`.
pub const UPLOAD: u32 = 0;
/// `XEN_SYSCTL_LIVEPATCH_GET`.
pub const GET: u32 = 1;
/// `XEN_SYSCTL_LIVEPATCH_LIST`.
pub const LIST: u32 = 2;
/// `XEN_SYSCTL_LIVEPATCH_ACTION`.
pub const ACTION: u32 = 3;

structure! {
    /// `struct xen_livepatch_name`.
    Name = 16 {
        /// Address of the name.
        name: U64 = 0,
        /// Its size in bytes, with the zero.
        size: U16 = 8,
        /// Zero.
        pad: [U16; 3] = 10,
    }
}

structure! {
    /// `struct xen_sysctl_livepatch_upload`.
    Upload = 32 {
        /// Name of the payload.
        name: Name = 0,
        /// Size of the payload in bytes.
        size: U64 = 16,
        /// Address of the payload.
        payload: U64 = 24,
    }
}

/// `LIVEPATCH_STATE_CHECKED`.
pub const STATE_CHECKED: u32 = 1;
/// `LIVEPATCH_STATE_APPLIED`.
pub const STATE_APPLIED: u32 = 2;

structure! {
    /// `struct xen_livepatch_status`.
    Status = 8 {
        /// [`STATE_CHECKED`] or [`STATE_APPLIED`].
        state: U32 = 0,
        /// Result of the last action: 0, or a negative errno; `-EAGAIN` while it is
        /// in progress.
        rc: I32 = 4,
    }
}

structure! {
    /// `struct xen_sysctl_livepatch_get`.
    Get = 24 {
        /// Which payload.
        name: Name = 0,
        /// Its status.
        status: Status = 16,
    }
}

structure! {
    /// `struct xen_sysctl_livepatch_list` of interface version 0x12.
    ListV12 = 40 {
        /// Changes whenever the list does.
        version: U32 = 0,
        /// Index of the first payload asked for.
        idx: U32 = 4,
        /// In: how many to give; out: how many are left.
        nr: U32 = 8,
        /// Zero.
        pad: U32 = 12,
        /// Address of an array of [`Status`].
        status: U64 = 16,
        /// Address of an array of names, [`NAME_SIZE`] bytes each.
        name: U64 = 24,
        /// Address of an array of their sizes (`uint32_t`).
        len: U64 = 32,
    }
}

structure! {
    /// `struct xen_sysctl_livepatch_list` since interface version 0x13.
    List = 64 {
        /// Changes whenever the list does.
        version: U32 = 0,
        /// Index of the first payload asked for.
        idx: U32 = 4,
        /// In: how many to give; out: how many are left.
        nr: U32 = 8,
        /// Zero.
        pad: U32 = 12,
        /// Total size of the names; since 0x16 also in: size of the buffer.
        name_total_size: U32 = 16,
        /// Total size of the metadata; since 0x16 also in: size of the buffer.
        metadata_total_size: U32 = 20,
        /// Address of an array of [`Status`].
        status: U64 = 24,
        /// Address of the concatenated names.
        name: U64 = 32,
        /// Address of an array of their sizes (`uint32_t`).
        len: U64 = 40,
        /// Address of the concatenated metadata.
        metadata: U64 = 48,
        /// Address of an array of their sizes (`uint32_t`).
        metadata_len: U64 = 56,
    }
}

/// `LIVEPATCH_ACTION_UNLOAD`.
pub const ACTION_UNLOAD: u32 = 1;
/// `LIVEPATCH_ACTION_REVERT`.
pub const ACTION_REVERT: u32 = 2;
/// `LIVEPATCH_ACTION_APPLY`.
pub const ACTION_APPLY: u32 = 3;
/// `LIVEPATCH_ACTION_REPLACE`.
pub const ACTION_REPLACE: u32 = 4;
/// `LIVEPATCH_ACTION_APPLY_NODEPS`: do not check the dependency on payloads.
pub const FLAG_NODEPS: u32 = 1;

structure! {
    /// `struct xen_sysctl_livepatch_action`; up to interface version 0x12 it
    /// ends before `flags`.
    ///
    /// ```
    /// use xsplice_abi::sysctl::{ACTION_APPLY, Action};
    /// use zerocopy::IntoBytes as _;
    ///
    /// let mut request = Action::default();
    /// request.cmd.set(ACTION_APPLY);
    /// request.timeout.set(30_000_000);
    /// assert_eq!(request.as_bytes()[16..20], [3, 0, 0, 0]);
    /// ```
    Action = 32 {
        /// Which payload.
        name: Name = 0,
        /// `ACTION_*`.
        cmd: U32 = 16,
        /// Upper bound for the rendezvous in nanoseconds; 0 for the
        /// hypervisor's own.
        timeout: U32 = 20,
        /// `FLAG_*`.
        flags: U32 = 24,
        /// Zero.
        pad: U32 = 28,
    }
}

/// `XEN_SYSCTL_readconsole`.
pub const READ_CONSOLE: u32 = 1;

structure! {
    /// `struct xen_sysctl_readconsole`.
    ReadConsole = 24 {
        /// Nonzero to empty the ring, for all who read it.
        clear: u8 = 0,
        /// Nonzero to start at `index`, if the ring still has it.
        incremental: u8 = 1,
        /// Zero.
        pad: [u8; 2] = 2,
        /// In: where to start; out: where the next one is to start.
        index: U32 = 4,
        /// Address of the buffer.
        buffer: U64 = 8,
        /// In: its size; out: how many bytes were written to it.
        count: U32 = 16,
        /// Not part of it: the size is a multiple of the alignment.
        end: U32 = 20,
    }
}

/// The `xen_version` hypercall (public headers, `version.h`).
pub mod version {
    /// `__HYPERVISOR_xen_version`.
    pub const HYPERCALL: u64 = 17;
    /// `XENVER_version`: major in the high half, minor in the low.
    pub const VERSION: u64 = 0;
    /// `XENVER_extraversion`: 16 bytes of text.
    pub const EXTRA_VERSION: u64 = 1;
    /// `XENVER_compile_info`: texts of 64, 16, 32 and 32 bytes: compiler, by,
    /// domain, date.
    pub const COMPILE_INFO: u64 = 2;
    /// `XENVER_capabilities`: 1024 bytes of text, the kinds of guests.
    pub const CAPABILITIES: u64 = 3;
    /// `XENVER_changeset`: 64 bytes of text.
    pub const CHANGESET: u64 = 4;
    /// `XENVER_platform_parameters`: an `unsigned long`, where the hypervisor's part of the
    /// address space of a guest begins.
    pub const PLATFORM_PARAMETERS: u64 = 5;
    /// `XENVER_pagesize`: the answer is the size of a page.
    pub const PAGE_SIZE: u64 = 7;
    /// `XENVER_commandline`: 1024 bytes of text.
    pub const COMMAND_LINE: u64 = 9;
    /// `XENVER_build_id`: a `uint32_t` length and that many bytes.
    pub const BUILD_ID: u64 = 10;
}
