//! Long connections and new ones to the Service of a [`Stage`], all the time, of which none may be lost.

use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{ConnectionStream, DEFAULT_PATIENCE, Held, Probe, Protocol, wait_until};

use crate::slowness;
use crate::stage::{PATIENCE, Stage};

/// Goes on until it is asked what became of it.
pub struct Traffic {
    held: Held,
    new: ConnectionStream,
}

impl Traffic {
    /// As much as shows a gap of a millisecond; a slow machine would do nothing else, and has less of it.
    pub fn start(stage: &Stage) -> Result<Traffic> {
        if slowness() > 1 {
            return Self::start_gently(stage);
        }
        Self::at(
            stage,
            40,
            Duration::from_millis(10),
            Duration::from_micros(500),
        )
    }

    /// What can go on for minutes beside other tests.
    pub fn start_gently(stage: &Stage) -> Result<Traffic> {
        Self::at(
            stage,
            20,
            Duration::from_millis(50),
            Duration::from_millis(5),
        )
    }

    fn at(stage: &Stage, held: usize, beat: Duration, pause: Duration) -> Result<Traffic> {
        let to = Stage::address(&stage.web)?;
        let probe = Probe::new(Protocol::Tcp, to).within(DEFAULT_PATIENCE * slowness());
        Ok(Traffic {
            held: stage.client.hold(to, held, beat)?,
            new: stage.client.stream_connections(probe, pause)?,
        })
    }

    /// Waits for this number of further connection attempts.
    pub fn goes_on(&self, connections: usize) -> Result<()> {
        let made = || {
            let tally = self.new.report().tally;
            tally.answered() + tally.failed()
        };
        let enough = made() + connections;
        wait_until("traffic", PATIENCE, || made() >= enough)
    }

    /// Ends it; an error when a connection broke or could not be made. Returns how long the slowest new one took.
    pub fn lost_nothing(self) -> Result<Duration> {
        let (held, new) = (self.held.stop(), self.new.stop());
        println!(
            "{} new connections (slowest {:?}), {} exchanges on held ones (longest {:?})",
            new.tally.answered(),
            new.slowest,
            held.exchanges,
            held.longest_echo
        );
        ensure!(
            held.exchanges > 0 && new.tally.answered() > 0,
            "no traffic at all"
        );
        ensure!(
            held.lost.is_empty(),
            "established connections lost: {:?}",
            held.lost
        );
        ensure!(
            new.failures.is_empty(),
            "new connections failed: {:?}",
            new.failures
        );
        Ok(new.slowest)
    }
}
