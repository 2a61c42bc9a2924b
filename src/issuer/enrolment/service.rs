//! The issuer's side: a proof is judged, an identity is found for it, a key is certified, and all of it stands in the log.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use futures_util::stream::unfold;
use rustls_pki_types::UnixTime;
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::key::RequestedKey;
use super::listener::Origin;
use super::message::to_wire;
use super::throttle::Throttle;
use super::ticket::{Ticket, TicketKey};
use crate::identity::{Identity, Peer, Revocations, SpiffeId, Trust, TrustBundles};
use crate::issuer::source::changed;
use crate::issuer::wire;
use crate::issuer::wire::issuer_server::Issuer;
use crate::issuer::{
    Announcement, Authority, Entries, Error, Evidence, Grant, JoinTokens, KubernetesAttestor,
    KubernetesSettings, ProofFlaw, RegistrationEntry, Selector, TokenId,
};
use crate::observe::{AuditLane, IssuerRecord};
use crate::rt::{DrainGuard, Live};

/// How often an open stream looks whether its identity still stands, for what changes without a word: a revoked join token.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What enrolment needs of its process.
pub struct EnrolmentParts {
    /// Who signs.
    pub authority: Arc<Authority>,
    /// The authority's folder, where join tokens and the tickets' key are.
    pub directory: PathBuf,
    /// The registration entries.
    pub entries: Live<Entries>,
    /// The issuer's own identity: what it proves to callers, and whom it trusts.
    pub identity: Live<Identity>,
    /// The clusters whose service accounts may enrol.
    pub kubernetes: Vec<KubernetesSettings>,
    /// The decision log.
    pub audit: AuditLane,
}

/// What every call needs.
#[derive(Clone)]
pub(super) struct Service {
    shared: Arc<Shared>,
    entries: Live<Entries>,
    identity: Live<Identity>,
    guard: DrainGuard,
}

struct Shared {
    authority: Arc<Authority>,
    tokens: JoinTokens,
    clusters: Vec<KubernetesAttestor>,
    tickets: TicketKey,
    throttle: Throttle,
    audit: AuditLane,
}

/// Why a caller does not get what it wants: a code and a sentence for the record, and what the caller is told.
struct Refused {
    code: &'static str,
    detail: String,
    status: Status,
    /// A proof that failed: whoever guesses has to wait.
    counts: bool,
    /// The identity that it was about, as far as it is known.
    spiffe_id: Option<SpiffeId>,
}

impl Refused {
    fn new(code: &'static str, status: Status) -> Self {
        let detail = status.message().to_owned();
        Self { code, detail, status, counts: false, spiffe_id: None }
    }

    fn about(mut self, id: &SpiffeId) -> Self {
        self.spiffe_id = Some(id.clone());
        self
    }
}

impl From<ProofFlaw> for Refused {
    fn from(flaw: ProofFlaw) -> Self {
        let unavailable = matches!(flaw, ProofFlaw::Unavailable { .. });
        Self {
            code: flaw.code(),
            detail: flaw.to_string(),
            // What exactly is wrong helps whoever guesses.
            status: match unavailable {
                true => Status::unavailable("the proof cannot be checked now"),
                false => Status::unauthenticated("the proof is not valid"),
            },
            counts: !unavailable,
            spiffe_id: None,
        }
    }
}

/// What a proof shows, and the join token to be used up for it.
struct Shown {
    selectors: BTreeSet<Selector>,
    token: Option<TokenId>,
}

impl Service {
    pub(super) fn new(parts: EnrolmentParts, guard: DrainGuard) -> Result<Self, Error> {
        let EnrolmentParts { authority, directory, entries, identity, kubernetes, audit } = parts;
        let domain = authority.domain().clone();
        let clusters = kubernetes
            .into_iter()
            .map(|cluster| KubernetesAttestor::new(cluster, domain.clone()))
            .collect::<Result<Vec<_>, _>>()?;
        for (at, cluster) in clusters.iter().enumerate() {
            if clusters[..at].iter().any(|other| other.name() == cluster.name()) {
                return Err(Error::Kubernetes {
                    cluster: cluster.name().into(),
                    field: "name",
                    detail: "given to two clusters".into(),
                });
            }
        }
        let shared = Shared {
            tokens: JoinTokens::of(&directory),
            tickets: TicketKey::open(&directory)?,
            throttle: Throttle::default(),
            authority,
            clusters,
            audit,
        };
        Ok(Self { shared: Arc::new(shared), entries, identity, guard })
    }

