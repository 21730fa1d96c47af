// SPDX-License-Identifier: MIT OR Apache-2.0

//! Where in a hypervisor the window begins and ends, from its symbols.

use anyhow::Context as _;
use iced_x86::{Decoder, DecoderOptions, FlowControl};
use object::read::elf::ElfFile64;
use object::{Endianness, Object as _, ObjectSection as _, ObjectSymbol as _};
use std::path::Path;

/// Addresses that a CPU passes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places {
    /// All CPUs wait with their interrupts off.
    pub(super) begin: u64,
    /// What had to be done is done; the CPU that did it synchronises itself.
    pub(super) end: u64,
    /// Where a CPU sees whether anything is to be done.
    pub(super) check: u64,
    /// An instruction that reads the time-stamp counter.
    pub(super) rdtsc: u64,
}

impl Places {
    pub(super) fn find(xen_syms: &Path) -> anyhow::Result<Self> {
        let data = std::fs::read(xen_syms).with_context(|| xen_syms.display().to_string())?;
        let file = ElfFile64::<Endianness>::parse(data.as_slice())?;
        let text = file.section_by_name(".text").context("no .text")?;
        let (start, code) = (text.address(), text.data()?);
        let find = |name: &str| {
            let symbol = file.symbols().find(|symbol| {
                let known = symbol.name().unwrap_or_default();
                // The compiler adds `.constprop.0` and the like.
                known.split('.').next() == Some(name)
            });
            let symbol = symbol.with_context(|| format!("xen-syms has no {name}"))?;
            anyhow::Ok(symbol.address())
        };
        let check = find("check_for_livepatch_work")?;
        let rdtsc = code.windows(2).position(|bytes| bytes == [0x0f, 0x31]);
        let rdtsc = start + rdtsc.context("no rdtsc")? as u64;
        let (begin, end) = if let Ok(begin) = find("xsplice_window_begin") {
            (begin, find("xsplice_synchronise")?)
        } else {
            // Xen's own core waits twice: for all CPUs to come, and for all to
            // turn their interrupts off.
            let wait = find("livepatch_spin")?;
            let from = usize::try_from(check - start)?;
            let body = code
                .get(from..)
                .context("check_for_livepatch_work is not in .text")?;
            let mut calls = Decoder::with_ip(64, body, check, DecoderOptions::NONE)
                .into_iter()
                .filter(|call| call.flow_control() == FlowControl::Call)
                .filter(|call| call.near_branch_target() == wait);
            let second = calls.nth(1).context("livepatch_spin is not called twice")?;
            (second.next_ip(), find("arch_livepatch_post_action")?)
        };
        Ok(Self {
            begin,
            end,
            check,
            rdtsc,
        })
    }
}
