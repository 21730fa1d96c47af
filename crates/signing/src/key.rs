// SPDX-License-Identifier: MIT OR Apache-2.0
//! Keys, and the files that hold them.

use getrandom::SysRng;
use rsa::Pkcs1v15Sign;
use rsa::pkcs1::{DecodeRsaPrivateKey as _, DecodeRsaPublicKey as _};
use rsa::pkcs8::der::zeroize::Zeroizing;
use rsa::pkcs8::der::{Decode as _, Encode as _, pem};
use rsa::pkcs8::{
    DecodePrivateKey as _, DecodePublicKey as _, EncodePrivateKey as _, EncodePublicKey as _,
    LineEnding,
};
use rsa::sha2::Sha256;
use rsa::traits::PublicKeyParts as _;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::SystemTime;
use x509_cert::Certificate;
use x509_cert::time::Time;
use xsplice_signature::{BadKey, Digest, EXPONENT, FEWEST_WORDS, Key, MOST_WORDS, SPACE};

/// Why a file holds no key that signs payloads.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// There is no key in it.
    #[error("neither a public key nor a certificate, in PEM or DER")]
    NotPublic,
    /// There is no private key in it.
    #[error("no private key in PEM")]
    NotPrivate,
    /// Only who has the key's password can sign with it.
    #[error("the key is encrypted; sign with --signer and a program that asks for its password")]
    Encrypted,
    /// It is to be given to nobody.
    #[error("this is a private key; pass the public key or the certificate")]
    Private,
    /// It is damaged, or not for RSA.
    #[error("not an RSA key, or a damaged one: {0}")]
    Damaged(String),
    /// Small exponents have deceived careless verifiers.
    #[error("the public exponent is not {EXPONENT}, the only one that is accepted")]
    Exponent,
    /// It cannot be used.
    #[error(transparent)]
    Bad(#[from] BadKey),
}

/// What is in PEM, by its label; `None` when it is not PEM.
fn label(data: &[u8]) -> Option<&str> {
    pem::decode_label(data).ok()
}

fn damaged(error: impl std::fmt::Display) -> KeyError {
    KeyError::Damaged(error.to_string())
}

/// A public key that Xen can verify signatures with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    name: String,
    modulus: Vec<u64>,
}

impl PublicKey {
    /// The key in `data`, a file with a public key or a certificate, in PEM or DER. A
    /// certificate's dates and issuer are not checked: it only holds the key; [`validity`]
    /// has the dates.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn read(name: &str, data: &[u8]) -> Result<Self, KeyError> {
        let key = match label(data) {
            Some("PUBLIC KEY") => {
                let text = String::from_utf8_lossy(data);
                rsa::PublicKey::from_public_key_pem(&text).map_err(damaged)?
            }
            Some("RSA PUBLIC KEY") => {
                let text = String::from_utf8_lossy(data);
                rsa::PublicKey::from_pkcs1_pem(&text).map_err(damaged)?
            }
            Some("CERTIFICATE") => {
                let chain = Certificate::load_pem_chain(data).map_err(damaged)?;
                certified(chain.first().ok_or(KeyError::NotPublic)?)?
            }
            Some(label) if label.ends_with("PRIVATE KEY") => return Err(KeyError::Private),
            Some(_) => return Err(KeyError::NotPublic),
            None => match Certificate::from_der(data) {
                Ok(certificate) => certified(&certificate)?,
                Err(_) => {
                    let key = rsa::PublicKey::from_public_key_der(data);
                    key.map_err(|_| KeyError::NotPublic)?
                }
            },
        };
        Self::new(name, &key)
    }

    fn new(name: &str, key: &rsa::PublicKey) -> Result<Self, KeyError> {
        // Numbers, their first byte not 0.
        let value = |bytes: &[u8]| {
            bytes
                .iter()
                .fold(0, |value, byte| value << 8 | u64::from(*byte))
        };
        let exponent = key.e_bytes();
        if exponent.len() > 8 || value(&exponent) != u64::from(EXPONENT) {
            return Err(KeyError::Exponent);
        }
        let modulus: Vec<u64> = key.n_bytes().rchunks(8).map(value).collect();
        Key::new(name, &modulus)?;
        Ok(Self {
            name: name.to_owned(),
            modulus,
        })
    }

    /// Its name: that of the file, as a rule.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The modulus, least significant word first.
    #[must_use]
    pub fn modulus(&self) -> &[u64] {
        &self.modulus
    }

    /// How many bits it has.
    #[must_use]
    pub fn bits(&self) -> usize {
        self.modulus.len() * 64
    }

    /// How many bytes a signature has.
    #[must_use]
    pub fn signature_size(&self) -> usize {
        size_of_val(self.modulus.as_slice())
    }

    /// Whether `signature` is this key's for what has this `digest`.
    #[must_use]
    pub fn has_signed(&self, digest: &Digest, signature: &[u8]) -> bool {
        let key = Key::new(&self.name, &self.modulus);
        key.is_ok_and(|key| key.has_signed(digest, signature, &mut [0; SPACE]))
    }
}

