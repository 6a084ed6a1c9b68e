//! Encryption between nodes: WireGuard devices that carry the overlay's outer packets.
//!
//! The VXLAN device stays flannel's. The FDB entry of a peer with a live session names a WireGuard device as the
//! interface of its outer packets; a policy rule leads look-ups for that interface to a table with one route, into the
//! device. Packets of WireGuard itself name no interface and take the underlay's routes, so nothing goes round in circles.
//!
//! Owns the devices, their peers, rules and routes, the keys of this node, and the decision who is reached by which device.
//! A round calls [`Encryption::prepare`] before the tunnel is reconciled, and [`Encryption::converge`] once the tunnel and
//! the nftables table are in place. Invariants: with `require`, the rule that seals the VXLAN port is there before the
//! tunnel device is, and every FDB entry names a device; with `prefer`, an entry names one only while its session lives.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use net_types::{Family, PerFamily};
use nix::errno::Errno;
use vxlan_overlay::{Carriers, HOLD, Peers, Plan};
use wireguard::{
    Deletions, Device, Kernel, KernelError, Observed, PublicKey, Refused, Seal, UNREACHABLE,
    Wanted, difference,
};

mod announced;
mod awaiting;
mod handshakes;
mod keys;
mod news;
mod report;
mod roster;
mod rotation;
mod status;

use super::OverlayConfig;
use announced::{Announced, Choice, Plane, choose};
use handshakes::Handshakes;
use keys::Keys;
use news::KnownKeys;
use roster::{Copied, Replaced, Roster};
use rotation::RotatingPeers;
pub use status::{EncryptionStatus, PeerEncryption, PeerState};

/// After encryption was switched off, the devices receive for so long what peers still encrypt.
const FAREWELL: Duration = Duration::from_secs(30);
/// MTU of a device before the network below is known.
const FIRST_MTU: u32 = 1420;
/// The least MTU of a link that carries IPv6.
const LEAST_MTU: u32 = 1280;

/// What to encrypt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Nothing; devices of an earlier run are removed.
    #[default]
    Off,
    /// Packets to peers with a key and a session; others in clear text.
    Prefer,
    /// All packets; peers without a session are not reached.
    Require,
}

/// Configuration of the encryption.
#[derive(Clone, Debug, Default)]
pub struct EncryptionConfig {
    /// What to encrypt.
    pub mode: Mode,
    /// UDP port of the first device; the second has the next one.
    pub port: u16,
    /// Where the keys are kept.
    pub key_file: PathBuf,
    /// Zero: keys are rotated on request only.
    pub key_lifetime: Duration,
}

/// The encryption of this node.
pub(super) struct Encryption {
    config: Arc<OverlayConfig>,
    kernel: Kernel,
    /// `None`: encryption is off, or the kernel has none.
    keys: Option<Keys>,
    /// Why packets stay in clear text though encryption is preferred.
    unavailable: Option<String>,
    observed: Observed,
    handshakes: Handshakes,
    /// Sessions or addresses of peers have changed since the carriers were chosen.
    unchosen: bool,
    roster: Roster,
    /// Nodes whose public address another one has, as of the last plan with a tunnel.
    replaced: Replaced,
    copied: Copied,
    rotating: RotatingPeers,
    problems: Vec<String>,
    known: KnownKeys,
    /// New keys of peers, for Events.
    news: Vec<String>,
    carriers: Carriers,
    status: Arc<EncryptionStatus>,
    /// What the kernel refused.
    trouble: Option<String>,
    /// Why the keys could not be changed; those in use stay.
    unwritten: Option<String>,
    started: Instant,
    /// Whether peers left by an earlier process have been removed.
    cleaned: bool,
    /// When peers were changed last, or began to be awaited.
    changed: Instant,
    awaits: bool,
    /// When the devices were read last, and how long the round or the reading took.
    looked: Instant,
    cost: Duration,
    /// Since when this node has announced no key, with encryption off.
    silent_since: Option<Instant>,
    /// Bytes received by each peer of a plane that is given up, and when that was read.
    mark: Option<(Instant, Plane, BTreeMap<PublicKey, u64>)>,
    quiet: bool,
    /// All that is left to do with encryption off is done.
    finished: bool,
}

