//! What the running kernel can do, found out by trying, never by its version: distributions backport features to old
//! kernels and omit modules from new ones.
//!
//! Owns the list of features and how each is tried. All trials are one batch, each on a table of its own, so that no refusal
//! leads to another. Most of these tables are deleted in the same batch. What the kernel checks only when it commits, or
//! silently ignores, is tried on a table that is read back before it is deleted: dormant, so that no packet ever reaches it.
//! A kernel that refuses one of the trials carries out none of them; then that table is tried in batches of its own. The
//! fallback for a missing feature is left to its users.
//!
//! Invariant: after [`Features::probe`] the ruleset is what it was, and no connection was touched.

use std::collections::BTreeMap;
use std::fmt;

use netlink::{Answer, Reply, flag};
use nix::errno::Errno;

use crate::kernel::{Kernel, TableFeatures, delete_table, named};
use crate::model::Family;
use crate::transaction::CommitError;
use crate::wire::abi::{conntrack, message};
use crate::wire::encode::TRIAL_TABLE;

#[cfg(test)]
mod tests;
mod trial;

/// Something that not every kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Feature {
    /// Tables that belong to a socket (Linux 5.12).
    TableOwner,
    /// Owned tables that outlive their socket (Linux 6.9).
    TablePersist,
    /// Destination NAT to address and port from a map (Linux 4.16, CONFIG_NFT_NAT).
    NatByMap,
    /// `masquerade` (CONFIG_NFT_MASQ).
    Masquerade,
    /// `symhash` (Linux 4.16, CONFIG_NFT_HASH).
    SymHash,
    /// `reject` in a chain of type nat at prerouting (Linux 5.9, CONFIG_NFT_REJECT_IPV4).
    RejectInNat,
    /// Sets whose keys are a concatenation with ranges in it (Linux 5.6).
    IntervalConcatenation,
    /// Maps that rules write to, with time-outs (CONFIG_NFT_DYNSET is part of nf_tables since Linux 4.14).
    DynamicMaps,
    /// `fib` (CONFIG_NFT_FIB_IPV4).
    Fib,
    /// Comments on tables and chains (Linux 5.10).
    Comments,
    /// Deletion of all connections that match a filter (Linux 6.11, CONFIG_NF_CT_NETLINK).
    ConntrackFilter,
}

impl Feature {
    /// All of them, in the order of reports.
    pub const ALL: [Feature; 11] = [
        Feature::TableOwner,
        Feature::TablePersist,
        Feature::NatByMap,
        Feature::Masquerade,
        Feature::SymHash,
        Feature::RejectInNat,
        Feature::IntervalConcatenation,
        Feature::DynamicMaps,
        Feature::Fib,
        Feature::Comments,
        Feature::ConntrackFilter,
    ];

    /// Those whose messages the kernel refuses where it lacks them, without carrying them out.
    const CHECKED: [Feature; 8] = [
        Feature::TableOwner,
        Feature::TablePersist,
        Feature::NatByMap,
        Feature::Masquerade,
        Feature::SymHash,
        Feature::IntervalConcatenation,
        Feature::DynamicMaps,
        Feature::Fib,
    ];

    /// A short name without spaces.
    pub const fn name(self) -> &'static str {
        match self {
            Feature::TableOwner => "table-owner",
            Feature::TablePersist => "table-persist",
            Feature::NatByMap => "nat-by-map",
            Feature::Masquerade => "masquerade",
            Feature::SymHash => "symhash",
            Feature::RejectInNat => "reject-in-nat",
            Feature::IntervalConcatenation => "interval-concatenation",
            Feature::DynamicMaps => "dynamic-maps",
            Feature::Fib => "fib",
            Feature::Comments => "comments",
            Feature::ConntrackFilter => "conntrack-filter",
        }
    }

    /// The feature of this name.
    pub fn from_name(name: &str) -> Option<Feature> {
        Feature::ALL
            .into_iter()
            .find(|feature| feature.name() == name)
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a feature is missing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// The kernel refused the trial.
    #[error("the kernel refuses it: {errno}{}", message.as_ref().map(|m| format!(" ({m})")).unwrap_or_default())]
    Refused {
        /// Error number.
        errno: Errno,
        /// Text of the kernel's extended acknowledgement.
        message: Option<String>,
    },
    /// The kernel accepted the trial and did nothing.
    #[error("the kernel ignores it")]
    Ignored,
    /// [`Features::without`] says so.
    #[error("disabled")]
    Disabled,
}

impl From<Answer> for Missing {
    fn from(answer: Answer) -> Self {
        Missing::Refused {
            errno: Errno::from_raw(answer.errno),
            message: answer.message,
        }
    }
}

/// Every feature, with the reason where it is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Features(BTreeMap<Feature, Trial>);

/// Result of a trial.
type Trial = Result<(), Missing>;

