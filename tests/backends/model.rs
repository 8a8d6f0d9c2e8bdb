//! Whether a queue does what the reference does: the same calls to both, at random, and the same answers from both.
//!
//! Without what goes by time: delays and leases are long, and do not end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use corelane::testing::distributed::Queue;
use corelane::{
    AckOutcome, Claim, CommandEnvelope, CommandResult, DeadPage, DeadReason, DistributedError, EnqueueOptions,
    GlobalLimits, LaneError, LeaseToken, Leased, LocalDistributedQueue, Nack, PartitionConfig,
};
use serde_json::json;

pub(crate) const PARTITIONS: usize = 2;
const LANES: [&str; 3] = ["a", "b b", "ü"];

/// Makes so many calls, as the seed says, to a queue of [`PARTITIONS`] that is empty.
pub(crate) async fn agrees_with_the_reference(queue: Queue, seed: u64, calls: usize) {
    let local: Queue = Arc::new(LocalDistributedQueue::new(PartitionConfig::round_robin(PARTITIONS)));
    let mut world =
        World { chance: seed, sent: Vec::new(), leased: Vec::new(), ended: BTreeMap::new(), both: [local, queue] };
    for call in 0..calls {
        let (what, answers) = world.call().await;
        let [expected, got] = answers;
        assert_eq!(got, expected, "call {call} of seed {seed}: {what}");
    }
}

struct World {
    chance: u64,
    sent: Vec<CommandEnvelope>,
    /// What was taken, by the reference and by the other: their fences need not be the same.
    leased: Vec<[LeaseToken; 2]>,
    /// What has ended these leases, by the reference's token.
    ended: BTreeMap<(String, u64), (usize, bool)>,
    /// The reference, and the other.
    both: [Queue; 2],
}

