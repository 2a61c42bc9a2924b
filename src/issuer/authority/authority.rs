//! `Authority`: the keeper of a trust domain's root. Signs intermediates for itself and short-lived SVIDs for workloads.
//!
//! A served chain is as short as can be: the leaf and one intermediate (more only below an upstream that has more), the root
//! left out. Each certificate more would cost both sides of every handshake bytes and a signature check; the one intermediate
//! lets the root's key rest.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::{Mutex, MutexGuard};
use rcgen::{PublicKeyData, SubjectPublicKeyInfo};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};

use super::super::key::KeyPair;
use super::super::{Error, JwtIssuer};
use super::certificate::{DAY, Intermediate, MAX_TTL, Signer, fingerprint, fresh_name};
use super::custody::{FileCustody, KeyCustody, MemoryCustody};
use super::files::{Files, Lock, OPEN, Stamp};
use super::ledger::{Evidence, Issued, Ledger};
use super::lists::{LISTS, Lists, REVOKED, read_revoked, write_revoked};
use super::loaded::{Loaded, certificate_file};
use super::state::{Duty, IntermediateRecord, Phase, RootRecord, STATE, State};
use crate::identity::{SpiffeId, Svid, TrustBundle, TrustDomain};
use crate::rt::{Clock, Live, Publisher};

/// How long an SVID lives when nobody says otherwise.
pub const DEFAULT_TTL: Duration = Duration::from_secs(3600);

/// How long a revocation list holds when nobody says otherwise.
pub(super) const LIST_LIFETIME: i64 = DAY;
/// What an intermediate may still have signed in the second in which it was replaced.
const SLACK_SECONDS: i64 = 60;

/// A trust domain's authority: ECDSA P-256 throughout, unless an upstream or a custody has other keys.
///
/// ```
/// # use wardgate::issuer::{Authority, DEFAULT_TTL};
/// # use wardgate::rt::Clock;
/// let authority = Authority::in_memory("shop.example".parse().unwrap(), Clock::system()).unwrap();
/// let web = "spiffe://shop.example/web".parse().unwrap();
/// let svid = authority.issue(&web, DEFAULT_TTL, &[]).unwrap();
/// assert_eq!((&svid.id, svid.chain.len()), (&web, 2));
/// ```
///
/// Several processes may have the same authority open: changes are made under a lock, and [`Authority::tend`] takes over what
/// another process changed.
pub struct Authority {
    domain: TrustDomain,
    clock: Clock,
    pub(super) files: Arc<Files>,
    pub(super) custody: Arc<dyn KeyCustody>,
    loaded: ArcSwap<Loaded>,
    lists: ArcSwap<Lists>,
    /// Those of the files that `lists` rests on.
    seen: Mutex<Seen>,
    /// When the lists must be signed anew, seconds since 1970.
    lists_due: AtomicI64,
    /// How long a list holds, in seconds.
    list_lifetime: AtomicI64,
    /// Held while something is changed, so that it happens once.
    changing: Mutex<()>,
    pub(super) ledger: Ledger,
    jwt: JwtIssuer,
    announcements: Publisher<Announcement>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    revoked: Stamp,
    lists: Stamp,
}

/// What an authority tells those who rest on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// All roots that are prepared, active or outgoing.
    pub bundle: TrustBundle,
    /// Its revocation lists.
    pub lists: Vec<CertificateRevocationListDer<'static>>,
    /// The serial numbers that the lists name, lower-case hexadecimal.
    pub revoked: BTreeSet<String>,
    /// The root that new SVIDs chain to, as the authority calls it: what was issued under another one is to be renewed.
    pub root: String,
}

