// SPDX-License-Identifier: MIT OR Apache-2.0

//! Exponentiation of large numbers, modulo an odd number whose top bit is set.
//!
//! Numbers are words, least significant first, as many as the modulus has. `R` is the
//! smallest number with one word more. Products are Montgomery's, `a * b / R`, which
//! need no division.

use crate::{MOST_WORDS, SPACE};

/// `number` to the power of `2^squarings + 1`, modulo `modulus`. `None` if `number`,
/// most significant byte first, has another size than the modulus, or is not less.
pub(crate) fn power<'s>(
    number: &[u8],
    modulus: &[u64],
    squarings: u32,
    space: &'s mut [u64; SPACE],
) -> Option<&'s [u64]> {
    let (parts, _) = space.as_chunks_mut::<MOST_WORDS>();
    let [base, power, product] = parts else {
        return None;
    };
    let words = modulus.len();
    let base = base.get_mut(..words)?;
    let power = power.get_mut(..words)?;
    let product = product.get_mut(..words)?;
    let (rest, bytes) = number.as_rchunks::<8>();
    if !rest.is_empty() || bytes.len() != words {
        return None;
    }
    for (word, bytes) in base.iter_mut().zip(bytes.iter().rev()) {
        *word = u64::from_be_bytes(*bytes);
    }
    if !less(base, modulus) {
        return None;
    }
    let inverse = negated_inverse(*modulus.first()?);
    let mut multiply = |power: &mut [u64], factor: Option<&[u64]>| {
        let factor = factor.unwrap_or(power);
        product.fill(0);
        add_product(product, power, factor, modulus, inverse);
        power.copy_from_slice(product);
    };
    // R squared, which brings the base into Montgomery form: R, doubled once for each
    // word, and squared once for each bit of the number of bits in a word.
    negate(power, modulus);
    for _ in modulus {
        double(power, modulus);
    }
    for _ in 0..u64::BITS.ilog2() {
        multiply(power, None);
    }
    multiply(power, Some(base));
    for _ in 0..squarings {
        multiply(power, None);
    }
    // This product removes the factor R.
    multiply(power, Some(base));
    Some(power)
}

/// `R - modulus`.
fn negate(number: &mut [u64], modulus: &[u64]) {
    for (word, modulus) in number.iter_mut().zip(modulus) {
        *word = !modulus;
    }
    // An odd number's complement is even: adding 1 carries nothing.
    if let Some(first) = number.first_mut() {
        *first |= 1;
    }
}

/// Adds `number` to itself.
fn double(number: &mut [u64], modulus: &[u64]) {
    let mut carry = false;
    for word in number.iter_mut() {
        (*word, carry) = word.carrying_add(*word, carry);
    }
    reduce(number, carry, modulus);
}

/// Adds `a * b / R` to `sum`, which is 0. `inverse` belongs to the modulus' lowest word.
///
/// Each word of `b` adds a multiple of `a`, and a multiple of the modulus that makes the
/// lowest word 0, which is then dropped.
fn add_product(sum: &mut [u64], a: &[u64], b: &[u64], modulus: &[u64], inverse: u64) {
    let mut top = false;
    for &b in b {
        let mut words = a.iter().zip(modulus);
        let mut places = sum.iter_mut();
        let (Some((&a, &n)), Some(mut below)) = (words.next(), places.next()) else {
            return;
        };
        let (word, mut carry) = a.carrying_mul_add(b, *below, 0);
        let multiple = word.wrapping_mul(inverse);
        let (_, mut carry_of_modulus) = n.carrying_mul_add(multiple, word, 0);
        for ((&a, &n), place) in words.zip(places) {
            let word;
            (word, carry) = a.carrying_mul_add(b, *place, carry);
            (*below, carry_of_modulus) = n.carrying_mul_add(multiple, word, carry_of_modulus);
            below = place;
        }
        (*below, top) = carry.carrying_add(carry_of_modulus, top);
    }
    reduce(sum, top, modulus);
}

