//! Which commands are traced, and how their spans belong together.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use corelane::{
    Command, LaneConfig, LaneError, OtelTracer, Overflow, QueueManager, RetryPolicy, SubmitOptions, TraceContext,
    TraceParent, TypedCommand,
};
use opentelemetry::trace::{Span as _, TraceContextExt, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, global};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};

use crate::receiver::{Receiver, attribute};
use crate::{block_on, done, finish, queue};

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let found: Vec<_> = spans.iter().filter(|span| span.name == name).collect();
    assert_eq!(found.len(), 1, "{name} among {:?}", spans.iter().map(|span| &span.name).collect::<Vec<_>>());
    found[0]
}

fn text(span: &Span, key: &str) -> String {
    attribute(&span.attributes, key).unwrap_or_else(|| panic!("{} has no {key}", span.name))
}

fn number(span: &Span, key: &str) -> f64 {
    text(span, key).parse().unwrap()
}

fn is_under(span: &Span, parent: &Span) -> bool {
    span.parent_span_id == parent.span_id && span.trace_id == parent.trace_id
}

/// Runs commands in a queue with a tracer of its own; the spans that arrived.
fn spans(
    set: impl FnOnce(OtelTracer) -> OtelTracer,
    config: LaneConfig,
    run: impl FnOnce(&QueueManager, &SdkTracerProvider),
) -> Vec<Span> {
    let receiver = Receiver::start();
    let tracer = Arc::new(set(OtelTracer::otlp(receiver.url()).unwrap()));
    let manager = queue(config, Some(&tracer), None);
    run(&manager, &tracer.provider().unwrap());
    finish(&manager);
    tracer.shutdown();
    let stats = tracer.stats().unwrap();
    assert_eq!((stats.dropped, stats.rejected, stats.last_error), (0, 0, None));
    receiver.spans()
}

#[test]
fn a_command_lies_under_who_submits_it_and_its_own_spans_under_it() {
    let spans = spans(
        |tracer| tracer,
        LaneConfig::new(1, 2),
        |manager, provider| {
            let of_program = provider.tracer("program");
            let caller = Context::new().with_span(of_program.start("caller"));
            let ticket = {
                let _current = caller.clone().attach();
                manager.submit_fn("work", "closure", move || {
                    let of_program = of_program.clone();
                    async move {
                        of_program.start("before").end();
                        // A later poll, on any worker.
                        corelane::sleep(Duration::from_millis(5)).await;
                        of_program.start("after").end();
                        Ok(1)
                    }
                })
            };
            assert!(!Context::current().has_active_span());
            assert_eq!(done(ticket.unwrap()).unwrap(), 1);
            caller.span().end();
        },
    );
    let (caller, enqueue) = (named(&spans, "caller"), named(&spans, "a3s.lane.enqueue"));
    let (execute, complete) = (named(&spans, "a3s.lane.execute"), named(&spans, "a3s.lane.complete"));
    assert!(is_under(enqueue, caller) && is_under(execute, enqueue) && is_under(complete, execute));
    assert!(is_under(named(&spans, "before"), execute) && is_under(named(&spans, "after"), execute));
    assert_eq!(spans.len(), 6);

    assert_eq!(
        [enqueue, execute, complete].map(Span::kind),
        [SpanKind::Producer, SpanKind::Consumer, SpanKind::Internal]
    );
    for span in [enqueue, execute, complete] {
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{span:?}");
        assert_eq!((text(span, "lane_name"), text(span, "priority")), ("work".into(), "3".into()));
        assert_eq!(text(span, "a3s.lane.lane_name"), "work");
        assert_eq!(text(span, "a3s.lane.command_id"), text(enqueue, "a3s.lane.command_id"));
    }
    for span in [execute, complete] {
        assert_eq!((text(span, "attempt"), text(span, "outcome")), ("1".into(), "ok".into()));
        assert_eq!(text(span, "a3s.lane.success"), "true");
        assert!(number(span, "execution_time_ms") >= 5.0);
        assert_eq!(attribute(&span.attributes, "error.type"), None);
    }
    let waited = (enqueue.end_time_unix_nano - enqueue.start_time_unix_nano) as f64 / 1e6;
    // The span begins before the command is accepted.
    assert!(number(enqueue, "wait_time_ms") <= waited + 1.0, "{waited} ms: {enqueue:?}");
    // This one begins after the queue has taken the time.
    let ran = (execute.end_time_unix_nano - execute.start_time_unix_nano) as f64 / 1e6;
    assert!(ran >= 5.0 && ran <= number(execute, "execution_time_ms") + 1.0, "{ran} ms: {execute:?}");
    assert_eq!(text(execute, "a3s.lane.retry_attempt"), "0");
}

