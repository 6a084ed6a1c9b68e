//! What this node has counted: packets with wrong checksums, and packets by a way that a strict `rp_filter` does not expect.

/// Packets with a wrong UDP or TCP checksum that this network namespace has received; `None` if that cannot be read.
pub(super) fn corrupt() -> Option<u64> {
    let v4 = std::fs::read_to_string("/proc/net/snmp").ok()?;
    let v6 = std::fs::read_to_string("/proc/net/snmp6").unwrap_or_default();
    let names = ["Tcp:", "Udp:"];
    Some(of_tables(&v4, &names, "InCsumErrors") + of_lines(&v6))
}

/// IPv4 packets that `rp_filter` has dropped in this network namespace; `None` if that cannot be read.
pub(super) fn reversed() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/net/netstat").ok()?;
    Some(of_tables(&text, &["TcpExt:"], "IPReversePathFilter"))
}

/// Sums a number of these tables. A table is two lines: names, then numbers (proc_net_snmp(5)).
fn of_tables(text: &str, tables: &[&str], name: &str) -> u64 {
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    lines
        .chunks(2)
        .filter_map(|pair| match pair {
            [names, numbers] if names.first().is_some_and(|table| tables.contains(table)) => {
                let at = names.iter().position(|one| *one == name)?;
                numbers.get(at)?.parse::<u64>().ok()
            }
            _ => None,
        })
        .sum()
}

/// A name and a number a line. TCP over IPv6 is counted with the rest of TCP.
fn of_lines(text: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.strip_prefix("Udp6InCsumErrors"))
        .filter_map(|number| number.trim().parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_checksums_of_both_protocols_and_families_are_added() {
        let v4 = "Icmp: InMsgs InCsumErrors\nIcmp: 1 100\nTcp: InErrs InCsumErrors\nTcp: 4 7\n\
                  Udp: InDatagrams InCsumErrors MemErrors\nUdp: 3 30 0\nUdpLite: InCsumErrors\nUdpLite: 500\n";
        assert_eq!(of_tables(v4, &["Tcp:", "Udp:"], "InCsumErrors"), 37);
        let v6 =
            "Icmp6InCsumErrors   \t9\nUdp6InCsumErrors                \t4\nUdp6InDatagrams 3\n";
        assert_eq!(of_lines(v6), 4);
    }
}
