// SPDX-License-Identifier: MIT OR Apache-2.0
//! Files that the build generates without a record of how it did.
//!
//! The rules of these few are known here. A rule that another version of Xen has
//! otherwise makes another file than the tree has, which is refused where the
//! file matters.

use crate::generated_file::GeneratedFile;
use std::path::Path;

/// How one file is generated; paths are from the `xen` directory.
struct Rule {
    path: &'static str,
    inputs: &'static [&'static str],
    command: &'static str,
}

const RULES: [Rule; 2] = [
    // Which feature goes to which guests is said in comments.
    Rule {
        path: "include/xen/lib/x86/cpuid-autogen.h",
        inputs: &[
            "include/public/arch-x86/cpufeatureset.h",
            "tools/gen-cpuid.py",
        ],
        command: "\"$PYTHON\" tools/gen-cpuid.py -i include/public/arch-x86/cpufeatureset.h \
                  -o include/xen/lib/x86/cpuid-autogen.h",
    },
    // The assembler's macros, for assembly in C files.
    Rule {
        path: "arch/x86/include/asm/asm-macros.h",
        inputs: &["arch/x86/asm-macros.i"],
        command: "printf '%s\\n' '#if 0' '.if 0' '#endif' '#ifndef __ASM_MACROS_H__' \
                  '#define __ASM_MACROS_H__' \
                  'asm ( \".include \\\"arch/x86/include/asm/asm-macros.h\\\"\" );' \
                  '#endif /* __ASM_MACROS_H__ */' '#if 0' '.endif' \
                  | cat - arch/x86/asm-macros.i > arch/x86/include/asm/asm-macros.h && \
                  echo '#endif' >> arch/x86/include/asm/asm-macros.h",
    },
];

/// The files of the tree at `xen` that the build left no record of; `recorded`
/// are those that it did.
pub(crate) fn generated(xen: &Path, recorded: &[GeneratedFile]) -> Vec<GeneratedFile> {
    let missing = |rule: &&Rule| {
        recorded.iter().all(|file| file.path != rule.path) && xen.join(rule.path).is_file()
    };
    let files = RULES.iter().filter(missing).map(|rule| GeneratedFile {
        path: rule.path.to_owned(),
        command: rule.command.to_owned(),
        inputs: rule.inputs.iter().map(|&path| path.to_owned()).collect(),
    });
    files.collect()
}
