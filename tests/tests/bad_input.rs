//! Bad input of every kind (the table is [`portolan_tests::bad_input`]): each bad thing is named, everything else works.
//!
//! What is everything else: a Service that does not change answers every connection, a good edit of another one
//! gets in after each bad thing, another program's table stays as it was, no foreign text is in any ruleset, and when
//! the bad thing is gone our tables are what they were before.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::fake_api::{FakeApi, Resource, Seen};
use lab::{
    ConnectionStream, Daemon, Outcome, Probe, Protocol, node_object, scenario, wait_for, wait_until,
};
use nft::TableContents;
use portolan_tests::bad_input::{Content, Find, MARK, Row, Source, files, has_words, rows};
use portolan_tests::stage::{PATIENCE, Stage, service};
use serde_json::Value;

const BYSTANDER: &str = "table inet bystander {
    map m { type ipv4_addr : ipv4_addr; elements = { 192.0.2.1 : 192.0.2.2 } }
    chain c { type filter hook forward priority 7; ip saddr 192.0.2.1 drop comment \"not yours\"; }
}";

/// The stage with the program on it, before anything is bad.
struct World<'a> {
    stage: &'a Stage,
    api: Option<FakeApi>,
    daemon: Daemon,
    steady: ConnectionStream,
    bystander: String,
    good: Vec<Value>,
    tables: [Option<TableContents>; 2],
}

