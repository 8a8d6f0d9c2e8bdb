//! An HTTP server that follows a script, one connection per answer, and tells what it got.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use serde_json::Value;

/// What the server does with a request.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// Answers.
    Status(u16, Vec<(&'static str, String)>, String),
    /// Says nothing until the client gives up.
    Silence,
    /// Resets the connection.
    Reset,
    /// Sends these bytes and ends the connection.
    Bytes(&'static str),
}

impl Answer {
    pub(crate) fn status(status: u16) -> Self {
        Self::Status(status, Vec::new(), String::new())
    }

    pub(crate) fn retry_after(status: u16, after: impl Into<String>) -> Self {
        Self::Status(status, vec![("Retry-After", after.into())], String::new())
    }
}

/// What the server got.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    /// By lower-case name.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

impl Request {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

#[derive(Debug)]
pub(crate) struct Stub {
    /// Without a path.
    pub(crate) url: String,
    requests: Receiver<Request>,
}

impl Stub {
    /// A server that gives these answers and then takes no more connections.
    pub(crate) fn start(script: Vec<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (got, requests) = channel();
        thread::spawn(move || {
            for answer in script {
                let (stream, _) = listener.accept().unwrap();
                if matches!(answer, Answer::Reset) {
                    // What was sent and never read makes the system answer with a reset.
                    stream.peek(&mut [0]).unwrap();
                    continue;
                }
                let Some(request) = read(&stream) else { continue };
                _ = got.send(request);
                // A client may have gone: that is its test's business.
                _ = reply(stream, answer);
            }
        });
        Self { url, requests }
    }

    /// A server that always answers with `status`.
    pub(crate) fn always(status: u16) -> Self {
        Self::start(vec![Answer::status(status); 1000])
    }

    /// The next request.
    pub(crate) fn next(&self) -> Request {
        self.requests.recv_timeout(Duration::from_secs(30)).expect("the server got no request")
    }

    /// Whether no request came that was not looked at. Requests are noted before they are answered.
    pub(crate) fn is_quiet(&self) -> bool {
        self.requests.try_recv().is_err()
    }
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let mut body = vec![0; headers.get("content-length").map_or(0, |length| length.parse().unwrap())];
    reader.read_exact(&mut body).ok()?;
    Some(Request { method, path, headers, body: String::from_utf8(body).unwrap() })
}

fn reply(mut stream: TcpStream, answer: Answer) -> std::io::Result<()> {
    match answer {
        Answer::Status(status, headers, body) => {
            write!(stream, "HTTP/1.1 {status} Said\r\nContent-Length: {}\r\nConnection: close\r\n", body.len())?;
            for (name, value) in headers {
                write!(stream, "{name}: {value}\r\n")?;
            }
            write!(stream, "\r\n{body}")
        }
        Answer::Silence => stream.read(&mut [0]).map(drop),
        Answer::Reset => Ok(()),
        Answer::Bytes(bytes) => stream.write_all(bytes.as_bytes()),
    }
}
