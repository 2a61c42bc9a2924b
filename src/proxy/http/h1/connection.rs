//! One HTTP/1.1 connection, from either side: its buffers, the body that comes, the body that goes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::chunk::{Chunks, Step};
use super::head::Framing;
use super::write;
use crate::proxy::buffer::{Buffer, Buffers};
use crate::proxy::http::{BodyLength, Broken, Piece, Side, trailers};
use crate::rt::socket;
use crate::upstream::Stream;

/// A body that comes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Incoming {
    Done,
    Length(u64),
    Chunked(Chunks),
    UntilClose,
}

impl From<Framing> for Incoming {
    fn from(framing: Framing) -> Self {
        match framing {
            Framing::None => Self::Done,
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked(Chunks::default()),
            Framing::UntilClose => Self::UntilClose,
        }
    }
}

/// A body that goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outgoing {
    Done,
    Length(u64),
    Chunked,
    UntilClose,
    /// Bytes of another protocol, which go out as they come.
    Tunnel,
    /// The answer to HEAD and the like: what is given is thrown away.
    Discarded,
}

/// Bodies up to this size are copied behind their head, so that both go out in one write.
const GATHERED: usize = 16 * 1024;

/// One HTTP/1.1 connection.
pub(in crate::proxy) struct Http1 {
    pub(in crate::proxy::http) stream: Stream,
    pub(super) input: Buffer,
    output: Buffer,
    pub(super) incoming: Incoming,
    pub(super) outgoing: Outgoing,
    /// The TLS layer may hold bytes that the socket has not taken.
    unflushed: bool,
    /// The other end has closed its half.
    pub(super) ended: bool,
    /// The trailers behind the body that came.
    trailers: Option<Box<http::HeaderMap>>,
    /// Bytes of this message that were taken from the input, and that went out.
    pub(super) received: u64,
    pub(super) sent: u64,
    /// Writes that it took.
    pub(super) writes: u32,
}

impl Http1 {
    pub(in crate::proxy) fn new(stream: Stream) -> Self {
        Self {
            stream,
            input: Buffer::default(),
            output: Buffer::default(),
            incoming: Incoming::Done,
            outgoing: Outgoing::Done,
            unflushed: false,
            ended: false,
            trailers: None,
            received: 0,
            sent: 0,
            writes: 0,
        }
    }

    /// The connection between two messages: its stream, when nothing is left in the buffers.
    pub(in crate::proxy) fn into_stream(mut self, buffers: &Buffers) -> Option<Stream> {
        let clean =
            self.input.is_empty() && self.output.is_empty() && !self.unflushed && !self.ended;
        self.release(buffers);
        clean.then_some(self.stream)
    }

    /// From here on it carries the bytes of another protocol; the first of them may be in the input already.
    pub(super) fn open_tunnel(&mut self) {
        self.incoming = Incoming::UntilClose;
        self.outgoing = Outgoing::Tunnel;
        self.output.forget();
    }

    /// Ends the connection so that the other end cannot take what it has for whole: a body that only the connection's end
    /// would end is broken off with a reset, and without TLS' farewell. `false` when any end shows that something is missing.
    pub(super) fn break_off(&self) -> bool {
        let is_silent = self.outgoing == Outgoing::UntilClose;
        if is_silent {
            self.stream.reset_on_close();
        }
        is_silent
    }

    /// Gives the memory of empty buffers back to the worker.
    pub(in crate::proxy) fn release(&mut self, buffers: &Buffers) {
        for buffer in [&mut self.input, &mut self.output] {
            if buffer.is_empty() {
                buffers.give_back(buffer);
            }
        }
    }

    /// Takes buffers from the worker where there are none.
    pub(in crate::proxy) fn equip(&mut self, buffers: &Buffers) {
        buffers.lend(&mut self.input);
        buffers.lend(&mut self.output);
    }

