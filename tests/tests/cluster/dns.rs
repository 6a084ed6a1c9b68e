//! A client of cluster DNS: one question in one datagram, one answer.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::Host;

const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;

/// The server, behind its Service.
pub(crate) const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)), 53);

/// As long as a resolver waits by default before it asks again (resolv.conf(5)).
const PATIENCE: Duration = Duration::from_secs(5);

/// The addresses of a name of one family, as seen from `host`.
pub(crate) fn resolve(host: &Host, name: &str, v6: bool) -> Result<BTreeSet<IpAddr>> {
    let question = question(name, if v6 { TYPE_AAAA } else { TYPE_A });
    let asked = format!("{name} at {SERVER}");
    host.run(move || ask(&question))?.context(asked)
}

/// Asks for one name again and again.
pub(crate) struct Questions {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<(usize, Vec<String>)>,
}

impl Questions {
    pub(crate) fn start(host: &Host, name: &str, every: Duration) -> Result<Questions> {
        let question = question(name, TYPE_A);
        let (stop, stopping) = mpsc::channel();
        let thread = host.thread(move || {
            let (mut answered, mut failures) = (0, Vec::new());
            while let Err(RecvTimeoutError::Timeout) = stopping.recv_timeout(every) {
                match ask(&question) {
                    Ok(addresses) if !addresses.is_empty() => answered += 1,
                    Ok(_) => failures.push("no address".to_owned()),
                    Err(error) => failures.push(format!("{error:#}")),
                }
            }
            (answered, failures)
        })?;
        Ok(Questions { stop, thread })
    }

    /// How many were answered, and what came instead of other answers.
    pub(crate) fn stop(self) -> Result<(usize, Vec<String>)> {
        drop(self.stop);
        self.thread.join().ok().context("the thread panicked")
    }
}

fn question(name: &str, kind: u16) -> Vec<u8> {
    // RFC 1035, 4.1: a number, recursion desired, one question.
    let mut message = vec![0x4d, 0x11, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap_or(u8::MAX));
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend(kind.to_be_bytes());
    message.extend(1u16.to_be_bytes());
    message
}

fn ask(question: &[u8]) -> Result<BTreeSet<IpAddr>> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(SERVER)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(question)?;
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer)?;
    let answer = buffer.get(..length).unwrap_or_default();
    addresses(answer, question.len()).context("not an answer")?
}

/// The addresses in an answer, after the question that it repeats.
fn addresses(answer: &[u8], question: usize) -> Option<Result<BTreeSet<IpAddr>>> {
    let code = answer.get(3)? & 15;
    let count = u16::from_be_bytes([*answer.get(6)?, *answer.get(7)?]);
    let mut rest = answer.get(question..)?;
    let mut found = BTreeSet::new();
    for _ in 0..count {
        // A name ends with a zero or with a pointer of two bytes.
        while *rest.first()? != 0 && *rest.first()? < 0xc0 {
            rest = rest.get(usize::from(*rest.first()?) + 1..)?;
        }
        rest = rest.get(if *rest.first()? == 0 { 1 } else { 2 }..)?;
        let kind = u16::from_be_bytes([*rest.first()?, *rest.get(1)?]);
        let length = usize::from(u16::from_be_bytes([*rest.get(8)?, *rest.get(9)?]));
        let data = rest.get(10..10 + length)?;
        if kind == TYPE_A {
            found.insert(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?).into());
        } else if kind == TYPE_AAAA {
            found.insert(Ipv6Addr::from(<[u8; 16]>::try_from(data).ok()?).into());
        }
        rest = rest.get(10 + length..)?;
    }
    Some(match code {
        0 => Ok(found),
        code => Err(anyhow::anyhow!("code {code}")),
    })
}

#[test]
fn addresses_behind_a_name_of_a_name_are_found() -> Result<()> {
    let question = question("a.b", TYPE_A);
    let mut answer = question.clone();
    answer.splice(6..8, [0, 2]);
    // a.b is an alias of itself, by a pointer; then its address.
    answer.extend([0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 9, 0, 2, 0xc0, 12]);
    answer.extend([1, b'x', 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 10, 0, 0, 7]);
    let found = addresses(&answer, question.len()).context("no answer")??;
    ensure!(found == BTreeSet::from([Ipv4Addr::new(10, 0, 0, 7).into()]));
    ensure!(addresses(answer.get(..40).unwrap_or_default(), question.len()).is_none());
    Ok(())
}
