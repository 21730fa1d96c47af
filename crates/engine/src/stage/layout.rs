// SPDX-License-Identifier: MIT OR Apache-2.0

//! Where each section goes.

use super::{DependencyChecked, File, Loader, Placed};
use crate::Host;
use crate::elf::{SHF_EXECINSTR, SHF_WRITE};
use crate::format::MAX_IMAGE;
use crate::image::{Image, PAGE, Span};
use crate::problem::{Problem, Refusal};
use alloc::boxed::Box;
use alloc::vec::Vec;
use xsplice_memory as memory;

const TEXT: usize = 0;
const WRITABLE: usize = 1;
const READ_ONLY: usize = 2;

/// A payload whose sections have addresses and are copied to them.
#[derive(Debug)]
pub struct LaidOut<'a>(pub(super) Box<Placed<'a>>);

impl<'a> DependencyChecked<'a> {
    /// Gives each section that is loaded an address: text first, then writable
    /// data, then read-only data, on pages of their own.
    ///
    /// # Errors
    /// [`Refusal`] when there is no room for it.
    #[inline(never)]
    pub fn lay_out(self, loader: &Loader<'_, impl Host>) -> Result<LaidOut<'a>, Refusal> {
        let File {
            mut findings,
            elf,
            build_id,
            depends,
        } = *self.0;
        let problems = &mut findings.problems;
        let mut sizes = [0_u64; 3];
        let mut places = memory::filled(None, elf.sections.len())?;
        for (section, place) in elf.sections.iter().zip(&mut places) {
            if !section.allocated() {
                continue;
            }
            let kind = match (
                section.flags & SHF_EXECINSTR != 0,
                section.flags & SHF_WRITE != 0,
            ) {
                (true, true) => {
                    problems.push(Problem::WritableText {
                        section: section.id(),
                    });
                    continue;
                }
                (true, false) => TEXT,
                (false, true) => WRITABLE,
                (false, false) => READ_ONLY,
            };
            let Some(size) = sizes.get_mut(kind) else {
                continue;
            };
            if section.align == 0 && section.size != 0 {
                problems.push(Problem::ZeroAlignment {
                    section: section.id(),
                });
            }
            if section.align > PAGE {
                let align = section.align;
                problems.push(Problem::LargeAlignment {
                    section: section.id(),
                    align,
                });
            }
            // Sizes are at most MAX_SIZE each, but an alignment can be anything.
            let offset = size.checked_next_multiple_of(section.align.max(1));
            let offset = offset.filter(|offset| *offset <= MAX_IMAGE);
            let end = offset.and_then(|offset| offset.checked_add(section.size));
            *size = end.unwrap_or(u64::MAX).min(MAX_IMAGE + 1);
            *place = offset.map(|offset| (kind, offset));
        }

        let pages = sizes.map(|size| size.next_multiple_of(PAGE));
        let total: u64 = pages.iter().sum();
        if total > MAX_IMAGE {
            problems.push(Problem::TooLarge {
                size: total,
                limit: MAX_IMAGE,
            });
            return Err(findings.refuse());
        }
        let Some(resident) = loader.host.allocate(total.max(PAGE)) else {
            problems.push(Problem::NoMemory { size: total });
            return Err(findings.refuse());
        };

        let base = resident.base();
        let mut image = Box::write(
            memory::place()?,
            Image {
                spans: Default::default(),
                memory: resident,
            },
        );
        let mut start = 0;
        for ((span, size), pages) in image.spans.iter_mut().zip(sizes).zip(pages) {
            // All of it together is within a limit, and in memory.
            let [size, pages] = [size, pages].map(|size| usize::try_from(size).unwrap_or(0));
            *span = Span {
                base: base.saturating_add(start as u64),
                start,
                len: size,
            };
            start += pages;
        }
        let mut addresses = memory::filled(None, elf.sections.len())?;
        // Where nothing was written yet.
        let mut gaps = image.spans.map(|span| span.start);
        for ((section, place), address) in elf.sections.iter().zip(places).zip(&mut addresses) {
            let Some((kind, offset)) = place else {
                continue;
            };
            let Some(span) = image.spans.get(kind) else {
                continue;
            };
            *address = Some(span.base + offset);
            let start = span.start + usize::try_from(offset).unwrap_or(0);
            let made = image.memory.bytes_mut();
            if let Some(dest) = made.get_mut(start..start + section.data.len()) {
                dest.copy_from_slice(section.data);
            }
            if let Some(gap) = gaps.get_mut(kind) {
                made.get_mut(*gap..start).unwrap_or_default().fill(0);
                *gap = start + section.data.len();
            }
        }
        let spans = gaps.into_iter().zip(image.spans).zip(pages);
        for (kind, ((gap, span), pages)) in spans.enumerate() {
            let len = match kind {
                // What is behind it is not used, but can be executed.
                TEXT => usize::try_from(pages).unwrap_or(0),
                _ => span.len,
            };
            let made = image.memory.bytes_mut();
            let gap = made.get_mut(gap..span.start + len);
            gap.unwrap_or_default().fill(0);
        }
        let place = memory::place()?;
        Ok(LaidOut(Box::write(
            place,
            Placed {
                findings,
                elf,
                build_id,
                depends,
                image,
                addresses,
                targets: Vec::new(),
                boot_references: Vec::new(),
            },
        )))
    }
}