/// Subtracts the modulus from `number`, with the bit above it, if it is not less.
fn reduce(number: &mut [u64], top: bool, modulus: &[u64]) {
    if !top && less(number, modulus) {
        return;
    }
    let mut borrow = false;
    for (word, modulus) in number.iter_mut().zip(modulus) {
        (*word, borrow) = word.borrowing_sub(*modulus, borrow);
    }
}

fn less(number: &[u64], modulus: &[u64]) -> bool {
    number.iter().rev().lt(modulus.iter().rev())
}

/// The number that multiplied by `word`, which is odd, is -1 modulo 2^64.
fn negated_inverse(word: u64) -> u64 {
    // Correct in the lowest three bits, and in twice as many after each step.
    let mut inverse = word;
    for _ in 0..5 {
        inverse = inverse.wrapping_mul(2_u64.wrapping_sub(word.wrapping_mul(inverse)));
    }
    inverse.wrapping_neg()
}

#[cfg(test)]
mod tests {
    extern crate alloc;

    use super::*;
    use alloc::vec::Vec;
    use num_bigint::BigUint;
    use proptest::prelude::*;

    fn number(words: &[u64]) -> BigUint {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        BigUint::from_bytes_le(&bytes)
    }

    /// Words with carries at their limits are as frequent as others.
    fn word() -> impl Strategy<Value = u64> {
        prop_oneof![any::<u64>(), Just(0), Just(1), Just(u64::MAX)]
    }

    /// A modulus, and a number that is less.
    fn modulus_and_number() -> impl Strategy<Value = (Vec<u64>, Vec<u64>)> {
        let words = prop_oneof![1_usize..5, Just(MOST_WORDS)];
        let pair = words.prop_flat_map(|words| {
            let number = || prop::collection::vec(word(), words);
            (number(), number())
        });
        pair.prop_map(|(mut modulus, mut number)| {
            modulus[0] |= 1;
            *modulus.last_mut().expect("a word") |= 1 << 63;
            reduce(&mut number, false, &modulus);
            (modulus, number)
        })
    }

    proptest! {
        #[test]
        fn powers_are_those_of_another_implementation(
            (modulus, base) in modulus_and_number(),
            squarings in 0_u32..18,
        ) {
            let bytes: Vec<u8> = base.iter().rev().flat_map(|w| w.to_be_bytes()).collect();
            // Leftovers of another calculation make no difference.
            let mut space = [u64::MAX; SPACE];
            let found = power(&bytes, &modulus, squarings, &mut space).expect("it is less");
            let exponent = BigUint::from((1_u64 << squarings) + 1);
            let expected = number(&base).modpow(&exponent, &number(&modulus));
            prop_assert_eq!(number(found), expected);
        }

        #[test]
        fn numbers_that_are_not_less_or_of_other_sizes_have_no_power(
            (modulus, rest) in modulus_and_number(),
        ) {
            let bytes = |number: BigUint| {
                let mut bytes = number.to_bytes_le();
                bytes.resize(modulus.len() * 8, 0);
                bytes.reverse();
                bytes
            };
            let mut space = [0; SPACE];
            let most = bytes(number(&modulus) - 1_u32);
            prop_assert!(power(&most, &modulus, 1, &mut space).is_some());
            let equal = bytes(number(&modulus));
            prop_assert!(power(&equal, &modulus, 1, &mut space).is_none());
            let sum = number(&modulus) + number(&rest);
            if sum.bits() <= modulus.len() as u64 * 64 {
                prop_assert!(power(&bytes(sum), &modulus, 1, &mut space).is_none());
            }
            prop_assert!(power(&most[1..], &modulus, 1, &mut space).is_none());
            let longer = [&[0], most.as_slice()].concat();
            prop_assert!(power(&longer, &modulus, 1, &mut space).is_none());
        }
    }
}
