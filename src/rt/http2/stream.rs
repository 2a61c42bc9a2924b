//! `Stream`: one exchange's part of a connection.

use std::task::{Context, Poll};

use super::core::{Block, Shared, Slot};
use super::{Error, Fields, Reason};

/// What is there of a body.
#[derive(Debug)]
pub enum Arrived<'a> {
    /// Some bytes; [`Stream::consume`] says how many of them were used.
    Data(&'a [u8]),
    /// The body is over.
    End,
}

/// One stream. When it goes before the exchange is over, the peer is told so.
#[derive(Debug)]
pub struct Stream {
    core: Shared,
    at: u32,
    id: u32,
    /// What was taken of the body, and how much of it was used.
    piece: Vec<u8>,
    used: usize,
}

impl Stream {
    pub(super) fn new(core: Shared, at: u32, id: u32) -> Self {
        Self { core, at, id, piece: Vec::new(), used: 0 }
    }

    fn with<R>(&self, look: impl FnOnce(&mut Slot) -> R) -> Option<R> {
        self.core.lock().slots[self.at as usize].as_mut().map(look)
    }

    /// Its number on its connection.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The next bytes of the body.
    ///
    /// # Errors
    /// The stream ended early.
    pub fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Result<Arrived<'_>, Error>> {
        if self.used == self.piece.len() {
            let mut core = self.core.lock();
            let Some(slot) = &mut core.slots[self.at as usize] else {
                return Poll::Ready(Ok(Arrived::End));
            };
            if slot.data.is_empty() {
                return match &slot.error {
                    _ if slot.is_received => Poll::Ready(Ok(Arrived::End)),
                    Some(error) => Poll::Ready(Err(error.clone())),
                    None => {
                        slot.wait(context.waker());
                        Poll::Pending
                    }
                };
            }
            self.piece.clear();
            self.used = 0;
            std::mem::swap(&mut self.piece, &mut slot.data);
        }
        Poll::Ready(Ok(Arrived::Data(&self.piece[self.used..])))
    }

    /// `count` bytes of the last piece were used: the peer may send as many more.
    pub fn consume(&mut self, count: usize) {
        self.used += count;
        self.core.lock().used(self.at, count);
    }

    /// The trailers, once the body is over.
    pub fn trailers(&mut self) -> Option<Fields> {
        self.with(|slot| slot.trailers.take()).flatten()
    }

    /// Has all of it come, and been taken?
    pub fn is_received(&self) -> bool {
        self.used == self.piece.len()
            && self.with(|slot| slot.is_received && slot.data.is_empty()).unwrap_or(true)
    }

    /// The response's head, interim ones first.
    ///
    /// # Errors
    /// The stream ended before.
    pub fn poll_head(&mut self, context: &mut Context<'_>) -> Poll<Result<Fields, Error>> {
        let waiting = self.with(|slot| {
            if let Some(fields) = slot.interim.pop_front().or_else(|| slot.head.take()) {
                return Poll::Ready(Ok(fields));
            }
            match &slot.error {
                Some(error) => Poll::Ready(Err(error.clone())),
                None => {
                    slot.wait(context.waker());
                    Poll::Pending
                }
            }
        });
        waiting.unwrap_or(Poll::Ready(Err(Error::Refused)))
    }

    /// Fields that were looked at: their memory serves others.
    pub fn recycle(&self, fields: Fields) {
        self.core.lock().recycle(fields);
    }

    /// Writes a head; `is_end`: nothing follows.
    ///
    /// # Errors
    /// The stream has ended.
    pub fn send_head(
        &mut self,
        is_end: bool,
        write: &mut dyn FnMut(&mut Block<'_>),
    ) -> Result<(), Error> {
        let mut core = self.core.lock();
        let Some(slot) = &mut core.slots[self.at as usize] else { return Err(Error::Refused) };
        if let Some(error) = &slot.error {
            return Err(error.clone());
        }
        slot.is_sent = is_end;
        core.write_block(self.id, is_end, write);
        core.settle(self.at);
        Ok(())
    }

    /// Takes some bytes of the body that goes out; tells how many.
    ///
    /// # Errors
    /// The stream has ended.
    pub fn poll_send(
        &mut self,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<Result<usize, Error>> {
        let mut core = self.core.lock();
        let Some(slot) = &mut core.slots[self.at as usize] else {
            return Poll::Ready(Err(Error::Refused));
        };
        if let Some(error) = &slot.error {
            return Poll::Ready(Err(error.clone()));
        }
        if slot.is_sent {
            return Poll::Ready(Err(Error::Broken("a body behind its end")));
        }
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        slot.wait(context.waker());
        match core.write_data(self.at, data) {
            0 => Poll::Pending,
            count => Poll::Ready(Ok(count)),
        }
    }

    /// Ends what goes out.
    ///
    /// # Errors
    /// The stream has ended.
    pub fn finish(&mut self) -> Result<(), Error> {
        let mut core = self.core.lock();
        let Some(slot) = &core.slots[self.at as usize] else { return Err(Error::Refused) };
        match &slot.error {
            Some(error) => return Err(error.clone()),
            None if slot.is_sent => return Ok(()),
            None => core.write_end(self.at),
        }
        Ok(())
    }

    /// Ends what goes out with these fields.
    ///
    /// # Errors
    /// The stream has ended.
    pub fn finish_with(&mut self, write: &mut dyn FnMut(&mut Block<'_>)) -> Result<(), Error> {
        self.send_head(true, write)
    }

    /// Has everything gone out?
    pub fn is_sent(&self) -> bool {
        self.with(|slot| slot.is_sent).unwrap_or(true)
    }

    /// Ends the stream at once, with this code.
    pub fn reset(&mut self, reason: Reason) {
        self.core.lock().reset(self.at, reason, Error::Reset(reason));
    }

    /// Ready when the stream has ended early.
    pub fn poll_gone(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let gone = self.with(|slot| {
            if slot.error.is_some() {
                return Poll::Ready(());
            }
            slot.wait(context.waker());
            Poll::Pending
        });
        gone.unwrap_or(Poll::Ready(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let unread = self.piece.len() - self.used;
        self.core.lock().release(self.at, unread);
    }
}
