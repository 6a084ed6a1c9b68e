//! The pods and zones of a slice's endpoints, for commands that name them. Planning reads none of this.
//!
//! There may be a hundred thousand endpoints, so a slice keeps one text: what all of its pods' names begin with, its zones, and for
//! each endpoint the rest of the name and the number of the zone. Ten pods of a Deployment in three zones take some 130 bytes.

use std::fmt::Write as _;

/// Instead of the rest of a name: no pod. Names have no such character.
const NONE: &str = "!";

/// Pod and zone of each endpoint of a slice, in the order of the endpoints. Takes no memory where no endpoint has either.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identities(Box<str>);

/// Pod and zone of an endpoint, as far as its slice says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Name of the pod, which is in the namespace of the slice.
    pub pod: Option<String>,
    /// Zone of the pod's node.
    pub zone: Option<String>,
}

impl Identities {
    /// From pod and zone of each endpoint, in their order. Neither may contain white space.
    pub fn new<'a>(
        endpoints: impl Iterator<Item = (Option<&'a str>, Option<&'a str>)> + Clone,
    ) -> Identities {
        if endpoints
            .clone()
            .all(|(pod, zone)| pod.is_none() && zone.is_none())
        {
            return Identities::default();
        }
        let pods = endpoints.clone().filter_map(|(pod, _)| pod);
        let begin = pods.reduce(common_begin).unwrap_or_default();
        let mut zones: Vec<&str> = endpoints.clone().filter_map(|(_, zone)| zone).collect();
        zones.sort_unstable();
        zones.dedup();
        let mut text = format!("{begin}\n{}", zones.join("\t"));
        for (pod, zone) in endpoints {
            text.push('\n');
            text.push_str(pod.map_or(NONE, |pod| pod.strip_prefix(begin).unwrap_or(pod)));
            if let Some(number) = zone.and_then(|zone| zones.binary_search(&zone).ok()) {
                // Writing to a text does not fail.
                let _ = write!(text, "\t{number}");
            }
        }
        Identities(text.into())
    }

    /// Of each endpoint, in their order; ends early where nothing more is known.
    pub fn iter(&self) -> impl Iterator<Item = Identity> {
        let mut lines = self.0.split('\n');
        let begin = lines.next().unwrap_or_default();
        let zones: Vec<&str> = lines.next().unwrap_or_default().split('\t').collect();
        lines.map(move |line| {
            let (rest, number) = line.split_once('\t').unwrap_or((line, ""));
            let zone = number.parse().ok().and_then(|at: usize| zones.get(at));
            Identity {
                pod: (rest != NONE).then(|| format!("{begin}{rest}")),
                zone: zone.map(|zone| (*zone).to_owned()),
            }
        })
    }
}

/// What both begin with.
fn common_begin<'a>(a: &'a str, b: &'a str) -> &'a str {
    let same = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    a.get(..same).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(endpoints: &[(Option<&str>, Option<&str>)]) -> Vec<(Option<String>, Option<String>)> {
        let identities = Identities::new(endpoints.iter().copied());
        let all = identities.iter();
        all.map(|identity| (identity.pod, identity.zone)).collect()
    }

    #[test]
    fn what_was_written_is_read() {
        let some = |text: &str| Some(text.to_owned());
        let written = [
            (Some("web-7d-abc"), Some("zone-b")),
            (None, None),
            (Some("web-7d"), Some("zone-a")),
            (Some("web-7d-xyz"), None),
            (None, Some("zone-b")),
        ];
        let expected = written.map(|(pod, zone)| (pod.and_then(some), zone.and_then(some)));
        assert_eq!(read(&written), expected);
        assert_eq!(read(&[(Some("a"), None)]), [(some("a"), None)]);
        assert_eq!(read(&[(None, None), (None, None)]), []);
    }

    #[test]
    fn ten_pods_in_three_zones_take_less_than_150_bytes() {
        let zones = ["eu-central-1a", "eu-central-1b", "eu-central-1c"];
        let names: Vec<String> = (0..10)
            .map(|n| format!("checkout-6d5f8c9b7d-x{n}k2p"))
            .collect();
        let endpoints = names.iter().zip(zones.iter().cycle());
        let identities =
            Identities::new(endpoints.map(|(pod, zone)| (Some(pod.as_str()), Some(*zone))));
        assert!(identities.0.len() < 150, "{}", identities.0.len());
    }
}
