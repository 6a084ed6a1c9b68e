//! What a change may cost, in counted work: transactions, elements, walks of conntrack, wake-ups of threads. Counts do not
//! depend on the speed of the machine, so that a change that makes each change cost more fails here first.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::fake_api::{FakeApi, Resource, Seen};
use lab::{Daemon, HEALTH_PORT, scenario, wait_until};
use nft::{Backend, Element, Family, Kernel};
use portolan_tests::commands::run;
use portolan_tests::overlay::{OverlayStage, metric};
use portolan_tests::stage::{PATIENCE, Stage, service};
use serde_json::{Value, json};
use service_dataplane::layout;

/// Changes that are counted.
const CHANGES: u64 = 60;
/// Elements of a change: a pod comes to a Service with a cluster IP and a node port, or goes. At each of the two a slot, and
/// the move from one set of sizes to another.
const ELEMENTS: u64 = 6;
/// Wake-ups of all threads for a change: the source's, the control loop's, and what other machines may need.
const MOST_WAKE_UPS: u64 = 10;

/// Work so far.
#[derive(Debug)]
struct Work {
    commits: u64,
    elements: u64,
    walks: u64,
    wake_ups: WakeUps,
}

impl Work {
    fn of(stage: &Stage, daemon: &Daemon) -> Result<Work> {
        let counter = |name: &str| metric(&stage.node, &format!("portolan_{name}_total "));
        Ok(Work {
            commits: counter("commits")?,
            elements: counter("elements_written")?,
            walks: counter("conntrack_walks")?,
            wake_ups: WakeUps::of(daemon)?,
        })
    }
}

/// How often each thread of the program has waited, by its number (`voluntary_ctxt_switches` in proc_pid_status(5)).
#[derive(Debug, Default)]
struct WakeUps(BTreeMap<u32, (String, u64)>);

impl WakeUps {
    fn of(daemon: &Daemon) -> Result<WakeUps> {
        let mut threads = BTreeMap::new();
        for thread in fs::read_dir(format!("/proc/{}/task", daemon.pid()))? {
            let thread = thread?;
            // A thread may have ended meanwhile.
            let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
            let field = |name| {
                let mut lines = status.lines();
                lines.find_map(|line| Some(line.strip_prefix(name)?.trim()))
            };
            if let (Some(name), Some(count)) = (field("Name:"), field("voluntary_ctxt_switches:")) {
                let number = thread.file_name().to_string_lossy().parse()?;
                threads.insert(number, (name.to_owned(), count.parse()?));
            }
        }
        Ok(WakeUps(threads))
    }

    /// Wake-ups since then, by name. Threads that have ended since then count for nothing.
    fn since(&self, before: &WakeUps) -> BTreeMap<&str, u64> {
        let mut all = BTreeMap::new();
        for (number, (name, count)) in &self.0 {
            let known = before.0.get(number);
            let before = known.map_or(0, |(_, count)| *count);
            *all.entry(name.as_str()).or_default() += count.saturating_sub(before);
        }
        all
    }

    fn sum_since(&self, before: &WakeUps) -> u64 {
        self.since(before).values().sum()
    }
}

#[test]
fn a_thread_that_ends_takes_no_wake_ups_of_others_away() {
    let threads = |threads: &[(u32, &str, u64)]| {
        let each = threads.iter();
        WakeUps(
            each.map(|(tid, name, count)| (*tid, ((*name).to_owned(), *count)))
                .collect(),
        )
    };
    let before = threads(&[(1, "control", 10), (2, "worker", 500)]);
    let after = threads(&[(1, "control", 17), (3, "worker", 4)]);
    assert_eq!(after.sum_since(&before), 11);
    assert_eq!(after.since(&before)["worker"], 4);
}

/// Slots of IPv4 cluster IPs in the kernel.
fn slots(stage: &Stage) -> Result<usize> {
    stage.node.run(|| {
        let mut kernel = Kernel::open_to_read(layout::TABLE.into())?;
        let table = kernel.list(Family::Ip)?.context("no table")?;
        Ok(table.elements.get("backends").map_or(0, Vec::len))
    })?
}

/// The IPv4 slots of frontends with 300 endpoints in the kernel.
fn large_slots(stage: &Stage) -> Result<Vec<Element>> {
    stage.node.run(|| {
        let mut kernel = Kernel::open_to_read(layout::TABLE.into())?;
        let table = kernel.list(Family::Ip)?.context("no table")?;
        let map = table.elements.get("backends_300");
        Ok(map.context("no map of 300 endpoints")?.clone())
    })?
}

