//! Portolan beside kube-proxy: two labs that are alike down to the addresses, the same objects in both, and the
//! same packets. Node 1 of one lab is run by kube-proxy in nftables mode, node 1 of the other by Portolan.
//!
//! Owns the comparison. What a packet meets is a set of [`Fate`]s, because both proxies choose backends by
//! chance; both are asked until they have shown the same or chance no longer explains the difference. The
//! reference model has no say in what agrees: it only helps to guess how often to ask, which packets the lab can
//! carry, and whether a disagreement is one of those that [`differences`] lists as deliberate. With session affinity
//! alone, where each side shows one endpoint of several, it says which those are (see [`affinity`]).

mod affinity;
pub mod differences;
mod fates;
pub mod metrics;
mod programs;
mod server;
mod side;
mod supply;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use lab::wait_for;

use self::affinity::Sessions;
use self::differences::Theirs;
use self::fates::are_as_expected;
use crate::cluster::{Cluster, Node};
use crate::field::Field;
use crate::oracle::{Expected, Packet, has_affinity, outcome};
use crate::stage::PATIENCE;

pub use differences::Difference;
pub use fates::{Fate, Fates};
pub use programs::{KubeProxy, kube_proxies, portolan_flags};
pub use server::{Kind, its_service_cidrs};
pub use side::{CLIENT_POD, NODES, PODS, PORTS, Side};

/// For an answer at first; what differs is asked again with more.
const HASTE: Duration = Duration::from_millis(300);
/// For none, where none is expected.
const GREAT_HASTE: Duration = Duration::from_millis(150);

/// Starts of kube-proxy until it knows what it should.
const STARTS: usize = 10;

/// The two labs.
pub struct Arena {
    kube_proxy: Side,
    portolan: Side,
    /// Of the kube-proxy that was started last.
    minor: u32,
}

/// A packet that met different fates.
#[derive(Debug)]
pub struct Disagreement {
    pub packet: Packet,
    /// What kube-proxy made of it.
    pub kube_proxy: Fates,
    /// What Portolan made of it.
    pub portolan: Fates,
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  packet:     {}", self.packet)?;
        writeln!(f, "  kube-proxy: {:?}", self.kube_proxy)?;
        write!(f, "  Portolan:   {:?}", self.portolan)
    }
}

/// What a comparison has seen: packets by the fate that both agree on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub answered: usize,
    pub refused: usize,
    /// Sent to an address without a server, or dropped.
    pub lost: usize,
    /// Were answered by the one endpoint that each side keeps the client at, which are not the same.
    pub kept: usize,
    /// Differ on purpose, by the first name in [`differences`] that says so.
    pub differing: BTreeMap<&'static str, usize>,
}

impl Seen {
    pub fn packets(&self) -> usize {
        self.answered
            + self.refused
            + self.lost
            + self.kept
            + self.differing.values().sum::<usize>()
    }

    fn count(&mut self, fates: &Fates) {
        let any = |wanted: fn(&Fate) -> bool| fates.iter().any(wanted);
        if any(|fate| matches!(fate, Fate::Answered { .. })) {
            self.answered += 1;
        } else if any(|fate| *fate == Fate::Refused) {
            self.refused += 1;
        } else {
            self.lost += 1;
        }
    }
}

impl std::ops::AddAssign for Seen {
    fn add_assign(&mut self, other: Self) {
        self.answered += other.answered;
        self.refused += other.refused;
        self.lost += other.lost;
        self.kept += other.kept;
        for (name, count) in other.differing {
            *self.differing.entry(name).or_default() += count;
        }
    }
}

impl Arena {
    /// Two labs, before any proxy runs.
    pub fn new(kind: Kind) -> Result<Arena> {
        let side = |_: &mut ()| Side::new(kind);
        let both = in_step(&mut (), &mut (), side, side)?;
        Ok(Arena {
            kube_proxy: both.0,
            portolan: both.1,
            minor: 0,
        })
    }

