// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reads types from debugging information.
//!
//! Compilers omit types that nothing in the object uses, directly or through
//! pointers: each type described here may have instances that the object's code or
//! data uses.

pub(crate) mod types;

use gimli::{AttributeValue, DwarfSections, EndianSlice, LittleEndian, Section as _, UnitOffset};
use object::{Object, ObjectSection, ObjectSymbol, RelocationKind, RelocationTarget};
use std::collections::HashMap;
use std::path::Path;
use types::{Definition, Encoding, Enumerator, Kind, Member, Name, Record, Shape, Types};

type Slice<'a> = EndianSlice<'a, LittleEndian>;
type Entry<'a> = gimli::DebuggingInformationEntry<Slice<'a>>;

/// GCC's prefix for section names with early debugging information.
const EARLY: &str = ".gnu.debuglto_";

/// Maximum nesting of types before the information counts as damaged.
const DEPTH: usize = 200;

/// Why debugging information cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("{0}")]
    Object(#[from] object::Error),
    #[error("{0}")]
    Dwarf(#[from] gimli::Error),
    #[error("there is none")]
    Missing,
    #[error("types are nested too deeply")]
    Depth,
}

/// The types that the object file `bytes` describes.
pub(crate) fn read(bytes: &[u8]) -> Result<Types, ReadError> {
    let file = object::File::parse(bytes)?;
    let sections = DwarfSections::load(|id| relocated(&file, id.name()))?;
    let dwarf = sections.borrow(|section| EndianSlice::new(section, LittleEndian));
    let mut types = Types::default();
    let mut headers = dwarf.units();
    let mut found = false;
    while let Some(header) = headers.next()? {
        found = true;
        let unit = dwarf.unit(header)?;
        let mut reader = UnitReader {
            dwarf: &dwarf,
            unit: &unit,
            named: HashMap::new(),
            enumerations: Vec::new(),
        };
        reader.collect(&mut types)?;
    }
    if found {
        Ok(types)
    } else {
        Err(ReadError::Missing)
    }
}

/// A static variable of a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Local {
    /// The function that declares it.
    pub(crate) function: String,
    /// Its name in the source.
    pub(crate) name: String,
    /// File and line of the declaration, or of the use of the macro that has it.
    place: String,
    /// Its symbol, if its address is known.
    pub(crate) symbol: Option<String>,
}

impl Local {
    /// Its declaration: function, name, file and line.
    pub(crate) fn declaration(&self) -> (&str, &str, &str) {
        (&self.function, &self.name, &self.place)
    }
}

/// The static variables of functions that the object file `bytes` describes, and
/// their other variables, which have no symbol.
pub(crate) fn locals(bytes: &[u8]) -> Result<Vec<Local>, ReadError> {
    let file = object::File::parse(bytes)?;
    let sections = DwarfSections::load(|id| relocated(&file, id.name()))?;
    let dwarf = sections.borrow(|section| EndianSlice::new(section, LittleEndian));
    let addresses = Addresses {
        in_info: pointers(&file, gimli::SectionId::DebugInfo.name()),
        in_list: pointers(&file, gimli::SectionId::DebugAddr.name()),
        names: file
            .symbols()
            .filter(|s| s.size() > 0)
            .filter_map(|s| Some(((s.section_index()?, s.address()), s.name().ok()?.to_owned())))
            .collect(),
    };
    let mut found = Vec::new();
    let mut headers = dwarf.units();
    while let Some(header) = headers.next()? {
        let unit = dwarf.unit(header)?;
        let reader = UnitReader {
            dwarf: &dwarf,
            unit: &unit,
            named: HashMap::new(),
            enumerations: Vec::new(),
        };
        let mut tree = unit.entries_tree(None)?;
        reader.find_locals(tree.root()?, ("", 0), &addresses, &mut found)?;
    }
    Ok(found)
}

type Place = (object::SectionIndex, u64);

