// SPDX-License-Identifier: MIT OR Apache-2.0
//! What an engine with keys loads, and why not.

use object::elf::{SHF_ALLOC, SHT_NOTE, SHT_PROGBITS, SectionFlags, SectionType};
use object::{Object as _, ObjectSection as _, SectionKind};
use std::sync::LazyLock;
use xsplice_abi::signature::{Kind, SECTION, note};
use xsplice_engine::{
    Action, Enforcement, Engine, Errno, Options, Parsed, Policy, Problem, Refusal, SignatureFault,
    Signatures,
};
use xsplice_signature::Key;
use xsplice_signing::{KeyError, PrivateKey, PublicKey, SignError, Unsigned};
use xsplice_test_host::{Hypervisor, Payload, func};

macro_rules! key {
    ($name:literal) => {
        include_bytes!(concat!("../../../tests/keys/", $name))
    };
}

fn vendor() -> PrivateKey {
    PrivateKey::read(key!("vendor.key")).expect("a key")
}

fn other() -> PrivateKey {
    PrivateKey::read(key!("other.key")).expect("a key")
}

fn large() -> PrivateKey {
    PrivateKey::read(key!("large.key")).expect("a key")
}

fn payload() -> Payload {
    Payload::new(&[func("target")])
}

fn sign(payload: &[u8], key: &PrivateKey) -> Result<Vec<u8>, SignError> {
    let public = key.public("the signer").expect("a public key");
    let unsigned = Unsigned::new(payload, public.signature_size())?;
    let signature = key.sign(unsigned.digest()).expect("a signature");
    unsigned.with(&signature, &public)
}

fn signed() -> Vec<u8> {
    sign(&payload().bytes(), &vendor()).expect("signed")
}

/// The public keys of two vendors.
static PUBLIC: LazyLock<[PublicKey; 2]> = LazyLock::new(|| {
    let key = |name: &str, file: &[u8]| PublicKey::read(name, file).expect("a key");
    [
        key("large", key!("trusted/large.pem")),
        key("vendor", key!("trusted/vendor.pem")),
    ]
});
static KEYS: LazyLock<[Key<'static>; 2]> = LazyLock::new(|| {
    let key = |key: &'static PublicKey| Key::new(key.name(), key.modulus()).expect("a key");
    PUBLIC.each_ref().map(key)
});

/// An engine with their keys.
fn engine(enforcement: Enforcement) -> Engine<Hypervisor> {
    let mut host = Hypervisor::new();
    host.signatures = Signatures {
        keys: KEYS.as_slice(),
        enforcement,
    };
    Engine::new(host, Policy::Stock)
}

/// Files for ARM32 have records of another width.
#[test]
fn payloads_for_arm32_are_signed_too() {
    let enforcing = || {
        let mut host = Hypervisor::arm32();
        host.signatures = Signatures {
            keys: KEYS.as_slice(),
            enforcement: Enforcement::Enforce,
        };
        Engine::new(host, Policy::Engine)
    };
    let unsigned = xsplice_test_host::payloads::arm32();
    let refusal = enforcing().upload("test", &unsigned).map(drop).unwrap_err();
    assert_eq!(refusal.errno(), Errno::EPERM, "{refusal}");
    let signed = sign(&unsigned, &vendor()).expect("signed");
    let mut engine = enforcing();
    engine.upload("test", &signed).expect("it is loaded");
    for action in [Action::Apply, Action::Revert, Action::Unload] {
        engine.act("test", action, Options::default()).unwrap();
    }
    // Signed again, and damaged.
    assert_eq!(sign(&signed, &vendor()).expect("signed again"), signed);
    let mut damaged = signed;
    damaged[60] ^= 1;
    assert!(enforcing().upload("test", &damaged).is_err());
}

fn refused(file: &[u8]) -> Refusal {
    let mut engine = engine(Enforcement::Enforce);
    let refusal = engine.upload("test", file).expect_err("it is refused");
    let lines = engine.host().memory().logged.clone();
    assert_eq!(lines, [refusal.to_string()]);
    refusal
}

