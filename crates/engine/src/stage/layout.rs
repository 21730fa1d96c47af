// SPDX-License-Identifier: MIT OR Apache-2.0

//! The layout of sections.

use super::begins::Begins;
use super::{DependencyChecked, File, Loader, Placed, Policy};
use crate::Host;
use crate::arch::Instructions as _;
use crate::elf::{SHF_EXECINSTR, SHF_WRITE, Section};
use crate::format::{Known, MAX_IMAGE};
use crate::image::{Image, PAGE, Span};
use crate::problem::{Problem, Problems, Refusal, SectionFault};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::hint::black_box;
use xsplice_fallible::{self as fallible, NoMemory};

const TEXT: usize = 0;
const WRITABLE: usize = 1;
const READ_ONLY: usize = 2;

/// The span of a section; none if it is both executable and writable.
fn kind(section: &Section<'_>) -> Option<usize> {
    match (
        section.flags & SHF_EXECINSTR != 0,
        section.flags & SHF_WRITE != 0,
    ) {
        (true, true) => None,
        (true, false) => Some(TEXT),
        (false, true) => Some(WRITABLE),
        (false, false) => Some(READ_ONLY),
    }
}

/// Zeroes memory word by word: `fill` would become `memset`, which writes bytes in
/// Xen.
fn clear(bytes: &mut [u8]) {
    let zero = black_box(0_u64).to_le_bytes();
    let (lines, rest) = bytes.as_chunks_mut::<64>();
    for line in lines {
        for word in line.as_chunks_mut().0 {
            *word = zero;
        }
    }
    rest.fill(0);
}

/// Where the sections go: text first, then writable data, then read-only data.
struct Plan {
    /// The size of each span.
    sizes: [u64; 3],
    /// The offset of each section in its span; none for those that are not loaded.
    offsets: Vec<Option<u64>>,
}

