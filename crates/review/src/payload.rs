// SPDX-License-Identifier: MIT OR Apache-2.0
//! A payload as plain data.

use crate::Error;
use crate::elf::{Elf, Place};
use crate::place;
use crate::record::Record;
use crate::table::{Table, tables};
use object::elf;
use serde::Serialize;
use xsplice_abi::note::{hex, parse_build_id};
use xsplice_abi::payload::hook;
use xsplice_abi::payload::{LivepatchFunc, section};
use xsplice_abi::preimage::{self, Note};
use xsplice_xen_image::Image;

/// The contents of a payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Payload {
    /// Its own build-id in hexadecimal.
    pub build_id: Option<String>,
    /// Build-id of what it depends on.
    pub depends: Option<String>,
    /// Build-id of the hypervisor.
    pub xen_depends: Option<String>,
    /// `key=value` texts.
    pub metadata: Vec<String>,
    /// The generator's record of the build, if there is one.
    pub record: Option<Record>,
    /// The functions that it patches.
    pub functions: Vec<Function>,
    /// Its hooks.
    pub hooks: Vec<Hook>,
    /// Tables about its code.
    pub tables: Vec<Table>,
    /// Functions and variables that it carries.
    pub carried: Vec<Carried>,
    /// Symbols that the hypervisor or a payload below must define.
    pub needed: Vec<String>,
    /// Symbols of the hypervisor that are referenced by address.
    pub absolute: Vec<Absolute>,
    /// All sections.
    pub sections: Vec<Section>,
}

/// One function that is patched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Function {
    /// Its name in the payload, or in the hypervisor if the payload has none.
    pub name: String,
    /// Its address in the hypervisor; `None` if it is looked up by
    /// [`old_symbol`](Self::old_symbol) and no hypervisor is given.
    pub old_address: Option<u64>,
    /// The symbol that gives its address when the payload is loaded.
    pub old_symbol: Option<String>,
    /// Size in the hypervisor in bytes.
    pub old_size: u32,
    /// Where the new code is; `None` if the old code is overwritten with no-ops.
    pub new: Option<Code>,
    /// Size in bytes of the new code, or of the range overwritten with no-ops.
    pub new_size: u32,
    /// Bytes that must be at the old address, in hexadecimal.
    pub expected: Option<String>,
    /// SHA-256 that the whole old function must have, in hexadecimal.
    pub preimage: Option<String>,
}

/// A place in a section of the payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Code {
    /// The section.
    pub section: String,
    /// Offset there in bytes.
    pub offset: u64,
}

/// The hooks of one stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Hook {
    /// `load`, `preapply`, and so on.
    pub stage: String,
    /// The functions, in calling order.
    pub functions: Vec<String>,
}

/// A function or variable that the payload carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Carried {
    /// Its name.
    pub name: String,
    /// Whether it is a function.
    pub function: bool,
    /// Whether payloads on top can refer to it by name.
    pub global: bool,
    /// Its section.
    pub section: String,
    /// Size in bytes.
    pub size: u64,
}

/// A symbol referenced by address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Absolute {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: u64,
}

/// One section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Section {
    /// Its name.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// `A` allocated, `W` writable, `X` executable.
    pub flags: String,
    /// Its relocated fields.
    pub relocations: Vec<Relocation>,
}

/// One relocated field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Relocation {
    /// Offset of the field in the section.
    pub offset: u64,
    /// Type, as the ABI document names it.
    #[serde(rename = "type")]
    pub kind: String,
    /// The symbol, or its section if it has no name.
    pub symbol: String,
    /// The addend.
    pub addend: i64,
}

