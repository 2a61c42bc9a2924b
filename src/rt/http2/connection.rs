//! The driver of a connection: its bytes in, frame by frame, and its frames out, as many as are there at once.

use std::cell::RefCell;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::core::{Core, Fatal, Shared, protocol};
use super::frame::{self, FrameHead, LARGEST};
use super::opener::Opener;
use super::spare;
use super::stream::Stream;
use super::{Error, Fields, Reason, Settings};

/// Bytes that are read at once.
const READ: usize = 32 * 1024;
/// So many buffers a thread keeps for connections that have nothing to say at the moment.
const SPARE: usize = 32;

thread_local! {
    static INPUTS: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// What has been read and not been looked at.
#[derive(Default)]
struct Input {
    bytes: Option<Box<[u8]>>,
    start: usize,
    end: usize,
}

impl Input {
    fn unread(&self) -> &[u8] {
        self.bytes.as_ref().map_or(&[], |bytes| &bytes[self.start..self.end])
    }

    /// Room for more behind what is there.
    fn space(&mut self) -> &mut [u8] {
        let bytes = self.bytes.get_or_insert_with(|| {
            let spare = INPUTS.with_borrow_mut(Vec::pop);
            spare.unwrap_or_else(|| vec![0; READ].into_boxed_slice())
        });
        if self.start > 0 && bytes.len() - self.end < LARGEST + frame::HEAD {
            bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut bytes[self.end..]
    }

    fn used(&mut self, count: usize) {
        self.start += count;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Gives the memory back when nothing is in it.
    fn release(&mut self) {
        if self.start == self.end
            && let Some(bytes) = self.bytes.take()
        {
            INPUTS.with_borrow_mut(|spare| {
                if spare.len() < SPARE {
                    spare.push(bytes);
                }
            });
        }
    }
}

/// A new request.
pub struct Incoming {
    /// Its stream.
    pub stream: Stream,
    /// Its head, pseudo-header fields among the others, all of them lawful by themselves.
    pub fields: Fields,
    /// Nothing follows.
    pub is_ended: bool,
}

/// One end of a connection. Whoever has it must poll it: nothing comes or goes otherwise.
pub struct Connection {
    core: Shared,
    input: Input,
    /// What is being written, and how much of it the system has.
    output: Vec<u8>,
    written: usize,
    is_unflushed: bool,
    /// A client's preface is still to come.
    awaits_preface: bool,
}

impl Connection {
    /// A server's end.
    pub fn server(settings: Settings) -> Self {
        Self::new(Core::new(true, settings), true)
    }

    /// A client's end, and what opens streams on it. The connection ends when the last such opener and the last stream are gone.
    pub fn client(settings: Settings) -> (Opener, Self) {
        let connection = Self::new(Core::new(false, settings), false);
        (Opener::new(connection.core.clone()), connection)
    }

    fn new(core: Core, awaits_preface: bool) -> Self {
        Self {
            core: Arc::new(Mutex::new(core)),
            input: Input::default(),
            output: Vec::new(),
            written: 0,
            is_unflushed: false,
            awaits_preface,
        }
    }

    /// Are streams open, or exchanges under way?
    pub fn has_streams(&self) -> bool {
        let core = self.core.lock();
        core.open > 0 || core.held > 0
    }

    /// Has the peer said what it wants to be known at the start?
    pub fn is_settled(&self) -> bool {
        self.core.lock().peer.is_settled
    }

    /// Takes no streams from now on, but those that are on their way.
    pub fn leave(&self) {
        self.core.lock().leave();
    }

    /// Ends at once, streams and all; the next poll says goodbye.
    pub fn give_up(&self, reason: Reason, what: &'static str) {
        self.core.lock().condemn(Fatal(reason, what));
    }

    /// Moves bytes both ways. A server's end gets each request; `None` is the end, when everybody has said goodbye.
    ///
    /// # Errors
    /// The connection is lost, or was ended because of what the peer did.
    pub fn poll<T: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        io: &mut T,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Incoming, Error>>> {
        self.core.lock().attend(context.waker());
        match self.poll_both(io, context) {
            Poll::Ready(Err(error)) => {
                // What tells the peer why goes out if it can at once.
                let _ = self.poll_write(io, context);
                self.core.lock().fail(&error);
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(Ok(next)) => Poll::Ready(next.map(Ok)),
            Poll::Pending => Poll::Pending,
        }
    }

    fn poll_both<T: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        io: &mut T,
        context: &mut Context<'_>,
    ) -> Poll<Result<Option<Incoming>, Error>> {
        loop {
            if let Some(error) = self.core.lock().failed.clone() {
                return Poll::Ready(Err(error));
            }
            if let Some(incoming) = self.parse()? {
                return Poll::Ready(Ok(Some(incoming)));
            }
            let reads = {
                let core = self.core.lock();
                // A peer that does not take our answers gets no further ear.
                !core.is_crowded() && core.waiting() < core.settings.send_buffer * 2
            };
            if reads && self.poll_read(io, context)?.is_ready() {
                continue;
            }
            let is_written = self.poll_write(io, context)?.is_ready();
            let core = self.core.lock();
            if core.is_over() {
                drop(core);
                let _ = Pin::new(io).poll_shutdown(context);
                return Poll::Ready(Ok(None));
            }
            // What was in the way may be gone.
            if !reads && is_written && !core.is_crowded() {
                continue;
            }
            if is_written && core.open == 0 {
                drop(core);
                self.rest();
            }
            return Poll::Pending;
        }
    }

    /// Nothing is under way: memory is for others.
    fn rest(&mut self) {
        self.input.release();
        spare::give_back(&mut self.output);
        let mut core = self.core.lock();
        if core.out.is_empty() {
            spare::give_back(&mut core.out);
        }
    }

    fn poll_read<T: AsyncRead + Unpin>(
        &mut self,
        io: &mut T,
        context: &mut Context<'_>,
    ) -> Result<Poll<()>, Error> {
        let mut space = ReadBuf::new(self.input.space());
        match Pin::new(io).poll_read(context, &mut space) {
            Poll::Pending => return Ok(Poll::Pending),
            Poll::Ready(read) => read?,
        }
        let count = space.filled().len();
        if count == 0 {
            let kind = std::io::ErrorKind::UnexpectedEof;
            return Err(Error::Io(kind, "the connection was closed".into()));
        }
        self.input.end += count;
        Ok(Poll::Ready(()))
    }

    /// Takes in all whole frames that are there, or those up to a request.
    fn parse(&mut self) -> Result<Option<Incoming>, Error> {
        let mut core = self.core.lock();
        if self.awaits_preface {
            let unread = self.input.unread();
            let there = unread.len().min(frame::PREFACE.len());
            if unread[..there] != frame::PREFACE[..there] {
                return Err(core.condemn(protocol("the preface is another one")));
            }
            if there < frame::PREFACE.len() {
                return Ok(None);
            }
            self.input.used(there);
            self.awaits_preface = false;
        }
        while let Some(head) = FrameHead::read(self.input.unread()) {
            if head.length > LARGEST {
                return Err(core.condemn(Fatal(Reason::FRAME_SIZE_ERROR, "a frame is too long")));
            }
            if core.is_crowded() {
                return Ok(None);
            }
            let Some(payload) = self.input.unread().get(frame::HEAD..frame::HEAD + head.length)
            else {
                return Ok(None);
            };
            let taken = core.take(head, payload);
            let request = taken.map_err(|fatal| core.condemn(fatal))?;
            self.input.used(frame::HEAD + head.length);
            if let Some(request) = request {
                let id = core.slots[request.slot as usize].as_ref().map_or(0, |slot| slot.id);
                drop(core);
                let stream = Stream::new(self.core.clone(), request.slot, id);
                let (fields, is_ended) = (request.fields, request.is_ended);
                return Ok(Some(Incoming { stream, fields, is_ended }));
            }
        }
        Ok(None)
    }

    /// Writes what is there; ready when all of it is with the system.
    fn poll_write<T: AsyncWrite + Unpin>(
        &mut self,
        io: &mut T,
        context: &mut Context<'_>,
    ) -> Result<Poll<()>, Error> {
        loop {
            if self.written == self.output.len() {
                let mut core = self.core.lock();
                if !self.output.is_empty() {
                    self.output.clear();
                    self.written = 0;
                    core.written();
                }
                if core.out.is_empty() {
                    break;
                }
                spare::lend(&mut self.output);
                std::mem::swap(&mut self.output, &mut core.out);
                core.taken += 1;
                core.writing = self.output.len();
            }
            match Pin::new(&mut *io).poll_write(context, &self.output[self.written..]) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(written) => match written? {
                    0 => return Err(std::io::Error::from(std::io::ErrorKind::WriteZero).into()),
                    count => {
                        self.written += count;
                        self.is_unflushed = true;
                        self.core.lock().writing -= count;
                    }
                },
            }
        }
        if self.is_unflushed {
            match Pin::new(io).poll_flush(context) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(flushed) => flushed?,
            }
            self.is_unflushed = false;
        }
        Ok(Poll::Ready(()))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.input.release();
        let error =
            Error::Io(std::io::ErrorKind::ConnectionAborted, "the connection has ended".into());
        self.core.lock().fail(&error);
    }
}

#[cfg(test)]
impl Connection {
    /// Bytes that wait for the peer to take them.
    pub(super) fn waiting(&self) -> usize {
        self.core.lock().waiting()
    }

    /// The numbers of streams are those of the streams.
    pub(super) fn check(&self) {
        let core = self.core.lock();
        let slots = core.slots.iter().flatten().count();
        assert_eq!(core.held, 0);
        assert!(core.open <= slots, "{} open of {slots}", core.open);
        assert!(core.failed.is_some() || core.open == 0, "{} open", core.open);
    }
}
