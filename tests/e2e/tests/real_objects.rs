// SPDX-License-Identifier: MIT OR Apache-2.0
//! The objects of the real tree: none differs from itself, or from a copy in which
//! everything moved.

use anyhow::{Context, bail};
use rustix::time::{ClockId, clock_gettime};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use xsplice_objdiff::{Kind, Object, SymbolName};

/// Prepended to a source file, it moves everything after it, and uses up numbers that
/// the compiler gives to function-local variables.
const BEFORE: &str = r#"
int elsewhere(const void *, ...);
__attribute__((__used__)) static int put_before(int x)
{
    static int count, rover, warned;
    static const char text[] = "text of its own";
    switch ( x )
    {
    case 0: return elsewhere(&count, "a string that comes first");
    case 1: return elsewhere(&rover, __func__);
    case 2: return elsewhere(&warned, text);
    }
    return 0;
}
"#;

/// One in this many objects is recompiled.
const SAMPLE: usize = 16;

/// Limit for the average time to read and compare an object, of a CPU: others may have the
/// CPUs most of the time.
const TIME_PER_OBJECT: Duration = Duration::from_millis(5);

/// The time of a CPU that this thread has had.
fn cpu_time() -> anyhow::Result<Duration> {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Ok(Duration::new(
        time.tv_sec.try_into()?,
        time.tv_nsec.try_into()?,
    ))
}

fn objects(directory: &Path, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            objects(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "o") && !is_linked(&path) {
            found.push(path);
        }
    }
    Ok(())
}

/// Whether the build linked the file from several objects.
fn is_linked(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("built_in") || name.starts_with("prelink")
}

/// All objects of the hypervisor proper, in order.
fn all(tree: &Path) -> anyhow::Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut paths = Vec::new();
    for part in ["arch/x86", "common", "drivers", "lib", "xsm"] {
        objects(&tree.join("xen").join(part), &mut paths)?;
    }
    paths.sort();
    let mut all = Vec::new();
    for path in paths {
        let data = std::fs::read(&path)?;
        // The boot code's 32-bit objects are not.
        if Object::read("", &data).is_ok() {
            all.push((path, data));
        }
    }
    assert!(all.len() > 400, "the tree has hundreds of objects");
    Ok(all)
}

#[test]
fn no_object_of_the_tree_differs_from_itself() -> anyhow::Result<()> {
    let base = xsplice_e2e::base()?;
    let all = all(&base.tree)?;
    let (mut differences, mut longest) = (Vec::new(), Duration::ZERO);
    let start = cpu_time()?;
    for (path, data) in &all {
        let started = cpu_time()?;
        let path = path.display().to_string();
        let original = Object::read(&path, data)?;
        let patched = Object::read(&path, data)?;
        for change in xsplice_objdiff::compare(&original, &patched).changes {
            differences.push(format!("{path}: {}: {}", change.name, change.why));
        }
        longest = longest.max(cpu_time()? - started);
    }
    let mean = (cpu_time()? - start) / u32::try_from(all.len())?;
    println!(
        "{} objects compared with themselves, {mean:?} each, {longest:?} at most",
        all.len()
    );
    assert_eq!(differences, Vec::<String>::new());
    assert!(mean < TIME_PER_OBJECT, "{mean:?} for each object");
    Ok(())
}

/// Recompiles the source of `object` as its build did, with `before` prepended.
fn recompile(tree: &Path, object: &Path, before: &Path, output: &Path) -> anyhow::Result<bool> {
    let name = object.file_name().context("a name")?.to_string_lossy();
    let record = object.with_file_name(format!(".{name}.cmd"));
    let Ok(text) = std::fs::read_to_string(record) else {
        return Ok(false);
    };
    let command = text.lines().next().and_then(|l| l.split_once(":= "));
    let Some((_, command)) = command.filter(|(_, c)| c.contains("gcc") && c.contains(".c ")) else {
        return Ok(false);
    };
    let mut words = Vec::new();
    let mut rest = command.split_whitespace();
    while let Some(word) = rest.next() {
        match word {
            "-o" | "-MF" | "-MQ" => {
                rest.next();
            }
            "-MMD" | "-MP" => {}
            _ => words.push(word),
        }
    }
    let line = format!(
        "{} -include {} -o {}",
        words.join(" "),
        before.display(),
        output.display()
    );
    let ran = Command::new("sh")
        .args(["-c", &line])
        .current_dir(tree.join("xen"))
        .output()?;
    if !ran.status.success() {
        bail!("{line}: {}", String::from_utf8_lossy(&ran.stderr));
    }
    Ok(true)
}

#[test]
fn moved_code_is_unchanged() -> anyhow::Result<()> {
    let base = xsplice_e2e::base()?;
    let directory = tempfile::tempdir()?;
    let before = directory.path().join("before.h");
    std::fs::write(&before, BEFORE)?;
    let output = directory.path().join("moved.o");
    let (mut compared, mut symbols, mut differences) = (0, 0, Vec::new());
    for (path, data) in all(&base.tree)?.iter().step_by(SAMPLE) {
        if !recompile(&base.tree, path, &before, &output)? {
            continue;
        }
        let name = path.display().to_string();
        let original = Object::read(&name, data)?;
        let moved = Object::read(&name, &std::fs::read(&output)?)?;
        compared += 1;
        symbols += original.symbols.len();
        let comparison = xsplice_objdiff::compare(&original, &moved);
        let ours = |name: &SymbolName| {
            ["put_before", "count", "rover", "warned", "text"].contains(&name.base())
        };
        for change in comparison.changes {
            if change.kind != Kind::Added || !ours(&change.name) {
                differences.push(format!("{name}: {}: {}", change.name, change.why));
            }
        }
    }
    println!("{compared} objects compiled again, {symbols} symbols compared");
    assert!(compared > 15, "few objects could be compiled again");
    assert_eq!(differences, Vec::<String>::new());
    Ok(())
}
