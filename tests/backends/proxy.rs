//! A TCP proxy that does to connections what networks do: it delays, throttles, swallows and cuts them, also in the middle of a
//! message, and after a request was done and before its answer is heard.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, tcp};
use tokio::sync::watch;
use tokio::time::sleep;

/// A proxy before a port of this machine, on a port of its own. It ends when it is dropped.
pub(crate) struct Proxy {
    port: u16,
    state: watch::Sender<State>,
    counts: Arc<Counts>,
    thread: Option<JoinHandle<()>>,
}

/// What is done to what goes through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    #[default]
    None,
    /// It comes later, in each direction, by chance up to `jitter` more.
    Delay { to_server: Duration, to_client: Duration, jitter: Duration },
    /// It goes no faster, in small pieces.
    Throttle { bytes_per_second: u32 },
    /// It goes nowhere, and nobody is told: also who connects anew. Connections in which something was swallowed are cut when that
    /// is over.
    BlackHole,
    /// Connections that are open are cut when so many bytes more have gone that way: in the middle of a message. New ones are not.
    CutAfter { bytes: usize, way: Way, cut: Cut },
    /// Connections that are open are cut when the server answers, without the answer. New ones are not.
    LoseAnswers { cut: Cut },
}

/// How a connection is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// As if the other side had closed it (FIN).
    Close,
    /// As if the other side did not know it (RST).
    Reset,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    ToServer,
    ToClient,
}

#[derive(Default)]
struct Counts {
    connections: AtomicU64,
    answers: AtomicU64,
    /// Whether the next answer is to be lost, and one of how many.
    loses: AtomicBool,
    one_of: AtomicU64,
    lost: AtomicU64,
}

impl Counts {
    /// Whether the answer that comes now is to be lost.
    fn loses(&self) -> bool {
        let number = self.answers.fetch_add(1, Ordering::SeqCst) + 1;
        let one_of = self.one_of.load(Ordering::SeqCst);
        self.loses.swap(false, Ordering::SeqCst) || (one_of > 0 && number.is_multiple_of(one_of))
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    fault: Fault,
    /// Which one it is, of all that there have been.
    fault_number: u64,
    /// The first connection that was made since the fault is there.
    since: u64,
    /// Connections up to this one are cut.
    cut: Option<(u64, Cut)>,
    ends: bool,
}

impl Proxy {
    pub(crate) fn start(target: u16) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime is made");
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).expect("there is a free port");
        let port = listener.local_addr().expect("a listener has an address").port();
        let (state, seen) = watch::channel(State::default());
        let counts = Arc::new(Counts::default());
        let counted = Arc::clone(&counts);
        let mut ends = seen.clone();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = accept(listener, target, &seen, &counted) => {}
                    // Its error is as good: nobody has it any more.
                    _ = ends.wait_for(|state| state.ends) => {}
                }
            });
        });
        Self { port, state, counts, thread: Some(thread) }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Does this to all that goes through from now on, instead of what it did.
    pub(crate) fn set(&self, fault: Fault) {
        let since = self.connections();
        self.state.send_modify(|state| {
            (state.fault, state.since) = (fault, since);
            state.fault_number += 1;
        });
    }

    /// Cuts all connections that there are.
    pub(crate) fn cut(&self, cut: Cut) {
        let connections = self.connections();
        self.state.send_modify(|state| state.cut = Some((connections, cut)));
    }

    /// Cuts a connection in place of the next answer, of whichever connection, and once.
    pub(crate) fn lose_next_answer(&self) {
        self.counts.loses.store(true, Ordering::SeqCst);
    }

    /// As [`Proxy::lose_next_answer`], of each so many; 0: of none.
    pub(crate) fn lose_one_of(&self, answers: u64) {
        self.counts.one_of.store(answers, Ordering::SeqCst);
    }

    /// How many connections there have been.
    pub(crate) fn connections(&self) -> u64 {
        self.counts.connections.load(Ordering::SeqCst)
    }

    /// How many answers were lost.
    pub(crate) fn lost(&self) -> u64 {
        self.counts.lost.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.send_modify(|state| state.ends = true);
        if let Some(thread) = self.thread.take() {
            // A panic there was printed there.
            let _ = thread.join();
        }
    }
}

async fn accept(listener: TcpListener, target: u16, state: &watch::Receiver<State>, counts: &Arc<Counts>) {
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        let number = counts.connections.fetch_add(1, Ordering::SeqCst);
        let (state, counts) = (state.clone(), Arc::clone(counts));
        tokio::spawn(async move {
            let mut client = client;
            let (cut, server) = carry(&mut client, target, number, &counts, state).await;
            if cut == Cut::Reset {
                for stream in [Some(client), server].into_iter().flatten() {
                    // One that is gone is gone.
                    let _ = stream.set_zero_linger();
                }
            }
        });
    }
}

