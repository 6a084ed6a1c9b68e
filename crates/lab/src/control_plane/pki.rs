//! Certificates and keys of one control plane: an authority of its own, valid for nothing else.

use std::net::IpAddr;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};

/// A certificate and its key, both PEM.
pub(super) struct Identity {
    pub(super) certificate: String,
    pub(super) key: String,
}

/// The authority and what every control plane needs of it.
pub(super) struct Pki {
    issuer: Issuer<'static, KeyPair>,
    /// The authority's certificate, PEM.
    pub(super) authority: String,
    /// Signs service account tokens: private and public key, PEM.
    pub(super) token_keys: [String; 2],
    /// What the API server shows.
    pub(super) api_server: Identity,
}

impl Pki {
    /// A new authority, with a certificate for an API server at these addresses and at those that pods know.
    pub(super) fn new(addresses: &[IpAddr]) -> Result<Pki> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name("lab", None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let authority = params.self_signed(&key)?.pem();
        let issuer = Issuer::new(params, key);
        // The Service `kubernetes` has the first address of each range (10.96.0.1, fd00:96::1).
        let names = addresses
            .iter()
            .map(IpAddr::to_string)
            .chain(["127.0.0.1", "10.96.0.1", "fd00:96::1"].map(str::to_owned))
            .chain(["localhost", "kubernetes.default.svc"].map(str::to_owned));
        let params = CertificateParams::new(names.collect::<Vec<_>>())?;
        let usage = ExtendedKeyUsagePurpose::ServerAuth;
        let api_server = sign(&issuer, params, name("kube-apiserver", None), usage)?;
        let token_key = KeyPair::generate()?;
        Ok(Pki {
            issuer,
            authority,
            token_keys: [token_key.serialize_pem(), token_key.public_key_pem()],
            api_server,
        })
    }

    /// Credentials of a user, and of a group if given: common name and organization of a client certificate.
    pub(super) fn user(&self, user: &str, group: Option<&str>) -> Result<Identity> {
        let params = CertificateParams::default();
        let usage = ExtendedKeyUsagePurpose::ClientAuth;
        sign(&self.issuer, params, name(user, group), usage)
            .with_context(|| format!("a certificate for {user}"))
    }
}

fn name(common: &str, organization: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name
}

fn sign(
    issuer: &Issuer<'static, KeyPair>,
    mut params: CertificateParams,
    name: DistinguishedName,
    usage: ExtendedKeyUsagePurpose,
) -> Result<Identity> {
    let key = KeyPair::generate()?;
    params.distinguished_name = name;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    Ok(Identity {
        certificate: params.signed_by(&key, issuer)?.pem(),
        key: key.serialize_pem(),
    })
}
