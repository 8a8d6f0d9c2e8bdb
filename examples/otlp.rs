//! Metrics and traces to an OTLP receiver.
//!
//! ```text
//! OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4318 cargo run --features otel --example otlp
//! cargo run --features otel --example otlp -- --check
//! ```
//!
//! Some tenths of a second of work in two lanes: requests that are traced because their submitter is, and background work that is traced
//! only where it fails or is slow. Prints what was sent. With `--check` the receiver is in this process, and it fails
//! unless all has arrived there.
#![allow(clippy::print_stdout)]

#[allow(clippy::unwrap_used, dead_code, reason = "of the tests, which use the rest")]
#[path = "../tests/otlp/receiver.rs"]
mod receiver;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use corelane::{
    EventEmitter, Executor, LaneConfig, LaneError, OtelTracer, OtlpEndpoint, OtlpExporter, QueueManagerBuilder,
    QueueMetrics, sleep,
};
use opentelemetry::Context;
use opentelemetry::trace::{TraceContextExt, Tracer, TracerProvider};

use receiver::{Receiver, attribute};

const REQUESTS: usize = 50;

fn main() -> anyhow::Result<()> {
    let receiver = std::env::args().any(|argument| argument == "--check").then(Receiver::start);
    let endpoint = receiver.as_ref().map_or_else(OtlpEndpoint::from_env, |receiver| receiver.url().into());
    let endpoint = endpoint.service_name("corelane-example");

    let metrics = QueueMetrics::local();
    let exporter = OtlpExporter::builder(endpoint.clone()).interval(Duration::from_secs(1)).start(&metrics)?;
    let tracer = OtelTracer::otlp(endpoint)?.failures(true).slow_after(Duration::from_millis(50));
    let tracer = Arc::new(tracer);
    Executor::global().block_on(work(&tracer, metrics))?;

    // Both are told to send what they have left.
    tracer.shutdown();
    let spans = tracer.stats().context("this tracer sends itself")?;
    let pushes = exporter.shutdown();
    println!("metrics: {} pushes, {} retries, {} dropped", pushes.sent, pushes.retries, pushes.dropped);
    println!("spans:   {} batches, {} retries, {} dropped", spans.sent, spans.retries, spans.dropped);
    for error in [pushes.last_error, spans.last_error].into_iter().flatten() {
        println!("last error: {error}");
    }
    receiver.map_or(Ok(()), |receiver| check(&receiver))
}

async fn work(tracer: &Arc<OtelTracer>, metrics: QueueMetrics) -> anyhow::Result<()> {
    let manager = QueueManagerBuilder::new(EventEmitter::new(100))
        .with_lane("requests", LaneConfig::new(1, 4), 1)
        .with_lane("background", LaneConfig::new(1, 2), 3)
        .with_metrics(metrics)
        .with_tracer(Arc::clone(tracer) as Arc<dyn corelane::Tracer>)
        .build()
        .await?;
    manager.start().await?;
    // The program's own spans go the same way as the library's.
    let program = Arc::new(tracer.provider().context("this tracer has a provider")?.tracer("program"));
    for n in 0..REQUESTS {
        let request = Context::new().with_span(program.start("request"));
        let ticket = {
            let _current = request.clone().attach();
            let program = Arc::clone(&program);
            manager.submit_fn("requests", "answer", || async move {
                program.in_span("think", |_| ());
                sleep(Duration::from_millis(2)).await;
                Ok(())
            })?
        };
        let background = move || async move {
            sleep(Duration::from_millis(if n == 0 { 60 } else { 1 })).await;
            if n % 10 == 9 { Err(LaneError::CommandError("on purpose".into())) } else { Ok(()) }
        };
        manager.submit_fn("background", "index", background)?.detach();
        ticket.await??;
        request.span().end();
    }
    manager.drain(Duration::from_secs(30)).await?;
    Ok(())
}

fn check(receiver: &Receiver) -> anyhow::Result<()> {
    let spans = receiver.spans();
    let count = |name: &str, lane: &str| {
        let of = |span: &&_| {
            let span: &opentelemetry_proto::tonic::trace::v1::Span = span;
            span.name == name && attribute(&span.attributes, "lane_name").is_none_or(|found| found == lane)
        };
        spans.iter().filter(of).count()
    };
    for name in ["request", "think", "a3s.lane.enqueue", "a3s.lane.execute", "a3s.lane.complete"] {
        println!("{:4} spans {name} of requests", count(name, "requests"));
        ensure!(count(name, "requests") == REQUESTS, "{name}");
    }
    // The slow one, and every tenth.
    let told = count("a3s.lane.execute", "background");
    println!("{told:4} spans a3s.lane.execute of background work");
    ensure!(told > REQUESTS / 10, "{told}");
    let last = receiver.metrics().pop().context("no metrics arrived")?;
    let metrics = last.resource_metrics.iter().flat_map(|of| &of.scope_metrics).flat_map(|of| &of.metrics);
    let names: Vec<_> = metrics.map(|metric| metric.name.as_str()).collect();
    println!("metrics: {}", names.join(", "));
    ensure!(names.contains(&"a3s.lane.command.duration") && names.contains(&"a3s.lane.queue.depth"));
    Ok(())
}
