// SPDX-License-Identifier: MIT OR Apache-2.0
//! The codes of refusals: `docs/refusals.md` has a section for each.

use std::fmt;

/// Defines the codes with their names, so that every code has one.
macro_rules! codes {
    ($($(#[$about:meta])* $code:ident = $name:literal,)*) => {
        /// The refusal behind a problem, for users to search and programs to compare.
        /// The meaning of a name never changes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Code {
            $($(#[$about])* $code,)*
        }

        impl Code {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$code,)*];

            /// The code as it is printed.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$code => $name,)*
                }
            }
        }
    };
}

codes! {
    /// Code or data that the hypervisor frees after boot changed.
    BootOnly = "boot-only",
    /// The initial value of a variable changed.
    InitialValue = "initial-value",
    /// Data in memory would have a different layout.
    Layout = "layout",
    /// A symbol changed its section or alignment.
    Placement = "placement",
    /// A constant changed that other files use.
    SharedConstant = "shared-constant",
    /// The requested data cannot be changed in place.
    InPlace = "in-place",
    /// A table that is walked at boot has a new entry.
    TableEntry = "table-entry",
    /// A table about code has entries of unknown form.
    UnknownTable = "unknown-table",
    /// There is a new per-CPU variable.
    PerCpu = "per-cpu",
    /// The value of a running variable would be lost.
    LostValue = "lost-value",
    /// It is ambiguous which running variable is meant.
    AmbiguousVariable = "ambiguous-variable",
    /// A new symbol has the name of another one.
    NameTaken = "name-taken",
    /// Assembly without symbol sizes changed.
    Assembly = "assembly",
    /// The function runs while code is being patched.
    DenyList = "deny-list",
    /// A function shares its code with others.
    SharedCode = "shared-code",
    /// Addresses of labels in the old code may be stored.
    LabelAddress = "label-address",
    /// The compiler changed the arguments of a function.
    OtherArguments = "other-arguments",
    /// A function has no room for a trampoline.
    TooSmall = "too-small",
    /// The payload would refer to memory freed after boot.
    FreedReference = "freed-reference",
    /// The target of a reference is unknown.
    UnknownReference = "unknown-reference",
    /// It is ambiguous which variable of a section is meant.
    SharedSection = "shared-section",
    /// Hooks are missing, duplicate, or belong to a payload below.
    Hooks = "hooks",
    /// The patch changes how the hypervisor is built.
    BuildSystem = "build-system",
    /// The original code differs from the hypervisor's.
    NotProved = "not-proved",
    /// Tree and hypervisor were built by different compilers.
    OtherCompiler = "other-compiler",
    /// The tree was built with another configuration.
    OtherConfiguration = "other-configuration",
    /// The tree's source is not what was built.
    ChangedTree = "changed-tree",
    /// The tree was not built.
    NotBuilt = "not-built",
    /// Not the source tree of a supported Xen.
    NotATree = "not-a-tree",
    /// Not a usable `xen-syms`.
    NotXenSyms = "not-xen-syms",
    /// The `xen-syms` does not belong to the named hypervisor.
    WrongHypervisor = "wrong-hypervisor",
    /// The payloads below do not fit each other or their sources.
    WrongStack = "wrong-stack",
    /// A file that should be a payload is not one.
    NotAPayload = "not-a-payload",
    /// The source patch cannot be read.
    BadPatch = "bad-patch",
    /// A path of the patch does not exist, or leads out of the tree.
    BadPath = "bad-path",
    /// The patch does not fit the tree's source.
    DoesNotApply = "does-not-apply",
    /// The patch does not change the running hypervisor.
    NothingToPatch = "nothing-to-patch",
    /// The patched source does not compile.
    DoesNotCompile = "does-not-compile",
    /// An object file cannot be read.
    UnreadableObject = "unreadable-object",
    /// The payload would not load and apply.
    PreFlight = "pre-flight",
    /// An invalid option.
    BadOption = "bad-option",
    /// A file cannot be read or written.
    UnreadableFile = "unreadable-file",
    /// No work directory or thread can be created.
    WorkDirectory = "work-directory",
    /// The payload cannot be written in its format.
    CannotWrite = "cannot-write",
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl serde::Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_document_has_a_section_for_each_code_and_no_other() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/refusals.md");
        let text = std::fs::read_to_string(path).expect("it is there");
        let headings = text.lines().filter_map(|line| line.strip_prefix("### "));
        let sections: Vec<&str> = headings.map(|heading| heading.trim_matches('`')).collect();
        let names: BTreeSet<&str> = Code::ALL.iter().map(|code| code.name()).collect();
        assert_eq!(names.len(), Code::ALL.len(), "two codes have one name");
        assert_eq!(sections.len(), names.len(), "{sections:?}");
        assert_eq!(BTreeSet::from_iter(sections), names);
    }
}
