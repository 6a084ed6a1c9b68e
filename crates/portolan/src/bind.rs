//! Binds sockets whose address another process may still have.

use std::io;
use std::time::Duration;

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
