// SPDX-License-Identifier: MIT OR Apache-2.0

//! In-place sorting. The sort in `core` is faster, but uses up to 1600 bytes of
//! stack, and several kilobytes of code for each type.

/// Sorts `items` in O(n log n), or in O(n) if they are already sorted. Not stable.
pub(crate) fn sort<T: Copy>(items: &mut [T], is_less: impl Fn(&T, &T) -> bool) {
    if items.is_sorted_by(|a, b| !is_less(b, a)) {
        return;
    }
    for root in (0..items.len() / 2).rev() {
        sift(items, root, &is_less);
    }
    let mut heap = items;
    while let Some(last) = heap.len().checked_sub(1) {
        heap.swap(0, last);
        heap = heap.get_mut(..last).unwrap_or_default();
        sift(heap, 0, &is_less);
    }
}

/// Sorts pairs; not inlined, so that all lists of pairs share one copy.
#[inline(never)]
pub(crate) fn sort_pairs(pairs: &mut [(u64, u64)]) {
    sort(pairs, |a, b| a < b);
}

/// Sifts the item at `root` down a heap. It is nearly always small: the larger
/// children move up all the way first, then it moves back up, which halves the
/// comparisons (Wegener, "Bottom-up-heapsort").
fn sift<T: Copy>(heap: &mut [T], root: usize, is_less: impl Fn(&T, &T) -> bool) {
    let Some(item) = heap.get(root).copied() else {
        return;
    };
    let mut place = root;
    loop {
        let left = 2 * place + 1;
        let (child, larger) = match (heap.get(left), heap.get(left + 1)) {
            (Some(a), Some(b)) if is_less(a, b) => (left + 1, *b),
            (Some(a), _) => (left, *a),
            (None, _) => break,
        };
        put(heap, place, larger);
        place = child;
    }
    while place > root {
        let parent = (place - 1) / 2;
        match heap.get(parent) {
            Some(above) if is_less(above, &item) => put(heap, place, *above),
            _ => break,
        }
        place = parent;
    }
    put(heap, place, item);
}

fn put<T>(heap: &mut [T], place: usize, item: T) {
    if let Some(at) = heap.get_mut(place) {
        *at = item;
    }
}

#[cfg(test)]
mod tests {
    use super::sort;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_sorts(mut items: Vec<u8>) {
            let mut sorted = items.clone();
            sorted.sort_unstable();
            sort(&mut items, |a, b| a < b);
            prop_assert_eq!(items, sorted);
        }
    }
}
