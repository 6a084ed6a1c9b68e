//! A sorted list whose items are counted: one Service may be in it once for each of thousands of frontends.

use smallvec::SmallVec;

/// Most lists have one item.
#[derive(Debug)]
pub(super) struct Counted<T>(SmallVec<[(T, u32); 1]>);

impl<T> Default for Counted<T> {
    fn default() -> Self {
        Counted(SmallVec::new())
    }
}

impl<T: Ord + Clone> Counted<T> {
    fn place(&self, item: &T) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| known.cmp(item))
    }

    /// Counts an item once more.
    pub(super) fn add(&mut self, item: &T) {
        match self.place(item) {
            Ok(at) => {
                if let Some((_, count)) = self.0.get_mut(at) {
                    *count += 1;
                }
            }
            Err(at) => self.0.insert(at, (item.clone(), 1)),
        }
    }

    /// Counts an item once less; it goes with its last count.
    pub(super) fn remove(&mut self, item: &T) {
        let Ok(at) = self.place(item) else { return };
        match self.0.get_mut(at) {
            Some((_, count)) if *count > 1 => *count -= 1,
            _ => drop(self.0.remove(at)),
        }
    }

    /// The least item.
    pub(super) fn first(&self) -> Option<&T> {
        self.iter().next()
    }

    /// The items, each once.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|(item, _)| item)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_stays_until_its_last_count_is_removed() {
        let mut counted = Counted::default();
        for item in [3, 1, 3, 2, 1] {
            counted.add(&item);
        }
        assert_eq!(counted.iter().collect::<Vec<_>>(), [&1, &2, &3]);
        counted.remove(&1);
        assert_eq!(counted.first(), Some(&1));
        counted.remove(&1);
        counted.remove(&9);
        assert_eq!(counted.iter().collect::<Vec<_>>(), [&2, &3]);
        for item in [2, 3, 3] {
            counted.remove(&item);
        }
        assert!(counted.is_empty());
    }
}