impl Encryption {
    /// Opens the sockets and the key file.
    ///
    /// # Errors
    /// With `require`, if the kernel has no WireGuard, or the keys cannot be read or written.
    pub(super) fn open(config: Arc<OverlayConfig>, now: Instant) -> Result<Encryption> {
        let mut kernel = Kernel::open().context("cannot open the sockets for WireGuard")?;
        let of = &config.encryption;
        let keys = || Keys::open(&of.key_file, &config.own, of.key_lifetime, now);
        let (keys, unavailable) = match of.mode {
            Mode::Off => (None, None),
            Mode::Require => {
                kernel.probe().context("--overlay-encryption=require")?;
                (Some(keys().context("--overlay-encryption=require")?), None)
            }
            Mode::Prefer => match kernel.probe().map_err(Into::into).and_then(|_| keys()) {
                Ok(keys) => (Some(keys), None),
                Err(error) => (
                    None,
                    Some(format!(
                        "packets to other nodes are not encrypted: {error:#}"
                    )),
                ),
            },
        };
        Ok(Encryption {
            kernel,
            keys,
            unavailable,
            observed: Observed::default(),
            handshakes: Handshakes::default(),
            unchosen: false,
            roster: Roster::new(),
            replaced: Replaced::new(),
            copied: Copied::new(),
            rotating: RotatingPeers::default(),
            problems: Vec::new(),
            known: KnownKeys::default(),
            news: Vec::new(),
            carriers: Carriers::default(),
            status: Arc::default(),
            trouble: None,
            unwritten: None,
            started: now,
            cleaned: false,
            changed: now,
            awaits: false,
            looked: now,
            cost: Duration::ZERO,
            silent_since: None,
            mark: None,
            quiet: false,
            finished: false,
            config,
        })
    }

    fn mode(&self) -> Mode {
        self.config.encryption.mode
    }

    /// What carries the outer packets, as of the last [`Encryption::prepare`].
    pub(super) fn carriers(&self) -> &Carriers {
        &self.carriers
    }

    /// The state for readers.
    pub(super) fn status(&self) -> &Arc<EncryptionStatus> {
        &self.status
    }

    /// Why the tunnel must not be touched: packets could leave in clear text.
    pub(super) fn blocks(&self) -> Option<String> {
        let lacks_device = self.mode() == Mode::Require && self.carriers.otherwise.is_none();
        lacks_device.then(|| match &self.trouble {
            Some(trouble) => format!("encryption is required: {trouble}"),
            None => "encryption is required, and its device is not there".to_owned(),
        })
    }

    /// Reads the devices, makes those that are missing, and decides which peer is reached by which device.
    pub(super) fn prepare(&mut self, peers: &Peers, plan: &Plan, now: Instant) -> Result<()> {
        if self.finished {
            return Ok(());
        }
        self.observe(now)?;
        let bare = self.wanted(plan, false, BTreeMap::new());
        if self.keys.is_some() && !self.has_devices(&bare) {
            let steps = difference(&bare, &self.observed, Deletions::Held, clock());
            self.apply(&steps)?;
            self.observe(now)?;
        }
        let own_keys = self.own_keys().into_values().collect();
        let own = (&*self.config.own, &own_keys);
        let (roster, copied) = roster::roster(peers.nodes(), own);
        if roster != self.roster {
            self.changed = now;
        }
        self.note_new_keys(&roster, peers);
        let problem = |name: &Arc<str>| {
            format!(
                "node {name} announces a WireGuard key that another node has: its packets are not encrypted"
            )
        };
        self.problems = copied.keys().map(problem).collect();
        (self.roster, self.copied) = (roster, copied);
        self.carriers = self.choose_carriers(now);
        self.unchosen = false;
        Ok(())
    }

