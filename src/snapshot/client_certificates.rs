//! Client certificates that upstreams name: `tls.client_cert_id` is the id of an `ssl` resource of type `client`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::{Id, Ssl, SslType, Status, Upstream};

/// The id of the client certificate that an upstream names.
pub(super) fn named(upstream: &Upstream) -> Option<&Id> {
    upstream.tls.as_ref()?.client_cert_id.as_ref()
}

/// The upstream with the certificate that it names in the place of the name. Where there is no such certificate the name
/// stays, and the upstream cannot be reached.
pub(super) fn equipped<'u>(
    upstream: &'u Upstream,
    ssls: &BTreeMap<Id, Arc<Ssl>>,
) -> Cow<'u, Upstream> {
    let usable = |ssl: &&Arc<Ssl>| ssl.ssl_type == SslType::Client && ssl.status == Status::Enabled;
    let has_one = upstream.tls.as_ref().is_some_and(|tls| {
        // Both at once is refused, not silently one of them.
        tls.client_cert.is_some() || tls.client_key.is_some()
    });
    let named = named(upstream).filter(|_| !has_one);
    let found = named.and_then(|id| ssls.get(id)).filter(usable);
    let Some(ssl) = found else { return Cow::Borrowed(upstream) };
    let mut upstream = upstream.clone();
    if let Some(tls) = &mut upstream.tls {
        tls.client_cert_id = None;
        tls.client_cert = Some(ssl.cert.clone());
        tls.client_key = Some(ssl.key.clone());
    }
    Cow::Owned(upstream)
}