#[scenario(Nft)]
fn a_replaced_endpoint_of_a_large_service_moves_few_others() -> Result<()> {
    let stage = Stage::new()?;
    let write = |first: u32| {
        let mut objects = stage.objects(&stage.web, 0..1);
        for slice in objects
            .iter_mut()
            .filter(|one| one["addressType"] == "IPv4")
        {
            // No pod has these addresses.
            let address = |n| Ipv4Addr::from_bits(0x0af4_6400 + n).to_string();
            let all = (first..first + 300).map(|n| json!({"addresses": [address(n)]}));
            slice["endpoints"] = all.collect();
        }
        stage.manifests.write_objects("web.yaml", &objects)
    };
    let is_as_wanted = || run(&stage.node, &["verify"]).is_ok_and(|ran| ran.code == 0);
    write(0)?;
    let daemon = stage.start_synced(&[])?;
    for first in 1..4 {
        let before = large_slots(&stage)?;
        write(first)?;
        wait_until("the new endpoint", PATIENCE, || {
            large_slots(&stage).is_ok_and(|after| after != before)
        })?;
        let after = large_slots(&stage)?;
        let moved = after.iter().filter(|slot| !before.contains(slot)).count();
        ensure!(after.len() == 300 && moved <= 60, "{moved} of 300 slots");
        wait_until("what is wanted", PATIENCE, is_as_wanted)?;
    }
    // The next process gives each endpoint the slot that it has.
    daemon.kill()?;
    let _daemon = stage.start_synced(&[])?;
    let written = metric(&stage.node, "portolan_elements_written_total ")?;
    ensure!(written == 0, "the next process wrote {written} elements");
    wait_until("what the next process wants", PATIENCE, is_as_wanted)
}

#[scenario(Nft)]
fn sixty_changes_take_no_more_work_than_they_need() -> Result<()> {
    let stage = Stage::new()?;
    let (api, kubeconfig) = stage.serve_api(stage.all_objects())?;
    let daemon = stage.start_with(&["--kubeconfig", &kubeconfig], &[])?;
    stage.wait_until_ready(&daemon)?;
    stage.wait_for_backends(&stage.web, 4)?;
    let before = Work::of(&stage, &daemon)?;
    for n in 0..CHANGES {
        let pods = if n % 2 == 0 { 0..3 } else { 0..4 };
        let wanted = pods.len();
        let objects = stage.objects(&stage.web, pods).into_iter();
        let slice = { objects }.find(|object| object["addressType"] == "IPv4");
        api.apply(slice.context("no slice")?)?;
        wait_until("the change to be committed", PATIENCE, || {
            slots(&stage).is_ok_and(|slots| slots == wanted)
        })?;
    }
    // The commit is counted after the kernel has acknowledged it.
    wait_until("all commits to be counted", PATIENCE, || {
        let commits = metric(&stage.node, "portolan_commits_total ");
        commits.is_ok_and(|commits| commits >= before.commits + CHANGES)
    })?;
    let after = Work::of(&stage, &daemon)?;
    eprintln!("{before:?}, {after:?}");
    let (elements, walks) = (after.elements - before.elements, after.walks - before.walks);
    ensure!(
        after.commits - before.commits == CHANGES,
        "one transaction for each change"
    );
    ensure!(
        elements <= CHANGES * ELEMENTS,
        "{elements} elements written"
    );
    ensure!(
        walks == 0,
        "{walks} walks of conntrack, where nothing is stale"
    );
    let wake_ups = after.wake_ups.sum_since(&before.wake_ups);
    ensure!(wake_ups <= CHANGES * MOST_WAKE_UPS, "{wake_ups} wake-ups");
    Ok(())
}

/// Sustained churn: Services, changes, and how many a second.
const CHURNED: u8 = 20;
const CHURN: u32 = 400;
const RATE: u32 = 100;
/// Wake-ups of all threads for a change under churn: about one of the control thread, and what runs by time.
const CHURN_WAKE_UPS: f64 = 1.6;
/// System calls for a change under churn: to receive and to commit it, and what runs by time.
const CHURN_CALLS: f64 = 8.0;

/// Twenty Services whose endpoints change in turn.
struct Churn {
    /// The IPv4 slices of each Service, with three and with four pods.
    slices: Vec<[Value; 2]>,
}

