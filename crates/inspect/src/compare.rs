//! Old and new code of each function, side by side.

use crate::Error;
use crate::elf::Elf;
use crate::payload::{Function, functions};
use iced_x86::{Decoder, DecoderOptions, Formatter, GasFormatter, Instruction, OpKind};
use object::read::elf::ElfFile64;
use object::{Endianness, Object as _, ObjectSection as _, ObjectSymbol as _};
use serde::Serialize;
use similar::{Algorithm, DiffOp};
use std::collections::{BTreeMap, HashMap};

/// One function, before and after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listing {
    /// What the payload says about it.
    pub function: Function,
    /// Its instructions, aligned.
    pub lines: Vec<Line>,
}

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Offset and text of the old instruction.
    pub old: Option<(u64, String)>,
    /// Offset and text of the new instruction.
    pub new: Option<(u64, String)>,
}

impl Line {
    /// Whether both sides have the same instruction.
    pub fn same(&self) -> bool {
        matches!((&self.old, &self.new), (Some((_, old)), Some((_, new))) if old == new)
    }
}

/// Puts the code of each function of `payload` next to the one that it
/// replaces in `xen_syms`; both are the bytes of a file.
///
/// # Errors
/// If one of the files cannot be read.
pub fn compare(payload: &[u8], xen_syms: &[u8]) -> Result<Vec<Listing>, Error> {
    let image = Image::read(xen_syms)?;
    let elf = Elf::read(payload, &|name| image.addresses.get(name).copied())?;
    let listings = functions(&elf).into_iter().map(|(function, new)| {
        let old_size = usize::try_from(function.old_size).unwrap_or(0);
        let new_size = usize::try_from(function.new_size).unwrap_or(0);
        let old_address = match function.old_address {
            0 => image.addresses.get(&function.name).copied().unwrap_or(0),
            address => address,
        };
        let names = Names {
            image: &image,
            elf: &elf,
        };
        let code = |bytes: Option<&[u8]>, size: usize| {
            bytes.map_or(Vec::new(), |b| b[..size.min(b.len())].to_vec())
        };
        let old = code(image.bytes(old_address), old_size);
        let new = code(new.and_then(|address| elf.bytes(address)), new_size);
        let old = disassemble(&old, old_address, &names);
        let new = disassemble(&new, new_address(&function, &elf), &names);
        Listing {
            lines: align(&old, &new),
            function,
        }
    });
    Ok(listings.collect())
}

fn new_address(function: &Function, elf: &Elf) -> u64 {
    let place = function.new.as_ref();
    place
        .and_then(|(section, offset)| Some(elf.section(section)?.address + offset))
        .unwrap_or(0)
}

/// The hypervisor's file.
struct Image {
    addresses: HashMap<String, u64>,
    names: BTreeMap<u64, String>,
    sections: Vec<(u64, Vec<u8>)>,
}

impl Image {
    fn read(data: &[u8]) -> Result<Self, Error> {
        let file = ElfFile64::<Endianness>::parse(data)?;
        let mut addresses = HashMap::new();
        let mut names = BTreeMap::new();
        for symbol in file.symbols().filter(|symbol| symbol.is_definition()) {
            let name = symbol.name()?.to_owned();
            names
                .entry(symbol.address())
                .or_insert_with(|| name.clone());
            if symbol.is_global() {
                addresses.insert(name, symbol.address());
            }
        }
        let mut sections = Vec::new();
        for section in file.sections().filter(|section| section.address() != 0) {
            sections.push((section.address(), section.data()?.to_vec()));
        }
        Ok(Self {
            addresses,
            names,
            sections,
        })
    }

    fn bytes(&self, address: u64) -> Option<&[u8]> {
        self.sections.iter().find_map(|(start, data)| {
            let bytes = data.get(usize::try_from(address.checked_sub(*start)?).ok()?..)?;
            (!bytes.is_empty()).then_some(bytes)
        })
    }

    fn name(&self, address: u64) -> Option<(&str, u64)> {
        self.bytes(address)?;
        let (start, name) = self.names.range(..=address).next_back()?;
        Some((name, address - start))
    }
}

/// What an address is called: a symbol and an offset, or a text.
struct Names<'a> {
    image: &'a Image,
    elf: &'a Elf,
}

