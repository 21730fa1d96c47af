// SPDX-License-Identifier: MIT OR Apache-2.0
//! Keys are made, payloads signed and signatures verified, with OpenSSL as the other
//! side.

mod told;

use object::Endianness;
use object::elf::{FileHeader64, SHT_NOTE};
use object::read::elf::{FileHeader as _, SectionHeader as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;
use told::told;
use xsplice_test_host::{Payload, func};

/// A directory with a payload.
struct Desk(TempDir);

fn keys() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/keys")
}

fn key(name: &str) -> String {
    keys().join(name).to_string_lossy().into_owned()
}

impl Desk {
    fn new() -> Self {
        let desk = Self(TempDir::new().expect("a directory"));
        let payload = Payload::new(&[func("target")]).bytes();
        std::fs::write(desk.path("fix.livepatch"), payload).expect("written");
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).expect("it is there")
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(program);
        let output = command.current_dir(&self.0).args(arguments).output();
        output.unwrap_or_else(|error| panic!("{program}: {error}"))
    }

    fn xsplice(&self, arguments: &[&str]) -> Output {
        self.run(env!("CARGO_BIN_EXE_xsplice"), arguments)
    }

    /// What it prints; it succeeds.
    #[track_caller]
    fn printed(&self, arguments: &[&str]) -> String {
        let output = self.xsplice(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// What it says on standard error; it fails with 1.
    #[track_caller]
    fn error(&self, arguments: &[&str]) -> String {
        let output = self.xsplice(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
        String::from_utf8(output.stderr).expect("UTF-8")
    }
}

/// Where the signature is: the bytes of the last section behind those of its header.
fn signature(file: &[u8]) -> std::ops::Range<usize> {
    let header = FileHeader64::<Endianness>::parse(file).expect("an ELF file");
    let endian = header.endian().expect("little");
    let sections = header.section_headers(endian, file).expect("sections");
    let last = sections.last().expect("a section");
    assert_eq!(last.sh_type(endian), SHT_NOTE);
    let (start, size) = last.file_range(endian).expect("contents");
    let start = usize::try_from(start).expect("a place") + 16;
    start..start + usize::try_from(size).expect("a size") - 16
}

#[test]
fn a_new_key_signs_what_is_verified_with_its_public_key() {
    let desk = Desk::new();
    let keygen = [
        "keygen", "--key", "k.key", "--cert", "k.pem", "--bits", "2048",
    ];
    let text = desk.printed(&keygen);
    assert_eq!(
        text,
        "k.key: a private key with 2048 bits\nk.pem: its public key\n"
    );
    let mode = desk.path("k.key").metadata().expect("it is there").mode();
    assert_eq!(mode & 0o777, 0o600);
    // A key is not written over.
    let before = desk.read("k.key");
    assert!(desk.error(&keygen).contains("File exists"));
    assert_eq!(desk.read("k.key"), before);

    let text = desk.printed(&["sign", "--key", "k.key", "fix.livepatch"]);
    assert_eq!(text, "fix.livepatch: signed with a key of 2048 bits\n");
    let json = ["sign", "--key", "k.key", "fix.livepatch", "--json"];
    let value = told("sign", desk.printed(&json).as_bytes());
    assert_eq!(value["result"]["replaced"], true, "{value:#}");
    let other = [
        "--json", "keygen", "--key", "o.key", "--cert", "o.pem", "--bits", "2048",
    ];
    let value = told("keygen", desk.printed(&other).as_bytes());
    assert_eq!(value["changed"], true, "{value:#}");
    let verify = ["verify-signature", "fix.livepatch", "--cert"];
    let vendor = key("trusted/vendor.pem");
    let text = desk.printed(&[&verify[..], &["k.pem"]].concat());
    assert_eq!(text, "fix.livepatch: signature by k\n");
    let text = desk.printed(&[&verify[..], &[&vendor, "--cert", "k.pem"]].concat());
    assert_eq!(text, "fix.livepatch: signature by k\n");

    let output = desk.xsplice(&[&verify[..], &[&vendor, "--json"]].concat());
    let value = told("verify-signature", &output.stdout);
    assert_eq!(value["error"]["kind"], "refused", "{value:#}");
    let output = desk.xsplice(&[&verify[..], &[&vendor]].concat());
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("signature WRONG: it is not that of any of these keys"),
        "{text}"
    );
}

#[test]
fn openssl_agrees_on_what_is_signed() {
    let desk = Desk::new();
    let before = desk.read("fix.livepatch");
    let key = key("vendor.key");
    let out = ["-o", "signed.livepatch"];
    desk.printed(&[&["sign", "--key", &key, "fix.livepatch"][..], &out].concat());
    assert_eq!(desk.read("fix.livepatch"), before);
    let mut file = desk.read("signed.livepatch");
    let place = signature(&file);
    std::fs::write(desk.path("signature"), &file[place.clone()]).expect("written");
    file[place].fill(0);
    std::fs::write(desk.path("zeroed"), &file).expect("written");
    let verify = [
        "dgst",
        "-sha256",
        "-prverify",
        &key,
        "-signature",
        "signature",
        "zeroed",
    ];
    let output = desk.run("openssl", &verify);
    assert_eq!(output.stdout, b"Verified OK\n", "{output:?}");
    file[100] ^= 1;
    std::fs::write(desk.path("zeroed"), &file).expect("written");
    assert!(!desk.run("openssl", &verify).status.success());
}

#[test]
fn a_command_signs_in_place_of_a_key() {
    let desk = Desk::new();
    let (large, cert) = (key("large.key"), key("trusted/large.pem"));
    let openssl = format!("openssl dgst -sha256 -sign {large}");
    let sign = |signer: &str, payload: &str| {
        let arguments = ["sign", "--signer", signer, "--cert", &cert, payload];
        arguments.map(str::to_owned)
    };
    let text = desk.printed(
        &sign(&openssl, "fix.livepatch")
            .each_ref()
            .map(|s| s.as_str()),
    );
    assert_eq!(text, "fix.livepatch: signed with a key of 4096 bits\n");
    let text = desk.printed(&[
        "verify-signature",
        "--cert",
        &cert,
        "fix.livepatch",
        "--json",
    ]);
    let value = told("verify-signature", text.as_bytes());
    assert_eq!(
        value["result"]["signature"],
        serde_json::json!({ "state": "signed", "by": "large" })
    );

    // Whatever else the command does, the payload stays as it is.
    let before = desk.read("fix.livepatch");
    let foreign = format!("openssl dgst -sha256 -sign {}", key("vendor.key"));
    let other = "openssl dgst -sha512 -sign ".to_owned() + &large;
    for (signer, error) in [
        ("exit 3", "the signer failed: exit status: 3"),
        ("true", "not that of the key large"),
        ("cat", "not that of the key large"),
        (&foreign, "not that of the key large"),
        (&other, "not that of the key large"),
    ] {
        let text = desk.error(&sign(signer, "fix.livepatch").each_ref().map(|s| s.as_str()));
        assert!(text.contains(error), "{signer}: {text}");
        assert_eq!(desk.read("fix.livepatch"), before);
    }
}

#[test]
fn a_signature_is_replaced_and_the_report_says_so() {
    let desk = Desk::new();
    let sign = |name: &str| {
        [
            "sign".to_owned(),
            "--key".to_owned(),
            key(name),
            "fix.livepatch".to_owned(),
        ]
    };
    desk.printed(&sign("vendor.key").each_ref().map(|s| s.as_str()));
    let text = desk.printed(&sign("other.key").each_ref().map(|s| s.as_str()));
    let expected =
        "fix.livepatch: signed with a key of 2048 bits, in place of an earlier signature\n";
    assert_eq!(text, expected);
    let before = desk.read("fix.livepatch");
    let error = desk.error(&sign("large.key").each_ref().map(|s| s.as_str()));
    assert!(
        error.contains("it has a signature of 256 bytes already"),
        "{error}"
    );
    assert_eq!(desk.read("fix.livepatch"), before);
}

#[test]
fn who_signed_a_payload_is_shown() {
    let desk = Desk::new();
    let line = |arguments: &[&str]| {
        let text = desk.printed(&[&["inspect", "fix.livepatch"][..], arguments].concat());
        let line = text.lines().find_map(|line| line.strip_prefix("signature"));
        line.expect("a line").trim().to_owned()
    };
    assert_eq!(line(&[]), "none");
    desk.printed(&["sign", "--key", &key("vendor.key"), "fix.livepatch"]);
    let unverified = "RSA with SHA-256, 2048 bits; not verified: no --cert is given";
    assert_eq!(line(&[]), unverified);
    assert_eq!(line(&["--cert", &key("trusted/vendor.pem")]), "by vendor");
    assert!(line(&["--cert", &key("trusted/large.pem")]).starts_with("WRONG: "));
    let json = desk.printed(&["inspect", "fix.livepatch", "--json"]);
    let value = told("inspect", json.as_bytes());
    assert_eq!(value["result"]["signature"]["state"], "unverified");
}

#[test]
fn what_cannot_be_signed_or_verified_is_refused() {
    let desk = Desk::new();
    let (private, public) = (key("vendor.key"), key("trusted/vendor.pem"));
    std::fs::write(desk.path("text"), "no payload").expect("written");
    let error = desk.error(&["sign", "--key", &private, "text"]);
    assert!(error.contains("this is not an ELF file"), "{error}");
    assert_eq!(desk.read("text"), b"no payload");
    let error = desk.error(&["sign", "--key", &public, "fix.livepatch"]);
    assert!(error.contains("no private key in PEM"), "{error}");
    let error = desk.error(&["verify-signature", "--cert", &private, "fix.livepatch"]);
    assert!(error.contains("this is a private key"), "{error}");
    desk.error(&["verify-signature", "fix.livepatch"]);
    desk.error(&["sign", "fix.livepatch"]);
    desk.error(&["sign", "--signer", "true", "fix.livepatch"]);
    let output = desk.xsplice(&["verify-signature", "--cert", &public, "fix.livepatch"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(output.stdout, b"fix.livepatch: signature none\n");
}