impl Plan {
    /// Reports sections that cannot be loaded. Those with words for the hypervisor are
    /// aligned to `words`, at least.
    #[inline(never)]
    fn new(
        sections: &[Section<'_>],
        words: u64,
        problems: &mut Problems,
    ) -> Result<Self, NoMemory> {
        let mut sizes = [0_u64; 3];
        let mut offsets = fallible::filled(None, sections.len())?;
        for (section, place) in sections.iter().zip(&mut offsets) {
            if !section.allocated() {
                continue;
            }
            let Some(size) = kind(section).and_then(|kind| sizes.get_mut(kind)) else {
                problems.section(section, SectionFault::WritableText);
                continue;
            };
            if section.align == 0 && section.size != 0 {
                problems.section(section, SectionFault::ZeroAlignment);
            }
            if section.align > PAGE {
                let align = section.align;
                problems.section(section, SectionFault::LargeAlignment { align });
            }
            // Sizes are at most MAX_SIZE each, but an alignment can be anything.
            let least = match section.known.is_some_and(Known::has_words) {
                true => words,
                false => 1,
            };
            let offset = size.checked_next_multiple_of(section.align.max(least));
            let offset = offset.filter(|offset| *offset <= MAX_IMAGE);
            let end = offset.and_then(|offset| offset.checked_add(section.size));
            *size = end.unwrap_or(u64::MAX).min(MAX_IMAGE + 1);
            *place = offset;
        }
        Ok(Self { sizes, offsets })
    }

    /// The sizes of the spans in whole pages: protections differ.
    fn pages(&self) -> [u64; 3] {
        self.sizes.map(|size| size.next_multiple_of(PAGE))
    }

    /// The spans of memory at `base`, which has room for them.
    fn spans(&self, base: u64) -> [Span; 3] {
        // The total is within a limit and fits in memory.
        let here = |size| usize::try_from(size).unwrap_or(0);
        let mut start = 0;
        let mut spans = [Span::default(); 3];
        for ((span, size), pages) in spans.iter_mut().zip(self.sizes).zip(self.pages()) {
            *span = Span {
                base: base.saturating_add(start as u64),
                start,
                len: here(size),
            };
            start += here(pages);
        }
        spans
    }

    /// Copies the sections to their places in `image`, and clears what is between them.
    /// Returns their addresses.
    #[inline(never)]
    fn write(self, sections: &[Section<'_>], image: &mut Image) -> Vec<Option<u64>> {
        let pages = self.pages();
        let mut addresses = self.offsets;
        // The starts of unwritten memory.
        let mut gaps = image.spans.map(|span| span.start);
        for (section, address) in sections.iter().zip(&mut addresses) {
            let (Some(address), Some(kind)) = (address, kind(section)) else {
                continue;
            };
            let Some(span) = image.spans.get(kind) else {
                continue;
            };
            let start = span.start + usize::try_from(*address).unwrap_or(0);
            *address += span.base;
            let made = image.memory.bytes_mut();
            if let Some(dest) = made.get_mut(start..start + section.data.len()) {
                dest.copy_from_slice(section.data);
            }
            if let Some(gap) = gaps.get_mut(kind) {
                clear(made.get_mut(*gap..start).unwrap_or_default());
                *gap = start + section.data.len();
            }
        }
        let spans = gaps.into_iter().zip(image.spans).zip(pages);
        for (kind, ((gap, span), pages)) in spans.enumerate() {
            let len = match kind {
                // The rest of the last page is unused, but executable.
                TEXT => usize::try_from(pages).unwrap_or(0),
                _ => span.len,
            };
            let made = image.memory.bytes_mut();
            clear(made.get_mut(gap..span.start + len).unwrap_or_default());
        }
        addresses
    }
}

/// A payload whose sections have addresses and are copied to them.
#[derive(Debug)]
pub struct LaidOut<'a>(pub(super) Box<Placed<'a>>);

impl<'a> DependencyChecked<'a> {
    /// Gives each section that is loaded an address: text first, then writable data,
    /// then read-only data, on separate pages.
    ///
    /// # Errors
    /// [`Refusal`] when there is no room for it.
    #[inline(never)]
    pub fn lay_out(self, loader: &Loader<'_, impl Host>) -> Result<LaidOut<'a>, Refusal> {
        let mut file = self.0;
        let File { findings, elf, .. } = &mut *file;
        let problems = &mut findings.problems;
        let words = match loader.policy {
            // It uses the file's alignment.
            Policy::Stock => 1,
            Policy::Engine => loader.host.architecture().word_alignment(),
        };
        let plan = Plan::new(&elf.sections, words, problems)?;
        let total: u64 = plan.pages().iter().sum();
        if total > MAX_IMAGE {
            problems.push(Problem::TooLarge {
                size: total,
                limit: MAX_IMAGE,
            });
            return Err(file.findings.refuse());
        }
        let Some(memory) = loader.host.allocate(total.max(PAGE)) else {
            let window = loader.host.architecture().window_size();
            problems.push(Problem::NoMemory {
                size: total,
                window,
            });
            return Err(file.findings.refuse());
        };
        let spans = plan.spans(memory.base());
        let mut image = Box::write(fallible::place()?, Image { spans, memory });
        let addresses = plan.write(&elf.sections, &mut image);
        Ok(LaidOut(file.placed(image, addresses)?))
    }
}

impl<'a> File<'a> {
    /// With addresses. (Not inlined: moving everything takes stack.)
    #[inline(never)]
    fn placed(
        self: Box<Self>,
        image: Box<Image>,
        addresses: Vec<Option<u64>>,
    ) -> Result<Box<Placed<'a>>, NoMemory> {
        let Self {
            findings,
            elf,
            build_id,
            depends,
            ..
        } = *self;
        let place = fallible::place()?;
        Ok(Box::write(
            place,
            Placed {
                findings,
                elf,
                build_id,
                depends,
                image,
                addresses,
                targets: Vec::new(),
                begins: Begins::default(),
                boot_references: Vec::new(),
            },
        ))
    }
}
