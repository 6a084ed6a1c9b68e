//! What the ruleset does with certain packets, told by the kernel itself (`meta nftrace`).
//!
//! A [`Tracer`] marks the packets in a table of its own, in chains before everybody else's, and hears what every rule
//! from there on decides about them: rules of nft and of iptables in its nft variant, ours too. It does not hear of
//! legacy iptables, of what drops a packet before the first hook (`netdev` tables, tc, XDP) or between hooks (reverse
//! path filter, bad checksums, no route).
//!
//! The table is owned by the tracer's socket (Linux 5.12), so however the process ends it cannot be left behind to cost
//! time. Each kind of packet is marked [`PER_SECOND`] times a second at most, so that a busy peer is not slowed down.

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::foreign::AnyFamily;
use crate::foreign::chains::{family, name};
use crate::kernel::Kernel;
use crate::link::failed;
use crate::model::{Bytes, Chain, Family, Hook, Name, Operand, Protocol, Rule, Statement, Table};
use crate::socket::Socket;
use crate::transaction::{Backend as _, CommitError, Operation, Transaction};
use crate::wire::abi::{data, message, trace};
use crate::wire::attribute::{Attributes, be32};
use crate::wire::{Malformed, Message, messages};

/// `1 << (NFNLGRP_NFTRACE - 1)`, the group as a bit of the address.
const GROUP: u32 = 1 << 8;
/// A packet meets a few dozen rules, each told in 200 bytes.
const RECEIVE_SPACE: usize = 4 << 20;
/// How many packets of a kind are marked in a second, for each direction.
pub const PER_SECOND: u32 = 100;

/// Packets to trace, sent from here or arriving here. Both addresses are of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packets {
    /// Where they come from.
    pub source: IpAddr,
    /// Where they go.
    pub destination: IpAddr,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Destination port.
    pub port: u16,
}

/// Who decided on a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decider {
    /// The rule of this handle.
    Rule(u64),
    /// The policy of the chain: no rule did.
    Policy,
    /// The end of a chain that was jumped to.
    Return,
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The packet goes on to the next hook.
    Accept,
    /// It is gone, also where it was rejected.
    Drop,
    /// It waits for a program (`NFQUEUE`), and is gone if there is none.
    Queue,
    /// It goes on in this chain or another.
    Continue,
}

/// One decision about one packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Number of the packet; another packet may have it later.
    pub packet: u32,
    /// Family of the table.
    pub family: AnyFamily,
    /// Name of the table, of foreign origin.
    pub table: String,
    /// Name of the chain, of foreign origin.
    pub chain: String,
    /// Who decided.
    pub decider: Decider,
    /// What was decided.
    pub decision: Decision,
}

/// Traces packets in one network namespace, that of the thread that opened it, until dropped.
#[derive(Debug)]
pub struct Tracer {
    socket: Socket,
    /// Whose socket owns the table.
    _table: Kernel,
    name: Name,
    pending: VecDeque<Step>,
}

impl Tracer {
    /// Begins to trace.
    ///
    /// Errors: EPERM without CAP_NET_ADMIN; EINVAL before Linux 5.12.
    pub fn start(packets: &[Packets]) -> Result<Self, CommitError> {
        let socket = Socket::open(GROUP).map_err(failed("subscribe"))?;
        socket
            .set_receive_space(RECEIVE_SPACE)
            .map_err(failed("set receive space"))?;
        // Several may trace at a time.
        let name = Name::from(format!("portolan_trace_{}", socket.port()));
        let mut kernel = Kernel::open_tied(name.clone())?;
        kernel.commit(&marking(&name, packets))?;
        Ok(Tracer {
            socket,
            _table: kernel,
            name,
            pending: VecDeque::new(),
        })
    }

