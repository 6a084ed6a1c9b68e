//! Portolan in live clusters: `kubectl` above, real controllers between, packets below.
//!
//! One program, so that what takes long (an API server that is away for minutes) goes on beside the rest.

mod nodes;
mod outages;
mod overlay;
mod rights;
mod services;

use std::time::Duration;

use anyhow::Result;
use lab::ControlPlane;
use portolan_tests::stage::Stage;

/// How long a pod serves after its deletion: far longer than the news of it takes.
const GRACE: Duration = Duration::from_secs(10);
/// Where the end of pods is waited for.
const SHORT_GRACE: Duration = Duration::from_secs(1);

/// A stage whose node and Service are objects of an API server without controllers, and a kubeconfig with Portolan's
/// rights there.
fn in_an_api_server() -> Result<(Stage, ControlPlane, String)> {
    let stage = Stage::new()?;
    let plane = ControlPlane::without_controllers(stage.lab())?;
    plane.register(&stage.node)?;
    plane.apply_all(&stage.objects(&stage.web, 0..4))?;
    let kubeconfig = plane.kubeconfig_for_portolan()?;
    let kubeconfig = kubeconfig.display().to_string();
    Ok((stage, plane, kubeconfig))
}
