//! The walk's namespace, by the tools that people use: it is prepared, changed and read by `ip` and `bridge`.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use net_types::Family;

/// Runs one line of `ip`, which has to succeed.
pub(super) fn ip(line: &str) -> Result<String> {
    let output = Command::new("ip").args(line.split(' ')).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {line}: {said}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs lines of a program; what cannot be done is passed over.
pub(super) fn attempt(program: &str, lines: &[String]) {
    let mut command = Command::new(program);
    command.args(["-force", "-batch", "-"]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if let Ok(mut child) = command.spawn() {
        let text = lines.join("\n") + "\n";
        let _ = child
            .stdin
            .take()
            .map(|mut pipe| pipe.write_all(text.as_bytes()));
        let _ = child.wait();
    }
}

/// Two interfaces; the default route leads by the first.
pub(super) fn prepare() -> Result<()> {
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/keep_addr_on_down", "1");
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0");
    for line in [
        "link set lo up",
        "link add eth0 type veth peer name eth0-end",
        "link add eth1 type veth peer name eth1-end",
        "link set eth0-end up",
        "link set eth1-end up",
        "link set eth0 up",
        "link set eth1 up",
        "addr add 192.168.77.10/24 dev eth0",
        "addr add fd00:77::10/64 dev eth0 nodad",
        "addr add 192.168.88.10/24 dev eth1",
        "addr add fd00:88::10/64 dev eth1 nodad",
        "route add default via 192.168.77.1",
        "-6 route add default via fd00:77::1",
    ] {
        ip(line)?;
    }
    Ok(())
}

/// Deletes everything of the overlay.
pub(super) fn wipe(devices: &[(Family, String)]) {
    let mut lines: Vec<String> = devices
        .iter()
        .map(|(_, device)| format!("link del {device}"))
        .collect();
    lines.extend(
        [
            "route flush proto 112",
            "-6 route flush proto 112",
            "nexthop flush proto 112",
        ]
        .map(str::to_owned),
    );
    for line in lines {
        let _ = ip(&line);
    }
}

/// All of the overlay that the tools show, but for numbers of devices.
pub(super) fn snapshot(devices: &[(Family, String)]) -> Result<BTreeSet<String>> {
    let mut lines = BTreeSet::new();
    let mut add = |what: &str, text: String| {
        lines.extend(text.lines().map(|line| format!("{what}: {}", line.trim())));
    };
    for (family, device) in devices {
        let link = ip(&format!("-d -o link show dev {device}"))?;
        let words: Vec<&str> = link.split_whitespace().skip(1).collect();
        let end = words.iter().position(|word| *word == "ageing");
        let end = end.with_context(|| link.clone())?;
        let shown = words.get(..end).unwrap_or_default();
        add("link", shown.join(" "));
        let version = match family {
            Family::Ip => "-4",
            Family::Ip6 => "-6",
        };
        let addresses = ip(&format!("{version} -o addr show dev {device} scope global"))?;
        // A longer range on the device is no address of the overlay, and stays.
        let of_address = |line: &str| {
            let (_, rest) = line.split_once(": ")?;
            (rest.contains("/32 ") || rest.contains("/128 ")).then(|| rest.to_owned())
        };
        add(
            "address",
            addresses.lines().filter_map(of_address).collect(),
        );
        add("route", ip(&format!("{version} route show proto 112"))?);
        add(
            "neighbor",
            ip(&format!("{version} neigh show dev {device} nud permanent"))?,
        );
        let fdb = Command::new("bridge")
            .args(["fdb", "show", "dev", device])
            .output()?;
        // What somebody added for a time ages.
        let fdb = String::from_utf8_lossy(&fdb.stdout);
        let permanent = fdb.lines().filter(|line| line.ends_with("permanent"));
        add(device, permanent.collect::<Vec<_>>().join("\n"));
    }
    if devices.iter().any(|(family, _)| *family == Family::Ip) {
        add("nexthop", ip("nexthop show proto 112")?);
    }
    Ok(lines)
}

/// All there is, to be read when something went wrong.
pub(super) fn all() -> String {
    let lines = ["-d link", "addr", "route", "-6 route", "neigh", "nexthop"];
    let mut shown: Vec<String> = lines
        .map(|line| ip(line).unwrap_or_else(|error| error.to_string()))
        .into();
    if let Ok(fdb) = Command::new("bridge").args(["fdb", "show"]).output() {
        shown.push(String::from_utf8_lossy(&fdb.stdout).into_owned());
    }
    shown.join("\n")
}
