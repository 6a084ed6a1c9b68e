//! Random walks over configurations and kernel states: each has to end in the state that is made from nothing.
//!
//! A walk is a namespace of its own in which the configuration, the Nodes and the kernel change at random. After every
//! step the reconciler runs, and then the kernel itself says where it sends packets for each peer. At the end of a walk
//! all is deleted and made anew: what the walk led to must look the same.
//!
//! `PORTOLAN_WALKS` says how many, `PORTOLAN_SEED` where to begin.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use lab::{Namespace, scenario};
use net_types::Family;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, IteratorRandom};
use rand::{Rng, SeedableRng};
use vxlan_overlay::{
    Annotations, Carriers, Config, Filter, HOLD, Kernel, Names, Node, Peers, Preferences,
    RuleOptions,
};

use super::Reconciler;
use crate::metrics::Metrics;
use crate::overlay::OverlayConfig;

mod acts;
mod faults;
mod shell;

use shell::{ip, snapshot, wipe};

const OWN: &str = "node-0";
/// Other nodes there can be.
const OTHERS: u8 = 8;
/// Steps of a walk.
const STEPS: usize = 4;
/// Far more than a step takes on a busy machine; what it takes is printed.
const LIMIT: Duration = Duration::from_secs(10);

/// A node as the walk has it.
#[derive(Clone, Debug)]
struct Member {
    number: u8,
    /// Third part of its pod CIDR.
    range: u8,
    /// It is on the link of `eth0`.
    near: bool,
}

impl Member {
    fn name(&self) -> String {
        format!("node-{}", self.number)
    }

    fn address(&self, family: Family) -> String {
        let last = 10 + self.number;
        match (family, self.near) {
            (Family::Ip, true) => format!("192.168.77.{last}"),
            (Family::Ip, false) => format!("198.51.100.{last}"),
            (Family::Ip6, true) => format!("fd00:77::{last}"),
            (Family::Ip6, false) => format!("2001:db8::{last}"),
        }
    }

    fn range(&self, family: Family) -> String {
        range(family, self.range)
    }

    fn node(&self, about: (&Names, u32)) -> Result<Node> {
        let ranges = Family::ALL.map(|family| self.range(family).parse::<IpNet>());
        let addresses = Family::ALL.map(|family| self.address(family).parse());
        let [v4, v6] = ranges;
        let [first, second] = addresses;
        Ok(Node::new(
            (self.name().into(), Some(i64::from(self.number))),
            &[v4?, v6?],
            &[first?, second?],
            Arc::new(Annotations::new()),
            about,
        ))
    }
}

/// The pod CIDR of this number.
fn range(family: Family, number: u8) -> String {
    match family {
        Family::Ip => format!("10.244.{number}.0/24"),
        Family::Ip6 => format!("fd00:244:{number:x}::/64"),
    }
}

/// The first address of the pod CIDR of this number.
fn gateway(family: Family, number: u8) -> String {
    let range = range(family, number);
    range.split('/').next().unwrap_or_default().to_owned()
}

/// What a walk is at.
struct World {
    rng: StdRng,
    config: Config,
    members: Vec<Member>,
    reconciler: Reconciler,
    /// Time that the walk pretends has passed, so that nothing is held.
    now: Instant,
    /// What was done, to be told when it goes wrong.
    log: Vec<String>,
    longest: Duration,
}

fn overlay_config(config: Config) -> Arc<OverlayConfig> {
    Arc::new(OverlayConfig {
        config,
        preferences: Preferences::default(),
        names: Names::default(),
        own: OWN.into(),
        infer: true,
        rules: RuleOptions {
            masquerade: false,
            filter: Filter::Off,
            probe_port: None,
        },
        own_tables: false,
        set_condition: false,
        subnet_file: PathBuf::new(),
        cni_conf: None,
        cni_bin_dir: None,
        cache: PathBuf::new(),
        encryption: Default::default(),
    })
}

fn reconciler(config: &Config) -> Result<Reconciler> {
    Ok(Reconciler::new(
        overlay_config(config.clone()),
        Kernel::open()?,
        Default::default(),
        Arc::new(Metrics::new()),
    ))
}

