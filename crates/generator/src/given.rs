// SPDX-License-Identifier: MIT OR Apache-2.0
//! Files that a build was given.

use crate::code::Code;
use crate::problem::Problem;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use xsplice_abi::note::hex;
use xsplice_system::file;

/// An input file of a build, read once.
#[derive(Debug, Clone)]
pub(crate) struct File {
    pub(crate) path: PathBuf,
    pub(crate) contents: Vec<u8>,
}

impl File {
    pub(crate) fn read(path: &Path) -> Result<Self, Problem> {
        let contents = file::read(path)
            .map_err(|e| Problem::new(Code::UnreadableFile, file::shown(path), e.to_string()))?;
        Ok(Self {
            path: path.to_owned(),
            contents,
        })
    }

    /// How the build record names it.
    pub(crate) fn record(&self) -> String {
        let name = self.path.file_name().unwrap_or_default();
        name_and_hash(&name.to_string_lossy(), &self.contents)
    }
}

/// The recorded form of an input file.
pub(crate) fn name_and_hash(name: &str, contents: &[u8]) -> String {
    format!("{name} sha256:{}", hex(&Sha256::digest(contents)))
}
