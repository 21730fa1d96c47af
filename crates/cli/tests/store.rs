// SPDX-License-Identifier: MIT OR Apache-2.0
//! The store, as far as it needs no hypervisor, with OpenSSL as the other side.

mod told;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;
use told::told;
use xsplice_test_host::{Payload, XEN_ID, func};

/// A host's files, and payloads to install.
struct Place(TempDir);

fn key(name: &str) -> String {
    let keys = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/keys");
    keys.join(name).to_string_lossy().into_owned()
}

fn base() -> String {
    XEN_ID.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Place {
    fn new() -> Self {
        let place = Self(TempDir::new().expect("a directory"));
        for level in [1, 2] {
            let payload = Payload::on(&XEN_ID, &[level; 20], &[func("target")]).bytes();
            let name = format!("fixes-{level}.livepatch");
            std::fs::write(place.at(&name), payload).expect("written");
        }
        std::fs::create_dir(place.at("host")).expect("made");
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(program);
        let output = command.current_dir(&self.0).args(arguments).output();
        output.unwrap_or_else(|error| panic!("{program}: {error}"))
    }

    /// What `xsplice COMMAND --root host` tells programs, and its exit code.
    fn told(&self, command: &str, arguments: &[&str]) -> (Option<i32>, serde_json::Value) {
        let all = [&["--json", command, "--root", "host"], arguments].concat();
        let output = self.run(env!("CARGO_BIN_EXE_xsplice"), &all);
        (output.status.code(), told(command, &output.stdout))
    }

    fn sign(&self, level: &str, private: &str) {
        let file = format!("fixes-{level}.livepatch");
        let arguments = ["sign", "--key", &key(private), &file, "--level", level];
        let arguments = [&arguments[..], &["--fix", "XSA-480"]].concat();
        let output = self.run(env!("CARGO_BIN_EXE_xsplice"), &arguments);
        assert!(output.status.success(), "{output:?}");
    }

    fn trust(&self, certificate: &str) {
        let keys = self.at("host/etc/xsplice/keys.d");
        std::fs::create_dir_all(&keys).expect("made");
        std::fs::copy(key(certificate), keys.join("vendor.pem")).expect("copied");
    }
}

#[test]
fn one_command_signs_both_and_openssl_agrees() {
    let place = Place::new();
    place.sign("1", "vendor.key");
    let verify = [
        "dgst",
        "-sha256",
        "-verify",
        &key("trusted/vendor.pem"),
        "-signature",
    ];
    let files = ["fixes-1.livepatch.json.sig", "fixes-1.livepatch.json"];
    let output = place.run("openssl", &[&verify[..], &files].concat());
    assert!(output.status.success(), "{output:?}");
    let cert = key("trusted/vendor.pem");
    let verify = ["verify-signature", "--cert", &cert, "fixes-1.livepatch"];
    let output = place.run(env!("CARGO_BIN_EXE_xsplice"), &verify);
    assert!(output.status.success(), "{output:?}");
    // The manifest is of the payload with its signature.
    let digest = place.run("sha256sum", &["fixes-1.livepatch"]);
    let digest = String::from_utf8(digest.stdout).expect("UTF-8");
    let manifest = std::fs::read(place.at("fixes-1.livepatch.json")).expect("written");
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("JSON");
    assert!(digest.starts_with(manifest["sha256"].as_str().expect("a text")));
    assert_eq!(manifest["fixes"][0], "XSA-480");
}

#[test]
fn what_the_key_has_signed_is_installed_and_nothing_else() {
    let place = Place::new();
    place.trust("trusted/vendor.pem");
    place.sign("1", "vendor.key");
    place.sign("2", "other.key");
    let (code, told) = place.told("install", &["fixes-1.livepatch"]);
    assert_eq!(
        (code, told["changed"].as_bool()),
        (Some(0), Some(true)),
        "{told:#}"
    );
    assert_eq!(told["result"]["payloads"][0]["signer"]["name"], "vendor");
    let (code, told) = place.told("install", &["fixes-1.livepatch"]);
    assert_eq!(
        (code, told["changed"].as_bool()),
        (Some(0), Some(false)),
        "{told:#}"
    );
    let (code, told) = place.told("install", &["fixes-2.livepatch"]);
    assert_eq!(code, Some(1), "{told:#}");
    let store = place.at("host/var/lib/xsplice/store").join(base());
    let mut names: Vec<_> = std::fs::read_dir(store)
        .expect("a directory")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    let payload = "fixes-1.livepatch";
    let expected = [
        payload.to_owned(),
        format!("{payload}.json"),
        format!("{payload}.json.sig"),
    ];
    assert_eq!(names, expected);
}

#[test]
fn a_payload_without_a_manifest_gets_one_only_if_asked() {
    let place = Place::new();
    let (code, told) = place.told("install", &["fixes-1.livepatch"]);
    assert_eq!(code, Some(1));
    let message = told["error"]["message"].as_str().expect("a text");
    assert!(message.contains("there is no manifest"), "{message}");
    let (code, told) = place.told("install", &["fixes-1.livepatch", "--level", "1"]);
    assert_eq!(code, Some(0), "{told:#}");
    assert_eq!(told["result"]["payloads"][0]["signer"]["state"], "nobody");
    // The level is taken.
    let (code, _) = place.told("install", &["fixes-2.livepatch", "--level", "1"]);
    assert_eq!(code, Some(1));
    let (code, told) = place.told("remove", &["fixes-1"]);
    assert_eq!(code, Some(0), "{told:#}");
    let (code, _) = place.told("remove", &["fixes-1"]);
    assert_eq!(code, Some(1));
    let (code, told) = place.told("history", &[]);
    let actions = told["result"]["lines"].as_array().expect("a list").iter();
    let actions: Vec<String> = actions
        .map(|line| format!("{} {}", line["action"], line["outcome"]).replace('"', ""))
        .collect();
    let expected = [
        "install begun",
        "install done",
        "remove begun",
        "remove done",
    ];
    assert_eq!(
        (code, actions.as_slice()),
        (Some(0), &expected.map(str::to_owned)[..])
    );
}

#[test]
fn a_history_that_was_changed_is_an_error() {
    let place = Place::new();
    place.told("install", &["fixes-1.livepatch", "--level", "1"]);
    place.told("install", &["fixes-2.livepatch", "--level", "2"]);
    let path = place.at("host/var/lib/xsplice/history.jsonl");
    let text = std::fs::read_to_string(&path).expect("read");
    std::fs::write(&path, text.replacen("fixes-1", "fixes-9", 1)).expect("written");
    let (code, told) = place.told("history", &[]);
    assert_eq!(
        (code, told["error"]["kind"].as_str()),
        (Some(1), Some("refused")),
        "{told:#}"
    );
}

#[test]
fn a_history_is_verified_up_to_a_line_that_is_known() {
    let place = Place::new();
    let (code, told) = place.told("history", &["--verify"]);
    assert_eq!(
        (code, &told["result"]["whole"]),
        (Some(0), &true.into()),
        "{told:#}"
    );
    place.told("install", &["fixes-1.livepatch", "--level", "1"]);
    let (_, told) = place.told("history", &["--verify"]);
    let last = told["result"]["last"].as_str().expect("a hash").to_owned();
    let verify = ["--verify", "--anchor", &last];
    place.told("install", &["fixes-2.livepatch", "--level", "2"]);
    let (code, told) = place.told("history", &verify);
    assert_eq!(
        (code, &told["result"]["whole"]),
        (Some(0), &true.into()),
        "{told:#}"
    );
    let all = ["history", "--root", "host", "--verify"];
    let output = place.run(env!("CARGO_BIN_EXE_xsplice"), &all);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.starts_with("4 lines: the chain is whole\nlast line: "),
        "{text}"
    );
    // The lines after the first are gone, which only the hash shows.
    let path = place.at("host/var/lib/xsplice/history.jsonl");
    let text = std::fs::read_to_string(&path).expect("read");
    let first = text.lines().next().expect("a line");
    std::fs::write(&path, format!("{first}\n")).expect("written");
    let (code, _) = place.told("history", &["--verify"]);
    assert_eq!(code, Some(0));
    let (code, told) = place.told("history", &verify);
    let message = told["error"]["message"].as_str().expect("a text");
    assert!(code == Some(1) && message.contains(&last), "{told:#}");
}

