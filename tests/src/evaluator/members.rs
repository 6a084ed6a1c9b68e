//! Sets with their elements.
//!
//! Invariant: what the kernel would refuse (a key of another width, an element twice, ranges that overlap) is an error.

use nft::{Data, DataField, Family, Set, SetKind};
use rustc_hash::FxHashMap;

/// A set with its elements.
pub(super) struct Members<'a> {
    pub(super) set: &'a Set,
    pub(super) key_len: usize,
    /// Widths of the parts of a key.
    parts: Vec<usize>,
    pub(super) elements: FxHashMap<&'a [u8], &'a Data>,
    ranges: Vec<(&'a [u8], &'a [u8])>,
}

impl<'a> Members<'a> {
    pub(super) fn new(
        set: &'a Set,
        family: Family,
        elements: &'a [nft::Element],
    ) -> Result<Self, String> {
        let key_len = set.key_len(family);
        let parts = match set.key.as_slice() {
            [one] => vec![one.len(family)],
            many => many.iter().map(|field| field.padded_len(family)).collect(),
        };
        let mut members = Members {
            set,
            key_len,
            parts,
            elements: FxHashMap::default(),
            ranges: Vec::new(),
        };
        for element in elements {
            let key = element.key.as_slice();
            if key.len() != key_len {
                return Err(format!(
                    "element {:?} of {}: key is not {key_len} bytes",
                    element.key, set.name
                ));
            }
            if set.interval {
                let last = element.last.as_ref().map_or(key, |last| last.as_slice());
                members.ranges.push((key, last));
            } else if members.elements.insert(key, &element.data).is_some() {
                return Err(format!(
                    "element {:?} of {} occurs twice",
                    element.key, set.name
                ));
            }
        }
        if matches!(set.kind, SetKind::Dynamic(_)) && !elements.is_empty() {
            return Err(format!(
                "elements of {} are written by packets alone",
                set.name
            ));
        }
        members.ranges.sort_unstable();
        for (i, one) in members.ranges.iter().enumerate() {
            let mut later = members.ranges[i + 1..].iter();
            // Ranges of one part are sorted, so the next one is enough. Ranges of several parts may overlap any other.
            let count = if members.parts.len() == 1 {
                1
            } else {
                usize::MAX
            };
            if let Some(other) = later.by_ref().take(count).find(|o| members.overlap(one, o)) {
                return Err(format!(
                    "ranges of {} overlap: {one:?}, {other:?}",
                    set.name
                ));
            }
        }
        Ok(members)
    }

    /// Length of the data that packets write into this map, in bytes.
    pub(super) fn written_len(&self, family: Family) -> Result<usize, String> {
        let SetKind::Dynamic(fields) = &self.set.kind else {
            return Err(format!("{} cannot be updated", self.set.name));
        };
        let len = |field: &DataField| match field {
            DataField::Address => family.address_len(),
            DataField::Port | DataField::Group => 4,
        };
        Ok(fields.iter().map(len).sum())
    }

    /// The element's data; `Data::None` for ranges. A key is in a range if each of its parts is.
    pub(super) fn get(&self, key: &[u8]) -> Option<&'a Data> {
        if self.set.interval {
            let is_inside = |range: &(&[u8], &[u8])| self.overlap(range, &(key, key));
            return self.ranges.iter().any(is_inside).then_some(&Data::None);
        }
        self.elements.get(key).copied()
    }

    /// Whether some key is in both ranges.
    fn overlap(&self, one: &(&[u8], &[u8]), other: &(&[u8], &[u8])) -> bool {
        let mut start = 0;
        self.parts.iter().all(|len| {
            let part = start..start + len;
            start += len;
            one.0[part.clone()] <= other.1[part.clone()] && other.0[part.clone()] <= one.1[part]
        })
    }
}