/// The targets of addresses in debugging information.
struct Addresses {
    /// By their offsets in the information itself.
    in_info: HashMap<usize, Place>,
    /// By their offsets in the list of addresses beside it.
    in_list: HashMap<usize, Place>,
    names: HashMap<Place, String>,
}

/// The addend of the relocation of the field at the start of `place`, which may have it;
/// `None` if the field is cut off.
fn addend(relocation: &object::Relocation, place: &[u8]) -> Option<i64> {
    if !relocation.has_implicit_addend() {
        return Some(relocation.addend());
    }
    let field = place.get(..usize::from(relocation.size() / 8))?;
    let bytes = field.iter().rev();
    let held = bytes.fold(0, |value: u64, byte| value << 8 | u64::from(*byte));
    Some(held.cast_signed().wrapping_add(relocation.addend()))
}

/// The target of each relocated field of a section, by its offset.
fn pointers(file: &object::File, section: &str) -> HashMap<usize, Place> {
    let section = file.section_by_name(section);
    let relocations = section.iter().flat_map(|section| section.relocations());
    let data = section.as_ref().and_then(|section| section.data().ok());
    let pointers = relocations.filter_map(|(offset, relocation)| {
        let RelocationTarget::Symbol(index) = relocation.target() else {
            return None;
        };
        let symbol = file.symbol_by_index(index).ok()?;
        let offset = usize::try_from(offset).ok()?;
        let addend = addend(&relocation, data?.get(offset..)?)?;
        let address = symbol.address().wrapping_add_signed(addend);
        Some((offset, (symbol.section_index()?, address)))
    });
    pointers.collect()
}

struct UnitReader<'a> {
    dwarf: &'a gimli::Dwarf<Slice<'a>>,
    unit: &'a gimli::Unit<Slice<'a>>,
    named: HashMap<UnitOffset, Name>,
    enumerations: Vec<UnitOffset>,
}

impl<'a> UnitReader<'a> {
    fn collect(&mut self, types: &mut Types) -> Result<(), ReadError> {
        let mut tree = self.unit.entries_tree(None)?;
        self.find_names(tree.root()?, "", 0)?;
        let mut offsets: Vec<UnitOffset> = self.named.keys().copied().collect();
        offsets.sort_unstable();
        for offset in offsets {
            let entry = self.unit.entry(offset)?;
            let name = &self.named[&offset];
            let shape = match name.kind {
                Kind::Typedef | Kind::Global | Kind::Private => self.target(&entry, 0)?,
                _ => self.body(&entry, 0)?,
            };
            let definition = Definition {
                place: self.place(&entry)?,
                shape,
            };
            let known = types.definitions.entry(name.clone()).or_default();
            if !known.contains(&definition) {
                known.push(definition);
            }
        }
        for offset in &self.enumerations {
            self.add_enumerators(*offset, types)?;
        }
        Ok(())
    }

    /// Finds named entries and all enumerations in `node` and below.
    fn find_names(
        &mut self,
        node: gimli::EntriesTreeNode<Slice<'a>>,
        scope: &str,
        depth: usize,
    ) -> Result<(), ReadError> {
        if depth > DEPTH {
            return Err(ReadError::Depth);
        }
        let entry = node.entry();
        let has = |attribute| entry.attr_value(attribute).is_some();
        let declaration = has(gimli::DW_AT_declaration);
        let kind = match entry.tag() {
            gimli::DW_TAG_structure_type => Some(Kind::Structure),
            gimli::DW_TAG_union_type => Some(Kind::Union),
            gimli::DW_TAG_enumeration_type => Some(Kind::Enumeration),
            gimli::DW_TAG_typedef => Some(Kind::Typedef),
            gimli::DW_TAG_variable if has(gimli::DW_AT_external) => Some(Kind::Global),
            gimli::DW_TAG_variable => Some(Kind::Private),
            _ => None,
        };
        if entry.tag() == gimli::DW_TAG_enumeration_type && !declaration {
            self.enumerations.push(entry.offset());
        }
        let name = self.name(entry)?;
        if let (Some(kind), Some(name)) = (kind, &name) {
            let name = Name {
                kind,
                scope: scope.to_owned(),
                name: name.clone(),
            };
            self.named.insert(entry.offset(), name);
        }
        let inner = match entry.tag() {
            gimli::DW_TAG_subprogram => name.unwrap_or_default(),
            _ => scope.to_owned(),
        };
        let mut children = node.children();
        while let Some(child) = children.next()? {
            self.find_names(child, &inner, depth + 1)?;
        }
        Ok(())
    }

