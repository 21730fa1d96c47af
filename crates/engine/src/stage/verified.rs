// SPDX-License-Identifier: MIT OR Apache-2.0

//! A payload that is good, and how it gets onto the stack.

use super::tables::Tables;
use super::{Findings, Function};
use crate::host::{Description, State, Symbol};
use crate::image::{Image, Span};
use crate::problem::{Problem, Refusal};
use crate::stack::{Hooks, Loaded, Times};
use crate::{Errno, Stack};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use xsplice_abi::payload::Expectation;
use xsplice_abi::preimage::Preimage;

/// A payload that passed every check and can be put on the stack. Dropping it
/// gives its memory back.
#[derive(Debug)]
pub struct Verified(pub(super) Box<Contents>);

/// What is known about it.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) findings: Findings,
    pub(super) build_id: Vec<u8>,
    pub(super) depends: Vec<u8>,
    pub(super) image: Image,
    pub(super) functions: Vec<Function>,
    pub(super) expectations: Vec<Expectation>,
    pub(super) preimages: Vec<Preimage>,
    pub(super) hooks: Hooks,
    pub(super) tables: Tables,
    pub(super) symbols: Vec<Symbol>,
    /// The new ones by their names as they are.
    pub(super) new_symbols: BTreeMap<Vec<u8>, u64>,
    pub(super) metadata: Vec<String>,
    pub(super) writable_data: bool,
}

impl Verified {
    /// Problems that do not keep it from being loaded.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.0.findings.problems.list
    }

    /// The functions it patches.
    #[must_use]
    pub fn functions(&self) -> &[Function] {
        &self.0.functions
    }

    /// Its build-id.
    #[must_use]
    pub fn build_id(&self) -> &[u8] {
        &self.0.build_id
    }

    /// The strings that describe it.
    #[must_use]
    pub fn metadata(&self) -> &[String] {
        &self.0.metadata
    }

    /// Whether it can be applied again after a revert: not when it has writable
    /// data, which would keep the values of the first time.
    #[must_use]
    pub fn can_reapply(&self) -> bool {
        !self.0.writable_data
    }

    /// Copies it into the hypervisor's memory, hands its tables over, protects
    /// its pages and puts it on the stack.
    pub(crate) fn install(self, stack: &mut Stack) -> Result<(), Refusal> {
        let mut contents = self.0;
        if let Err((what, errno)) = contents.hand_over() {
            let Findings { problems, .. } = &mut contents.findings;
            problems.push(Problem::Hypervisor { what, errno });
            return Err(contents.findings.refuse());
        }
        contents.push_to(stack);
        Ok(())
    }
}

impl Contents {
    /// Gives the payload to the hypervisor; what it failed to do, if it did.
    #[inline(never)]
    fn hand_over(&mut self) -> Result<(), (&'static str, Errno)> {
        let [text, data, read_only] = self.image.spans.each_ref().map(Span::range);
        let tables = &self.tables;
        self.image.copy();
        let registered = self.image.memory.register(&Description {
            name: &self.findings.payload,
            text,
            data,
            read_only,
            funcs: tables.funcs.clone(),
            functions: &self.functions,
            alternatives: tables.alternatives.clone(),
            exceptions: tables.exceptions.clone(),
            bug_frames: tables.bug_frames.clone(),
            build_id: &self.build_id,
            depends: &self.depends,
            metadata: tables.metadata.clone(),
            symbols: &self.symbols,
        });
        registered.map_err(|errno| ("take over its tables", errno))?;
        let protected = self.image.protect();
        protected.map_err(|errno| ("protect its pages", errno))
    }

    #[inline(never)]
    fn push_to(self: Box<Self>, stack: &mut Stack) {
        let mut names = Vec::with_capacity(self.new_symbols.len());
        names.extend(self.new_symbols.keys().cloned());
        let contents = *self;
        let loaded = Box::new(Loaded {
            id: stack.next_id(),
            name: contents.findings.payload,
            build_id: contents.build_id,
            depends: contents.depends,
            text: contents.image.text().range(),
            memory: contents.image.memory,
            patched: vec![false; contents.functions.len()],
            patches: Vec::new(),
            functions: contents.functions,
            expectations: contents.expectations,
            preimages: contents.preimages,
            hooks: contents.hooks,
            metadata: contents.metadata,
            problems: contents.findings.problems.list,
            symbols: names,
            uses: contents.findings.uses,
            writable_data: contents.writable_data,
            reverted: false,
            state: State::Checked,
            result: 0,
            times: Times::default(),
        });
        stack.push(loaded, contents.new_symbols);
    }
}
