//! An OTLP receiver in this process, whose answers can be scripted.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;

/// Long enough that only a hang reaches it.
const HANG: Duration = Duration::from_secs(60);

/// What it does with a request.
#[derive(Clone)]
pub(crate) enum Answer {
    /// Status line and headers, without the length; and the body.
    Says(String, Vec<u8>),
    /// Closes the connection.
    HangsUp,
    /// Says nothing, for ever.
    Hangs,
}

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Whether it was answered by 200.
    pub(crate) taken: bool,
}

#[derive(Default)]
struct State {
    script: Mutex<VecDeque<Answer>>,
    requests: Mutex<Vec<Request>>,
    arrived: Condvar,
}

pub(crate) struct Receiver {
    address: SocketAddr,
    state: Arc<State>,
}

impl Receiver {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port of the loopback interface");
        let address = listener.local_addr().expect("its address");
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                std::thread::spawn(move || serve(&connection, &state));
            }
        });
        Self { address, state }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// To the next request that has none yet; without any, 200.
    pub(crate) fn answer(&self, answer: Answer) {
        self.state.script.lock().unwrap().push_back(answer);
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.state.requests.lock().unwrap().clone()
    }

    /// Waits for the first `count` requests.
    pub(crate) fn wait_for(&self, count: usize) -> Vec<Request> {
        let requests = self.state.requests.lock().unwrap();
        let (requests, waited) =
            self.state.arrived.wait_timeout_while(requests, HANG, |requests| requests.len() < count).unwrap();
        assert!(!waited.timed_out(), "{} of {count} requests came", requests.len());
        requests.clone()
    }

    /// The spans that were taken.
    pub(crate) fn spans(&self) -> Vec<Span> {
        let taken = self.requests().into_iter().filter(|request| request.taken && request.path == "/v1/traces");
        let messages = taken.map(|request| ExportTraceServiceRequest::decode(&*request.body).expect("OTLP traces"));
        let resources = messages.flat_map(|message| message.resource_spans);
        resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans).collect()
    }

    /// The messages with metrics that were taken.
    pub(crate) fn metrics(&self) -> Vec<ExportMetricsServiceRequest> {
        let taken = self.requests().into_iter().filter(|request| request.taken && request.path == "/v1/metrics");
        taken.map(|request| ExportMetricsServiceRequest::decode(&*request.body).expect("OTLP metrics")).collect()
    }
}

fn serve(connection: &TcpStream, state: &State) {
    let mut reader = BufReader::new(connection);
    loop {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            match reader.read_line(&mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) if line.trim().is_empty() => break,
                Ok(_) => lines.push(line.trim().to_owned()),
            }
        }
        let path = lines[0].split(' ').nth(1).expect("a path").to_owned();
        let headers = lines[1..].iter().filter_map(|line| line.split_once(':'));
        let headers: Vec<_> =
            headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
        let length = headers.iter().find(|(name, _)| name == "content-length").expect("a length");
        let mut body = vec![0; length.1.parse().expect("a number")];
        reader.read_exact(&mut body).expect("the body");

        let answer = state.script.lock().unwrap().pop_front();
        let answer = answer.unwrap_or_else(|| Answer::Says("200 OK".to_owned(), Vec::new()));
        let taken = matches!(&answer, Answer::Says(status, _) if status.starts_with("200"));
        state.requests.lock().unwrap().push(Request { path, headers, body, taken });
        state.arrived.notify_all();
        match answer {
            Answer::HangsUp => return,
            Answer::Hangs => loop {
                std::thread::park();
            },
            Answer::Says(status, body) => {
                let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
                let mut writer = connection;
                if writer.write_all(&[head.as_bytes(), &body].concat()).is_err() {
                    return;
                }
            }
        }
    }
}

/// An attribute, as text.
pub(crate) fn attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    Some(match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => text.clone(),
        Value::BoolValue(value) => value.to_string(),
        Value::IntValue(value) => value.to_string(),
        Value::DoubleValue(value) => value.to_string(),
        other => format!("{other:?}"),
    })
}
