//! Finds the API server without help from Services: this daemon is what makes Services work, so the cluster IP of
//! Service `default/kubernetes` leads nowhere on a node that has just booted.
//!
//! The server is, in this order:
//!
//! 1. `--master`, with the credentials of `--kubeconfig` or of the pod;
//! 2. the server of `--kubeconfig`;
//! 3. in a pod, with its service account: first the servers in kubeconfigs of this node's kubelet, then
//!    `KUBERNETES_SERVICE_HOST`. A kubelet's kubeconfig gives the server and its CA, never credentials.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use http::Uri;
use hyper_util::client::proxy::matcher::Intercept;
use kube::Config;
use kube::config::{
    AuthInfo, Cluster, Context as KubeContext, KubeConfigOptions, Kubeconfig, NamedAuthInfo,
    NamedCluster, NamedContext,
};

use super::kubelet::{KUBELET_KUBECONFIGS, current_cluster};
use super::proxy::{Proxies, http_proxy};

/// Where a pod has its token and CA.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Where addresses are remembered: until the next boot, and beyond it.
const MEMORY: [&str; 2] = ["/run/portolan", "/var/lib/portolan"];

/// Where to find the API server.
#[derive(Clone, Debug, Default)]
pub struct ServerSource {
    /// `--kubeconfig`: the cluster and user of its current context.
    pub kubeconfig: Option<PathBuf>,
    /// `--master`: the server's URL, instead of the kubeconfig's or the pod's.
    pub master: Option<String>,
    /// `apiServerFrom`: kubeconfigs whose servers are used with the pod's own token. Empty means [`KUBELET_KUBECONFIGS`],
    /// `none` no file.
    pub from: Vec<PathBuf>,
}

/// Files and environment variables that tell a process where its cluster is.
#[derive(Clone, Debug)]
pub(super) struct Environment {
    pub(super) service_account: PathBuf,
    /// Kubeconfigs to look for if none is named.
    pub(super) kubelet_kubeconfigs: Vec<PathBuf>,
    /// `KUBERNETES_SERVICE_HOST` and `KUBERNETES_SERVICE_PORT`.
    pub(super) service: Option<(String, String)>,
    /// The cluster IP of Service `default/kubernetes`, if known.
    pub(super) cluster_ip: Option<String>,
    pub(super) memory: Vec<PathBuf>,
    pub(super) proxies: Proxies,
}

impl Environment {
    pub(super) fn of_this_process() -> Environment {
        let variable = |name: &str| std::env::var(name).ok();
        let host = variable("KUBERNETES_SERVICE_HOST").filter(|host| !host.is_empty());
        let port = variable("KUBERNETES_SERVICE_PORT").unwrap_or_else(|| "443".to_owned());
        Environment {
            service_account: SERVICE_ACCOUNT.into(),
            kubelet_kubeconfigs: KUBELET_KUBECONFIGS.map(PathBuf::from).into(),
            // The kubelet sets both; manifests replace the host only, with an address that works without Services.
            cluster_ip: variable("KUBERNETES_PORT_443_TCP_ADDR").or_else(|| host.clone()),
            service: host.map(|host| (host, port)),
            memory: MEMORY.map(PathBuf::from).into(),
            proxies: Proxies::of(variable),
        }
    }

    fn token(&self) -> PathBuf {
        self.service_account.join("token")
    }

    fn ca(&self) -> PathBuf {
        self.service_account.join("ca.crt")
    }
}

/// A server to try, with credentials.
#[derive(Clone)]
pub(super) struct Candidate {
    pub(super) config: Config,
    /// Its kubeconfig's `proxy-url`, or the environment's proxy.
    pub(super) proxy: Option<Intercept>,
}

/// The servers to try, in order; never empty.
pub(super) struct Located {
    pub(super) candidates: Vec<Candidate>,
    /// Whether servers at addresses that the cluster names may be used as well: those of a pod only.
    pub(super) may_learn: bool,
}

