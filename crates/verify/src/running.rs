// SPDX-License-Identifier: MIT OR Apache-2.0
//! The running hypervisor with payloads applied.

use crate::image::{Class, Image};
use crate::payload::{self, Replaced};
use crate::tables::{Table, Tables};
use crate::{Input, Unusable};
use std::collections::{BTreeSet, HashMap};

/// The running hypervisor with payloads applied.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) image: Image,
    pub(crate) tables: Tables,
    /// By the address of what is replaced: later payloads go over earlier ones.
    pub(crate) replaced: HashMap<u64, Replaced>,
    /// The table entries of the payloads, by where they are.
    pub(crate) entries: Vec<(Table, u64)>,
    pub(crate) hooks: Vec<(String, u64)>,
    /// What relocations of the payloads lead to.
    starts: BTreeSet<u64>,
}

impl Running {
    pub(crate) fn new(image: Image) -> Self {
        Self {
            tables: Tables::linked(&image),
            image,
            replaced: HashMap::new(),
            entries: Vec::new(),
            hooks: Vec::new(),
            starts: BTreeSet::new(),
        }
    }

    /// Applies a payload on top.
    pub(crate) fn apply(&mut self, input: &Input) -> Result<(), Unusable> {
        let brought = payload::apply(&mut self.image, input.name, input.data)?;
        for (table, start, size) in brought.tables {
            self.tables.add(&self.image, table, start..start + size);
            let mut at = start;
            while at + table.entry_size() <= start + size {
                self.entries.push((table, at));
                at += table.entry_size();
            }
        }
        for replaced in brought.replaced {
            self.replaced.insert(replaced.old, replaced);
        }
        self.hooks.extend(brought.hooks);
        self.starts.extend(brought.starts);
        Ok(())
    }

    /// Where execution is that enters at `address`.
    pub(crate) fn live(&self, address: u64) -> u64 {
        let replaced = self.replaced.get(&address).filter(|func| func.new != 0);
        replaced.map_or(address, |func| func.new)
    }

    /// Whether a payload has nothing but a trap at `address`.
    pub(crate) fn is_trap(&self, address: u64) -> bool {
        const UD2: [u8; 2] = [0x0f, 0x0b];
        let entity = self.image.starting_at(address);
        entity.is_some_and(|id| {
            let entity = &self.image.entities[id];
            entity.class == Class::PayloadText
                && entity.size == UD2.len() as u64
                && self.image.from(address).starts_with(&UD2)
        })
    }

    /// How far a constant without a name at `address` can reach.
    pub(crate) fn room(&self, address: u64) -> u64 {
        let named = self.image.at.range(address + 1..).next().map(|(&at, _)| at);
        let start = self.starts.range(address + 1..).next().copied();
        let segment = self.image.segment(address);
        let end = segment.map(|segment| segment.address + segment.size);
        let ends = [named, start, end];
        let nearest = ends.into_iter().flatten().min();
        nearest.unwrap_or(address).saturating_sub(address)
    }
}