/// One connection, until it ends: how it is to be cut, and what it had to the server.
async fn carry(
    client: &mut TcpStream,
    target: u16,
    number: u64,
    counts: &Counts,
    state: watch::Receiver<State>,
) -> (Cut, Option<TcpStream>) {
    if state.borrow().fault == Fault::BlackHole {
        return (swallow(state, number).await, None);
    }
    let Ok(mut server) = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, target))).await else {
        return (Cut::Reset, None);
    };
    // Small messages go at once, as without a proxy.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    // An error: one side is gone, and the other one is to hear of it.
    let cut = tokio::select! {
        cut = pump(from_client, to_server, Way::ToServer, number, counts, state.clone()) => cut.unwrap_or(Cut::Reset),
        cut = pump(from_server, to_client, Way::ToClient, number, counts, state.clone()) => cut.unwrap_or(Cut::Reset),
        cut = until_cut(state, number) => cut,
    };
    (cut, Some(server))
}

/// Carries what goes one way, until that ends.
async fn pump(
    mut from: tcp::ReadHalf<'_>,
    mut to: tcp::WriteHalf<'_>,
    way: Way,
    number: u64,
    counts: &Counts,
    state: watch::Receiver<State>,
) -> io::Result<Cut> {
    let mut buffer = vec![0; 16 * 1024];
    // Bytes that have gone under this fault.
    let (mut fault_number, mut gone) = (0, 0);
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(Cut::Close);
        }
        let bytes = &buffer[..read];
        let now = *state.borrow();
        if now.fault_number != fault_number {
            (fault_number, gone) = (now.fault_number, 0);
        }
        let is_older = number < now.since;
        if way == Way::ToClient && counts.loses() {
            counts.lost.fetch_add(1, Ordering::SeqCst);
            return Ok(Cut::Close);
        }
        match now.fault {
            Fault::Delay { to_server, to_client, jitter } => {
                let delay = if way == Way::ToServer { to_server } else { to_client };
                sleep(delay + jitter.mul_f64(chance(number, gone))).await;
                to.write_all(bytes).await?;
            }
            Fault::Throttle { bytes_per_second } => {
                for piece in bytes.chunks(32) {
                    let piece_bytes = u32::try_from(piece.len()).unwrap_or(u32::MAX);
                    sleep(Duration::from_secs(1) * piece_bytes / bytes_per_second.max(1)).await;
                    to.write_all(piece).await?;
                }
            }
            Fault::BlackHole => return Ok(swallow(state, number).await),
            Fault::CutAfter { bytes: limit, way: cut_way, cut } if is_older && way == cut_way => {
                let rest = limit.saturating_sub(gone);
                if rest < read {
                    to.write_all(&bytes[..rest]).await?;
                    return Ok(cut);
                }
                to.write_all(bytes).await?;
            }
            Fault::LoseAnswers { cut } if is_older && way == Way::ToClient => {
                counts.lost.fetch_add(1, Ordering::SeqCst);
                return Ok(cut);
            }
            Fault::None | Fault::CutAfter { .. } | Fault::LoseAnswers { .. } => to.write_all(bytes).await?,
        }
        gone += read;
    }
}

/// Says nothing, for as long as the black hole is there; the connection is no good any more.
async fn swallow(mut state: watch::Receiver<State>, number: u64) -> Cut {
    // An error: the proxy ends.
    let _ = state.wait_for(|state| state.fault != Fault::BlackHole || cut_of(state, number).is_some()).await;
    Cut::Reset
}

async fn until_cut(mut state: watch::Receiver<State>, number: u64) -> Cut {
    let state = state.wait_for(|state| cut_of(state, number).is_some()).await;
    state.ok().and_then(|state| cut_of(&state, number)).unwrap_or(Cut::Close)
}

fn cut_of(state: &State, number: u64) -> Option<Cut> {
    state.cut.and_then(|(below, cut)| (number < below).then_some(cut))
}

