//! A redis-server.

use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use super::{Place, Server, find, free_port, spawn, wait_for_port};

/// What a server is started with, besides its port and folder: nothing acknowledged is lost.
pub(crate) const SAFE: &[&str] =
    &["--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction"];

pub(crate) struct Redis {
    place: Place,
    port: u16,
    tls: bool,
    /// A later one in place of an earlier one.
    settings: Vec<String>,
    child: Child,
}

impl Redis {
    /// One with these settings.
    pub(crate) fn with(settings: &[&str]) -> Self {
        Self::of(Place::new("redis"), false, settings)
    }

    /// One that speaks TLS only, with the certificate `server.crt` and the key `server.key` of the folder.
    pub(crate) fn with_tls(place: Place) -> Self {
        let file = |name: &str| place.0.join(name).display().to_string();
        let (certificate, key, authority) = (file("server.crt"), file("server.key"), file("ca.crt"));
        let own = ["--tls-cert-file", &certificate, "--tls-key-file", &key, "--tls-ca-cert-file", &authority];
        let settings = [SAFE, &own, &["--tls-auth-clients", "no"]].concat();
        Self::of(place, true, &settings)
    }

    /// Whether the one that is installed was built with TLS; it complains of the want of a certificate then.
    pub(crate) fn has_tls() -> bool {
        let program = find(Self::PROGRAM).expect("it is installed");
        let port = free_port().to_string();
        let said =
            Command::new(program).args(["--port", "0", "--tls-port", &port]).output().expect("it can be started");
        let has = String::from_utf8_lossy(&said.stdout).contains("tls-cert-file");
        if !has {
            eprintln!("*** redis-server is built without TLS: the test of that is LEFT OUT");
        }
        has
    }

    fn of(place: Place, tls: bool, settings: &[&str]) -> Self {
        let settings: Vec<_> = settings.iter().map(|&setting| setting.to_owned()).collect();
        let port = free_port();
        let child = start(&place.0, port, tls, &settings);
        Self { place, port, tls, settings, child }
    }

    /// Runs a command there, and gives what it says.
    pub(crate) fn say<T: redis::FromRedisValue>(&self, command: &[&str]) -> T {
        let client = redis::Client::open(self.url()).expect("a URL");
        let mut connection = client.get_connection().expect("it answers");
        redis::cmd(command[0]).arg(&command[1..]).query(&mut connection).expect("it is done")
    }
}

fn start(folder: &Path, port: u16, tls: bool, settings: &[String]) -> Child {
    let program = find(Redis::PROGRAM).expect("it is installed");
    let log = folder.join("log");
    let port_text = port.to_string();
    let ports = if tls { ["--port", "0", "--tls-port", &port_text] } else { ["--tls-port", "0", "--port", &port_text] };
    let mut command = Command::new(program);
    command.args(ports).args(["--bind", "127.0.0.1", "--save", "", "--dir"]).arg(folder).args(settings);
    let mut child = spawn(&mut command, &log);
    wait_for_port(port, &mut child, &log);
    if !tls {
        wait_until_loaded(port);
    }
    child
}

/// It listens before it has read what it has.
fn wait_until_loaded(port: u16) {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).expect("a URL");
    for _ in 0..6000 {
        let asked =
            client.get_connection().and_then(|mut connection| redis::cmd("PING").query::<String>(&mut connection));
        match asked {
            Err(error) if error.code() == Some("LOADING") || error.is_io_error() => {
                std::thread::sleep(Duration::from_millis(10));
            }
            // Also where it wants a password.
            _ => return,
        }
    }
    panic!("the server is still loading");
}

impl Server for Redis {
    const NAME: &'static str = "Redis";
    const PROGRAM: &'static str = "redis-server";

    fn start() -> Self {
        Self::with(SAFE)
    }

    fn url_at(&self, port: u16) -> String {
        format!("{}://127.0.0.1:{port}", if self.tls { "rediss" } else { "redis" })
    }

    fn port(&self) -> u16 {
        self.port
    }

    fn kill(&mut self) {
        self.child.kill().expect("a child can be killed");
        self.child.wait().expect("a child can be waited for");
    }

    fn restart(&mut self) {
        self.child = start(&self.place.0, self.port, self.tls, &self.settings);
    }

    fn process(&self) -> Option<u32> {
        Some(self.child.id())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
