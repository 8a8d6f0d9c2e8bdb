//! The scrape endpoint: a few threads that accept a connection, answer one request, and close it.
//!
//! Never on a worker, and never more than [`THREADS`] connections at once: the system holds the next ones back. A connection
//! that is slow is closed at its deadline, so that nobody keeps a thread. Stopping closes what is open and wakes who waits.
//!
//! The standard library's sockets and httparse, which hyper parses with: the small servers there are have had no release for
//! years, the others bring a runtime for what is one request in some seconds.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::PrometheusExporter;
use super::request::{HEAD_MAX, Parsed, response};
use crate::clock::{Clock, Tick};
use crate::executor::discard_panic;

/// Connections at once. Some, because browsers open more than they use.
const THREADS: usize = 4;
/// What a connection may take, from when it is accepted until its answer is sent.
const CONNECTION_MAX: Duration = Duration::from_secs(10);
/// How long the other side is waited for after that: closing at once could discard the answer on its way.
const LINGER_MAX: Duration = Duration::from_millis(500);
/// What of a request is read after its headers.
const LINGER_BYTES_MAX: u64 = 64 * 1024;
/// The pause after a connection could not be accepted, for example because the process has too many files open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers scrapes until it is dropped; see [`PrometheusExporter::serve`].
#[derive(Debug)]
#[must_use = "the endpoint is closed when this is dropped"]
pub struct PrometheusEndpoint {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    exporter: PrometheusExporter,
    listener: TcpListener,
    address: SocketAddr,
    stopped: AtomicBool,
    /// What each thread is busy with.
    open: [Mutex<Option<Arc<TcpStream>>>; THREADS],
}

impl PrometheusEndpoint {
    pub(super) fn start(exporter: PrometheusExporter, address: impl ToSocketAddrs) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let (stopped, open) = (AtomicBool::new(false), Default::default());
        let shared = Arc::new(Shared { exporter, listener, address, stopped, open });
        // A thread that does not start drops the endpoint, and that ends those that did.
        let mut endpoint = Self { shared, threads: Vec::with_capacity(THREADS) };
        for slot in 0..THREADS {
            let shared = Arc::clone(&endpoint.shared);
            let thread = thread::Builder::new().name("corelane-scrape".into());
            endpoint.threads.push(thread.spawn(move || shared.run(slot))?);
        }
        Ok(endpoint)
    }

    /// Where it is: the port, too, if it was to be a free one.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.shared.address
    }

    /// Closes it: the same as dropping it. Scrapes that are being answered are cut off; the port is free afterwards,
    /// unless this process can not connect to it any more, for want of descriptors, say.
    pub fn stop(self) {
        drop(self);
    }
}

#[cfg(all(test, not(corelane_loom)))]
impl PrometheusEndpoint {
    /// Held by the endpoint and by each of its threads.
    pub(super) fn threads_alive(&self) -> std::sync::Weak<impl Sized + use<>> {
        Arc::downgrade(&self.shared)
    }
}

impl Drop for PrometheusEndpoint {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        for slot in 0..THREADS {
            if let Some(open) = &*self.shared.open(slot) {
                // Fails if the other side has closed it: then there is nothing to wake.
                let _ = open.shutdown(Shutdown::Both);
            }
        }
        // Each thread that waits for a connection takes one and ends. If one can not be made, a thread may go on waiting: it
        // ends with the next connection that somebody else makes, and is not joined.
        let reachable =
            self.threads.iter().all(|_| TcpStream::connect_timeout(&self.shared.own(), ACCEPT_PAUSE).is_ok());
        for thread in self.threads.drain(..) {
            if reachable {
                // What panics there is contained.
                let _ = thread.join();
            }
        }
    }
}

impl Shared {
    fn run(&self, slot: usize) {
        while !self.stopped() {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    let stream = Arc::new(stream);
                    *self.open(slot) = Some(Arc::clone(&stream));
                    // A reading may end queues, and with them what others have put into them.
                    let answered = catch_unwind(AssertUnwindSafe(|| {
                        // Whoever stops it after this look finds the stream and closes it.
                        if !self.stopped()
                            && let Err(error) = self.answer(&stream)
                        {
                            tracing::debug!(%error, "a scrape was not answered");
                        }
                    }));
                    *self.open(slot) = None;
                    answered.unwrap_or_else(discard_panic);
                }
                // No connection, for want of descriptors most likely.
                Err(_) => thread::sleep(ACCEPT_PAUSE),
            }
        }
    }

    /// One request and its answer.
    fn answer(&self, stream: &TcpStream) -> io::Result<()> {
        let mut timed = Timed::new(stream, CONNECTION_MAX);
        let mut head = Vec::new();
        let response = loop {
            match Parsed::from(&head) {
                Parsed::Incomplete => {
                    let mut chunk = [0; 1024];
                    let read = timed.read(&mut chunk[..1024.min(HEAD_MAX - head.len())])?;
                    if read == 0 {
                        // Gone without a word, or in the middle of one.
                        return Ok(());
                    }
                    head.extend(&chunk[..read]);
                }
                Parsed::Scrape { head_only, accept } => {
                    let (content_type, body) = self.exporter.render(Some(&accept));
                    break response(content_type, &body, head_only);
                }
                Parsed::Refused(refusal) => break refusal.response(),
            }
        };
        timed.write_all(response.as_bytes())?;
        stream.shutdown(Shutdown::Write)?;
        io::copy(&mut Timed::new(stream, LINGER_MAX).take(LINGER_BYTES_MAX), &mut io::sink())?;
        Ok(())
    }

    fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    fn open(&self, slot: usize) -> MutexGuard<'_, Option<Arc<TcpStream>>> {
        self.open[slot].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The address as this process reaches it.
    fn own(&self) -> SocketAddr {
        let ip = match self.address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        SocketAddr::new(ip, self.address.port())
    }
}

/// A connection with a deadline for all that is done with it, however small the steps.
struct Timed<'a> {
    stream: &'a TcpStream,
    clock: Clock,
    deadline: Tick,
}

impl<'a> Timed<'a> {
    fn new(stream: &'a TcpStream, limit: Duration) -> Self {
        let clock = Clock::system();
        let deadline = clock.now().plus(limit);
        Self { stream, clock, deadline }
    }

    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.deadline.since(self.clock.now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buffer)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
