//! `Sentinels`: they know which server is the master.

use std::sync::Arc;

use parking_lot::Mutex;

use super::answer::Answer;
use super::error::Error;
use super::server::{Access, Server};

/// Sentinels that know a master by name.
#[derive(Debug)]
pub struct Sentinels {
    sentinels: Vec<Server>,
    name: String,
    access: Access,
    current: Mutex<Option<Arc<Server>>>,
}

impl Sentinels {
    /// `sentinel` is how they are reached, `access` how the server that they name is. Nothing is connected yet.
    pub fn new(
        places: Vec<(String, u16)>,
        sentinel: &Access,
        name: String,
        access: Access,
    ) -> Self {
        let sentinels = places.into_iter();
        let sentinels = sentinels.map(|(host, port)| Server::new(host, port, sentinel.clone()));
        Self { sentinels: sentinels.collect(), name, access, current: Mutex::default() }
    }

    /// Asks the server that they name.
    pub(super) async fn ask(&self, parts: &[&[u8]]) -> Result<Answer, Error> {
        let (server, is_fresh) = self.server().await?;
        match server.ask(parts).await {
            Err(why) if why.is_elsewhere() => {
                self.forget(&server);
                // A master that was looked up just now is asked once; another one, that was known from before, may have fallen.
                if is_fresh || matches!(why, Error::Late { .. }) {
                    return Err(why);
                }
                let (server, _) = self.server().await?;
                server.ask(parts).await
            }
            answered => answered,
        }
    }

    fn forget(&self, server: &Arc<Server>) {
        let mut current = self.current.lock();
        if current.as_ref().is_some_and(|known| Arc::ptr_eq(known, server)) {
            *current = None;
        }
    }

    /// The server, and whether it was looked up just now.
    async fn server(&self) -> Result<(Arc<Server>, bool), Error> {
        if let Some(known) = self.current.lock().clone() {
            return Ok((known, false));
        }
        let mut why = Error::Nobody("there are no sentinels".to_owned());
        for sentinel in &self.sentinels {
            match self.place(sentinel).await {
                Ok(Some((host, port))) => {
                    let server = Arc::new(Server::new(host, port, self.access.clone()));
                    *self.current.lock() = Some(server.clone());
                    return Ok((server, true));
                }
                Ok(None) => {
                    why = Error::Nobody(format!("{} knows no '{}'", sentinel.name(), self.name));
                }
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    async fn place(&self, sentinel: &Server) -> Result<Option<(String, u16)>, Error> {
        let parts: [&[u8]; 3] = [b"SENTINEL", b"get-master-addr-by-name", self.name.as_bytes()];
        let Answer::List(parts) = sentinel.ask(&parts).await? else { return Ok(None) };
        Ok(match parts.as_slice() {
            [Answer::Text(host), Answer::Text(port)] => {
                port.parse().ok().map(|port| (host.clone(), port))
            }
            _ => None,
        })
    }
}
