//! The spans of a command.
//!
//! ```text
//! the submitter's span
//! └ a3s.lane.enqueue    producer: from the submission to the first start
//!   └ a3s.lane.execute  consumer: one for each attempt, current while it is polled
//!     └ a3s.lane.complete   internal: from the end of the last attempt until the command had settled
//! ```
//!
//! A span that others lie under, in another thread or process, must have its id from the beginning: `enqueue` and `execute`
//! begin when their time does, with the wall clock's word, and end with the queue's times once the command has settled.
//! Attributes that are known only then are set then.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};
use opentelemetry::baggage::{BaggageExt, KeyValueMetadata};
use opentelemetry::trace::{
    Link, SpanBuilder, SpanContext, SpanId, SpanKind, SpanRef, Status, TraceContextExt, TraceFlags, TraceId,
    TraceState, Tracer as _, TracerProvider,
};
use opentelemetry::{Context, InstrumentationScope, KeyValue, global};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, Sampler, SdkTracerProvider};

use super::encode::SCOPE;
use super::endpoint::{OtlpEndpoint, Signal};
use super::send::{OtlpError, OtlpStats, Sender};
use super::spans::Spans;
use crate::clock;
use crate::trace::{EndedCommand, TraceContext, TraceOutcome, Traced, TracedAttempt, Tracer, names};

/// For how long [`OtelTracer::shutdown`] waits.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(15);

/// Makes spans of commands, for [`QueueManagerBuilder::with_tracer`](crate::QueueManagerBuilder::with_tracer): with a provider
/// that the program has ([`OtelTracer::new`], [`OtelTracer::global`]), or alone ([`OtelTracer::otlp`]).
///
/// **Which commands.** Those whose parent is traced: the context that their options name, or else the OpenTelemetry context
/// that is current where they are submitted. Commands without a parent by [`OtelTracer::ratio`]: none unless asked for. And
/// after the fact, of what was not traced: [slow](OtelTracer::slow_after) and [failed](OtelTracer::failures) ones. The
/// provider's own sampler has the last word. A command that is not traced costs a look at the current context.
///
/// **Which spans.** `a3s.lane.enqueue`, `a3s.lane.execute` for each attempt, `a3s.lane.complete`. While a command is polled, its
/// execute span's context is current, with the submitter's baggage: spans that it makes lie under it. So do spans of the
/// crate `tracing` through `tracing-opentelemetry`.
///
/// **Attributes.** `lane_name`, `priority`, `wait_time_ms`, `execution_time_ms`, `attempt`, `outcome`, `error.type`, and
/// a3s-lane's (`a3s.lane.command_id` and so on; see [`telemetry`](crate::telemetry)).
pub struct OtelTracer {
    start: Start,
    own: Option<Own>,
    ratio: f64,
    slow_after: Option<Duration>,
    failures: bool,
    first_attempt: TraceParent,
    retries: TraceParent,
    messaging: bool,
    tracing: bool,
}

/// Starts a span and gives the parent's context with it.
type Start = Box<dyn Fn(SpanBuilder, &Context) -> Context + Send + Sync>;

/// How an attempt belongs to the submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TraceParent {
    /// As a child: in its trace. For submitters that await the result.
    Child,
    /// By a link, in a trace of its own. For what goes on long after the submitter's trace has ended.
    Link,
}

/// A provider that nobody else has.
#[derive(Debug)]
struct Own {
    provider: SdkTracerProvider,
    sender: Arc<Sender>,
}

/// What is kept with a traced command.
struct Command {
    lane: Arc<str>,
    enqueue: Context,
    attempts: Vec<Attempt>,
    settled: bool,
}

struct Attempt {
    attempt: u32,
    context: Context,
    /// Of the crate `tracing`; none if not asked for.
    span: tracing::Span,
}

impl OtelTracer {
    /// With a provider that the program has.
    pub fn new<P>(provider: &P) -> Self
    where
        P: TracerProvider,
        P::Tracer: Send + Sync + 'static,
        <P::Tracer as opentelemetry::trace::Tracer>::Span: Send + Sync + 'static,
    {
        let tracer = provider.tracer_with_scope(scope());
        Self::with(Box::new(move |span, parent| parent.with_span(tracer.build_with_context(span, parent))))
    }

