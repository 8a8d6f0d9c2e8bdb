//! Admission: what takes a command from its lane's line to a run queue, and what brings a permit back.
//!
//! | file | what it knows |
//! |---|---|
//! | `limit/gate` | how many wait and run; closed, held, throttled |
//! | `queue/line` | who is next |
//! | `queue/keys` | who waits for others of its key |
//! | `queue/nested` | permits of commands that wait for commands |
//! | `admit` | who is taken, and in which order the limits are asked |
//! | `count` | what is accepted and not settled, and whether there is room |
//! | `loans`, `shared` | permits that are lent; a limit that lanes share |
//! | `end` | closing, stopping, making room |
//! | `settings`, `notice` | what the lane is told, and what it tells |
//!
//! The order is: waiting, permit, alive, rate limit, claim. So a lane without work or without a permit takes nothing of its
//! rate, nor does a command that has ended.
//!
//! A command may stand in the line and be taken from elsewhere. Its entry is then *dead*: it stays, counted as waiting,
//! until it comes to the head or is swept. `apart` sets this right: commands accepted that are not in the line (delayed, in their
//! backoff, behind others of their key) count +1, dead entries count -1. What is pending is waiting + apart.

mod admit;
mod count;
mod end;
mod loans;
mod notice;
mod settings;
mod shared;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use arc_swap::ArcSwap;
use event_listener::Event;

use crate::clock::Tick;
use crate::event::{EventEmitter, Frequent, FrequentKind, Transition};
use crate::executor::{Ambient, Executor, Home, TimerKey};
use crate::id::CommandId;
use crate::limit::gate::{Gate, GateStatus};
use crate::metrics::{LaneMeter, QueueMetrics};
use crate::queue::Priority;
use crate::queue::command_queue::QueueCore;
use crate::queue::config::LaneConfig;
use crate::queue::dead_letter::DeadLetterQueue;
use crate::queue::durable::Store;
use crate::queue::explain::Waits;
use crate::queue::keys::{Key, Keys, Queued};
use crate::queue::lanes::LaneNumber;
use crate::queue::line::{Line, Place};
use crate::queue::nested::Nested;
use crate::queue::partition::Partitions;
use crate::queue::settle::contained;
use crate::queue::vacancy::Vacancy;
use crate::storage::Durability;
use crate::sync::OwnLine;
use crate::trace::Tracer;

use count::BIAS;
use end::RUNNING;
pub(super) use settings::Settings;
pub(super) use shared::SharedPool;

pub(super) struct LaneCore {
    /// Itself, for timers.
    this: Weak<Self>,
    pub(super) id: Arc<str>,
    pub(super) priority: Priority,
    pub(super) settings: ArcSwap<Settings>,
    /// What [`Settings::is_plain`] says of them. To load the settings costs four times per command; most lanes are plain.
    plain: AtomicBool,
    /// Written by every command, while the rest is read.
    gate: OwnLine<Gate>,
    line: Line,
    keys: Keys,
    /// Made for the first command that awaits another one.
    nested: OnceLock<Box<Mutex<Nested<Queued, Place>>>>,
    /// See the module's header: `BIAS` + the number, and above it a count of its changes.
    apart: AtomicU64,
    /// Dead entries, here and behind keys. Only decides when to sweep.
    dead: AtomicI64,
    sweeping: AtomicBool,
    /// Memory that waiting commands hold; only in lanes that limit it.
    bytes: AtomicUsize,
    /// Submissions that wait for room.
    pub(super) room: Event,
    /// Commands that were shed and have not settled: they take no room.
    leaving: AtomicUsize,
    /// When the rate limit is to be asked again, as its last refusal said.
    retry_at: AtomicU64,
    /// What wakes the lane then. At most one, however often the limit is changed.
    throttle_timer: Mutex<Option<TimerKey>>,
    stopping: AtomicU8,
    /// When the queue began to stop.
    stop_began: AtomicU64,
    random: AtomicU64,
    updating: Mutex<()>,
    cancelled: AtomicUsize,
    /// Commands that were cancelled because their queue stops, and stay stored.
    kept: AtomicUsize,
    drain_timeouts: AtomicBool,
    /// Set when the lane is registered.
    context: OnceLock<Arc<LaneContext>>,
    /// Set before that, if the queue is measured.
    meter: OnceLock<Arc<LaneMeter>>,
    /// When the rate limit began to hold commands back; 0 while it does not. Only in lanes that are measured.
    throttled_since: AtomicU64,
    number: OnceLock<LaneNumber>,
    /// Made for the first command that is to be explained.
    pub(super) waits: OnceLock<Box<Mutex<Waits>>>,
}

