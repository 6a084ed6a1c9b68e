//! Finds the API server without help from Services: this daemon is what makes Services work, so the cluster IP of
//! Service `default/kubernetes` leads nowhere on a node that has just booted.
//!
//! The first that is given counts: `--master` (with the credentials of a kubeconfig or of the pod), `--kubeconfig`, and
//! in a pod the service account: then the servers that kubeconfigs of this node's kubelet name, then
//! `KUBERNETES_SERVICE_HOST`. Of a kubelet's kubeconfig the server and its CA are taken, never its credentials.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use http::Uri;
use hyper_util::client::proxy::matcher::Intercept;
use kube::Config;
use kube::config::{
    AuthInfo, Cluster, Context as KubeContext, KubeConfigOptions, Kubeconfig, NamedAuthInfo,
    NamedCluster, NamedContext,
};

use super::locator::{KUBELET_KUBECONFIGS, current_cluster};
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
    /// `apiServerFrom`: kubeconfigs whose servers are used with the pod's own token. Empty means the usual places of a
    /// kubelet's, `none` no file.
    pub from: Vec<PathBuf>,
}

/// What a process finds around itself.
#[derive(Clone, Debug)]
pub(super) struct Surroundings {
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

impl Surroundings {
    pub(super) fn of_this_process() -> Surroundings {
        let variable = |name: &str| std::env::var(name).ok();
        let host = variable("KUBERNETES_SERVICE_HOST").filter(|host| !host.is_empty());
        let port = variable("KUBERNETES_SERVICE_PORT").unwrap_or_else(|| "443".to_owned());
        Surroundings {
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
    /// The servers are found in a pod: others that the cluster names are as good.
    pub(super) may_learn: bool,
}

pub(super) async fn locate(source: &ServerSource, around: &Surroundings) -> Result<Located> {
    let configs = match (&source.kubeconfig, &source.master) {
        (Some(path), master) => {
            let (config, proxy) = of_kubeconfig(path, master.as_deref()).await?;
            let candidate = candidate(config, proxy, around)?;
            return Ok(Located {
                candidates: vec![candidate],
                may_learn: false,
            });
        }
        (None, Some(master)) => vec![of_master(master, around).await?],
        (None, None) => of_pod(&source.from, around).await?,
    };
    let candidates = configs
        .into_iter()
        .map(|config| candidate(config, None, around));
    Ok(Located {
        candidates: candidates.collect::<Result<_>>()?,
        may_learn: source.master.is_none(),
    })
}

fn candidate(
    mut config: Config,
    proxy: Option<Intercept>,
    around: &Surroundings,
) -> Result<Candidate> {
    // kube takes the environment's proxy whatever `NO_PROXY` says.
    config.proxy_url = None;
    let proxy = match proxy {
        Some(proxy) => Some(proxy),
        None => around.proxies.to(&config.cluster_url)?,
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

/// Reads a kubeconfig. Errors of kube name their causes as well, on several lines: the first has all of it.
fn read(path: &Path) -> Result<Kubeconfig> {
    Kubeconfig::read_from(path).map_err(|error| {
        let error = error.to_string();
        let reason = error.lines().next().unwrap_or_default();
        anyhow!("cannot use the kubeconfig {path:?}: {reason}")
    })
}

async fn of_master(master: &str, around: &Surroundings) -> Result<Config> {
    if !around.token().exists() {
        return Ok(Config::new(master_url(master, false)?));
    }
    let url = master_url(master, true)?.to_string();
    of_server(own_cluster(url, around), around).await
}

/// As kubectl reads it: a URL, or a host and port.
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
async fn of_pod(from: &[PathBuf], around: &Surroundings) -> Result<Vec<Config>> {
    if !around.token().exists() {
        return Err(no_cluster(
            "not running in a pod with a service account",
            around,
        ));
    }
    let mut configs = Vec::new();
    let named = from.iter().filter(|path| **path != Path::new("none"));
    let (paths, are_named): (Vec<&PathBuf>, bool) = match from {
        [] => (around.kubelet_kubeconfigs.iter().collect(), false),
        _ => (named.collect(), true),
    };
    for path in paths {
        match cluster_in(path, around) {
            Ok(cluster) => configs.push(of_server(cluster, around).await?),
            Err(error) if are_named || path.exists() => {
                tracing::warn!("apiServerFrom: {error:#}; trying the other API servers");
            }
            Err(_) => {}
        }
    }
    if let Some((host, port)) = &around.service {
        let host = match host.contains(':') {
            true => format!("[{host}]"),
            false => host.clone(),
        };
        let cluster = own_cluster(format!("https://{host}:{port}"), around);
        configs.push(of_server(cluster, around).await?);
    }
    if configs.is_empty() {
        return Err(no_cluster("found no kubeconfig of a kubelet", around));
    }
    Ok(configs)
}

/// The server of a kubelet's kubeconfig, with its CA if that can be read from here.
fn cluster_in(path: &Path, around: &Surroundings) -> Result<Cluster> {
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
        None if file.is_none() => own_cluster(server, around),
        data => Cluster {
            server: Some(server),
            certificate_authority_data: data,
            certificate_authority: file,
            tls_server_name: found.tls_server_name,
            ..Cluster::default()
        },
    })
}

/// A server that the CA of the service account vouches for.
fn own_cluster(server: String, around: &Surroundings) -> Cluster {
    Cluster {
        server: Some(server),
        certificate_authority: Some(around.ca().display().to_string()),
        ..Cluster::default()
    }
}

/// A server with the pod's token.
async fn of_server(cluster: Cluster, around: &Surroundings) -> Result<Config> {
    let name = "pod".to_owned();
    let own_ca = around.ca();
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
                token_file: Some(around.token().display().to_string()),
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
    // Read again each minute: the kubelet replaces it together with the token.
    config.root_cert_file = has_own_ca.then_some(own_ca);
    Ok(config)
}

async fn config_of(kubeconfig: Kubeconfig) -> Result<Config> {
    let options = KubeConfigOptions::default();
    Ok(Config::from_custom_kubeconfig(kubeconfig, &options).await?)
}

fn no_cluster(reason: &str, around: &Surroundings) -> anyhow::Error {
    let host = match around.service {
        None => ", and KUBERNETES_SERVICE_HOST is not set",
        Some(_) => "",
    };
    anyhow!(
        "no API server: {reason}{host}. Use --kubeconfig FILE, --master URL or --manifests DIR."
    )
}