/// Held while the authority is changed: no other thread and no other process changes it.
pub(super) struct Changing<'a> {
    authority: &'a Authority,
    _thread: MutexGuard<'a, ()>,
    _process: Lock,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("domain", &self.domain)
            .field("directory", &self.files.folder())
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes an authority that is gone when it is dropped.
    ///
    /// # Errors
    /// The system gives no random numbers.
    #[expect(clippy::needless_pass_by_value, reason = "the authority's own from now on")]
    pub fn in_memory(domain: TrustDomain, clock: Clock) -> Result<Self, Error> {
        let custody = Arc::new(MemoryCustody::default());
        Self::make(&domain, Arc::new(Files::memory()), custody, Ledger::memory(), clock)
    }

    /// Makes an authority and keeps it in `directory`, which is made when it is missing. Key files have mode 0600.
    ///
    /// # Errors
    /// The directory holds an authority already (then nothing is changed), or cannot be written.
    pub fn create(domain: TrustDomain, directory: &Path, clock: Clock) -> Result<Self, Error> {
        let custody = Arc::new(FileCustody::new(directory, None));
        Self::create_with(domain, directory, custody, clock)
    }

    /// As [`Authority::create`], with private keys where `custody` keeps them.
    ///
    /// # Errors
    /// As [`Authority::create`]; the custody's own.
    #[expect(clippy::needless_pass_by_value, reason = "the authority's own from now on")]
    pub fn create_with(
        domain: TrustDomain,
        directory: &Path,
        custody: Arc<dyn KeyCustody>,
        clock: Clock,
    ) -> Result<Self, Error> {
        let files = Arc::new(Files::directory(directory));
        Self::make(&domain, files, custody, Ledger::directory(directory), clock)
    }

    /// Opens the authority that [`Authority::create`] left in `directory`, with keys in files and no passphrase.
    ///
    /// # Errors
    /// As [`Authority::open_with`].
    pub fn open(directory: &Path, clock: Clock) -> Result<Self, Error> {
        let custody = Arc::new(FileCustody::new(directory, None));
        Self::open_with(directory, custody, clock)
    }

    /// Opens the authority in `directory`, whose private keys are where `custody` keeps them. What a crash left half done is
    /// done or undone.
    ///
    /// # Errors
    /// A file is missing, damaged, does not belong to the others, or its key is readable for everybody; a key does not open;
    /// the active root expired; the upstream has not signed yet.
    pub fn open_with(
        directory: &Path,
        custody: Arc<dyn KeyCustody>,
        clock: Clock,
    ) -> Result<Self, Error> {
        let files = Arc::new(Files::directory(directory));
        if !files.is_there(STATE) {
            return Err(Error::NoAuthority { path: files.path(STATE) });
        }
        Self::load(files, custody, Ledger::directory(directory), clock)
    }

    fn make(
        domain: &TrustDomain,
        files: Arc<Files>,
        custody: Arc<dyn KeyCustody>,
        ledger: Ledger,
        clock: Clock,
    ) -> Result<Self, Error> {
        refuse_existing(&files)?;
        files.make_folder()?;
        {
            let _alone = files.lock()?;
            refuse_existing(&files)?;
            let now = clock.now();
            let mut state = State::empty(domain.as_str());
            let (root, intermediate) = new_root(&files, &*custody, domain, now)?;
            let duty = Duty::Signing;
            state.intermediates.push(IntermediateRecord { duty, ..intermediate });
            state.roots.push(RootRecord { phase: Phase::Active, ..root });
            files.write(STATE, &state.to_text(), OPEN)?;
        }
        Self::load(files, custody, ledger, clock)
    }

    pub(super) fn load(
        files: Arc<Files>,
        custody: Arc<dyn KeyCustody>,
        ledger: Ledger,
        clock: Clock,
    ) -> Result<Self, Error> {
        let loaded = {
            let _whole = files.lock_shared()?;
            Loaded::read(&files, &*custody, None)?
        };
        let domain = loaded.domain.clone();
        let now = clock.now();
        if loaded.root_in(Phase::Active).is_none_or(|root| root.facts.not_after < now) {
            return Err(Error::RootExpired { domain });
        }
        let first = announcement(&loaded, &Lists::default());
        let jwt = match files.folder() {
            Some(folder) => JwtIssuer::open(domain.clone(), folder, clock.clone())?,
            None => JwtIssuer::in_memory(domain.clone(), clock.clone())?,
        };
        let authority = Self {
            domain,
            clock,
            files,
            custody,
            loaded: ArcSwap::from_pointee(loaded),
            lists: ArcSwap::default(),
            seen: Mutex::default(),
            lists_due: AtomicI64::new(i64::MIN),
            list_lifetime: AtomicI64::new(LIST_LIFETIME),
            changing: Mutex::default(),
            ledger,
            jwt,
            announcements: Publisher::new(first).0,
        };
        let changing = authority.changing()?;
        authority.loaded.load().settle(&authority.files)?;
        changing.refresh_lists()?;
        drop(changing);
        Ok(authority)
    }

    /// The trust domain that it speaks for.
    pub fn domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// The clock that its certificates follow.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The issuer of JWT-SVIDs, whose keys are kept beside the authority's.
    pub fn jwt(&self) -> &JwtIssuer {
        &self.jwt
    }

    /// What others need to verify its SVIDs: its roots, and the keys for JWT-SVIDs.
    pub fn bundle(&self) -> TrustBundle {
        let announced = self.announcements.live().load();
        TrustBundle { jwt_authorities: self.jwt.authorities(), ..announced.bundle.clone() }
    }

    /// Bundle, revocation lists and the active root, now and whenever one of them changes.
    pub fn announced(&self) -> Live<Announcement> {
        self.announcements.live()
    }

    /// Issues an SVID with a fresh key, for this very process.
    ///
    /// It lives for `ttl` from now (at most until the first of its authorities ends) and is valid since 30 s ago.
    ///
    /// # Errors
    /// `id` is of another trust domain or has no path, `ttl` is not between 1 s and 24 h, a DNS name is none, the
    /// intermediate expired, the ledger cannot be written, or the system gives no random numbers.
    pub fn issue(&self, id: &SpiffeId, ttl: Duration, dns_names: &[String]) -> Result<Svid, Error> {
        self.issue_to(id, ttl, dns_names, &Evidence::own_process())
    }

    /// As [`Authority::issue`]; the ledger says on what evidence.
    ///
    /// # Errors
    /// As [`Authority::issue`].
    pub fn issue_to(
        &self,
        id: &SpiffeId,
        ttl: Duration,
        dns_names: &[String],
        evidence: &Evidence,
    ) -> Result<Svid, Error> {
        let key = KeyPair::generate()?;
        let chain = self.sign(id, ttl, dns_names, &key, evidence)?;
        Ok(Svid::new(chain, key.into())?)
    }

    /// Issues a chain for somebody else's key, given as SubjectPublicKeyInfo in DER.
    ///
    /// # Errors
    /// As [`Authority::issue`]; the key cannot be read.
    pub fn certify(
        &self,
        id: &SpiffeId,
        ttl: Duration,
        dns_names: &[String],
        public_key: &[u8],
    ) -> Result<Vec<CertificateDer<'static>>, Error> {
        self.certify_to(id, ttl, dns_names, public_key, &Evidence::own_process())
    }

    /// As [`Authority::certify`]; the ledger says on what evidence.
    ///
    /// # Errors
    /// As [`Authority::certify`].
    pub fn certify_to(
        &self,
        id: &SpiffeId,
        ttl: Duration,
        dns_names: &[String],
        public_key: &[u8],
        evidence: &Evidence,
    ) -> Result<Vec<CertificateDer<'static>>, Error> {
        let key = SubjectPublicKeyInfo::from_der(public_key).map_err(|_| Error::PublicKey)?;
        self.sign(id, ttl, dns_names, &key, evidence)
    }

    fn sign(
        &self,
        id: &SpiffeId,
        ttl: Duration,
        dns_names: &[String],
        key: &impl PublicKeyData,
        evidence: &Evidence,
    ) -> Result<Vec<CertificateDer<'static>>, Error> {
        if id.trust_domain_name() != self.domain.as_str() {
            return Err(Error::OtherDomain { id: id.clone(), domain: self.domain.clone() });
        }
        if id.path().is_empty() {
            return Err(Error::NoPath { id: id.clone() });
        }
        if ttl < Duration::from_secs(1) || ttl > MAX_TTL {
            return Err(Error::Lifetime { seconds: ttl.as_secs() });
        }
        let now = self.clock.now();
        let signing = self.signing(now)?;
        let ttl = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let not_after = (now + ttl).min(signing.not_after);
        let (leaf, serial) = signing.signer.leaf(id, dns_names, key, now, not_after)?;
        self.ledger.record(&Issued {
            id: id.to_string(),
            serial,
            at: now,
            not_after,
            key: fingerprint(&key.subject_public_key_info()),
            root: signing.root.clone(),
            intermediate: signing.signer.name.clone(),
            evidence: evidence.clone(),
        })?;
        let mut chain = vec![leaf];
        chain.extend_from_slice(&signing.chain);
        Ok(chain)
    }

    /// The intermediate that signs now. One that is due is replaced first.
    fn signing(&self, now: i64) -> Result<Arc<Intermediate>, Error> {
        let loaded = self.loaded.load();
        if self.is_renewal_due(&loaded, now)
            && let Err(error) =
                self.changing().and_then(|changing| changing.renew_intermediate(now))
        {
            // Workloads must not suffer as long as there is another way.
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::error!(%error, cause, "the intermediate is due and cannot be replaced");
        }
        let signing = self.loaded.load().signing.clone();
        if signing.not_after <= now {
            return Err(Error::IntermediateExpired { domain: self.domain.clone() });
        }
        Ok(signing)
    }

    /// Ours to replace, and time to do it; or it is revoked.
    pub(super) fn is_renewal_due(&self, loaded: &Loaded, now: i64) -> bool {
        let root = loaded.root(&loaded.signing.root);
        root.is_some_and(|root| root.signer.is_some() && root.facts.not_after > now)
            && (loaded.signing.is_due(now)
                || self.lists.load().revoked.contains(&loaded.signing.signer.facts.serial))
    }

    pub(super) fn loaded(&self) -> Arc<Loaded> {
        self.loaded.load_full()
    }

    /// Have other processes changed something, or are the lists due?
    pub(super) fn is_behind(&self, now: i64) -> bool {
        self.files.stamp(STATE) != self.loaded.load().stamp
            || self.seen_now() != *self.seen.lock()
            || now >= self.lists_due.load(Ordering::Relaxed)
    }

    /// Sets how long revocation lists hold.
    pub(super) fn set_list_lifetime(&self, seconds: i64) {
        if self.list_lifetime.swap(seconds, Ordering::Relaxed) != seconds {
            self.lists_due.store(i64::MIN, Ordering::Relaxed);
        }
    }

    fn seen_now(&self) -> Seen {
        Seen { revoked: self.files.stamp(REVOKED), lists: self.files.stamp(LISTS) }
    }

    /// Keeps all others from changing the authority, and takes over what they changed before.
    pub(super) fn changing(&self) -> Result<Changing<'_>, Error> {
        let thread = self.changing.lock();
        let process = self.files.lock()?;
        let changing = Changing { authority: self, _thread: thread, _process: process };
        let current = self.loaded();
        if self.files.folder().is_some() && self.files.stamp(STATE) != current.stamp {
            let next = Loaded::read(&self.files, &*self.custody, Some(&current))?;
            if next.domain != self.domain {
                return Err(Error::Damaged {
                    path: self.files.path(STATE),
                    detail: format!(
                        "it is of trust domain {}, no longer {}",
                        next.domain, self.domain
                    ),
                });
            }
            tracing::info!(generation = next.state.generation, "the authority was changed");
            self.loaded.store(Arc::new(next));
            self.publish();
        }
        Ok(changing)
    }

    fn publish(&self) {
        let next = announcement(&self.loaded.load(), &self.lists.load());
        if *self.announcements.live().load() != next {
            self.announcements.set(next);
        }
    }
}