/// Asserts that nothing but the signature is found fault with.
#[track_caller]
fn refused_for(file: &[u8], fault: SignatureFault, errno: Errno) {
    let refusal = refused(file);
    assert_eq!(refusal.errno(), errno, "{refusal}");
    let enforced = true;
    assert_eq!(refusal.problems, [Problem::Signature { fault, enforced }]);
}

const WRONG: SignatureFault = SignatureFault::Wrong { keys: 2 };

#[test]
fn what_a_vendor_has_signed_is_loaded_and_says_so() {
    for (key, name) in [(vendor(), "vendor"), (large(), "large")] {
        let file = sign(&payload().bytes(), &key).expect("signed");
        let mut engine = engine(Enforcement::Enforce);
        let loaded = engine.upload("test", &file).expect("loaded");
        assert_eq!(loaded.signer(), Some(name));
        engine
            .act("test", Action::Apply, Options::default())
            .expect("applied");
    }
}

#[test]
fn what_nobody_has_signed_is_refused() {
    refused_for(&payload().bytes(), SignatureFault::Missing, Errno::EPERM);
    let foreign = sign(&payload().bytes(), &other()).expect("signed");
    refused_for(&foreign, WRONG, Errno::EPERM);
}

#[test]
fn a_signature_is_of_one_payload() {
    let mut another = payload();
    another.section(".extra", SectionKind::ReadOnlyData, b"x", 1);
    let room = Unsigned::new(&another.bytes(), 256).expect("room");
    let mut file = room.bytes().to_vec();
    let place = |file: &[u8]| {
        let parsed = Parsed::parse("test", file).expect("a payload");
        parsed.signature().expect("one").expect("one").place()
    };
    let mine = signed();
    let (to, from) = (place(&file), place(&mine));
    refused_for(&file, WRONG, Errno::EPERM);
    file[to].copy_from_slice(&mine[from]);
    refused_for(&file, WRONG, Errno::EPERM);
}

#[test]
fn every_bit_of_a_signed_payload_counts() {
    let file = signed();
    let mut wrong = 0;
    for at in 0..file.len() {
        let mut other = file.clone();
        other[at] ^= 1 << (at % 8);
        let mut engine = engine(Enforcement::Enforce);
        let refusal = engine.upload("test", &other).expect_err("it is refused");
        let found = |problem: &Problem| {
            let fault = WRONG;
            let enforced = true;
            *problem == Problem::Signature { fault, enforced }
        };
        wrong += usize::from(refusal.problems.iter().any(found));
    }
    // The others are no payloads at all any more, or have no signature.
    assert!(wrong * 4 > file.len() * 3, "{wrong} of {}", file.len());
    for length in 0..file.len() {
        let mut engine = engine(Enforcement::Enforce);
        assert!(engine.upload("test", &file[..length]).is_err(), "{length}");
    }
    let longer = [file.as_slice(), &[0]].concat();
    refused_for(&longer, WRONG, Errno::EPERM);
}

/// A payload with such sections in place of a signature.
fn with_sections(sections: &[(&[u8], SectionType, SectionFlags)]) -> Vec<u8> {
    let mut payload = payload();
    for (data, sh_type, sh_flags) in sections {
        let section = payload.section(SECTION, SectionKind::Note, data, 4);
        payload.object.section_mut(section).flags = object::SectionFlags::Elf {
            sh_type: *sh_type,
            sh_flags: *sh_flags,
        };
    }
    payload.bytes()
}