    /// What a proof shows. A join token is looked at and not yet used up.
    async fn shown(&self, proof: Option<wire::Proof>) -> Result<Shown, ProofFlaw> {
        let now = self.shared.authority.clock().now();
        match proof.and_then(|proof| proof.kind) {
            None => Err(ProofFlaw::Missing),
            Some(wire::proof::Kind::JoinToken(text)) => {
                let (id, _) = self.shared.tokens.check(&text, now)?;
                Ok(Shown { selectors: [Selector::JoinToken(id.clone())].into(), token: Some(id) })
            }
            Some(wire::proof::Kind::Kubernetes(shown)) => {
                let name = || shown.cluster.chars().take(64).collect();
                let cluster = self.shared.cluster(&shown.cluster);
                let cluster = cluster.ok_or_else(|| ProofFlaw::Cluster { name: name() })?;
                let selectors = cluster.attest(&shown.token, now).await?;
                Ok(Shown { selectors, token: None })
            }
        }
    }

    /// Every identity of whoever showed this: what its token or its cluster gives, then what entries give.
    fn entitled(
        &self,
        shown: &BTreeSet<Selector>,
    ) -> Result<Vec<Arc<RegistrationEntry>>, ProofFlaw> {
        let own = |grant: Grant| {
            let Grant { spiffe_id, ttl, dns_names } = grant;
            Arc::new(RegistrationEntry::granted(spiffe_id, ttl, dns_names))
        };
        let mut found = Vec::new();
        for one in shown {
            if let Selector::JoinToken(id) = one {
                found.extend(self.shared.tokens.standing(id)?.map(own));
            }
        }
        found.extend(self.entries.load().matching(shown));
        // An entry says more than a template.
        let by_template = self.shared.clusters.iter().filter_map(|cluster| cluster.grant(shown));
        found.extend(by_template.map(own));
        // Whom everybody refuses gets nothing new to be refused with.
        let identity = self.identity.load();
        found.retain(|entry| !identity.trust.revocation.denied.ids.contains(&entry.spiffe_id));
        Ok(found)
    }

