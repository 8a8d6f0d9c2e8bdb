//! What lies where: fifteen keys for each queue, and no more, however many commands, lanes and partitions it has.
//!
//! | key | type | what |
//! |---|---|---|
//! | `meta` | hash | version and number of partitions; the last number and the last fence that were given |
//! | `commands` | hash | id: the command, as JSON (`record`) |
//! | `states` | hash | id: what changes of it (see `scripts/prelude.lua`) |
//! | `ready` | sorted set | partition, lane, priority, place, id; all of one score, so in the order of their bytes |
//! | `since` | sorted set | partition, ready since, id; the same way |
//! | `times` | sorted set | what happens by itself, by its time: ends of delays and leases, expiries |
//! | `counts` | hash | how many are delayed, leased, dead in a partition; leased of a lane |
//! | `dead` | sorted set | ids of dead letters, in the order in which they have died |
//! | `keyed` | hash | idempotency key: its command |
//! | `ended` | hash | id of a command that is gone: its last fence; id and fence of a lease: what has ended it |
//! | `results` | hash | id: how it has ended |
//! | `forget` | sorted set | what of the three before is to be forgotten, by its time |
//! | `limits` | hash | lane: its limits, and what was taken of its rate |
//! | `starts` | sorted set | lane and time of what was taken, where a sliding window counts it |
//! | `damaged` | hash | id: a state that could not be read, as it was |
//!
//! All have one hash tag, the queue's name: so in a Redis Cluster a queue lies in one slot, with all its partitions. It has to: an
//! id and an idempotency key is one in all partitions, and so is a limit; who keeps these promises must see all of them in one
//! step. What it costs: a queue is as fast as one server. Several queues spread over a cluster by their names.

/// Their names, in the order in which scripts know them.
const NAMES: [&str; 15] = [
    "meta", "commands", "states", "ready", "since", "times", "counts", "dead", "keyed", "ended", "results", "forget",
    "limits", "starts", "damaged",
];

/// The keys of a queue.
pub(super) fn keys(namespace: &str) -> [String; 15] {
    NAMES.map(|name| format!("corelane:{{{namespace}}}:{name}"))
}

/// The channel on which it is told that something was put in, or that there is room. Named like a key, and none.
pub(super) fn channel(namespace: &str) -> String {
    format!("corelane:{{{namespace}}}:stirred")
}
