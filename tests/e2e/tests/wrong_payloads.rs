// SPDX-License-Identifier: MIT OR Apache-2.0
//! Wrong payloads, as generators made that misread the source: the second opinion
//! catches each, with the true reason.
//!
//! Each file `wrong/NAME.case` is one, with these lines:
//!
//! - `# patch:` the source patch, from this package's directory; for a stack one for
//!   each level, the lowest first;
//! - `# built:` the patch that the payload of that level is actually built from, to
//!   imitate a generator's mistake, or `none` if there is no payload;
//! - `# options:` additional options of `xsplice build`, which are not passed to the
//!   second opinion;
//! - `# kind:` and `# reason:` a difference that must be found: its kind, and text of
//!   it with the name; there may be several.

use anyhow::{Context as _, ensure};
use std::path::{Path, PathBuf};
use xsplice_e2e::claim::{self, Claim};
use xsplice_e2e::directives::{directive, directives};
use xsplice_e2e::{Base, base, local};

struct Case {
    claim: Claim,
    /// Kinds and words of the differences.
    found: Vec<(String, String)>,
}

impl Case {
    /// Reads the case, and builds its payloads in `output`.
    fn read(base: &Base, file: &Path, output: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(file)?;
        let name = file.file_stem().unwrap_or_default().to_string_lossy();
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let (patches, built) = (directives(&text, "patch"), directives(&text, "built"));
        let (kinds, reasons) = (directives(&text, "kind"), directives(&text, "reason"));
        ensure!(
            !patches.is_empty() && patches.len() == built.len(),
            "each `# patch:` needs one `# built:`"
        );
        ensure!(
            !kinds.is_empty() && kinds.len() == reasons.len(),
            "each `# kind:` needs one `# reason:`"
        );
        let options = directive(&text, "options").unwrap_or_default();
        let options: Vec<&str> = options.split_whitespace().collect();
        let mut below: Vec<(PathBuf, PathBuf)> = Vec::new();
        let mut levels = Vec::new();
        for (level, (patch, source)) in patches.iter().zip(&built).enumerate() {
            let mut payload = None;
            if source != "none" {
                let made = output.join(format!("{name}-{level}.livepatch"));
                let source = here.join(source);
                let top = level + 1 == built.len();
                let options = if top { options.as_slice() } else { &[] };
                build(base, &source, &made, &below, options)?;
                payload = Some(std::fs::read(&made)?);
                below.push((made, source));
            }
            levels.push((here.join(patch), payload));
        }
        Ok(Self {
            claim: Claim {
                name: name.into_owned(),
                levels,
                options: Vec::new(),
            },
            found: kinds.into_iter().zip(reasons).collect(),
        })
    }
}

fn build(
    base: &Base,
    patch: &Path,
    output: &Path,
    below: &[(PathBuf, PathBuf)],
    options: &[&str],
) -> anyhow::Result<()> {
    let text = |path: &Path| path.display().to_string();
    let mut words: Vec<String> = ["build", "-s"].map(str::to_owned).to_vec();
    words.extend([
        text(&base.tree),
        "--xen-syms".to_owned(),
        text(&base.xen_syms),
    ]);
    words.extend(["-p".to_owned(), text(patch), "-o".to_owned(), text(output)]);
    for (payload, patch) in below {
        words.extend(["--on".to_owned(), text(payload)]);
        words.extend(["--on-patch".to_owned(), text(patch)]);
    }
    words.extend(options.iter().map(|&word| word.to_owned()));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = local(&words)?;
    let said = String::from_utf8_lossy(&result.stderr);
    ensure!(result.status.success(), "{}: {said}", patch.display());
    Ok(())
}

#[test]
fn each_is_caught_with_the_true_reason() -> anyhow::Result<()> {
    let base = base()?;
    let directory = tempfile::tempdir()?;
    let wrong = Path::new(env!("CARGO_MANIFEST_DIR")).join("wrong");
    let mut files: Vec<PathBuf> = std::fs::read_dir(wrong)?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    files.retain(|path| path.extension().is_some_and(|e| e == "case"));
    files.sort();
    let cases = files.iter().map(|file| {
        let case = Case::read(&base, file, directory.path());
        case.with_context(|| file.display().to_string())
    });
    let cases: Vec<Case> = cases.collect::<anyhow::Result<_>>()?;
    let claims: Vec<Claim> = cases.iter().map(|case| case.claim.clone()).collect();
    let mut missed = Vec::new();
    for batch in claim::batches(&claims)? {
        let verdict = claim::opinion(&base, &batch)?;
        let within = |case: &&Case| batch.iter().any(|claim| claim.name == case.claim.name);
        for case in cases.iter().filter(within) {
            let found = |(kind, reason): &(String, String)| {
                let mut all = verdict.differences.iter();
                all.any(|d| format!("{:?}", d.kind) == *kind && d.to_string().contains(reason))
            };
            if verdict.proved || !case.found.iter().all(found) {
                missed.push(format!("{}: {:#?}", case.claim.name, verdict.differences));
            }
        }
    }
    ensure!(missed.is_empty(), "{}", missed.join("\n"));
    Ok(())
}
