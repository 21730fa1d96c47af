// SPDX-License-Identifier: MIT OR Apache-2.0
//! Files that the build generates without recording the command.
//!
//! The rules for these few are built in. If another version of Xen has a different
//! rule, the result differs from the tree's file, which is refused if the file
//! matters.

use crate::generated_file::GeneratedFile;
use std::path::Path;

/// The rule for a file; paths are relative to the `xen` directory.
struct Rule {
    path: &'static str,
    inputs: &'static [&'static str],
    command: &'static str,
}

const RULES: [Rule; 2] = [
    // Comments say which feature is for which guests.
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

/// The files of the tree at `xen` without records; `recorded` are those with records.
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