/// Finds the servers of `source`.
pub(super) async fn locate(source: &ServerSource, environment: &Environment) -> Result<Located> {
    let configs = match (&source.kubeconfig, &source.master) {
        (Some(path), master) => {
            let (config, proxy) = of_kubeconfig(path, master.as_deref()).await?;
            let candidate = candidate(config, proxy, environment)?;
            return Ok(Located {
                candidates: vec![candidate],
                may_learn: false,
            });
        }
        (None, Some(master)) => vec![of_master(master, environment).await?],
        (None, None) => of_pod(&source.from, environment).await?,
    };
    let candidates = configs
        .into_iter()
        .map(|config| candidate(config, None, environment));
    Ok(Located {
        candidates: candidates.collect::<Result<_>>()?,
        may_learn: source.master.is_none(),
    })
}

fn candidate(
    mut config: Config,
    proxy: Option<Intercept>,
    environment: &Environment,
) -> Result<Candidate> {
    // Without this, kube uses the environment's proxy and ignores `NO_PROXY`.
    config.proxy_url = None;
    let proxy = match proxy {
        Some(proxy) => Some(proxy),
        None => environment.proxies.to(&config.cluster_url)?,
    };
    Ok(Candidate { config, proxy })
}

async fn of_kubeconfig(path: &Path, master: Option<&str>) -> Result<(Config, Option<Intercept>)> {
    let kubeconfig = read(path)?;
    let proxy = current_cluster(&kubeconfig).and_then(|cluster| cluster.proxy_url.clone());
    let proxy = proxy.filter(|url| !url.is_empty());
    let proxy = proxy.map(|url| http_proxy("proxy-url of the kubeconfig", &url));
    let mut config = config_of(kubeconfig)
        .await
        .with_context(|| format!("cannot use the kubeconfig {path:?}"))?;
    if let Some(master) = master {
        let is_secure = config.root_cert.is_some() || config.accept_invalid_certs;
        config.cluster_url = master_url(master, is_secure)?;
    }
    Ok((config, proxy.transpose()?))
}

/// Reads a kubeconfig. An error of kube has several lines; the first one has all causes.
fn read(path: &Path) -> Result<Kubeconfig> {
    std::fs::File::open(path).with_context(|| format!("cannot read the kubeconfig {path:?}"))?;
    Kubeconfig::read_from(path).map_err(|error| {
        let error = error.to_string();
        let reason = error.lines().next().unwrap_or_default();
        anyhow!("cannot use the kubeconfig {path:?}: {reason}")
    })
}

async fn of_master(master: &str, environment: &Environment) -> Result<Config> {
    if !environment.token().exists() {
        return Ok(Config::new(master_url(master, false)?));
    }
    let url = master_url(master, true)?.to_string();
    of_server(own_cluster(url, environment), environment).await
}

/// Parses `--master` as kubectl does: a URL, or a host and port.
fn master_url(master: &str, is_secure: bool) -> Result<Uri> {
    let url = match (master.contains("://"), is_secure) {
        (true, _) => master.to_owned(),
        (false, true) => format!("https://{master}"),
        (false, false) => format!("http://{master}"),
    };
    let uri: Uri = url
        .trim_end_matches('/')
        .parse()
        .with_context(|| format!("--master={master}: not a URL"))?;
    uri.host()
        .with_context(|| format!("--master={master}: the URL has no host"))?;
    Ok(uri)
}

/// The servers that a pod knows, each with the pod's own token.
async fn of_pod(from: &[PathBuf], environment: &Environment) -> Result<Vec<Config>> {
    if !environment.token().exists() {
        return Err(no_cluster(
            "not running in a pod with a service account",
            environment,
        ));
    }
    let mut configs = Vec::new();
    let named = from.iter().filter(|path| **path != Path::new("none"));
    let (paths, are_named): (Vec<&PathBuf>, bool) = match from {
        [] => (environment.kubelet_kubeconfigs.iter().collect(), false),
        _ => (named.collect(), true),
    };
    for path in paths {
        match cluster_in(path, environment) {
            Ok(cluster) => configs.push(of_server(cluster, environment).await?),
            Err(error) if are_named || path.exists() => {
                tracing::warn!("apiServerFrom: {error:#}; trying the other API servers");
            }
            Err(_) => {}
        }
    }
    if let Some((host, port)) = &environment.service {
        let host = match host.contains(':') {
            true => format!("[{host}]"),
            false => host.clone(),
        };
        let cluster = own_cluster(format!("https://{host}:{port}"), environment);
        configs.push(of_server(cluster, environment).await?);
    }
    if configs.is_empty() {
        return Err(no_cluster("found no kubeconfig of a kubelet", environment));
    }
    Ok(configs)
}

