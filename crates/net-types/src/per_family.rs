//! One value for each family, looked up by family.
//!
//! Invariant: there is always a value of each, so no look-up can fail. Iteration is in the order of [`Family::ALL`].

use std::ops::{Index, IndexMut};

use crate::Family;

/// One value for each family: `pair[Family::Ip]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PerFamily<T> {
    v4: T,
    v6: T,
}

impl<T> PerFamily<T> {
    /// From the value for IPv4 and the value for IPv6.
    pub const fn new(v4: T, v6: T) -> Self {
        PerFamily { v4, v6 }
    }

    /// Makes the value of each family.
    pub fn from_fn(mut make: impl FnMut(Family) -> T) -> Self {
        let v4 = make(Family::Ip);
        let v6 = make(Family::Ip6);
        PerFamily { v4, v6 }
    }

    /// Makes another value of each.
    pub fn map<U>(self, mut change: impl FnMut(Family, T) -> U) -> PerFamily<U> {
        let v4 = change(Family::Ip, self.v4);
        let v6 = change(Family::Ip6, self.v6);
        PerFamily { v4, v6 }
    }

    /// Borrows both.
    pub const fn as_ref(&self) -> PerFamily<&T> {
        PerFamily {
            v4: &self.v4,
            v6: &self.v6,
        }
    }

    /// Families with their values.
    pub fn iter(&self) -> std::array::IntoIter<(Family, &T), 2> {
        self.as_ref().into_iter()
    }

    /// Families with their values, to change them.
    pub fn iter_mut(&mut self) -> std::array::IntoIter<(Family, &mut T), 2> {
        [(Family::Ip, &mut self.v4), (Family::Ip6, &mut self.v6)].into_iter()
    }

    /// The values alone.
    pub fn values(&self) -> std::array::IntoIter<&T, 2> {
        [&self.v4, &self.v6].into_iter()
    }
}

impl<T> Index<Family> for PerFamily<T> {
    type Output = T;

    fn index(&self, family: Family) -> &T {
        match family {
            Family::Ip => &self.v4,
            Family::Ip6 => &self.v6,
        }
    }
}

impl<T> IndexMut<Family> for PerFamily<T> {
    fn index_mut(&mut self, family: Family) -> &mut T {
        match family {
            Family::Ip => &mut self.v4,
            Family::Ip6 => &mut self.v6,
        }
    }
}

impl<T> IntoIterator for PerFamily<T> {
    type Item = (Family, T);
    type IntoIter = std::array::IntoIter<(Family, T), 2>;

    fn into_iter(self) -> Self::IntoIter {
        [(Family::Ip, self.v4), (Family::Ip6, self.v6)].into_iter()
    }
}

impl<'a, T> IntoIterator for &'a PerFamily<T> {
    type Item = (Family, &'a T);
    type IntoIter = std::array::IntoIter<(Family, &'a T), 2>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_finds_its_own_value() {
        let mut widths = PerFamily::from_fn(Family::address_len);
        assert_eq!(widths, PerFamily::new(4, 16));
        widths[Family::Ip6] += 1;
        assert_eq!(
            widths.map(|family, width| (family.keyword(), width)),
            PerFamily::new(("ip", 4), ("ip6", 17))
        );
        for (family, width) in widths.iter_mut() {
            *width -= family.address_len();
        }
        let all = [(Family::Ip, 0), (Family::Ip6, 1)];
        assert_eq!(widths.into_iter().collect::<Vec<_>>(), all);
        assert_eq!(widths.values().sum::<usize>(), 1);
    }
}