    /// With the global provider: that which is set when a command is traced, also if that is later than now.
    #[must_use]
    pub fn global() -> Self {
        Self::with(Box::new(|span, parent| {
            parent.with_span(global::tracer_with_scope(scope()).build_with_context(span, parent))
        }))
    }

    /// Alone: sends to this OTLP receiver, by HTTP and protobuf, in batches, from a thread of the SDK. Beside a global
    /// provider, which it does not touch; to make it the global one, so that other spans of the program go the same way, set
    /// its [provider](OtelTracer::provider).
    ///
    /// Call [`OtelTracer::shutdown`] before the program ends, or the last spans may be lost.
    ///
    /// ```no_run
    /// use std::sync::Arc;
    /// use corelane::OtelTracer;
    ///
    /// let tracer = Arc::new(OtelTracer::otlp("http://localhost:4318")?.ratio(0.01));
    /// // ... give clones of it to queues, and at the end:
    /// tracer.shutdown();
    /// # Ok::<(), corelane::OtlpError>(())
    /// ```
    ///
    /// # Errors
    /// Settings or variables of the environment that are not usable.
    pub fn otlp(endpoint: impl Into<OtlpEndpoint>) -> Result<Self, OtlpError> {
        let endpoint = endpoint.into();
        let sender = Arc::new(Sender::new(endpoint.target(Signal::Traces)?));
        let provider = SdkTracerProvider::builder()
            // Which commands are traced is decided here.
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::AlwaysOn)))
            .with_resource(endpoint.resource())
            .with_batch_exporter(Spans::new(Arc::clone(&sender)))
            .build();
        let mut tracer = Self::new(&provider);
        tracer.own = Some(Own { provider, sender });
        Ok(tracer)
    }

    fn with(start: Start) -> Self {
        Self {
            start,
            own: None,
            ratio: 0.0,
            slow_after: None,
            failures: false,
            first_attempt: TraceParent::Child,
            retries: TraceParent::Link,
            messaging: false,
            tracing: true,
        }
    }

    /// Traces this share, from 0 to 1, of the commands that have no parent. Default: 0.
    #[must_use]
    pub fn ratio(mut self, ratio: f64) -> Self {
        self.ratio = ratio;
        self
    }

    /// Also tells of commands whose last attempt ran for this long, although they were not traced. Their spans are a trace of
    /// their own, with the last attempt only. Default: none.
    #[must_use]
    pub fn slow_after(mut self, run: Duration) -> Self {
        self.slow_after = Some(run);
        self
    }

    /// Also tells of commands that failed (error, panic, timeout, expired), although they were not traced, as with
    /// [`OtelTracer::slow_after`]. Default: no.
    #[must_use]
    pub fn failures(mut self, failures: bool) -> Self {
        self.failures = failures;
        self
    }

    /// How first attempts belong to the submission. Default: [`TraceParent::Child`].
    #[must_use]
    pub fn first_attempt(mut self, parent: TraceParent) -> Self {
        self.first_attempt = parent;
        self
    }

    /// How retries belong to the submission. Default: [`TraceParent::Link`], to it and to the attempt before. A linked span is a
    /// root: the provider's sampler decides anew.
    #[must_use]
    pub fn retries(mut self, parent: TraceParent) -> Self {
        self.retries = parent;
        self
    }

    /// Adds attributes of OpenTelemetry's conventions for messaging (`messaging.*`), which are not stable yet. Default: no.
    #[must_use]
    pub fn with_messaging_semconv(mut self, messaging: bool) -> Self {
        self.messaging = messaging;
        self
    }

    /// Also has a span of the crate `tracing` (`command`, target `corelane`, level INFO) around the polls of traced commands,
    /// with lane, attempt and the trace's ids: log lines have them then. Where a layer of `tracing-opentelemetry` takes all
    /// spans, this one is exported as well, between the execute span and the command's own; filter it by its target, or say
    /// `false`. Default: yes.
    #[must_use]
    pub fn with_tracing_spans(mut self, spans: bool) -> Self {
        self.tracing = spans;
        self
    }

    /// The provider of a tracer that is [alone](OtelTracer::otlp); none of one that was given a provider.
    #[must_use]
    pub fn provider(&self) -> Option<SdkTracerProvider> {
        self.own.as_ref().map(|own| own.provider.clone())
    }

    /// What a tracer that is [alone](OtelTracer::otlp) has sent; none of one that was given a provider. Spans that come faster
    /// than they are sent are dropped by the SDK's batch processor, which warns of it; they are not in these numbers.
    #[must_use]
    pub fn stats(&self) -> Option<OtlpStats> {
        self.own.as_ref().map(|own| own.sender.stats())
    }

    /// Sends what there is, and no more after that. Waits for it, 15 s at most. Not for workers. Does nothing to a provider
    /// that was given.
    pub fn shutdown(&self) {
        let Some(own) = &self.own else { return };
        own.sender.close();
        // What could not be sent is in `stats`; that it was shut down before is no matter.
        let _ = own.provider.shutdown_with_timeout(SHUTDOWN_PATIENCE);
    }

    /// The context to trace a submission in; none if it is not traced.
    fn parent(&self, named: Option<&TraceContext>) -> Option<Context> {
        if let Some(named) = named {
            let context = remote(named);
            return context.is_sampled().then(|| Context::new().with_remote_span_context(context));
        }
        let current = Context::current();
        if current.has_active_span() && current.span().span_context().is_valid() {
            return current.span().span_context().is_sampled().then_some(current);
        }
        let random = || u64::from_be_bytes(RandomIdGenerator::default().new_span_id().to_bytes());
        (self.ratio > 0.0 && (random() as f64) < self.ratio * u64::MAX as f64).then_some(current)
    }

    fn enqueue(&self, lane: &str, parent: &Context, at: SystemTime) -> Context {
        let span = SpanBuilder::from_name(names::SPAN_LANE_ENQUEUE)
            .with_kind(SpanKind::Producer)
            .with_start_time(at)
            .with_attributes(lane_attributes(lane));
        (self.start)(span, parent)
    }

    fn execute(&self, spans: &Command, attempt: u32, at: SystemTime) -> Context {
        let mut span =
            SpanBuilder::from_name(names::SPAN_LANE_EXECUTE).with_kind(SpanKind::Consumer).with_start_time(at);
        let relation = if attempt <= 1 { self.first_attempt } else { self.retries };
        let context = match relation {
            TraceParent::Child => spans.enqueue.clone(),
            TraceParent::Link => {
                let linked = [Some(&spans.enqueue), spans.attempts.last().map(|attempt| &attempt.context)];
                let links = linked.into_iter().flatten();
                span = span.with_links(links.map(|of| Link::with_context(of.span().span_context().clone())).collect());
                // Without a span, even an empty one: samplers would take that for a parent that is not sampled.
                let baggage = spans.enqueue.baggage().iter();
                let baggage = baggage
                    .map(|(key, (value, about))| KeyValueMetadata::new(key.clone(), value.clone(), about.clone()));
                Context::new().with_baggage(baggage)
            }
        };
        (self.start)(span, &context)
    }

    fn finish(&self, spans: &mut Command, command: &EndedCommand<'_>) {
        spans.settled = true;
        let first_start = command.attempts.first().map(|attempt| attempt.started);
        let waited = milliseconds(command.submitted, first_start.unwrap_or(command.settled));
        let of_all = self.attributes(command);

        let span = spans.enqueue.span();
        span.set_attributes(of_all.iter().cloned());
        span.set_attribute(KeyValue::new("wait_time_ms", waited));
        self.messaging(&span, command, "send");
        span.end_with_timestamp(first_start.unwrap_or(command.settled).into());

        for Attempt { attempt, context, .. } in &spans.attempts {
            let span = context.span();
            let ended = command.attempts.iter().find(|ended| ended.attempt == *attempt);
            span.set_attributes(lane_attributes(command.lane));
            span.set_attributes(of_all.iter().cloned());
            span.set_attribute(KeyValue::new("attempt", i64::from(*attempt)));
            span.set_attribute(KeyValue::new(names::ATTR_RETRY_ATTEMPT, i64::from(attempt.saturating_sub(1))));
            span.set_attribute(KeyValue::new("wait_time_ms", waited));
            self.messaging(&span, command, "process");
            let outcome = ended.map_or(command.outcome, |ended| ended.outcome);
            let error = ended.map_or(command.error, |ended| ended.error.as_deref());
            set_outcome(&span, outcome, error);
            let Some(TracedAttempt { started, ended, .. }) = ended else {
                span.end_with_timestamp(command.settled.into());
                continue;
            };
            span.set_attribute(KeyValue::new("execution_time_ms", milliseconds(*started, *ended)));
            span.end_with_timestamp((*ended).into());
        }

        let parent = spans.attempts.last().map_or(&spans.enqueue, |attempt| &attempt.context);
        let last_end = command.attempts.last().map_or(command.settled, |attempt| attempt.ended);
        let span = SpanBuilder::from_name(names::SPAN_LANE_COMPLETE)
            .with_kind(SpanKind::Internal)
            .with_start_time(last_end)
            .with_attributes(lane_attributes(command.lane));
        let complete = (self.start)(span, parent);
        let span = complete.span();
        span.set_attributes(of_all);
        span.set_attribute(KeyValue::new("wait_time_ms", waited));
        if let Some(last) = command.attempts.last() {
            span.set_attribute(KeyValue::new("attempt", i64::from(last.attempt)));
            span.set_attribute(KeyValue::new("execution_time_ms", milliseconds(last.started, last.ended)));
        }
        set_outcome(&span, command.outcome, command.error);
        self.messaging(&span, command, "settle");
        span.end_with_timestamp(command.settled.into());
    }

    /// Of the command, not of an attempt; without the lane, which a sampler may want to see at the start.
    fn attributes(&self, command: &EndedCommand<'_>) -> Vec<KeyValue> {
        vec![
            KeyValue::new("priority", i64::from(command.priority)),
            KeyValue::new(names::ATTR_COMMAND_ID, command.id.to_string()),
            KeyValue::new(names::ATTR_COMMAND_TYPE, command.command_type.to_owned()),
        ]
    }

    fn messaging(&self, span: &SpanRef<'_>, command: &EndedCommand<'_>, operation: &'static str) {
        if self.messaging {
            span.set_attributes([
                KeyValue::new("messaging.system", SCOPE),
                KeyValue::new("messaging.operation.name", operation),
                KeyValue::new("messaging.operation.type", operation),
                KeyValue::new("messaging.destination.name", command.lane.to_owned()),
                KeyValue::new("messaging.message.id", command.id.to_string()),
            ]);
        }
    }
}