/// When the certificate in `data`, a file as [`PublicKey::read`] takes it, is valid;
/// `None` if there is only a key.
///
/// # Errors
/// [`KeyError`] when there is neither.
pub fn validity(data: &[u8]) -> Result<Option<RangeInclusive<SystemTime>>, KeyError> {
    let certificate = match label(data) {
        Some("CERTIFICATE") => {
            let chain = Certificate::load_pem_chain(data).map_err(damaged)?;
            chain.into_iter().next().ok_or(KeyError::NotPublic)?
        }
        Some("PUBLIC KEY" | "RSA PUBLIC KEY") => return Ok(None),
        Some(_) => return Err(KeyError::NotPublic),
        None => match Certificate::from_der(data) {
            Ok(certificate) => certificate,
            Err(_) => {
                let key = rsa::PublicKey::from_public_key_der(data);
                return key.map(|_| None).map_err(|_| KeyError::NotPublic);
            }
        },
    };
    let validity = certificate.tbs_certificate().validity();
    let moment = |time: Time| SystemTime::UNIX_EPOCH + time.to_unix_duration();
    Ok(Some(
        moment(validity.not_before)..=moment(validity.not_after),
    ))
}

/// The key in a certificate.
fn certified(certificate: &Certificate) -> Result<rsa::PublicKey, KeyError> {
    let key = certificate.tbs_certificate().subject_public_key_info();
    let key = key.to_der().map_err(damaged)?;
    rsa::PublicKey::from_public_key_der(&key).map_err(damaged)
}

/// A private key.
pub struct PrivateKey(rsa::PrivateKey);

impl PrivateKey {
    /// A new key with `bits` bits.
    ///
    /// # Errors
    /// [`KeyError`] when there is no key of this size, or no random numbers.
    pub fn generate(bits: usize) -> Result<Self, KeyError> {
        if !bits.is_multiple_of(64) || !(FEWEST_WORDS * 64..=MOST_WORDS * 64).contains(&bits) {
            return Err(BadKey::Size { bits }.into());
        }
        rsa::PrivateKey::new(&mut SysRng, bits)
            .map(Self)
            .map_err(damaged)
    }

    /// The key in `data`, a file in PEM.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn read(data: &[u8]) -> Result<Self, KeyError> {
        let text = || String::from_utf8_lossy(data);
        let key = match label(data) {
            Some("PRIVATE KEY") => rsa::PrivateKey::from_pkcs8_pem(&text()).map_err(damaged)?,
            Some("RSA PRIVATE KEY") => rsa::PrivateKey::from_pkcs1_pem(&text()).map_err(damaged)?,
            Some("ENCRYPTED PRIVATE KEY") => return Err(KeyError::Encrypted),
            _ => return Err(KeyError::NotPrivate),
        };
        Ok(Self(key))
    }

    /// The key in PEM (PKCS #8), and its public key (`SubjectPublicKeyInfo`).
    ///
    /// # Errors
    /// [`KeyError`] when it cannot be encoded.
    pub fn to_pem(&self) -> Result<(Zeroizing<String>, String), KeyError> {
        let private = self.0.to_pkcs8_pem(LineEnding::LF).map_err(damaged)?;
        let public = self.0.to_public_key().to_public_key_pem(LineEnding::LF);
        Ok((private, public.map_err(damaged)?))
    }

    /// Its public key.
    ///
    /// # Errors
    /// [`KeyError`] when Xen could not verify its signatures.
    pub fn public(&self, name: &str) -> Result<PublicKey, KeyError> {
        PublicKey::new(name, &self.0.to_public_key())
    }

    /// Its signature of what has this `digest`.
    ///
    /// # Errors
    /// [`KeyError`] when there are no random numbers, which hide the key from who
    /// measures how long this takes.
    pub fn sign(&self, digest: &Digest) -> Result<Vec<u8>, KeyError> {
        let padding = Pkcs1v15Sign::new::<Sha256>();
        let signed = self.0.sign_with_rng(&mut SysRng, padding, digest);
        signed.map_err(damaged)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey")
    }
}
