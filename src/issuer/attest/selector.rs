//! `Selector`: one attested fact about a caller, as registration entries ask for it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::TokenId;
use crate::issuer::Error;

/// One attested fact about a caller, as entries write it. `docs/enrolment.md` has the table.
///
/// ```
/// # use wardgate::issuer::Selector;
/// for text in ["unix:uid:1000", "unix:path:/usr/bin/app", "k8s:ns:shop", "k8s:sa:web"] {
///     assert_eq!(text.parse::<Selector>().unwrap().to_string(), text);
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Selector {
    /// `unix:uid:N`: the caller's effective user when it connected.
    UnixUid(u32),
    /// `unix:gid:N`: the caller's effective group when it connected.
    UnixGid(u32),
    /// `unix:supplementary_gid:N`: one of the caller's further groups.
    UnixSupplementaryGid(u32),
    /// `unix:path:/P`: the program that the caller runs. It is the path that the caller sees: whoever may make containers can
    /// give any program any path, so that this narrows a `unix:uid` and does not replace it.
    UnixPath(PathBuf),
    /// `unix:sha256:HEX`: SHA-256 of the program that the caller runs, read through the process itself.
    UnixSha256([u8; 32]),
    /// `join_token:ID`: the caller enrolled with this join token.
    JoinToken(TokenId),
    /// `k8s:cluster:NAME`: which of the issuer's clusters vouched for the token.
    KubernetesCluster(String),
    /// `k8s:ns:NAME`: the namespace of the caller's service account.
    KubernetesNamespace(String),
    /// `k8s:sa:NAME`: the caller's service account.
    KubernetesServiceAccount(String),
    /// `k8s:pod-name:NAME`: the pod that the token is bound to.
    KubernetesPodName(String),
    /// `k8s:pod-uid:UID`: the pod that the token is bound to.
    KubernetesPodUid(String),
}

impl FromStr for Selector {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::Entry {
            field: "selectors",
            detail: format!(
                "{text:?} is not known: expected unix:uid:NUMBER, unix:gid:NUMBER, unix:supplementary_gid:NUMBER, \
                 unix:path:/ABSOLUTE/PATH, unix:sha256:HEX, join_token:ID, or k8s: with cluster, ns, sa, pod-name or pod-uid \
                 and a name"
            ),
        };
        if let Some(id) = text.strip_prefix("join_token:") {
            return id.parse().map(Self::JoinToken).map_err(|_| wrong());
        }
        let (family, rest) = text.split_once(':').ok_or_else(wrong)?;
        let (kind, value) = rest.split_once(':').ok_or_else(wrong)?;
        // `parse` would also take a plus sign.
        let number = || match value.bytes().all(|b| b.is_ascii_digit()) {
            true => value.parse().map_err(|_| wrong()),
            false => Err(wrong()),
        };
        let name = || match is_name(value) {
            true => Ok(value.to_owned()),
            false => Err(wrong()),
        };
        match (family, kind) {
            ("unix", "uid") => Ok(Self::UnixUid(number()?)),
            ("unix", "gid") => Ok(Self::UnixGid(number()?)),
            ("unix", "supplementary_gid") => Ok(Self::UnixSupplementaryGid(number()?)),
            ("unix", "path") if Path::new(value).is_absolute() => Ok(Self::UnixPath(value.into())),
            ("unix", "sha256") => {
                let mut digest = [0; 32];
                hex::decode_to_slice(value, &mut digest).map_err(|_| wrong())?;
                Ok(Self::UnixSha256(digest))
            }
            ("k8s", "cluster") => Ok(Self::KubernetesCluster(name()?)),
            ("k8s", "ns") => Ok(Self::KubernetesNamespace(name()?)),
            ("k8s", "sa") => Ok(Self::KubernetesServiceAccount(name()?)),
            ("k8s", "pod-name") => Ok(Self::KubernetesPodName(name()?)),
            ("k8s", "pod-uid") => Ok(Self::KubernetesPodUid(name()?)),
            _ => Err(wrong()),
        }
    }
}

/// Names of Kubernetes objects: lower-case labels and dots (RFC 1123), at most 253 bytes.
pub(super) fn is_name(name: &str) -> bool {
    let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    name.len() <= 253
        && ends(name.as_bytes().first())
        && ends(name.as_bytes().last())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-".contains(&b))
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnixUid(uid) => write!(f, "unix:uid:{uid}"),
            Self::UnixGid(gid) => write!(f, "unix:gid:{gid}"),
            Self::UnixSupplementaryGid(gid) => write!(f, "unix:supplementary_gid:{gid}"),
            Self::UnixPath(path) => write!(f, "unix:path:{}", path.display()),
            Self::UnixSha256(digest) => write!(f, "unix:sha256:{}", hex::encode(digest)),
            Self::JoinToken(id) => write!(f, "join_token:{id}"),
            Self::KubernetesCluster(name) => write!(f, "k8s:cluster:{name}"),
            Self::KubernetesNamespace(name) => write!(f, "k8s:ns:{name}"),
            Self::KubernetesServiceAccount(name) => write!(f, "k8s:sa:{name}"),
            Self::KubernetesPodName(name) => write!(f, "k8s:pod-name:{name}"),
            Self::KubernetesPodUid(uid) => write!(f, "k8s:pod-uid:{uid}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_print_as_they_are_written() {
        let digest = format!("unix:sha256:{}", "ab".repeat(32));
        for text in [
            "unix:uid:0",
            "unix:gid:4294967295",
            "unix:supplementary_gid:27",
            "unix:path:/usr/bin/a:b",
            &digest,
            "join_token:0123456789abcdef",
            "k8s:cluster:prod",
            "k8s:ns:shop",
            "k8s:sa:web.front",
            "k8s:pod-name:web-0",
            "k8s:pod-uid:7d1c0c4e-58d6-4b5b-9f0a-2f3f6f4d9a10",
        ] {
            assert_eq!(text.parse::<Selector>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "unix:",
            "unix:uid:+1",
            "unix:uid:4294967296",
            "unix:path:",
            "unix:x:1",
            "unix:sha256:ab",
            "join_token:",
            "join_token:../../root",
            "k8s:ns:",
            "k8s:ns:a/b",
            "k8s:ns:-a",
            "k8s:sa:A",
            "k8s:pod:a",
        ] {
            assert!(bad.parse::<Selector>().is_err(), "{bad}");
        }
    }
}
