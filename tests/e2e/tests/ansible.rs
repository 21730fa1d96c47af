// SPDX-License-Identifier: MIT OR Apache-2.0
//! The Ansible collection: what its modules ask for and make of the answers, with a stand-in
//! for `xsplice` that answers as the published schemas say, and with the real one, which finds
//! no Xen here. On real hosts it runs in `debian_fleet`.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Output};
use tempfile::TempDir;
use xsplice_e2e::{collection, exhaustive, named_by, repository, stdout, told, xsplice};

/// A machine on which `xsplice` gives the answers that are in files.
struct Place(TempDir);

/// The stand-in. The second word of its command line is the name of the command.
const STAND_IN: &str = r#"#!/bin/sh
cd "${0%/*}" || exit 9
echo "$*" >> asked
cat "$2.json"
exit "$(cat "$2.code")"
"#;

impl Place {
    fn new() -> anyhow::Result<Self> {
        let place = Self(tempfile::tempdir()?);
        collection(&place.at("collections"))?;
        let program = place.at("xsplice");
        std::fs::write(&program, STAND_IN)?;
        std::fs::set_permissions(&program, Permissions::from_mode(0o755))?;
        Ok(place)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// From now on, `command` answers this and exits with this code.
    fn answers(&self, command: &str, answer: &Value, code: i32) -> anyhow::Result<()> {
        let text = answer.to_string();
        told(command, &text)?;
        std::fs::write(self.at(command).with_extension("json"), text)?;
        Ok(std::fs::write(
            self.at(command).with_extension("code"),
            code.to_string(),
        )?)
    }

    fn ansible(&self, program: &str, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = Command::new(program);
        let path = std::env::var("PATH")?;
        command
            .env("PATH", format!("{}:{path}", self.0.path().display()))
            .env("HOME", self.0.path())
            .env("ANSIBLE_COLLECTIONS_PATH", self.at("collections"))
            .args(["-i", "localhost,", "-e", "ansible_connection=local"])
            .args(["-e", "ansible_python_interpreter=/usr/bin/python3"])
            .args(["-e", "ansible_become=false"])
            .args(arguments);
        command.output().with_context(|| program.to_owned())
    }

    /// What the module that changes a host returns for these parameters, and what it asked
    /// for.
    fn livepatch(&self, parameters: &Value, more: &[&str]) -> anyhow::Result<(Value, String)> {
        self.module("livepatch", parameters, more)
    }

    fn module(
        &self,
        name: &str,
        parameters: &Value,
        more: &[&str],
    ) -> anyhow::Result<(Value, String)> {
        let _ = std::fs::remove_file(self.at("asked"));
        let _ = std::fs::remove_dir_all(self.at("tree"));
        let (parameters, tree) = (parameters.to_string(), self.at("tree"));
        let tree = tree.display().to_string();
        let name = format!("xsplice.host.{name}");
        let ask = ["all", "-m", &name, "-a", &parameters, "--tree", &tree];
        let output = self.ansible("ansible", &[&ask[..], more].concat())?;
        let answer = std::fs::read(self.at("tree").join("localhost"));
        let answer = answer.with_context(|| format!("{output:?}"))?;
        let asked = std::fs::read_to_string(self.at("asked")).unwrap_or_default();
        let mut answer: Value = serde_json::from_slice(&answer)?;
        answer["failed"] = (!output.status.success()).into();
        Ok((answer, asked))
    }
}

fn answer(changed: bool, state: &str, result: &Value, error: &Value) -> Value {
    json!({"schema": 1, "changed": changed, "state": state, "result": result, "error": error})
}

fn synced(from: u32, level: u32, warnings: &[&str]) -> Value {
    json!({
        "from": from, "level": level, "steps": [], "retries": 0, "restored": null,
        "quarantined": [], "warnings": warnings, "unrecorded": [],
    })
}

fn planned(from: u32, to: u32, steps: &Value) -> Value {
    json!({"from": from, "to": to, "steps": steps, "warnings": []})
}

fn refused() -> Value {
    json!({
        "kind": "hypervisor", "code": null, "errno": "EINVAL", "message": "apply fixes-2: no",
        "console": ["(XEN) livepatch: no"], "problems": [],
    })
}

#[test]
fn the_module_says_what_xsplice_says() -> anyhow::Result<()> {
    let place = Place::new()?;
    let none = Value::Null;
    place.answers(
        "sync",
        &answer(true, "current", &synced(1, 2, &["careful"]), &none),
        0,
    )?;
    let (told, asked) = place.livepatch(&json!({"level": 2, "wait": 5}), &[])?;
    ensure!(
        asked == "--json sync --level 2 --timeout 30 --wait 5\n",
        "{asked}"
    );
    ensure!(
        told["changed"] == true && told["condition"] == "current",
        "{told:#}"
    );
    ensure!(told["warnings"][0] == "careful", "{told:#}");

    place.answers(
        "sync",
        &answer(true, "apply-failed", &synced(1, 0, &[]), &refused()),
        1,
    )?;
    let (told, _) = place.livepatch(&json!({"allow_gap": true}), &[])?;
    ensure!(
        told["failed"] == true && told["changed"] == true,
        "{told:#}"
    );
    ensure!(
        told["error"]["console"][0] == "(XEN) livepatch: no",
        "{told:#}"
    );
    ensure!(told["msg"] == "apply fixes-2: no", "{told:#}");

    let status = json!({
        "functions": null, "condition": "behind", "reason": "it is",
        "base": "ab", "level": 1, "wanted": 2, "settling": false, "payloads": [],
        "quarantine": [], "damaged": [], "warnings": [], "reboot": null,
        "reboot_unknown": null,
    });
    place.answers("status", &answer(false, "behind", &status, &none), 0)?;
    let (told, asked) = place.module("info", &json!({"executable": "xsplice"}), &[])?;
    ensure!(asked == "--json status\n", "{asked}");
    ensure!(
        told["changed"] == false && told["condition"] == "behind",
        "{told:#}"
    );

    // An exit code that says something else is not believed, nor is something else than JSON.
    place.answers(
        "sync",
        &answer(false, "current", &synced(2, 2, &[]), &none),
        1,
    )?;
    let (told, _) = place.livepatch(&json!({"timeout": 300}), &[])?;
    ensure!(told["failed"] == true, "{told:#}");
    std::fs::write(place.at("sync.json"), "Segmentation fault")?;
    let (told, _) = place.livepatch(&json!({"wait": 1}), &[])?;
    let said = told["msg"].as_str().unwrap_or_default();
    ensure!(
        told["failed"] == true && said.contains("Segmentation fault"),
        "{told:#}"
    );

    let real = json!({"executable": xsplice()?});
    let (told, _) = place.livepatch(&real, &[])?;
    let said = told["msg"].as_str().unwrap_or_default();
    ensure!(
        told["failed"] == true && said.contains("/dev/xen"),
        "{told:#}"
    );
    ensure!(told["error"]["code"] == "xen-missing", "{told:#}");
    Ok(())
}

#[test]
fn in_check_mode_it_only_plans() -> anyhow::Result<()> {
    let place = Place::new()?;
    let steps = json!([{"step": "apply", "name": "fixes-2"}]);
    place.answers(
        "plan",
        &answer(false, "behind", &planned(0, 2, &steps), &Value::Null),
        3,
    )?;
    let check = ["--check"];
    let (told, asked) = place.livepatch(&json!({"wait": 5, "allow_downgrade": true}), &check)?;
    ensure!(asked == "--json plan --allow-downgrade\n", "{asked}");
    ensure!(told["changed"] == true, "{told:#}");
    place.answers(
        "plan",
        &answer(false, "current", &planned(2, 2, &json!([])), &Value::Null),
        0,
    )?;
    let (told, _) = place.livepatch(&json!({"wait": 5}), &check)?;
    ensure!(
        told["changed"] == false && told["condition"] == "current",
        "{told:#}"
    );
    Ok(())
}

#[test]
fn the_playbook_plans_all_of_the_role() -> anyhow::Result<()> {
    let place = Place::new()?;
    place.answers(
        "plan",
        &answer(false, "current", &planned(2, 2, &json!([])), &Value::Null),
        0,
    )?;
    std::fs::write(
        place.at("status.json"),
        r#"{"schema":1,"changed":false,"state":"current","result":{},"error":null}"#,
    )?;
    std::fs::write(place.at("status.code"), "0")?;
    let hosts = place.at("hosts");
    std::fs::write(&hosts, "[xen]\nlocalhost\n")?;
    let file = place.at("fixes-2.livepatch");
    for end in ["", ".json", ".json.sig"] {
        std::fs::write(format!("{}{end}", file.display()), end)?;
    }
    let variables = json!({
        "xsplice_policy": "auto = true\n",
        "xsplice_keys": [repository().join("tests/keys/trusted/vendor.pem")],
        "xsplice_payloads": [file],
    });
    let output = place.ansible(
        "ansible-playbook",
        &[
            "-i",
            &hosts.display().to_string(),
            "--check",
            "-e",
            &variables.to_string(),
            "xsplice.host.waves",
        ],
    )?;
    ensure!(output.status.success(), "{output:?}");
    let asked = std::fs::read_to_string(place.at("asked"))?;
    ensure!(
        asked == "--json plan\n--json status\n",
        "{asked}: {output:?}"
    );
    Ok(())
}

#[test]
fn ansible_lint_has_nothing_to_say() -> anyhow::Result<()> {
    if !exhaustive() {
        println!("only with `cargo xtask test --all`");
        return Ok(());
    }
    let place = Place::new()?;
    let installed = place.at("collections/ansible_collections/xsplice/host");
    let source = repository().join("packaging/ansible/.ansible-lint");
    std::fs::copy(source, installed.join(".ansible-lint"))?;
    // It looks at what git knows.
    for words in [&["init", "--quiet"][..], &["add", "--all"]] {
        let mut git = Command::new("git");
        stdout(git.args(words).current_dir(&installed))?;
    }
    let programs = named_by("XSPLICE_ANSIBLE_LINT")?;
    let mut lint = Command::new(format!("{programs}/ansible-lint"));
    lint.env("PATH", format!("{programs}:{}", std::env::var("PATH")?))
        .env("HOME", place.0.path())
        .env("ANSIBLE_COLLECTIONS_PATH", place.at("collections"))
        .current_dir(&installed);
    stdout(&mut lint).map(drop)
}