struct Nothing;

impl TypedCommand for Nothing {
    type Output = ();

    async fn execute(&self) -> corelane::Result<()> {
        Ok(())
    }

    fn command_type(&self) -> &str {
        "nothing"
    }
}

fn submit_with(manager: &QueueManager, options: SubmitOptions) {
    struct Seed;
    #[async_trait::async_trait]
    impl corelane::Command for Seed {
        async fn execute(&self) -> corelane::Result<serde_json::Value> {
            Ok(serde_json::Value::Null)
        }

        fn command_type(&self) -> &str {
            "seed"
        }
    }
    done(block_on(manager.submit_with("work", Box::new(Seed), options)).unwrap()).unwrap();
}

#[test]
fn a_parent_that_is_named_counts_more_than_the_current_one() {
    let parent: TraceContext = PARENT.parse().unwrap();
    let spans = spans(
        |tracer| tracer,
        LaneConfig::new(1, 2),
        |manager, provider| {
            let current = Context::new().with_span(provider.tracer("program").start("current"));
            let _current = current.attach();
            submit_with(manager, SubmitOptions::new().trace_parent(parent.clone()));
            // Not recorded there, so not here.
            let sampled = TraceContext { sampled: false, ..parent.clone() };
            submit_with(manager, SubmitOptions::new().trace_parent(sampled));
        },
    );
    let enqueue = named(&spans, "a3s.lane.enqueue");
    assert_eq!(
        (enqueue.trace_id.as_slice(), enqueue.parent_span_id.as_slice()),
        (&parent.trace_id[..], &parent.span_id[..])
    );
    assert_eq!(text(enqueue, "a3s.lane.command_type"), "seed");
}

#[test]
fn without_a_parent_nothing_is_traced_unless_asked_for() {
    for (ratio, expected) in [(0.0, 0), (1.0, 20 * 3)] {
        let spans = spans(
            |tracer| tracer.ratio(ratio),
            LaneConfig::new(1, 2),
            |manager, _| {
                for _ in 0..20 {
                    manager.submit_typed("work", Nothing).unwrap().detach();
                }
            },
        );
        assert_eq!(spans.len(), expected, "{ratio}");
    }
}

#[test]
fn slow_and_failed_commands_are_told_of_after_the_fact() {
    let spans = spans(
        |tracer| tracer.slow_after(Duration::from_millis(20)).failures(true),
        LaneConfig::new(1, 2),
        |manager, _| {
            done(manager.submit_typed("work", Nothing).unwrap()).unwrap();
            let slow = manager.submit_fn("work", "closure", || async {
                corelane::sleep(Duration::from_millis(30)).await;
                Ok(())
            });
            done(slow.unwrap()).unwrap();
            let failed =
                manager.submit_fn("work", "closure", || async { Err::<(), _>(LaneError::CommandError("no".into())) });
            done(failed.unwrap()).unwrap_err();
        },
    );
    assert_eq!(spans.len(), 6, "{spans:?}");
    let executed: Vec<_> = spans.iter().filter(|span| span.name == "a3s.lane.execute").collect();
    let (slow, failed) = (executed[0], executed[1]);
    assert_eq!((text(slow, "outcome"), text(failed, "outcome")), ("ok".into(), "error".into()));
    assert_ne!(slow.trace_id, failed.trace_id);
    assert!(slow.end_time_unix_nano - slow.start_time_unix_nano >= 30_000_000, "{slow:?}");
    for span in [slow, failed] {
        let enqueue = spans.iter().find(|other| is_under(span, other)).unwrap();
        assert_eq!((enqueue.name.as_str(), enqueue.parent_span_id.len()), ("a3s.lane.enqueue", 0));
        let complete = spans.iter().find(|other| is_under(other, span)).unwrap();
        assert_eq!(complete.name, "a3s.lane.complete");
        // Times are the queue's, in a row.
        assert_eq!(enqueue.end_time_unix_nano, span.start_time_unix_nano);
        assert_eq!(span.end_time_unix_nano, complete.start_time_unix_nano);
    }
}

