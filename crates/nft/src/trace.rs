//! What the ruleset does with certain packets, as the kernel reports it (`meta nftrace`).
//!
//! A [`Tracer`] marks the packets in a table of its own, in chains before all others, and receives the decision of
//! every later rule about them: rules of nft and of iptables in its nft variant, ours too. The kernel does not report
//! legacy iptables, nor what drops a packet before the first hook (`netdev` tables, tc, XDP) or between hooks (reverse
//! path filter, bad checksums, no route).
//!
//! The table is owned by the tracer's socket (Linux 5.12), so the kernel deletes the table however the process ends. Each kind of packet is marked [`PER_SECOND`] times a second at most, so that a busy peer is not slowed down.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netlink::{Attributes, Malformed, Message, NetlinkFamily, Socket, be32, failed, messages};
use nix::errno::Errno;
use nix::libc::NFNLGRP_NFTRACE;

use crate::backend::Backend as _;
use crate::kernel::Kernel;
use crate::model::{Bytes, Chain, Family, Hook, Name, Operand, Protocol, Rule, Statement, Table};
use crate::transaction::{CommitError, Operation, Transaction};
use crate::wire::abi::{data, message, trace};
use crate::wire::header::{AnyFamily, attributes, foreign_name};

/// A packet passes a few dozen rules, each reported in 200 bytes.
const RECEIVE_SPACE: usize = 4 << 20;
/// Packets of a kind that are marked per second, in each direction.
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

/// What decided about a packet.
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
    /// The packet is dropped or rejected.
    Drop,
    /// The packet waits for a program (`NFQUEUE`), and is dropped if there is none.
    Queue,
    /// The packet goes on in this chain or another.
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
    /// The socket that owns the table.
    _table: Kernel,
    name: Name,
    pending: VecDeque<Step>,
}

impl Tracer {
    /// Starts tracing.
    ///
    /// Errors: EPERM without CAP_NET_ADMIN; EINVAL before Linux 5.12.
    pub fn start(packets: &[Packets]) -> Result<Self, CommitError> {
        let socket = Socket::open(NetlinkFamily::Netfilter)?;
        socket.set_receive_space(RECEIVE_SPACE)?;
        socket.join(NFNLGRP_NFTRACE)?;
        // Several tracers may run at a time.
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

    /// Waits for the next decision; `None` when the time has passed. Some are lost when there are many.
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<Step>, CommitError> {
        let end = Instant::now() + timeout;
        loop {
            if let Some(step) = self.pending.pop_front() {
                return Ok(Some(step));
            }
            match self.socket.try_receive() {
                Ok(Some(datagram)) => {
                    let steps = steps(datagram).filter(|step| step.table != self.name);
                    self.pending.extend(steps);
                    continue;
                }
                Ok(None) => {}
                Err(Errno::ENOBUFS | Errno::EMSGSIZE) => continue,
                Err(errno) => return Err(failed("receive trace notifications")(errno).into()),
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.wait(left)?;
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

/// The decisions in a datagram; messages that do not decode are skipped.
pub(crate) fn steps(datagram: &[u8]) -> impl Iterator<Item = Step> {
    messages(datagram).filter_map(|message| message.and_then(|message| read(&message)).ok()?)
}

fn read(message: &Message<'_>) -> Result<Option<Step>, Malformed> {
    if message.kind != message::TRACE {
        return Ok(None);
    }
    let fields = attributes(message)?;
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
        family: AnyFamily::of(message),
        table: foreign_name(fields.clone(), trace::TABLE)?,
        chain: foreign_name(fields.clone(), trace::CHAIN)?,
        decider,
        decision,
    }))
}

/// A verdict without its upper bits (`NF_VERDICT_MASK`); those of nf_tables itself are negative.
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