    /// Gives both labs these nodes and starts both programs with these settings, in place of earlier ones.
    pub fn start(&mut self, program: &KubeProxy, cluster: &Cluster) -> Result<()> {
        self.minor = program.minor;
        // kube-proxy learns of ServiceCIDRs beside its first full sync, in time for it or not, and of its zone beside
        // the sender that must receive it.
        let start_kube_proxy = |side: &mut Side| {
            for _ in 0..STARTS {
                side.start_kube_proxy(program, cluster)?;
                if side.knows_service_cidrs(cluster)? && side.knows_its_zone(cluster)? {
                    return Ok(());
                }
            }
            bail!("kube-proxy missed its zone or ServiceCIDRs in {STARTS} starts")
        };
        let start_portolan = |side: &mut Side| {
            side.start_portolan(cluster)?;
            // They are not waited for before the first commit, and followed as soon as they are known.
            wait_for("ServiceCIDRs and zone to be followed", PATIENCE, || {
                ensure!(side.knows_service_cidrs(cluster)?, "ServiceCIDRs missed");
                ensure!(side.knows_its_zone(cluster)?, "zone missed");
                Ok(())
            })
        };
        in_step(
            &mut self.kube_proxy,
            &mut self.portolan,
            start_kube_proxy,
            start_portolan,
        )?;
        Ok(())
    }

    /// Gives both other nodes and ServiceCIDRs while the programs run.
    pub fn change_surroundings(&mut self, cluster: &Cluster) -> Result<()> {
        self.kube_proxy.set_surroundings(cluster)?;
        self.portolan.set_surroundings(cluster)
    }

    /// The scrapes of both, kube-proxy's first.
    pub fn metrics(&self) -> Result<(String, String)> {
        Ok((self.kube_proxy.metrics()?, self.portolan.metrics()?))
    }

    /// Whether each of them, kube-proxy first, drops what goes to addresses that no Service has where this cluster's
    /// ServiceCIDRs say so, and nowhere else. Both have carried out all earlier changes of Services.
    pub fn know_service_cidrs(&mut self, cluster: &Cluster) -> Result<(bool, bool)> {
        let know = |side: &mut Side| side.knows_service_cidrs(cluster);
        in_step(&mut self.kube_proxy, &mut self.portolan, know, know)
    }

    /// Leads both to a cluster's Services and slices, and waits until both have come to their end.
    pub fn switch_to(&mut self, cluster: &Cluster) -> Result<()> {
        let change = |side: &mut Side| side.switch_to(cluster);
        in_step(&mut self.kube_proxy, &mut self.portolan, change, change)?;
        Ok(())
    }

    /// Those of the packets that both labs can carry there and back.
    pub fn sendable(&self, cluster: &Cluster, node: &Node, packets: Vec<Packet>) -> Vec<Packet> {
        let field = self.portolan.field();
        let can_send = |packet: &Packet| {
            let ours = outcome(cluster, node, packet);
            let theirs = differences::theirs(self.minor, cluster, node, packet).expected;
            let mut expected = theirs.iter().chain([&ours]);
            expected.all(|expected| field.can_send(node, packet, expected))
        };
        packets.into_iter().filter(can_send).collect()
    }

    /// Sends each packet on both sides. Fails on the first difference that is not a deliberate one.
    pub fn compare(&mut self, cluster: &Cluster, node: &Node, packets: &[Packet]) -> Result<Seen> {
        let planned: Vec<Planned> = packets
            .iter()
            .map(|packet| Planned::new(self.minor, cluster, node, *packet))
            .collect();
        let look = |side: &mut Side| side.look_at_all(&planned);
        let (theirs, ours) = in_step(&mut self.kube_proxy, &mut self.portolan, look, look)?;
        let mut sessions = Sessions::new(cluster, node);
        let mut seen = Seen::default();
        for ((plan, theirs), ours) in planned.iter().zip(theirs).zip(ours) {
            let judge = &mut |field: &Field, theirs: &Fates, ours: &Fates| {
                judge(&mut sessions, field, plan, theirs, ours)
            };
            let packet = &plan.packet;
            let (mut agreement, mut theirs, mut ours) =
                self.settle(packet, judge, (theirs, ours), HASTE)?;
            if agreement.is_none() {
                // From nothing, and with all patience there is: a machine that is busy is not a difference.
                let nothing = (Fates::new(), Fates::new());
                (agreement, theirs, ours) =
                    self.settle(packet, judge, nothing, lab::DEFAULT_PATIENCE)?;
            }
            match agreement {
                Some(Agreement::Full) if theirs == ours => seen.count(&ours),
                Some(Agreement::Full) => seen.kept += 1,
                Some(Agreement::But(name)) => *seen.differing.entry(name).or_default() += 1,
                None => {
                    let disagreement = Disagreement {
                        packet: *packet,
                        kube_proxy: theirs,
                        portolan: ours,
                    };
                    let theirs = self.kube_proxy.rules_about(packet.destination)?;
                    let ours = self.portolan.rules_about(packet.destination)?;
                    bail!("{disagreement}\n  rules: {theirs:#?}\n  and: {ours:#?}")
                }
            }
        }
        Ok(seen)
    }

