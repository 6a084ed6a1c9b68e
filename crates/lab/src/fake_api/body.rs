//! Bodies of answers: written piece by piece, so that nothing big is held twice, and broken on purpose.
//!
//! Every byte of a list or a watch goes through a [`Pipe`], which is where a body's fault strikes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::sync::mpsc;

use super::faults::Fault;

/// Pieces under way; more than this waits for the client.
const PIECES: usize = 4;

/// The client is gone, or a fault ended the body.
#[derive(Debug)]
pub(super) struct Closed;

/// The writing end of a body.
#[derive(Debug)]
pub(super) struct Pipe {
    pieces: mpsc::Sender<io::Result<Bytes>>,
    fault: Option<Fault>,
    sent: usize,
    total: Arc<AtomicU64>,
}

/// The body as hyper reads it.
#[derive(Debug)]
pub(super) struct Pieces(mpsc::Receiver<io::Result<Bytes>>);

/// A body under construction. `total` counts its bytes.
pub(super) fn pipe(fault: Option<Fault>, total: Arc<AtomicU64>) -> (Pipe, Pieces) {
    let (pieces, reader) = mpsc::channel(PIECES);
    (
        Pipe {
            pieces,
            fault,
            sent: 0,
            total,
        },
        Pieces(reader),
    )
}

impl Pipe {
    /// Writes, as far as the fault lets it.
    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<(), Closed> {
        match self.fault {
            Some(Fault::CutAfter(limit)) if self.reaches(limit, &bytes) => {
                self.up_to(limit, bytes).await?;
                let broken = io::Error::new(io::ErrorKind::ConnectionReset, "cut on purpose");
                let _ = self.pieces.send(Err(broken)).await;
                Err(Closed)
            }
            Some(Fault::EndAfter(limit)) if self.reaches(limit, &bytes) => {
                self.up_to(limit, bytes).await?;
                Err(Closed)
            }
            Some(Fault::HangAfter(limit)) if self.reaches(limit, &bytes) => {
                self.up_to(limit, bytes).await?;
                self.pieces.closed().await;
                Err(Closed)
            }
            Some(Fault::Slow { bytes: size, pause }) => {
                for start in (0..bytes.len()).step_by(size.max(1)) {
                    let end = bytes.len().min(start + size.max(1));
                    self.send(bytes.slice(start..end)).await?;
                    tokio::time::sleep(pause).await;
                }
                Ok(())
            }
            _ => self.send(bytes).await,
        }
    }

    /// Resolves when the client is gone.
    pub(super) async fn closed(&self) {
        self.pieces.closed().await;
    }

    fn reaches(&self, limit: usize, bytes: &Bytes) -> bool {
        self.sent + bytes.len() >= limit
    }

    async fn up_to(&mut self, limit: usize, bytes: Bytes) -> Result<(), Closed> {
        let rest = limit.saturating_sub(self.sent).min(bytes.len());
        self.send(bytes.slice(..rest)).await?;
        // Lets hyper put the piece on the wire before the break makes it drop what it holds.
        tokio::time::sleep(Duration::from_millis(1)).await;
        Ok(())
    }

    async fn send(&mut self, bytes: Bytes) -> Result<(), Closed> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.sent += bytes.len();
        self.total.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.pieces.send(Ok(bytes)).await.map_err(|_| Closed)
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0
            .poll_recv(cx)
            .map(|piece| piece.map(|bytes| bytes.map(Frame::data)))
    }
}
