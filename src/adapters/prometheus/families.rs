//! The series: names, labels, and where in a reading their values stand.
//!
//! Every series of a lane is there from the lane's beginning, at 0, so that the first failure is an increase. What is counted by
//! command type has families of its own: sums over a lane's series stay those of the lane.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use crate::alert::AlertDeliveryStats;
use crate::metrics::{CommandTypeReading, Histogram, LaneReading, Reading, WorkerReading};

/// All labels that series have.
pub(super) const LABELS: &[&str] =
    &["lane", "le", "bound", "outcome", "reason", "command_type", "worker", "version", "sink", "result"];

/// One reading, encoded.
#[derive(Debug)]
pub(super) struct Families {
    reading: Arc<Reading>,
    alerts: Vec<AlertDeliveryStats>,
    bounds: Arc<[Duration]>,
}

impl Families {
    pub(super) const fn new(reading: Arc<Reading>, alerts: Vec<AlertDeliveryStats>, bounds: Arc<[Duration]>) -> Self {
        Self { reading, alerts, bounds }
    }
}

impl Collector for Families {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let reading = &*self.reading;
        let mut out = Output { encoder, bounds: &self.bounds };
        depth(&mut out, reading)?;
        flow(&mut out, reading)?;
        latency(&mut out, reading)?;
        dead_letters(&mut out, reading)?;
        workers(&mut out, reading)?;
        command_types(&mut out, reading)?;
        notifications(&mut out, &self.alerts)?;
        own(&mut out, reading)
    }
}

/// What a lane holds now.
fn depth(out: &mut Output<'_, '_>, reading: &Reading) -> fmt::Result {
    let lanes = &reading.lanes;
    out.gauges("queue_depth", "Commands accepted and not admitted.", None, by_lane(lanes, |lane| lane.pending))?;
    out.gauges("active_commands", "Commands admitted and not settled.", None, by_lane(lanes, |lane| lane.active))?;
    out.gauges(
        "delayed_commands",
        "Pending commands that wait for their time: delayed, in their backoff, or behind others of their key.",
        None,
        by_lane(lanes, |lane| lane.delayed),
    )?;
    out.gauges(
        "concurrency_limit",
        "How many commands of the lane may be active, and how many always may.",
        None,
        by_lane_and("bound", lanes, |lane| [("min", lane.min_concurrency), ("max", lane.max_concurrency)]),
    )?;
    out.gauges("paused", "Whether the lane is paused.", None, by_lane(lanes, |lane| u64::from(lane.paused)))?;
    out.gauges(
        "oldest_pending_age",
        "How long the command that has waited longest for its first start has waited; 0 if none waits.",
        Some(Unit::Seconds),
        by_lane(lanes, |lane| seconds(lane.oldest_pending)),
    )?;
    out.gauges(
        "oldest_active_age",
        "How long the attempt that has run longest has been running; 0 if none runs.",
        Some(Unit::Seconds),
        by_lane(lanes, |lane| seconds(lane.oldest_active)),
    )
}

/// What comes into a lane and what leaves it.
fn flow(out: &mut Output<'_, '_>, reading: &Reading) -> fmt::Result {
    let lanes = &reading.lanes;
    out.counters("commands_submitted", "Commands accepted.", None, by_lane(lanes, |lane| lane.submitted))?;
    out.counters("commands_started", "Attempts begun.", None, by_lane(lanes, |lane| lane.started))?;
    out.counters(
        "commands_finished",
        "Commands settled, by how.",
        None,
        by_lane_and("outcome", lanes, |lane| lane.finished.by_outcome()),
    )?;
    out.counters(
        "commands_rejected",
        "Submissions refused, by why.",
        None,
        by_lane_and("reason", lanes, |lane| lane.rejected.by_reason()),
    )?;
    out.counters(
        "command_retries",
        "Attempts that failed and were followed by another one.",
        None,
        by_lane(lanes, |lane| lane.retries),
    )?;
    out.counters(
        "priority_boosts",
        "Times that a command got a better priority while it waited.",
        None,
        by_lane(lanes, |lane| lane.boosts),
    )?;
    out.counters(
        "rate_limit_throttled",
        "How long the rate limit has held commands back.",
        Some(Unit::Seconds),
        by_lane(lanes, |lane| lane.throttled.as_secs_f64()),
    )
}