#[test]
fn what_cannot_be_recorded_is_done_only_if_the_policy_permits_it() {
    let install = ["fixes-1.livepatch"];
    for (policy, is_done) in [
        (None, true),
        (Some("audit = \"warn\""), true),
        (Some("audit = \"enforce\""), false),
    ] {
        let place = Place::new();
        place.sign("1", "vendor.key");
        // No line can be added to a directory.
        let history = place.at("host/var/lib/xsplice/history.jsonl");
        std::fs::create_dir_all(&history).expect("made");
        if let Some(policy) = policy {
            std::fs::create_dir_all(place.at("host/etc/xsplice")).expect("made");
            std::fs::write(place.at("host/etc/xsplice/host.toml"), policy).expect("written");
        }
        let file = place.at("host/var/lib/xsplice/store").join(base());
        let file = file.join("fixes-1.livepatch");
        let (code, told) = place.told("install", &install);
        let message = told["error"]["message"]
            .as_str()
            .expect("a text")
            .to_owned();
        assert_eq!((code, file.exists()), (Some(1), is_done), "{message}");
        let word = if is_done {
            "not recorded"
        } else {
            "nothing was changed"
        };
        assert!(message.contains(word), "{message}");
        assert_eq!(
            message.contains("audit = \"enforce\" in"),
            !is_done,
            "{message}"
        );
        // What is there already is no change, and has no record.
        let (code, _) = place.told("install", &install);
        assert_eq!(code, Some(i32::from(!is_done)));
        std::fs::remove_dir(&history).expect("removed");
        let (code, told) = place.told("install", &install);
        assert_eq!(
            (code, &told["changed"]),
            (Some(0), &(!is_done).into()),
            "{told:#}"
        );
        std::fs::rename(
            place.at("host/var/lib/xsplice/history.jsonl"),
            place.at("kept"),
        )
        .ok();
        std::fs::create_dir(&history).expect("made");
        let (code, _) = place.told("remove", &["fixes-1"]);
        assert_eq!((code, file.exists()), (Some(1), !is_done));
    }
}

