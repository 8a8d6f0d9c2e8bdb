//! What happens when the receiver does not take what is sent.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use corelane::{LaneConfig, OtelTracer, OtlpEndpoint, OtlpError, OtlpExporter, OtlpStats, QueueMetrics};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsPartialSuccess, ExportMetricsServiceResponse};
use prost::Message;

use crate::receiver::{Answer, Receiver};
use crate::{done, finish, queue};

fn says(status: &str) -> Answer {
    Answer::Says(status.to_owned(), Vec::new())
}

/// Starts to push often, and waits for so many requests.
fn pushing(receiver: &Receiver, requests: usize) -> OtlpExporter {
    let metrics = QueueMetrics::local();
    // The patience with one push is as long as the interval.
    let builder = OtlpExporter::builder(receiver.url()).interval(Duration::from_secs(3));
    let exporter = builder.start(&metrics).unwrap();
    receiver.wait_for(requests);
    exporter
}

#[test]
fn what_may_pass_is_repeated() {
    for answers in [
        vec![says("503 Service Unavailable")],
        vec![says("429 Too Many Requests"), says("502 Bad Gateway")],
        vec![Answer::HangsUp, says("504 Gateway Timeout")],
    ] {
        let receiver = Receiver::start();
        answers.iter().cloned().for_each(|answer| receiver.answer(answer));
        let exporter = pushing(&receiver, answers.len() + 1);
        let stats = exporter.shutdown();
        assert_eq!((stats.retries, stats.dropped, &stats.last_error), (answers.len() as u64, 0, &None));
        // The same message, word for word.
        let requests = receiver.requests();
        assert!(requests[..=answers.len()].iter().all(|request| request.body == requests[0].body));
    }
}

#[test]
fn the_receiver_says_when_to_come_back() {
    let receiver = Receiver::start();
    receiver.answer(says("503 Service Unavailable\r\nretry-after: 2"));
    let metrics = QueueMetrics::local();
    let builder = OtlpExporter::builder(receiver.url()).interval(Duration::from_secs(3));
    let exporter = builder.start(&metrics).unwrap();
    receiver.wait_for(1);
    let refused = Instant::now();
    receiver.wait_for(2);
    assert!(refused.elapsed() >= Duration::from_millis(1900), "{:?}", refused.elapsed());
    drop(exporter);
}

#[test]
fn what_asks_for_more_patience_than_there_is_is_given_up() {
    let receiver = Receiver::start();
    receiver.answer(says("429 Too Many Requests\r\nretry-after: 3600"));
    let stats = pushing(&receiver, 1).shutdown();
    // The last push, by itself, was taken, and says all that the first one did.
    assert_eq!((stats.sent, stats.retries, stats.dropped), (1, 0, 1));
}

#[test]
fn refusals_and_redirects_are_answers() {
    let elsewhere = Receiver::start();
    let redirect = format!("307 Temporary Redirect\r\nlocation: {}/v1/metrics", elsewhere.url());
    for status in ["400 Bad Request", "401 Unauthorized", &redirect] {
        let receiver = Receiver::start();
        receiver.answer(says(status));
        receiver.answer(says(status));
        let OtlpStats { sent, retries, dropped, last_error, .. } = pushing(&receiver, 1).shutdown();
        assert_eq!((sent, retries, dropped), (0, 0, 2), "{status}");
        assert!(last_error.unwrap().contains(&status[..3]));
    }
    assert!(elsewhere.requests().is_empty());
}

#[test]
fn what_the_receiver_leaves_out_is_counted() {
    let receiver = Receiver::start();
    let partial = ExportMetricsPartialSuccess { rejected_data_points: 3, error_message: "too many".into() };
    let answer = ExportMetricsServiceResponse { partial_success: Some(partial) }.encode_to_vec();
    receiver.answer(Answer::Says("200 OK".to_owned(), answer));
    let metrics = QueueMetrics::local();
    let stats = OtlpExporter::builder(receiver.url()).start(&metrics).unwrap().shutdown();
    assert_eq!((stats.sent, stats.dropped, stats.rejected), (1, 0, 3));
    assert!(stats.last_error.unwrap().contains("too many"));
}

#[test]
fn a_receiver_that_hangs_or_is_not_there_holds_up_the_end_no_longer_than_its_timeout() {
    let hanging = Receiver::start();
    hanging.answer(Answer::Hangs);
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (url, errors) in [(hanging.url(), "in time"), (format!("http://user:password@{nobody}"), "")] {
        let endpoint =
            OtlpEndpoint::new(url.clone()).timeout(Duration::from_millis(300)).header("authorization", "secret");
        assert!(!format!("{endpoint:?}").contains("secret") && !format!("{endpoint:?}").contains("password"));
        let exporter = OtlpExporter::builder(endpoint).start(&QueueMetrics::local()).unwrap();
        let began = Instant::now();
        let stats = exporter.shutdown();
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
        assert_eq!((stats.sent, stats.dropped), (0, 1), "{url}");
        let error = stats.last_error.unwrap();
        assert!(error.contains(errors) && !error.contains("secret") && !error.contains("password"), "{error}");
    }
}

#[test]
fn spans_are_repeated_too_and_a_hanging_receiver_holds_up_no_command() {
    let receiver = Receiver::start();
    receiver.answer(Answer::Hangs);
    receiver.answer(says("429 Too Many Requests"));
    let endpoint = OtlpEndpoint::new(receiver.url()).timeout(Duration::from_secs(2));
    let tracer = Arc::new(OtelTracer::otlp(endpoint).unwrap().ratio(1.0));
    let manager = queue(LaneConfig::new(1, 4), Some(&tracer), None);
    // More than the SDK sends at a time, so that it begins at once; less than it keeps.
    let tickets: Vec<_> =
        (0..400).map(|n| manager.submit_fn("work", "closure", move || async move { Ok(n) }).unwrap()).collect();
    receiver.wait_for(1);
    for (n, ticket) in tickets.into_iter().enumerate() {
        assert_eq!(done(ticket).unwrap(), n);
    }
    finish(&manager);
    receiver.wait_for(3);
    tracer.shutdown();
    let stats = tracer.stats().unwrap();
    assert_eq!((stats.retries, stats.dropped), (2, 0), "{stats:?}");
    assert_eq!(receiver.spans().len(), 1200);
}

#[test]
fn settings_that_are_not_usable_are_told_all_at_once() {
    let endpoint = OtlpEndpoint::new("localhost:4318").header("a b", "c").timeout(Duration::ZERO);
    let metrics = QueueMetrics::local();
    let Err(OtlpError::Config(errors)) = OtlpExporter::builder(endpoint.clone()).start(&metrics) else { panic!() };
    assert_eq!(errors.problems().len(), 3, "{errors}");
    assert!(matches!(OtelTracer::otlp(endpoint), Err(OtlpError::Config(_))));
    let builder = OtlpExporter::builder("http://localhost:4318").interval(Duration::ZERO);
    assert!(matches!(builder.start(&metrics), Err(OtlpError::Config(_))));
}
