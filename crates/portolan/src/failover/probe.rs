//! Asks a node whether it is alive, by TCP connections to several addresses of it.
//!
//! An accepted connection and a reset are answers alike. Needs no capability, unlike ICMP echo. Invariant: only answers
//! that have not arrived when the time is over count as missing, however late this thread gets the processor.

use std::io::{Error, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

/// Connections of one round.
pub(super) const OF_A_ROUND: usize = 3;
/// Addresses that are worth knowing.
pub(super) const MOST: usize = 3 * OF_A_ROUND;

/// How long to wait for answers after each round of connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rounds(&'static [Duration]);

/// Three quick rounds, about a node that may be down.
pub(super) const QUICK: Rounds = Rounds(&[
    Duration::from_millis(100),
    Duration::from_millis(100),
    Duration::from_millis(150),
]);
/// One round, about a suspect that may be back.
pub(super) const PATIENT: Rounds = Rounds(&[Duration::from_millis(800)]);

/// What a node said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// This address answered.
    From(SocketAddr),
    /// No answer to this number of connections.
    None(usize),
    /// This node could not ask.
    Untried,
}

/// Asks by these addresses in turn, until the first answer.
pub(super) async fn ask(addresses: &[SocketAddr], rounds: Rounds) -> Answer {
    let mut next = addresses.iter().cycle();
    let mut attempts = FuturesUnordered::new();
    let mut silent = 0;
    for wait in rounds.0 {
        let some = next.by_ref().take(OF_A_ROUND.min(addresses.len()));
        let before = attempts.len();
        attempts.extend(some.map(|to| attempt(*to)));
        let started = attempts.len() - before;
        let mut untried = 0;
        let end = sleep(*wait);
        tokio::pin!(end);
        loop {
            tokio::select! {
                biased;
                Some(outcome) = attempts.next(), if !attempts.is_empty() => match outcome {
                    ConnectOutcome::Answered(from) => return Answer::From(from),
                    ConnectOutcome::Silent => silent += 1,
                    ConnectOutcome::Untried => untried += 1,
                },
                () = &mut end => break,
            }
        }
        if untried >= started {
            return Answer::Untried;
        }
    }
    Answer::None(silent + attempts.len())
}

enum ConnectOutcome {
    Answered(SocketAddr),
    Silent,
    Untried,
}

async fn attempt(to: SocketAddr) -> ConnectOutcome {
    match TcpStream::connect(to).await {
        Ok(_) => ConnectOutcome::Answered(to),
        Err(error) => outcome_of(&error, to),
    }
}

fn outcome_of(error: &Error, to: SocketAddr) -> ConnectOutcome {
    match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => ConnectOutcome::Answered(to),
        // A router says so, or this node, whose neighbor does not answer.
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::TimedOut => {
            ConnectOutcome::Silent
        }
        // A rule of this node, or no descriptors left.
        _ => ConnectOutcome::Untried,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use lab::{Lab, Loss, scenario};
    use tokio::runtime::Builder;

    use super::*;

    fn asked(addresses: Vec<SocketAddr>) -> Answer {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { ask(&addresses, QUICK).await })
    }

    #[test]
    fn listeners_and_closed_ports_are_answers() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let open = listener.local_addr().unwrap();
        assert_eq!(asked(vec![open]), Answer::From(open));
        drop(listener);
        assert_eq!(asked(vec![open]), Answer::From(open));
    }

    #[test]
    fn without_addresses_nothing_is_known() {
        assert_eq!(asked(Vec::new()), Answer::Untried);
    }

    #[scenario(Nft)]
    fn one_answer_among_lost_packets_is_enough() -> anyhow::Result<()> {
        let lab = Lab::new()?;
        let (a, b, c) = (
            lab.node("node-a")?,
            lab.node("node-b")?,
            lab.node("node-c")?,
        );
        let lost = a.lose(&b, Loss::Everything)?;
        let silent = SocketAddr::from((b.ipv4(), 9));
        let other = SocketAddr::from((c.ipv4(), 9));
        assert_eq!(a.run(move || asked(vec![silent]))?, Answer::None(3));
        let both = a.run(move || asked(vec![silent, other]))?;
        assert_eq!(both, Answer::From(other));
        drop(lost);
        assert_eq!(a.run(move || asked(vec![silent]))?, Answer::From(silent));
        let mut command = a.command("ip");
        command.args(["route", "add", "prohibit", &format!("{}/32", b.ipv4())]);
        assert!(a.output(command)?.status.success());
        assert_eq!(a.run(move || asked(vec![silent]))?, Answer::Untried);
        Ok(())
    }
}
