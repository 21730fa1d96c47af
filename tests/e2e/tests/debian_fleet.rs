// SPDX-License-Identifier: MIT OR Apache-2.0
//! The Ansible collection on two Debian dom0s at once, over SSH: in check mode nothing is
//! changed; a host that fails keeps the next wave from beginning; then both reach their level,
//! and both go back.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use xsplice_e2e::levels::sign;
use xsplice_e2e::{collection, debian_config, exhaustive, package, repository, rust_base, told};
use xsplice_lab::{DebianConfig, DebianHost};

/// Xen's own test payloads, as two levels.
const LEVELS: [&str; 2] = ["xen_hello_world.livepatch", "xen_replace_world.livepatch"];

/// The machine that Ansible runs on.
struct Controller {
    directory: tempfile::TempDir,
    hosts: [DebianHost; 2],
}

impl Controller {
    fn new() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        collection(&directory.path().join("collections"))?;
        let base = rust_base()?;
        for (level, name) in (1..).zip(LEVELS) {
            let path = directory.path().join(format!("fixes-{level}.livepatch"));
            std::fs::copy(base.test_payloads.join(name), &path)?;
            sign(&path, level)?;
        }
        let config = debian_config(&base)?;
        let deb = package(&repository())?;
        let hosts = std::thread::scope(|scope| {
            let other = scope.spawn(|| ready(&config, &deb));
            let one = ready(&config, &deb)?;
            let other = other.join();
            anyhow::Ok([one, other.expect("it does not panic")?])
        })?;
        let mut inventory = "[xen]\n".to_owned();
        for (name, host) in ["one", "two"].iter().zip(&hosts) {
            writeln!(inventory, "{name} ansible_port={}", host.port())?;
        }
        let key = config.key.display();
        write!(
            inventory,
            "[xen:vars]\nansible_host=127.0.0.1\nansible_user=root\n\
             ansible_ssh_private_key_file={key}\nansible_python_interpreter=/usr/bin/python3\n"
        )?;
        std::fs::write(directory.path().join("fleet"), inventory)?;
        Ok(Self { directory, hosts })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs a playbook of the collection.
    fn play(&self, name: &str, variables: &Value, more: &[&str]) -> anyhow::Result<Output> {
        let mut command = Command::new("ansible-playbook");
        command
            .env("HOME", self.directory.path())
            .env("ANSIBLE_COLLECTIONS_PATH", self.at("collections"))
            .env("ANSIBLE_HOST_KEY_CHECKING", "false")
            .env("ANSIBLE_TIMEOUT", "120")
            .env("ANSIBLE_NOCOLOR", "1")
            .arg("-i")
            .arg(self.at("fleet"))
            .args(["-e", &variables.to_string()])
            .args(more)
            .arg(format!("xsplice.host.{name}"));
        command.output().context("ansible-playbook")
    }

    /// Brings all hosts to the highest of so many levels.
    fn waves(&self, levels: usize, more: &[&str]) -> anyhow::Result<Output> {
        let payloads = (1..=levels).map(|level| self.at(&format!("fixes-{level}.livepatch")));
        let variables = json!({
            "xsplice_policy": "want = \"latest\"\n",
            "xsplice_keys": [repository().join("tests/keys/trusted/vendor.pem")],
            "xsplice_payloads": payloads.collect::<Vec<_>>(),
            "xsplice_timeout": 300,
            "xsplice_gate": 1,
        });
        self.play("waves", &variables, more)
    }

    /// Runs a command on the first host.
    fn one(&mut self, command: &str) -> anyhow::Result<()> {
        let done = self.hosts[0].run(command)?;
        ensure!(done.code == Some(0), "{command}: {done:?}");
        Ok(())
    }

    fn expect(&mut self, states: [(&str, u32); 2]) -> anyhow::Result<()> {
        for (host, (state, level)) in self.hosts.iter_mut().zip(states) {
            let output = host.run("xsplice --json status")?;
            let status = told("status", &output.stdout)?;
            ensure!(
                status["state"] == state && status["result"]["level"] == level,
                "{status:#}"
            );
        }
        Ok(())
    }
}

/// Boots a host, and installs the package on it.
fn ready(config: &DebianConfig, deb: &Path) -> anyhow::Result<DebianHost> {
    let mut host = DebianHost::boot(config)?;
    host.put("/root/xsplice.deb", deb)?;
    let installed = host.run("dpkg -i /root/xsplice.deb")?;
    ensure!(installed.code == Some(0), "{installed:?}");
    Ok(host)
}

fn ended_well(played: &Output) -> anyhow::Result<()> {
    ensure!(played.status.success(), "{}", said(played));
    Ok(())
}

fn said(played: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&played.stdout) + &text(&played.stderr)
}

#[test]
fn a_fleet_goes_up_in_waves_and_back() -> anyhow::Result<()> {
    // It boots two Debian systems, on emulated machines.
    if !exhaustive() {
        println!("only with `cargo xtask test --all`");
        return Ok(());
    }
    let mut fleet = Controller::new()?;
    let checked = fleet.waves(1, &["--check", "--diff"])?;
    ended_well(&checked)?;
    fleet.expect([("hypervisor-unknown", 0); 2])?;
    ended_well(&fleet.waves(1, &[])?)?;
    fleet.expect([("current", 1); 2])?;
    let again = fleet.waves(1, &[])?;
    ended_well(&again)?;
    let unchanged = said(&again).matches("changed=0").count();
    ensure!(unchanged == 2, "{}", said(&again));

    // Somebody applies something else on the first host.
    let mine = rust_base()?.test_payloads.join(LEVELS[1]);
    fleet.hosts[0].put("/root/mine.livepatch", &mine)?;
    fleet.one("xsplice load --replace --timeout 300 /root/mine.livepatch")?;
    let stopped = fleet.waves(2, &[])?;
    let words = said(&stopped);
    ensure!(
        !stopped.status.success()
            && words.contains("applied, but not from the store: mine")
            && !words.contains("[two]"),
        "{words}"
    );
    fleet.expect([("diverged", 0), ("current", 1)])?;

    fleet.one("xsplice revert --timeout 300 mine && xsplice unload mine")?;
    ended_well(&fleet.waves(2, &[])?)?;
    fleet.expect([("current", 2); 2])?;

    let back = json!({
        "xsplice_level": 1,
        "xsplice_policy": "want = \"fixes-1\"\n",
        "xsplice_timeout": 300,
    });
    ended_well(&fleet.play("rollback", &back, &[])?)?;
    fleet.expect([("current", 1); 2])
}