impl Churn {
    /// Adds the Services to a fake API server.
    fn start(stage: &Stage, api: &FakeApi) -> Result<Churn> {
        let mut slices = Vec::new();
        for n in 0..CHURNED {
            let service = service(&format!("churned-{n}"), n + 100);
            let slice = |pods| {
                let objects = stage.objects(&service, pods).into_iter();
                let slice = { objects }.find(|object| object["addressType"] == "IPv4");
                slice.context("no slice")
            };
            slices.push([slice(0..3)?, slice(0..4)?]);
            api.apply_all(stage.objects(&service, 0..4))?;
        }
        let churn = Churn { slices };
        churn.wait(stage, 4)?;
        Ok(churn)
    }

    fn wait(&self, stage: &Stage, pods: usize) -> Result<()> {
        // Those of `web` do not change.
        let wanted = 4 + self.slices.len() * pods;
        wait_until("all changes to be committed", PATIENCE, || {
            slots(stage).is_ok_and(|slots| slots == wanted)
        })
    }

    /// Makes the changes at a steady rate, and waits until they are committed. Returns how long they went on.
    fn run(&self, stage: &Stage, api: &FakeApi) -> Result<Duration> {
        let start = Instant::now();
        let services = self.slices.len() as u32;
        for n in 0..CHURN {
            let due = start + Duration::from_secs(1) / RATE * n;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let (round, place) = (n / services, (n % services) as usize);
            let versions = self.slices.get(place).context("no Service")?;
            api.apply(versions[(round % 2) as usize].clone())?;
        }
        // The number of rounds is even.
        self.wait(stage, 4)?;
        Ok(start.elapsed())
    }
}

#[scenario(Nft)]
fn a_change_under_churn_wakes_few_threads_and_walks_nothing() -> Result<()> {
    let stage = Stage::new()?;
    let (api, kubeconfig) = stage.serve_api(stage.all_objects())?;
    let daemon = stage.start_with(&["--kubeconfig", &kubeconfig], &[])?;
    stage.wait_until_ready(&daemon)?;
    let churn = Churn::start(&stage, &api)?;
    let before = Work::of(&stage, &daemon)?;
    let time = churn.run(&stage, &api)?;
    let after = Work::of(&stage, &daemon)?;
    for (thread, count) in after.wake_ups.since(&before.wake_ups) {
        eprintln!(
            "{thread}: {:.2} wake-ups a change",
            f64::from(count as u32) / f64::from(CHURN)
        );
    }
    eprintln!("{before:?}, {after:?} in {time:?}");
    let changes = u64::from(CHURN);
    let (commits, elements) = (
        after.commits - before.commits,
        after.elements - before.elements,
    );
    ensure!(commits <= changes, "{commits} transactions");
    ensure!(
        elements <= changes * ELEMENTS,
        "{elements} elements written"
    );
    // Pods go whose connections might be unanswered, but none is.
    let walks = after.walks - before.walks;
    ensure!(
        walks == 0,
        "{walks} walks of conntrack, where nothing is stale"
    );
    let wake_ups = after.wake_ups.sum_since(&before.wake_ups) as f64 / f64::from(CHURN);
    ensure!(wake_ups <= CHURN_WAKE_UPS, "{wake_ups} wake-ups a change");
    Ok(())
}

#[scenario(Nft)]
#[ignore = "needs strace"]
fn a_change_under_churn_takes_few_system_calls() -> Result<()> {
    let stage = Stage::new()?;
    let (api, kubeconfig) = stage.serve_api(stage.all_objects())?;
    let calls = stage.manifests.path().join("calls");
    let calls_file = calls.display().to_string();
    let tracer = ["-D", "-f", "-qq", "-o", &calls_file, "-e", "signal=none"];
    let daemon = stage.start_traced(&tracer, &["--kubeconfig", &kubeconfig])?;
    stage.wait_until_ready(&daemon)?;
    let churn = Churn::start(&stage, &api)?;
    let before = fs::read_to_string(&calls)?.len();
    churn.run(&stage, &api)?;
    let traced = fs::read_to_string(&calls)?;
    let mut kinds = BTreeMap::<&str, u32>::new();
    // `1234 sendto(9, ...`; the second half of a call that was interrupted begins with `<`.
    for line in traced.get(before..).unwrap_or_default().lines() {
        let call = line.split_whitespace().nth(1).unwrap_or_default();
        if let Some((name, _)) = call.split_once('(') {
            *kinds.entry(name).or_default() += 1;
        }
    }
    let all: u32 = kinds.values().sum();
    eprintln!("{kinds:?}");
    let each = f64::from(all) / f64::from(CHURN);
    ensure!(all > CHURN, "only {all} calls were traced");
    ensure!(
        each <= CHURN_CALLS,
        "{each} system calls a change: {kinds:?}"
    );
    Ok(())
}

