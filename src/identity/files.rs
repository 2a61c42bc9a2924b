//! Identity source: certificate files that change on disk.
//!
//! Looked at each second by size, time and inode, which also sees the symbolic links that Kubernetes swaps. A damaged or
//! half-written file never replaces a good identity: it is reported with its path and looked at again.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::{Instant, MissedTickBehavior};
use zeroize::Zeroizing;

use super::source::warn_of_shared_keys;
use super::{Error, Identity, IdentitySource, Svid, TrustBundle, TrustBundles, TrustDomain};
use crate::rt::{Clock, Live, Publisher, Tasks};

/// Where the files of an identity are.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileSettings {
    /// The chain as PEM, leaf first.
    pub certificate: PathBuf,
    /// The leaf's private key as PEM, unencrypted.
    pub key: PathBuf,
    /// The authorities of our own trust domain: PEM, or a SPIFFE bundle document (JSON).
    pub bundle: PathBuf,
    /// The authorities of further trust domains, by the domain's name.
    #[serde(default)]
    pub further_bundles: BTreeMap<String, PathBuf>,
    /// How long a start waits for the first valid identity, in seconds.
    #[serde(default = "ten")]
    pub first_within_seconds: u64,
}

fn ten() -> u64 {
    10
}

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// An identity kept current from files. The watching ends when this is dropped.
#[derive(Debug)]
pub struct FileSource {
    live: Live<Identity>,
    _watch: Tasks,
}

impl FileSource {
    /// Waits for the first valid identity and watches the files from then on.
    ///
    /// # Errors
    /// The files hold no valid identity within the time of the settings, or the settings name a trust domain that is none.
    pub async fn start(settings: FileSettings, clock: Clock) -> Result<Self, Error> {
        let within = Duration::from_secs(settings.first_within_seconds);
        let files = Files::new(settings)?;
        let deadline = Instant::now() + within;
        let (seen, first) = loop {
            let seen = files.fingerprint().await;
            match files.read(None, clock.now()).await {
                Ok(identity) => break (seen, identity),
                Err(error) if Instant::now() >= deadline => {
                    let origin = files.settings.certificate.display().to_string();
                    return Err(Error::NotInTime { origin, within, source: Some(error.into()) });
                }
                Err(error) => tracing::warn!(error = error.report(), "waiting for an identity"),
            }
            tokio::time::sleep_until(deadline.min(Instant::now() + LOOK_EVERY)).await;
        };
        let (publisher, live) = Publisher::new(first);
        let mut watch = Tasks::new();
        watch.add(files.watch(seen, publisher, clock));
        Ok(Self { live, _watch: watch })
    }
}

impl IdentitySource for FileSource {
    fn identity(&self) -> Live<Identity> {
        self.live.clone()
    }
}

struct Files {
    settings: FileSettings,
    further: Vec<(TrustDomain, PathBuf)>,
}

/// What changes when a file does: inode, size, seconds and nanoseconds of its time. `None` when it cannot be seen.
type Fingerprint = Vec<Option<(u64, u64, i64, i64)>>;

impl Files {
    fn new(settings: FileSettings) -> Result<Self, Error> {
        let named = settings.further_bundles.iter();
        let further = named
            .map(|(name, path)| match name.parse::<TrustDomain>() {
                Ok(domain) => Ok((domain, path.clone())),
                Err(_) => Err(Error::TrustDomain { name: name.clone() }),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { settings, further })
    }

    async fn watch(self, mut seen: Fingerprint, publisher: Publisher<Identity>, clock: Clock) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // A failure is looked at again on each tick, since a file may be repaired within its time's resolution.
        let mut complaint: Option<String> = None;
        loop {
            ticks.tick().await;
            let found = self.fingerprint().await;
            if found == seen && complaint.is_none() {
                continue;
            }
            let current = publisher.live().load();
            match self.read(Some(&current), clock.now()).await {
                Ok(next) => {
                    tracing::info!(id = %next.svid.id, serial = %next.svid.serial, "identity renewed from files");
                    publisher.set(next);
                    complaint = None;
                }
                Err(error) => {
                    let text = error.report();
                    if complaint.as_ref() != Some(&text) {
                        tracing::error!(
                            error = text,
                            "new identity files refused; keeping the identity in use"
                        );
                    }
                    complaint = Some(text);
                }
            }
            seen = found;
        }
    }

