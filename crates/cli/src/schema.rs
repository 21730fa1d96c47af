// SPDX-License-Identifier: MIT OR Apache-2.0
//! `xsplice schema`: a description of what `--json` prints, for programs.

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use crate::demo;
use crate::output::{Ended, failure, say};
use crate::{
    admin, build, check, efi_syms, inspect, keygen, lab, manual, report, series, sign, signature,
    store,
};
use anyhow::Context as _;
use schemars::generate::SchemaSettings;
use schemars::transform::{Transform, transform_subschemas};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use xsplice_system::file::{self, shown};
use xsplice_verify::Verdict;

/// Arguments of `xsplice schema`.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  xsplice schema /usr/local/share/xsplice/schema")]
pub(crate) struct Args {
    /// Where to write them; the directory is created.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// The files that a command wrote.
#[derive(serde::Serialize, JsonSchema)]
pub(crate) struct Written {
    /// Where they are.
    files: Vec<String>,
}

/// Makes the schema of what a command prints.
type Make = fn(&mut SchemaGenerator) -> Schema;

/// What each command prints; one in a group has the group's name before its own.
const COMMANDS: &[(&str, Make)] = &[
    ("apply", of::<admin::Acted>),
    ("build", of::<build::Built>),
    ("check", of::<check::Checked>),
    ("completions", of::<manual::Script>),
    ("coverage", of::<store::Covers>),
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    ("demo", of::<demo::Demonstrated>),
    ("efi-syms", of::<efi_syms::Created>),
    ("history", of::<store::Past>),
    ("info", of::<admin::Info>),
    ("inspect", of::<inspect::Inspected>),
    ("install", of::<store::Installed>),
    ("keygen", of::<keygen::Made>),
    ("lab-run", of::<lab::Ran>),
    ("lab-try", of::<lab::Tried>),
    ("list", of::<admin::List>),
    ("load", of::<admin::Acted>),
    ("man", of::<Written>),
    ("metrics", of::<store::Exposed>),
    ("plan", of::<store::Planned>),
    ("remove", of::<store::Removed>),
    ("replace", of::<admin::Acted>),
    ("report", of::<report::Reported>),
    ("revert", of::<admin::Acted>),
    ("schema", of::<Written>),
    ("series-bundle", of::<series::Bundled>),
    ("series-plan", of::<series::Tasks>),
    ("series-table", of::<series::Table>),
    ("sign", of::<sign::Signed>),
    ("status", of::<store::Status>),
    ("sync", of::<store::Synced>),
    ("unload", of::<admin::Acted>),
    ("upload", of::<admin::Acted>),
    ("verify", of::<Verdict>),
    ("verify-signature", of::<signature::Examined>),
];

fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.root_schema_for::<Ended<T>>()
}

/// Tells what files were written.
pub(crate) fn written(files: &[PathBuf]) -> Ended<Written> {
    let files = files.iter().map(|path| shown(path)).collect();
    Ended::well(Written { files }).changed(true)
}

/// Writes a file for each command.
pub(crate) fn write_all(args: &Args, json: bool) -> ExitCode {
    match write(&args.directory) {
        Ok(files) => {
            if !json {
                say!("{} schemas in {}", files.len(), shown(&args.directory));
            }
            written(&files).tell(json)
        }
        Err(error) => failure(&error, json),
    }
}

fn write(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    std::fs::create_dir_all(directory)
        .with_context(|| format!("cannot create {}", shown(directory)))?;
    let mut files = Vec::new();
    for (name, make) in COMMANDS {
        let path = directory.join(name).with_extension("json");
        let text = format!("{:#}\n", schema(name, *make).to_value());
        file::write(&path, text.as_bytes())
            .with_context(|| format!("cannot write {}", shown(&path)))?;
        files.push(path);
    }
    Ok(files)
}

fn schema(name: &str, make: Make) -> Schema {
    let mut settings = SchemaSettings::draft2020_12().for_serialize();
    settings.transforms.push(Box::new(AddressesAreStrings));
    let mut schema = make(&mut settings.into_generator());
    let title = name.replace("lab-", "lab ").replace("series-", "series ");
    let title = format!("xsplice {title} --json");
    schema.insert("title".to_owned(), title.into());
    schema
}

/// Whether this key is that of an address.
fn is_address(key: &str) -> bool {
    key == "address" || key.ends_with("_address")
}

/// Addresses become hexadecimal strings: numbers of JSON do not hold 64 bits
/// everywhere.
pub(crate) fn addresses_as_strings(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value.as_u64() {
                    Some(address) if is_address(key) => *value = format!("{address:#x}").into(),
                    _ => addresses_as_strings(value),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(addresses_as_strings),
        _ => {}
    }
}

/// The same in a schema.
#[derive(Clone)]
struct AddressesAreStrings;

impl Transform for AddressesAreStrings {
    fn transform(&mut self, schema: &mut Schema) {
        let properties = schema.get_mut("properties").and_then(Value::as_object_mut);
        let addresses = properties.into_iter().flatten();
        for (_, property) in addresses.filter(|(key, _)| is_address(key)) {
            let Some(property) = property.as_object_mut() else {
                continue;
            };
            let word = |kind: &mut Value| {
                if kind == "integer" {
                    *kind = "string".into();
                }
            };
            match property.get_mut("type") {
                Some(Value::Array(kinds)) => kinds.iter_mut().for_each(word),
                Some(kind) => word(kind),
                None => {}
            }
            property.remove("format");
            property.remove("minimum");
        }
        transform_subschemas(self, schema);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Command, CommandFactory as _};
    use serde_json::json;

    fn leaves(command: &Command, before: &str, all: &mut Vec<String>) {
        for inner in command.get_subcommands() {
            let name = format!("{before}{}", inner.get_name());
            if inner.has_subcommands() {
                leaves(inner, &format!("{name}-"), all);
            } else {
                all.push(name);
            }
        }
    }

    #[test]
    fn every_command_has_a_schema() {
        let mut commands = Vec::new();
        leaves(&crate::Cli::command(), "", &mut commands);
        commands.sort();
        let described: Vec<&str> = COMMANDS.iter().map(|(name, _)| *name).collect();
        assert_eq!(commands, described);
    }

    #[test]
    fn an_address_is_a_string_wherever_it_is() {
        let mut value = json!({ "a": [{ "old_address": u64::MAX, "size": 1, "address": null }] });
        addresses_as_strings(&mut value);
        let text = json!({ "old_address": "0xffffffffffffffff", "size": 1, "address": null });
        assert_eq!(value, json!({ "a": [text] }));
    }
}