    /// Waits for the next decision; `None` when the time has passed. Some may be left out when there are many.
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<Step>, CommitError> {
        let end = Instant::now() + timeout;
        loop {
            if let Some(step) = self.pending.pop_front() {
                return Ok(Some(step));
            }
            match self.socket.try_receive() {
                Ok(Some(datagram)) => {
                    let heard = steps(datagram).filter(|step| step.table != self.name);
                    self.pending.extend(heard);
                    continue;
                }
                Ok(None) => {}
                Err(Errno::ENOBUFS | Errno::EMSGSIZE) => continue,
                Err(errno) => return Err(failed("listen")(errno)),
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.wait(Some(left)).map_err(failed("listen"))?;
        }
    }
}

/// The tables that mark the packets.
fn marking(table: &Name, packets: &[Packets]) -> Transaction {
    let mut transaction = Transaction::new();
    let families: BTreeSet<Family> = packets.iter().map(|p| Family::of(p.source)).collect();
    for family in families {
        let of_family = |p: &&Packets| Family::of(p.source) == family;
        let rules: Vec<Rule> = packets.iter().filter(of_family).map(mark).collect();
        transaction.push(
            family,
            Operation::AddTable(Table {
                family,
                name: table.clone(),
                comment: "Portolan: looks for rules that drop its packets, for a moment".into(),
            }),
        );
        for (name, hook) in [
            ("arriving", Hook::FirstPrerouting),
            ("sent", Hook::FirstOutput),
        ] {
            let chain = Chain {
                name: name.into(),
                hook: Some(hook),
                comment: "".into(),
                rules: rules.clone(),
            };
            transaction.push(family, Operation::AddChain(chain.clone()));
            transaction.push(family, Operation::SetRules(chain));
        }
    }
    transaction
}

/// The rule for one kind of packets.
fn mark(packets: &Packets) -> Rule {
    let equals = |operand, value| Statement::Equals {
        operand,
        value,
        negate: false,
    };
    let port = Bytes::from_slice(&packets.port.to_be_bytes()).unwrap_or_default();
    let statements = vec![
        equals(Operand::SourceAddress, Bytes::new().address(packets.source)),
        equals(
            Operand::DestinationAddress,
            Bytes::new().address(packets.destination),
        ),
        Statement::ProtocolIs(packets.protocol),
        equals(Operand::DestinationPort, port),
        Statement::Limit {
            per_second: PER_SECOND,
            burst: PER_SECOND,
        },
        Statement::Trace,
    ];
    statements.into()
}

/// The decisions in a datagram; what does not decode is left out.
pub(crate) fn steps(datagram: &[u8]) -> impl Iterator<Item = Step> {
    messages(datagram).filter_map(|message| message.and_then(|message| read(&message)).ok()?)
}

fn read(message: &Message<'_>) -> Result<Option<Step>, Malformed> {
    if message.kind != message::TRACE {
        return Ok(None);
    }
    let fields = message.attributes()?;
    let number = |kind, what| match fields.clone().find(kind)? {
        Some(payload) => be32(payload, what),
        None => Err(Malformed::Missing(what)),
    };
    let (decider, decision) = match number(trace::TYPE, "NFTA_TRACE_TYPE")? {
        trace::OF_POLICY => (
            Decider::Policy,
            decision(number(trace::POLICY, "NFTA_TRACE_POLICY")?),
        ),
        trace::OF_RETURN => (Decider::Return, Decision::Continue),
        trace::OF_RULE => {
            let handle = fields.clone().find(trace::RULE)?;
            let handle = handle.and_then(|handle| handle.try_into().ok());
            let handle = handle.ok_or(Malformed::Missing("NFTA_TRACE_RULE_HANDLE"))?;
            let verdict = fields.clone().find(trace::VERDICT)?.unwrap_or_default();
            let code = Attributes::new(verdict).find(data::CODE)?;
            let code = code.ok_or(Malformed::Missing("NFTA_VERDICT_CODE"))?;
            (
                Decider::Rule(u64::from_be_bytes(handle)),
                decision(be32(code, "NFTA_VERDICT_CODE")?),
            )
        }
        _ => return Ok(None),
    };
    Ok(Some(Step {
        packet: number(trace::ID, "NFTA_TRACE_ID")?,
        family: family(message),
        table: name(fields.clone(), trace::TABLE)?,
        chain: name(fields.clone(), trace::CHAIN)?,
        decider,
        decision,
    }))
}

/// A verdict without what may be in its upper bits (`NF_VERDICT_MASK`); those of nf_tables itself are negative.
fn decision(code: u32) -> Decision {
    const DROP: u32 = data::DROP as u32;
    const ACCEPT: u32 = data::ACCEPT as u32;
    /// `NF_QUEUE`
    const QUEUE: u32 = 3;
    match code & 0xff {
        DROP => Decision::Drop,
        ACCEPT => Decision::Accept,
        QUEUE => Decision::Queue,
        _ => Decision::Continue,
    }
}
