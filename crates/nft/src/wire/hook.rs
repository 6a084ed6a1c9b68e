//! Where a base chain is hooked, on the wire in both directions, ours and foreign.

use netlink::{Attributes, Malformed, be32, string};

use super::abi::{self, chain};
use crate::model::Hook;

/// The type of a base chain (`NFTA_CHAIN_TYPE`).
pub(crate) fn chain_type(hook: Hook) -> &'static str {
    match hook {
        Hook::NatPrerouting
        | Hook::NatInput
        | Hook::NatOutput
        | Hook::NatPostrouting
        | Hook::BeforeNatPostrouting => "nat",
        Hook::FirstPrerouting
        | Hook::FirstOutput
        | Hook::RawPrerouting
        | Hook::RawOutput
        | Hook::FilterInput
        | Hook::FilterForward
        | Hook::FilterPostrouting
        | Hook::Unknown => "filter",
    }
}

/// Hook number (`enum nf_inet_hooks`) and priority (`enum nf_ip_hook_priorities`).
pub(crate) fn hook_numbers(hook: Hook) -> Option<(u32, i32)> {
    match hook {
        Hook::FirstPrerouting => Some((0, i32::MIN)),
        Hook::FirstOutput => Some((3, i32::MIN)),
        Hook::NatPrerouting => Some((0, -100)),
        Hook::NatInput => Some((1, 100)),
        Hook::NatOutput => Some((3, -100)),
        Hook::NatPostrouting => Some((4, 100)),
        Hook::BeforeNatPostrouting => Some((4, 90)),
        Hook::RawPrerouting => Some((0, -300)),
        Hook::RawOutput => Some((3, -300)),
        Hook::FilterInput => Some((1, -10)),
        Hook::FilterForward => Some((2, -10)),
        Hook::FilterPostrouting => Some((4, -10)),
        Hook::Unknown => None,
    }
}

/// Number and priority of a chain's hook; `None` for a chain that is only jumped to.
pub fn numbers(fields: Attributes<'_>) -> Result<Option<(u32, i32)>, Malformed> {
    let Some(hook) = fields.find(chain::HOOK)? else {
        return Ok(None);
    };
    let number = |kind, what| match Attributes::new(hook).find(kind)? {
        Some(payload) => be32(payload, what),
        None => Err(Malformed::Missing(what)),
    };
    let priority = number(chain::HOOK_PRIORITY, "NFTA_HOOK_PRIORITY")?;
    Ok(Some((
        number(chain::HOOK_NUMBER, "NFTA_HOOK_HOOKNUM")?,
        priority.cast_signed(),
    )))
}

/// The policy of a base chain (`NFTA_CHAIN_POLICY`).
pub fn policy(fields: Attributes<'_>) -> Result<Option<u32>, Malformed> {
    fields
        .find(chain::POLICY)?
        .map(|payload| be32(payload, "NFTA_CHAIN_POLICY"))
        .transpose()
}

/// The hook of a chain, if any; one that is not ours is [`Hook::Unknown`].
pub(super) fn read_hook(fields: Attributes<'_>, flags: u32) -> Result<Option<Hook>, Malformed> {
    let Some(numbers) = numbers(fields.clone())? else {
        return Ok(None);
    };
    let policy = policy(fields.clone())?;
    let kind = match fields.find(chain::TYPE)? {
        Some(kind) => string(kind, "NFTA_CHAIN_TYPE")?,
        None => "",
    };
    let ours = policy == Some(abi::data::ACCEPT as u32) && flags & !chain::BASE == 0;
    let known = Hook::KNOWN
        .into_iter()
        .find(|hook| ours && chain_type(*hook) == kind && hook_numbers(*hook) == Some(numbers));
    Ok(Some(known.unwrap_or(Hook::Unknown)))
}
