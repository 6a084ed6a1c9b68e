//! Listening sockets: wildcard addresses serve both families, and an address that another process has is retried.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// Interval between attempts.
const RETRY: Duration = Duration::from_secs(1);

/// Calls `bind` every second until it succeeds. `report` gets the first error only.
pub(crate) async fn bind<T, F: Future<Output = io::Result<T>>>(
    mut bind: impl FnMut() -> F,
    report: impl FnOnce(&io::Error),
) -> T {
    let mut report = Some(report);
    loop {
        match bind().await {
            Ok(socket) => return socket,
            Err(error) => {
                if let Some(report) = report.take() {
                    report(&error);
                }
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Listens. Like Go's sockets, a wildcard address of either family serves both, as far as the kernel has them.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    if !address.ip().is_unspecified() {
        return listen_on(address, true);
    }
    let any = |ip: IpAddr| SocketAddr::new(ip, address.port());
    match listen_on(any(Ipv6Addr::UNSPECIFIED.into()), false) {
        // The kernel has no IPv6.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(nix::libc::EAFNOSUPPORT | nix::libc::EADDRNOTAVAIL)
            ) =>
        {
            listen_on(any(Ipv4Addr::UNSPECIFIED.into()), true)
        }
        result => result,
    }
}

fn listen_on(address: SocketAddr, v6_only: bool) -> io::Result<TcpListener> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(v6_only)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(128)?;
    TcpListener::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_of_either_family_serves_both() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let _runtime = runtime.enter();
        for wildcard in ["0.0.0.0:0", "[::]:0"] {
            let listener = listen(wildcard.parse().unwrap()).unwrap();
            let port = listener.local_addr().unwrap().port();
            for ip in ["127.0.0.1", "::1"] {
                let address = SocketAddr::new(ip.parse().unwrap(), port);
                std::net::TcpStream::connect(address)
                    .unwrap_or_else(|error| panic!("{wildcard}: {address}: {error}"));
            }
        }
        let one = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let v6 = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), one.local_addr().unwrap().port());
        assert!(std::net::TcpStream::connect(v6).is_err());
    }
}