impl Features {
    /// Tries everything, in the network namespace of the calling thread. Modules of the kernel are loaded as rules would load
    /// them.
    ///
    /// Errors: [`CommitError::Netlink`]; EPERM without CAP_NET_ADMIN in this network namespace.
    pub fn probe() -> Result<Features, CommitError> {
        Features::probe_with(&mut Kernel::connect(TRIAL_TABLE.into())?)
    }

    /// Tries everything through a socket.
    pub(crate) fn probe_with(kernel: &mut Kernel) -> Result<Features, CommitError> {
        let mut items = named(&Feature::CHECKED.map(Some));
        items.push((None, TRIAL_TABLE.to_owned()));
        let trials = kernel.attempt_each(&items, |feature, out| match feature {
            Some(feature) => trial::write(feature, out),
            None => {
                trial::add_dormant(out, true);
                trial::add_reject(out);
            }
        })?;
        let has_everything = trials.iter().all(Result::is_ok);
        let trials = trials.into_iter().map(|trial| trial.map_err(Missing::from));
        let mut found: BTreeMap<Feature, Trial> =
            Feature::CHECKED.into_iter().zip(trials).collect();
        found.insert(Feature::ConntrackFilter, conntrack_filter(kernel)?);
        let owner = matches!(found.get(&Feature::TableOwner), Some(Ok(())));
        let (comments, reject) = match has_everything {
            true => (comments(kernel)?, Ok(())),
            false => in_a_table(kernel, owner)?,
        };
        // Nothing can be done about a refusal; an owned table is deleted with the socket.
        let _ = kernel.attempt(delete_table)?;
        found.insert(Feature::Comments, comments);
        found.insert(Feature::RejectInNat, reject);
        Ok(Features(found))
    }

    /// Whether the kernel has it.
    pub fn has(&self, feature: Feature) -> bool {
        matches!(self.0.get(&feature), Some(Ok(())))
    }

    /// What tables can do.
    pub fn of_tables(&self) -> TableFeatures {
        let persist = self.has(Feature::TablePersist);
        TableFeatures {
            owner: persist || self.has(Feature::TableOwner),
            persist,
        }
    }

    /// All of them in order, with the reason where one is missing.
    pub fn iter(&self) -> impl Iterator<Item = (Feature, Result<(), &Missing>)> {
        self.0
            .iter()
            .map(|(feature, found)| (*feature, found.as_ref().copied()))
    }

    /// Treats these features as absent, to exercise fallbacks.
    #[must_use]
    pub fn without(mut self, disabled: &[Feature]) -> Features {
        for feature in disabled {
            self.0.insert(*feature, Err(Missing::Disabled));
        }
        self
    }
}

/// Comments are an attribute that old kernels ignore, and the hook of `reject` is checked at the commit. So a
/// dormant table is created: it has no hooks. With an owner, nothing is left behind if the process is killed.
fn in_a_table(kernel: &mut Kernel, owner: bool) -> Result<(Trial, Trial), CommitError> {
    if let Err(answer) = kernel.attempt(|out| trial::add_dormant(out, owner))? {
        let missing = Missing::from(answer);
        return Ok((Err(missing.clone()), Err(missing)));
    }
    let comments = comments(kernel)?;
    let reject = kernel.attempt(trial::add_reject)?.map_err(Missing::from);
    Ok((comments, reject))
}

/// Whether the dormant table and its chain have their comments.
fn comments(kernel: &mut Kernel) -> Result<Trial, CommitError> {
    let mut commented = 0;
    for (kind, flags) in [(message::GET_TABLE, 0), (message::GET_CHAIN, flag::DUMP)] {
        let family = Some(Family::Ip);
        let read = kernel.ask(kind, flags, family, trial::put_table, |message| {
            commented += usize::from(trial::has_comment(message)?);
            Ok(())
        })?;
        if matches!(read, Reply::Refused(_)) {
            break;
        }
    }
    Ok(match commented {
        2 => Ok(()),
        _ => Err(Missing::Ignored),
    })
}

/// Requests the deletion of connections from 0.0.0.0 to 0.0.0.0, of which there are none. Kernels that know the filter delete
/// none; older ones look for the one connection that the addresses and ports name, and do not find it. No kernel
/// can read this as a request to delete more.
fn conntrack_filter(kernel: &mut Kernel) -> Result<Trial, CommitError> {
    let (kind, family) = (conntrack::DELETE, Some(Family::Ip));
    let deleted = kernel.ask(kind, 0, family, trial::conntrack_filter, |_| Ok(()))?;
    Ok(match deleted {
        Reply::Done | Reply::Interrupted => Ok(()),
        Reply::Refused(Errno::ENOENT) => Err(Missing::Ignored),
        Reply::Refused(errno) => Err(Missing::Refused {
            errno,
            message: None,
        }),
    })
}