    /// Makes devices, peers, routes and rules as wanted, now that the tunnel is as planned. `filtered`: the table lets
    /// packets of the devices pass.
    pub(super) fn converge(
        &mut self,
        peers: &Peers,
        plan: &Plan,
        filtered: bool,
        now: Instant,
    ) -> Result<()> {
        if self.finished {
            return Ok(());
        }
        if self.mode() == Mode::Off {
            self.finished = self.say_farewell(peers, now)?;
            return Ok(());
        }
        if self.keys.is_none() {
            self.unseal(now)?;
            self.say_farewell(peers, now)?;
            self.report(plan, now);
            return Ok(());
        }
        // Without a tunnel, the devices have to keep the peers and the keys that they have.
        if plan.tunnels.values().any(Option::is_some) {
            let failed = self.rotate(peers, now).err();
            self.unwritten =
                failed.map(|error| format!("{error:#}; the present WireGuard keys stay in use"));
            self.note_replaced(peers, plan, now);
        }
        let (roster, replaced) = (&self.roster, &self.replaced);
        let planes = Plane::ALL.map(|plane| (plane, roster::peers(plan, roster, plane, replaced)));
        let ready = filtered && peers.is_listed();
        let wanted = self.wanted(plan, ready, planes.into());
        let at_start = !self.cleaned && now.saturating_duration_since(self.started) < HOLD;
        let compared = (&wanted, &self.observed);
        let deletions = roster::deletions(peers.is_listed(), plan, compared, at_start);
        let steps = difference(&wanted, &self.observed, deletions, clock());
        if steps.is_empty() {
            self.trouble = None;
            self.cleaned |= deletions == Deletions::Allowed;
        } else {
            tracing::info!(steps = steps.len(), "changing WireGuard devices");
            tracing::debug!(steps = %words(&steps), "applied steps");
            let refused = self.apply(&steps)?;
            self.trouble = refused.first().map(|Refused { step, errno }| {
                format!("the kernel refused {step}: {}", errno.desc())
            });
            self.changed = now;
            self.observe(now)?;
        }
        self.report(plan, now);
        Ok(())
    }

    /// The text of this node's annotation; `None`: leave it alone.
    pub(super) fn announcement(&self, peers: &Peers) -> Option<String> {
        if self.keys.is_some() {
            let own = self.own_announced();
            return (!own.keys.is_empty()).then(|| own.to_string());
        }
        let names = &self.config.names;
        let stale = names.encryption(peers.own_annotations()).is_some();
        stale.then(String::new)
    }

    /// New keys of peers since the last call, in words.
    pub(super) fn take_news(&mut self) -> Vec<String> {
        std::mem::take(&mut self.news)
    }

    /// Problems for the log.
    pub(super) fn problems(&self) -> impl Iterator<Item = &String> {
        let all = self.unavailable.iter().chain(&self.trouble);
        all.chain(&self.unwritten).chain(&self.problems)
    }

    /// The nodes that share a public address or a key, which the state of their Nodes may settle otherwise.
    pub(super) fn contenders(&self) -> impl Iterator<Item = &Arc<str>> {
        let pairs = self.replaced.iter().chain(&self.copied);
        pairs.flat_map(|(name, other)| [name, other])
    }

    fn observe(&mut self, now: Instant) -> Result<()> {
        let names = Plane::ALL.map(Plane::device);
        let tables = Plane::ALL.map(Plane::table);
        let observed = self.kernel.observe(&names, &tables);
        self.observed = observed.context("reading WireGuard devices")?;
        self.unchosen |= self.handshakes.record(&self.observed, now, clock());
        Ok(())
    }

    fn apply(&mut self, steps: &[wireguard::Step]) -> Result<Vec<Refused>, KernelError> {
        self.handshakes.note_set(steps, &self.observed);
        self.kernel.apply(steps)
    }

    fn has_devices(&self, wanted: &Wanted) -> bool {
        let is_there = |name: &&str| {
            let found = self.observed.devices.get(*name);
            found.is_some_and(|found| found.is_wireguard && found.public.is_some())
        };
        let sealed = wanted.seal.is_none_or(|seal| {
            let rule = wireguard::Rule::Seal(seal);
            Family::ALL
                .into_iter()
                .filter(|family| !self.observed.without.contains(family))
                .all(|family| {
                    let last = (family, seal.table, UNREACHABLE);
                    self.observed.rules.contains(&(family, rule.clone()))
                        && self.observed.routes.contains(&last)
                })
        });
        sealed && wanted.devices.keys().all(is_there)
    }

