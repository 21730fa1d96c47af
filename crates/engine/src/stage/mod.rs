// SPDX-License-Identifier: MIT OR Apache-2.0

//! The stages of loading a payload.

mod alternatives;
mod authenticate;
mod begins;
mod boot;
mod depend;
mod frames;
mod function;
mod layout;
mod parse;
mod relocate;
mod resolve;
mod tables;
mod verified;
mod verify;

pub(crate) use alternatives::Code;
pub use authenticate::{Authenticated, Enforcement, Signature, Signatures};
pub use depend::DependencyChecked;
pub use function::Function;
pub use layout::LaidOut;
pub use parse::Parsed;
pub use relocate::Relocated;
pub use resolve::Resolved;
pub use verified::Verified;

use crate::elf::Elf;
use crate::image::Image;
use crate::problem::{Problems, Refusal, copied};
use crate::sort::sort;
use crate::stack::Id;
use crate::{Host, Stack};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use begins::Begins;
use boot::BootReference;
use resolve::Target;
use xsplice_fallible::{self as fallible, NoMemory};

/// Which relocations are accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Those that an unmodified Xen loads.
    #[default]
    Stock,
    /// Also those that only this engine loads: every relocation of the table.
    Engine,
}

/// Loads payloads for a host on which others may be loaded already: what
/// [`Engine::upload`](crate::Engine::upload) does, without keeping the payload.
///
/// ```
/// use xsplice_engine::{Loader, Policy, Stack};
/// # use xsplice_test_host::{Hypervisor, Payload, func};
/// # let hypervisor = Hypervisor::new();
/// # let file = Payload::new(&[func("target")]).bytes();
///
/// let (host, stack, policy) = (&hypervisor, &Stack::new(), Policy::Stock);
/// let loader = Loader { host, stack, policy };
/// assert!(loader.load("fix", &file)?.problems().is_empty());
/// assert!(loader.load("fix", &file[..100]).is_err());
/// # Ok::<(), xsplice_engine::Refusal>(())
/// ```
#[derive(Debug)]
pub struct Loader<'h, H> {
    /// The hypervisor.
    pub host: &'h H,
    /// The payloads loaded so far.
    pub stack: &'h Stack,
    /// The policy.
    pub policy: Policy,
}

impl<H: Host> Loader<'_, H> {
    /// Takes a payload through all stages.
    ///
    /// # Errors
    /// [`Refusal`] with every problem that could be found.
    #[inline(never)]
    pub fn load<'a>(&self, name: &str, file: &'a [u8]) -> Result<Verified<'a>, Refusal> {
        self.resolved(name, file)?.relocate(self).verify(self)
    }

    /// The first stages. (Not inlined: the stack is deepest in the last one.)
    #[inline(never)]
    fn resolved<'a>(&self, name: &str, file: &'a [u8]) -> Result<Resolved<'a>, Refusal> {
        Parsed::parse_for(self.host.architecture(), name, file)?
            .authenticate(self)?
            .check_dependencies(self)?
            .lay_out(self)?
            .resolve(self)
    }
}

impl<H: Host> Loader<'_, H> {
    /// The address of `name`, and the payload that has it: a symbol of the hypervisor
    /// or of a payload, or one with an offset, as in `function+0x10`.
    fn lookup(&self, name: &[u8]) -> Option<(Option<Id>, u64)> {
        if let Some(found) = self.lookup_plain(name) {
            return Some(found);
        }
        let (symbol, offset) = with_offset(name)?;
        let (owner, addr) = self.lookup_plain(symbol)?;
        Some((owner, addr.checked_add(offset)?))
    }

    /// Records that a payload is needed if `addr` is in its code.
    #[inline(always)]
    fn note_owner(&self, addr: u64, uses: &mut Uses) -> Result<(), NoMemory> {
        uses.note(self.stack.owner(addr))
    }

    fn lookup_plain(&self, name: &[u8]) -> Option<(Option<Id>, u64)> {
        if name.is_empty() {
            return None;
        }
        let found = self.host.lookup_symbol(name).filter(|addr| *addr != 0);
        found.map(|addr| (None, addr)).or_else(|| {
            let (owner, addr) = self.stack.symbol(name)?;
            Some((Some(owner), addr))
        })
    }
}

/// Symbol and offset in a name of the form `function+0x10`.
fn with_offset(name: &[u8]) -> Option<(&[u8], u64)> {
    let plus = name.iter().rposition(|byte| *byte == b'+')?;
    let (symbol, offset) = (name.get(..plus)?, name.get(plus + 1..)?);
    let offset = str::from_utf8(offset).ok()?;
    let offset = match offset.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => offset.parse(),
    };
    Some((symbol, offset.ok()?))
}

/// The state that goes through all stages: the payload's name and the problems found
/// so far.
#[derive(Debug, Default)]
struct Findings {
    payload: String,
    /// Who has signed it, if anybody looked.
    signer: Option<String>,
    problems: Problems,
    uses: Uses,
}

/// Payloads that this one needs, with duplicates until they are
/// [`sorted`](Self::sorted).
#[derive(Debug, Default)]
struct Uses(Vec<Id>);

impl Uses {
    #[inline(always)]
    fn note(&mut self, id: Option<Id>) -> Result<(), NoMemory> {
        match id {
            Some(id) if self.0.last() != Some(&id) => fallible::push(&mut self.0, id),
            _ => Ok(()),
        }
    }

    /// Sorted and unique.
    fn sorted(mut self) -> Vec<Id> {
        sort(&mut self.0, |a, b| a < b);
        self.0.dedup();
        self.0
    }
}

/// A payload without addresses. Boxed, like [`Placed`].
#[derive(Debug)]
struct File<'a> {
    findings: Findings,
    bytes: &'a [u8],
    elf: Elf<'a>,
    /// The build-ids in its notes, once they are read.
    build_id: &'a [u8],
    depends: &'a [u8],
}

/// A payload with addresses. Results of later stages are empty before. Boxed, because
/// hypervisors have little stack.
#[derive(Debug)]
struct Placed<'a> {
    findings: Findings,
    elf: Elf<'a>,
    build_id: &'a [u8],
    depends: &'a [u8],
    image: Box<Image>,
    /// The address of each section that is loaded.
    addresses: Vec<Option<u64>>,
    /// The target of each symbol, once resolved.
    targets: Vec<Target>,
    /// The starts of functions, once determined.
    begins: Begins,
    /// References to memory freed after boot, once relocations are performed.
    boot_references: Vec<BootReference>,
}

impl Findings {
    fn new(payload: &str) -> Result<Self, NoMemory> {
        Ok(Self {
            payload: copied(payload)?,
            signer: None,
            problems: Problems::default(),
            uses: Uses::default(),
        })
    }

    #[inline(never)]
    fn refuse(self) -> Refusal {
        let Problems {
            list,
            more,
            no_memory,
        } = self.problems;
        Refusal {
            payload: self.payload,
            problems: list,
            more,
            no_memory,
        }
    }
}
