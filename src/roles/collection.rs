//! The decision log's way into the control plane's archive: from data planes over the feed's connections, from the control plane
//! itself directly.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tonic::service::Routes;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Status};

use super::error::Error;
use super::feed::FeedConnect;
use super::process::{Running, Shared, control_id};
use super::settings::{ControlSettings, Settings, ShipSetting};
use crate::audit::{
    Archive, ArchiveError, Batch, Collector, Destination, Dial, Follower, Following, Kept, MayShip,
    Origin, OwnLog, Selection, ShippedBy, Shipping, records_service,
};
use crate::identity::Identity;
use crate::observe::Countersigner;
use crate::rt::{DrainGuard, Live, Tasks};
use crate::sync::publisher::VerifiedPeer;
use crate::sync::subscriber;

/// The names under which the archive stands among the outputs.
pub(super) const NAMES: [&str; 2] = ["archive", "control-plane"];

/// Who follows the log may take so long to hand over what is left, at an end.
const FINISH_WITHIN: Duration = Duration::from_secs(3);

#[async_trait]
impl Dial for FeedConnect {
    type Stream = <Self as subscriber::Connect>::Stream;

    async fn dial(&self) -> io::Result<Self::Stream> {
        subscriber::Connect::connect(self).await
    }
}

/// Opens the archive and starts its writer; `None` when the settings want none. The process that hands over to us may need a moment
/// to let go of the file.
pub(super) async fn open_archive(
    settings: &Settings,
    control: &ControlSettings,
    identity: &Live<Identity>,
    shared: &Shared,
    patience: Duration,
    tasks: &mut Tasks,
) -> Result<Option<Collector>, Error> {
    let wanted = &control.audit;
    if !wanted.enabled {
        return Ok(None);
    }
    let usual = || settings.state_dir.join("audit-archive.redb");
    let path = wanted.path.clone().unwrap_or_else(usual);
    let until = tokio::time::Instant::now() + patience;
    let archive = loop {
        let (path, wanted) = (path.clone(), wanted.clone());
        let opening = tokio::task::spawn_blocking(move || Archive::open(&path, wanted)).await;
        match opening.map_err(|_| ArchiveError::Closed)? {
            Err(ArchiveError::InUse { .. }) if tokio::time::Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            opened => break opened?,
        }
    };
    let signer = Countersigner::new(identity.clone());
    let archive = archive.with(signer, shared.audit.control().clone(), &shared.registry);
    Ok(Some(Collector::start(archive, Some(identity.clone()), tasks)))
}

/// What the archive serves beside the feed.
pub(super) fn routes(
    collector: Option<&Collector>,
    may_ship: MayShip,
    drain: DrainGuard,
) -> Routes {
    let Some(collector) = collector else { return Routes::default() };
    let service = records_service(collector.clone(), may_ship, drain);
    let named = |mut request: Request<()>| -> Result<Request<()>, Status> {
        let peer = request.extensions().get::<VerifiedPeer>();
        let peer = peer.map(|peer| ShippedBy(peer.spiffe_id().clone()));
        let unknown = || Status::unauthenticated("the connection has no verified identity");
        let peer = peer.ok_or_else(unknown)?;
        request.extensions_mut().insert(peer);
        Ok(request)
    };
    Routes::new(InterceptedService::new(service, named))
}

/// Hands a log on from where its cursor is.
fn follow(
    settings: &Settings,
    destination: impl Destination + 'static,
    shared: &Shared,
) -> Follower {
    let following = Following {
        log: settings.audit_file(),
        cursors: settings.state_dir.join("audit-cursors"),
        batch: Batch { records: 4096, ..Batch::default() },
        selection: Selection::default(),
        from_now: false,
    };
    Follower::start_with(&shared.audit, Box::new(destination), following, &shared.outputs)
}

/// Hands the control plane's own log to its archive.
pub(super) fn follow_own(
    settings: &Settings,
    collector: &Collector,
    identity: &Live<Identity>,
    shared: &Shared,
) -> Follower {
    let spiffe_id = identity.load().id().as_str().to_owned();
    let origin = Origin { spiffe_id, node: settings.node_name() };
    follow(settings, OwnLog::new(collector.clone(), origin), shared)
}

/// Who hands a data plane's log to the control plane: the first identity that has a feed.
pub(super) struct Shipper {
    pub(super) identity: Live<Identity>,
    pub(super) places: Vec<String>,
    pub(super) expected: crate::identity::SpiffeId,
}

impl Running {
    /// The decision log goes to the control plane, when one is set, as the first of our identities that has a feed.
    pub(super) fn ships_as(&mut self, identity: &Live<Identity>) -> Result<(), Error> {
        if let (None, Some(control)) = (&self.shipper, &self.settings.control_plane) {
            let expected = control_id(&self.settings, control)?;
            let (identity, places) = (identity.clone(), control.places()?.to_vec());
            self.shipper = Some(Shipper { identity, places, expected });
        }
        Ok(())
    }

    /// Begins to hand the decision log to the archive, where there is one. The log must be ours by now.
    pub(super) fn start_collecting(&mut self) {
        if self.settings.audit.ship == ShipSetting::Off || self.collecting.is_some() {
            return;
        }
        let collector = self.control.as_ref().and_then(|control| control.collector());
        if let (Some(collector), Some(trust)) = (collector, &self.control_trust) {
            self.collecting =
                Some(follow_own(&self.settings, collector, &trust.identity(), &self.shared));
        } else if let (None, Some(shipper)) = (&self.control, &self.shipper) {
            let Shipper { identity, places, expected } = shipper;
            let connect = FeedConnect::new(places, identity.clone(), expected);
            let lane = self.shared.audit.control().clone();
            let shipping = Shipping::new(connect, self.settings.node_name(), lane);
            self.collecting = Some(follow(&self.settings, shipping, &self.shared));
        }
    }

    /// Hands over what is left, as far as the other side takes it at once. What is left then is the next process' business.
    pub(super) async fn stop_collecting(&mut self) -> Kept {
        match self.collecting.take() {
            Some(follower) => follower.finish(FINISH_WITHIN).await,
            None => Kept::default(),
        }
    }
}

/// Everybody of our trust domain who may have a feed may hand over its records.
pub(super) fn may_ship(allow: impl Fn(&str) -> bool + Send + Sync + 'static) -> MayShip {
    Arc::new(allow)
}