    fn wanted(
        &self,
        plan: &Plan,
        ready: bool,
        mut peers: BTreeMap<Plane, BTreeMap<PublicKey, wireguard::Peer>>,
    ) -> Wanted {
        let mut wanted = Wanted::default();
        let Some(keys) = &self.keys else {
            return wanted;
        };
        let fits = plan.tunnels.iter().filter_map(|(family, tunnel)| {
            Some(tunnel.as_ref()?.device.mtu + vxlan_overlay::overhead(family))
        });
        for plane in Plane::ALL {
            let Some(private) = keys.private(plane) else {
                continue;
            };
            let found = self.observed.devices.get(plane.device());
            let known = found.map_or(FIRST_MTU, |found| found.mtu);
            let mtu = fits.clone().max().unwrap_or(known).max(LEAST_MTU);
            let device = Device {
                private,
                port: plane.port(self.config.encryption.port),
                mtu,
                table: plane.table(),
                peers: peers.remove(&plane).unwrap_or_default(),
                ready: ready || found.is_some_and(|found| found.up),
            };
            wanted.devices.insert(plane.device(), device);
        }
        if self.mode() == Mode::Require {
            let port = self.config.config.port;
            let table = Plane::First.table();
            wanted.seal = Some(Seal { port, table });
        }
        wanted
    }

    /// Public keys of this node, as the kernel derives them.
    fn own_keys(&self) -> BTreeMap<Plane, PublicKey> {
        let key = |plane: Plane| {
            let private = self.keys.as_ref()?.private(plane)?;
            let found = self.observed.devices.get(plane.device())?;
            let same = found.private.as_ref() == Some(&private);
            Some((plane, found.public.filter(|_| same)?))
        };
        Plane::ALL.into_iter().filter_map(key).collect()
    }

    /// What this node announces: planes whose device is up.
    fn own_announced(&self) -> Announced {
        let Some(keys) = &self.keys else {
            return Announced::default();
        };
        let public = self.own_keys();
        let entry = |plane: Plane| {
            let found = self.observed.devices.get(plane.device())?;
            let key = public.get(&plane).filter(|_| found.up)?;
            Some((plane, *key, plane.port(self.config.encryption.port)))
        };
        Announced {
            keys: keys.planes().into_iter().filter_map(entry).collect(),
            rotating: keys.is_rotating(),
        }
    }

    /// How packets to a peer of this `name` travel. WireGuard sends packets to the address of a replaced node to the other one.
    fn choice(&self, name: &str, peer: &Announced, own: &Announced, now: Instant) -> Choice {
        let is_replaced = self.replaced.contains_key(name);
        choose(own, peer, |plane| {
            !is_replaced && self.handshakes.is_live_with(plane, peer, now)
        })
    }

    /// Finds the nodes whose public address another node has. Carriers that were chosen before are chosen again soon.
    fn note_replaced(&mut self, peers: &Peers, plan: &Plan, now: Instant) {
        let (roster, handshakes) = (&self.roster, &self.handshakes);
        let is_live_from = |name: &str, address| {
            let announced = roster.get(name);
            announced.is_some_and(|peer| handshakes.is_live_from(address, peer, now))
        };
        let replaced = roster::replaced(plan, |name| roster::age(peers.get(name)), is_live_from);
        if replaced != self.replaced {
            self.replaced = replaced;
            (self.unchosen, self.awaits) = (true, true);
        }
    }

    fn choose_carriers(&mut self, now: Instant) -> Carriers {
        let devices = &self.observed.devices;
        let index = |plane: Plane| devices.get(plane.device()).map(|device| device.index);
        let is_there = Plane::ALL.into_iter().any(|plane| index(plane).is_some());
        // Also with encryption off: peers may encrypt until they know.
        let inputs = match self.mode() != Mode::Off || is_there {
            true => Plane::ALL.map(|plane| plane.device().to_owned()).into(),
            false => Vec::new(),
        };
        let required = self.mode() == Mode::Require;
        let mut carriers = Carriers {
            inputs,
            sealed: required,
            ..Carriers::default()
        };
        self.awaits = false;
        if self.mode() == Mode::Off || self.unavailable.is_some() {
            return carriers;
        }
        carriers.overhead = PerFamily::from_fn(wireguard::overhead);
        carriers.otherwise = index(Plane::First).filter(|_| required);
        let own = self.own_announced();
        for (name, announced) in &self.roster {
            let plane = match self.choice(name, announced, &own, now) {
                Choice::Live(plane) => Some(plane),
                Choice::Waiting(plane) => {
                    self.awaits = true;
                    Some(plane).filter(|_| required)
                }
                Choice::Nothing => None,
            };
            if let Some(index) = plane.and_then(index) {
                carriers.by_peer.insert(name.clone(), index);
            }
        }
        // A machine that was renamed may have kept its hardware address, which is one FDB entry for both nodes.
        for (name, other) in &self.replaced {
            match carriers.by_peer.get(other).copied() {
                Some(index) => carriers.by_peer.insert(name.clone(), index),
                None => carriers.by_peer.remove(name),
            };
        }
        carriers
    }

