//! A real receiver: rotel, from PyPI, prints what it receives.

use std::env;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use corelane::{LaneConfig, OtelTracer, OtlpExporter, OtlpHistograms, QueueMetrics};
use opentelemetry::Context;
use opentelemetry::trace::{TraceContextExt, Tracer as _, TracerProvider as _};

use crate::others::skip;
use crate::{done, finish, queue};

/// Ended with the test, whatever becomes of it.
struct Rotel {
    process: Child,
    url: String,
    said: Arc<Mutex<String>>,
}

impl Drop for Rotel {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The program: named by `ROTEL`, or where `.ci/run` puts it.
fn program() -> Option<PathBuf> {
    if let Some(named) = env::var_os("ROTEL") {
        return Some(named.into());
    }
    let libraries = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/venv/lib");
    let versions = libraries.read_dir().ok()?.flatten();
    versions.map(|version| version.path().join("site-packages/rotel/rotel-agent")).find(|program| program.exists())
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn until(what: &str, rotel: &Rotel, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what}; rotel said:\n{}", rotel.said.lock().unwrap());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn start() -> Option<Rotel> {
    let Some(program) = program() else {
        skip("rotel (in target/venv, or named by ROTEL)");
        return None;
    };
    let (http, grpc) = (free_port(), free_port());
    let mut process = Command::new(program)
        .args(["start", "--exporter", "blackhole", "--debug-log", "traces", "--debug-log", "metrics"])
        .args(["--debug-log-verbosity", "detailed", "--otlp-http-endpoint", &format!("127.0.0.1:{http}")])
        .args(["--otlp-grpc-endpoint", &format!("127.0.0.1:{grpc}")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("rotel starts");
    let said = Arc::new(Mutex::new(String::new()));
    let (stdout, stderr) = (process.stdout.take().unwrap(), process.stderr.take().unwrap());
    let outputs: [Box<dyn std::io::Read + Send>; 2] = [Box::new(stdout), Box::new(stderr)];
    for output in outputs {
        let said = Arc::clone(&said);
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                *said.lock().unwrap() += &format!("{line}\n");
            }
        });
    }
    let rotel = Rotel { process, url: format!("http://127.0.0.1:{http}"), said };
    until("rotel listens", &rotel, || TcpStream::connect(("127.0.0.1", http)).is_ok());
    Some(rotel)
}

#[test]
fn rotel_prints_what_the_queue_did() {
    let Some(rotel) = start() else { return };
    let tracer = Arc::new(OtelTracer::otlp(rotel.url.clone()).unwrap());
    let metrics = QueueMetrics::local();
    let builder = OtlpExporter::builder(rotel.url.clone());
    let explicit = builder.clone().start(&metrics).unwrap();
    let exponential = builder.histograms(OtlpHistograms::Exponential).start(&metrics).unwrap();
    let manager = queue(LaneConfig::new(1, 2), Some(&tracer), Some(&metrics));
    let of_program = tracer.provider().unwrap().tracer("program");
    let caller = Context::new().with_span(of_program.start("caller"));
    {
        let _current = caller.clone().attach();
        for _ in 0..7 {
            done(manager.submit_fn("work", "closure", || async { Ok(()) }).unwrap()).unwrap();
        }
    }
    caller.span().end();
    finish(&manager);
    tracer.shutdown();
    assert_eq!(tracer.stats().unwrap().last_error, None);
    for stats in [explicit.shutdown(), exponential.shutdown()] {
        assert_eq!((stats.sent, stats.dropped, stats.rejected, stats.last_error), (1, 0, 0, None));
    }
    check(&rotel);
}

