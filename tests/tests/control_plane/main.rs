//! Portolan in live clusters: `kubectl` above, real controllers between, packets below.
//!
//! One program, so that what takes long (an API server that is away for minutes) goes on beside the rest.

mod nodes;
mod outages;
mod rights;
mod services;

use std::time::Duration;

/// How long a pod serves after its deletion: far longer than the news of it takes.
const GRACE: Duration = Duration::from_secs(10);
/// Where the end of pods is waited for.
const SHORT_GRACE: Duration = Duration::from_secs(1);
