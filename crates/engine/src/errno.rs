//! The result codes of Xen's interface, as far as loading uses them.

/// A result code, with the number that Xen's public headers give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Errno {
    /// No such symbol.
    NoEntry = 2,
    /// Not enough memory.
    NoMemory = 12,
    /// A missing address.
    Fault = 14,
    /// It exists already.
    Exists = 17,
    /// The payload is malformed or does not fit this hypervisor.
    Invalid = 22,
    /// A length outside the function.
    Range = 34,
    /// A value does not fit its field.
    Overflow = 75,
    /// Well-formed, but not supported.
    NotSupported = 95,
}

impl Errno {
    /// The positive number, as in Xen's `public/errno.h`.
    #[must_use]
    pub const fn code(self) -> i32 {
        self as i32
    }

    /// The conventional name, such as `EINVAL`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoEntry => "ENOENT",
            Self::NoMemory => "ENOMEM",
            Self::Fault => "EFAULT",
            Self::Exists => "EEXIST",
            Self::Invalid => "EINVAL",
            Self::Range => "ERANGE",
            Self::Overflow => "EOVERFLOW",
            Self::NotSupported => "EOPNOTSUPP",
        }
    }
}