impl Tracer for OtelTracer {
    fn accept(&self, lane: &str, parent: Option<&TraceContext>) -> Option<Traced> {
        let parent = self.parent(parent)?;
        let enqueue = self.enqueue(lane, &parent, clock::wall_now().into());
        // Another sampler may have said no.
        let sampled = enqueue.span().span_context().is_sampled();
        sampled
            .then(|| Box::new(Command { lane: lane.into(), enqueue, attempts: Vec::new(), settled: false }) as Traced)
    }

    fn begin(&self, traced: &mut Traced, attempt: u32) {
        let Some(spans) = traced.downcast_mut::<Command>() else { return };
        let context = self.execute(spans, attempt, clock::wall_now().into());
        let span = if self.tracing {
            // Has its parent from what is current now.
            let _current = context.clone().attach();
            let ids = context.span().span_context().clone();
            let (trace_id, span_id) = (ids.trace_id(), ids.span_id());
            tracing::info_span!(target: "corelane", "command", lane = &*spans.lane, attempt, %trace_id, %span_id)
        } else {
            tracing::Span::none()
        };
        spans.attempts.push(Attempt { attempt, context, span });
    }

    fn during(&self, traced: &Traced, poll: &mut dyn FnMut()) {
        let Some(attempt) = traced.downcast_ref::<Command>().and_then(|spans| spans.attempts.last()) else {
            return poll();
        };
        let _current = attempt.context.clone().attach();
        let _entered = attempt.span.enter();
        poll();
    }

