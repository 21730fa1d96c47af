// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whose signatures are accepted, and required.

use crate::ffi;
use alloc::vec::Vec;
use core::fmt;
use xsplice_engine::{Enforcement, Signatures};
use xsplice_fallible::{self as fallible, NoMemory};
use xsplice_signature::{BadKey, Key};

/// The keys that Xen is built with, and the policy for payloads that none of them has
/// signed. Neither changes while Xen runs.
#[derive(Debug)]
pub(crate) struct Keys {
    keys: Vec<Key<'static>>,
    enforcement: Enforcement,
}

/// An invalid key that Xen is built with.
pub(crate) struct Invalid {
    pub(crate) name: &'static str,
    pub(crate) why: BadKey,
}

impl Keys {
    /// Reads the settings of the build and the command line. An invalid key is skipped
    /// and reported through `invalid`; signatures are enforced as if it were valid.
    pub(crate) fn read(invalid: impl Fn(Invalid)) -> Result<Self, NoMemory> {
        let settings = ffi::signatures();
        let mut keys = fallible::with_room(settings.keys().len())?;
        for key in settings.keys() {
            match Key::new(key.name(), key.modulus()) {
                Ok(key) => fallible::push(&mut keys, key)?,
                Err(why) => invalid(Invalid {
                    name: key.name(),
                    why,
                }),
            }
        }
        let enforcement = Enforcement::decide(
            settings.requested(),
            !settings.keys().is_empty(),
            settings.locked,
        );
        Ok(Self { keys, enforcement })
    }

    /// Whether they are worth reporting at boot.
    pub(crate) fn matter(&self) -> bool {
        !self.keys.is_empty() || self.enforcement != Enforcement::Off
    }

    pub(crate) fn signatures(&self) -> Signatures<'_> {
        Signatures {
            keys: &self.keys,
            enforcement: self.enforcement,
        }
    }
}

impl fmt::Display for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.enforcement {
            Enforcement::Off => "signatures of payloads are not checked",
            Enforcement::Warn => "unsigned payloads are loaded with a warning",
            Enforcement::Enforce => "payloads must be signed",
        })?;
        let mut before = "; keys: ";
        for key in &self.keys {
            write!(f, "{before}{}", key.name())?;
            before = ", ";
        }
        Ok(())
    }
}
