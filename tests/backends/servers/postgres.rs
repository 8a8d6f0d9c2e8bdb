//! PostgreSQL: as the user `postgres` where this is root, since it does not run as that.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use super::{Place, Server, free_port, spawn};

/// What the tests connect with.
pub(crate) const PASSWORD: &str = "canary-s3cret";

const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Postgres {
    place: Place,
    port: u16,
    child: Child,
}

/// Where a program of PostgreSQL is: Debian keeps those of a server apart, by version.
fn program(name: &str) -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<_> = versions.map(|version| version.path().join("bin").join(name)).collect();
    found.retain(|path| path.is_file());
    found.sort();
    super::find(name).or_else(|| found.pop())
}

/// A command that runs as a user who may run a server.
fn command(name: &str) -> Command {
    let program = program(name).expect("PostgreSQL is installed");
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    // It ends with who has started it, whatever becomes of that.
    let user = ["--reuid=postgres", "--regid=postgres", "--clear-groups", "--pdeathsig=KILL", "--"];
    command.args(user).arg(program);
    command
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().expect("id says who this is");
    id.stdout.starts_with(b"0\n")
}

impl Postgres {
    fn launch(place: &Place, port: u16) -> Child {
        let mut postgres = command("postgres");
        postgres.arg("-D").arg(place.0.join("data")).args(["-p", &port.to_string()]);
        postgres.arg("-k").arg(&place.0).args(["-c", "listen_addresses=127.0.0.1", "-c", "fsync=on"]);
        postgres.args(["-c", "max_connections=300"]).current_dir(&place.0);
        spawn(&mut postgres, &place.0.join("log"))
    }

    /// Waits until it takes connections; false if it has ended instead.
    fn answers(&mut self) -> bool {
        let begun = Instant::now();
        loop {
            let mut ready = command("pg_isready");
            ready.args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()]);
            if ready.status().expect("pg_isready can be started").success() {
                return true;
            }
            if self.child.try_wait().expect("a child can be asked").is_some() {
                return false;
            }
            assert!(begun.elapsed() < PATIENCE, "PostgreSQL does not answer:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Its log.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(self.place.0.join("log")).unwrap_or_default()
    }

    /// Adds settings, and has the server read them anew.
    pub(crate) fn set(&mut self, settings: &str) {
        let file = self.place.0.join("data/postgresql.conf");
        let mut file = fs::File::options().append(true).open(file).expect("the settings can be opened");
        writeln!(file, "{settings}").expect("the settings can be written");
        self.kill();
        self.restart();
    }

    /// Where the server's files are.
    pub(crate) fn folder(&self) -> &Path {
        &self.place.0
    }

    /// Does what only the server's owner may, in its database.
    pub(crate) fn sql(&self, sql: &str) -> String {
        let mut psql = command("psql");
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql, &self.url()]);
        let output = psql.output().expect("psql can be started");
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

impl Server for Postgres {
    const NAME: &'static str = "PostgreSQL";
    const PROGRAM: &'static str = "postgres";

    fn is_installed() -> bool {
        program(Self::PROGRAM).is_some()
    }

    fn start() -> Self {
        let place = Place::new("postgres");
        let password = place.0.join("password");
        fs::write(&password, PASSWORD).expect("a file can be written");
        if is_root() {
            let owned = Command::new("chown").args(["-R", "postgres:postgres"]).arg(&place.0).status();
            assert!(owned.expect("chown can be started").success());
        }
        let mut initdb = command("initdb");
        initdb.arg("-D").arg(place.0.join("data")).args(["-U", "corelane", "-A", "scram-sha-256", "-E", "UTF8"]);
        // Nothing is in it yet that could be lost.
        initdb.args(["--locale=C.UTF-8", "-N"]).arg(format!("--pwfile={}", password.display())).current_dir(&place.0);
        let made = initdb.output().expect("initdb can be started");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let port = free_port();
        let child = Self::launch(&place, port);
        let mut server = Self { place, port, child };
        assert!(server.answers(), "it has ended:\n{}", server.said());
        server
    }

    fn url_at(&self, port: u16) -> String {
        format!("postgres://corelane:{PASSWORD}@127.0.0.1:{port}/postgres")
    }

    fn port(&self) -> u16 {
        self.port
    }

    fn kill(&mut self) {
        // Its children end by themselves once they see that it is gone; a new one waits for the memory that they share.
        self.child.kill().expect("a child can be killed");
        self.child.wait().expect("a child can be waited for");
    }

    fn restart(&mut self) {
        let begun = Instant::now();
        loop {
            // Killed, it leaves its file behind; whoever has its number now is somebody else.
            drop(fs::remove_file(self.place.0.join("data/postmaster.pid")));
            self.child = Self::launch(&self.place, self.port);
            if self.answers() {
                return;
            }
            // The children of the one before have not all ended.
            assert!(begun.elapsed() < PATIENCE, "it does not start again:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn process(&self) -> Option<u32> {
        Some(self.child.id())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill();
    }
}
