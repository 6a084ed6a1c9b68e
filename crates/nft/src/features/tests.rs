use super::*;
use crate::namespace::{in_namespace, load, nft};

fn probed() -> Features {
    Features::probe().expect("a probe")
}

#[test]
fn a_probe_leaves_the_ruleset_as_it_was() {
    in_namespace(|| {
        load("table ip others { chain c { type nat hook prerouting priority 0; }; }\n");
        let before = nft(&["list", "ruleset"], "").unwrap();
        let first = probed();
        assert_eq!(nft(&["list", "ruleset"], "").unwrap(), before);
        assert_eq!(probed(), first);
    });
}

#[test]
fn this_kernel_has_what_its_tables_need() {
    in_namespace(|| {
        let features = probed();
        for (feature, found) in features.iter() {
            eprintln!("{feature}: {found:?}");
        }
        for feature in [
            Feature::NatByMap,
            Feature::Masquerade,
            Feature::SymHash,
            Feature::RejectInNat,
            Feature::IntervalConcatenation,
            Feature::DynamicMaps,
            Feature::Comments,
        ] {
            assert!(features.has(feature), "{feature}");
        }
        let tables = crate::namespace::kernel(false).features();
        assert_eq!(features.has(Feature::TableOwner), tables.owner);
        assert_eq!(features.has(Feature::TablePersist), tables.persist);
    });
}

#[test]
fn a_refused_feature_leaves_the_other_trials_alone() {
    in_namespace(|| {
        let mut kernel = Kernel::connect(TRIAL_TABLE.into()).unwrap();
        let flags_nobody_knows = 1 << 30;
        let tried = named(&[0, flags_nobody_knows, 0, flags_nobody_knows, 1]);
        let trials = kernel
            .attempt_each(&tried, |flags, out| {
                out.trial_table(flags, 0, "");
                trial::add_chain(out, None, "");
            })
            .unwrap();
        let accepted: Vec<bool> = trials.iter().map(Result::is_ok).collect();
        assert_eq!(accepted, [true, false, true, false, true]);
        let refused = trials.iter().find_map(|trial| trial.as_ref().err());
        assert_eq!(
            refused.map(|answer| answer.errno),
            Some(Errno::EOPNOTSUPP as i32)
        );
        assert_eq!(nft(&["list", "ruleset"], "").unwrap(), "");
    });
}

#[test]
fn a_rule_at_a_hook_where_it_is_invalid_is_refused() {
    in_namespace(|| {
        let mut kernel = Kernel::connect(TRIAL_TABLE.into()).unwrap();
        // Hook postrouting: `reject` has no place there on any kernel.
        let refused = kernel
            .attempt(|out| {
                out.trial_table(1, 0, "");
                trial::add_chain(out, Some((4, 1000)), "");
                trial::add_reject(out);
            })
            .unwrap();
        assert_eq!(refused.unwrap_err().errno, Errno::EOPNOTSUPP as i32);
        assert_eq!(nft(&["list", "ruleset"], "").unwrap(), "");
    });
}

/// Fails on kernels that lack a feature, where each probe waits for a grace period.
#[test]
fn what_this_kernel_has_is_tried_without_a_refusal() {
    in_namespace(|| {
        let before = generation();
        let features = probed();
        let lacks = features.iter().any(|(_, found)| found.is_err());
        let transactions = generation().wrapping_sub(before);
        // All trials at once, and the end of the dormant table; what is refused makes no generation.
        assert!(lacks || transactions == 2, "{transactions} transactions");
    });
}

/// The number of the ruleset's generation.
fn generation() -> u32 {
    let mut kernel = Kernel::connect(TRIAL_TABLE.into()).unwrap();
    crate::Backend::generation(&mut kernel).unwrap().0
}

#[test]
fn a_foreign_table_of_a_trials_name_is_left_alone() {
    in_namespace(|| {
        let name = &named(&Feature::CHECKED)[0].1;
        load(&format!("table ip {name} {{ chain c {{ }}; }}\n"));
        let before = nft(&["list", "ruleset"], "").unwrap();
        assert!(!probed().has(Feature::CHECKED[0]));
        assert_eq!(nft(&["list", "ruleset"], "").unwrap(), before);
    });
}

#[test]
fn a_disabled_feature_is_missing_and_says_so() {
    in_namespace(|| {
        let features = probed().without(&[Feature::SymHash]);
        assert!(!features.has(Feature::SymHash));
        let missing = features.iter().filter_map(|(feature, found)| {
            found
                .err()
                .filter(|_| feature == Feature::SymHash)
                .map(ToString::to_string)
        });
        assert_eq!(missing.collect::<Vec<_>>(), ["disabled"]);
    });
}

#[test]
fn every_feature_is_found_by_its_name() {
    for feature in Feature::ALL {
        assert_eq!(Feature::from_name(feature.name()), Some(feature));
    }
    assert_eq!(Feature::from_name("teleportation"), None);
}
