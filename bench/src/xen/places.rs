// SPDX-License-Identifier: MIT OR Apache-2.0

//! The addresses where measurements begin and end, from the hypervisor's symbols.

use super::code::returns;
use crate::Arch;
use anyhow::Context as _;
use object::read::elf::ElfFile64;
use object::{Endianness, Object as _, ObjectSection as _, ObjectSymbol as _};
use std::ops::Range;
use std::path::Path;
use xsplice_abi::suffix::in_source;
use xsplice_stopwatch::Stretch;

/// The stretches to measure.
#[derive(Debug)]
pub(super) struct Places {
    /// From the point where all CPUs wait with interrupts off to the point where the
    /// action is done and the leader serialises itself.
    pub(super) window: Stretch,
    /// A live-patch hypercall, from its dispatch to its result.
    pub(super) call: Stretch,
    /// The check for a pending action.
    pub(super) check: Stretch,
    /// The hypervisor's code.
    pub(super) text: Range<u64>,
}

impl Places {
    pub(super) fn find(arch: Arch, xen_syms: &Path) -> anyhow::Result<Self> {
        let data = std::fs::read(xen_syms).with_context(|| xen_syms.display().to_string())?;
        let file = ElfFile64::<Endianness>::parse(data.as_slice())?;
        let text = file.section_by_name(".text").context("no .text")?;
        let (start, code) = (text.address(), text.data()?);
        let find = |name: &str| {
            let symbol = file.symbols().find(|symbol| {
                let known = symbol.name().unwrap_or_default();
                in_source(known) == name
            });
            let symbol = symbol.with_context(|| format!("xen-syms has no {name}"))?;
            anyhow::Ok(symbol.address())
        };
        let calls = |begin| Stretch {
            begin,
            ends: returns(arch, code, start, begin),
        };
        let check = find("check_for_livepatch_work")?;
        let (begin, end) = if let Ok(begin) = find("xsplice_window_begin") {
            (begin, find("xsplice_synchronise")?)
        } else {
            // The stock core waits twice: for all CPUs to arrive, and for all to turn
            // interrupts off.
            let from = usize::try_from(check - start)?;
            let body = code
                .get(from..)
                .context("check_for_livepatch_work is not in .text")?;
            let calls = returns(arch, body, check, find("livepatch_spin")?);
            let second = calls
                .get(1)
                .copied()
                .context("livepatch_spin is not called twice")?;
            (second, find("arch_livepatch_post_action")?)
        };
        Ok(Self {
            window: Stretch {
                begin,
                ends: vec![end],
            },
            call: calls(find("livepatch_op")?),
            check: calls(check),
            text: start..start + text.size(),
        })
    }
}