impl World {
    fn new(seed: u64) -> Result<World> {
        let config = Config {
            network: Some("10.244.0.0/16".parse()?),
            ipv6_network: Some("fd00:244::/32".parse()?),
            ..Config::default()
        };
        let mut world = World {
            rng: StdRng::seed_from_u64(seed),
            reconciler: reconciler(&config)?,
            config,
            members: Vec::new(),
            now: Instant::now(),
            log: Vec::new(),
            longest: Duration::ZERO,
        };
        world.choose_members();
        Ok(world)
    }

    /// Other nodes, with other pod CIDRs and places.
    fn choose_members(&mut self) {
        let count = self.rng.random_range(1..=usize::from(OTHERS));
        let numbers = (1..=OTHERS).choose_multiple(&mut self.rng, count);
        let mut ranges: BTreeSet<u8> = (1..=2 * OTHERS).collect();
        let mut members = vec![Member {
            number: 0,
            range: *[0, 0, 0, 40].choose(&mut self.rng).unwrap_or(&0),
            near: true,
        }];
        for number in numbers {
            let kept = ranges.contains(&number) && self.rng.random_bool(0.6);
            let range = match kept {
                true => number,
                false => ranges
                    .iter()
                    .copied()
                    .choose(&mut self.rng)
                    .unwrap_or(number),
            };
            ranges.remove(&range);
            members.push(Member {
                number,
                range,
                near: self.rng.random_bool(0.6),
            });
        }
        self.log.push(format!("nodes {members:?}"));
        self.members = members;
    }

    /// Another configuration of the overlay, and the restart that goes with it.
    fn choose_config(&mut self) -> Result<()> {
        let rng = &mut self.rng;
        let families = *[(true, true), (true, true), (true, false), (false, true)]
            .choose(rng)
            .context("a choice")?;
        self.config = Config {
            vni: rng.random_range(1..=2),
            port: if rng.random_bool(0.8) { 8472 } else { 4789 },
            direct_routing: rng.random_bool(0.5),
            blackhole: rng.random_bool(0.3),
            nexthops_above: *[0, 2, 1000].choose(rng).context("a choice")?,
            outer_mtu: *[None, None, Some(1400), Some(1320)]
                .choose(rng)
                .context("a choice")?,
            ipv4: families.0,
            ipv6: families.1,
            ..self.config.clone()
        };
        self.log.push(format!("restart with {:?}", self.config));
        self.reconciler = reconciler(&self.config)?;
        Ok(())
    }

    fn peers(&self) -> Result<Peers> {
        let mut peers = Peers::new(OWN.into());
        let names = Names::default();
        let nodes = self
            .members
            .iter()
            .map(|m| m.node((&names, self.config.vni)));
        let nodes: Vec<Node> = nodes.collect::<Result<_>>()?;
        peers.reset(nodes.into_iter(), self.now);
        Ok(peers)
    }

    fn step(&mut self) -> Result<()> {
        let mut only_nodes = false;
        match self.rng.random_range(0..10) {
            0..=2 => self.choose_config()?,
            3..=4 => {
                self.choose_members();
                only_nodes = self.rng.random_bool(0.5);
            }
            _ => {}
        }
        if !only_nodes {
            self.disturb();
        }
        self.settle(only_nodes)
    }

    /// Runs the reconciler until it has nothing to say, and asks the kernel.
    fn settle(&mut self, only_nodes: bool) -> Result<()> {
        let peers = self.peers()?;
        if only_nodes {
            self.reconciler.skip_observation();
        }
        let start = Instant::now();
        loop {
            let before = self
                .reconciler
                .run(&peers, self.now, false, &Carriers::default());
            // What seemed implausible at the start has lasted.
            self.now += HOLD;
            let again = self
                .reconciler
                .run(&peers, self.now, false, &Carriers::default());
            let Some(trouble) = again else { break };
            ensure!(start.elapsed() < LIMIT, "{trouble}, before {before:?}");
            self.log.push(format!("{trouble:?}"));
        }
        self.longest = self.longest.max(start.elapsed());
        let before = self.reconciler.repairs();
        let trouble = self
            .reconciler
            .run(&peers, self.now, true, &Carriers::default());
        ensure!(
            trouble.is_none() && self.reconciler.repairs() == before,
            "not settled: {trouble:?}"
        );
        self.check_ways()
    }