/// How long it took.
fn latency(out: &mut Output<'_, '_>, reading: &Reading) -> fmt::Result {
    let lanes = &reading.lanes;
    out.histograms(
        "command_wait",
        "How long commands waited for their first start, from their submission or from when they were due.",
        lanes.iter().map(|lane| ([("lane", &*lane.lane)], &lane.wait)).collect(),
    )?;
    out.histograms(
        "command_duration",
        "How long attempts ran.",
        lanes.iter().map(|lane| ([("lane", &*lane.lane)], &lane.run)).collect(),
    )
}

fn dead_letters(out: &mut Output<'_, '_>, reading: &Reading) -> fmt::Result {
    let lanes = &reading.lanes;
    out.counters(
        "commands_dead_lettered",
        "Commands given up and kept as dead letters, by why.",
        None,
        by_lane_and("reason", lanes, |lane| lane.dead_lettered.by_reason()),
    )?;
    out.gauges("dlq_size", "Dead letters that are kept.", None, by_lane(lanes, |lane| lane.dead_letters))?;
    out.gauges(
        "dlq_oldest_age",
        "The age of the oldest dead letter; 0 if there is none.",
        Some(Unit::Seconds),
        by_lane(lanes, |lane| seconds(lane.oldest_dead_letter)),
    )
}

