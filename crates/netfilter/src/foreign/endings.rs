//! What becomes of packets in a base chain of any program, as far as its rules say so without a packet.
//!
//! Only verdicts are read, and whether a rule has any condition. What a condition means is left to the kernel.

use netlink::{Attributes, Error, Malformed, Message, be32, failed, flag, is_string};
use nft::wire::abi::{self, LIST_ITEM, data, expr, immediate, message};
use nft::wire::header::{attributes, header};
use nix::errno::Errno;

use super::leftovers::inside;
use super::{ATTEMPTS, BaseChain, ForeignRuleset};

const READ_RULES: &str = "read the rules of a chain";

/// Whether packets pass a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    /// What no rule drops passes.
    Passes,
    /// What no rule accepts is dropped or rejected.
    Drops,
    /// No rule accepts anything before the chain drops or rejects.
    DropsAll,
}

/// What a rule does with the packets that it matches.
#[derive(Clone, Copy, Debug, Default)]
struct Effect {
    /// It matches some packets only.
    conditional: bool,
    /// It drops or rejects them.
    drops: bool,
    /// It lets them pass, or leaves them to another chain or program, which may.
    passes: bool,
}

impl ForeignRuleset {
    /// How a base chain ends.
    ///
    /// Errors: EPERM without CAP_NET_ADMIN; EAGAIN where other programs keep changing the ruleset.
    pub fn ending(&mut self, chain: &BaseChain) -> Result<Ending, Error> {
        for _ in 0..ATTEMPTS {
            let mut effects = Vec::new();
            let [_, version, resource @ ..] = header(None);
            let family = [chain.family.0, version, resource[0], resource[1]];
            let reply = self.connection.ask(
                message::GET_RULE,
                flag::DUMP,
                &family,
                |out| {
                    out.put_str(abi::rule::TABLE, &chain.table);
                    out.put_str(abi::rule::CHAIN, &chain.name);
                },
                |message| {
                    effects.extend(effect_in(message, chain)?);
                    Ok(())
                },
            )?;
            if reply.settle(READ_RULES)? {
                return Ok(ending(&effects, chain.drops));
            }
        }
        Err(failed(READ_RULES)(Errno::EAGAIN))
    }
}

fn ending(effects: &[Effect], drops_by_policy: bool) -> Ending {
    let mut some_pass = false;
    for effect in effects {
        match effect {
            Effect {
                conditional: false,
                drops: true,
                ..
            } => return dropping(some_pass),
            Effect { passes, .. } => some_pass |= passes,
        }
    }
    match drops_by_policy {
        true => dropping(some_pass),
        false => Ending::Passes,
    }
}

fn dropping(some_pass: bool) -> Ending {
    match some_pass {
        true => Ending::Drops,
        false => Ending::DropsAll,
    }
}

/// The effect of a rule of this chain.
fn effect_in(message: &Message<'_>, chain: &BaseChain) -> Result<Option<Effect>, Malformed> {
    if message.kind != message::NEW_RULE {
        return Ok(None);
    }
    let fields = attributes(message)?;
    let is = |kind, name: &str| -> Result<bool, Malformed> {
        Ok(fields
            .clone()
            .find(kind)?
            .is_some_and(|found| is_string(found, name)))
    };
    if !(is(abi::rule::TABLE, &chain.table)? && is(abi::rule::CHAIN, &chain.name)?) {
        return Ok(None);
    }
    let expressions = fields.clone().find(abi::rule::EXPRESSIONS)?;
    effect_of(expressions.unwrap_or_default()).map(Some)
}

fn effect_of(expressions: &[u8]) -> Result<Effect, Malformed> {
    /// `NFTA_TARGET_NAME` and `NFTA_MATCH_NAME`
    const NAME: u16 = 1;
    let mut effect = Effect::default();
    for item in Attributes::new(expressions) {
        let item = item?;
        if item.kind != LIST_ITEM {
            continue;
        }
        let parts = Attributes::new(item.payload);
        let name = parts.clone().find(expr::NAME)?.unwrap_or_default();
        let fields = parts.find(expr::DATA)?;
        let is = |expected| is_string(name, expected);
        if is("counter") || is("log") || is("notrack") {
            continue;
        }
        if is("match") && is_string(inside(fields, NAME)?.unwrap_or_default(), "comment") {
            continue;
        }
        if is("reject") {
            effect.drops = true;
        } else if is("target") {
            let target = inside(fields, NAME)?.unwrap_or_default();
            match is_string(target, "REJECT") {
                true => effect.drops = true,
                false => effect.passes = true,
            }
        } else if is("immediate") {
            let value = inside(fields, immediate::DATA)?;
            let code = inside(inside(value, data::VERDICT)?, data::CODE)?;
            match code
                .map(|code| be32(code, "NFTA_VERDICT_CODE"))
                .transpose()?
            {
                Some(code) if code.cast_signed() == data::DROP => effect.drops = true,
                Some(_) => effect.passes = true,
                None => {}
            }
        } else {
            effect.conditional = true;
            // A verdict map, a queue, and what this does not know.
            let known = [
                "cmp", "meta", "payload", "ct", "bitwise", "fib", "range", "match", "limit",
            ];
            effect.passes |= !known.into_iter().any(is);
        }
    }
    Ok(effect)
}
