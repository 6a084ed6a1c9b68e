//! Client certificates in files, and a server that asks for them.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::harness::unobserved;
use super::reaching::get;
use crate::api::{self, ApiServer, RequestError, ServerSource};

/// A certificate with its key.
struct Identity {
    der: CertificateDer<'static>,
    pem: String,
    key: KeyPair,
}

/// A server that answers 401 unless the client's certificate is the accepted one, as an API server does after a
/// certificate has expired. Each connection has one request.
struct Gate {
    issuer: Issuer<'static, KeyPair>,
    ca: String,
    address: SocketAddr,
    accepted: Arc<Mutex<Option<CertificateDer<'static>>>>,
}

impl Gate {
    async fn start() -> Gate {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let ca = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let own = issue(
            &issuer,
            vec!["127.0.0.1".to_owned()],
            ExtendedKeyUsagePurpose::ServerAuth,
        );
        let acceptor = acceptor(ca.der(), &own);
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepted = Arc::<Mutex<Option<CertificateDer<'static>>>>::default();
        let shared = accepted.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, acceptor.clone(), shared.clone()));
            }
        });
        Gate {
            issuer,
            ca: ca.pem(),
            address,
            accepted,
        }
    }

    /// A new client certificate.
    fn client(&self) -> Identity {
        issue(
            &self.issuer,
            Vec::new(),
            ExtendedKeyUsagePurpose::ClientAuth,
        )
    }

    /// Accepts this certificate only.
    fn accept(&self, identity: &Identity) {
        *self.accepted.lock().unwrap() = Some(identity.der.clone());
    }

    /// Writes a kubeconfig that names the files below.
    fn write_kubeconfig(&self, folder: &Path) {
        let server = format!("https://{}", self.address);
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{ "name": "k", "cluster": { "server": server, "certificate-authority": "ca.crt" } }],
            "users": [{ "name": "u", "user": { "client-certificate": "client.crt", "client-key": "client.key" } }],
            "contexts": [{ "name": "c", "context": { "cluster": "k", "user": "u" } }],
        });
        std::fs::write(folder.join("kubeconfig"), config.to_string()).unwrap();
        std::fs::write(folder.join("ca.crt"), &self.ca).unwrap();
    }
}

fn issue(
    issuer: &Issuer<'static, KeyPair>,
    names: Vec<String>,
    purpose: ExtendedKeyUsagePurpose,
) -> Identity {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(names).unwrap();
    params.insert_extended_key_usage(purpose);
    let certificate = params.signed_by(&key, issuer).unwrap();
    Identity {
        der: certificate.der().clone(),
        pem: certificate.pem(),
        key,
    }
}

/// Shows `own` and requires a client certificate of the authority.
fn acceptor(ca: &CertificateDer<'static>, own: &Identity) -> TlsAcceptor {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone()).unwrap();
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .unwrap();
    let key = PrivateKeyDer::try_from(own.key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![own.der.clone()], key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

async fn answer(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    accepted: Arc<Mutex<Option<CertificateDer<'static>>>>,
) {
    let Ok(stream) = acceptor.accept(stream).await else {
        return;
    };
    let chain = stream.get_ref().1.peer_certificates();
    let shown = chain.and_then(|chain| chain.first()).cloned();
    let is_accepted = shown.is_some() && shown == *accepted.lock().unwrap();
    let mut stream = BufReader::new(stream);
    let mut request = String::new();
    while !request.ends_with("\r\n\r\n") {
        match stream.read_line(&mut request).await {
            Ok(length) if length > 0 => {}
            _ => return,
        }
    }
    let status = match is_accepted {
        true => "200 OK",
        false => "401 Unauthorized",
    };
    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}");
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
}

fn write(folder: &Path, certificate: &Identity, key: &Identity) {
    std::fs::write(folder.join("client.crt"), &certificate.pem).unwrap();
    std::fs::write(folder.join("client.key"), key.key.serialize_pem()).unwrap();
}

async fn connect(folder: &Path) -> ApiServer {
    let source = ServerSource {
        kubeconfig: Some(folder.join("kubeconfig")),
        ..ServerSource::default()
    };
    api::connect(&source, unobserved()).await.unwrap()
}

#[tokio::test]
async fn a_replaced_client_certificate_is_used_by_the_next_request() {
    let gate = Gate::start().await;
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    gate.write_kubeconfig(folder);
    let (first, second, third) = (gate.client(), gate.client(), gate.client());
    write(folder, &first, &first);
    gate.accept(&first);
    let ApiServer { reader, writer, .. } = connect(folder).await;
    for client in [&reader, &writer] {
        get(client).await.unwrap();
    }
    gate.accept(&second);
    for client in [&reader, &writer] {
        let refused = get(client).await.unwrap_err();
        assert!(
            matches!(refused, RequestError::Status { code: 401, .. }),
            "{refused}"
        );
    }
    write(folder, &second, &second);
    for client in [&reader, &writer] {
        get(client).await.unwrap();
    }
    // Whichever client finds the change, both use it.
    write(folder, &third, &third);
    gate.accept(&third);
    for client in [&writer, &reader] {
        get(client).await.unwrap();
    }
}

#[tokio::test]
async fn a_half_replaced_certificate_leaves_the_earlier_one_in_use() {
    let gate = Gate::start().await;
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    gate.write_kubeconfig(folder);
    let (first, second) = (gate.client(), gate.client());
    write(folder, &first, &first);
    gate.accept(&first);
    let reader = connect(folder).await.reader;
    for _ in 0..2 {
        write(folder, &second, &first);
        get(&reader).await.unwrap();
    }
    std::fs::remove_file(folder.join("client.crt")).unwrap();
    get(&reader).await.unwrap();
    gate.accept(&second);
    write(folder, &second, &second);
    get(&reader).await.unwrap();
}