fn workers(out: &mut Output<'_, '_>, reading: &Reading) -> fmt::Result {
    fn by_worker<V>(
        workers: &[WorkerReading],
        value: impl Fn(&WorkerReading) -> V,
    ) -> impl Iterator<Item = ([(&'static str, usize); 1], V)> {
        workers.iter().map(move |worker| ([("worker", worker.worker)], value(worker)))
    }
    let workers = &reading.workers;
    out.counters(
        "worker_busy",
        "How long the worker was awake.",
        Some(Unit::Seconds),
        by_worker(workers, |worker| worker.busy.as_secs_f64()),
    )?;
    out.counters("worker_polls", "Polls of tasks.", None, by_worker(workers, |worker| worker.polls))?;
    out.counters("worker_steals", "Tasks taken from other workers.", None, by_worker(workers, |worker| worker.steals))?;
    out.counters("worker_parks", "Times that it went to sleep.", None, by_worker(workers, |worker| worker.parks))?;
    out.counters("worker_stuck_polls", "Polls that lasted too long.", None, by_worker(workers, |worker| worker.stuck))
}

/// Only where types are counted: else the families would be without series.
fn command_types(out: &mut Output<'_, '_>, reading: &Reading) -> fmt::Result {
    fn types(reading: &Reading) -> impl Iterator<Item = (&LaneReading, &CommandTypeReading)> {
        reading.lanes.iter().flat_map(|lane| lane.command_types.iter().map(move |command_type| (lane, command_type)))
    }
    if types(reading).next().is_none() {
        return Ok(());
    }
    out.counters(
        "command_type_finished",
        "Commands settled, by type and by how.",
        None,
        types(reading).flat_map(|(lane, of)| {
            let outcomes = of.finished.by_outcome();
            outcomes.map(|(outcome, count)| {
                ([("lane", &*lane.lane), ("command_type", &*of.command_type), ("outcome", outcome)], count)
            })
        }),
    )?;
    out.histograms(
        "command_type_duration",
        "How long attempts ran, by command type.",
        types(reading)
            .map(|(lane, of)| ([("lane", &*lane.lane), ("command_type", &*of.command_type)], &of.run))
            .collect(),
    )
}

/// Only where there are receivers. Those of the same name together: Prometheus refuses a series that is there twice.
fn notifications(out: &mut Output<'_, '_>, alerts: &[AlertDeliveryStats]) -> fmt::Result {
    if alerts.is_empty() {
        return Ok(());
    }
    let mut counts = BTreeMap::<_, u64>::new();
    for of in alerts {
        for (result, count) in of.by_result() {
            *counts.entry((&*of.sink, result)).or_default() += count;
        }
    }
    out.counters(
        "alert_notifications",
        "Notifications of alerts, by receiver and by what became of them.",
        None,
        counts.into_iter().map(|((sink, result), count)| ([("sink", sink), ("result", result)], count)),
    )
}

/// What the library says of itself.
fn own(out: &mut Output<'_, '_>, reading: &Reading) -> fmt::Result {
    const NONE: [(&str, &str); 0] = [];
    out.counters("storage_errors", "Operations of stores that have failed.", None, [(NONE, reading.storage_errors)])?;
    out.counters(
        "events_dropped",
        "Events that subscribers have lost because they were too slow.",
        None,
        [(NONE, reading.events_dropped)],
    )?;
    let name = name("build");
    let mut family = out.encoder.encode_descriptor(&name, "The library's version.", None, MetricType::Info)?;
    family.encode_info(&[("version", env!("CARGO_PKG_VERSION"))])
}

struct Output<'a, 'e> {
    encoder: DescriptorEncoder<'e>,
    bounds: &'a [Duration],
}

impl Output<'_, '_> {
    fn gauges<L: EncodeLabelSet, V: EncodeGaugeValue>(
        &mut self,
        family: &str,
        help: &str,
        unit: Option<Unit>,
        series: impl IntoIterator<Item = (L, V)>,
    ) -> fmt::Result {
        let name = name(family);
        let mut family = self.encoder.encode_descriptor(&name, help, unit.as_ref(), MetricType::Gauge)?;
        series.into_iter().try_for_each(|(labels, value)| family.encode_family(&labels)?.encode_gauge(&value))
    }

    fn counters<L: EncodeLabelSet, V: EncodeCounterValue>(
        &mut self,
        family: &str,
        help: &str,
        unit: Option<Unit>,
        series: impl IntoIterator<Item = (L, V)>,
    ) -> fmt::Result {
        let name = name(family);
        let mut family = self.encoder.encode_descriptor(&name, help, unit.as_ref(), MetricType::Counter)?;
        series.into_iter().try_for_each(|(labels, value)| {
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)
        })
    }

    /// Histograms of durations.
    fn histograms<L: EncodeLabelSet>(&mut self, family: &str, help: &str, series: Vec<(L, &Histogram)>) -> fmt::Result {
        let name = name(family);
        let mut family = self.encoder.encode_descriptor(&name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for (labels, histogram) in series {
            let (sum, buckets) = (histogram.sum().as_secs_f64(), buckets(histogram, self.bounds));
            let mut family = family.encode_family(&labels)?;
            family.encode_histogram::<NoLabelSet>(sum, histogram.count(), &buckets, None)?;
        }
        Ok(())
    }
}

/// How many of a histogram's durations lie in each classic bucket: the first whose bound is certainly not below them.
pub(super) fn buckets(histogram: &Histogram, bounds: &[Duration]) -> Vec<(f64, u64)> {
    let uppers = bounds.iter().map(Duration::as_secs_f64).chain([f64::INFINITY]);
    let mut buckets: Vec<_> = uppers.map(|upper| (upper, 0)).collect();
    for (longest, count) in histogram.buckets() {
        buckets[bounds.partition_point(|bound| *bound < longest)].1 += count;
    }
    buckets
}

fn by_lane<V>(
    lanes: &[LaneReading],
    value: impl Fn(&LaneReading) -> V,
) -> impl Iterator<Item = ([(&'static str, &str); 1], V)> {
    lanes.iter().map(move |lane| ([("lane", &*lane.lane)], value(lane)))
}

/// Several of each lane, told apart by another label.
fn by_lane_and<'a, const N: usize, V>(
    label: &'static str,
    lanes: &'a [LaneReading],
    values: impl Fn(&LaneReading) -> [(&'static str, V); N],
) -> impl Iterator<Item = ([(&'static str, &'a str); 2], V)> {
    let of =
        move |lane: &'a LaneReading| values(lane).map(|(name, value)| ([("lane", &*lane.lane), (label, name)], value));
    lanes.iter().flat_map(of)
}

fn name(family: &str) -> String {
    format!("a3s_lane_{family}")
}

fn seconds(age: Option<Duration>) -> f64 {
    age.unwrap_or_default().as_secs_f64()
}