    /// Reads once into the input buffer; 0 is the end.
    pub(super) fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let space = self.input.space();
        if space.is_empty() {
            return Poll::Ready(Err(io::Error::other("the input buffer is full")));
        }
        let mut target = ReadBuf::new(space);
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut target))?;
        let count = target.filled().len();
        self.input.filled(count);
        self.ended |= count == 0;
        Poll::Ready(Ok(count))
    }

    /// `count` bytes of the input belong to this message, and were used.
    pub(super) fn take(&mut self, count: usize) {
        self.input.consume(count);
        self.received += count as u64;
    }

    /// What goes out next is collected here.
    pub(super) fn output(&mut self) -> &mut Buffer {
        &mut self.output
    }

    fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.output.is_empty() {
            let count = ready!(Pin::new(&mut self.stream).poll_write(context, self.output.data()))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.output.consume(count);
            self.sent += count as u64;
            self.writes += 1;
            self.unflushed = true;
        }
        Poll::Ready(Ok(()))
    }

    pub(in crate::proxy) fn poll_flush_all(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(context))?;
        if self.unflushed {
            ready!(Pin::new(&mut self.stream).poll_flush(context))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Declares how the body that goes is framed; the head in the output buffer said the same.
    pub(super) fn announce(&mut self, body: BodyLength, chunked: bool, discarded: bool) {
        self.outgoing = match body {
            _ if discarded => Outgoing::Discarded,
            BodyLength::None | BodyLength::Known(0) => Outgoing::Done,
            BodyLength::Known(length) => Outgoing::Length(length),
            BodyLength::Unknown if chunked => Outgoing::Chunked,
            BodyLength::Unknown => Outgoing::UntilClose,
        };
    }

    /// Did the other end end the connection before a byte of this message had arrived there? Its end acknowledges all that had;
    /// who has ended cannot answer, and reads on at most to throw away. A reset acknowledges nothing that counts.
    pub(super) fn is_untouched(&self, cause: &io::Error, head_length: usize) -> bool {
        if self.sent == 0 {
            return true;
        }
        if cause.kind() != io::ErrorKind::UnexpectedEof {
            return false;
        }
        // TLS adds some bytes to each record, so some of the first one may have been acknowledged. It cannot be opened unless
        // all of it was: as long as they are fewer than it has, nothing was read.
        const RECORD: u64 = 16 * 1024;
        const LEAST_ADDED: u64 = 21;
        const MOST_ADDED: u64 = 29;
        let records = u64::from(self.writes) + self.sent / RECORD + 1;
        let is_tls = !matches!(self.stream, Stream::Tcp(_));
        if is_tls && records * MOST_ADDED >= (head_length as u64).min(RECORD) + LEAST_ADDED {
            return false;
        }
        socket::unacknowledged(self.stream.tcp()).is_some_and(|bytes| bytes >= self.sent)
    }

    /// Has the body that comes been taken wholly?
    pub(in crate::proxy) fn is_body_taken(&self) -> bool {
        match &self.incoming {
            Incoming::Done => true,
            Incoming::Chunked(chunks) => chunks.is_done(),
            Incoming::Length(_) | Incoming::UntilClose => false,
        }
    }

    /// Skips framing until data, the end, or the end of what is there.
    fn next_chunk(&mut self) -> Result<Step, Broken> {
        let Incoming::Chunked(chunks) = &mut self.incoming else { return Ok(Step::End(0)) };
        loop {
            match chunks
                .step(self.input.data())
                .map_err(|error| Broken::Protocol(error.to_string()))?
            {
                Step::Skip(count) => {
                    self.input.consume(count);
                    self.received += count as u64;
                }
                Step::End(count) => {
                    // All but the empty line behind them.
                    let section = &self.input.data()[..count.saturating_sub(2)];
                    if !section.is_empty() {
                        self.trailers = trailers::read(section).map(Box::new);
                    }
                    self.take(count);
                    return Ok(Step::End(0));
                }
                other => return Ok(other),
            }
        }
    }

    /// How many bytes of the body stand at the start of the input; `None` at its end.
    fn available(&mut self) -> Result<Option<usize>, Broken> {
        let there = self.input.data().len();
        Ok(match &self.incoming {
            Incoming::Done => None,
            Incoming::Length(left) => Some(usize::try_from(*left).unwrap_or(usize::MAX).min(there)),
            Incoming::UntilClose => Some(there),
            Incoming::Chunked(_) => match self.next_chunk()? {
                Step::Data(count) => Some(count),
                Step::End(_) => None,
                Step::Skip(_) | Step::More => Some(0),
            },
        })
    }
}