/// What a lane gets from the queue that it is registered with: the same for all its lanes.
pub(super) struct LaneContext {
    pub(super) executor: Executor,
    pub(super) events: EventEmitter,
    pub(super) ambient: Option<Arc<dyn Ambient>>,
    pub(super) dead_letters: Option<DeadLetterQueue>,
    pub(super) pool: Option<Arc<SharedPool>>,
    pub(super) queue: Weak<QueueCore>,
    pub(super) store: Option<Arc<Store>>,
    pub(super) metrics: Option<QueueMetrics>,
    pub(super) tracer: Option<Arc<dyn Tracer>>,
    /// Commands have homes among the workers.
    pub(super) partitions: Option<Partitions>,
    pub(super) vacancy: Vacancy,
}

impl LaneContext {
    /// The worker that a command belongs to, if its queue is partitioned.
    pub(super) fn home_of<'a>(&self, key: Option<&Key>, command_type: impl FnOnce() -> &'a str) -> Option<Home> {
        let partitions = self.partitions.as_ref()?;
        let partition = contained(|| Some(partitions.of(key, command_type())))?;
        Some(self.executor.shared().home_of(partition))
    }

    /// The store of a lane with these settings, and how durable its commands are there; none if they are in memory.
    pub(super) fn durable(&self, settings: &Settings) -> Option<(&Arc<Store>, Durability)> {
        let durability = settings.config.durability.unwrap_or(Durability::Synced);
        let store = self.store.as_ref().filter(|_| durability != Durability::Memory)?;
        Some((store, durability))
    }

    /// Tells what every command tells, if somebody wants it. Not of a command whose type panics.
    #[inline]
    pub(super) fn tell<'a>(
        &self,
        kind: FrequentKind,
        lane: &Arc<str>,
        id: CommandId,
        nanos: impl FnOnce() -> u64,
        command_type: impl FnOnce() -> &'a str,
    ) {
        if self.events.wants(kind) {
            self.tell_wanted(kind, lane, id, nanos(), command_type);
        }
    }

    // Not inlined: where nobody listens, the way of a command is to stay short.
    #[inline(never)]
    fn tell_wanted<'a>(
        &self,
        kind: FrequentKind,
        lane: &Arc<str>,
        id: CommandId,
        nanos: u64,
        command_type: impl FnOnce() -> &'a str,
    ) {
        if let Some(command_type) = contained(|| Some(command_type())) {
            let stamp = self.executor.clock().stamp();
            self.events.frequent(Frequent { kind, id, lane, command_type, stamp, nanos });
        }
    }

    /// Whether a command in a lane with these settings has nothing that is to be remembered.
    fn allows_plain(&self, settings: &Settings) -> bool {
        let is_common = self.dead_letters.is_none() && self.tracer.is_none() && self.partitions.is_none();
        settings.is_plain() && is_common && self.durable(settings).is_none()
    }
}