    fn wants(&self, outcome: TraceOutcome, run: Duration) -> bool {
        let failed = matches!(
            outcome,
            TraceOutcome::Error | TraceOutcome::Panic | TraceOutcome::Timeout | TraceOutcome::Expired
        );
        self.failures && failed || self.slow_after.is_some_and(|slow| run >= slow)
    }

    fn ended(&self, traced: Option<Traced>, command: &EndedCommand<'_>) {
        if let Some(mut spans) = traced.and_then(|traced| traced.downcast::<Command>().ok()) {
            return self.finish(&mut spans, command);
        }
        // After the fact: what thread this is on says nothing about the command.
        let enqueue = self.enqueue(command.lane, &Context::new(), command.submitted.into());
        if !enqueue.span().is_recording() {
            return;
        }
        let mut spans = Command { lane: command.lane.into(), enqueue, attempts: Vec::new(), settled: false };
        for TracedAttempt { attempt, started, .. } in command.attempts {
            // One trace: nobody waits for a submitter's to end.
            let execute = SpanBuilder::from_name(names::SPAN_LANE_EXECUTE)
                .with_kind(SpanKind::Consumer)
                .with_start_time(*started);
            let context = (self.start)(execute, &spans.enqueue);
            spans.attempts.push(Attempt { attempt: *attempt, context, span: tracing::Span::none() });
        }
        self.finish(&mut spans, command);
    }
}