    /// Without keys: no longer sends everything by the devices of an earlier run, whose key peers are about to forget.
    fn unseal(&mut self, now: Instant) -> Result<()> {
        let nothing = Wanted::default();
        let mut steps = difference(&nothing, &self.observed, Deletions::Allowed, clock());
        steps.retain(|step| {
            matches!(
                step,
                wireguard::Step::DeleteRule(_, wireguard::Rule::Seal(_))
            )
        });
        if !steps.is_empty() {
            tracing::warn!("packets to other nodes leave in clear text again, as `prefer` has it");
            self.apply(&steps)?;
            self.observe(now)?;
        }
        Ok(())
    }

    /// Without keys: removes the devices of an earlier run, once the peers know. Returns whether nothing is left.
    fn say_farewell(&mut self, peers: &Peers, now: Instant) -> Result<bool> {
        let is_left = !self.observed.devices.is_empty() || !self.observed.rules.is_empty();
        let names = &self.config.names;
        if !is_left || names.encryption(peers.own_annotations()).is_some() || !peers.is_listed() {
            self.silent_since = None;
            return Ok(!is_left);
        }
        let since = *self.silent_since.get_or_insert(now);
        if now.saturating_duration_since(since) < FAREWELL {
            return Ok(false);
        }
        let steps = difference(
            &Wanted::default(),
            &self.observed,
            Deletions::Allowed,
            clock(),
        );
        tracing::info!(
            steps = steps.len(),
            "removing WireGuard devices: this node encrypts nothing"
        );
        self.apply(&steps)?;
        self.observe(now)?;
        self.silent_since = None;
        Ok(false)
    }

    /// Notices peers whose key is another than before.
    fn note_new_keys(&mut self, roster: &Roster, peers: &Peers) {
        let news = self.known.update(roster, |name| peers.get(name).is_some());
        for (name, key) in news.into_iter().filter(|_| peers.is_listed()) {
            tracing::info!(peer = %name, key = %key, "peer announces a new WireGuard key");
            let note = format!("node {name} announces a new WireGuard key: {key}");
            self.news.push(note);
        }
    }
}

/// Removes devices, routes and rules of an earlier run; keys stay. Returns how many there were.
///
/// # Errors
/// If the kernel cannot be read, or refuses.
pub fn remove() -> Result<usize> {
    let mut kernel = Kernel::open().context("cannot open the sockets for WireGuard")?;
    let (names, tables) = (Plane::ALL.map(Plane::device), Plane::ALL.map(Plane::table));
    let observed = kernel.observe(&names, &tables)?;
    let steps = difference(&Wanted::default(), &observed, Deletions::Allowed, clock());
    let refused = kernel.apply(&steps)?;
    // Routes go with their device.
    let mut refused = refused
        .iter()
        .filter(|refused| refused.errno != Errno::ESRCH);
    match refused.next() {
        None => Ok(steps.len()),
        Some(Refused { step, errno }) => {
            anyhow::bail!("the kernel refused {step}: {}", errno.desc())
        }
    }
}

/// Where an operator asks for a rotation: a file beside the keys.
pub fn request_file(key_file: &std::path::Path) -> PathBuf {
    key_file.with_extension("rotate")
}

/// The node's clock, since 1970.
fn clock() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default()
}

fn words(steps: &[wireguard::Step]) -> String {
    let words: Vec<String> = steps.iter().map(ToString::to_string).collect();
    words.join(", ")
}
