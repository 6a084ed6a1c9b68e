//! How the API server is found and reached, over real connections and TLS.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lab::fake_api::{Authority, FakeApi, Fault, Injection};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use super::harness::unobserved;
use crate::api::client::connect_from;
use crate::api::locate::Environment;
use crate::api::proxy::Proxies;
use crate::api::{ApiClient, Limits, RequestError, ServerSource};

/// A pod: its service account, and an API server that wants the pod's token.
struct Pod {
    folder: tempfile::TempDir,
    authority: Authority,
    api: FakeApi,
    environment: Environment,
}

impl Pod {
    /// `KUBERNETES_SERVICE_HOST` and port are those of the server.
    fn new() -> Pod {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new().unwrap();
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let api = FakeApi::serve_tls(listener, &authority, &["127.0.0.1", "api.test"]).unwrap();
        api.require_token(Some("of-the-pod"));
        std::fs::write(folder.path().join("token"), "of-the-pod\n").unwrap();
        std::fs::write(folder.path().join("ca.crt"), authority.certificate()).unwrap();
        let port = api.address().port().to_string();
        let environment = Environment {
            service_account: folder.path().into(),
            kubelet_kubeconfigs: vec![folder.path().join("missing"), folder.path().join("kubelet")],
            service: Some(("127.0.0.1".to_owned(), port)),
            cluster_ip: None,
            memory: vec![folder.path().join("memory")],
            proxies: Proxies::default(),
        };
        Pod {
            folder,
            authority,
            api,
            environment,
        }
    }

    /// Writes a kubelet's kubeconfig, whose credentials must not be used. The CA is the pod's own.
    fn write_kubelet(&self, server: &str) {
        write_kubeconfig(
            &self.folder.path().join("kubelet"),
            server,
            "of-the-kubelet",
        );
    }

    async fn client(&self, source: &ServerSource) -> ApiClient {
        connect_from(source, unobserved(), &self.environment)
            .await
            .unwrap()
            .reader
    }
}

fn write_kubeconfig(path: &Path, server: &str, token: &str) {
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{ "name": "k", "cluster": { "server": server } }],
        "users": [{ "name": "u", "user": { "token": token } }],
        "contexts": [{ "name": "c", "context": { "cluster": "k", "user": "u" } }],
    });
    std::fs::write(path, config.to_string()).unwrap();
}

/// An address where nothing listens.
fn dead() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap()
}

/// Sends a request to the first server that answers.
pub(super) async fn get(client: &ApiClient) -> Result<(), RequestError> {
    let request = http::Request::get("/api/v1/nodes")
        .body(Vec::new())
        .unwrap();
    let limits = Limits {
        silence: Duration::from_secs(10),
        total: Duration::from_secs(10),
    };
    client.call(request, limits).await.map(drop)
}

#[tokio::test]
async fn a_dead_first_server_is_passed_over_for_the_next() {
    let pod = Pod::new();
    pod.write_kubelet(&format!("https://{}", dead()));
    let client = pod.client(&ServerSource::default()).await;
    get(&client).await.unwrap();
    // The one that answered is asked first from now on.
    let first = client.servers().in_turn()[0].url.clone();
    assert_eq!(*first, *format!("https://{}", pod.api.address()));
}

#[tokio::test]
async fn a_server_that_answers_with_errors_is_passed_over() {
    let pod = Pod::new();
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let sick = FakeApi::serve_tls(listener, &pod.authority, &["127.0.0.1"]).unwrap();
    pod.write_kubelet(&format!("https://{}", sick.address()));
    for code in [500, 503, 504, 429] {
        sick.heal();
        sick.inject(Injection::always(Fault::status(code)));
        let client = pod.client(&ServerSource::default()).await;
        let refused = get(&client).await;
        assert!(matches!(refused, Err(RequestError::Status { code: found, .. }) if found == code));
        get(&client).await.unwrap();
    }
    // What it says about a request is an answer.
    sick.heal();
    sick.inject(Injection::always(Fault::status(403)));
    let client = pod.client(&ServerSource::default()).await;
    for _ in 0..2 {
        assert!(get(&client).await.is_err());
    }
}

#[tokio::test]
async fn a_servers_time_is_compared_with_this_clock() {
    let pod = Pod::new();
    let client = pod.client(&ServerSource::default()).await;
    assert_eq!(client.clock_difference(), None);
    get(&client).await.unwrap();
    assert!(
        client
            .clock_difference()
            .is_some_and(|seconds| seconds.abs() < 60)
    );
}

#[tokio::test]
async fn the_kubelets_server_gets_the_pods_token() {
    let mut pod = Pod::new();
    pod.write_kubelet(&format!("https://{}", pod.api.address()));
    pod.environment.service = Some(("127.0.0.1".to_owned(), dead().port().to_string()));
    get(&pod.client(&ServerSource::default()).await)
        .await
        .unwrap();
    // Without that file there is no way.
    let none = ServerSource {
        from: vec!["none".into()],
        ..ServerSource::default()
    };
    let error = get(&pod.client(&none).await).await.unwrap_err();
    assert!(matches!(error, RequestError::Unreachable(_)), "{error}");
    let named = ServerSource {
        from: vec![pod.folder.path().join("kubelet")],
        ..ServerSource::default()
    };
    get(&pod.client(&named).await).await.unwrap();
}