#[test]
fn what_is_no_signature_is_refused() {
    let none = SectionFlags(0);
    let good = note(Kind::RSA_SHA256, &[0; 256]);
    let twice = [good.as_slice(), &good].concat();
    let long = note(Kind::RSA_SHA256, &[0; 1000]);
    let malformed = |what| (SignatureFault::Malformed { what }, Errno::EINVAL);
    let wrong = || (WRONG, Errno::EPERM);
    let no_note = "it is not one note of the owner Xen";
    for (data, kind, flags, (fault, errno)) in [
        (good.as_slice(), SHT_NOTE, none, wrong()),
        (&long, SHT_NOTE, none, wrong()),
        (
            &good,
            SHT_PROGBITS,
            none,
            malformed("its type is not SHT_NOTE"),
        ),
        (
            &good,
            SHT_NOTE,
            SHF_ALLOC,
            malformed("it is marked as loaded (SHF_ALLOC)"),
        ),
        (&twice, SHT_NOTE, none, malformed(no_note)),
        (&good[..100], SHT_NOTE, none, malformed(no_note)),
    ] {
        refused_for(&with_sections(&[(data, kind, flags)]), fault, errno);
    }
    for (version, algorithm, hash) in [(2, 0, 0), (1, 1, 0), (1, 0, 1)] {
        let kind = Kind {
            version,
            algorithm,
            hash,
        };
        let data = note(kind, &[0; 256]);
        let file = with_sections(&[(&data, SHT_NOTE, none)]);
        refused_for(&file, SignatureFault::Kind { kind }, Errno::EOPNOTSUPP);
    }
}

#[test]
fn a_second_signature_is_refused() {
    let data = note(Kind::RSA_SHA256, &[0; 256]);
    let section = (data.as_slice(), SHT_NOTE, SectionFlags(0));
    let refusal = refused(&with_sections(&[section, section]));
    assert_eq!(refusal.errno(), Errno::EINVAL);
    let fault = match refusal.problems.as_slice() {
        [Problem::Signature { fault, .. }] => fault,
        _ => panic!("{refusal}"),
    };
    assert!(
        matches!(fault, SignatureFault::Second { first, second } if first + 1 == *second),
        "{fault}"
    );
}

#[test]
fn where_signatures_are_not_enforced_the_log_tells() {
    let mut warning = engine(Enforcement::Warn);
    let loaded = warning.upload("test", &payload().bytes()).expect("loaded");
    assert_eq!(loaded.signer(), None);
    let lines = warning.host().memory().logged.clone();
    let expected = "test was loaded, but the payload is not signed: it has no section \
                    .note.Xen.signature (signatures are not enforced)";
    assert_eq!(lines, [expected]);

    let mut warning = engine(Enforcement::Warn);
    let loaded = warning.upload("test", &signed()).expect("loaded");
    assert_eq!(loaded.signer(), Some("vendor"));
    assert!(warning.host().memory().logged.is_empty());

    let data = note(Kind::RSA_SHA256, &[0; 256]);
    let section = (data.as_slice(), SHT_NOTE, SectionFlags(0));
    let file = with_sections(&[section, section]);
    let mut off = engine(Enforcement::Off);
    assert_eq!(off.upload("test", &file).expect("loaded").signer(), None);
    assert!(off.host().memory().logged.is_empty());
}

#[test]
fn a_locked_host_enforces_whatever_it_is_told() {
    use Enforcement::{Enforce, Off, Warn};
    for (told, keys, locked, expected) in [
        (None, false, false, Off),
        (None, true, false, Enforce),
        (Some(Off), true, false, Off),
        (Some(Warn), true, false, Warn),
        (Some(Enforce), false, false, Enforce),
        (Some(Off), true, true, Enforce),
        (Some(Warn), true, true, Enforce),
        (None, false, true, Enforce),
    ] {
        let decided = Enforcement::decide(told, keys, locked);
        assert_eq!(decided, expected, "{told:?}, {keys}, {locked}");
    }
}

/// The sections of a file: name, flags, kind, and contents.
fn sections(file: &[u8]) -> Vec<(String, object::SectionFlags, SectionKind, Vec<u8>)> {
    let file = object::File::parse(file).expect("an object");
    let section = |section: object::Section<'_, '_>| {
        let name = section.name().expect("a name").to_owned();
        let data = section.data().expect("contents").to_vec();
        (name, section.flags(), section.kind(), data)
    };
    file.sections().map(section).collect()
}

