//! Programs of others, which may be missing here and must not be where `CI` is set.

use std::env;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Says loudly that a test was not run; fails where everything must be there.
pub(crate) fn skip(missing: &str) {
    assert!(env::var_os("CI").is_none(), "{missing} is needed");
    eprintln!("SKIPPED: {missing} is needed for this test; `.ci/run` installs it");
}

/// The first of these that says its version; without one, the test is [skipped](skip).
pub(crate) fn program(name: &str, mut candidates: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    let found = candidates.find(|program| runs(Command::new(program).arg("--version")));
    if found.is_none() {
        skip(name);
    }
    found
}

/// A Python that has these modules: `CORELANE_PYTHON`, the one that CI makes, or the system's.
pub(crate) fn python(modules: &[&str]) -> Option<PathBuf> {
    let modules = modules.join(", ");
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venv/bin/python");
    let mut candidates = env::var_os("CORELANE_PYTHON").map(PathBuf::from).into_iter().chain([own, "python3".into()]);
    let found = candidates.find(|python| runs(Command::new(python).args(["-c", &format!("import {modules}")])));
    if found.is_none() {
        skip(&format!("a Python with {modules}"));
    }
    found
}

fn runs(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

/// A server that is asked by HTTP, in a folder of its own, until this is dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    folder: PathBuf,
}

impl Server {
    /// Once it is ready. `config` is in its folder, as `config.yml`.
    pub(crate) fn start(program: &Path, config: &Value, arguments: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let folder = env::temp_dir().join(format!("corelane-{}-{}", std::process::id(), address.port()));
        fs::create_dir_all(&folder).unwrap();
        // JSON is YAML.
        fs::write(folder.join("config.yml"), config.to_string()).unwrap();
        let child = Command::new(program)
            .arg(format!("--config.file={}", folder.join("config.yml").display()))
            .arg(format!("--web.listen-address={address}"))
            .args(arguments(&folder))
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.join("log")).unwrap())
            .spawn()
            .unwrap();
        let mut server = Self { child, address, folder };
        let from = Instant::now();
        while server.get("/-/ready").is_none_or(|(status, _)| status != 200) {
            let ended = server.child.try_wait().unwrap();
            if ended.is_some() || from.elapsed() > Duration::from_secs(60) {
                panic!("{}", fs::read_to_string(server.folder.join("log")).unwrap());
            }
            thread::sleep(Duration::from_millis(50));
        }
        server
    }

    /// The status and the body.
    pub(crate) fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        // HTTP/1.0: the answer ends with the connection.
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    /// The body, as JSON, of an answer that must be good.
    #[track_caller]
    pub(crate) fn get_json(&self, path: &str) -> Value {
        let (status, body) = self.get(path).unwrap();
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
        _ = fs::remove_dir_all(&self.folder);
    }
}