/// A command that succeeds in its third attempt, traced as a whole.
fn with_retries(set: impl FnOnce(OtelTracer) -> OtelTracer) -> Vec<Span> {
    struct Third(AtomicU32);
    impl TypedCommand for Third {
        type Output = ();

        async fn execute(&self) -> corelane::Result<()> {
            let attempt = self.0.fetch_add(1, Ordering::SeqCst) + 1;
            if attempt < 3 { Err(LaneError::CommandError(format!("attempt {attempt}"))) } else { Ok(()) }
        }

        fn command_type(&self) -> &str {
            "third"
        }
    }
    let config = LaneConfig::new(1, 2).with_retry_policy(RetryPolicy::fixed(2, Duration::from_millis(1)));
    spans(
        |tracer| set(tracer.ratio(1.0)),
        config,
        |manager, _| done(manager.submit_typed("work", Third(AtomicU32::new(0))).unwrap()).unwrap(),
    )
}

fn attempts(spans: &[Span]) -> Vec<&Span> {
    let mut attempts: Vec<_> = spans.iter().filter(|span| span.name == "a3s.lane.execute").collect();
    attempts.sort_by_key(|span| text(span, "attempt"));
    attempts
}

#[test]
fn retries_are_linked_to_the_submission_and_to_the_attempt_before() {
    let spans = with_retries(|tracer| tracer);
    let enqueue = named(&spans, "a3s.lane.enqueue");
    let attempts = attempts(&spans);
    assert_eq!(attempts.len(), 3);
    assert!(is_under(attempts[0], enqueue));
    assert_eq!(attempts[0].links, []);
    for pair in attempts.windows(2) {
        assert_ne!(pair[1].trace_id, enqueue.trace_id);
        assert_eq!(pair[1].parent_span_id, [0; 0]);
        let linked: Vec<_> = pair[1].links.iter().map(|link| link.span_id.clone()).collect();
        assert_eq!(linked, [enqueue.span_id.clone(), pair[0].span_id.clone()]);
    }
    assert!(is_under(named(&spans, "a3s.lane.complete"), attempts[2]));
    let status = |span: &Span| span.status.clone().unwrap_or_default();
    assert_eq!(status(attempts[0]).code(), StatusCode::Error);
    assert!(status(attempts[1]).message.contains("attempt 2"), "{:?}", status(attempts[1]));
    assert_eq!(status(attempts[2]).code(), StatusCode::Unset);
    assert_eq!(attempts.iter().map(|span| text(span, "outcome")).collect::<Vec<_>>(), ["error", "error", "ok"]);
}

#[test]
fn retries_lie_under_the_submission_and_first_attempts_are_linked_if_asked_for() {
    let spans = with_retries(|tracer| tracer.first_attempt(TraceParent::Link).retries(TraceParent::Child));
    let enqueue = named(&spans, "a3s.lane.enqueue");
    let attempts = attempts(&spans);
    assert_eq!(attempts[0].links[0].span_id, enqueue.span_id);
    assert_ne!(attempts[0].trace_id, enqueue.trace_id);
    assert!(is_under(attempts[1], enqueue) && is_under(attempts[2], enqueue));
}

#[test]
fn every_way_to_fail_has_its_type() {
    let spans = spans(
        |tracer| tracer.ratio(1.0).with_messaging_semconv(true),
        LaneConfig::new(1, 1).with_timeout(Duration::from_secs(2)),
        |manager, _| {
            let panicked =
                manager.submit_fn("work", "closure", || async { if true { panic!("on purpose") } else { Ok(()) } });
            done(panicked.unwrap()).unwrap_err();
            let late = manager.submit_fn("work", "closure", || async {
                corelane::sleep(Duration::from_secs(60)).await;
                Ok(())
            });
            done(late.unwrap()).unwrap_err();
        },
    );
    let completed = spans.iter().filter(|span| span.name == "a3s.lane.complete");
    let types: Vec<_> = completed.map(|span| text(span, "error.type")).collect();
    assert_eq!(types, ["panic", "timeout"]);
    let executed = spans.iter().find(|span| span.name == "a3s.lane.execute").unwrap();
    let messaging = ["messaging.system", "messaging.operation.type", "messaging.destination.name"];
    assert_eq!(messaging.map(|key| text(executed, key)), ["corelane", "process", "work"]);
}