#[test]
fn signing_changes_nothing_but_the_names_and_the_note() {
    let (before, after) = (sections(&payload().bytes()), sections(&signed()));
    assert_eq!(after.len(), before.len() + 1);
    assert_eq!(after.last().map(|(name, ..)| name.as_str()), Some(SECTION));
    for (old, new) in before.iter().zip(&after) {
        assert_eq!((&old.0, &old.1, &old.2), (&new.0, &new.1, &new.2));
        let same = if old.0 == ".shstrtab" {
            new.3.starts_with(&old.3)
        } else {
            new.3 == old.3
        };
        assert!(same, "{}", old.0);
    }
}

#[test]
fn a_signature_is_replaced_by_one_of_the_same_size() {
    let again = sign(&signed(), &other()).expect("signed");
    assert_eq!(again.len(), signed().len());
    refused_for(&again, WRONG, Errno::EPERM);
    let back = sign(&again, &vendor()).expect("signed");
    assert_eq!(back, signed());
    let error = sign(&signed(), &large()).expect_err("another size");
    assert!(
        matches!(
            error,
            SignError::OtherSize {
                there: 256,
                wanted: 512
            }
        ),
        "{error}"
    );
}

#[test]
fn what_another_key_signed_is_not_taken_for_the_key_s() {
    let public = vendor().public("vendor").expect("a key");
    for signer in [other(), large()] {
        let unsigned = Unsigned::new(&payload().bytes(), 256).expect("room");
        let signature = signer.sign(unsigned.digest()).expect("signed");
        let error = unsigned.with(&signature, &public).expect_err("another's");
        assert!(matches!(error, SignError::Wrong(_)), "{error}");
    }
}

#[test]
fn keys_come_in_several_forms() {
    let key = PublicKey::read("vendor", key!("trusted/vendor.pem")).expect("a public key");
    assert_eq!((key.name(), key.bits()), ("vendor", 2048));
    assert_eq!(vendor().public("vendor").expect("the same"), key);
    let certified = PublicKey::read("large", key!("trusted/large.pem")).expect("a certificate");
    assert_eq!(large().public("large").expect("the same"), certified);
    let made = PrivateKey::generate(2048).expect("a new key");
    let (private, public) = made.to_pem().expect("in PEM");
    let read = PrivateKey::read(private.as_bytes()).expect("it reads its own");
    assert_eq!(
        read.public("new").expect("a key"),
        PublicKey::read("new", public.as_bytes()).expect("a key")
    );
}

#[test]
fn what_is_no_key_is_refused() {
    let public = |data: &[u8]| PublicKey::read("a key", data).expect_err("no key");
    assert!(matches!(public(b"text"), KeyError::NotPublic));
    assert!(matches!(public(key!("vendor.key")), KeyError::Private));
    let damaged = b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n";
    assert!(matches!(public(damaged), KeyError::Damaged(_)));
    let private = |data: &[u8]| PrivateKey::read(data).expect_err("no key");
    assert!(matches!(
        private(key!("trusted/vendor.pem")),
        KeyError::NotPrivate
    ));
    let encrypted =
        b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    assert!(matches!(private(encrypted), KeyError::Encrypted));
    for bits in [1024, 2047, 2049, 8192] {
        let made = PrivateKey::generate(bits);
        assert!(matches!(made, Err(KeyError::Bad(_))), "{bits}");
    }
}

#[test]
fn what_has_no_dates_is_not_taken_as_valid() {
    let validity = xsplice_signing::validity;
    let certificate = key!("trusted/large.pem");
    assert!(validity(certificate).expect("a certificate").is_some());
    let damaged = certificate[..certificate.len() / 2].to_vec();
    for bad in [
        &damaged[..],
        b"",
        b"nothing",
        b"-----BEGIN PRIVATE KEY-----\n",
    ] {
        assert!(validity(bad).is_err(), "{}", bad.escape_ascii());
    }
}