    /// Certifies `key` for what `entry` says.
    fn issue(
        &self,
        entry: &RegistrationEntry,
        key: &RequestedKey,
        shown: BTreeSet<Selector>,
        proved: i64,
    ) -> Result<Issued, Refused> {
        let authority = &self.shared.authority;
        let failed = |error: Error| {
            tracing::error!(%error, id = %entry.spiffe_id, "cannot issue an SVID");
            let status = Status::unavailable("the authority cannot issue now");
            Refused::new("authority", status).about(&entry.spiffe_id)
        };
        let evidence = Evidence {
            by: "enrolment".to_owned(),
            selectors: shown.iter().map(ToString::to_string).collect(),
        };
        // Before signing: what changes meanwhile is taken for news.
        let root = authority.announced().load().root.clone();
        let chain = authority
            .certify_to(&entry.spiffe_id, entry.ttl, &entry.dns_names, &key.spki, &evidence)
            .map_err(failed)?;
        let (serial, not_after) = facts(&chain[0]).ok_or_else(|| failed(Error::PublicKey))?;
        let ticket = Ticket {
            spiffe_id: entry.spiffe_id.clone(),
            spki_sha256: key.sha256.clone(),
            shown,
            proved,
            root,
        };
        let lifetime = entry.ttl.min(until(not_after, authority.clock().now()));
        let message = wire::Enrolled {
            chain: chain.iter().map(|one| one.to_vec()).collect(),
            lifetime_seconds: u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX),
            ticket: self.shared.tickets.seal(&ticket),
            trust: Some(to_wire(&self.trust(entry), false).map_err(failed)?),
        };
        Ok(Issued { message, spiffe_id: entry.spiffe_id.clone(), serial, not_after })
    }

    /// Whom the holder of an identity may verify: its own trust domain by the word of the authority itself; of the others,
    /// those that its entry names, as the issuer does.
    fn trust(&self, entry: &RegistrationEntry) -> Trust {
        let Trust { bundles: known, revocation, rules, .. } = &*self.identity.load().trust;
        let named = entry.federates_with.iter();
        let mut bundles: TrustBundles =
            named.filter_map(|domain| known.find(domain).cloned()).collect();
        bundles.insert(self.shared.authority.bundle());
        let lists = bundles.iter().filter_map(|bundle| {
            Some((bundle.domain.clone(), revocation.by_domain.get(&bundle.domain)?.clone()))
        });
        let revocation = Revocations { by_domain: lists.collect(), ..Revocations::default() };
        Trust::new(bundles, revocation, *rules)
    }

    async fn enrol(&self, request: wire::EnrolRequest) -> Result<Issued, Refused> {
        let wire::EnrolRequest { certificate_request, proof, spiffe_id } = request;
        let key = requested(&certificate_request)?;
        let wanted = match spiffe_id.as_str() {
            "" => None,
            text => Some(text.parse::<SpiffeId>().map_err(|_| {
                Refused::new("spiffe_id", Status::invalid_argument("spiffe_id is no SPIFFE ID"))
            })?),
        };
        let Shown { selectors, token } = self.shown(proof).await?;
        let entries = self.entitled(&selectors)?;
        let entry = match &wanted {
            None => entries.first(),
            Some(wanted) => entries.iter().find(|entry| entry.spiffe_id == *wanted),
        };
        let Some(entry) = entry else {
            let status = Status::permission_denied("no identity is registered for this proof");
            let mut refused = Refused::new("not_registered", status);
            refused.detail = format!("showed {}", text_of(&selectors));
            refused.counts = true;
            refused.spiffe_id = wanted;
            return Err(refused);
        };
        let now = self.shared.authority.clock().now();
        if let Some(token) = token {
            // Before anything is issued: a crash from here on costs a token, and never gives two identities.
            let (tokens, spki) = (self.shared.tokens.clone(), key.sha256.clone());
            let using = tokio::task::spawn_blocking(move || tokens.use_up(&token, &spki, now));
            let used = using
                .await
                .unwrap_or_else(|error| Err(ProofFlaw::Unavailable { detail: error.to_string() }));
            used.map_err(|flaw| Refused::from(flaw).about(&entry.spiffe_id))?;
        }
        self.issue(entry, &key, selectors, now)
    }

    async fn renew(&self, from: &Origin, request: wire::RenewRequest) -> Result<Issued, Refused> {
        let wire::RenewRequest { certificate_request, ticket, proof } = request;
        let key = requested(&certificate_request)?;
        let (mut ticket, peer) = self.proved(from, &ticket)?;
        let about = |refused: Refused| refused.about(&peer.id);
        if proof.as_ref().is_some_and(|proof| proof.kind.is_some()) {
            match self.shown(proof).await {
                // Another pod of the same account, perhaps: what counts is what is shown now.
                Ok(shown) if shown.token.is_none() => {
                    ticket.shown = shown.selectors;
                    ticket.proved = self.shared.authority.clock().now();
                }
                Ok(_) => {}
                // The earlier proof may still be good: `standing` decides.
                Err(ProofFlaw::Unavailable { .. }) => {}
                Err(flaw) => return Err(about(flaw.into())),
            }
        }
        let entry = self.standing(&ticket).map_err(about)?;
        let Ticket { shown, proved, .. } = ticket;
        self.issue(&entry, &key, shown, proved)
    }

    /// The ticket of a caller who holds the SVID that it came with.
    fn proved(&self, from: &Origin, sealed: &[u8]) -> Result<(Ticket, Arc<Peer>), Refused> {
        let unproved = |code, text| Refused::new(code, Status::unauthenticated(text));
        let Some(peer) = from.peer.clone() else {
            return Err(unproved("no_certificate", "expected the current SVID (mTLS)"));
        };
        let about = |refused: Refused| refused.about(&peer.id);
        self.holds(&peer)?;
        let Some(ticket) = self.shared.tickets.open_ticket(sealed) else {
            let mut refused = unproved("ticket", "the ticket is not of this issuer: enrol again");
            refused.counts = true;
            return Err(about(refused));
        };
        if ticket.spiffe_id != peer.id || ticket.spki_sha256 != peer.spki_sha256 {
            let mut refused = unproved("ticket", "the ticket belongs to another SVID");
            refused.counts = true;
            return Err(about(refused));
        }
        Ok((ticket, peer))
    }

    /// Does an SVID that was proved in a handshake, perhaps long ago, hold still?
    fn holds(&self, peer: &Peer) -> Result<(), Refused> {
        let seconds = self.shared.authority.clock().now();
        let now = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        let trust = &self.identity.load().trust;
        trust.verifier().again(peer, UnixTime::since_unix_epoch(now)).map_err(|flaw| {
            let status = Status::unauthenticated("the SVID does not hold any more");
            Refused::new(flaw.code(), status).about(&peer.id)
        })
    }

    /// The entry by which an enrolment stands, if it still does.
    fn standing(&self, ticket: &Ticket) -> Result<Arc<RegistrationEntry>, Refused> {
        let denied = |code, text: &str| {
            Refused::new(code, Status::permission_denied(text)).about(&ticket.spiffe_id)
        };
        if let Some(name) = ticket.cluster() {
            let Some(cluster) = self.shared.cluster(name) else {
                return Err(denied("unknown_cluster", "its cluster is no longer trusted"));
            };
            let age = self.shared.authority.clock().now() - ticket.proved;
            if age > cluster.proof_seconds() {
                let text = "the service account's token must be shown again";
                let status = Status::failed_precondition(text);
                return Err(Refused::new("proof_too_old", status).about(&ticket.spiffe_id));
            }
        }
        let entries = match self.entitled(&ticket.shown) {
            Ok(entries) => entries,
            Err(ProofFlaw::Unknown) => {
                return Err(denied("token_revoked", "the join token was revoked"));
            }
            Err(flaw) => return Err(Refused::from(flaw).about(&ticket.spiffe_id)),
        };
        let mut entries = entries.into_iter();
        let found = entries.find(|entry| entry.spiffe_id == ticket.spiffe_id);
        found.ok_or_else(|| denied("not_registered", "the identity is no longer registered"))
    }

    /// Lets nobody in who failed too often.
    fn admit(&self, address: IpAddr) -> Result<(), Refused> {
        if self.shared.throttle.admits(address, Instant::now()) {
            return Ok(());
        }
        let status = Status::resource_exhausted("too many failures from this address: try later");
        Err(Refused::new("throttled", status))
    }

    /// Writes down what was decided. An identity that cannot be written down is not given.
    fn recorded(
        &self,
        event: &'static str,
        from: &Origin,
        proof: &'static str,
        outcome: Result<Issued, Refused>,
    ) -> Result<Response<wire::Enrolled>, Status> {
        let issued = match outcome {
            Ok(issued) => issued,
            Err(refused) => return Err(self.refuse(from, proof, refused)),
        };
        let record = IssuerRecord {
            event,
            src_addr: Some(from.address),
            proof: Some(proof),
            spiffe_id: Some(issued.spiffe_id.as_str()),
            serial: Some(&issued.serial),
            not_after: Some(issued.not_after),
            reason: None,
            detail: None,
        };
        if self.shared.audit.issuer(&record).is_err() {
            tracing::error!(id = %issued.spiffe_id, "no SVID is issued: the decision log has no room");
            return Err(Status::unavailable("the issuer cannot keep its records now"));
        }
        tracing::info!(
            id = %issued.spiffe_id, serial = %issued.serial, address = %from.address, proof,
            "{event} an SVID"
        );
        Ok(Response::new(issued.message))
    }

    fn refuse(&self, from: &Origin, proof: &'static str, refused: Refused) -> Status {
        let Refused { code, detail, status, counts, spiffe_id } = refused;
        if counts {
            self.shared.throttle.failed(from.address.ip(), Instant::now());
        }
        tracing::warn!(address = %from.address, proof, reason = code, detail, "no SVID for a caller");
        // What is lost here is counted in the log itself.
        let _ = self.shared.audit.issuer(&IssuerRecord {
            event: "refused",
            src_addr: Some(from.address),
            proof: Some(proof),
            spiffe_id: spiffe_id.as_ref().map(SpiffeId::as_str),
            serial: None,
            not_after: None,
            reason: Some(code),
            detail: Some(&detail),
        });
        status
    }
}

