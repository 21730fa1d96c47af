// SPDX-License-Identifier: MIT OR Apache-2.0

//! Fallible allocation, and messages that need none.
//!
//! A hypervisor must not crash because a list could not grow. The usual operations of
//! `alloc` abort on allocation failure; these return [`NoMemory`]. For Xen, `alloc`
//! is compiled without the aborting ones (`no_global_oom_handling`), so none can end
//! up in a hypervisor.
//!
//! * **Trusts** the global allocator.
//! * **Guarantees** that a failed operation has changed nothing.
#![no_std]

extern crate alloc;

mod message;

pub use message::Message;

use alloc::alloc::{Layout, alloc};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::mem::MaybeUninit;
use core::{fmt, ptr};

/// The examples in the README are run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// Out of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMemory;

impl fmt::Display for NoMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("there is no memory left")
    }
}

impl core::error::Error for NoMemory {}

/// Adds `item` to `list`.
///
/// # Errors
/// [`NoMemory`]; `item` is then dropped.
#[inline(always)]
pub fn push<T>(list: &mut Vec<T>, item: T) -> Result<(), NoMemory> {
    if list.len() == list.capacity() {
        list.try_reserve(1).map_err(|_| NoMemory)?;
    }
    put(list, item);
    Ok(())
}

/// Adds `item` to `list` if it has spare capacity; otherwise drops it.
#[inline(always)]
fn put<T>(list: &mut Vec<T>, item: T) {
    if let Some(place) = list.spare_capacity_mut().first_mut() {
        place.write(item);
        let length = list.len() + 1;
        // SAFETY: there is room for one more, and it was just written.
        unsafe { list.set_len(length) };
    }
}

/// Collects `items` into a list.
///
/// # Errors
/// [`NoMemory`]; items already taken are then dropped.
pub fn collect<T>(items: impl IntoIterator<Item = T>) -> Result<Vec<T>, NoMemory> {
    let items = items.into_iter();
    let mut list = with_room(items.size_hint().0)?;
    for item in items {
        push(&mut list, item)?;
    }
    Ok(list)
}

/// An empty list with room for `count` items.
///
/// # Errors
/// [`NoMemory`].
pub fn with_room<T>(count: usize) -> Result<Vec<T>, NoMemory> {
    let mut list = Vec::new();
    list.try_reserve_exact(count).map_err(|_| NoMemory)?;
    Ok(list)
}

/// A list of `count` times `value`.
///
/// # Errors
/// [`NoMemory`].
pub fn filled<T: Copy>(value: T, count: usize) -> Result<Vec<T>, NoMemory> {
    let mut list = with_room(count)?;
    for place in list.spare_capacity_mut().iter_mut().take(count) {
        place.write(value);
    }
    // SAFETY: the capacity is at least `count`, and all items were just written.
    unsafe { list.set_len(count) };
    Ok(list)
}

/// A copy of `items`.
///
/// # Errors
/// [`NoMemory`].
pub fn copy<T: Copy>(items: &[T]) -> Result<Vec<T>, NoMemory> {
    let mut list = with_room(items.len())?;
    append(&mut list, items)?;
    Ok(list)
}

/// Adds copies of `items` to `list`.
///
/// # Errors
/// [`NoMemory`].
pub fn append<T: Copy>(list: &mut Vec<T>, items: &[T]) -> Result<(), NoMemory> {
    list.try_reserve(items.len()).map_err(|_| NoMemory)?;
    let length = list.len() + items.len();
    // SAFETY: the spare capacity is large enough, and `items`, a borrowed slice, does
    // not overlap it.
    unsafe {
        let end = list.as_mut_ptr().add(list.len());
        ptr::copy_nonoverlapping(items.as_ptr(), end, items.len());
        list.set_len(length);
    }
    Ok(())
}

/// Memory for a value of nonzero size; initialise it with [`Box::write`].
///
/// # Errors
/// [`NoMemory`].
#[inline]
pub fn place<T>() -> Result<Box<MaybeUninit<T>>, NoMemory> {
    const { assert!(size_of::<T>() != 0) };
    // SAFETY: the size is not 0.
    let place = unsafe { alloc(Layout::new::<T>()) }.cast::<MaybeUninit<T>>();
    if place.is_null() {
        return Err(NoMemory);
    }
    // SAFETY: it is new memory of the global allocator with the layout of `T`,
    // and need not be initialised.
    Ok(unsafe { Box::from_raw(place) })
}

/// Room for more items in a list, reserved before the list changes, so that using it
/// cannot fail. Dropping it leaves the list unchanged.
#[derive(Debug)]
pub struct Room<T> {
    /// Replaces a list that is full.
    larger: Option<Vec<T>>,
}

impl<T> Room<T> {
    /// Room for `count` more items in `list`.
    ///
    /// # Errors
    /// [`NoMemory`].
    pub fn new(list: &Vec<T>, count: usize) -> Result<Self, NoMemory> {
        let (needed, capacity) = (list.len().saturating_add(count), list.capacity());
        let larger = match capacity < needed {
            // At least double the capacity, so that a growing list is rarely moved.
            true => Some(with_room(needed.max(capacity.saturating_mul(2)))?),
            false => None,
        };
        Ok(Self { larger })
    }

    /// Adds `items` to the list that this was made for, at most as many as were
    /// reserved.
    pub fn append(self, list: &mut Vec<T>, items: impl IntoIterator<Item = T>) {
        if let Some(mut larger) = self.larger {
            for item in list.drain(..) {
                put(&mut larger, item);
            }
            *list = larger;
        }
        for item in items {
            put(list, item);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    #[test]
    fn lists_hold_what_was_put_into_them() {
        let mut list = collect((0..5).filter(|n| n % 2 == 0)).unwrap();
        push(&mut list, 6).unwrap();
        assert_eq!(list, [0, 2, 4, 6]);
        assert_eq!(copy(&list), Ok(list));
        assert_eq!(filled(7, 3), Ok(vec![7; 3]));
        assert_eq!(filled(7_u8, usize::MAX), Err(NoMemory));
        assert_eq!(Box::write(place().unwrap(), 1), Box::new(1));
    }

    #[test]
    fn room_is_limited_to_the_reserved_count() {
        let mut list = vec![Box::new(1)];
        let room = Room::new(&list, 2).unwrap();
        room.append(&mut list, [2, 3].map(Box::new));
        assert_eq!(list, [1, 2, 3].map(Box::new));
        let capacity = list.capacity();
        let none = capacity - list.len();
        let room = Room::new(&list, none).unwrap();
        room.append(&mut list, (0..none).map(|_| Box::new(4)));
        assert_eq!((list.len(), list.capacity()), (capacity, capacity));
    }
}
