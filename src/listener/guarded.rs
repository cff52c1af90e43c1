//! A connection that ends when its seat does, and does not wait for ever for a client that does not read.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};

use super::seats::Taken;

/// The first byte of a TLS connection: a handshake record.
const TLS_HANDSHAKE: u8 = 22;

/// A connection on a seat.
#[derive(Debug)]
pub(super) struct Guarded {
    stream: TcpStream,
    taken: Taken,
    write_timeout: Duration,
    /// Runs while nothing can be written.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Guarded {
    pub(super) fn new(stream: TcpStream, taken: Taken, write_timeout: Duration) -> Self {
        Self { stream, taken, write_timeout, stalled: None }
    }

    /// Waits for the first byte, and leaves it there.
    pub(super) async fn begins_with_tls(&mut self) -> io::Result<bool> {
        let mut first = [0];
        let read = tokio::select! {
            _ = &mut self.taken.ended => return Err(ended()),
            read = self.stream.peek(&mut first) => read?,
        };
        if read == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(first[0] == TLS_HANDSHAKE) }
    }

    /// Answers in the clear, and closes.
    pub(super) async fn answer(&mut self, answer: &str) -> io::Result<()> {
        // What was sent and not read would make the system reset the connection, and the answer be lost.
        let mut sent = [0; 4096];
        let _ = self.stream.read(&mut sent).await?;
        self.stream.write_all(answer.as_bytes()).await?;
        self.stream.shutdown().await
    }

    fn watch_write<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(outcome) = write(Pin::new(&mut self.stream), cx) {
            self.stalled = None;
            return Poll::Ready(outcome);
        }
        let write_timeout = self.write_timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(write_timeout)));
        match stalled.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

fn ended() -> io::Error {
    io::ErrorKind::ConnectionAborted.into()
}

impl AsyncRead for Guarded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if Pin::new(&mut self.taken.ended).poll(cx).is_ready() {
            return Poll::Ready(Err(ended()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.watch_write(cx, |stream, cx| stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.watch_write(cx, |stream, cx| stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.watch_write(cx, AsyncWrite::poll_flush)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.watch_write(cx, AsyncWrite::poll_shutdown)
    }
}