    /// Finds variables of functions in `node` and below.
    fn find_locals(
        &self,
        node: gimli::EntriesTreeNode<Slice<'a>>,
        (function, depth): (&str, usize),
        addresses: &Addresses,
        found: &mut Vec<Local>,
    ) -> Result<(), ReadError> {
        if depth > DEPTH {
            return Err(ReadError::Depth);
        }
        let entry = node.entry();
        let name = self.name(entry)?;
        if entry.tag() == gimli::DW_TAG_variable
            && !function.is_empty()
            && let Some(name) = &name
        {
            found.push(Local {
                function: function.to_owned(),
                name: name.clone(),
                place: self.place(entry)?,
                symbol: self.symbol(entry, addresses)?,
            });
        }
        let inner = match entry.tag() {
            gimli::DW_TAG_subprogram => name.unwrap_or_default(),
            _ => function.to_owned(),
        };
        let mut children = node.children();
        while let Some(child) = children.next()? {
            self.find_locals(child, (&inner, depth + 1), addresses, found)?;
        }
        Ok(())
    }

    /// The symbol at the address of a variable.
    fn symbol(&self, entry: &Entry<'a>, from: &Addresses) -> Result<Option<String>, ReadError> {
        let Some(AttributeValue::Exprloc(location)) = entry.attr_value(gimli::DW_AT_location)
        else {
            return Ok(None);
        };
        // After the opcode byte for an address.
        let start = location.0.offset_from(*self.dwarf.debug_info.reader()) + 1;
        let place = match location.operations(self.unit.encoding()).next()? {
            Some(gimli::Operation::Address { .. }) => from.in_info.get(&start),
            Some(gimli::Operation::AddressIndex { index }) => {
                let size = usize::from(self.unit.encoding().address_size);
                let at = index.0.checked_mul(size);
                let at = at.and_then(|at| at.checked_add(self.unit.addr_base.0));
                at.and_then(|at| from.in_list.get(&at))
            }
            _ => None,
        };
        Ok(place.and_then(|place| from.names.get(place)).cloned())
    }

    fn name(&self, entry: &Entry<'a>) -> Result<Option<String>, ReadError> {
        let Some(name) = entry.attr_value(gimli::DW_AT_name) else {
            return Ok(None);
        };
        let name = self.dwarf.attr_string(self.unit, name)?;
        Ok(Some(name.to_string_lossy().into_owned()))
    }

    /// The type of `entry`.
    fn target(&self, entry: &Entry<'a>, depth: usize) -> Result<Shape, ReadError> {
        match entry.attr_value(gimli::DW_AT_type) {
            Some(AttributeValue::UnitRef(offset)) => self.shape(offset, depth + 1),
            _ => Ok(Shape::Void),
        }
    }

    /// The type at `offset`: its name, if it has one.
    fn shape(&self, offset: UnitOffset, depth: usize) -> Result<Shape, ReadError> {
        if depth > DEPTH {
            return Err(ReadError::Depth);
        }
        match self.named.get(&offset) {
            Some(name) => Ok(Shape::Named(name.clone())),
            None => self.body(&self.unit.entry(offset)?, depth),
        }
    }