fn check(rotel: &Rotel) {
    until("all is printed", rotel, || {
        let said = rotel.said.lock().unwrap();
        said.matches("a3s.lane.build_info").count() == 2 && blocks(&said, "Span #").len() == 22
    });
    let said = rotel.said.lock().unwrap();
    assert!(!said.contains("ERROR"), "{said}");
    let spans = blocks(&said, "Span #");
    let named = |name: &str| {
        let found = spans.iter().filter(|span| field(span, "Name") == Some(name));
        found.cloned().collect::<Vec<_>>()
    };
    let caller = &named("caller")[0];
    let (enqueued, executed, completed) =
        (named("a3s.lane.enqueue"), named("a3s.lane.execute"), named("a3s.lane.complete"));
    assert_eq!([enqueued.len(), executed.len(), completed.len()], [7; 3]);
    for enqueue in &enqueued {
        assert_eq!(field(enqueue, "Parent ID"), field(caller, "ID"));
        let under = |spans: &[String], parent: &str| {
            let found = spans.iter().find(|span| field(span, "Parent ID") == field(parent, "ID"));
            found.unwrap_or_else(|| panic!("nothing is under {parent}")).clone()
        };
        let execute = under(&executed, enqueue);
        let complete = under(&completed, &execute);
        for (span, kind) in
            [(enqueue, "SPAN_KIND_PRODUCER"), (&execute, "SPAN_KIND_CONSUMER"), (&complete, "SPAN_KIND_INTERNAL")]
        {
            assert_eq!((field(span, "Trace ID"), field(span, "Kind")), (field(caller, "Trace ID"), Some(kind)));
            assert_eq!((field(span, "-> lane_name"), field(span, "-> priority")), (Some("Str(work)"), Some("Int(3)")));
        }
        assert_eq!(field(&execute, "-> outcome"), Some("Str(ok)"));
    }

    let metrics = blocks(&said, "Metric #");
    let named = |name: &str| {
        let found = metrics.iter().filter(|metric| field(metric, "-> Name") == Some(name));
        found.collect::<Vec<_>>()
    };
    let submissions = named("a3s.lane.commands.submitted");
    assert!(!submissions.is_empty(), "{said}");
    for submitted in submissions {
        let expected = [
            ("-> DataType", "Sum"),
            ("-> IsMonotonic", "true"),
            ("-> AggregationTemporality", "AGGREGATION_TEMPORALITY_CUMULATIVE"),
            ("-> Unit", "{command}"),
            ("-> lane", "Str(work)"),
            ("Value", "7"),
        ];
        assert_eq!(expected.map(|(key, _)| field(submitted, key)), expected.map(|(_, value)| Some(value)));
    }
    let depth = named("a3s.lane.queue.depth");
    assert_eq!((field(depth[0], "-> DataType"), field(depth[0], "Value")), (Some("Gauge"), Some("0")));
    let durations = named("a3s.lane.command.duration");
    let types: Vec<_> = durations.iter().filter_map(|metric| field(metric, "-> DataType")).collect();
    assert!(types.contains(&"Histogram") && types.contains(&"ExponentialHistogram"), "{types:?}");
    for duration in durations {
        assert_eq!((field(duration, "-> Unit"), field(duration, "Count")), (Some("s"), Some("7")));
        let counted = duration.lines().filter_map(|line| line.split_once(", Count: "));
        assert_eq!(counted.map(|(_, count)| count.trim().parse::<u64>().unwrap()).sum::<u64>(), 7, "{duration}");
    }
}

/// The parts of a text that begin with a line like this.
fn blocks(text: &str, beginning: &str) -> Vec<String> {
    let mut blocks: Vec<String> = Vec::new();
    let mut within = false;
    for line in text.lines() {
        if line.starts_with(beginning) {
            blocks.push(String::new());
            within = true;
        } else if line.starts_with("Resource") || line.starts_with("Scope") {
            within = false;
        } else if within && let Some(block) = blocks.last_mut() {
            *block += line;
            *block += "\n";
        }
    }
    blocks
}

/// What stands after the key, in the first line that begins with it.
fn field<'a>(block: &'a str, key: &str) -> Option<&'a str> {
    block.lines().find_map(|line| Some(line.trim().strip_prefix(key)?.trim_start().strip_prefix(':')?.trim()))
}
