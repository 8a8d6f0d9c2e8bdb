//! What is measured.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Backend {
    Redis,
    Postgres,
    Nats,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Contender {
    Corelane,
    Plain,
    Apalis,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Enqueue a batch, claim one, acknowledge it, and again: by each process, with the calls of the queue.
    Calls,
    /// Everything is enqueued, in batches, and then worked off by whole workers.
    Workers,
}

/// What is done at a time: the processes that share the queue, and how many commands each call is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    pub backend: Backend,
    pub kind: Kind,
    pub batch: u64,
    pub processes: u64,
}

/// Of one process.
#[derive(Debug, Serialize, Deserialize)]
pub struct Task {
    pub work: Work,
    pub contender: Contender,
    pub url: String,
    /// Of this run alone.
    pub namespace: String,
    /// Which of the processes, from 0.
    pub process: u64,
    /// Commands that it enqueues; with [`Kind::Calls`] also that it claims and ends.
    pub share: u64,
}

/// What the command line asks for.
#[derive(Debug, Default)]
pub struct Selection {
    pub quick: bool,
    /// Of the work's name.
    pub part: String,
}

pub const BACKENDS: [Backend; 3] = [Backend::Redis, Backend::Postgres, Backend::Nats];
pub const BATCHES: [u64; 3] = [1, 16, 128];
pub const PROCESSES: [u64; 3] = [1, 2, 4];

impl Backend {
    pub fn name(self) -> &'static str {
        match self {
            Self::Redis => "Redis",
            Self::Postgres => "PostgreSQL",
            Self::Nats => "NATS",
        }
    }
}

impl Contender {
    pub fn name(self) -> &'static str {
        match self {
            Self::Corelane => "corelane",
            Self::Plain => "plain client",
            Self::Apalis => "apalis",
        }
    }
}

impl Kind {
    pub const ALL: [Self; 2] = [Self::Calls, Self::Workers];

    pub fn name(self) -> &'static str {
        match self {
            Self::Calls => "calls",
            Self::Workers => "workers",
        }
    }
}

impl Work {
    /// As `redis/calls-16x2`: 16 at a time, two processes.
    pub fn name(&self) -> String {
        let Self { backend, kind, batch, processes } = self;
        format!("{}/{}-{batch}x{processes}", backend.name().to_lowercase(), kind.name())
    }

    pub fn contenders(&self) -> Vec<Contender> {
        match (self.kind, self.backend) {
            (Kind::Calls, _) => vec![Contender::Corelane, Contender::Plain],
            (Kind::Workers, Backend::Nats) => vec![Contender::Corelane],
            (Kind::Workers, _) => vec![Contender::Corelane, Contender::Apalis],
        }
    }

    /// Commands of all processes together: enough to last some tenths of a second.
    pub fn commands(&self) -> u64 {
        match (self.batch, self.backend) {
            (1, _) => 800,
            (16, Backend::Nats) => 3_200,
            (16, _) | (_, Backend::Nats) => 6_400,
            _ => 12_800,
        }
    }

    /// All there is, those whose names contain `part`.
    pub fn all(part: &str) -> Vec<Self> {
        let mut all = Vec::new();
        for backend in BACKENDS {
            for kind in Kind::ALL {
                for batch in BATCHES {
                    all.extend(PROCESSES.map(|processes| Self { backend, kind, batch, processes }));
                }
            }
        }
        all.retain(|work| work.name().contains(part));
        all
    }
}
