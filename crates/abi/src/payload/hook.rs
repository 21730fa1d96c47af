// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hooks: functions of a payload that the hypervisor calls at certain stages.

use super::section;
use core::fmt;

/// A stage at which hooks are called. Each has its own section, an array of pointers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// Before the functions are patched; any number, without result.
    Load,
    /// After the functions are restored; any number, without result.
    Unload,
    /// Before an apply; can veto it.
    PreApply,
    /// In place of an apply.
    Apply,
    /// After an apply, successful or not.
    PostApply,
    /// Before a revert; can veto it.
    PreRevert,
    /// In place of a revert.
    Revert,
    /// After a revert, successful or not.
    PostRevert,
}

/// Size of an entry of a section of hooks.
pub const POINTER_SIZE: u64 = 8;

impl Hook {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Load,
        Self::Unload,
        Self::PreApply,
        Self::Apply,
        Self::PostApply,
        Self::PreRevert,
        Self::Revert,
        Self::PostRevert,
    ];

    /// The section with their addresses.
    #[must_use]
    pub const fn section(self) -> &'static str {
        match self {
            Self::Load => section::HOOKS_LOAD,
            Self::Unload => section::HOOKS_UNLOAD,
            Self::PreApply => section::HOOKS_PREAPPLY,
            Self::Apply => section::HOOKS_APPLY,
            Self::PostApply => section::HOOKS_POSTAPPLY,
            Self::PreRevert => section::HOOKS_PREREVERT,
            Self::Revert => section::HOOKS_REVERT,
            Self::PostRevert => section::HOOKS_POSTREVERT,
        }
    }

    /// Whether the hypervisor calls only one.
    #[must_use]
    pub const fn is_single(self) -> bool {
        match self {
            Self::Load | Self::Unload => false,
            Self::PreApply
            | Self::Apply
            | Self::PostApply
            | Self::PreRevert
            | Self::Revert
            | Self::PostRevert => true,
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Load => "load",
            Self::Unload => "unload",
            Self::PreApply => "pre-apply",
            Self::Apply => "apply",
            Self::PostApply => "post-apply",
            Self::PreRevert => "pre-revert",
            Self::Revert => "revert",
            Self::PostRevert => "post-revert",
        })
    }
}

/// The stage in the name of the hook section `name`; it may be unknown to the
/// hypervisor.
#[must_use]
pub fn stage(name: &str) -> Option<&str> {
    name.strip_prefix(section::HOOKS)
}

/// The hooks of this [`stage`].
#[must_use]
pub fn of_stage(stage: &str) -> Option<Hook> {
    let mut all = Hook::ALL.into_iter();
    all.find(|hook| self::stage(hook.section()) == Some(stage))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_are_known_by_their_sections() {
        for hook in Hook::ALL {
            let stage = stage(hook.section()).expect("it is a section of hooks");
            assert_eq!(of_stage(stage), Some(hook), "{stage}");
        }
        assert_eq!(stage(".livepatch.hooks.late"), Some("late"));
        assert_eq!(of_stage("late"), None);
        assert_eq!(stage(section::FUNCS), None);
    }
}