impl Drop for Command {
    /// Without having settled: it was not accepted.
    fn drop(&mut self) {
        if !self.settled {
            let span = self.enqueue.span();
            span.set_attribute(KeyValue::new("error.type", "refused"));
            span.set_status(Status::error("the lane did not accept the command"));
            span.end_with_timestamp(clock::wall_now().into());
        }
    }
}

impl Drop for OtelTracer {
    /// The SDK's provider waits when it goes, and a tracer goes with the last queue, on a worker perhaps.
    fn drop(&mut self) {
        let Some(own) = self.own.take() else { return };
        // Holds a clone of the provider's insides.
        self.start = Box::new(|_, parent| parent.clone());
        let end = std::thread::Builder::new().name("corelane-otlp-end".into());
        // Without a thread it goes here.
        let _ = end.spawn(move || drop(own));
    }
}

impl fmt::Debug for OtelTracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OtelTracer")
            .field("sender", &self.own.as_ref().map(|own| &own.sender))
            .field("ratio", &self.ratio)
            .field("slow_after", &self.slow_after)
            .field("failures", &self.failures)
            .finish_non_exhaustive()
    }
}

fn scope() -> InstrumentationScope {
    InstrumentationScope::builder(SCOPE).with_version(env!("CARGO_PKG_VERSION")).build()
}

fn remote(context: &TraceContext) -> SpanContext {
    let state = context.state.as_deref().and_then(|state| state.parse::<TraceState>().ok()).unwrap_or_default();
    let flags = TraceFlags::default().with_sampled(context.sampled);
    let (trace, span) = (TraceId::from_bytes(context.trace_id), SpanId::from_bytes(context.span_id));
    SpanContext::new(trace, span, flags, true, state)
}

fn lane_attributes(lane: &str) -> [KeyValue; 2] {
    let lane: Arc<str> = lane.into();
    [KeyValue::new("lane_name", Arc::clone(&lane)), KeyValue::new(names::ATTR_LANE_NAME, lane)]
}

fn set_outcome(span: &SpanRef<'_>, outcome: TraceOutcome, error: Option<&str>) {
    let ok = outcome == TraceOutcome::Ok;
    span.set_attribute(KeyValue::new("outcome", outcome.as_str()));
    span.set_attribute(KeyValue::new(names::ATTR_SUCCESS, ok));
    if !ok {
        span.set_attribute(KeyValue::new("error.type", outcome.as_str()));
        span.set_status(Status::error(error.unwrap_or(outcome.as_str()).to_owned()));
    }
}

fn milliseconds(from: DateTime<Utc>, to: DateTime<Utc>) -> f64 {
    (to - from).to_std().unwrap_or_default().as_secs_f64() * 1e3
}