    /// Asks both again and again until they agree, or one of them never shows what the other did.
    fn settle(
        &mut self,
        packet: &Packet,
        judge: &mut dyn FnMut(&Field, &Fates, &Fates) -> Option<Agreement>,
        (mut theirs, mut ours): (Fates, Fates),
        patience: Duration,
    ) -> Result<(Option<Agreement>, Fates, Fates)> {
        let mut asked = 0;
        loop {
            let is_known = !theirs.is_empty() && !ours.is_empty();
            let judged = is_known.then(|| judge(self.portolan.field(), &theirs, &ours));
            if let Some(Some(agreement)) = judged {
                return Ok((Some(agreement), theirs, ours));
            }
            if is_known && asked >= beyond_chance(theirs.union(&ours).count()) {
                return Ok((None, theirs, ours));
            }
            let look = |side: &mut Side| side.look(packet, ROUND, patience);
            let (a, b) = in_step(&mut self.kube_proxy, &mut self.portolan, look, look)?;
            theirs.extend(a);
            ours.extend(b);
            asked += ROUND;
        }
    }
}

/// How two sides agree on a packet.
enum Agreement {
    /// A client sees no difference.
    Full,
    /// But for this difference, which is a deliberate one.
    But(&'static str),
}

/// A packet to be sent.
struct Planned {
    packet: Packet,
    /// What kube-proxy may make of it.
    theirs: Theirs,
    /// How often to begin with.
    attempts: usize,
    /// Most likely nothing comes back.
    is_silent: bool,
}

impl Planned {
    fn new(minor: u32, cluster: &Cluster, node: &Node, packet: Packet) -> Planned {
        let expected = outcome(cluster, node, &packet);
        let kept = has_affinity(cluster, node, &packet);
        Planned {
            packet,
            theirs: differences::theirs(minor, cluster, node, &packet),
            attempts: if kept { FAITHFUL } else { attempts(&expected) },
            is_silent: expected == Expected::Dropped,
        }
    }
}

fn judge(
    sessions: &mut Sessions<'_>,
    field: &Field,
    plan: &Planned,
    theirs: &Fates,
    ours: &Fates,
) -> Option<Agreement> {
    if sessions.concern(&plan.packet, &plan.theirs) {
        return sessions.agreement(field, &plan.packet, &plan.theirs, (theirs, ours));
    }
    if theirs == ours {
        return Some(Agreement::Full);
    }
    let (cluster, node) = (sessions.cluster, sessions.node);
    let expected = outcome(cluster, node, &plan.packet);
    let explained = are_as_expected(field, node, &plan.packet, &expected, ours)
        && plan.theirs.explain(field, node, &plan.packet, theirs);
    let name = plan.theirs.names.first().filter(|_| explained)?;
    Some(Agreement::But(name))
}

/// Attempts of a client that should always meet the same endpoint.
const FAITHFUL: usize = 4;

/// Attempts at a time while two sets differ.
const ROUND: usize = 8;

/// Attempts that most likely show every backend: of n, one is missed by n (ln n + 2) attempts in 13 of 100 cases,
/// and then looked for again.
fn attempts(expected: &Expected) -> usize {
    let backends = match expected {
        Expected::Balanced(backends) => backends.len(),
        _ => 1,
    };
    let n = backends as f64;
    (n * (n.ln() + 2.0)).ceil() as usize
}

/// Attempts after which one of `fates` equally likely ones is still missing once in 10^9 cases.
fn beyond_chance(fates: usize) -> usize {
    let n = fates.max(1) as f64;
    (n * (n.ln() + 21.0)).ceil() as usize
}

/// Does both at once.
fn in_step<X: Send, Y: Send, A: Send, B: Send>(
    x: &mut X,
    y: &mut Y,
    one: impl FnOnce(&mut X) -> Result<A> + Send,
    other: impl FnOnce(&mut Y) -> Result<B>,
) -> Result<(A, B)> {
    std::thread::scope(|scope| {
        let beside = scope.spawn(move || one(x));
        let b = other(y);
        let a = beside
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((a?, b?))
    })
}
