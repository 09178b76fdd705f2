//! Certificates by name: from files, else made here for local names.
//!
//! `DIR/certs/NAME.crt` (the chain) and `DIR/certs/NAME.key`, both PEM; `_.example.com` stands for `*.example.com`. Names
//! below the local suffix get a certificate of a local authority, whose own is `DIR/certs/local-ca.crt`.

use crate::host::Host;
use crate::say;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustix::fs::Mode;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, ServerConfig};

/// Certificates made here that are kept; making one takes about as long as a handshake.
const MADE_MAX: usize = 4096;
const AUTHORITY: &str = "local-ca";
/// Until a browser is told otherwise it believes no longer lives.
const LIFE_DAYS: i64 = 397;

/// See the module's text.
pub struct Certificates {
    directory: PathBuf,
    state: Mutex<State>,
}

struct State {
    suffix: Host,
    files: HashMap<Box<str>, Arc<CertifiedKey>>,
    made: HashMap<Host, Arc<CertifiedKey>>,
    oldest: VecDeque<Host>,
    authority: Option<Authority>,
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Of all certificates that are made: a key of its own for each would prove nothing more.
    leaf: KeyPair,
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl Certificates {
    /// Those of a data directory. Files that can't be used are named in the log.
    #[must_use]
    pub fn new(data: &Path) -> Self {
        let suffix = Host::parse("localhost").expect("a name");
        let state =
            State { suffix, files: HashMap::new(), made: HashMap::new(), oldest: VecDeque::new(), authority: None };
        let new = Self { directory: data.join("certs"), state: Mutex::new(state) };
        new.load();
        new
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// Reads the files again. Connections go on with what they have.
    pub fn load(&self) {
        let mut files = HashMap::new();
        let entries = std::fs::read_dir(&self.directory).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            let name = path.file_stem().and_then(|name| name.to_str()).map(str::to_ascii_lowercase);
            let Some(name) = name.filter(|name| path.extension().is_some_and(|end| end == "crt") && name != AUTHORITY)
            else {
                continue;
            };
            match certified(&path) {
                Ok(key) => {
                    let name = name.strip_prefix("_.").map_or(name.clone(), |suffix| format!("*.{suffix}"));
                    files.insert(name.into(), Arc::new(key));
                }
                Err(error) => say!("{}: {error}", path.display()),
            }
        }
        self.state().files = files;
    }

    /// Below which names certificates are made.
    pub fn set_suffix(&self, suffix: &str) {
        if let Ok(suffix) = Host::parse(suffix) {
            self.state().suffix = suffix;
        }
    }

    /// The certificate of a name; that of the suffix for who names none.
    #[must_use]
    pub fn find(&self, name: Option<&Host>) -> Option<Arc<CertifiedKey>> {
        let mut state = self.state();
        let name = name.cloned().unwrap_or_else(|| state.suffix.clone());
        let wildcard = || name.parent().and_then(|parent| state.files.get(&format!("*.{parent}")[..]));
        if let Some(found) = state.files.get(name.as_str()).or_else(wildcard) {
            return Some(found.clone());
        }
        let suffix = state.suffix.as_str();
        let is_local = name.as_str().strip_suffix(suffix).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        if !is_local {
            return None;
        }
        if let Some(made) = state.made.get(&name) {
            return Some(made.clone());
        }
        match self.make(&mut state, &name) {
            Ok(made) => {
                if state.oldest.len() >= MADE_MAX
                    && let Some(oldest) = state.oldest.pop_front()
                {
                    state.made.remove(&oldest);
                }
                state.oldest.push_back(name.clone());
                state.made.insert(name, made.clone());
                Some(made)
            }
            Err(error) => {
                say!("a certificate for {name}: {error}");
                None
            }
        }
    }

    fn make(&self, state: &mut State, name: &Host) -> io::Result<Arc<CertifiedKey>> {
        if state.authority.is_none() {
            state.authority = Some(self.authority()?);
        }
        let authority = state.authority.as_ref().expect("just made");
        let mut params = CertificateParams::new([name.to_string()]).map_err(io::Error::other)?;
        params.distinguished_name.push(DnType::CommonName, name.as_str());
        limit_life(&mut params);
        let certificate = params.signed_by(&authority.leaf, &authority.issuer).map_err(io::Error::other)?;
        let key = PrivateKeyDer::try_from(authority.leaf.serialize_der()).map_err(io::Error::other)?;
        let signer = ring::sign::any_supported_type(&key).map_err(io::Error::other)?;
        Ok(Arc::new(CertifiedKey::new(vec![certificate.der().clone()], signer)))
    }

    /// The local authority: that of the files, or a new one, which is written there.
    fn authority(&self) -> io::Result<Authority> {
        let (crt, key) = (self.directory.join("local-ca.crt"), self.directory.join("local-ca.key"));
        let leaf = KeyPair::generate().map_err(io::Error::other)?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "Torpor local names");
        // Name and key are all that a certificate has of its issuer, so the old one's is valid for the old key.
        let pair = if crt.exists() {
            KeyPair::from_pem(&std::fs::read_to_string(&key)?).map_err(io::Error::other)?
        } else {
            let pair = KeyPair::generate().map_err(io::Error::other)?;
            let certificate = params.self_signed(&pair).map_err(io::Error::other)?;
            std::fs::create_dir_all(&self.directory)?;
            write(&key, pair.serialize_pem().as_bytes(), Mode::RUSR | Mode::WUSR)?;
            write(&crt, certificate.pem().as_bytes(), Mode::from_raw_mode(0o644))?;
            pair
        };
        Ok(Authority { issuer: Issuer::new(params, pair), leaf })
    }
}