/// What comes in an hour on a quiet cluster: scrapes each 15 s, and probes each 10 s.
const SCRAPES: usize = 240;
const PROBES: usize = 360;

/// Lines are counted over what comes from outside in an hour, which needs no hour. Ends of watches are not in it.
#[scenario(Nft)]
fn an_hours_work_on_a_quiet_cluster_logs_one_line() -> Result<()> {
    let stage = Stage::new()?;
    let (api, kubeconfig) = stage.serve_api(stage.all_objects())?;
    let source = ["--kubeconfig", &kubeconfig];
    let daemon = stage.start_with(&source, &["--service-traffic=on"])?;
    stage.wait_until_ready(&daemon)?;
    stage.wait_for_backends(&stage.web, 4)?;
    let get = |port: u16, path: &str| -> Result<()> {
        let answer = stage.node.http_get(([127, 0, 0, 1], port).into(), path)?;
        let (code, text) = answer.context("refused")?;
        ensure!(code == 200, "{path}: {code} {text}");
        Ok(())
    };
    get(10_249, "/metrics")?;
    let before = daemon.lines().len();
    for _ in 0..SCRAPES {
        get(10_249, "/metrics")?;
    }
    for _ in 0..PROBES {
        get(HEALTH_PORT, "/healthz")?;
        get(HEALTH_PORT, "/livez")?;
    }
    // A change comes through, so all that was to be logged before is there.
    api.apply_all(stage.objects(&stage.web, 0..3))?;
    stage.wait_for_backends(&stage.web, 3)?;
    let lines = daemon.lines().split_off(before);
    let others: Vec<&String> = lines
        .iter()
        .filter(|line| !line.contains("committed"))
        .collect();
    ensure!(others.len() <= 1, "{others:#?}");
    Ok(())
}

/// Seconds in which an idle daemon is watched.
const IDLE: u64 = 10;
/// Wake-ups of all threads in that time: timers of whole seconds. A timer wakes its thread twice.
const MOST_IDLE_WAKE_UPS: u64 = 30;
/// Failover reads conntrack up to ten times a second, as often as that is cheap.
const OF_FAILOVER: u64 = IDLE * 10 * 2;
/// Processor time in that time: one percent, unoptimized.
const MOST_IDLE_TICKS: u64 = IDLE;

/// Waits until the daemon is idle: until it wakes no oftener than this, and takes as little time.
fn becomes_idle(daemon: &Daemon, most: u64) -> Result<()> {
    // What the start leaves to be done takes some seconds.
    for _ in 0..6 {
        let before = (WakeUps::of(daemon)?, ticks(daemon)?);
        std::thread::sleep(Duration::from_secs(IDLE));
        let woken = WakeUps::of(daemon)?.sum_since(&before.0);
        let ticks = ticks(daemon)? - before.1;
        eprintln!("{woken} wake-ups and {ticks} ticks in {IDLE} s");
        if woken <= most && ticks <= MOST_IDLE_TICKS {
            return Ok(());
        }
    }
    anyhow::bail!("more than {most} wake-ups or {MOST_IDLE_TICKS} ticks each time")
}

/// Processor time in ticks of 10 ms (proc_pid_stat(5)).
fn ticks(daemon: &Daemon) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", daemon.pid()))?;
    let (_, fields) = stat.rsplit_once(") ").context("no name")?;
    let times = fields.split(' ').skip(11).take(2);
    Ok(times.map(str::parse::<u64>).sum::<Result<u64, _>>()?)
}

#[scenario(Nft)]
fn an_idle_daemon_hardly_ever_wakes() -> Result<()> {
    let stage = Stage::new()?;
    let (_api, kubeconfig) = stage.serve_api(stage.all_objects())?;
    for (failover, most) in [
        ("off", MOST_IDLE_WAKE_UPS),
        ("on", MOST_IDLE_WAKE_UPS + OF_FAILOVER),
    ] {
        let failover = format!("--failover={failover}");
        let daemon = stage.start_with(&["--kubeconfig", &kubeconfig], &[&failover])?;
        stage.wait_until_ready(&daemon)?;
        stage.wait_for_backends(&stage.web, 4)?;
        becomes_idle(&daemon, most)?;
    }
    Ok(())
}