impl LaneCore {
    pub(super) fn new(id: Arc<str>, config: LaneConfig, priority: Priority) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            id,
            priority,
            gate: OwnLine(Gate::new(config.max_concurrency)),
            line: Line::new(priority),
            keys: Keys::default(),
            nested: OnceLock::new(),
            apart: AtomicU64::new(BIAS),
            dead: AtomicI64::new(0),
            sweeping: AtomicBool::new(false),
            bytes: AtomicUsize::new(0),
            room: Event::new(),
            leaving: AtomicUsize::new(0),
            retry_at: AtomicU64::new(0),
            throttle_timer: Mutex::default(),
            stopping: AtomicU8::new(RUNNING),
            stop_began: AtomicU64::new(u64::MAX),
            random: AtomicU64::new(0),
            updating: Mutex::new(()),
            cancelled: AtomicUsize::new(0),
            kept: AtomicUsize::new(0),
            drain_timeouts: AtomicBool::new(false),
            settings: ArcSwap::new(Settings::shared(config)),
            // Until it is known what the queue asks.
            plain: AtomicBool::new(false),
            context: OnceLock::new(),
            meter: OnceLock::new(),
            throttled_since: AtomicU64::new(0),
            number: OnceLock::new(),
            waits: OnceLock::new(),
        })
    }

    /// Names the lane in tickets.
    #[inline]
    pub(super) fn number(&self) -> LaneNumber {
        *self.number.get_or_init(|| LaneNumber::assign(Weak::clone(&self.this)))
    }

    pub(super) fn this(&self) -> Option<Arc<Self>> {
        self.this.upgrade()
    }

    /// Binds the lane to its queue. False if it has one already.
    pub(super) fn register(&self, context: Arc<LaneContext>) -> bool {
        let plain = context.allows_plain(&self.settings.load());
        context.executor.shared().floor(self.priority, self.settings.load().config.min_concurrency > 0);
        self.random.store(context.executor.shared().seed(), Ordering::Relaxed);
        if let (Some(metrics), None) = (&context.metrics, self.context.get()) {
            self.meter.get_or_init(|| metrics.meter(&self.id));
        }
        let registered = self.context.set(context).is_ok();
        if registered {
            self.plain.store(plain, Ordering::Relaxed);
        }
        registered
    }

    #[inline]
    pub(super) fn context(&self) -> Option<&LaneContext> {
        self.context.get().map(|context| &**context)
    }

    pub(super) fn gate_status(&self) -> GateStatus {
        self.gate.status()
    }

    /// When the rate limit is to be asked again, in nanoseconds.
    pub(super) fn retry_at(&self) -> u64 {
        self.retry_at.load(Ordering::Acquire)
    }

    /// What measures the lane, if anything does.
    #[inline]
    pub(super) fn meter(&self) -> Option<&LaneMeter> {
        self.meter.get().map(|meter| &**meter)
    }

    /// Names the lane in its tasks, for who measures it.
    #[inline]
    pub(super) fn owner(&self) -> u32 {
        if self.meter.get().is_some() { self.number().as_owner() } else { 0 }
    }

    pub(super) fn dead_letters(&self) -> Option<&DeadLetterQueue> {
        self.context()?.dead_letters.as_ref()
    }

    #[inline]
    pub(super) fn ambient(&self) -> Option<&dyn Ambient> {
        self.context()?.ambient.as_deref()
    }

    #[inline]
    pub(super) fn observe(&self, make: impl FnOnce() -> Transition) {
        if let Some(context) = self.context.get() {
            context.events.observe(make);
        }
    }

    /// As [`LaneCore::observe`], of a command that has run for so long in its last attempt.
    pub(super) fn observe_timed(&self, nanos: u64, make: impl FnOnce() -> Transition) {
        if let Some(context) = self.context.get() {
            context.events.observe_timed(nanos, make);
        }
    }

    /// See [`LaneContext::tell`].
    #[inline]
    pub(super) fn tell<'a>(
        &self,
        kind: FrequentKind,
        id: CommandId,
        nanos: impl FnOnce() -> u64,
        command_type: impl FnOnce() -> &'a str,
    ) {
        if let Some(context) = self.context.get() {
            context.tell(kind, &self.id, id, nanos, command_type);
        }
    }

    pub(super) fn now(&self) -> Tick {
        self.context().map_or(Tick::from_nanos(0), |context| context.executor.clock().now())
    }

    pub(super) fn next_sequence(&self) -> u64 {
        self.line.next_sequence()
    }

    /// A random number for jitter: only has to differ from one command to the next.
    pub(super) fn next_random(&self) -> u64 {
        // splitmix64
        let mut z = self.random.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Whether the settings ask nothing of a command but a permit.
    #[inline]
    pub(super) fn is_plain(&self) -> bool {
        self.plain.load(Ordering::Relaxed)
    }
}

impl Drop for LaneCore {
    fn drop(&mut self) {
        if let Some(number) = self.number.get() {
            number.give_back();
        }
    }
}

impl fmt::Debug for LaneCore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LaneCore").field("id", &self.id).finish_non_exhaustive()
    }
}