fn limit_life(params: &mut CertificateParams) {
    let now = std::time::SystemTime::now();
    let day = std::time::Duration::from_secs(86_400);
    params.not_before = (now - day).into();
    params.not_after = (now + day * u32::try_from(LIFE_DAYS).expect("some")).into();
}

fn write(path: &Path, bytes: &[u8], mode: Mode) -> io::Result<()> {
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode.as_raw_mode()).open(path)?;
    file.write_all(bytes)
}

fn certified(crt: &Path) -> io::Result<CertifiedKey> {
    let chain: Vec<_> = CertificateDer::pem_file_iter(crt)
        .map_err(io::Error::other)?
        .collect::<Result<_, _>>()
        .map_err(io::Error::other)?;
    let key = PrivateKeyDer::from_pem_file(crt.with_extension("key"))
        .map_err(|error| io::Error::other(format!("its .key: {error}")))?;
    let signer = ring::sign::any_supported_type(&key).map_err(io::Error::other)?;
    let certified = CertifiedKey::new(chain, signer);
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(certified),
        Err(error) => Err(io::Error::other(error)),
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        match hello.server_name() {
            Some(name) => self.find(Some(&Host::parse(name).ok()?)),
            None => self.find(None),
        }
    }
}

/// How TLS ends here. With `http` HTTP/2 is offered.
///
/// # Panics
/// Never: the versions are those of the provider.
#[must_use]
pub fn config(certificates: Arc<Certificates>, http: bool) -> Arc<ServerConfig> {
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().expect("the provider's own");
    let mut config = builder.with_no_client_auth().with_cert_resolver(certificates);
    if http {
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    }
    Arc::new(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_names_get_certificates_and_others_do_not() {
        let directory = std::env::temp_dir().join(format!("torpor-tls-{}", std::process::id()));
        let certificates = Certificates::new(&directory);
        let find =
            |certificates: &Certificates, name: &str| certificates.find(Some(&Host::parse(name).expect("a name")));
        let made = find(&certificates, "app.localhost").expect("local");
        assert!(Arc::ptr_eq(&made, &find(&certificates, "APP.localhost").expect("kept")));
        assert!(find(&certificates, "a.b.localhost").is_some());
        assert!(find(&certificates, "localhost").is_some() && certificates.find(None).is_some());
        assert!(find(&certificates, "app.example").is_none() && find(&certificates, "notlocalhost").is_none());
        let authority = std::fs::read(directory.join("certs/local-ca.crt")).expect("written");
        let again = Certificates::new(&directory);
        assert!(find(&again, "app.localhost").is_some());
        assert_eq!(authority, std::fs::read(directory.join("certs/local-ca.crt")).expect("kept"));
        for n in 0..MADE_MAX / 64 {
            assert!(find(&certificates, &format!("n{n}.localhost")).is_some());
        }
        assert!(certificates.state().made.len() <= MADE_MAX);
        std::fs::remove_dir_all(&directory).expect("ours");
    }
}