/// From 0 to 1, the same for the same.
fn chance(number: u64, gone: usize) -> f64 {
    let seed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (gone as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((seed ^ (seed >> 29)) % 1000) as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::sync::mpsc::{self, Receiver};
    use std::time::Instant;

    use super::*;

    /// A server that says back what it hears, and also tells the test.
    fn echo() -> (Proxy, Receiver<Vec<u8>>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("there is a free port");
        let proxy = Proxy::start(listener.local_addr().expect("a listener has an address").port());
        let (sender, heard) = mpsc::channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(mut stream), sender) = (stream, sender.clone()) else { return };
                std::thread::spawn(move || {
                    let mut buffer = [0; 1024];
                    while let Ok(read @ 1..) = stream.read(&mut buffer) {
                        // The test may have ended.
                        let _ = (sender.send(buffer[..read].to_vec()), stream.write_all(&buffer[..read]));
                    }
                });
            }
        });
        (proxy, heard)
    }

    fn connect(proxy: &Proxy) -> TcpStream {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).expect("a proxy accepts");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("it can be set");
        stream
    }

    fn say(stream: &mut TcpStream, what: &[u8]) -> io::Result<Vec<u8>> {
        stream.write_all(what)?;
        let mut answer = vec![0; what.len()];
        stream.read_exact(&mut answer).map(|()| answer)
    }

    #[test]
    fn what_goes_through_is_as_it_was() {
        let (proxy, _heard) = echo();
        let mut stream = connect(&proxy);
        assert_eq!(say(&mut stream, b"hello").expect("it is answered"), b"hello");
        assert_eq!(proxy.connections(), 1);
    }

    #[test]
    fn a_delay_is_as_long_as_both_ways_together() {
        let (proxy, _heard) = echo();
        let mut stream = connect(&proxy);
        let (to_server, to_client) = (Duration::from_millis(40), Duration::from_millis(30));
        proxy.set(Fault::Delay { to_server, to_client, jitter: Duration::from_millis(10) });
        let begun = Instant::now();
        assert_eq!(say(&mut stream, b"hello").expect("it is answered"), b"hello");
        assert!(begun.elapsed() >= to_server + to_client);
    }

    #[test]
    fn what_is_throttled_takes_its_time() {
        let (proxy, _heard) = echo();
        let mut stream = connect(&proxy);
        proxy.set(Fault::Throttle { bytes_per_second: 1000 });
        let begun = Instant::now();
        assert_eq!(say(&mut stream, &[7; 100]).expect("it is answered"), [7; 100]);
        assert!(begun.elapsed() >= Duration::from_millis(100));
    }

    #[test]
    fn a_cut_is_heard_as_what_it_is() {
        let (proxy, _heard) = echo();
        for (cut, wanted) in [(Cut::Reset, Err(ErrorKind::ConnectionReset)), (Cut::Close, Ok(0))] {
            let mut stream = connect(&proxy);
            say(&mut stream, b"hello").expect("it is answered");
            proxy.cut(cut);
            let read = stream.read(&mut [0; 8]).map_err(|error| error.kind());
            assert_eq!(read, wanted, "{cut:?}");
        }
        // Who comes anew is served.
        say(&mut connect(&proxy), b"again").expect("it is answered");
    }

    #[test]
    fn a_message_is_cut_in_its_middle_on_either_way() {
        let (proxy, heard) = echo();
        for way in [Way::ToServer, Way::ToClient] {
            let mut stream = connect(&proxy);
            say(&mut stream, b"hello").expect("it is answered");
            heard.recv().expect("it was heard");
            proxy.set(Fault::CutAfter { bytes: 3, way, cut: Cut::Close });
            stream.write_all(b"goodbye").expect("it can be sent");
            let mut answer = Vec::new();
            // A reset is as good: the proxy had more to read.
            let _ = stream.read_to_end(&mut answer);
            let there = heard.recv().expect("a part was heard");
            if way == Way::ToServer {
                assert_eq!(there, b"goo");
            } else {
                assert_eq!((there.as_slice(), answer.as_slice()), (&b"goodbye"[..], &b"goo"[..]));
            }
            say(&mut connect(&proxy), b"again").expect("new connections are not cut");
            heard.recv().expect("it was heard");
        }
    }

    #[test]
    fn a_lost_answer_is_one_to_a_request_that_was_done() {
        let (proxy, heard) = echo();
        let mut stream = connect(&proxy);
        say(&mut stream, b"hello").expect("it is answered");
        heard.recv().expect("it was heard");
        proxy.set(Fault::LoseAnswers { cut: Cut::Reset });
        let lost = say(&mut stream, b"goodbye").expect_err("the answer is lost");
        assert_eq!(lost.kind(), ErrorKind::ConnectionReset);
        assert_eq!(heard.recv().expect("it was heard"), b"goodbye");
        say(&mut connect(&proxy), b"again").expect("new connections are not cut");
        proxy.set(Fault::None);
        heard.recv().expect("it was heard");
        proxy.lose_next_answer();
        say(&mut connect(&proxy), b"goodbye").expect_err("the answer is lost");
        assert_eq!(heard.recv().expect("it was heard"), b"goodbye");
        say(&mut connect(&proxy), b"again").expect("only one is lost");
        assert_eq!(proxy.lost(), 2);
    }

    #[test]
    fn a_black_hole_says_nothing_until_it_is_gone() {
        let (proxy, heard) = echo();
        let mut old = connect(&proxy);
        say(&mut old, b"hello").expect("it is answered");
        heard.recv().expect("it was heard");
        proxy.set(Fault::BlackHole);
        let mut new = connect(&proxy);
        for stream in [&mut old, &mut new] {
            stream.set_read_timeout(Some(Duration::from_millis(100))).expect("it can be set");
            let silence = say(stream, b"anybody?").expect_err("nobody answers");
            assert!(matches!(silence.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{silence:?}");
        }
        assert!(heard.try_recv().is_err(), "something has come through");
        proxy.set(Fault::None);
        let reset = old.read(&mut [0; 8]).map_err(|error| error.kind());
        assert_eq!(reset, Err(ErrorKind::ConnectionReset));
        say(&mut connect(&proxy), b"again").expect("it is answered");
    }
}