    fn paths(&self) -> impl Iterator<Item = &Path> {
        let own = [&self.settings.certificate, &self.settings.key, &self.settings.bundle];
        let further = self.further.iter().map(|(_, path)| path.as_path());
        own.into_iter().map(PathBuf::as_path).chain(further)
    }

    async fn fingerprint(&self) -> Fingerprint {
        let mut all = Vec::with_capacity(3 + self.further.len());
        for path in self.paths() {
            let mark = |seen: Metadata| (seen.ino(), seen.size(), seen.mtime(), seen.mtime_nsec());
            all.push(tokio::fs::metadata(path).await.ok().map(mark));
        }
        all
    }

    async fn read(&self, previous: Option<&Identity>, now: i64) -> Result<Identity, Error> {
        let FileSettings { certificate, key, bundle, .. } = &self.settings;
        let in_file = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::File { path, source: Box::new(source) }
        };
        let chain_pem = read(certificate).await?;
        let key_pem = Zeroizing::new(read(key).await?);
        let svid = Svid::from_pem(&chain_pem, &key_pem).map_err(|error| match error {
            // Which of the two files is to be looked at.
            Error::Key | Error::KeyMismatch => in_file(key)(error),
            Error::Pem { expected: "one unencrypted private key", .. } => in_file(key)(error),
            _ => in_file(certificate)(error),
        })?;

        let own = svid.id.trust_domain();
        let text = read(bundle).await?;
        let mut bundles = TrustBundles::default();
        bundles.insert(TrustBundle::from_text(own.clone(), &text).map_err(in_file(bundle))?);
        for (domain, path) in &self.further {
            let text = read(path).await?;
            let next = TrustBundle::from_text(domain.clone(), &text).map_err(in_file(path))?;
            if bundles.insert(next).is_some() {
                return Err(Error::TwoBundles { domain: domain.clone() });
            }
        }
        let next =
            Identity::successor(previous, svid, bundles, now).map_err(in_file(certificate))?;
        warn_of_shared_keys(&next.trust.bundles);
        Ok(next)
    }
}