#[test]
fn of_two_at_once_one_says_that_it_is_busy() {
    let place = Place::new();
    let run = place.at("host/run/xsplice");
    std::fs::create_dir_all(&run).expect("made");
    let lock = File::create(run.join("lock")).expect("made");
    lock.lock().expect("it is free");
    let install = ["fixes-1.livepatch", "--level", "1"];
    let (code, told) = place.told("install", &install);
    assert_eq!(
        (code, told["error"]["kind"].as_str()),
        (Some(2), Some("busy")),
        "{told:#}"
    );
    let waiting = [&install[..], &["--wait", "60"]].concat();
    let (code, told) = std::thread::scope(|scope| {
        let second = scope.spawn(|| place.told("install", &waiting));
        std::thread::sleep(std::time::Duration::from_millis(200));
        drop(lock);
        second.join().expect("no panic")
    });
    assert_eq!(code, Some(0), "{told:#}");
}

#[test]
fn a_fleet_is_covered_or_the_exit_code_is_three() {
    let place = Place::new();
    place.told("install", &["fixes-1.livepatch", "--level", "1"]);
    let ask = |hosts: &str, level: &str| {
        std::fs::write(place.at("hosts"), hosts).expect("written");
        let arguments = [
            "--json", "coverage", "host", "--hosts", "hosts", "--level", level,
        ];
        let output = place.run(env!("CARGO_BIN_EXE_xsplice"), &arguments);
        (output.status.code(), told("coverage", &output.stdout))
    };
    let hosts = format!("one {}\ntwo {}\n", base(), base());
    let (code, told) = ask(&hosts, "1");
    assert_eq!(
        (code, &told["result"]["covered"]),
        (Some(0), &2.into()),
        "{told:#}"
    );
    let (code, told) = ask(&hosts, "2");
    assert_eq!(
        (code, &told["result"]["covered"]),
        (Some(3), &0.into()),
        "{told:#}"
    );
    assert!(told["error"].is_null());
    let (code, _) = ask("one", "1");
    assert_eq!(code, Some(1));
    // A package that cannot be read is said, and does not take away the others.
    let package = place.at("host/usr/lib/xen-livepatch").join(base());
    let bad = package.join("fixes-2.livepatch");
    std::fs::create_dir_all(package.join("fixes-2.livepatch.json")).expect("made");
    std::fs::write(&bad, "").expect("written");
    let (code, told) = ask(&hosts, "1");
    assert_eq!(
        (code, &told["result"]["covered"]),
        (Some(0), &2.into()),
        "{told:#}"
    );
    let damaged = &told["result"]["damaged"][0];
    let path = damaged["path"].as_str().expect("a text");
    assert!(path.ends_with("fixes-2.livepatch"), "{told:#}");
    let reason = damaged["reason"].as_str().expect("a text");
    assert!(
        reason.contains("fixes-2.livepatch.json: Is a directory"),
        "{told:#}"
    );
}

#[test]
fn a_level_is_not_asked_for_if_nobody_decides() {
    let place = Place::new();
    for command in ["plan", "sync"] {
        let (code, told) = place.told(command, &["--unattended", "--level", "1"]);
        assert_eq!(
            (code, told["error"]["kind"].as_str()),
            (Some(1), Some("usage")),
            "{told:#}"
        );
    }
}
