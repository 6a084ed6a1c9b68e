//! A sorted set whose items are counted: one Service may be in it once for each of thousands of frontends, and thousands of
//! Services may claim one frontend.

use std::collections::BTreeMap;

/// Most sets have one item.
#[derive(Debug, Default)]
pub(super) enum Counted<T> {
    #[default]
    None,
    One(T, u32),
    Many(BTreeMap<T, u32>),
}

impl<T: Ord + Clone> Counted<T> {
    /// Counts an item once more.
    pub(super) fn add(&mut self, item: &T) {
        *self = match std::mem::take(self) {
            Counted::None => Counted::One(item.clone(), 1),
            Counted::One(known, count) if known == *item => Counted::One(known, count + 1),
            Counted::One(known, count) => Counted::Many([(known, count), (item.clone(), 1)].into()),
            Counted::Many(mut items) => {
                *items.entry(item.clone()).or_default() += 1;
                Counted::Many(items)
            }
        };
    }

    /// Counts an item once less; it goes with its last count.
    pub(super) fn remove(&mut self, item: &T) {
        *self = match std::mem::take(self) {
            Counted::One(known, count) if known == *item => match count {
                0 | 1 => Counted::None,
                _ => Counted::One(known, count - 1),
            },
            Counted::Many(mut items) => {
                if let Some(count) = items.get_mut(item) {
                    *count -= 1;
                    if *count == 0 {
                        items.remove(item);
                    }
                }
                match items.len() {
                    1 => items
                        .pop_first()
                        .map_or(Counted::None, |(last, count)| Counted::One(last, count)),
                    _ => Counted::Many(items),
                }
            }
            unchanged => unchanged,
        };
    }

    /// The least item.
    pub(super) fn first(&self) -> Option<&T> {
        match self {
            Counted::None => None,
            Counted::One(item, _) => Some(item),
            Counted::Many(items) => items.first_key_value().map(|(item, _)| item),
        }
    }

    /// The items, each once, in their order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        let (one, many) = match self {
            Counted::None => (None, None),
            Counted::One(item, _) => (Some(item), None),
            Counted::Many(items) => (None, Some(items.keys())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first().is_none()
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