impl Shared {
    fn cluster(&self, name: &str) -> Option<&KubernetesAttestor> {
        self.clusters.iter().find(|cluster| cluster.name() == name)
    }
}

/// An SVID that was made and not yet handed out.
struct Issued {
    message: wire::Enrolled,
    spiffe_id: SpiffeId,
    serial: String,
    not_after: i64,
}

fn requested(request: &[u8]) -> Result<RequestedKey, Refused> {
    let refused = |text| Refused::new("certificate_request", Status::invalid_argument(text));
    RequestedKey::of(request).map_err(refused)
}

fn facts(leaf: &[u8]) -> Option<(String, i64)> {
    let (_, parsed) = X509Certificate::from_der(leaf).ok()?;
    Some((hex::encode(parsed.serial.to_bytes_be()), parsed.validity().not_after.timestamp()))
}

fn until(not_after: i64, now: i64) -> Duration {
    Duration::from_secs(u64::try_from(not_after - now).unwrap_or(0))
}

fn text_of(selectors: &BTreeSet<Selector>) -> String {
    selectors.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn kind_of(proof: Option<&wire::Proof>) -> &'static str {
    match proof.and_then(|proof| proof.kind.as_ref()) {
        None => "none",
        Some(wire::proof::Kind::JoinToken(_)) => "join_token",
        Some(wire::proof::Kind::Kubernetes(_)) => "kubernetes",
    }
}

