//! Where the Workload API is and whether we may believe what answers there (SPIFFE Workload Endpoint, sections 3 to 5).

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use spiffe::transport::Endpoint as Address;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::metadata::MetadataValue;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::Error;
use super::workload_proto::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use super::workload_proto::{Jwtsvid, ValidateJwtsvidRequest, X509svid};

/// How long a connection may take to be established.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// How often a silent TCP connection is looked after. Unix sockets need none, and gRPC servers shut out whoever pings often.
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);
/// The longest message: an SVID with the bundles of some hundred trust domains.
const MAX_MESSAGE_BYTES: usize = 8 << 20;

/// A client whose every call bears the header that the specification asks for (90).
pub(super) type Client = SpiffeWorkloadApiClient<InterceptedService<Channel, SecurityHeader>>;

/// `workload.spiffe.io: true`: no browser and no forged web request can set it.
#[derive(Clone, Copy, Debug)]
pub(super) struct SecurityHeader;

impl Interceptor for SecurityHeader {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
        Ok(request)
    }
}

/// Without its key.
impl fmt::Debug for X509svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509svid").field("spiffe_id", &self.spiffe_id).finish_non_exhaustive()
    }
}

/// Without its token.
impl fmt::Debug for Jwtsvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jwtsvid").field("spiffe_id", &self.spiffe_id).finish_non_exhaustive()
    }
}

/// Without its token.
impl fmt::Debug for ValidateJwtsvidRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValidateJwtsvidRequest")
            .field("audience", &self.audience)
            .finish_non_exhaustive()
    }
}

/// A Workload API's address.
#[derive(Clone, Debug)]
pub(super) struct WorkloadEndpoint {
    /// As it was given, for messages.
    pub(super) text: String,
    address: Address,
}

impl WorkloadEndpoint {
    /// `given`, or else the environment's `SPIFFE_ENDPOINT_SOCKET` (91). A bare absolute path is a Unix socket.
    pub(super) fn of(given: Option<&str>) -> Result<Self, Error> {
        let from_environment = || std::env::var("SPIFFE_ENDPOINT_SOCKET").unwrap_or_default();
        Self::parse(&given.map_or_else(from_environment, str::to_owned))
    }

    /// Rules 92 and 93. The `spiffe` crate reads it; it lets a slash after a port pass, which is a path.
    fn parse(given: &str) -> Result<Self, Error> {
        let text = if given.starts_with('/') { format!("unix:{given}") } else { given.to_owned() };
        let invalid = || Error::Address { address: text.clone() };
        let address = match Address::parse(&text).map_err(|_| invalid())? {
            Address::Unix(path) => {
                let path = path.to_str().ok_or_else(invalid)?;
                let decoded = percent_decode_str(path).decode_utf8().map_err(|_| invalid())?;
                Address::Unix(PathBuf::from(decoded.into_owned()))
            }
            Address::Tcp { .. } if text.ends_with('/') => return Err(invalid()),
            Address::Tcp { host, port } => {
                if !host.is_loopback() {
                    tracing::warn!(
                        address = text,
                        "the Workload API is reached over a network without TLS: keys can be read on the way"
                    );
                }
                Address::Tcp { host, port }
            }
            // The crate may come to know other forms; we do not.
            _ => return Err(invalid()),
        };
        Ok(Self { text, address })
    }

    /// Connects anew.
    pub(super) async fn connect(&self) -> Result<Client, Error> {
        let opening = async {
            match &self.address {
                Address::Unix(path) => self.connect_unix(path).await,
                Address::Tcp { host, port } => {
                    let host = if host.is_ipv6() { format!("[{host}]") } else { host.to_string() };
                    let endpoint = Endpoint::from_shared(format!("http://{host}:{port}"))
                        .map_err(|_| Error::Address { address: self.text.clone() })?
                        .tcp_keepalive(Some(TCP_KEEPALIVE));
                    endpoint.connect().await.map_err(|error| self.unreachable(error))
                }
                _ => Err(Error::Address { address: self.text.clone() }),
            }
        };
        let channel = timeout(CONNECT_WITHIN, opening).await.map_err(|_| Error::NotInTime {
            origin: self.text.clone(),
            within: CONNECT_WITHIN,
            source: None,
        })??;
        let client = SpiffeWorkloadApiClient::with_interceptor(channel, SecurityHeader);
        Ok(client.max_decoding_message_size(MAX_MESSAGE_BYTES))
    }

    async fn connect_unix(&self, path: &Path) -> Result<Channel, Error> {
        let is_shared = check_directories(path).await?;
        let stream = UnixStream::connect(path).await.map_err(|error| self.unreachable(error))?;
        if is_shared {
            let uid = stream.peer_cred().map_err(|error| self.unreachable(error))?.uid();
            check_server(path, uid, rustix::process::geteuid().as_raw())?;
        }
        let mut stream = Some(stream);
        // One connection and no second: whoever serves the next one would not have been looked at.
        let connector = tower::service_fn(move |_: http::Uri| {
            let stream = stream.take().map(TokioIo::new);
            async move { stream.ok_or_else(|| io::Error::other("the connection ended")) }
        });
        // The name is never looked up; HTTP/2 wants one.
        let endpoint = Endpoint::from_static("http://localhost");
        let connecting = endpoint.connect_with_connector(connector).await;
        connecting.map_err(|error| self.unreachable(error))
    }

