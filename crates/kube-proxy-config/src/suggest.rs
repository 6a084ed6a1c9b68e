//! The known name that is closest to an unknown one.

/// The closest of the names, if it is close: at most a third of its letters differ.
pub(crate) fn closest<'n>(given: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    const LONGEST: usize = 64;
    if given.chars().count() > LONGEST {
        return None;
    }
    let wanted = given.to_lowercase();
    let distance = |name: &'n str| (strsim::osa_distance(&wanted, &name.to_lowercase()), name);
    let (distance, name) = names.map(distance).min_by_key(|(distance, _)| *distance)?;
    (distance * 3 <= name.len().max(3)).then_some(name)
}
