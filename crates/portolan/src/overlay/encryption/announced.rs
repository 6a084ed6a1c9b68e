//! What a node announces of its keys: the text of the annotation `portolan-encryption`, in both directions.
//!
//! `wg=KEY@PORT`, and while keys are rotated `next=KEY@PORT,wg=KEY@PORT;rotating`: the plane that peers should use comes
//! first. The text is foreign: it is parsed, never repeated.

use std::fmt;

use wireguard::PublicKey;

/// One of the two devices. All nodes use the first; the second serves while a node replaces the key of the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Plane {
    /// `portolan-wg`
    First,
    /// `portolan-wg2`
    Second,
}

impl Plane {
    /// Both, in order.
    pub(super) const ALL: [Plane; 2] = [Plane::First, Plane::Second];

    /// The name of the device.
    pub(super) const fn device(self) -> &'static str {
        match self {
            Plane::First => "portolan-wg",
            Plane::Second => "portolan-wg2",
        }
    }

    /// The routing table of what the device sends.
    pub(super) const fn table(self) -> u32 {
        match self {
            Plane::First => 5182,
            Plane::Second => 5183,
        }
    }

    /// The port of the device, from that of the first.
    pub(super) const fn port(self, first: u16) -> u16 {
        match self {
            Plane::First => first,
            Plane::Second => first.saturating_add(1),
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Plane::First => "wg",
            Plane::Second => "next",
        }
    }
}

/// The keys of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Announced {
    /// Public key and port of each plane that may be used, the preferred one first.
    pub keys: Vec<(Plane, PublicKey, u16)>,
    /// The node replaces a key: the others help with a second device.
    pub rotating: bool,
}

impl Announced {
    /// Parses the text. `None`: no keys.
    pub(super) fn parse(text: &str) -> Option<Announced> {
        let (list, rotating) = match text.split_once(';') {
            Some((list, word)) => (list, word == "rotating"),
            None => (text, false),
        };
        let mut keys: Vec<(Plane, PublicKey, u16)> = Vec::new();
        for part in list.split(',') {
            let (word, key) = part.split_once('=')?;
            let (key, port) = key.split_once('@')?;
            let mut planes = Plane::ALL.into_iter();
            let plane = planes.find(|plane| plane.word() == word)?;
            let port: u16 = port.parse().ok().filter(|port| *port > 0)?;
            if keys.iter().all(|(other, ..)| *other != plane) {
                keys.push((plane, key.parse().ok()?, port));
            }
        }
        (!keys.is_empty()).then_some(Announced { keys, rotating })
    }

    /// Key and port of a plane.
    pub(super) fn key(&self, plane: Plane) -> Option<(PublicKey, u16)> {
        let mut keys = self.keys.iter();
        let found = keys.find(|(other, ..)| *other == plane);
        found.map(|(_, key, port)| (*key, *port))
    }

    fn prefers(&self, plane: Plane) -> bool {
        self.keys.first().is_some_and(|(first, ..)| *first == plane)
    }
}

impl fmt::Display for Announced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (plane, key, port)) in self.keys.iter().enumerate() {
            let comma = if place > 0 { "," } else { "" };
            write!(f, "{comma}{}={key}@{port}", plane.word())?;
        }
        match self.rotating {
            true => f.write_str(";rotating"),
            false => Ok(()),
        }
    }
}

/// How packets to a peer travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// In this plane: a handshake has completed, and the session lives.
    Live(Plane),
    /// In this plane once there is a session.
    Waiting(Plane),
    /// The two nodes have no plane in common.
    Nothing,
}

/// Chooses the plane for a peer: one that both nodes list, the second if either prefers it, and one with a live session
/// before one without. Both nodes come to the same, but need not: each device receives what comes.
pub(super) fn choose(own: &Announced, peer: &Announced, live: impl Fn(Plane) -> bool) -> Choice {
    let both = |plane: &Plane| own.key(*plane).is_some() && peer.key(*plane).is_some();
    let mut planes: Vec<Plane> = Plane::ALL.into_iter().filter(both).collect();
    if own.prefers(Plane::Second) || peer.prefers(Plane::Second) {
        planes.reverse();
    }
    let mut alive = planes.iter().copied().filter(|plane| live(*plane));
    match (alive.next(), planes.first()) {
        (Some(plane), _) => Choice::Live(plane),
        (None, Some(plane)) => Choice::Waiting(*plane),
        (None, None) => Choice::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announced(planes: &[Plane]) -> Announced {
        let key = |plane: &Plane| (*plane, PublicKey([7; 32]), plane.port(51820));
        Announced {
            keys: planes.iter().map(key).collect(),
            rotating: planes.len() > 1,
        }
    }

    #[test]
    fn what_is_announced_reads_back() {
        use Plane::{First, Second};
        for planes in [&[First][..], &[Second, First], &[First, Second], &[Second]] {
            let announced = announced(planes);
            assert_eq!(Announced::parse(&announced.to_string()), Some(announced));
        }
    }

    #[test]
    fn text_without_a_valid_key_announces_nothing() {
        let key = PublicKey([7; 32]);
        for text in [
            "",
            ";rotating",
            "wg=",
            "wg=AAAA@51820",
            &format!("wg={key}"),
            &format!("wg={key}@0"),
            &format!("wg={key}@70000"),
            &format!("other={key}@51820"),
            &format!("wg={key}@51820,"),
        ] {
            assert_eq!(Announced::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_second_plane_serves_once_preferred_and_live() {
        use Plane::{First, Second};
        let (usual, both) = (announced(&[First]), announced(&[First, Second]));
        let moving = announced(&[Second, First]);
        let all = |_| true;
        let first_only = |plane| plane == First;
        assert_eq!(choose(&usual, &usual, all), Choice::Live(First));
        assert_eq!(choose(&both, &both, all), Choice::Live(First));
        for (own, peer) in [(&both, &moving), (&moving, &both), (&moving, &moving)] {
            assert_eq!(choose(own, peer, all), Choice::Live(Second));
            assert_eq!(choose(own, peer, first_only), Choice::Live(First));
            assert_eq!(choose(own, peer, |_| false), Choice::Waiting(Second));
        }
        let moved = announced(&[Second]);
        assert_eq!(choose(&usual, &moved, all), Choice::Nothing);
        assert_eq!(choose(&both, &moved, first_only), Choice::Waiting(Second));
    }
}