impl World {
    /// One of so many.
    fn any(&mut self, of: usize) -> usize {
        // SplitMix64.
        self.chance = self.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.chance;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % of as u64) as usize
    }

    /// A call at random: what it was, and both answers.
    async fn call(&mut self) -> (String, [String; 2]) {
        match self.any(20) {
            0..=5 => self.enqueue().await,
            6..=9 => self.claim().await,
            10..=14 => self.settle().await,
            15 => self.limit().await,
            16 => self.replay_or_discard().await,
            17 => self.extend().await,
            18 => self.letters().await,
            _ => self.depth().await,
        }
    }

    async fn enqueue(&mut self) -> (String, [String; 2]) {
        let old = (!self.sent.is_empty() && self.any(8) == 0).then(|| self.any(self.sent.len()));
        let mut envelope = match old {
            // The same again, or another one of the same id.
            Some(old) => self.sent[old].clone(),
            None => {
                let lane = LANES[self.any(LANES.len())];
                let payload = json!(self.any(3));
                CommandEnvelope { partition_id: self.any(PARTITIONS), ..CommandEnvelope::new("sample", lane, payload) }
            }
        };
        if old.is_some() && self.any(3) == 0 {
            envelope.payload = json!("another");
        }
        let mut options = EnqueueOptions::new();
        if self.any(2) == 0 {
            options = options.priority(self.any(3) as u8);
        }
        if self.any(3) == 0 {
            options = options.idempotency_key(format!("key {}", self.any(6)));
        }
        if self.any(3) == 0 {
            options = options.max_deliveries(1 + self.any(2) as u32);
        }
        if self.any(4) == 0 {
            options = options.keep_result(Duration::from_secs(600));
        }
        if self.any(8) == 0 {
            options = options.delay(Duration::from_secs(3600));
        }
        self.sent.push(envelope.clone());
        let mut answers = Vec::new();
        for queue in &self.both {
            answers.push(answer(queue.enqueue_with(envelope.clone(), options.clone()).await));
        }
        (format!("enqueue {envelope:?} {options:?}"), pair(answers))
    }

    async fn claim(&mut self) -> (String, [String; 2]) {
        let partition = self.any(PARTITIONS);
        let mut claim = Claim::new(self.any(5)).lease(Duration::from_secs(3600));
        for _ in 0..self.any(3) {
            claim = claim.lane(LANES[self.any(LANES.len())], self.any(4));
        }
        let mut taken = Vec::new();
        for queue in &self.both {
            taken.push(queue.dequeue_leased(partition, claim.clone()).await.expect("commands can be taken"));
        }
        let shown = |leased: &[Leased]| {
            let one = |Leased { envelope, delivery, priority, .. }: &Leased| {
                format!("{} {} {delivery} {priority} {}", envelope.id, envelope.payload, envelope.retry_count)
            };
            leased.iter().map(one).collect::<Vec<_>>().join("; ")
        };
        let answers = taken.iter().map(|leased| shown(leased)).collect();
        let tokens = taken[0].iter().zip(&taken[1]).map(|(one, other)| [one.token.clone(), other.token.clone()]);
        self.leased.extend(tokens);
        (format!("claim of {partition}: {claim:?}"), pair(answers))
    }

    /// Tokens of a lease, which may have ended long ago.
    fn lease(&mut self) -> Option<[LeaseToken; 2]> {
        if self.leased.is_empty() {
            return None;
        }
        let newest = self.leased.len();
        let back = if self.any(4) == 0 { self.any(newest) } else { self.any(newest.min(8)) };
        Some(self.leased[newest - 1 - back].clone())
    }

    async fn settle(&mut self) -> (String, [String; 2]) {
        let Some(tokens) = self.lease() else { return Default::default() };
        let (how, failed) = (self.any(6), self.any(3) == 0);
        let act = (how.min(3), how >= 3 && failed);
        let lease = (tokens[0].command_id().to_owned(), tokens[0].fence());
        let is_again = self.ended.get(&lease) == Some(&act);
        let mut answers = Vec::new();
        for (queue, token) in self.both.iter().zip(&tokens) {
            let command_id = token.command_id().to_owned();
            let result = if failed { Err("it has failed".to_owned()) } else { Ok(json!("done")) };
            let result = CommandResult { command_id, result, worker_id: "w".to_owned(), duration_ms: 1 };
            let outcome = match how {
                0 => queue.nack(token, Nack::Release).await,
                1 => queue.nack(token, Nack::RetryAfter { delay: Duration::ZERO, error: "again".to_owned() }).await,
                2 => queue.dead_letter(token, DeadReason::Failed("ü".to_owned())).await,
                _ => queue.ack(token, result).await,
            };
            let outcome = match outcome {
                // Who does the same again may hear that it was done, for longer than the reference remembers it.
                Ok(AckOutcome::LeaseLost) if is_again => Ok(AckOutcome::AlreadyApplied),
                outcome => outcome,
            };
            if matches!(outcome, Ok(AckOutcome::Applied)) {
                self.ended.insert(lease.clone(), act);
            }
            let result = queue.result(token.command_id(), Duration::ZERO).await;
            answers.push(format!("{} {}", answer(outcome), answer(result)));
        }
        (format!("settle {} ({how}, {failed})", tokens[0].command_id()), pair(answers))
    }

    async fn extend(&mut self) -> (String, [String; 2]) {
        let Some(tokens) = self.lease() else { return Default::default() };
        let mut answers = Vec::new();
        for (queue, token) in self.both.iter().zip(&tokens) {
            answers.push(answer(queue.extend(token, Duration::from_secs(3600)).await));
        }
        (format!("extend {}", tokens[0].command_id()), pair(answers))
    }

    async fn limit(&mut self) -> (String, [String; 2]) {
        let lane = LANES[self.any(LANES.len())];
        let limits = match self.any(3) {
            0 => GlobalLimits::none().max_leased(1 + self.any(6)),
            _ => GlobalLimits::none(),
        };
        let mut answers = Vec::new();
        for queue in &self.both {
            answers.push(answer(queue.set_limits(lane, limits.clone()).await));
        }
        (format!("limit {lane} to {limits:?}"), pair(answers))
    }

    async fn replay_or_discard(&mut self) -> (String, [String; 2]) {
        if self.sent.is_empty() {
            return Default::default();
        }
        let id = self.any(self.sent.len());
        let (id, replays) = (self.sent[id].id.clone(), self.any(3) > 0);
        let mut answers = Vec::new();
        for queue in &self.both {
            answers.push(answer(if replays { queue.replay(&id).await } else { queue.discard(&id).await }));
        }
        (format!("replay ({replays}) of {id}"), pair(answers))
    }

    async fn letters(&mut self) -> (String, [String; 2]) {
        let limit = 1 + self.any(200);
        let mut answers = Vec::new();
        for queue in &self.both {
            let letters = queue.dead_letters(DeadPage::first(limit)).await.expect("dead letters can be read");
            let shown = letters.into_iter().map(|letter| {
                let envelope = letter.envelope;
                format!("{} {} {:?} {}", envelope.id, envelope.retry_count, letter.reason, letter.deliveries)
            });
            answers.push(shown.collect::<Vec<_>>().join("; "));
        }
        (format!("{limit} letters"), pair(answers))
    }

    async fn depth(&mut self) -> (String, [String; 2]) {
        let partition = self.any(PARTITIONS);
        let mut answers = Vec::new();
        for queue in &self.both {
            let depth = queue.depth(partition).await.expect("depth is known");
            let has = BTreeMap::from([
                ("ready", depth.ready),
                ("delayed", depth.delayed),
                ("leased", depth.leased),
                ("dead", depth.dead),
                ("oldest", usize::from(depth.oldest_ready.is_some())),
            ]);
            answers.push(format!("{has:?}"));
        }
        (format!("depth of {partition}"), pair(answers))
    }
}

fn answer<T: std::fmt::Debug>(result: corelane::Result<T>) -> String {
    match result {
        Ok(value) => format!("{value:?}"),
        Err(LaneError::Distributed(
            error @ (DistributedError::OutcomeUnknown { .. } | DistributedError::Unavailable { .. }),
        )) => {
            panic!("the server was there all the time: {error}")
        }
        Err(error) => error.to_string(),
    }
}

fn pair(answers: Vec<String>) -> [String; 2] {
    answers.try_into().expect("there are two queues")
}