/// The server of a kubelet's kubeconfig, with its CA if that can be read from here.
fn cluster_in(path: &Path, environment: &Environment) -> Result<Cluster> {
    let kubeconfig = read(path)?;
    let found = current_cluster(&kubeconfig)
        .cloned()
        .with_context(|| format!("{path:?} has no cluster for its current context"))?;
    let server = found
        .server
        .with_context(|| format!("{path:?} names no server"))?;
    let file = found.certificate_authority;
    let file = file.filter(|file| std::fs::File::open(file).is_ok());
    Ok(match found.certificate_authority_data {
        None if file.is_none() => own_cluster(server, environment),
        data => Cluster {
            server: Some(server),
            certificate_authority_data: data,
            certificate_authority: file,
            tls_server_name: found.tls_server_name,
            ..Cluster::default()
        },
    })
}

/// A server whose certificate is checked with the service account's CA.
fn own_cluster(server: String, environment: &Environment) -> Cluster {
    Cluster {
        server: Some(server),
        certificate_authority: Some(environment.ca().display().to_string()),
        ..Cluster::default()
    }
}

/// A server with the pod's token.
async fn of_server(cluster: Cluster, environment: &Environment) -> Result<Config> {
    let name = "pod".to_owned();
    let own_ca = environment.ca();
    let has_own_ca = cluster.certificate_authority.as_deref().map(Path::new) == Some(&own_ca);
    let described = cluster.server.clone().unwrap_or_default();
    let kubeconfig = Kubeconfig {
        current_context: Some(name.clone()),
        clusters: vec![NamedCluster {
            name: name.clone(),
            cluster: Some(cluster),
            ..NamedCluster::default()
        }],
        auth_infos: vec![NamedAuthInfo {
            name: name.clone(),
            auth_info: Some(AuthInfo {
                token_file: Some(environment.token().display().to_string()),
                ..AuthInfo::default()
            }),
            ..NamedAuthInfo::default()
        }],
        contexts: vec![NamedContext {
            name: name.clone(),
            context: Some(KubeContext {
                cluster: name.clone(),
                user: Some(name),
                ..KubeContext::default()
            }),
            ..NamedContext::default()
        }],
        ..Kubeconfig::default()
    };
    let mut config = config_of(kubeconfig)
        .await
        .with_context(|| format!("cannot use the API server {described:?}"))?;
    // kube reads this file again each minute: the kubelet replaces the CA together with the token.
    config.root_cert_file = has_own_ca.then_some(own_ca);
    Ok(config)
}

async fn config_of(kubeconfig: Kubeconfig) -> Result<Config> {
    let options = KubeConfigOptions::default();
    Ok(Config::from_custom_kubeconfig(kubeconfig, &options).await?)
}

fn no_cluster(reason: &str, environment: &Environment) -> anyhow::Error {
    let host = match environment.service {
        None => ", and KUBERNETES_SERVICE_HOST is not set",
        Some(_) => "",
    };
    anyhow!(
        "no API server: {reason}{host}. Use --kubeconfig FILE, --master URL or --manifests DIR."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mutated_kubeconfigs_do_no_harm() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/kubeconfigs");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kubeconfig");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        fuzz::fuzz(&corpus, [], |bytes| {
            std::fs::write(&path, bytes).unwrap();
            match runtime.block_on(of_kubeconfig(&path, None)) {
                Ok((config, proxy)) => fuzz::outcome((
                    config.cluster_url.scheme_str() == Some("https"),
                    proxy.is_some(),
                )),
                Err(error) => {
                    let text = format!("{error:#}");
                    assert!(text.contains("kubeconfig"), "{text}");
                    fuzz::outcome(text.split_whitespace().last())
                }
            }
        });
    }
}
