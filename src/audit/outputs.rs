//! `Outputs`: everything that the settings want the log handed on to.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::join_all;

use super::board::OutputBoard;
use super::destination::Destination;
use super::follower::{Follower, Following, Kept};
use super::http::HttpOutput;
use super::mapping::Here;
use super::otlp::OtlpOutput;
use super::settings::{Begin, InvalidOutput, OutputSettings};
use super::syslog::SyslogOutput;
use crate::identity::Identity;
use crate::observe::AuditLog;
use crate::rt::Live;

/// Where outputs run.
#[derive(Clone, Debug)]
pub struct OutputPlace {
    /// The log's file.
    pub log: PathBuf,
    /// The folder of the cursors.
    pub cursors: PathBuf,
    /// What is known of this process.
    pub here: Here,
    /// Who we are, for outputs that want to know.
    pub identity: Option<Live<Identity>>,
}

/// Everything that the settings want the log handed on to.
#[derive(Debug, Default)]
pub struct Outputs {
    followers: Vec<Follower>,
}

impl Outputs {
    /// Starts them. To be called within a runtime, by the process that owns the log.
    ///
    /// # Errors
    /// One of them cannot be; none is started.
    pub fn start(
        settings: &[OutputSettings],
        place: &OutputPlace,
        log: &AuditLog,
        board: &OutputBoard,
    ) -> Result<Self, InvalidOutput> {
        OutputSettings::check_all(settings)?;
        let mut all = Vec::new();
        for one in settings {
            let wrong = |problem| InvalidOutput { output: one.name.clone(), problem };
            let following = Following {
                log: place.log.clone(),
                cursors: place.cursors.clone(),
                batch: one.batch(),
                selection: one.selection().map_err(wrong)?,
                from_now: one.begin == Begin::Now,
            };
            all.push((destination(one, place).map_err(wrong)?, following));
        }
        let start =
            |(destination, following)| Follower::start_with(log, destination, following, board);
        Ok(Self { followers: all.into_iter().map(start).collect() })
    }

    /// Hands over what is there, as far as it is taken at once, `within` this time. See [`Follower::finish`].
    pub async fn finish(self, within: Duration) -> Kept {
        let finishing = self.followers.into_iter().map(|follower| follower.finish(within));
        join_all(finishing).await.into_iter().fold(Kept::default(), Kept::and)
    }
}

fn destination(one: &OutputSettings, place: &OutputPlace) -> Result<Box<dyn Destination>, String> {
    let (name, format, here) = (&*one.name, one.format, &place.here);
    let identity = place.identity.as_ref();
    if let Some(settings) = &one.otlp {
        return Ok(Box::new(OtlpOutput::new(name, format, here, settings, identity)?));
    }
    if let Some(settings) = &one.syslog {
        return Ok(Box::new(SyslogOutput::new(name, format, here, settings, identity)?));
    }
    match &one.http {
        Some(settings) => Ok(Box::new(HttpOutput::new(name, format, here, settings, identity)?)),
        None => Err("expected one of otlp, syslog and http".into()),
    }
}
