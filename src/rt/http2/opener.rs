//! `Opener`: opens streams on a connection to a server.

use std::future::poll_fn;
use std::task::Poll;

use super::Error;
use super::core::{Block, Shared};
use super::stream::Stream;

/// Opens streams on a client's connection.
#[derive(Debug)]
pub struct Opener {
    core: Shared,
}

impl Clone for Opener {
    fn clone(&self) -> Self {
        Self::new(self.core.clone())
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        let mut core = self.core.lock();
        core.openers -= 1;
        if core.openers == 0 {
            core.wake();
        }
    }
}

impl Opener {
    pub(super) fn new(core: Shared) -> Self {
        core.lock().openers += 1;
        Self { core }
    }

    /// Can no further stream be opened, ever?
    pub fn is_closed(&self) -> bool {
        !self.core.lock().takes_streams()
    }

    /// How many streams the peer takes at once.
    pub fn most_streams(&self) -> usize {
        self.core.lock().peer.streams
    }

    /// Does the peer know extended CONNECT (RFC 8441 section 3)?
    pub fn offers_extended_connect(&self) -> bool {
        self.core.lock().peer.extended_connect
    }

    /// Waits until the peer has told its settings.
    ///
    /// # Errors
    /// The connection has ended before.
    pub async fn settled(&self) -> Result<(), Error> {
        poll_fn(|context| {
            let mut core = self.core.lock();
            if let Some(error) = &core.failed {
                return Poll::Ready(Err(error.clone()));
            }
            if core.peer.is_settled {
                return Poll::Ready(Ok(()));
            }
            core.settling.push(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Opens a stream with the head that `write` writes. `is_head`: the answer to it has no body, whatever it announces.
    ///
    /// # Errors
    /// The connection is lost, or takes no further stream.
    pub fn open(
        &self,
        is_head: bool,
        is_end: bool,
        write: &mut dyn FnMut(&mut Block<'_>),
    ) -> Result<Stream, Error> {
        let mut core = self.core.lock();
        let at = core.begin(is_head)?;
        let Some(slot) = &mut core.slots[at as usize] else { return Err(Error::Refused) };
        slot.is_sent = is_end;
        let id = slot.id;
        core.write_block(id, is_end, write);
        drop(core);
        Ok(Stream::new(self.core.clone(), at, id))
    }
}
