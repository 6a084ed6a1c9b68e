//! Waits for conditions, never for a fixed time.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// Pause between two checks: short beside the events that tests wait for, long beside one check.
const PAUSE: Duration = Duration::from_millis(1);

/// Waits until `condition` holds. After `timeout` the error names `what`.
pub fn wait_until(
    what: &str,
    timeout: Duration,
    mut condition: impl FnMut() -> bool,
) -> Result<()> {
    wait_for(what, timeout, || {
        ensure!(condition(), "the condition does not hold");
        Ok(())
    })
}

/// Waits until `attempt` returns a value. After `timeout` the error names `what` and has the last attempt's error.
pub fn wait_for<T>(
    what: &str,
    timeout: Duration,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(last) if start.elapsed() >= timeout => {
                return Err(last).with_context(|| format!("waited {timeout:?} for {what}"));
            }
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_condition_that_comes_true_is_waited_for() -> Result<()> {
        let looks = Cell::new(0);
        wait_until("the third look", Duration::from_secs(10), || {
            looks.set(looks.get() + 1);
            looks.get() == 3
        })?;
        assert_eq!(looks.get(), 3);
        Ok(())
    }

    #[test]
    fn a_wait_in_vain_says_for_what_and_what_was_seen_last() {
        let looks = Cell::new(0);
        let error = wait_for("rain", Duration::from_millis(5), || -> Result<()> {
            looks.set(looks.get() + 1);
            anyhow::bail!("it is dry")
        })
        .unwrap_err();
        let said = format!("{error:#}");
        assert!(
            said.contains("rain") && said.contains("it is dry"),
            "{said}"
        );
        assert!(looks.get() >= 1);
    }
}