impl Side for Http1 {
    fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Result<Piece<'_>, Broken>> {
        loop {
            let Some(count) = self.available()? else { return Poll::Ready(Ok(Piece::End)) };
            if count > 0 {
                return Poll::Ready(Ok(Piece::Data(&self.input.data()[..count])));
            }
            let full = self.input.space().is_empty();
            if full {
                return Poll::Ready(Err(Broken::Protocol("the body's framing is too long".into())));
            }
            if ready!(self.poll_fill(context))? == 0 {
                if matches!(self.incoming, Incoming::UntilClose) {
                    self.incoming = Incoming::Done;
                    return Poll::Ready(Ok(Piece::End));
                }
                return Poll::Ready(Err(Broken::Io(io::ErrorKind::UnexpectedEof.into())));
            }
        }
    }

    fn consume(&mut self, count: usize) {
        self.take(count);
        match &mut self.incoming {
            Incoming::Length(left) => {
                *left -= count as u64;
                if *left == 0 {
                    self.incoming = Incoming::Done;
                }
            }
            Incoming::Chunked(chunks) => chunks.took(count),
            Incoming::Done | Incoming::UntilClose => {}
        }
    }

    fn trailers(&mut self) -> Option<http::HeaderMap> {
        self.trailers.take().map(|trailers| *trailers)
    }

    fn poll_send(&mut self, context: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Broken>> {
        let allowed = match self.outgoing {
            Outgoing::Length(left) if (data.len() as u64) > left => {
                return Poll::Ready(Err(Broken::Protocol(
                    "the body is longer than announced".into(),
                )));
            }
            Outgoing::Done => {
                return Poll::Ready(Err(Broken::Protocol(
                    "a body where none was announced".into(),
                )));
            }
            Outgoing::Discarded => return Poll::Ready(Ok(data.len())),
            Outgoing::Length(_) | Outgoing::UntilClose | Outgoing::Tunnel => data,
            Outgoing::Chunked => {
                // Chunks are built in the buffer, so what is there must be out before it grows without bound.
                if self.output.data().len() > GATHERED {
                    ready!(self.poll_drain(context))?;
                }
                write::chunk(&mut self.output, data);
                return Poll::Ready(Ok(data.len()));
            }
        };
        let is_tunnel = self.outgoing == Outgoing::Tunnel;
        let taken = if self.output.is_empty() && (is_tunnel || allowed.len() > GATHERED) {
            let count = ready!(Pin::new(&mut self.stream).poll_write(context, allowed))?;
            if count == 0 {
                return Poll::Ready(Err(Broken::Io(io::ErrorKind::WriteZero.into())));
            }
            self.sent += count as u64;
            self.writes += 1;
            self.unflushed = true;
            self.output.forget();
            count
        } else if self.output.data().len() + allowed.len() <= 2 * GATHERED {
            self.output.extend(allowed);
            allowed.len()
        } else {
            ready!(self.poll_drain(context))?;
            return self.poll_send(context, data);
        };
        if let Outgoing::Length(left) = &mut self.outgoing {
            *left -= taken as u64;
            if *left == 0 {
                self.outgoing = Outgoing::Done;
            }
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        self.poll_flush_all(context).map_err(Broken::Io)
    }

    fn poll_finish(
        &mut self,
        context: &mut Context<'_>,
        trailers: Option<http::HeaderMap>,
    ) -> Poll<Result<(), Broken>> {
        match self.outgoing {
            Outgoing::Length(_) => {
                return Poll::Ready(Err(Broken::Protocol(
                    "the body is shorter than announced".into(),
                )));
            }
            Outgoing::Chunked => {
                trailers::write(&mut self.output, trailers.as_ref());
                self.outgoing = Outgoing::Done;
            }
            Outgoing::Tunnel => {
                ready!(self.poll_flush_all(context))?;
                ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
                self.outgoing = Outgoing::Done;
            }
            Outgoing::UntilClose | Outgoing::Done | Outgoing::Discarded => {}
        }
        self.poll_flush_all(context).map_err(Broken::Io)
    }
}
