// SPDX-License-Identifier: MIT OR Apache-2.0
//! The running hypervisor with payloads applied.

use crate::class::Class;
use crate::image::{Image, addresses};
use crate::payload::{self, Replaced};
use crate::tables::Tables;
use crate::{Input, Unusable};
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use xsplice_abi::special::Table;

/// Where a payload has a new per-CPU variable.
#[derive(Debug)]
pub(crate) struct NewPerCpu {
    /// In the area of the first CPU.
    pub(crate) place: Range<u64>,
    /// Whether the payload is not the topmost.
    pub(crate) lower: bool,
}

/// The running hypervisor with payloads applied.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) image: Image,
    pub(crate) tables: Tables,
    /// By the address of the replaced function; later payloads override earlier ones.
    pub(crate) replaced: HashMap<u64, Replaced>,
    /// The records that later payloads override.
    pub(crate) overridden: Vec<Replaced>,
    /// The table entries of the payloads: the code that each describes, and the
    /// address of the entry itself.
    pub(crate) entries: Vec<(Table, u64, u64)>,
    pub(crate) hooks: Vec<(String, u64)>,
    pub(crate) new_per_cpu: Vec<NewPerCpu>,
    /// The targets of the payloads' relocations.
    starts: BTreeSet<u64>,
    /// The start of each payload's memory, in ascending order.
    payloads: Vec<u64>,
}

impl Running {
    pub(crate) fn new(image: Image) -> Result<Self, String> {
        Ok(Self {
            tables: Tables::linked(&image)?,
            image,
            replaced: HashMap::new(),
            overridden: Vec::new(),
            entries: Vec::new(),
            hooks: Vec::new(),
            new_per_cpu: Vec::new(),
            starts: BTreeSet::new(),
            payloads: Vec::new(),
        })
    }

    /// Applies a payload on top.
    pub(crate) fn apply(&mut self, input: &Input) -> Result<(), Unusable> {
        let end = self.image.end();
        let brought = payload::apply(&mut self.image, input.name, input.data)?;
        self.payloads.push(end);
        let bad = |reason: String| Unusable::new(input.name, &reason);
        for (table, start, size) in brought.tables {
            let range = start..start + size;
            let added = self.tables.add(&self.image, table, range).map_err(bad)?;
            for (place, at) in added {
                self.entries.push((table, place, at));
            }
        }
        for replaced in brought.replaced {
            let before = self.replaced.insert(replaced.old, replaced);
            self.overridden.extend(before);
        }
        self.hooks.extend(brought.hooks);
        self.starts.extend(brought.starts);
        Ok(())
    }

    /// Whether a payload brings the variable at `address`.
    pub(crate) fn is_new_variable(&self, address: u64) -> bool {
        self.image.class(address) == Some(Class::PayloadData)
            || self
                .new_per_cpu
                .iter()
                .any(|new| new.place.start == address)
    }

    /// Where a call to `address` ends up.
    pub(crate) fn live(&self, address: u64) -> u64 {
        let mut live = address;
        // A replacement can itself be replaced, but not in a cycle.
        for _ in 0..=self.replaced.len() {
            match self.replaced.get(&live) {
                Some(func) if func.new != 0 => live = func.new,
                _ => break,
            }
        }
        live
    }

    /// Whether the table entry at `entry` belongs to a payload below the topmost and
    /// describes that payload's own code at `place`.
    pub(crate) fn is_about_lower_payload(&self, entry: u64, place: u64) -> bool {
        self.payload(entry) == self.payload(place) && self.is_in_lower_payload(place)
    }

    /// Whether `address` is in a payload below the topmost.
    pub(crate) fn is_in_lower_payload(&self, address: u64) -> bool {
        (1..self.payloads.len()).contains(&self.payload(address))
    }

    /// The number of the payload that contains `address`, from 1; 0 for the
    /// hypervisor.
    pub(crate) fn payload(&self, address: u64) -> usize {
        self.payloads.partition_point(|&start| start <= address)
    }

    /// Whether a payload only has traps at `address`.
    pub(crate) fn is_trap(&self, address: u64) -> bool {
        let entity = self.image.starting_at(address);
        entity.is_some_and(|id| {
            let entity = &self.image.entities[id];
            let code = self.image.bytes(address, entity.size).unwrap_or_default();
            entity.class == Class::PayloadText && self.image.arch.is_trap(&code)
        })
    }

    /// Whether the hypervisor itself has the address of the function at `address`
    /// anywhere except in calls.
    pub(crate) fn takes_address(&self, address: u64) -> bool {
        let image = &self.image;
        let own = image.entities.iter().filter(|e| !e.class.is_payload());
        own.clone().any(|entity| {
            if entity.runs {
                return image.arch.takes_address(image, entity, address);
            }
            let contents = image.bytes(entity.address, entity.size).unwrap_or_default();
            addresses(&contents, image.width()).any(|pointer| pointer == address)
        })
    }

    /// The maximum size of an unnamed constant at `address`.
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