impl Names<'_> {
    fn name(&self, address: u64) -> Option<String> {
        if let Some((name, offset)) = self.elf.name(address) {
            return Some(with_offset(name, offset));
        }
        let bytes = self
            .elf
            .bytes(address)
            .or_else(|| self.image.bytes(address));
        if let Some(text) = bytes.and_then(text) {
            return Some(text);
        }
        let (name, offset) = self.image.name(address)?;
        Some(with_offset(name, offset))
    }
}

fn with_offset(name: &str, offset: u64) -> String {
    // A local symbol of the payload has its file in its name, and a tag.
    let name = name.rsplit('#').next().unwrap_or(name);
    let name = name.split('@').next().unwrap_or(name);
    match offset {
        0 => name.to_owned(),
        offset => format!("{name}+{offset:#x}"),
    }
}

/// `bytes` as a quoted text, if they start with a printable one.
fn text(bytes: &[u8]) -> Option<String> {
    const LONGEST: usize = 40;
    let end = bytes.iter().position(|&b| b == 0)?;
    let text = std::str::from_utf8(&bytes[..end]).ok()?;
    let printable = |c: char| !c.is_control() || c == '\n' || c == '\t';
    if text.chars().count() < 4 || !text.chars().all(printable) {
        return None;
    }
    let short: String = text.chars().take(LONGEST).collect();
    let dots = if short.len() < text.len() { "..." } else { "" };
    Some(format!("{short:?}{dots}"))
}

fn disassemble(code: &[u8], address: u64, names: &Names) -> Vec<(u64, String)> {
    let own = address..address.saturating_add(code.len() as u64);
    let mut formatter = GasFormatter::new();
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    let instructions = decoder.iter();
    instructions
        .map(|instruction| {
            let leads_to = |target: u64| {
                // Distances within a function change with everything between.
                let forward = target >= instruction.ip();
                let within = if forward { "forward" } else { "back" };
                match own.contains(&target) {
                    true => within.to_owned(),
                    false => names.name(target).unwrap_or_else(|| format!("{target:#x}")),
                }
            };
            let text = format(&mut formatter, &instruction, &leads_to);
            (instruction.ip().wrapping_sub(address), text)
        })
        .collect()
}

/// An instruction with names in place of addresses.
fn format(
    formatter: &mut GasFormatter,
    instruction: &Instruction,
    leads_to: &dyn Fn(u64) -> String,
) -> String {
    let mut text = String::new();
    formatter.format_mnemonic(instruction, &mut text);
    for number in 0..formatter.operand_count(instruction) {
        text.push_str(if number == 0 { " " } else { "," });
        let operand = formatter.get_instruction_operand(instruction, number);
        let kind = operand
            .ok()
            .flatten()
            .map(|index| instruction.op_kind(index));
        match kind {
            Some(OpKind::NearBranch64) => {
                text.push_str(&leads_to(instruction.near_branch_target()))
            }
            Some(OpKind::Memory) if instruction.is_ip_rel_memory_operand() => {
                text.push_str(&leads_to(instruction.ip_rel_memory_address()));
                text.push_str("(%rip)");
            }
            // The number of an operand that the instruction has is never refused.
            _ => drop(formatter.format_operand(instruction, &mut text, number)),
        }
    }
    text
}

fn align(old: &[(u64, String)], new: &[(u64, String)]) -> Vec<Line> {
    let text = |side: &[(u64, String)]| -> Vec<String> {
        side.iter().map(|(_, text)| text.clone()).collect()
    };
    let (old_text, new_text) = (text(old), text(new));
    let mut lines = Vec::new();
    let mut push = |old: Option<&(u64, String)>, new: Option<&(u64, String)>| {
        lines.push(Line {
            old: old.cloned(),
            new: new.cloned(),
        });
    };
    for op in similar::capture_diff_slices(Algorithm::Myers, &old_text, &new_text) {
        let (old, new) = (&old[op.old_range()], &new[op.new_range()]);
        match op {
            DiffOp::Equal { .. } | DiffOp::Replace { .. } => {
                for at in 0..old.len().max(new.len()) {
                    push(old.get(at), new.get(at));
                }
            }
            DiffOp::Delete { .. } => old.iter().for_each(|line| push(Some(line), None)),
            DiffOp::Insert { .. } => new.iter().for_each(|line| push(None, Some(line))),
        }
    }
    lines
}
