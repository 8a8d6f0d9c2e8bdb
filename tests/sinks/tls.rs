//! HTTPS: whom a sink trusts.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use corelane::{AlertSink, SinkError, SlackSink};

use crate::others::{python, skip};
use crate::support::{firing, message, run_with};

const URL: &str = "CORELANE_TEST_HTTPS";

/// An HTTPS server with a certificate that only it knows.
struct Server {
    child: Child,
    output: BufReader<ChildStdout>,
    url: String,
    folder: PathBuf,
}

impl Server {
    fn start(name: &str) -> Option<Self> {
        let python = python(&["ssl"])?;
        let folder = env::temp_dir().join(format!("corelane-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (key, certificate) = (folder.join("key.pem"), folder.join("certificate.pem"));
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
            .args(["-subj", "/CN=corelane test", "-addext", "subjectAltName=DNS:localhost"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .args(["-keyout".as_ref(), key.as_path(), "-out".as_ref(), certificate.as_path()])
            .output();
        let Ok(made) = made else {
            skip("openssl");
            return None;
        };
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sinks/https.py");
        let mut child =
            Command::new(python).args([&script, &certificate, &key]).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut port = String::new();
        output.read_line(&mut port).unwrap();
        Some(Self { child, output, url: format!("https://localhost:{}/over-tls", port.trim()), folder })
    }

    fn certificate(&self) -> String {
        self.folder.join("certificate.pem").to_str().unwrap().to_owned()
    }

    /// What it got until now or until it ends.
    fn got(&mut self) -> String {
        _ = self.child.wait();
        let mut got = String::new();
        self.output.read_to_string(&mut got).unwrap();
        got
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
        _ = fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn a_certificate_that_the_system_trusts_is_trusted() {
    let Some(mut server) = Server::start("trusted") else { return };
    run_with("tls::delivers", &[(URL, &server.url), ("SSL_CERT_FILE", &server.certificate())]);
    let got = server.got();
    assert!(got.starts_with("/over-tls "), "{got:?}");
}

#[test]
fn a_certificate_that_nobody_knows_is_not_trusted() {
    let Some(mut server) = Server::start("unknown") else { return };
    let error = SlackSink::builder(server.url.as_str()).build().unwrap().deliver(&firing()).unwrap_err();
    assert!(matches!(error, SinkError::Retry { .. }), "{error}");
    assert!(message(&error).contains("certificate"), "{error}");
    assert_eq!(server.got(), "", "nothing is sent");
}

#[test]
#[ignore = "run by another test, in an environment that trusts the server"]
fn delivers() {
    SlackSink::builder(env::var(URL).unwrap()).build().unwrap().deliver(&firing()).unwrap();
}