impl Payload {
    /// Reads the payload `data`; `image` is its hypervisor, used to resolve symbols.
    ///
    /// # Errors
    /// If it is not a payload for a machine that Xen patches itself on, or is damaged.
    pub fn read(data: &[u8], image: Option<&Image>) -> Result<Self, Error> {
        let elf = Elf::read(data, &|name| image?.address_of(name))?;
        let hooks = hooks(&elf);
        if elf.section(section::FUNCS).is_none() && hooks.is_empty() {
            return Err(Error::WrongKind(format!(
                "an object file, but not a live-patch payload: it has neither the section {} nor hooks",
                section::FUNCS
            )));
        }
        let id = |name: &str| Some(hex(parse_build_id(&elf.section(name)?.data)?));
        let texts = elf.section(section::MODINFO).map_or(&[][..], |s| &s.data);
        let texts = texts.split(|&b| b == 0).filter(|text| !text.is_empty());
        let functions = functions(&elf, image)?;
        let replacements: Vec<_> = functions.iter().filter_map(|(_, new)| *new).collect();
        let named = |place: Place| {
            let all = elf.symbols.iter();
            all.filter(move |s| s.place == place && !s.name.is_empty())
        };
        let carried = named(Place::Here)
            .filter(|symbol| symbol.size > 0 && !replacements.contains(&symbol.address))
            .filter_map(|symbol| {
                let (section, _) = elf.place(symbol.address)?;
                // The format's own sections are shown elsewhere.
                (!section.starts_with(".livepatch.")).then(|| Carried {
                    name: symbol.name.clone(),
                    function: symbol.function,
                    global: symbol.global,
                    section: section.to_owned(),
                    size: symbol.size,
                })
            });
        Ok(Self {
            build_id: id(section::BUILD_ID),
            depends: id(section::DEPENDS),
            xen_depends: id(section::XEN_DEPENDS),
            metadata: texts
                .map(|t| String::from_utf8_lossy(t).into_owned())
                .collect(),
            record: Record::read(&elf),
            hooks,
            tables: tables(&elf),
            carried: carried.collect(),
            needed: named(Place::Elsewhere).map(|s| s.name.clone()).collect(),
            absolute: named(Place::Absolute)
                .map(|s| Absolute {
                    name: s.name.clone(),
                    address: s.address,
                })
                .collect(),
            sections: elf.sections.iter().map(describe).collect(),
            functions: functions.into_iter().map(|(f, _)| f).collect(),
        })
    }
}

/// The functions, each with the address of its new code in the layout.
pub(crate) fn functions(
    elf: &Elf,
    image: Option<&Image>,
) -> Result<Vec<(Function, Option<u64>)>, Error> {
    let data = elf.section(section::FUNCS).map_or(&[][..], |s| &s.data);
    let size = elf.width.func_size();
    if !data.len().is_multiple_of(size) {
        return Err(Error::WrongKind(format!(
            "{} has {} bytes, not a multiple of the {size}-byte record size: \
             the file is damaged or in another version of the format",
            section::FUNCS,
            data.len(),
        )));
    }
    let preimages = elf.section(preimage::SECTION);
    let notes = preimage::notes(preimages.map_or(&[][..], |section| &section.data));
    let preimages = notes.collect::<Option<Vec<Note<'_>>>>().unwrap_or_default();
    let records = data.chunks_exact(size);
    let records = records.filter_map(|record| LivepatchFunc::read(record, elf.width));
    Ok(records
        .map(|record| {
            let new = Some(record.new_addr.get()).filter(|&address| address != 0);
            let old = record.old_addr.get();
            let mut name = elf.string(record.name.get()).unwrap_or_default();
            let old_symbol = match old {
                0 => Some(name.clone()),
                old => elf.needed(old).map(str::to_owned),
            };
            let old_address = match old {
                0 => image.and_then(|image| image.address_of(&name)),
                old => Some(old).filter(|old| !elf.is_unknown(*old)),
            };
            if name.is_empty() {
                let known = image.zip(old_address);
                let known = known.and_then(|(image, address)| place::symbol(image, address));
                name = known.map_or("(no name)".into(), |(name, _)| name.into_owned());
            }
            let preimage = preimages.iter().find(|preimage| preimage.address == old);
            let function = Function {
                name,
                old_address,
                old_symbol,
                old_size: record.old_size.get(),
                new: new.map(|address| {
                    let (section, offset) = elf.place(address).unwrap_or(("?", address));
                    Code {
                        section: section.to_owned(),
                        offset,
                    }
                }),
                new_size: record.new_size.get(),
                expected: record.expect.enabled().then(|| hex(record.expect.bytes())),
                preimage: preimage.map(|preimage| hex(&preimage.hash)),
            };
            (function, new)
        })
        .collect())
}

fn hooks(elf: &Elf) -> Vec<Hook> {
    let sections = elf.sections.iter().filter_map(|section| {
        let stage = hook::stage(&section.name)?;
        let pointers = section.data.chunks_exact(elf.width.bytes());
        let functions = pointers.filter_map(|pointer| elf.width.read(pointer));
        let functions = functions.map(|address| {
            elf.label(address)
                .unwrap_or_else(|| format!("{address:#x}"))
        });
        Some(Hook {
            stage: stage.to_owned(),
            functions: functions.collect(),
        })
    });
    sections.collect()
}

fn describe(section: &crate::elf::Section) -> Section {
    let letters = [
        (elf::SHF_ALLOC, 'A'),
        (elf::SHF_WRITE, 'W'),
        (elf::SHF_EXECINSTR, 'X'),
    ];
    let relocations = section.fields.iter().map(|field| Relocation {
        offset: field.offset,
        kind: field.kind.clone(),
        symbol: field.symbol.clone(),
        addend: field.addend,
    });
    Section {
        name: section.name.clone(),
        size: section.size,
        flags: letters
            .iter()
            .filter(|(flag, _)| section.flags.contains(*flag))
            .map(|(_, letter)| letter)
            .collect(),
        relocations: relocations.collect(),
    }
}
