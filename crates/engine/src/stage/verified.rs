// SPDX-License-Identifier: MIT OR Apache-2.0

//! A verified payload, and its installation.

use super::tables::Tables;
use super::{Findings, Function};
use crate::host::{Description, Resident, State, Symbol};
use crate::image::{Image, Span};
use crate::problem::{Problem, Refusal};
use crate::stack::{Hooks, Loaded, NewSymbols, Times};
use crate::{Errno, Host, Stack};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;
use xsplice_abi::payload::Expectation;
use xsplice_fallible::{self as fallible, NoMemory};

/// A payload that passed every check and can be installed. Dropping it frees its
/// memory.
#[derive(Debug)]
pub struct Verified<'a> {
    pub(super) image: Box<Image>,
    pub(super) contents: Box<Contents<'a>>,
}

/// The results of verification.
#[derive(Debug, Default)]
pub(super) struct Contents<'a> {
    pub(super) findings: Findings,
    pub(super) build_id: Vec<u8>,
    pub(super) depends: Vec<u8>,
    pub(super) functions: Vec<Function>,
    pub(super) expectations: Vec<Expectation>,
    pub(super) preimages: Vec<u8>,
    pub(super) hooks: Hooks,
    pub(super) tables: Tables,
    pub(super) symbols: Vec<Symbol<'a>>,
    pub(super) new_symbols: NewSymbols,
    pub(super) metadata: Vec<String>,
    pub(super) writable_data: bool,
}

impl Verified<'_> {
    /// Problems that do not prevent loading.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.contents.findings.problems.list
    }

    /// The functions it patches.
    #[must_use]
    pub fn functions(&self) -> &[Function] {
        &self.contents.functions
    }

    /// As [`Function::name`], of one of its functions.
    #[must_use]
    pub fn function_name(&self, host: &impl Host, function: &Function) -> String {
        self.image.function_name(host, function)
    }

    /// Its build-id.
    #[must_use]
    pub fn build_id(&self) -> &[u8] {
        &self.contents.build_id
    }

    /// Its metadata strings.
    #[must_use]
    pub fn metadata(&self) -> &[String] {
        &self.contents.metadata
    }

    /// Whether it can be applied again after a revert: not if it has writable data,
    /// which would keep its values.
    #[must_use]
    pub fn can_reapply(&self) -> bool {
        !self.contents.writable_data
    }

    /// Copies it into the hypervisor's memory, hands its tables over, protects
    /// its pages and puts it on the stack.
    pub(crate) fn install(self, stack: &mut Stack) -> Result<(), Refusal> {
        let Self {
            mut image,
            mut contents,
        } = self;
        if let Err((what, errno)) = contents.hand_over(&mut image) {
            let Findings { problems, .. } = &mut contents.findings;
            problems.push(Problem::Hypervisor { what, errno });
            return Err(contents.findings.refuse());
        }
        let text = image.text().range();
        Ok(contents.push_to(stack, text, image.memory)?)
    }
}

impl Contents<'_> {
    /// Nothing is known.
    #[inline(never)]
    pub(super) fn boxed() -> Result<Box<Self>, NoMemory> {
        Ok(Box::write(fallible::place()?, Self::default()))
    }

    /// Registers the payload with the hypervisor; returns what failed, if anything.
    #[inline(never)]
    fn hand_over(&self, image: &mut Image) -> Result<(), (&'static str, Errno)> {
        let [text, data, read_only] = image.spans.each_ref().map(Span::range);
        let tables = &self.tables;
        let registered = image.memory.register(&Description {
            name: &self.findings.payload,
            text,
            data,
            read_only,
            funcs: tables.funcs.clone(),
            functions: &self.functions,
            alternatives: tables.alternatives.clone(),
            exceptions: tables.exceptions.clone(),
            bug_frames: tables.bug_frames.clone(),
            call_sites: tables.call_sites.clone(),
            build_id: &self.build_id,
            depends: &self.depends,
            metadata: tables.metadata.clone(),
            symbols: &self.symbols,
        });
        registered.map_err(|errno| ("take over its tables", errno))?;
        let protected = image.protect();
        protected.map_err(|errno| ("protect its pages", errno))
    }

    #[inline(never)]
    fn push_to(
        self: Box<Self>,
        stack: &mut Stack,
        text: Range<u64>,
        memory: Box<dyn Resident>,
    ) -> Result<(), NoMemory> {
        let patched = fallible::filled(false, self.functions.len())?;
        let place = fallible::place()?;
        stack.push(Box::write(
            place,
            Loaded {
                id: stack.next_id(),
                name: self.findings.payload,
                signer: self.findings.signer,
                build_id: self.build_id,
                depends: self.depends,
                text,
                memory,
                patched,
                patches: Vec::new(),
                functions: self.functions,
                expectations: self.expectations,
                preimages: self.preimages,
                hooks: self.hooks,
                metadata: self.metadata,
                problems: self.findings.problems.list,
                symbols: self.new_symbols,
                uses: self.findings.uses.sorted(),
                writable_data: self.writable_data,
                reverted: false,
                state: State::Checked,
                result: 0,
                times: Times::default(),
            },
        ))
    }
}
