// SPDX-License-Identifier: MIT OR Apache-2.0
//! Finds the payloads whose variables a replace loses.
//!
//! The hypervisor does not report whether a payload has variables, so this reads the
//! payloads' files, if they are available.

use super::{name_of, payload_file};
use crate::code::Code;
use crate::output::shown;
use std::path::{Path, PathBuf};
use xsplice_abi::text::escaped;

/// Where distributions of Xen keep payloads, by the hypervisor's build-id.
const INSTALLED: &str = "/usr/lib/xen-livepatch";

/// What a replace does to the payloads that are applied.
#[derive(Debug, Default, PartialEq, Eq, serde::Serialize, schemars::JsonSchema)]
pub(crate) struct Replaced {
    /// Payloads whose variables are lost.
    pub(super) loses: Vec<String>,
    /// Payloads whose files were not found.
    pub(super) unknown: Vec<String>,
}

impl Replaced {
    /// Inspects the payloads named `applied`, in the files `on` and those installed
    /// for the hypervisor with this build-id.
    ///
    /// # Errors
    /// If one of `on` is not a payload, or is not applied.
    pub(super) fn look(
        applied: &[String],
        on: &[PathBuf],
        build_id: Option<&str>,
    ) -> anyhow::Result<Self> {
        if let Some(path) = on.iter().find(|path| !applied.contains(&name_of(path))) {
            let name = name_of(path);
            let words = format!(
                "{}: no payload called {} is applied; see `xsplice list`",
                shown(path),
                escaped(&name)
            );
            return Err(Code::NotThere.error(words));
        }
        let mut replaced = Self::default();
        for name in applied {
            let has_variables = match on.iter().find(|path| name_of(path) == *name) {
                Some(path) => Some(payload_file::has_variables(&payload_file::read(path)?.0)?),
                None => installed(name, build_id),
            };
            match has_variables {
                Some(true) => replaced.loses.push(name.clone()),
                Some(false) => {}
                None => replaced.unknown.push(name.clone()),
            }
        }
        Ok(replaced)
    }

    /// The lines to print after the replace.
    pub(super) fn lines(&self, by: &str) -> Vec<String> {
        let by = escaped(by);
        let loses = self.loses.iter().map(|name| {
            format!(
                "  the variables of {} are lost: those of {by} start with their initial values",
                escaped(name)
            )
        });
        let unknown = self.unknown.iter().map(|name| {
            format!(
                "  if {} has variables, they are lost (`--on FILE` shows whether it has any)",
                escaped(name)
            )
        });
        loses.chain(unknown).collect()
    }
}

/// Whether the installed payload `name`, if there is one, has variables. A name that
/// contains a path (other tools allow it) is not looked up.
fn installed(name: &str, build_id: Option<&str>) -> Option<bool> {
    let directory = Path::new(INSTALLED).join(build_id?);
    let file = format!("{name}.livepatch");
    let plain = Path::new(&file).file_name() == Some(file.as_ref());
    let (data, _) = payload_file::read(&directory.join(plain.then_some(&file)?)).ok()?;
    payload_file::has_variables(&data).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_without_a_file_may_lose_their_variables() {
        let applied = ["one".to_owned(), "../two".to_owned()];
        let replaced = Replaced::look(&applied, &[], Some("00")).expect("nothing is read");
        assert_eq!(replaced.unknown, applied);
        assert!(replaced.lines("all")[0].starts_with("  if one has variables, they are lost"));
        let other = [PathBuf::from("three.livepatch")];
        let error = Replaced::look(&applied, &other, None).expect_err("not applied");
        assert!(
            error.to_string().contains("no payload called three"),
            "{error}"
        );
    }
}