/// Who is behind a request.
fn from<T>(request: &Request<T>) -> Result<Origin, Status> {
    let from = request.extensions().get::<Origin>();
    from.cloned().ok_or_else(|| Status::internal("the caller is not known"))
}

/// One open stream of a caller.
struct Watching {
    service: Service,
    from: Origin,
    peer: Arc<Peer>,
    ticket: Ticket,
    announced: Live<Announcement>,
    sent: Option<(Trust, bool)>,
    /// By whose word the caller's SVID was judged the last time.
    judged: Option<Arc<Trust>>,
    is_over: bool,
}

impl Watching {
    /// The last word of the stream.
    fn end(&mut self, refused: Refused) -> Status {
        self.is_over = true;
        self.service.refuse(&self.from, "svid", refused)
    }

    async fn next(&mut self) -> Option<Result<wire::Trust, Status>> {
        if self.is_over {
            return None;
        }
        loop {
            let current = self.service.identity.load().trust.clone();
            if !self.judged.as_ref().is_some_and(|judged| Arc::ptr_eq(judged, &current)) {
                if let Err(refused) = self.service.holds(&self.peer) {
                    return Some(Err(self.end(refused)));
                }
                self.judged = Some(current);
            }
            let entry = match self.service.standing(&self.ticket) {
                Ok(entry) => Some(entry),
                // The stream is no renewal: what cannot be found out now takes nothing away, nor does a proof that is old.
                Err(refused) if refused.status.code() != tonic::Code::PermissionDenied => None,
                Err(refused) => return Some(Err(self.end(refused))),
            };
            if let Some(entry) = entry {
                let renew_soon = self.announced.load().root != self.ticket.root;
                let news = (self.service.trust(&entry), renew_soon);
                if self.sent.as_ref() != Some(&news) {
                    let message = to_wire(&news.0, renew_soon).map_err(|error| {
                        tracing::error!(%error, "the trust bundles cannot be sent");
                        Status::unavailable("the trust bundles cannot be sent now")
                    });
                    self.is_over = message.is_err();
                    self.sent = Some(news);
                    return Some(message);
                }
            }
            tokio::select! {
                () = changed(&mut self.service.entries) => {}
                () = changed(&mut self.service.identity) => {}
                () = changed(&mut self.announced) => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = self.service.guard.asked() => return None,
            }
        }
    }
}

#[tonic::async_trait]
impl Issuer for Service {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<wire::Trust, Status>> + Send>>;

    async fn enrol(
        &self,
        request: Request<wire::EnrolRequest>,
    ) -> Result<Response<wire::Enrolled>, Status> {
        let from = from(&request)?;
        let request = request.into_inner();
        let proof = kind_of(request.proof.as_ref());
        let outcome = match self.admit(from.address.ip()) {
            Ok(()) => Self::enrol(self, request).await,
            Err(refused) => Err(refused),
        };
        self.recorded("enrolled", &from, proof, outcome)
    }

    async fn renew(
        &self,
        request: Request<wire::RenewRequest>,
    ) -> Result<Response<wire::Enrolled>, Status> {
        let from = from(&request)?;
        let request = request.into_inner();
        let outcome = match self.admit(from.address.ip()) {
            Ok(()) => Self::renew(self, &from, request).await,
            Err(refused) => Err(refused),
        };
        self.recorded("renewed", &from, "svid", outcome)
    }

    async fn watch(
        &self,
        request: Request<wire::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let from = from(&request)?;
        let sealed = request.into_inner().ticket;
        let proved = self.admit(from.address.ip()).and_then(|()| self.proved(&from, &sealed));
        let (ticket, peer) = match proved {
            Ok(proved) => proved,
            Err(refused) => return Err(self.refuse(&from, "svid", refused)),
        };
        let watching = Watching {
            service: self.clone(),
            from,
            peer,
            ticket,
            announced: self.shared.authority.announced(),
            sent: None,
            judged: None,
            is_over: false,
        };
        let messages =
            unfold(watching, async |mut watching| Some((watching.next().await?, watching)));
        Ok(Response::new(Box::pin(messages)))
    }
}
