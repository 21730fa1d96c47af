//! Running the recorded compile commands in a shadow tree.

use crate::shadow::Shadow;
use crate::tree::{ObjectFile, Tree};
use crate::{Problem, Refused};
use std::process::{Command, Stdio};

/// Compiles `object` in `shadow`; returns the bytes of the result.
pub(crate) fn compile(
    tree: &Tree,
    shadow: &Shadow,
    object: &ObjectFile,
) -> Result<Vec<u8>, Problem> {
    let (from, to) = (tree.top.to_string_lossy(), shadow.top().to_string_lossy());
    let command = object.command.replace(&*from, &to);
    let output = Command::new("/bin/sh")
        .args(["-c", &command])
        .current_dir(shadow.xen())
        .stdin(Stdio::null())
        .output()
        .map_err(|e| Problem::new(&object.source, format!("cannot run the compiler: {e}")))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        return Err(Problem::new(
            &object.source,
            format!(
                "does not compile:\n{}",
                words.trim_end().replace(&*to, &from)
            ),
        ));
    }
    let path = shadow.xen().join(&object.output);
    std::fs::read(&path).map_err(|e| Problem::new(&object.path, Refused::io(&path, &e).to_string()))
}