impl Changing<'_> {
    /// The authority as it is now.
    pub(super) fn loaded(&self) -> Arc<Loaded> {
        self.authority.loaded()
    }

    /// Makes `state` the authority's. Certificates and keys that it names must be on disk already; those that it does not name
    /// any more are taken away.
    pub(super) fn commit(&self, mut state: State) -> Result<(), Error> {
        let Authority { files, custody, .. } = self.authority;
        let former = self.loaded();
        state.generation = former.state.generation + 1;
        let text = state.to_text();
        // Before it is in force: a state that cannot be loaded must not replace one that can.
        let mut next = Loaded::of(state, Stamp::default(), files, &**custody, Some(&former))?;
        files.write(STATE, &text, OPEN)?;
        next.stamp = files.stamp(STATE);
        let gone: Vec<String> = former
            .state
            .names()
            .filter(|name| !next.state.names().any(|kept| kept == *name))
            .map(str::to_owned)
            .collect();
        let next = Arc::new(next);
        self.authority.loaded.store(next.clone());
        self.authority.publish();
        for name in gone {
            if let Err(error) = custody.destroy(&name) {
                tracing::error!(%error, name, "a key that is not needed any more is still there");
            }
            if let Err(error) = files.remove(&certificate_file(&name)) {
                tracing::warn!(%error, "a certificate that is not needed any more is still there");
            }
        }
        if let Err(error) = next.settle(files) {
            tracing::warn!(%error, "the authority is changed; its files are put in order later");
        }
        Ok(())
    }

    /// Replaces an intermediate that is due.
    pub(super) fn renew_intermediate(&self, now: i64) -> Result<(), Error> {
        let Authority { files, custody, domain, .. } = self.authority;
        let loaded = self.loaded();
        if !self.authority.is_renewal_due(&loaded, now) {
            return Ok(());
        }
        let root = loaded.root(&loaded.signing.root).and_then(|root| root.signer.as_ref());
        let Some(root) = root else { return Ok(()) };
        let name = new_intermediate(files, &**custody, domain, root, now)?;
        let Some(next) = loaded.state.renew(&name, past_until(now)) else { return Ok(()) };
        self.commit(next)?;
        tracing::info!(%domain, name, "another intermediate signs");
        self.refresh_lists()
    }

    /// Reads who was revoked, and signs the lists when those on disk do not hold.
    pub(super) fn refresh_lists(&self) -> Result<(), Error> {
        let authority = self.authority;
        let lifetime = authority.list_lifetime.load(Ordering::Relaxed);
        let now = authority.clock.now();
        let mut revoked = read_revoked(&authority.files)?;
        let before = revoked.len();
        // RFC 5280, section 3.3: an entry stays until it stood on a list that was issued after the certificate's end.
        revoked.retain(|revoked| revoked.not_after + 2 * lifetime >= now);
        if revoked.len() != before {
            write_revoked(&authority.files, &revoked)?;
        }
        let loaded = self.loaded();
        let lists = match Lists::current(&authority.files, &loaded, &revoked, lifetime, now)? {
            Some(lists) => lists,
            None => {
                let number = loaded.state.list_number + 1;
                let lists = Lists::sign(&loaded, &revoked, number, lifetime, now)?;
                // The number first: it is used once, whatever happens to the lists.
                self.commit(State { list_number: number, ..loaded.state.clone() })?;
                lists.write(&authority.files)?;
                tracing::info!(number, revoked = revoked.len(), "revocation lists signed");
                lists
            }
        };
        authority.lists_due.store(lists.due(), Ordering::Relaxed);
        authority.lists.store(Arc::new(lists));
        *authority.seen.lock() = authority.seen_now();
        authority.publish();
        Ok(())
    }
}