impl<'a> World<'a> {
    fn new(stage: &'a Stage, source: Source) -> Result<World<'a>> {
        stage.node.nft_stdin(BYSTANDER)?;
        let bystander = stage.node.nft(&["list", "table", "inet", "bystander"])?;
        let mut good = vec![node_object(&stage.node)];
        let constant = service("steady", 81);
        good.extend(stage.objects(&constant, 0..4));
        good.extend(stage.objects(&stage.web, 0..4));
        good.extend(portolan_tests::bad_input::good(stage));
        // One of the rows has the node itself for an endpoint, and one has a thousand addresses of a pod.
        stage.node.serve(Protocol::Tcp, 8080)?;
        thousand_addresses(stage)?;

        let mut api = None;
        let daemon = match source {
            Source::Manifests => {
                write_files(stage, &good)?;
                stage.start(&[])?
            }
            Source::Api => {
                let (server, kubeconfig) = stage.serve_api(good.clone())?;
                api = Some(server);
                stage.start_with(&["--kubeconfig", &kubeconfig], &[])?
            }
        };
        stage.wait_until_ready(&daemon)?;
        stage.wait_for_backends(&stage.web, 4)?;
        let probe = Probe::new(Protocol::Tcp, Stage::address(&constant)?);
        Ok(World {
            stage,
            api,
            daemon,
            steady: stage
                .client
                .stream_connections(probe, Duration::from_millis(1))?,
            bystander,
            good,
            tables: stage.tables()?,
        })
    }

    /// Applies objects or files over the present ones.
    fn apply(&self, content: &Content) -> Result<()> {
        match (&self.api, content) {
            (None, Content::Objects(objects)) => write_files(self.stage, objects),
            (None, Content::Files(files)) => files.iter().try_for_each(|(name, text)| {
                let folder = self.stage.manifests.path();
                fs::write(folder.join(".new"), text)?;
                Ok(fs::rename(folder.join(".new"), folder.join(name))?)
            }),
            (Some(api), Content::Objects(objects)) => api.apply_all(objects.clone()),
            (Some(_), Content::Files(_)) => bail!("an API server has no files"),
        }
    }

    /// A good edit.
    fn edit_web(&self, pods: usize) -> Result<()> {
        self.apply(&Content::Objects(
            self.stage.objects(&self.stage.web, 0..pods),
        ))
    }

    /// Applies a case as a change, and takes it back.
    fn check(&self, row: &Row) -> Result<()> {
        let mark = self.daemon.lines().len();
        self.apply(&row.content)?;
        self.holds(row, mark)?;
        self.make_good(row)
    }

    /// Lists everything again while a case is applied: traffic does not change, and no problem is logged twice.
    fn check_list(&self, row: &Row) -> Result<()> {
        let api = self.api.as_ref().context("no API server")?;
        let mark = self.daemon.lines().len();
        self.apply(&row.content)?;
        self.holds(row, mark)?;
        let mark = self.daemon.lines().len();
        let lists = || {
            let seen = api.seen().into_iter();
            let of_services = seen.filter(|seen| seen.resource == Resource::Services);
            of_services.filter(Seen::is_whole_list).count()
        };
        let before = lists();
        api.expire_watches();
        wait_until("Services to be listed again", PATIENCE, || lists() > before)?;
        self.serves(row)?;
        self.make_good(row)?;
        let lines = self.daemon.lines();
        let mut new = lines.get(mark..).unwrap_or_default().iter();
        let is_named = |line: &&String| row.named.iter().any(|words| has_words(line, words));
        let again = new.find(is_named);
        ensure!(again.is_none(), "logged again: {again:?}");
        Ok(())
    }

    /// Starts the program while a case is applied.
    fn check_start(&mut self, row: &Row) -> Result<()> {
        self.daemon.kill()?;
        self.apply(&row.content)?;
        self.daemon = self.stage.start_synced(&[])?;
        self.holds(row, 0)?;
        self.make_good(row)
    }

    fn make_good(&self, row: &Row) -> Result<()> {
        self.take_back(&row.content)?;
        self.edit_web(4)?;
        wait_until("the tables as they were before", PATIENCE, || {
            self.stage
                .tables()
                .is_ok_and(|tables| tables == self.tables)
        })
    }

    /// Checks log and traffic after a change that was made when the log had `mark` lines.
    fn holds(&self, row: &Row, mark: usize) -> Result<()> {
        let in_file = |line: &str| self.api.is_some() || line.contains(".yaml");
        for words in &row.named {
            let is_named = |line: &str| has_words(line, words) && in_file(line);
            self.wait_for_line(mark, words, is_named)?;
        }
        for texts in &row.said {
            let all = |line: &str| texts.iter().all(|text| line.contains(text.as_str()));
            self.wait_for_line(mark, texts, all)?;
        }
        self.serves(row)
    }

    /// What becomes of traffic while it is there.
    fn serves(&self, row: &Row) -> Result<()> {
        // What the kernel has of the bad thing, it has when it has this.
        self.edit_web(3)?;
        self.stage.wait_for_backends(&self.stage.web, 3)?;
        wait_for("what a client finds", PATIENCE, || {
            let found = self.find(row)?;
            ensure!(
                found == row.find,
                "{found:?} at {} instead of {:?}",
                row.to,
                row.find
            );
            Ok(())
        })?;
        self.nobody_else_is_touched()
    }

    fn wait_for_line(
        &self,
        mark: usize,
        words: &[String],
        is_it: impl Fn(&str) -> bool,
    ) -> Result<()> {
        wait_for(&format!("a line with {words:?}"), PATIENCE, || {
            let lines = self.daemon.lines();
            let new = lines.get(mark..).unwrap_or_default();
            let named = new.iter().any(|line| is_it(line));
            ensure!(named, "the log has\n{}", new.join("\n"));
            Ok(())
        })
    }

    fn find(&self, row: &Row) -> Result<Find> {
        let client = &self.stage.client;
        Ok(match client.connect(Protocol::Tcp, row.to)? {
            Outcome::Refused => Find::Refusal,
            Outcome::Unreachable => Find::Nothing,
            Outcome::TimedOut => bail!("{} does not answer", row.to),
            Outcome::Answered { .. } => {
                let tally = client.connect_many(Protocol::Tcp, row.to, 60)?;
                ensure!(tally.failed() == 0, "{tally:?}");
                Find::Servers(tally.servers.len())
            }
        })
    }

    fn nobody_else_is_touched(&self) -> Result<()> {
        let bystander = self
            .stage
            .node
            .nft(&["list", "table", "inet", "bystander"])?;
        ensure!(
            bystander == self.bystander,
            "the bystander is now {bystander}"
        );
        let ruleset = self.stage.node.nft(&["list", "ruleset"])?;
        ensure!(!ruleset.contains(MARK), "foreign text in {ruleset}");
        let tables = ruleset.lines().filter(|line| line.starts_with("table "));
        ensure!(tables.count() == 3, "other tables in {ruleset}");
        Ok(())
    }

    fn take_back(&self, content: &Content) -> Result<()> {
        match (&self.api, content) {
            (None, Content::Files(files)) => {
                for (name, _) in files {
                    fs::remove_file(self.stage.manifests.path().join(name))?;
                }
            }
            (None, Content::Objects(_)) => {}
            (Some(api), Content::Objects(objects)) => {
                for object in objects {
                    let text = |pointer| text_at(object, pointer);
                    let resource = Resource::ALL
                        .into_iter()
                        .find(|resource| resource.kind() == text("/kind"));
                    let resource = resource.context("a kind of ours")?;
                    let is_good = |good: &&Value| {
                        ["/kind", "/metadata/namespace", "/metadata/name"]
                            .iter()
                            .all(|pointer| good.pointer(pointer) == object.pointer(pointer))
                    };
                    if self.good.iter().find(is_good).is_none() {
                        api.delete(
                            resource,
                            text("/metadata/namespace"),
                            text("/metadata/name"),
                        );
                    }
                }
            }
            (Some(_), Content::Files(_)) => {}
        }
        self.apply(&Content::Objects(self.good.clone()))
    }

    /// The end: no connection to a Service that did not change was lost, and the log is one.
    fn close(self) -> Result<()> {
        ensure!(self.daemon.is_running(), "the program has ended");
        let steady = self.steady.stop();
        ensure!(
            steady.tally.answered() > 1000,
            "too few connections: {:?}",
            steady.tally
        );
        ensure!(
            steady.failures.is_empty(),
            "connections failed: {:?}",
            steady.failures
        );
        for line in self.daemon.lines() {
            let whole = line.starts_with("20") && !line.contains(char::is_control);
            ensure!(whole && line.len() < 2000, "no line of a log: {line:?}");
        }
        Ok(())
    }
}

/// A text of an object, empty if it is not there.
fn text_at<'a>(object: &'a Value, pointer: &str) -> &'a str {
    let text = object.pointer(pointer).and_then(Value::as_str);
    text.unwrap_or_default()
}

