//! Sockets between the daemon and commands on its node: names of the network namespace (unix(7), abstract), no files.
//!
//! So a command works in the daemon's container, whose root file system is read-only, and on the host alike, and
//! nothing outside the node reaches it. Such a name has no owner and no mode: each side checks the user of the other.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net as unix;

use anyhow::{Context, ensure};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use tokio::net::UnixListener;

/// The user of the daemon in the shipped manifests. A command of root trusts a daemon of this user.
const SHIPPED_USER: u32 = 65_532;

/// Listens at a name.
///
/// # Errors
/// Another process of the network namespace has the name (`EADDRINUSE`).
pub fn listen(name: &str) -> anyhow::Result<UnixListener> {
    let address = unix::SocketAddr::from_abstract_name(name)?;
    let listener = unix::UnixListener::bind_addr(&address).context("binding its socket")?;
    listener.set_nonblocking(true)?;
    Ok(UnixListener::from_std(listener)?)
}

/// Connects to the daemon that listens at a name.
///
/// # Errors
/// No process listens there, or one of a user that is not trusted.
pub fn connect(name: &str) -> anyhow::Result<unix::UnixStream> {
    let address = unix::SocketAddr::from_abstract_name(name)?;
    let stream = unix::UnixStream::connect_addr(&address)?;
    let uid = getsockopt(&stream, PeerCredentials)?.uid();
    let own = nix::unistd::geteuid().as_raw();
    let advice = match own {
        0 => "stop that process",
        _ => "run this command as root or as the daemon's user",
    };
    ensure!(
        may_ask(uid) || own == 0 && uid == SHIPPED_USER,
        "user {uid} listens on the daemon's socket @{name}: {advice}"
    );
    Ok(stream)
}

/// Whether the daemon answers a user: root, or its own.
pub fn may_ask(uid: u32) -> bool {
    uid == 0 || uid == nix::unistd::geteuid().as_raw()
}