#[tokio::test]
async fn master_replaces_the_address_and_keeps_the_credentials() {
    let mut pod = Pod::new();
    pod.environment.service = None;
    let of_pod = ServerSource {
        master: Some(pod.api.address().to_string()),
        ..ServerSource::default()
    };
    get(&pod.client(&of_pod).await).await.unwrap();

    let plain = FakeApi::start().unwrap();
    plain.require_token(Some("of-the-file"));
    let path = pod.folder.path().join("kubeconfig");
    write_kubeconfig(&path, &format!("http://{}", dead()), "of-the-file");
    let of_file = ServerSource {
        kubeconfig: Some(path),
        master: Some(plain.address().to_string()),
        ..ServerSource::default()
    };
    get(&pod.client(&of_file).await).await.unwrap();
}

#[tokio::test]
async fn a_server_of_another_authority_is_refused() {
    let mut pod = Pod::new();
    let other = Authority::new().unwrap();
    assert_ne!(other.certificate(), pod.authority.certificate());
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let impostor = FakeApi::serve_tls(listener, &other, &["127.0.0.1"]).unwrap();
    pod.environment.service = Some((
        "127.0.0.1".to_owned(),
        impostor.address().port().to_string(),
    ));
    let client = pod.client(&ServerSource::default()).await;
    let error = get(&client).await.unwrap_err().to_string();
    assert!(error.contains("ertificate"), "{error}");
    assert!(
        impostor.seen().is_empty(),
        "no request, and no token, was sent"
    );
}

#[tokio::test]
async fn a_dead_cluster_ip_is_named_with_what_to_set() {
    let mut pod = Pod::new();
    let dead = dead();
    pod.environment.service = Some(("127.0.0.1".to_owned(), dead.port().to_string()));
    pod.environment.cluster_ip = Some("127.0.0.1".to_owned());
    let client = pod.client(&ServerSource::default()).await;
    let error = get(&client).await.unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "cannot reach the API server at https://{dead} (connection refused: this is a cluster IP, which nothing \
             serves on this node yet); set --kubeconfig, --master or apiServerFrom"
        )
    );
    // Once a server has answered, an outage is no matter of configuration.
    pod.write_kubelet(&format!("https://{}", pod.api.address()));
    let client = pod.client(&ServerSource::default()).await;
    get(&client).await.unwrap();
    pod.api.set_reachable(false);
    let error = get(&client).await.unwrap_err().to_string();
    assert!(!error.contains("cluster IP"), "{error}");
}

#[tokio::test]
async fn a_replaced_token_is_used_by_the_next_request() {
    let pod = Pod::new();
    let client = pod.client(&ServerSource::default()).await;
    get(&client).await.unwrap();
    pod.api.require_token(Some("rotated"));
    let refused = get(&client).await.unwrap_err();
    assert!(matches!(refused, RequestError::Status { code: 401, .. }));
    let token = pod.folder.path().join("token");
    std::fs::write(&token, "rotated\n").unwrap();
    get(&client).await.unwrap();
    // The kubelet replaces the volume; a moment without a file is no moment without a token.
    std::fs::remove_file(token).unwrap();
    get(&client).await.unwrap();
}

/// A proxy that connects every tunnel to `target`, whatever was asked for; the requests it got.
async fn proxy(target: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap();
    let address = listener.local_addr().unwrap();
    let requests = Arc::<Mutex<Vec<String>>>::default();
    let seen = requests.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let seen = seen.clone();
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let mut request = String::new();
                while !request.ends_with("\r\n\r\n") {
                    stream.read_line(&mut request).await.unwrap();
                }
                seen.lock().unwrap().push(request);
                let mut server = tokio::net::TcpStream::connect(target).await.unwrap();
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut server).await;
            });
        }
    });
    (address, requests)
}

#[tokio::test]
async fn a_proxy_is_asked_for_a_tunnel_unless_excepted() {
    let mut pod = Pod::new();
    let (address, requests) = proxy(pod.api.address()).await;
    let proxies = |exceptions: &'static str| {
        Proxies::of(move |name| match name {
            "HTTPS_PROXY" => Some(format!("http://user:pass%21@{address}")),
            "NO_PROXY" => Some(exceptions.to_owned()),
            _ => None,
        })
    };
    pod.environment.service = Some(("api.test".to_owned(), "6443".to_owned()));
    pod.environment.proxies = proxies("10.0.0.0/8,.svc");
    get(&pod.client(&ServerSource::default()).await)
        .await
        .unwrap();
    let request = requests.lock().unwrap().pop().unwrap();
    assert!(
        request.starts_with("CONNECT api.test:6443 HTTP/1.1\r\n"),
        "{request}"
    );
    // user:pass!
    assert!(
        request.contains("Proxy-Authorization: Basic dXNlcjpwYXNzIQ==\r\n"),
        "{request}"
    );
    assert!(!request.contains("of-the-pod"));

    pod.environment.service = Some(("127.0.0.1".to_owned(), pod.api.address().port().to_string()));
    get(&pod.client(&ServerSource::default()).await)
        .await
        .unwrap();
    assert!(
        requests.lock().unwrap().is_empty(),
        "loopback is never proxied"
    );
    pod.environment.service = Some(("api.test".to_owned(), "6443".to_owned()));
    pod.environment.proxies = proxies("api.test:6443");
    assert!(
        get(&pod.client(&ServerSource::default()).await)
            .await
            .is_err()
    );
    assert!(requests.lock().unwrap().is_empty());
}