#[scenario(Vxlan, Nft)]
fn an_idle_overlay_hardly_ever_wakes() -> Result<()> {
    let stage = OverlayStage::new(2)?;
    let (_api, kubeconfig) = stage.serve_api()?;
    // A round of probes costs what it measures.
    let flags = ["--overlay-probe-port=0", "--failover=off"];
    let daemon = stage.start_with_api(0, &kubeconfig, &flags)?;
    let _other = stage.start_with_api(1, &kubeconfig, &flags)?;
    stage.wait_for_mesh()?;
    becomes_idle(&daemon, MOST_IDLE_WAKE_UPS)
}

/// Services that are invalid, in four ways.
const INVALID: usize = 2_000;

fn invalid_service(stage: &Stage, n: usize) -> Value {
    let mut object = stage.web.object();
    object["metadata"]["name"] = format!("invalid-{n:05}").into();
    let (field, value) = [
        ("clusterIPs", json!(["none of these"])),
        ("ports", json!([{ "port": 80_000, "protocol": "TCP" }])),
        ("ports", json!("many")),
        ("externalIPs", json!({ "a": 1 })),
    ][n % 4]
        .clone();
    object["spec"][field] = value;
    object
}

/// Which invalid Services the log names, each as often as it does.
fn named(lines: &[String]) -> BTreeMap<String, usize> {
    let mut named = BTreeMap::new();
    for line in lines {
        // A line about one object has its name in the text and in a field.
        let names = line.split("default/invalid-").skip(1);
        let names: BTreeSet<&str> = names.filter_map(|rest| rest.get(..5)).collect();
        for name in names {
            *named.entry(name.to_owned()).or_default() += 1;
        }
    }
    named
}

/// Lists of all Services so far, also those that come as a stream.
fn lists_of_services(api: &FakeApi) -> usize {
    let seen = api.seen().into_iter();
    let of_services = seen.filter(|seen| seen.resource == Resource::Services);
    of_services.filter(Seen::is_whole_list).count()
}

#[scenario(Nft)]
fn thousands_of_invalid_services_cost_lines_and_nothing_else() -> Result<()> {
    let stage = Stage::new()?;
    let mut work = Vec::new();
    let mut watched = None;
    for invalid in [0, INVALID] {
        drop(watched.take());
        let (api, kubeconfig) = stage.serve_api(stage.all_objects())?;
        api.apply_all((0..invalid).map(|n| invalid_service(&stage, n)))?;
        stage.node.nft(&["flush", "ruleset"])?;
        let daemon = stage.start_with(&["--kubeconfig", &kubeconfig], &[])?;
        stage.wait_until_ready(&daemon)?;
        stage.wait_for_backends(&stage.web, 4)?;
        work.push((Work::of(&stage, &daemon)?, ticks(&daemon)?));
        watched = Some((api, daemon));
    }
    let (api, daemon) = watched.context("started twice")?;
    println!("without and with {INVALID} invalid Services: {work:?}");
    let [(without, _), (with, _)] = work.as_slice() else {
        anyhow::bail!("two starts")
    };
    ensure!(with.commits == without.commits && with.elements == without.elements);

    // While the log is still naming them, a change is committed as ever.
    for count in [3, 2, 4] {
        api.apply_all(stage.objects(&stage.web, 0..count))?;
        stage.wait_for_backends(&stage.web, count)?;
    }
    wait_until("each to be named", PATIENCE, || {
        named(&daemon.lines()).len() == INVALID
    })?;
    // A list brings all of them again, and is no reason to name them again.
    let listed = lists_of_services(&api);
    api.expire_watches();
    wait_until("Services to be listed again", PATIENCE, || {
        lists_of_services(&api) > listed
    })?;
    // Each kind is listed again after a pause of its own. The first new Service comes with the list of Services or after it,
    // and the second one after all that the list led to.
    for coming in [service("coming", 83), service("later", 84)] {
        api.apply_all(stage.objects(&coming, 0..1))?;
        stage.wait_for_backends(&coming, 1)?;
    }
    let invalid = metric(&stage.node, "portolan_invalid_objects{kind=\"Service\"}")?;
    ensure!(invalid == INVALID as u64, "{invalid} invalid Services");
    let lines = daemon.lines();
    let often = named(&lines);
    ensure!(
        often.len() == INVALID && often.values().all(|times| *times == 1),
        "{often:?}"
    );
    ensure!(lines.len() < 250, "{} lines", lines.len());
    let events = api.events().len();
    ensure!(events < 40, "{events} Events");
    Ok(())
}
