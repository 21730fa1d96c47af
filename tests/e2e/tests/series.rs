// SPDX-License-Identifier: MIT OR Apache-2.0
//! A release for several hypervisors, made by make from what was packed for another machine: the
//! payloads are cumulative, verified and signed, and lie where hosts look for them; one that is refused keeps no other from being
//! made, and the table and the coverage say which there are, and why others are not. Two
//! that make the same release at once do no harm to each other.

use anyhow::ensure;
use serde_json::Value;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use xsplice_e2e::{base, local, repository, result, stdout, told, xsplice};
use xsplice_host_image::Image;

fn make(directory: &Path, makefile: &str) -> anyhow::Result<Output> {
    std::fs::write(directory.join("release.mk"), makefile)?;
    let bin = xsplice()?.parent().map(PathBuf::from).unwrap_or_default();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH")?);
    let mut make = Command::new("make");
    make.args(["-k", "-f", "release.mk"]).current_dir(directory);
    Ok(make.env("PATH", path).output()?)
}

/// What the hypervisor `id` of the series `file` is built from is packed in a directory and
/// unpacked in another one. The other hypervisor is not there.
fn bundle(file: &str, id: &str, from: &Path, to: &Path) -> anyhow::Result<()> {
    let run = |more: &[&str]| {
        let mut command = Command::new(xsplice()?);
        let arguments = ["--json", "series", "bundle", file, "-o", "bases.tar.gz"];
        command.args(arguments).args(more).current_dir(from);
        anyhow::Ok(command.output()?)
    };
    let refused = run(&[])?;
    let told = told("series-bundle", &refused.stdout)?;
    let message = told["error"]["message"].as_str().unwrap_or_default();
    let names = message.contains(&"ab".repeat(20)) && message.contains(id);
    let nothing = !from.join("bases.tar.gz").exists();
    ensure!(!refused.status.success() && names && nothing, "{refused:?}");
    let bundled = run(&["--base", id])?;
    let bases = &result("series-bundle", &bundled.stdout)?["bases"];
    let compiler = bases[0]["compiler"].as_str().unwrap_or_default();
    ensure!(compiler.starts_with("GCC"), "{bundled:?}");
    let mut tar = Command::new("tar");
    tar.arg("-xzf").arg(from.join("bases.tar.gz")).arg("-C");
    stdout(tar.arg(to))?;
    ensure!(to.join(format!("{id}.bundle.json")).exists(), "{bundled:?}");
    Ok(())
}

fn verdicts(table: &Value) -> Vec<&str> {
    let fixes = table["fixes"].as_array().into_iter().flatten();
    fixes.filter_map(|fix| fix["verdict"].as_str()).collect()
}

#[test]
fn make_makes_a_release_and_the_table_says_what_is_in_it() -> anyhow::Result<()> {
    let base = base()?;
    let original = tempfile::tempdir()?;
    let directory = tempfile::tempdir()?;
    let at = |name: &str| directory.path().join(name).display().to_string();
    let syms = std::fs::read(&base.xen_syms)?;
    let id = xsplice_abi::note::hex(Image::parse(&syms)?.build_id());
    symlink(&base.tree, original.path().join("tree"))?;
    symlink(&base.xen_syms, original.path().join("syms"))?;
    let in_repository = |path: &str| repository().join(path).display().to_string();
    let key = in_repository("tests/keys/vendor.key");
    let code = in_repository("tests/e2e/patches/two-hunks-one-effect.patch");
    let comment = in_repository("tests/e2e/patches/header-comment.patch");
    let hypervisor =
        |id: &str| format!("[[base]]\nbuild-id = \"{id}\"\ntree = \"tree\"\nxen-syms = \"syms\"\n");
    // The second is not the one that the tree is of.
    let other = "ab".repeat(20);
    let series = format!(
        "name = \"fixes\"\nkey = \"{key}\"\n{}{}\
         [[level]]\npatches = [\"{code}\"]\nfixes = [\"XSA-480\"]\n\
         [[level]]\npatches = [\"{comment}\"]\nfixes = [\"XSA-481\"]\n",
        hypervisor(&id),
        hypervisor(&other),
    );
    let file = at("series.toml");
    std::fs::write(&file, series)?;
    bundle(&file, &id, original.path(), directory.path())?;
    let release = at("release");
    let plan = local(&["series", "plan", &file, "-o", &release, "--level", "2"])?;
    ensure!(plan.status.success(), "{plan:?}");
    // Somebody else makes it at the same time.
    let makefile = String::from_utf8(plan.stdout)?;
    let both = std::thread::scope(|scope| {
        let make = || make(directory.path(), &makefile);
        let elsewhere = scope.spawn(make);
        [make(), elsewhere.join().expect("it is not stopped")]
    });
    for made in both {
        let made = made?;
        let said = String::from_utf8_lossy(&made.stderr);
        ensure!(!made.status.success() && said.contains(&other), "{made:?}");
    }

    let table = local(&["--json", "series", "table", &file, "-o", &release])?;
    ensure!(table.status.code() == Some(3), "{table:?}");
    let table = result("series-table", &table.stdout)?;
    let expected = ["in", "no-effect", "refused", "refused"];
    ensure!(verdicts(&table) == expected, "{table:#}");
    let reason = &table["fixes"][2]["reason"];
    let named = reason["message"].as_str().is_some_and(|m| m.contains(&id));
    ensure!(named && reason["code"].is_string(), "{table:#}");
    let page = at("table.html");
    let shown = local(&["series", "table", &file, "-o", &release, "--html", &page])?;
    let shown = String::from_utf8(shown.stdout)?;
    let code = reason["code"].as_str().unwrap_or_default();
    let line = format!("XSA-481          {other}  refused ({code})");
    ensure!(shown.lines().any(|other| other == line), "{shown}");
    let page = std::fs::read_to_string(page)?;
    ensure!(page.contains(code) && page.contains(&other), "{page}");

    // A host that trusts the key would take it, and its fixes are those of both levels.
    let keys = directory.path().join("release/etc/xsplice/keys.d");
    std::fs::create_dir_all(&keys)?;
    std::fs::copy(
        repository().join("tests/keys/trusted/vendor.pem"),
        keys.join("vendor.pem"),
    )?;
    std::fs::write(at("hosts"), format!("one {id}\ntwo {other}\n"))?;
    let hosts = at("hosts");
    let coverage = [
        "--json", "coverage", &release, "--hosts", &hosts, "--level", "2",
    ];
    let coverage = result("coverage", &local(&coverage)?.stdout)?;
    ensure!(
        coverage["covered"] == 1 && coverage["hypervisors"][&id]["level"] == 2,
        "{coverage:#}"
    );
    let manifest = format!("{release}/usr/lib/xen-livepatch/{id}/fixes-2.livepatch.json");
    let manifest: Value = serde_json::from_slice(&std::fs::read(manifest)?)?;
    ensure!(
        manifest["fixes"] == serde_json::json!(["XSA-480", "XSA-481"]),
        "{manifest:#}"
    );

    // What is there is not made again.
    let plan = [
        "--json", "series", "plan", &file, "-o", &release, "--level", "2",
    ];
    let tasks = result("series-plan", &local(&plan)?.stdout)?;
    ensure!(
        tasks["tasks"].as_array().is_some_and(|all| all.len() == 2),
        "{tasks:#}"
    );
    let makefile = std::fs::read_to_string(directory.path().join("release.mk"))?;
    let again = make(directory.path(), &makefile)?;
    let said = String::from_utf8_lossy(&again.stdout);
    ensure!(!said.contains(&format!("--xen-depends {id}")), "{again:?}");
    Ok(())
}
