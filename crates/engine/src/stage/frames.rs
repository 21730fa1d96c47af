// SPDX-License-Identifier: MIT OR Apache-2.0

//! Bug frames: how the hypervisor handles trapping instructions in the payload's code.

use super::tables::Table;
use super::{Loader, Placed};
use crate::arch::Instructions as _;
use crate::format::Known;
use crate::problem::Problems;
use crate::{Host, Region};
use xsplice_abi::special::BugKind;

/// Checks that strings that the hypervisor prints are terminated.
struct Strings<'p, 'a, H> {
    placed: &'p Placed<'a>,
    host: &'p H,
    /// The ends of the last strings in text, data and read-only data.
    ends: [u64; 3],
    /// Remaining budget for scanning the hypervisor's own strings: payloads use few
    /// of them.
    left: usize,
}

impl<H: Host> Strings<'_, '_, H> {
    const MOST: usize = 1 << 16;

    fn ends(&mut self, addr: u64) -> bool {
        let spans = self.placed.image.spans.iter().zip(self.ends);
        for (span, end) in spans {
            if span.contains(addr, 1) {
                return addr < end;
            }
        }
        let mut byte = [1];
        let mut at = addr;
        while self.left != 0 && self.host.read(at, &mut byte) {
            if byte == [0] {
                return true;
            }
            self.left -= 1;
            at = at.wrapping_add(1);
        }
        false
    }
}

/// Whether the hypervisor stops at what is a warning, because it takes no such file name.
fn stops_at(host: &impl Host, kind: BugKind, file: u64) -> bool {
    kind == BugKind::Warn && !host.limits().file_names && host.region(file) == Region::Outside
}

impl<'a> Placed<'a> {
    fn strings<'p, H: Host>(&'p self, host: &'p H) -> Strings<'p, 'a, H> {
        let end = |span: &crate::image::Span| {
            let bytes = self.image.get(span.base, span.len).unwrap_or_default();
            let last = bytes.iter().rposition(|byte| *byte == 0);
            last.map_or(0, |last| span.base.saturating_add(last as u64 + 1))
        };
        Strings {
            placed: self,
            host,
            ends: self.image.spans.each_ref().map(end),
            left: Strings::<H>::MOST,
        }
    }

    #[inline(never)]
    pub(super) fn check_bug_frames(&self, loader: &Loader<'_, impl Host>, problems: &mut Problems) {
        for (known, kind) in Known::BUG_FRAMES {
            if let Some(table) = self.table(known, problems)
                && !table.bytes.is_empty()
            {
                self.check_frames(loader, kind, &table, problems);
            }
        }
    }

    #[inline(never)]
    fn check_frames(
        &self,
        loader: &Loader<'_, impl Host>,
        kind: BugKind,
        table: &Table<'_, '_>,
        problems: &mut Problems,
    ) {
        let mut strings = self.strings(loader.host);
        let architecture = loader.host.architecture();
        let form = architecture.bug_frames();
        for (index, addr, bytes) in table.entries(form, problems) {
            let rest = table.bytes.get(index * bytes.len()..);
            let frame = rest.and_then(|rest| architecture.bug_frame(kind, rest, addr));
            let Some(frame) = frame else {
                continue;
            };
            let mut ends = |text: Option<u64>| text.filter(|text| !strings.ends(*text));
            let wrong = if !self.in_text(frame.place, architecture.trap_size()) {
                Some(("its place is not in the payload's text", frame.place))
            } else if let Some(function) = frame.function {
                let wrong = self.not_function(loader, function);
                if wrong.is_none() {
                    self.check_landing(loader, table, (index, function), problems);
                }
                wrong.map(|what| (what, function))
            } else if let Some(file) = frame.file.filter(|file| stops_at(loader.host, kind, *file))
            {
                Some((
                    "the hypervisor stops at this WARN, as its file name is in a payload",
                    file,
                ))
            } else if let Some(file) = ends(frame.file) {
                Some(("its file name cannot be read, or does not end", file))
            } else {
                let message = ends(frame.message);
                message.map(|text| ("its message cannot be read, or does not end", text))
            };
            if let Some((what, addr)) = wrong {
                table.push_wrong(index, what, addr, problems);
            }
        }
    }
}