    /// The structure of the type that `entry` describes.
    fn body(&self, entry: &Entry<'a>, depth: usize) -> Result<Shape, ReadError> {
        let size = number(entry, gimli::DW_AT_byte_size).unwrap_or(0);
        Ok(match entry.tag() {
            gimli::DW_TAG_base_type => Shape::Number {
                name: self.name(entry)?.unwrap_or_default(),
                size,
                encoding: encoding(entry),
            },
            gimli::DW_TAG_pointer_type => Shape::Pointer(Box::new(self.target(entry, depth)?)),
            gimli::DW_TAG_structure_type | gimli::DW_TAG_union_type => Shape::Record(Record {
                size,
                members: self.members(entry.offset(), depth)?,
            }),
            gimli::DW_TAG_enumeration_type => Shape::Enumeration { size },
            gimli::DW_TAG_array_type => self.array(entry, depth)?,
            gimli::DW_TAG_subroutine_type => self.function(entry, depth)?,
            // Qualifiers do not affect memory.
            _ => self.target(entry, depth)?,
        })
    }

    fn members(&self, offset: UnitOffset, depth: usize) -> Result<Vec<Member>, ReadError> {
        let mut members = Vec::new();
        self.each_child(offset, |child| {
            if child.tag() != gimli::DW_TAG_member {
                return Ok(());
            }
            let bits = number(child, gimli::DW_AT_bit_size);
            let bytes = number(child, gimli::DW_AT_data_member_location).unwrap_or(0);
            // Before DWARF 4, bits were counted from the other end.
            let old = number(child, gimli::DW_AT_bit_offset).zip(bits);
            let within = match old {
                Some((from_end, bits)) => {
                    let unit = number(child, gimli::DW_AT_byte_size).unwrap_or(0);
                    (unit * 8).saturating_sub(from_end.saturating_add(bits))
                }
                None => number(child, gimli::DW_AT_data_bit_offset).unwrap_or(0),
            };
            members.push(Member {
                name: self.name(child)?.unwrap_or_default(),
                at: bytes.saturating_mul(8).saturating_add(within),
                bits,
                shape: self.target(child, depth)?,
            });
            Ok(())
        })?;
        Ok(members)
    }

    fn array(&self, entry: &Entry<'a>, depth: usize) -> Result<Shape, ReadError> {
        let mut lengths = Vec::new();
        self.each_child(entry.offset(), |child| {
            if child.tag() == gimli::DW_TAG_subrange_type {
                let last = child.attr_value(gimli::DW_AT_upper_bound);
                let length = last.and_then(|last| last.sdata_value());
                let length = length.map(|last| last.wrapping_add(1).cast_unsigned());
                lengths.push(number(child, gimli::DW_AT_count).or(length));
            }
            Ok(())
        })?;
        let of = self.target(entry, depth)?;
        let nest = |of, length: &Option<u64>| Shape::Array(Box::new(of), *length);
        Ok(lengths.iter().rev().fold(of, nest))
    }

    fn function(&self, entry: &Entry<'a>, depth: usize) -> Result<Shape, ReadError> {
        let mut parameters = Vec::new();
        let mut open = false;
        self.each_child(entry.offset(), |child| {
            match child.tag() {
                gimli::DW_TAG_formal_parameter => parameters.push(self.target(child, depth)?),
                gimli::DW_TAG_unspecified_parameters => open = true,
                _ => {}
            }
            Ok(())
        })?;
        Ok(Shape::Function {
            returns: Box::new(self.target(entry, depth)?),
            parameters,
            open,
        })
    }

    fn add_enumerators(&self, offset: UnitOffset, types: &mut Types) -> Result<(), ReadError> {
        let entry = self.unit.entry(offset)?;
        let place = self.place(&entry)?;
        let of = self.name(&entry)?.unwrap_or_default();
        self.each_child(offset, |child| {
            let value = child.attr_value(gimli::DW_AT_const_value);
            let value = value.and_then(|value| {
                let unsigned = || value.udata_value().map(u64::cast_signed);
                value.sdata_value().or_else(unsigned)
            });
            if let (Some(name), Some(value)) = (self.name(child)?, value) {
                let enumerator = Enumerator {
                    value,
                    of: of.clone(),
                    place: place.clone(),
                };
                types.enumerators.insert(name, enumerator);
            }
            Ok(())
        })
    }

