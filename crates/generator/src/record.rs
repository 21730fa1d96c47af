// SPDX-License-Identifier: MIT OR Apache-2.0
//! The build record of a payload ([`xsplice_abi::record`]): written for reviewers of
//! the payload, and read by a build on top of it.
//!
//! Together, the source patches and these options are the inputs of a payload, which
//! a payload on top of it is compared with.

use crate::given::File;
use crate::hunk::Hunk;
use crate::options::Options;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use xsplice_abi::note::hex;
use xsplice_abi::record::{self, LeftOut, PatchedData, PerCpuVariable, Renewed};

/// The record of a build.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) format: u32,
    pub(crate) options: RecordedOptions,
    #[serde(skip_deserializing)]
    pub(crate) hunks: Vec<Hunk>,
    #[serde(skip_deserializing)]
    pub(crate) left_out: Vec<LeftOut>,
    pub(crate) patched_data: Vec<PatchedData>,
    pub(crate) per_cpu: Vec<PerCpuVariable>,
    #[serde(skip_deserializing)]
    pub(crate) renewed: BTreeSet<Renewed>,
    #[serde(skip_deserializing)]
    pub(crate) warnings: Vec<String>,
    #[serde(skip_deserializing)]
    pub(crate) notes: Vec<String>,
}

/// The options of a build that affect the payload. An unknown option may mean
/// anything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RecordedOptions {
    pub(crate) allow: BTreeSet<String>,
    pub(crate) config: Option<String>,
    pub(crate) depends: Option<String>,
    pub(crate) hooks: Vec<String>,
    pub(crate) leave_out: BTreeSet<String>,
    pub(crate) leave_out_init: bool,
    pub(crate) patch_data: BTreeSet<String>,
    pub(crate) prelink: bool,
    pub(crate) xen_depends: Option<String>,
}

impl RecordedOptions {
    /// The recorded form of `options`; `config` and `hooks` are the files that they
    /// name.
    pub(crate) fn new(options: &Options, config: Option<&File>, hooks: &[File]) -> Self {
        let id = |id: &Option<Vec<u8>>| id.as_deref().map(hex);
        Self {
            allow: options.allow.clone(),
            config: config.map(File::record),
            depends: id(&options.depends),
            hooks: hooks.iter().map(File::record).collect(),
            leave_out: options.leave_out.clone(),
            leave_out_init: options.leave_out_init,
            patch_data: options.patch_data.clone(),
            prelink: options.prelink,
            xen_depends: id(&options.xen_depends),
        }
    }
}

impl Record {
    /// The record of a build with `options` that has done nothing yet.
    pub(crate) fn of(options: RecordedOptions) -> Self {
        Self {
            format: record::FORMAT,
            options,
            hunks: Vec::new(),
            left_out: Vec::new(),
            patched_data: Vec::new(),
            per_cpu: Vec::new(),
            renewed: BTreeSet::new(),
            warnings: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// The record in the section of a payload to build upon.
    ///
    /// # Errors
    /// Why it is unknown how the payload was built.
    pub(crate) fn read(section: Option<&[u8]>) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Format {
            format: Option<u64>,
        }
        let section = section.ok_or("it has no build record")?;
        let damaged = |why: &dyn std::fmt::Display| format!("its build record is damaged ({why})");
        let json = record::json(section).ok_or_else(|| damaged(&"no note of that kind"))?;
        let format: Format = serde_json::from_str(json).map_err(|e| damaged(&e))?;
        match format.format {
            Some(format) if format == u64::from(record::FORMAT) => {
                serde_json::from_str(json).map_err(|e| damaged(&e))
            }
            Some(format) => Err(format!(
                "its build record has the format {format}, and this version of xsplice knows the \
                 format {} only",
                record::FORMAT
            )),
            None => Err("its build record has no format number".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn written(options: &RecordedOptions) -> serde_json::Value {
        serde_json::to_value(Record::of(options.clone())).expect("it can be written")
    }

    fn read(json: &serde_json::Value) -> Result<Record, String> {
        Record::read(Some(&record::note(&json.to_string())))
    }

    #[test]
    fn every_option_is_read_as_it_was_written() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let file = |name: &str, contents: &[u8]| File {
            path: Path::new("/some/where").join(name),
            contents: contents.to_owned(),
        };
        let options = Options {
            allow: names(&["frame", "limit"]),
            leave_out: names(&["xen/common/kernel.c"]),
            leave_out_init: true,
            patch_data: names(&["table"]),
            prelink: true,
            depends: Some(vec![0xab, 1]),
            xen_depends: Some(vec![0xcd]),
            ..Options::default()
        };
        let hooks = [file("a.c", b"a"), file("b.c", b"")];
        let given = RecordedOptions::new(&options, Some(&file("config", b"CONFIG_X=y\n")), &hooks);
        let json = written(&given);
        assert_eq!(json["options"]["depends"], "ab01");
        assert_eq!(json["options"]["xen_depends"], "cd");
        let hash = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb";
        assert_eq!(json["options"]["hooks"][0], format!("a.c sha256:{hash}"));
        assert_eq!(read(&json).expect("it is whole").options, given);
    }

    #[test]
    fn what_cannot_be_understood_is_an_error_that_says_so() {
        let whole = written(&RecordedOptions::default());
        let with = |key: &str, value: serde_json::Value| {
            let mut json = whole.clone();
            json[key] = value;
            read(&json).map(drop)
        };
        assert_eq!(with("later", 1.into()), Ok(()));
        let newer = with("format", (record::FORMAT + 1).into());
        assert!(newer.is_err_and(|why| why.contains("has the format 2")));
        let none = with("format", serde_json::Value::Null);
        assert!(none.is_err_and(|why| why.contains("no format number")));
        for damage in [
            with("options", 1.into()),
            with("options", serde_json::json!({ "leave_out": [] })),
            with("format", "one".into()),
            Record::read(Some(b"XEN\0")).map(drop),
        ] {
            assert!(damage.is_err_and(|why| why.contains("is damaged")));
        }
        let mut more = whole["options"].clone();
        more["leave_in"] = true.into();
        assert!(with("options", more).is_err_and(|why| why.contains("leave_in")));
        let missing = Record::read(None).map(drop);
        assert_eq!(missing, Err("it has no build record".to_owned()));
    }
}
