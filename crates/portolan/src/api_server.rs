//! `portolan api-server`: writes the API server's address of this node's kubelet to where an unprivileged daemon can read it.
//!
//! An init container runs it as root, since only root may read the kubelet's kubeconfig. Leaves reading kubeconfigs to
//! `object_source`; no credential leaves the kubelet's file.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use object_source::api::{KUBELET_KUBECONFIGS, without_credentials};

use crate::cli::ApiServerArgs;

/// Prints or writes the first kubeconfig that exists, without credentials.
///
/// # Errors
/// If a kubeconfig cannot be used, or none is there and nothing was to be written.
pub fn run(args: &ApiServerArgs) -> Result<()> {
    let usual = || KUBELET_KUBECONFIGS.map(PathBuf::from).to_vec();
    let candidates = match args.from.is_empty() {
        true => usual(),
        false => args.from.clone(),
    };
    let found = candidates.iter().find(|path| path.is_file());
    let mut out = std::io::stdout();
    match (found, &args.write_to) {
        (Some(from), Some(to)) => {
            let text = without_credentials(from)?;
            object_source::replace_file(to, 0o644, text.as_bytes())
                .with_context(|| format!("cannot write {to:?}"))?;
            writeln!(out, "wrote the API server of {from:?} to {to:?}")?;
        }
        (Some(from), None) => out.write_all(without_credentials(from)?.as_bytes())?,
        // The daemon has other ways to the API server.
        (None, Some(_)) => writeln!(out, "{}", missing(&candidates))?,
        (None, None) => bail!("{}", missing(&candidates)),
    }
    Ok(())
}

fn missing(candidates: &[PathBuf]) -> String {
    let places: Vec<String> = candidates.iter().map(|path| format!("{path:?}")).collect();
    format!(
        "no kubeconfig of a kubelet at {}; portolan run needs --kubeconfig, --master or KUBERNETES_SERVICE_HOST",
        places.join(", ")
    )
}
