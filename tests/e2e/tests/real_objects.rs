//! Every object of the real tree, compared with itself, has no difference.

use anyhow::Context;
use std::path::{Path, PathBuf};
use xsplice_diff::Object;

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

#[test]
fn no_object_of_the_tree_differs_from_itself() -> anyhow::Result<()> {
    let base = xsplice_e2e::base()?;
    let mut paths = Vec::new();
    for part in ["arch/x86", "common", "drivers", "lib", "xsm"] {
        objects(&base.tree.join("xen").join(part), &mut paths)?;
    }
    let mut compared = 0;
    let mut differences = Vec::new();
    for path in &paths {
        let data = std::fs::read(path)?;
        // The boot code's 32-bit objects are not for the hypervisor proper.
        let Ok(object) = Object::read(&path.display().to_string(), &data) else {
            continue;
        };
        compared += 1;
        for change in xsplice_diff::compare(&object, &object).changes {
            differences.push(format!(
                "{}: {}: {}",
                path.display(),
                change.name,
                change.why
            ));
        }
    }
    println!("{compared} of {} objects compared", paths.len());
    assert!(compared > 400, "the tree has hundreds of objects");
    assert_eq!(differences, Vec::<String>::new());
    Ok(())
}