#[test]
fn a_submission_that_is_refused_is_an_error_of_its_own() {
    let spans = spans(
        |tracer| tracer.ratio(1.0),
        LaneConfig::new(1, 1).with_capacity(1),
        |manager, _| {
            manager.pause("work").unwrap();
            let waits = manager.submit_typed("work", Nothing).unwrap();
            assert!(manager.submit_typed("work", Nothing).is_err());
            manager.resume("work").unwrap();
            done(waits).unwrap();
        },
    );
    assert_eq!(spans.len(), 4, "{spans:?}");
    let refused: Vec<_> = spans.iter().filter(|span| attribute(&span.attributes, "error.type").is_some()).collect();
    assert_eq!(refused.len(), 1);
    assert_eq!((refused[0].name.as_str(), text(refused[0], "error.type")), ("a3s.lane.enqueue", "refused".into()));
}

/// A program's own exporter.
#[derive(Clone, Debug, Default)]
struct Kept(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Kept {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().unwrap().extend(batch);
        Ok(())
    }
}

impl Kept {
    fn names(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().map(|span| span.name.to_string()).collect()
    }
}

#[test]
fn a_provider_of_the_programs_own_gets_the_spans_also_if_it_is_set_later() {
    let expected = ["a3s.lane.enqueue", "a3s.lane.execute", "a3s.lane.complete"];
    let given = Kept::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(given.clone()).build();
    let tracer = Arc::new(OtelTracer::new(&provider).ratio(1.0));
    let manager = queue(LaneConfig::new(1, 1), Some(&tracer), None);
    done(manager.submit_typed("work", Nothing).unwrap()).unwrap();
    finish(&manager);
    assert_eq!(given.names(), expected);
    // It is the program's: neither shut down nor asked for numbers.
    tracer.shutdown();
    provider.tracer("program").start("still").end();
    assert_eq!(given.names().len(), 4);
    assert!(tracer.stats().is_none() && tracer.provider().is_none());

    let global_ones = Kept::default();
    let tracer = Arc::new(OtelTracer::global().ratio(1.0));
    let manager = queue(LaneConfig::new(1, 1), Some(&tracer), None);
    done(manager.submit_typed("work", Nothing).unwrap()).unwrap();
    global::set_tracer_provider(SdkTracerProvider::builder().with_simple_exporter(global_ones.clone()).build());
    done(manager.submit_typed("work", Nothing).unwrap()).unwrap();
    finish(&manager);
    assert_eq!(global_ones.names(), expected);
}

#[test]
fn a_tracer_that_is_alone_leaves_the_last_spans_behind_when_it_is_dropped() {
    let receiver = Receiver::start();
    let tracer = Arc::new(OtelTracer::otlp(receiver.url()).unwrap().ratio(1.0));
    let manager = queue(LaneConfig::new(1, 1), Some(&tracer), None);
    done(manager.submit_typed("work", Nothing).unwrap()).unwrap();
    finish(&manager);
    drop((manager, tracer));
    // Long before the batch would have been due.
    receiver.wait_for(1);
    assert_eq!(receiver.spans().len(), 3);
}

struct Naps(u64);

#[async_trait::async_trait]
impl Command for Naps {
    async fn execute(&self) -> corelane::Result<serde_json::Value> {
        corelane::sleep(Duration::from_millis(self.0)).await;
        Ok(1.into())
    }

    fn command_type(&self) -> &str {
        "naps"
    }
}

#[test]
fn a_command_that_waits_for_room_is_traced_once() {
    let spans = spans(
        |tracer| tracer.ratio(1.0),
        LaneConfig::new(1, 1).with_capacity(1).with_overflow(Overflow::Wait),
        |manager, _| {
            // One runs, one is in the line, and each of the others finds no room at first.
            let tickets: Vec<_> =
                (0..5).map(|_| block_on(manager.submit("work", Box::new(Naps(10)))).unwrap()).collect();
            for ticket in tickets {
                assert_eq!(done(ticket).unwrap(), 1);
            }
        },
    );
    let count = |name| spans.iter().filter(|span| span.name == name).count();
    assert_eq!((count("a3s.lane.enqueue"), count("a3s.lane.execute"), count("a3s.lane.complete")), (5, 5, 5));
}
