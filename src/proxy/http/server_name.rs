//! Server name and host: a request that came over public TLS is answered only where its host may use that connection.
//!
//! A connection was shaken hands with for one server name, with that name's certificate and under its rules for client
//! certificates. A request may name another host. What follows is written down in `docs/edge.md`; RFC 9110 section 15.5.20 and
//! RFC 9113 section 9.1.1 are behind it.

use std::sync::Arc;

use crate::mtls::{ClientRule, EdgeSession, Site, Sites};
use crate::pipeline::{Head, Reply, host_of, normal_path};
use crate::rt::unix_seconds;
use crate::snapshot::Snapshot;

/// A connection's handshake, and with which certificates in force it was last found in order.
#[derive(Clone)]
pub(in crate::proxy) struct Edge {
    session: Arc<EdgeSession>,
    checked: Arc<Sites>,
}

/// Why a request is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    /// 400: the request needs a client certificate that was not shown for its host.
    Certificate(&'static str),
    /// 421: another connection might do.
    Connection(&'static str),
}

impl Edge {
    pub(super) fn new(session: Arc<EdgeSession>) -> Self {
        Self { checked: session.sites.clone(), session }
    }

    /// May this request be answered on this connection? `Err` is what the caller reads.
    pub(super) fn check(&mut self, snapshot: &Snapshot, request: &Head) -> Result<(), Box<Reply>> {
        self.judge(&snapshot.sites, request).map_err(|wrong| {
            let (status, sentence) = match wrong {
                Wrong::Certificate(sentence) => (400, sentence),
                Wrong::Connection(sentence) => (421, sentence),
            };
            tracing::debug!(site = self.session.site.id(), status, "refused: {sentence}");
            Box::new(Reply::json(status, &serde_json::json!({ "error_msg": sentence })))
        })
    }

    fn judge(&mut self, sites: &Arc<Sites>, request: &Head) -> Result<(), Wrong> {
        let host = host_of(request.authority());
        if host.is_empty() || self.session.name.as_deref() == Some(&*host) {
            self.same_name(sites)?;
        } else {
            other_name(&self.session, sites.find(&host), &host)?;
        }
        let session = &*self.session;
        let Some(rule) = session.rule() else { return Ok(()) };
        match session.proved_until {
            Some(until) if unix_seconds() <= until => Ok(()),
            Some(_) => Err(Wrong::Connection("the client certificate has expired")),
            None => {
                let path = normal_path(request.path());
                match path.is_some_and(|path| rule.skips(&path)) {
                    true => Ok(()),
                    false => Err(Wrong::Certificate("a valid client certificate is required")),
                }
            }
        }
    }

    /// The host that the handshake was for: in order as long as the rules for client certificates are those of the handshake.
    fn same_name(&mut self, sites: &Arc<Sites>) -> Result<(), Wrong> {
        if Arc::ptr_eq(&self.checked, sites) {
            return Ok(());
        }
        let now = match &self.session.name {
            Some(name) => sites.find(name),
            None => sites.any(),
        };
        // Certificates come and go without a word to those who are here; rules are another thing.
        if now.is_some_and(|now| now.is_closed() || rule_of(now) != self.session.rule()) {
            return Err(Wrong::Connection("the rules for client certificates have changed"));
        }
        self.checked = sites.clone();
        Ok(())
    }
}

fn rule_of(site: &Arc<Site>) -> Option<&ClientRule> {
    site.client().map(Arc::as_ref)
}

/// A host that is not the server name of the handshake; `wanted` is who would answer for it.
fn other_name(session: &EdgeSession, wanted: Option<&Arc<Site>>, host: &str) -> Result<(), Wrong> {
    // What a certificate proved under one name is proved for no other: that of a client that may go to one host and not to
    // its neighbour must not get it there.
    if wanted.is_some_and(|site| site.is_closed()) {
        return Err(Wrong::Connection("nobody answers for the host at present"));
    }
    if wanted.is_some_and(|site| site.client().is_some()) {
        return Err(Wrong::Certificate("the host must be the server name of the TLS connection"));
    }
    match wanted {
        Some(site) if session.rule() != rule_of(site) => {
            Err(Wrong::Connection("the host has other rules for client certificates"))
        }
        Some(site) if site.id() == session.site.id() => Ok(()),
        // Nobody was named, and nobody in particular answers for the host: the fallback serves both.
        None if !session.is_named => Ok(()),
        _ if session.site.covers(host) => Ok(()),
        _ => Err(Wrong::Connection("the certificate of this connection is not for the host")),
    }
}