async fn read(path: &Path) -> Result<Vec<u8>, Error> {
    tokio::fs::read(path).await.map_err(|source| Error::Read { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::identity::BundleDocument;
    use crate::identity::forge::{Folder, Forge};

    /// An identity's files in a folder of its own.
    struct World {
        folder: Folder,
        a: Forge,
        b: Forge,
    }

    impl World {
        fn new() -> Self {
            let world =
                Self { folder: Folder::new(), a: Forge::new("a.test"), b: Forge::new("b.test") };
            world.renew();
            world.write("bundle.pem", &world.a.bundle().to_pem());
            world
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn write(&self, name: &str, text: &str) {
            // As careful operators do it: the new file takes the old one's place at once.
            std::fs::write(self.path("fresh"), text).unwrap();
            std::fs::rename(self.path("fresh"), self.path(name)).unwrap();
        }

        fn renew(&self) -> Svid {
            let svid = self.a.svid("/web");
            self.write("svid.pem", &svid.chain_pem());
            self.write("key.pem", &svid.key_pem());
            svid
        }

        fn settings(&self) -> FileSettings {
            FileSettings {
                certificate: self.path("svid.pem"),
                key: self.path("key.pem"),
                bundle: self.path("bundle.pem"),
                further_bundles: BTreeMap::new(),
                first_within_seconds: 0,
            }
        }

        async fn start(&self) -> Result<FileSource, Error> {
            FileSource::start(self.settings(), Clock::system()).await
        }
    }

    async fn until(live: &mut Live<Identity>, serial: &str) -> Arc<Identity> {
        let search = async {
            while live.load().svid.serial != serial {
                assert!(live.changed().await);
            }
        };
        tokio::time::timeout(Duration::from_secs(10), search).await.unwrap();
        live.load()
    }

    #[tokio::test]
    async fn new_files_are_taken_and_damaged_ones_never_replace_good_ones() {
        let world = World::new();
        let source = world.start().await.unwrap();
        let mut live = source.identity();
        let first = live.load().svid.serial.clone();
        assert_eq!(live.load().id().as_str(), "spiffe://a.test/web");

        // Half of a renewal: the key does not fit yet.
        let next = world.a.svid("/web");
        world.write("svid.pem", &next.chain_pem());
        tokio::time::sleep(LOOK_EVERY + Duration::from_millis(300)).await;
        assert_eq!(live.load().svid.serial, first);
        world.write("key.pem", &next.key_pem());
        let next = until(&mut live, &next.serial).await;
        assert_eq!(next.id().as_str(), "spiffe://a.test/web");
    }

    #[tokio::test]
    async fn an_svid_that_is_not_current_still_lets_the_bundle_change() {
        let world = World::new();
        let clock = Clock::fixed(crate::rt::unix_seconds());
        let files = Files::new(world.settings()).unwrap();
        let first = files.read(None, clock.now()).await.unwrap();
        world.write(
            "bundle.pem",
            &[world.a.bundle(), world.b.bundle()].map(|b| b.to_pem()).concat(),
        );
        clock.advance(7200);
        let next = files.read(Some(&first), clock.now()).await.unwrap();
        assert_eq!(next.svid.serial, first.svid.serial);
        assert_eq!(next.trust.bundles.find(&world.a.domain).unwrap().roots.len(), 2, "112");
        assert!(files.read(None, clock.now()).await.is_err(), "but it never begins so");
    }

    #[tokio::test]
    async fn each_damage_names_its_file() {
        let world = World::new();
        let other = world.b.svid("/web");
        for (name, content, says) in [
            ("svid.pem", "hello".to_owned(), "svid.pem cannot be used: expected PEM with"),
            (
                "svid.pem",
                other.chain_pem(),
                "key.pem cannot be used: the private key does not belong",
            ),
            ("key.pem", "hello".to_owned(), "key.pem cannot be used: expected PEM with one"),
            (
                "key.pem",
                other.key_pem().to_string(),
                "key.pem cannot be used: the private key does not",
            ),
            ("bundle.pem", "hello".to_owned(), "bundle.pem cannot be used: expected PEM with"),
            ("bundle.pem", "{}".to_owned(), "bundle.pem cannot be used: the bundle document"),
            ("bundle.pem", world.b.bundle().to_pem(), "svid.pem cannot be used: no authority"),
        ] {
            let good = std::fs::read_to_string(world.path(name)).unwrap();
            world.write(name, &content);
            let error = world.start().await.unwrap_err().report();
            assert!(error.contains(says), "{name}: {error}");
            world.write(name, &good);
        }
        std::fs::remove_file(world.path("key.pem")).unwrap();
        let error = world.start().await.unwrap_err().report();
        assert!(error.contains("cannot read") && error.contains("key.pem"), "{error}");
    }

    #[tokio::test]
    async fn bundles_of_further_trust_domains_come_from_files_of_their_own() {
        let world = World::new();
        let document = BundleDocument {
            bundle: world.b.bundle(),
            sequence: None,
            refresh_after: Duration::from_secs(300),
        };
        world.write("b.json", &document.to_json().unwrap().to_string());
        let with = |name: &str| {
            let further_bundles = [(name.to_owned(), world.path("b.json"))].into();
            let settings = FileSettings { further_bundles, ..world.settings() };
            FileSource::start(settings, Clock::system())
        };
        let source = with("b.test").await.unwrap();
        let bundles = &source.identity().load().trust.bundles;
        assert_eq!(bundles.find(&world.b.domain), Some(&world.b.bundle()));
        assert!(matches!(with("B.test").await, Err(Error::TrustDomain { .. })));
        let twice = with("a.test").await.unwrap_err().report();
        assert!(twice.contains("two bundles for trust domain a.test"), "{twice}");
    }
}
