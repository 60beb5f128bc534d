//! Certificates for one test: an authority, a server and a client.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// Files in PEM format. Nothing outside the test trusts them.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Certificates {
    /// The certificate of the authority that signed the others.
    pub authority: PathBuf,
    /// The server's certificate, for `localhost` and `127.0.0.1`.
    pub server: PathBuf,
    /// The server's private key.
    pub server_key: PathBuf,
    /// A client's certificate.
    pub client: PathBuf,
    /// The client's private key.
    pub client_key: PathBuf,
}

impl Certificates {
    /// Creates new ones in `directory`.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn create(directory: &Path) -> anyhow::Result<Self> {
        let authority_key = KeyPair::generate()?;
        let mut authority = parameters(&[], "test authority")?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let authority_certificate = authority.self_signed(&authority_key)?;
        let issuer = Issuer::from_params(&authority, &authority_key);

        let mut server = parameters(&["localhost", "127.0.0.1"], "test server")?;
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let server_key = KeyPair::generate()?;
        let mut client = parameters(&[], "test client")?;
        client.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let client_key = KeyPair::generate()?;

        let write = |name: &str, text: String| -> anyhow::Result<PathBuf> {
            let path = directory.join(name);
            fs::write(&path, text)
                .with_context(|| format!("could not write {}", path.display()))?;
            Ok(path)
        };
        Ok(Self {
            authority: write("authority.pem", authority_certificate.pem())?,
            server: write("server.pem", server.signed_by(&server_key, &issuer)?.pem())?,
            server_key: write("server.key", server_key.serialize_pem())?,
            client: write("client.pem", client.signed_by(&client_key, &issuer)?.pem())?,
            client_key: write("client.key", client_key.serialize_pem())?,
        })
    }
}

fn parameters(names: &[&str], common_name: &str) -> anyhow::Result<CertificateParams> {
    let names: Vec<_> = names.iter().copied().map(String::from).collect();
    let mut parameters = CertificateParams::new(names)?;
    parameters.distinguished_name.push(DnType::CommonName, common_name);
    Ok(parameters)
}
