//! nats-server with JetStream.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use super::{Place, Server, find, free_port, spawn, wait_for_port};

pub(crate) struct Nats {
    place: Place,
    port: u16,
    more: Vec<String>,
    jetstream: bool,
    child: Child,
}

impl Nats {
    /// With more arguments, and JetStream or not.
    pub(crate) fn start_with(more: &[&str], jetstream: bool) -> Self {
        let place = Place::new("nats");
        let port = free_port();
        let more: Vec<String> = more.iter().map(|&word| word.to_owned()).collect();
        let child = run(&place.0, port, &more, jetstream);
        Self { place, port, more, jetstream, child }
    }

    /// Ends it as it should be ended, with all it knows on the disk.
    pub(crate) fn stop(&mut self) {
        let asked = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        assert!(asked.is_ok_and(|asked| asked.success()), "it can be asked to end");
        self.child.wait().expect("a child can be waited for");
    }

    /// Where it keeps the messages of a stream.
    pub(crate) fn messages_of(&self, stream: &str) -> PathBuf {
        self.place.0.join("data/jetstream/$G/streams").join(stream).join("msgs")
    }
}

impl Server for Nats {
    const NAME: &'static str = "NATS";
    const PROGRAM: &'static str = "nats-server";

    fn start() -> Self {
        Self::start_with(&[], true)
    }

    fn url_at(&self, port: u16) -> String {
        format!("nats://127.0.0.1:{port}")
    }

    fn port(&self) -> u16 {
        self.port
    }

    fn kill(&mut self) {
        // An error: it has ended already.
        let _ = self.child.kill();
        self.child.wait().expect("a child can be waited for");
    }

    fn restart(&mut self) {
        self.kill();
        self.child = run(&self.place.0, self.port, &self.more, self.jetstream);
    }

    fn process(&self) -> Option<u32> {
        Some(self.child.id())
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.kill();
    }
}

fn run(place: &Path, port: u16, more: &[String], jetstream: bool) -> Child {
    let program = find("nats-server").expect("it is installed");
    let log = place.join("log");
    let mut command = Command::new(program);
    command.args(["-a", "127.0.0.1", "-p", &port.to_string()]).args(more);
    if jetstream {
        command.arg("-js").arg("-sd").arg(place.join("data"));
    }
    let mut child = spawn(&mut command, &log);
    wait_for_port(port, &mut child, &log);
    child
}