    /// Whether the kernel sends packets for the pods of each peer where the plan has them.
    fn check_ways(&self) -> Result<()> {
        let plan = self.reconciler.plan();
        for (family, tunnel) in plan.tunnels.iter() {
            let Some(tunnel) = tunnel else {
                let carried = self.config.carries(family);
                ensure!(
                    !carried || !plan.problems.is_empty(),
                    "{family} has no tunnel, and nothing says why"
                );
                continue;
            };
            ensure!(
                tunnel.peers.len() == self.members.len() - 1,
                "{:?} of {:?}: {:?}",
                tunnel.peers.len(),
                self.members,
                plan.problems
            );
            for peer in &tunnel.peers {
                let pod = format!("{}5", peer.pod_cidr.network());
                let pod = pod.replace(".05", ".5");
                let found = ip(&format!("route get {pod}"))?;
                let (via, device) = match peer.direct {
                    Some(_) => (peer.vtep.public_ip, "eth0"),
                    None => (peer.gateway(), tunnel.device.name.as_str()),
                };
                ensure!(
                    found.contains(&format!("via {via} dev {device} ")),
                    "{pod} of {}: {found} instead of via {via} dev {device}",
                    peer.name
                );
            }
        }
        Ok(())
    }

    /// Whether the walk led to the state that is made from nothing.
    fn compare_with_anew(&mut self) -> Result<()> {
        let families = self.reconciler.plan().tunnels.iter();
        let families = families.filter(|(_, tunnel)| tunnel.is_some());
        let devices: Vec<(Family, String)> = families
            .map(|(family, _)| (family, self.config.device_name(family)))
            .collect();
        let walked = snapshot(&devices)?;
        wipe(&devices);
        self.reconciler = reconciler(&self.config)?;
        self.settle(false)?;
        let anew = snapshot(&devices)?;
        ensure!(
            walked == anew,
            "walked and not in the state from nothing: {:#?}\nfrom nothing and not walked: {:#?}",
            walked.difference(&anew).collect::<Vec<_>>(),
            anew.difference(&walked).collect::<Vec<_>>()
        );
        Ok(())
    }
}

fn walk(seed: u64) -> Result<Duration> {
    shell::prepare()?;
    let mut world = World::new(seed)?;
    let mut steps = || -> Result<()> {
        world.settle(false)?;
        for _ in 0..STEPS {
            world.step()?;
        }
        world.compare_with_anew()
    };
    let done = steps();
    done.with_context(|| {
        let log = world.log.join("\n");
        let plan = world.reconciler.plan();
        format!(
            "PORTOLAN_SEED={seed} PORTOLAN_WALKS=1\n{log}\n{plan:#?}\n{}",
            shell::all()
        )
    })?;
    Ok(world.longest)
}

fn number(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text}")),
        Err(_) => Ok(default),
    }
}

#[scenario(Vxlan)]
fn any_walk_ends_in_the_state_made_from_nothing() -> Result<()> {
    let (walks, first) = (number("PORTOLAN_WALKS", 40)?, number("PORTOLAN_SEED", 1)?);
    let next = Arc::new(AtomicU64::new(first));
    let longest = Arc::new(Mutex::new(Duration::ZERO));
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let worker = || -> Result<()> {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + walks {
                return Ok(());
            }
            let namespace = Namespace::new("walk")?;
            let took = namespace.run(move || walk(seed))?;
            if took.is_err() {
                next.store(u64::MAX / 2, Ordering::Relaxed);
            }
            let took = took?;
            let mut longest = longest.lock().map_err(|_| anyhow::anyhow!("poisoned"))?;
            *longest = took.max(*longest);
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        for worker in workers {
            match worker.join() {
                Ok(result) => result?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok::<(), anyhow::Error>(())
    })?;
    let longest = longest.lock().map_err(|_| anyhow::anyhow!("poisoned"))?;
    println!("{walks} walks from seed {first}; the longest step took {longest:?}");
    if *longest > LIMIT {
        bail!("a step took {longest:?}");
    }
    Ok(())
}