    fn unreachable(&self, error: impl std::error::Error + Send + Sync + 'static) -> Error {
        Error::Unreachable { address: self.text.clone(), source: Box::new(error) }
    }
}

/// Rule 95: whoever may write to a directory on the way to the socket can be our Workload API. A sticky directory protects what
/// is in it, but not the name of what is not there yet: `true` says that there is such a one.
async fn check_directories(socket: &Path) -> Result<bool, Error> {
    let mut directories: BTreeSet<PathBuf> =
        socket.ancestors().skip(1).map(Path::to_owned).collect();
    // Behind symbolic links as well. What cannot be seen is left to the connection attempt, whose error is clearer.
    if let Some(parent) = socket.parent()
        && let Ok(real) = tokio::fs::canonicalize(parent).await
    {
        directories.extend(real.ancestors().map(Path::to_owned));
    }
    let mut is_shared = false;
    for directory in directories {
        let Ok(found) = tokio::fs::metadata(&directory).await else { continue };
        let (for_others, sticky) = (found.mode() & 0o002 != 0, found.mode() & 0o1000 != 0);
        if for_others && !sticky {
            return Err(Error::SocketDirectory { directory });
        }
        is_shared |= for_others;
    }
    Ok(is_shared)
}

/// Below a directory where any user can make something, only root's word and our own user's count (95).
fn check_server(socket: &Path, server: u32, own: u32) -> Result<(), Error> {
    if server == 0 || server == own {
        return Ok(());
    }
    Err(Error::SocketServer { socket: socket.to_owned(), uid: server })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::identity::forge::Folder;

    #[test]
    fn rules_91_to_93_say_what_an_address_is() {
        for (rule, given, expected) in [
            ("91 a bare path", "/run/spire/api.sock", Some("/run/spire/api.sock")),
            ("92", "unix:/run/api.sock", Some("/run/api.sock")),
            ("92 with slashes", "unix:///run/api.sock", Some("/run/api.sock")),
            ("92 a space", "unix:/run/my api.sock", Some("/run/my api.sock")),
            ("92 an escaped space", "unix:/run/my%20api.sock", Some("/run/my api.sock")),
            ("92 an authority", "unix://run/api.sock", None),
            ("92 a relative path", "unix:run/api.sock", None),
            ("92 a query", "unix:/run/api.sock?a=b", None),
            ("92 a fragment", "unix:/run/api.sock#a", None),
            ("92 no path", "unix:", None),
            ("92 the root", "unix:///", None),
            ("93", "tcp:127.0.0.1:8000", Some("tcp")),
            ("93 with slashes", "tcp://127.0.0.1:8000", Some("tcp")),
            ("93 IPv6", "tcp:[::1]:8000", Some("tcp")),
            ("93 a host name", "tcp:localhost:8000", None),
            ("93 a path", "tcp:127.0.0.1:8000/a", None),
            ("93 a slash", "tcp:127.0.0.1:8000/", None),
            ("93 no port", "tcp:127.0.0.1", None),
            ("93 a user", "tcp://me@127.0.0.1:8000", None),
            ("93 a query", "tcp:127.0.0.1:8000?a", None),
            ("91 nothing", "", None),
            ("91 another scheme", "http://127.0.0.1:8000", None),
        ] {
            let found = WorkloadEndpoint::parse(given).ok().map(|found| match found.address {
                Address::Unix(path) => path.display().to_string(),
                _ => "tcp".into(),
            });
            assert_eq!(found.as_deref(), expected, "{rule}: {given:?}");
        }
    }

    #[tokio::test]
    async fn rule_95_a_socket_that_others_could_put_there_is_not_believed() {
        let folder = Folder::new();
        let inner = folder.path().join("a/b");
        std::fs::create_dir_all(&inner).unwrap();
        let mode = |path: &Path, mode: u32| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        let socket = inner.join("api.sock");
        let above = folder.path().parent().unwrap();
        let above_is_shared = std::fs::metadata(above).unwrap().mode() & 0o002 != 0;
        assert_eq!(check_directories(&socket).await.unwrap(), above_is_shared);

        mode(&folder.path().join("a"), 0o1777);
        assert!(check_directories(&socket).await.unwrap(), "95 a sticky directory on the way");
        for open in [inner.clone(), folder.path().join("a")] {
            mode(&open, 0o777);
            let refused = check_directories(&socket).await.unwrap_err();
            assert!(matches!(refused, Error::SocketDirectory { directory } if directory == open));
            mode(&open, 0o755);
        }

        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&inner, &link).unwrap();
        mode(&inner, 0o777);
        let refused = check_directories(&link.join("api.sock")).await.unwrap_err();
        assert!(matches!(refused, Error::SocketDirectory { .. }), "95 behind a link");

        assert!(check_server(&socket, 0, 1000).is_ok(), "95 root");
        assert!(check_server(&socket, 1000, 1000).is_ok(), "95 ourselves");
        let refused = check_server(&socket, 1001, 1000).unwrap_err().to_string();
        assert!(refused.contains("user 1001"), "{refused}");
    }
}
