// SPDX-License-Identifier: MIT OR Apache-2.0

//! Who must have signed the payloads.

use crate::ffi;
use alloc::vec::Vec;
use core::fmt;
use xsplice_engine::{Enforcement, Signatures};
use xsplice_fallible::{self as fallible, NoMemory};
use xsplice_signature::{BadKey, Key};

/// The keys that Xen is built with, and what is done about payloads that none of them
/// has signed. Neither changes while Xen runs.
#[derive(Debug)]
pub(crate) struct Keys {
    keys: Vec<Key<'static>>,
    enforcement: Enforcement,
}

/// A key that Xen is built with, and that is none.
pub(crate) struct Unfit {
    pub(crate) name: &'static str,
    pub(crate) why: BadKey,
}

impl Keys {
    /// What the build and the command line say. A key that is none is left out, and
    /// given to `unfit`; signatures are enforced as if it were one.
    pub(crate) fn read(unfit: impl Fn(Unfit)) -> Result<Self, NoMemory> {
        let said = ffi::signatures();
        let mut keys = fallible::with_room(said.keys().len())?;
        for key in said.keys() {
            match Key::new(key.name(), key.modulus()) {
                Ok(key) => fallible::push(&mut keys, key)?,
                Err(why) => unfit(Unfit {
                    name: key.name(),
                    why,
                }),
            }
        }
        let enforcement = Enforcement::decide(said.told(), !said.keys().is_empty(), said.locked);
        Ok(Self { keys, enforcement })
    }

    /// Whether there is anything to say about them.
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
            Enforcement::Off => "signatures of payloads are not looked at",
            Enforcement::Warn => "payloads are loaded without signature, with a warning",
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