/// Writes each Service and the objects that belong to it into a file of its name.
fn write_files(stage: &Stage, objects: &[Value]) -> Result<()> {
    let mut files: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    let mut file = "victim.yaml";
    for object in objects {
        let text = |pointer| text_at(object, pointer);
        file = match (text("/kind"), text("/metadata/name")) {
            ("Node", _) => "nodes.yaml",
            ("Service", "web") => "web.yaml",
            ("Service", "steady") => "steady.yaml",
            ("Service" | "ServiceCIDR", _) => "victim.yaml",
            _ => file,
        };
        files.entry(file).or_default().push(object);
    }
    files
        .into_iter()
        .try_for_each(|(name, objects)| stage.manifests.write_objects(name, objects))
}

/// Makes 10.244.200.0/22 addresses of the third pod, which answers on every port.
fn thousand_addresses(stage: &Stage) -> Result<()> {
    let pod = &stage.pods[2];
    let mut route = stage.node.command("ip");
    route.args([
        "route",
        "add",
        "10.244.200.0/22",
        "via",
        &pod.ipv4().to_string(),
    ]);
    let output = stage.node.output(route)?;
    ensure!(output.status.success(), "{output:?}");
    pod.nft_stdin(
        "table ip many { chain c {
            type nat hook prerouting priority dstnat
            ip daddr 10.244.200.0/22 tcp dport 1-65535 redirect to :8080
        }; }",
    )?;
    Ok(())
}

fn each(rows: &[Row], source: Source, mut check: impl FnMut(&Row) -> Result<()>) -> Result<()> {
    let mut checked = 0;
    for row in rows {
        if row.only.is_none_or(|only| only == source) {
            check(row).with_context(|| row.what.clone())?;
            checked += 1;
        }
    }
    println!("{checked} rows");
    ensure!(checked > 0, "nothing was checked");
    Ok(())
}

#[scenario(Nft)]
fn bad_manifests_are_named_and_all_else_works() -> Result<()> {
    let stage = Stage::new()?;
    let mut world = World::new(&stage, Source::Manifests)?;
    let mut rows = rows(&stage)?;
    each(&rows, Source::Manifests, |row| world.check(row))?;
    each(&files(&stage), Source::Manifests, |row| world.check(row))?;
    rows.retain(|row| !row.keeps_last_good && row.is_about_others());
    each(&rows, Source::Manifests, |row| world.check_start(row))?;
    world.close()
}

#[scenario(Nft)]
fn bad_api_objects_are_named_and_all_else_works() -> Result<()> {
    let stage = Stage::new()?;
    let world = World::new(&stage, Source::Api)?;
    let rows = rows(&stage)?;
    each(&rows, Source::Api, |row| world.check(row))?;
    // The source lets longer and longer times pass between two lists: one row has to do.
    let all = rows.iter().find(|row| row.what == "everything-turns-bad");
    world.check_list(all.context("no case in which everything turns bad")?)?;
    world.close()
}
