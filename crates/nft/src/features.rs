//! What the kernel at hand can do, found out by trying, never by its version: distributions bring features to old
//! kernels and leave modules out of new ones.
//!
//! Owns the list of features and how each is tried. Most trials are batches without an end, which the kernel checks
//! and forgets. What it only checks when it commits, or silently ignores, takes a table that is made, read back and
//! deleted again: dormant, so that no packet ever meets it. What a missing feature means is left to those who need it.
//!
//! Invariant: after [`Features::probe`] the ruleset is what it was, and no connection was touched.

use std::collections::BTreeMap;
use std::fmt;

use nix::errno::Errno;

use crate::kernel::Kernel;
use crate::transaction::CommitError;
use crate::wire::abi::{conntrack, flag, message};
use crate::wire::frame::Answer;

#[cfg(test)]
mod tests;
pub(crate) mod trial;

/// Something that kernels have or have not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Feature {
    /// Tables that belong to a socket (Linux 5.12).
    TableOwner,
    /// Owned tables that outlive their socket (Linux 6.9).
    TablePersist,
    /// Destination NAT to address and port from a map (Linux 4.16, CONFIG_NFT_NAT).
    NatByMap,
    /// `masquerade fully-random` (CONFIG_NFT_MASQ).
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
    #[error("the kernel says {errno}{}", words.as_ref().map(|w| format!(" ({w})")).unwrap_or_default())]
    Refused {
        /// With this error,
        errno: Errno,
        /// and these words of its own.
        words: Option<String>,
    },
    /// The kernel took the trial and did nothing.
    #[error("the kernel ignores it")]
    Ignored,
    /// [`Features::without`] says so.
    #[error("switched off")]
    SwitchedOff,
}

impl From<Answer> for Missing {
    fn from(answer: Answer) -> Self {
        Missing::Refused {
            errno: Errno::from_raw(answer.errno),
            words: answer.message,
        }
    }
}

/// Every feature, with the reason where it is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Features(BTreeMap<Feature, Trial>);

/// What came of a trial.
type Trial = Result<(), Missing>;

impl Features {
    /// Tries everything, in the network namespace of the calling thread. Takes a few milliseconds; modules of the
    /// kernel are loaded as rules would load them.
    ///
    /// Errors: [`CommitError::Socket`]; EPERM without CAP_NET_ADMIN in this network namespace.
    pub fn probe() -> Result<Features, CommitError> {
        let mut kernel = Kernel::connect(trial::TABLE.into())?;
        let mut found = BTreeMap::new();
        for feature in Feature::ALL {
            let trial = match feature {
                // Together, below: they are seen only in a table that is there.
                Feature::RejectInNat | Feature::Comments => continue,
                Feature::ConntrackFilter => conntrack_filter(&mut kernel)?,
                _ => kernel
                    .attempt(false, |out| trial::write(feature, out))?
                    .map_err(Missing::from),
            };
            found.insert(feature, trial);
        }
        let owner = matches!(found.get(&Feature::TableOwner), Some(Ok(())));
        let (comments, reject) = in_a_table(&mut kernel, owner)?;
        found.insert(Feature::Comments, comments);
        found.insert(Feature::RejectInNat, reject);
        Ok(Features(found))
    }

    /// Whether the kernel has it.
    pub fn has(&self, feature: Feature) -> bool {
        matches!(self.0.get(&feature), Some(Ok(())))
    }

    /// All of them in order, with the reason where one is missing.
    pub fn iter(&self) -> impl Iterator<Item = (Feature, Result<(), &Missing>)> {
        self.0
            .iter()
            .map(|(feature, found)| (*feature, found.as_ref().copied()))
    }

    /// The same with these taken for missing: for tests of what is done without them.
    #[must_use]
    pub fn without(mut self, switched_off: &[Feature]) -> Features {
        for feature in switched_off {
            self.0.insert(*feature, Err(Missing::SwitchedOff));
        }
        self
    }
}

/// Comments are an attribute that old kernels ignore, and where `reject` may stand is checked at the commit. So a
/// dormant table is made: it has no hooks. With an owner, a kill at the wrong moment leaves nothing behind.
fn in_a_table(kernel: &mut Kernel, owner: bool) -> Result<(Trial, Trial), CommitError> {
    if let Err(answer) = kernel.attempt(true, |out| trial::add_dormant(out, owner))? {
        let missing = Missing::from(answer);
        return Ok((Err(missing.clone()), Err(missing)));
    }
    let mut commented = 0;
    for (kind, flags) in [
        (message::GET_TABLE, flag::ACK),
        (message::GET_CHAIN, flag::DUMP),
    ] {
        let read = kernel.request(kind, flags, trial::name, |message| {
            commented += usize::from(trial::has_comment(message)?);
            Ok(())
        })?;
        if read.is_err() {
            break;
        }
    }
    let comments = if commented == 2 {
        Ok(())
    } else {
        Err(Missing::Ignored)
    };
    let reject = kernel
        .attempt(true, trial::add_reject)?
        .map_err(Missing::from);
    // Nothing to be done about a refusal; an owned one goes with the socket.
    let _ = kernel.attempt(true, trial::delete_table)?;
    Ok((comments, reject))
}

/// Asks to delete connections from 0.0.0.0 to 0.0.0.0, of which there are none. Kernels that know the filter delete
/// none; older ones look for the one connection that the addresses and ports name, and do not find it. None of them
/// can take it for a request to delete more.
fn conntrack_filter(kernel: &mut Kernel) -> Result<Trial, CommitError> {
    let deleted = kernel.request(
        conntrack::DELETE,
        flag::ACK,
        trial::conntrack_filter,
        |_| Ok(()),
    )?;
    Ok(match deleted {
        Ok(()) => Ok(()),
        Err(Errno::ENOENT) => Err(Missing::Ignored),
        Err(errno) => Err(Missing::Refused { errno, words: None }),
    })
}
