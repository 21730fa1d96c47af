// SPDX-License-Identifier: MIT OR Apache-2.0
//! Trees whose source was changed after the build.

use anyhow::{Context, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;
use xsplice_e2e::{Base, base, local};

const KERNEL: &str = "\
--- a/xen/common/kernel.c
+++ b/xen/common/kernel.c
@@ -490,5 +490,5 @@
         xen_extraversion_t extraversion;
 
-        memset(extraversion, 0, sizeof(extraversion));
+        memset(extraversion, 1, sizeof(extraversion));
         safe_strcpy(extraversion, deny ? xen_deny() : xen_extra_version());
         if ( copy_to_guest(arg, extraversion, ARRAY_SIZE(extraversion)) )
";

const KEXEC: &str = "\
--- a/xen/include/public/kexec.h
+++ b/xen/include/public/kexec.h
@@ -40,6 +40,10 @@
  */
 
 #include \"xen.h\"
+
+struct xen_kexec_hint {
+    uint32_t flags;
+};
 
 #if defined(__i386__) || defined(__x86_64__)
 #define KEXEC_XEN_NO_PAGES 17
";

struct Copy<'a> {
    base: &'a Base,
    directory: tempfile::TempDir,
}

impl<'a> Copy<'a> {
    fn of(base: &'a Base) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let status = Command::new("cp")
            .arg("-a")
            .arg(base.tree.join("xen"))
            .arg(directory.path())
            .status()?;
        ensure!(status.success(), "cp: {status}");
        Ok(Self { base, directory })
    }

    /// Changes a file and restores its time stamp.
    fn change(&self, path: &str, old: &str, new: &str) -> anyhow::Result<()> {
        let path = self.directory.path().join("xen").join(path);
        let stamp = std::fs::metadata(&path)?.modified()?;
        let text = std::fs::read_to_string(&path)?;
        ensure!(text.contains(old), "{}: {old}", path.display());
        std::fs::write(&path, text.replacen(old, new, 1))?;
        std::fs::File::options()
            .append(true)
            .open(&path)?
            .set_modified(stamp)?;
        Ok(())
    }

    fn build(&self, patch: &str) -> anyhow::Result<Result<serde_json::Value, String>> {
        let top = self.directory.path();
        let (file, output) = (top.join("x.patch"), top.join("x.livepatch"));
        std::fs::write(&file, patch)?;
        let text = |path: &Path| path.display().to_string();
        let mut arguments: Vec<String> = vec!["build".into(), "--json".into()];
        let options: [(&str, PathBuf); 4] = [
            ("-s", top.to_owned()),
            ("-p", file),
            ("--xen-syms", self.base.xen_syms.clone()),
            ("-o", output),
        ];
        for (option, path) in options {
            arguments.extend([option.to_owned(), text(&path)]);
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let result = local(&arguments)?;
        if !result.status.success() {
            return Ok(Err(String::from_utf8(result.stderr)?));
        }
        Ok(Ok(xsplice_e2e::result("build", &result.stdout)?))
    }
}

#[test]
fn changes_that_make_misses_are_not_part_of_the_patch() -> anyhow::Result<()> {
    let base = base()?;
    let copy = Copy::of(&base)?;
    let built = copy.build(KERNEL)?.map_err(anyhow::Error::msg)?;
    let functions = built["functions"].as_array().context("functions")?;
    assert_eq!(functions.len(), 2, "{built}");

    // A header with the same size and time stamp, with all objects in the cache.
    let feature = |number| format!("#define XENFEAT_hvm_safe_pvclock           {number}");
    copy.change("include/public/features.h", &feature(9), &feature(8))?;
    let words = copy.build(KERNEL)?.expect_err("the header is another");
    assert!(
        words.contains("common/kernel.c: the tree's object differs"),
        "{words}"
    );
    copy.change("include/public/features.h", &feature(8), &feature(9))?;

    // Another function in the patched file.
    let (old, new) = (
        "(1U << XENFEAT_hvm_safe_pvclock)",
        "(3U << XENFEAT_hvm_safe_pvclock)",
    );
    copy.change("common/kernel.c", old, new)?;
    let words = copy.build(KERNEL)?.expect_err("the source is another");
    assert!(words.contains("(do_xen_version)"), "{words}");
    copy.change("common/kernel.c", new, old)?;
    copy.build(KERNEL)?.map_err(anyhow::Error::msg)?;

    // The source of generated headers.
    let words = copy.build(KEXEC)?.expect_err("nothing changes");
    assert!(words.contains("it changes no code"), "{words}");
    copy.change(
        "include/public/kexec.h",
        "    int type;\n} xen_kexec_exec_t",
        "    unsigned int type;\n} xen_kexec_exec_t",
    )?;
    let words = copy.build(KEXEC)?.expect_err("the interface is another");
    assert!(
        words.contains("the tree's file differs from what the tree's source makes"),
        "{words}"
    );
    Ok(())
}

/// Objects of an earlier configuration are still there, with their records.
#[test]
fn unlinked_objects_are_not_part_of_the_hypervisor() -> anyhow::Result<()> {
    let base = base()?;
    let copy = Copy::of(&base)?;
    let common = copy.directory.path().join("xen/common");
    let record = std::fs::read_to_string(common.join(".kernel.o.cmd"))?;
    let deps = "deps_common/left.o := \\\n";
    let record = record
        .replace("kernel.o", "left.o")
        .replace("-c common/kernel.c", "-c common/left.c")
        .replace(":= common/kernel.c", ":= common/left.c")
        .replace(deps, &format!("{deps}    common/kernel.c \\\n"));
    ensure!(record.contains(":= common/left.c") && record.contains("    common/kernel.c"));
    std::fs::write(common.join(".left.o.cmd"), record)?;
    std::fs::write(common.join("left.c"), "#include \"kernel.c\"\n")?;
    std::fs::copy(common.join("kernel.o"), common.join("left.o"))?;
    let built = copy.build(KERNEL)?.map_err(anyhow::Error::msg)?;
    let functions = built["functions"].as_array().context("functions")?;
    ensure!(functions.len() == 2 && built["objects"] == 2, "{built}");
    Ok(())
}