    fn each_child(
        &self,
        offset: UnitOffset,
        mut with: impl FnMut(&Entry<'a>) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        let mut tree = self.unit.entries_tree(Some(offset))?;
        let mut children = tree.root()?.children();
        while let Some(child) = children.next()? {
            with(child.entry())?;
        }
        Ok(())
    }

    /// File and line of `entry` in the source.
    fn place(&self, entry: &Entry<'a>) -> Result<String, ReadError> {
        let file = match entry.attr_value(gimli::DW_AT_decl_file) {
            Some(AttributeValue::FileIndex(file)) => Some(file),
            _ => None,
        };
        let line = number(entry, gimli::DW_AT_decl_line).unwrap_or(0);
        let program = self.unit.line_program.as_ref();
        let found = program.zip(file).and_then(|(program, file)| {
            let header = program.header();
            let file = header.file(file)?;
            // The first directory is the one that the compiler ran in.
            let directory = file.directory(header);
            Some((
                file.path_name(),
                directory.filter(|_| file.directory_index() != 0),
            ))
        });
        let Some((name, directory)) = found else {
            return Ok(String::new());
        };
        let text = |value| -> Result<String, ReadError> {
            let text = self.dwarf.attr_string(self.unit, value)?;
            Ok(text.to_string_lossy().into_owned())
        };
        let directory = directory.map(text).transpose()?.unwrap_or_default();
        let path = Path::new(&directory).join(text(name)?);
        let path = path.strip_prefix(".").unwrap_or(&path);
        Ok(format!("{}:{line}", path.to_string_lossy()))
    }
}

fn number(entry: &Entry, attribute: gimli::DwAt) -> Option<u64> {
    entry.attr_value(attribute)?.udata_value()
}

fn encoding(entry: &Entry) -> Encoding {
    match entry.attr_value(gimli::DW_AT_encoding) {
        Some(AttributeValue::Encoding(gimli::DW_ATE_signed | gimli::DW_ATE_signed_char)) => {
            Encoding::Signed
        }
        Some(AttributeValue::Encoding(gimli::DW_ATE_unsigned | gimli::DW_ATE_unsigned_char)) => {
            Encoding::Unsigned
        }
        Some(AttributeValue::Encoding(gimli::DW_ATE_boolean)) => Encoding::Boolean,
        _ => Encoding::Other,
    }
}

/// A debugging section with its relocations applied: references to other such
/// sections.
fn relocated(file: &object::File, name: &str) -> Result<Vec<u8>, object::Error> {
    let early = file.section_by_name(&format!("{EARLY}{name}"));
    let Some(section) = early.or_else(|| file.section_by_name(name)) else {
        return Ok(Vec::new());
    };
    let mut data = section.data()?.to_vec();
    for (offset, relocation) in section.relocations() {
        let RelocationTarget::Symbol(index) = relocation.target() else {
            continue;
        };
        if relocation.kind() != RelocationKind::Absolute {
            continue;
        }
        let base = file.symbol_by_index(index)?.address();
        let place = usize::try_from(offset).ok();
        let Some(place) = place.and_then(|at| data.get_mut(at..)) else {
            continue;
        };
        let Some(addend) = addend(&relocation, place) else {
            continue;
        };
        let value = base.wrapping_add_signed(addend).to_le_bytes();
        let size = usize::from(relocation.size() / 8).min(value.len());
        if let Some(field) = place.get_mut(..size) {
            field.copy_from_slice(&value[..size]);
        }
    }
    Ok(data)
}
