// SPDX-License-Identifier: MIT OR Apache-2.0

//! The C compiler that builds a hypervisor.

use crate::command;
use anyhow::Context as _;
use std::process::Command;

/// A program in `PATH`, gcc or clang, such as `gcc-14` or `clang-19`.
#[derive(Clone, Debug)]
pub struct Compiler(String);

impl Default for Compiler {
    fn default() -> Self {
        Self("gcc".to_owned())
    }
}

impl From<&str> for Compiler {
    fn from(program: &str) -> Self {
        Self(program.to_owned())
    }
}

impl Compiler {
    fn is_clang(&self) -> bool {
        self.0.contains("clang")
    }

    /// Which compiler it is, such as `gcc 12.2.0`.
    ///
    /// # Errors
    /// If the program does not run.
    pub fn name(&self) -> anyhow::Result<String> {
        let (family, option) = if self.is_clang() {
            ("clang", "-dumpversion")
        } else {
            ("gcc", "-dumpfullversion")
        };
        let version = command::output(Command::new(&self.0).arg(option));
        let version = version.with_context(|| format!("{} is not a compiler", self.0))?;
        Ok(format!("{family} {}", version.trim()))
    }

    /// What Xen's makefiles need to use it.
    pub(crate) fn make_arguments(&self) -> Vec<String> {
        let mut arguments = vec![format!("CC={}", self.0)];
        if self.is_clang() {
            arguments.push("clang=y".to_owned());
        }
        arguments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xen_has_to_know_of_clang() -> anyhow::Result<()> {
        assert_eq!(Compiler::default().make_arguments(), ["CC=gcc"]);
        let clang = Compiler::from("clang-19");
        assert_eq!(clang.make_arguments(), ["CC=clang-19", "clang=y"]);
        assert!(Compiler::default().name()?.starts_with("gcc 1"));
        assert!(Compiler::from("no-such-gcc").name().is_err());
        Ok(())
    }
}
