// SPDX-License-Identifier: MIT OR Apache-2.0
//! Signatures that others made, right ones and forged ones.

use sha2::{Digest as _, Sha256};
use xsplice_signature::{BadKey, Key, SPACE, digest};

/// One signature, and what there is to say about it.
struct Vector<'a> {
    result: &'a str,
    message: Vec<u8>,
    signature: Vec<u8>,
    says: String,
}

/// A key and what is said to be signed with it.
struct Group<'a> {
    exponent: &'a str,
    modulus: Vec<u64>,
    vectors: Vec<Vector<'a>>,
}

fn bytes(hex: &str) -> Vec<u8> {
    if hex == "-" {
        return Vec::new();
    }
    assert_eq!(hex.len() % 2, 0, "{hex}");
    let digits = (0..hex.len()).step_by(2);
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("digits");
    digits.map(byte).collect()
}

/// The words of a number, least significant first.
fn words(number: &[u8]) -> Vec<u64> {
    let first = number.iter().position(|byte| *byte != 0);
    let number = &number[first.unwrap_or(number.len())..];
    let words = number.rchunks(8);
    words
        .map(|word| {
            word.iter()
                .fold(0, |value, byte| value << 8 | u64::from(*byte))
        })
        .collect()
}

fn groups(text: &str) -> Vec<Group<'_>> {
    let mut groups = Vec::<Group<'_>>::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<&str> = line.splitn(5, ' ').collect();
        match fields[..] {
            ["key", bits, exponent, modulus] => {
                let modulus = words(&bytes(modulus));
                assert_eq!(modulus.len() * 64, bits.parse().expect("a number"));
                groups.push(Group {
                    exponent,
                    modulus,
                    vectors: Vec::new(),
                });
            }
            [result, number, message, signature, comment] => {
                let group = groups.last_mut().expect("a key");
                let bits = group.modulus.len() * 64;
                group.vectors.push(Vector {
                    result,
                    message: bytes(message),
                    signature: bytes(signature),
                    says: format!("{bits} bits, number {number}: {comment}"),
                });
            }
            _ => panic!("{line}"),
        }
    }
    groups
}

/// Whether the key has signed what the vector says.
fn accepted(key: &Key<'_>, vector: &Vector<'_>) -> bool {
    let digest = Sha256::digest(&vector.message).into();
    key.has_signed(&digest, &vector.signature, &mut [0; SPACE])
}

/// Checks all; how many were accepted and how many refused.
fn check(text: &str) -> (usize, usize) {
    let (mut good, mut bad) = (0, 0);
    for group in groups(text) {
        let key = Key::new("a key", &group.modulus).expect("a key");
        for vector in &group.vectors {
            // There is no verifier for small exponents, and one encoding, not two.
            let expected = vector.result == "valid" && group.exponent == "010001";
            assert_eq!(accepted(&key, vector), expected, "{}", vector.says);
            *if expected { &mut good } else { &mut bad } += 1;
        }
    }
    (good, bad)
}

#[test]
fn wycheproof() {
    let counts = check(include_str!("vectors/wycheproof.txt"));
    assert_eq!(counts, (15, 321));
}

#[test]
fn openssl() {
    let counts = check(include_str!("vectors/openssl.txt"));
    assert_eq!(counts, (6, 9));
}

#[test]
fn every_bit_of_a_signature_counts() {
    for group in groups(include_str!("vectors/openssl.txt")) {
        let key = Key::new("a key", &group.modulus).expect("a key");
        let [first, second, ..] = group.vectors.as_slice() else {
            panic!("two signatures")
        };
        let digest = |vector: &Vector<'_>| Sha256::digest(&vector.message).into();
        let mut space = [0; SPACE];
        assert!(key.has_signed(&digest(first), &first.signature, &mut space));
        assert!(!key.has_signed(&digest(second), &first.signature, &mut space));
        for bit in 0..first.signature.len() * 8 {
            let mut other = first.signature.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(
                !key.has_signed(&digest(first), &other, &mut space),
                "bit {bit}"
            );
        }
        for size in 0..first.signature.len() {
            let short = &first.signature[..size];
            assert!(
                !key.has_signed(&digest(first), short, &mut space),
                "{size} bytes"
            );
        }
    }
}

#[test]
fn keys_of_other_sizes_are_none() {
    let top = 1_u64 << 63;
    let modulus = |words: usize, last: u64| {
        let mut modulus = vec![1; words];
        modulus[words - 1] = last;
        modulus
    };
    for (words, last, error) in [
        (16, top, Some(BadKey::Size { bits: 1024 })),
        (31, top, Some(BadKey::Size { bits: 1984 })),
        (32, top, None),
        (32, top - 1, Some(BadKey::Size { bits: 2047 })),
        (33, 1, Some(BadKey::Size { bits: 2049 })),
        (48, top, None),
        (64, top, None),
        (65, top, Some(BadKey::Size { bits: 4160 })),
    ] {
        let modulus = modulus(words, last);
        assert_eq!(
            Key::new("a key", &modulus).err(),
            error,
            "{words}, {last:#x}"
        );
    }
    let mut even = modulus(32, top);
    even[0] = 2;
    assert_eq!(Key::new("a key", &even), Err(BadKey::Even));
    assert_eq!(Key::new("a key", &[]), Err(BadKey::Size { bits: 0 }));
}

#[test]
fn the_digest_is_the_file_s_without_its_signature() {
    let file: Vec<u8> = (0..1000_u32)
        .map(|byte| byte.to_le_bytes()[0] | 1)
        .collect();
    for range in [0..0, 0..1000, 100..356, 488..1000, 1000..1000] {
        let mut zeroed = file.clone();
        zeroed[range.clone()].fill(0);
        let expected: [u8; 32] = Sha256::digest(&zeroed).into();
        assert_eq!(digest(&file, range.clone()), Some(expected), "{range:?}");
    }
    for range in [900..1001, 1001..1001, 1001..1002] {
        assert_eq!(digest(&file, range.clone()), None, "{range:?}");
    }
}
