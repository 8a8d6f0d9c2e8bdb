//! Spans of the crate `tracing` lie under the command's, where a command is traced.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use corelane::{LaneConfig, OtelTracer};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use crate::receiver::Receiver;
use crate::{done, finish, queue};

thread_local! {
    static ENTERED: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

#[derive(Clone, Default)]
struct Span {
    name: &'static str,
    parent: Option<u64>,
    fields: HashMap<&'static str, String>,
}

impl Visit for Span {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.fields.insert(field.name(), format!("{value:?}"));
    }
}

/// Keeps the spans of the library and of this test.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<Span>>>);

impl Kept {
    fn named(&self, name: &str) -> Vec<Span> {
        let spans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        spans.iter().filter(|span| span.name == name).cloned().collect()
    }
}

impl Subscriber for Kept {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_span() && ["corelane", "program"].contains(&metadata.target())
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let parent = ENTERED.with_borrow(|entered| entered.last().copied());
        let mut span = Span { name: attributes.metadata().name(), parent, fields: HashMap::new() };
        attributes.record(&mut span);
        let mut spans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        spans.push(span);
        Id::from_u64(spans.len() as u64)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {}

    fn enter(&self, span: &Id) {
        ENTERED.with_borrow_mut(|entered| entered.push(span.into_u64()));
    }

    fn exit(&self, span: &Id) {
        let left = ENTERED.with_borrow_mut(Vec::pop);
        assert_eq!(left, Some(span.into_u64()));
    }
}

#[test]
fn spans_of_a_traced_command_lie_under_one_that_names_its_trace() {
    let kept = Kept::default();
    tracing::subscriber::set_global_default(kept.clone()).unwrap();
    let receiver = Receiver::start();
    let run = |tracer: OtelTracer, name: &'static str| {
        let tracer = Arc::new(tracer);
        let manager = queue(LaneConfig::new(1, 1), Some(&tracer), None);
        let work = move || async move {
            corelane::yield_now().await;
            match name {
                "traced" => drop(tracing::info_span!(target: "program", "traced")),
                "silent" => drop(tracing::info_span!(target: "program", "silent")),
                _ => drop(tracing::info_span!(target: "program", "untraced")),
            }
            Ok(())
        };
        done(manager.submit_fn("work", "closure", work).unwrap()).unwrap();
        finish(&manager);
        tracer.shutdown();
    };
    let alone = || OtelTracer::otlp(receiver.url()).unwrap();
    run(alone().ratio(1.0), "traced");
    run(alone().ratio(1.0).with_tracing_spans(false), "silent");
    run(alone(), "untraced");

    let parent = kept.named("traced")[0].parent.unwrap();
    let command = kept.0.lock().unwrap()[usize::try_from(parent).unwrap() - 1].clone();
    assert_eq!(command.name, "command");
    assert_eq!((command.fields["lane"].as_str(), command.fields["attempt"].as_str()), ("\"work\"", "1"));
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let spans = receiver.spans();
    let execute = spans.iter().find(|span| hex(&span.span_id) == command.fields["span_id"]).unwrap();
    assert_eq!(
        (execute.name.as_str(), hex(&execute.trace_id)),
        ("a3s.lane.execute", command.fields["trace_id"].clone())
    );
    for without in ["silent", "untraced"] {
        assert_eq!(kept.named(without)[0].parent, None, "{without}");
    }
}
