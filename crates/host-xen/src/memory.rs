// SPDX-License-Identifier: MIT OR Apache-2.0

//! A payload in Xen's memory.

use crate::ffi;
use core::fmt;
use core::ops::Range;
use xsplice_engine::{Description, Errno, Hook, Protection, Resident, State, Status};
use xsplice_fallible::collect;

pub(crate) struct Memory(pub(crate) ffi::Memory);

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Memory")
    }
}

impl Resident for Memory {
    fn base(&self) -> u64 {
        self.0.base()
    }

    fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.bytes_mut()
    }

    fn register(&mut self, payload: &Description<'_>) -> Result<(), Errno> {
        let symbols = payload.symbols.iter().map(|symbol| ffi::Symbol {
            name: symbol.name.into(),
            addr: symbol.addr,
            size: symbol.size,
            new: symbol.new,
        });
        let symbols = collect(symbols).map_err(|_| Errno::ENOMEM)?;
        Errno::check(self.0.register(&ffi::Payload {
            name: payload.name.into(),
            build_id: payload.build_id.into(),
            depends: payload.depends.into(),
            text: (&payload.text).into(),
            data: (&payload.data).into(),
            read_only: (&payload.read_only).into(),
            funcs: (&payload.funcs).into(),
            alternatives: (&payload.alternatives).into(),
            exceptions: (&payload.exceptions).into(),
            bug_frames: payload.bug_frames.each_ref().map(Into::into),
            call_sites: (&payload.call_sites).into(),
            metadata: (&payload.metadata).into(),
            symbols: symbols.as_ptr(),
            nsymbols: symbols.len(),
        }))
    }

    fn protect(&mut self, range: Range<u64>, protection: Protection) -> Result<(), Errno> {
        let protection = match protection {
            Protection::Text => ffi::Protection::Text,
            Protection::ReadOnly => ffi::Protection::ReadOnly,
        };
        Errno::check(self.0.protect(&range, protection))
    }

    fn call(&mut self, hook: Hook, addr: u64, status: &mut Status<'_>) -> Result<(), Errno> {
        for (index, patch) in status.patches.iter().enumerate() {
            self.0.saved(index, patch.addr, patch.old());
        }
        let mut seen = ffi::Status {
            state: status.state.number(),
            result: status.result,
            applied: status.applied.as_mut_ptr(),
            nfuncs: status.applied.len(),
        };
        let code = self.0.call(
            match hook {
                Hook::Load => ffi::Hook::Load,
                Hook::Unload => ffi::Hook::Unload,
                Hook::PreApply => ffi::Hook::PreApply,
                Hook::Apply => ffi::Hook::Apply,
                Hook::PostApply => ffi::Hook::PostApply,
                Hook::PreRevert => ffi::Hook::PreRevert,
                Hook::Revert => ffi::Hook::Revert,
                Hook::PostRevert => ffi::Hook::PostRevert,
            },
            addr,
            &mut seen,
        );
        *status.state = State::from_number(seen.state);
        Errno::check(code)
    }
}
