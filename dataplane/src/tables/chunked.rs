//! A persistent array: a directory of fixed-size chunks, each behind an `Arc`. Cloning it is one reference count;
//! setting an element copies the directory and one chunk, unless this clone already owns them alone. Reading is two
//! loads, the first from a directory small enough to stay in cache. It never shrinks. Chunks it grew past are one chunk.

use std::sync::Arc;

/// See the module. `N` weighs the copy of a chunk against the copy of the directory.
pub(super) struct Chunked<T, const N: usize> {
    chunks: Arc<[Arc<[T; N]>]>,
}

impl<T, const N: usize> Clone for Chunked<T, N> {
    fn clone(&self) -> Self {
        Self {
            chunks: Arc::clone(&self.chunks),
        }
    }
}

impl<T: Clone + Default, const N: usize> Chunked<T, N> {
    /// An array without elements.
    pub(super) fn new() -> Self {
        Self { chunks: Arc::new([]) }
    }

    /// The element at `index`, if the array reaches that far.
    #[inline]
    pub(super) fn get(&self, index: usize) -> Option<&T> {
        self.chunks.get(index / N).map(|chunk| &chunk[index % N])
    }

    /// Replaces the element at `index`; elements between the old end and it become the default.
    pub(super) fn set(&mut self, index: usize, value: T) {
        let chunk = index / N;
        if chunk >= self.chunks.len() {
            let fresh = Arc::new(std::array::from_fn(|_| T::default()));
            let fresh = std::iter::repeat_n(fresh, chunk + 1 - self.chunks.len());
            self.chunks = self.chunks.iter().cloned().chain(fresh).collect();
        }
        Arc::make_mut(&mut Arc::make_mut(&mut self.chunks)[chunk])[index % N] = value;
    }

    /// Every element in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    /// Memory held by the directory and the chunks, not by what the elements point to.
    pub(super) fn bytes(&self) -> usize {
        let again = self
            .chunks
            .windows(2)
            .filter(|pair| Arc::ptr_eq(&pair[0], &pair[1]));
        let chunks = self.chunks.len() - again.count();
        size_of_val(&*self.chunks) + chunks * (2 * size_of::<usize>() + size_of::<[T; N]>())
    }

    /// How many chunks this array and `other` do not share.
    #[cfg(test)]
    pub(super) fn unshared(&self, other: &Self) -> usize {
        let longer = self.chunks.len().max(other.chunks.len());
        let same = |i: usize| matches!((self.chunks.get(i), other.chunks.get(i)), (Some(a), Some(b)) if Arc::ptr_eq(a, b));
        (0..longer).filter(|&i| !same(i)).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_an_element_copies_its_chunk_and_shares_the_rest() {
        let mut old = Chunked::<u32, 4>::new();
        for i in 0..12 {
            old.set(i, i as u32);
        }
        let mut new = old.clone();
        assert_eq!(new.unshared(&old), 0);
        new.set(5, 50);
        new.set(6, 60);
        assert_eq!(new.unshared(&old), 1);
        assert_eq!(
            (old.get(5), new.get(5), new.get(7)),
            (Some(&5), Some(&50), Some(&7))
        );
    }

    #[test]
    fn an_array_grows_to_the_element_that_is_set() {
        let mut array = Chunked::<u32, 4>::new();
        assert_eq!(array.get(0), None);
        array.set(9, 9);
        assert_eq!(
            (array.get(0), array.get(9), array.get(12)),
            (Some(&0), Some(&9), None)
        );
        assert_eq!(array.iter().count(), 12);
    }

    #[test]
    fn chunks_that_were_grown_past_take_no_room_and_are_their_own_once_set() {
        let mut array = Chunked::<u64, 512>::new();
        array.set(512 * 100, 1);
        assert!(array.bytes() < 3 * 512 * 8, "{}", array.bytes());
        array.set(0, 7);
        assert_eq!(
            (array.get(0), array.get(512), array.get(512 * 100)),
            (Some(&7), Some(&0), Some(&1))
        );
    }
}
