//! Servers that tests start, kill and start again.

#[cfg(feature = "nats")]
pub(crate) mod nats;
#[cfg(feature = "postgres")]
pub(crate) mod postgres;
#[cfg(feature = "redis")]
pub(crate) mod redis;

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A server of a kind: started on a free port, in a folder of its own, and ended when it is dropped.
pub(crate) trait Server: Sized + Send + Sync + 'static {
    const NAME: &'static str;
    /// The program that has to be installed.
    const PROGRAM: &'static str;

    fn is_installed() -> bool {
        find(Self::PROGRAM).is_some()
    }

    /// Starts one with nothing in it, and returns when it answers.
    fn start() -> Self;

    /// How a client reaches it.
    fn url(&self) -> String {
        self.url_at(self.port())
    }

    /// How a client reaches it through another port of this machine.
    fn url_at(&self, port: u16) -> String;

    fn port(&self) -> u16;

    /// Kills it, as a power failure would; what it has on disk stays.
    fn kill(&mut self);

    /// Starts it again, with what it has, and returns when it answers.
    fn restart(&mut self);

    /// Its process, if it has one of its own.
    fn process(&self) -> Option<u32>;

    /// It hangs: connected, and answering nothing.
    fn hang(&self) {
        signal_all("-STOP", self.process());
    }

    /// It goes on.
    fn go_on(&self) {
        signal_all("-CONT", self.process());
    }
}

/// Sends a process a signal, and then those that it has started.
fn signal_all(signal: &str, process: Option<u32>) {
    let Some(process) = process else { return };
    let send = |process: &str| Command::new("kill").args([signal, process]).status();
    assert!(send(&process.to_string()).is_ok_and(|sent| sent.success()), "{signal} can be sent");
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
    for child in children.split_whitespace() {
        // One that has ended meanwhile hears nothing.
        let _ = send(child);
    }
}

/// A server, if its program is there. With `CI=true` it has to be.
pub(crate) fn started<S: Server>() -> Option<S> {
    installed::<S>().then(S::start)
}

/// Whether its program is there, with a loud word if not. With `CI=true` it has to be.
pub(crate) fn installed<S: Server>() -> bool {
    if S::is_installed() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "{} is not installed: in CI, its tests are not left out", S::PROGRAM);
    eprintln!("*** {} is not installed: the tests of {} are LEFT OUT", S::PROGRAM, S::NAME);
    false
}

/// Where a program is: on the path, or where Debian keeps those that are for administrators.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    let mut found = folders.map(|folder| folder.join(program)).filter(|path| path.is_file());
    found.next()
}

/// A port that nobody has: until somebody takes it.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("there is a free port");
    listener.local_addr().expect("a listener has an address").port()
}

/// Waits until something listens there, for as long as the process lives.
pub(crate) fn wait_for_port(port: u16, child: &mut Child, log: &Path) {
    let begun = Instant::now();
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        let ended = child.try_wait().expect("a child can be asked");
        if ended.is_some() || begun.elapsed() > Duration::from_secs(60) {
            let said = fs::read_to_string(log).unwrap_or_default();
            panic!("the server does not answer on port {port} ({ended:?}):\n{said}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Starts a program whose output goes to a file.
pub(crate) fn spawn(command: &mut Command, log: &Path) -> Child {
    let output = fs::File::options().create(true).append(true).open(log).expect("a log can be opened");
    let errors = output.try_clone().expect("a file can be shared");
    command.stdin(Stdio::null()).stdout(output).stderr(errors).spawn().expect("the server can be started")
}

/// A folder of a server, removed with it; kept when the test fails.
#[derive(Debug)]
pub(crate) struct Place(pub(crate) PathBuf);

impl Place {
    pub(crate) fn new(name: &str) -> Self {
        static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let folder = format!("corelane-{name}-{}-{number}", std::process::id());
        // Not below the build folder: a server that runs as another user may not get there.
        let path = std::env::temp_dir().join(folder);
        fs::create_dir_all(&path).expect("a folder is made");
        Self(path)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // What is left behind is in the folder for temporary files.
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}