fn announcement(loaded: &Loaded, lists: &Lists) -> Announcement {
    Announcement {
        bundle: loaded.bundle(),
        lists: lists.der.clone(),
        revoked: lists.revoked.clone(),
        root: loaded.signing.root.clone(),
    }
}

fn refuse_existing(files: &Files) -> Result<(), Error> {
    for name in [STATE, "root.pem", "root-key.pem", "intermediate.pem"] {
        if files.is_there(name) {
            return Err(Error::Exists { path: files.path(name) });
        }
    }
    Ok(())
}

/// When the last SVID ends that an intermediate can have signed that is replaced now.
pub(super) fn past_until(now: i64) -> i64 {
    now + i64::try_from(MAX_TTL.as_secs()).unwrap_or(i64::MAX) + SLACK_SECONDS
}

/// Makes a root with an intermediate under it, on disk and not in the state yet.
pub(super) fn new_root(
    files: &Files,
    custody: &dyn KeyCustody,
    domain: &TrustDomain,
    now: i64,
) -> Result<(RootRecord, IntermediateRecord), Error> {
    let name = fresh_name("root")?;
    let root = Signer::root(&name, domain, custody.generate(&name)?, now)?;
    let text = TrustBundle::new(domain.clone(), vec![root.certificate.clone()]).to_pem();
    files.write(&certificate_file(&name), text.as_bytes(), OPEN)?;
    let intermediate = new_intermediate(files, custody, domain, &root, now)?;
    let record =
        RootRecord { name: name.clone(), phase: Phase::Prepared, since: now, upstream: false };
    Ok((record, IntermediateRecord { name: intermediate, root: name, duty: Duty::Waiting }))
}

fn new_intermediate(
    files: &Files,
    custody: &dyn KeyCustody,
    domain: &TrustDomain,
    root: &Signer,
    now: i64,
) -> Result<String, Error> {
    let name = fresh_name("intermediate")?;
    let made = Signer::intermediate(&name, domain, root, custody.generate(&name)?, now)?;
    let text = TrustBundle::new(domain.clone(), vec![made.certificate]).to_pem();
    files.write(&certificate_file(&name), text.as_bytes(), OPEN)?;
    Ok(name)
}
