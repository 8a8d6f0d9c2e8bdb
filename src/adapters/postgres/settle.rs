//! How leases are ended: each on its own terms, and those that come at the same time together.
//!
//! The server makes an end durable before it acknowledges it, which takes as long for many as for one. So there is one statement
//! under way at a time, and what comes meanwhile goes with the next one.

use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_lite::FutureExt as _;
use tokio::sync::oneshot;

use super::connection::{Connection, Parameters, Repeat};
use super::record::{micros, sendable};
use super::shared::{MESSAGE_MAX, position};
use super::sql::Query;
use crate::distributed::{AckOutcome, CommandResult, DeadReason, ID_MEMORY, LeaseToken, Nack};
use crate::error::DistributedError;

/// How a lease is to end.
pub(super) struct Settlement {
    token: LeaseToken,
    action: Action,
    delay: Duration,
    /// As JSON.
    reason: Option<String>,
    /// As JSON.
    result: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    Done = 0,
    Dead = 1,
    Release = 2,
    Retry = 3,
}

impl Settlement {
    fn new(token: LeaseToken, action: Action) -> Self {
        Self { token, action, delay: Duration::ZERO, reason: None, result: None }
    }

    pub(super) fn ended(token: LeaseToken, result: CommandResult) -> Self {
        let result = CommandResult { command_id: token.command_id().to_owned(), ..result };
        let json = json(&result);
        let ended = match result.result {
            Ok(_) => Self::new(token, Action::Done),
            Err(error) => Self::dead(token, &DeadReason::Failed(error)),
        };
        Self { result: Some(json), ..ended }
    }

    pub(super) fn dead(token: LeaseToken, reason: &DeadReason) -> Self {
        Self { reason: Some(json(reason)), ..Self::new(token, Action::Dead) }
    }

    pub(super) fn back(token: LeaseToken, nack: Nack) -> Self {
        match nack {
            Nack::Release => Self::new(token, Action::Release),
            Nack::RetryAfter { delay, error } => {
                Self { delay, reason: Some(json(&DeadReason::Failed(error))), ..Self::new(token, Action::Retry) }
            }
        }
    }

    /// Whether others may take the command then.
    pub(super) fn readies(&self) -> bool {
        matches!(self.action, Action::Release | Action::Retry)
    }

    fn size(&self) -> usize {
        let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        self.token.command_id().len() + length(&self.reason) + length(&self.result)
    }
}

/// Of values that have no maps with keys other than texts: those can always be written.
fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

type Outcome = Result<AckOutcome, DistributedError>;

/// Where settlements wait for each other.
#[derive(Default)]
pub(super) struct Settling {
    waiting: Mutex<Vec<(Settlement, oneshot::Sender<Outcome>)>>,
    /// Who has it sends what is waiting.
    turn: tokio::sync::Mutex<()>,
}

impl Settling {
    /// One answer for each; none where the thread has ended.
    pub(super) async fn settle(&self, connection: &Connection, settlements: Vec<Settlement>) -> Vec<Option<Outcome>> {
        let mut answers = Vec::with_capacity(settlements.len());
        let asked = settlements.into_iter().map(|settlement| {
            let (tell, answer) = oneshot::channel();
            answers.push(answer);
            (settlement, tell)
        });
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).extend(asked);
        let mut answered = pin!(async {
            let mut outcomes = Vec::with_capacity(answers.len());
            for answer in answers {
                outcomes.push(answer.await.ok());
            }
            outcomes
        });
        let done = async { Next::Done(answered.as_mut().await) };
        let turn = async { Next::Turn(self.turn.lock().await) };
        match done.or(turn).await {
            // Who had the turn before has sent them.
            Next::Done(outcomes) => return outcomes,
            Next::Turn(_turn) => {
                // All that is there by now; what comes later is for the next turn.
                let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
                send_all(connection, waiting).await;
            }
        }
        answered.await
    }
}

/// What comes first for a call.
enum Next<'a> {
    Done(Vec<Option<Outcome>>),
    Turn(tokio::sync::MutexGuard<'a, ()>),
}

async fn send_all(connection: &Connection, mut waiting: Vec<(Settlement, oneshot::Sender<Outcome>)>) {
    while !waiting.is_empty() {
        let later = waiting.split_off(message(&waiting));
        let (settlements, tell): (Vec<_>, Vec<_>) = std::mem::replace(&mut waiting, later).into_iter().unzip();
        for (tell, outcome) in tell.into_iter().zip(send_apart(connection, &settlements).await) {
            // Who does not wait any more does not want to know.
            drop(tell.send(outcome));
        }
    }
}

/// How many go in the next message: at least one.
fn message(waiting: &[(Settlement, oneshot::Sender<Outcome>)]) -> usize {
    let mut bytes = 0;
    let many = waiting.iter().take_while(|(settlement, _)| {
        bytes += settlement.size();
        bytes <= MESSAGE_MAX
    });
    many.count().max(1)
}

/// Sends a message, and where the server can not do all of it, each half of it by itself: so one that it can not do is no harm to
/// the others.
async fn send_apart(connection: &Connection, settlements: &[Settlement]) -> Vec<Outcome> {
    let mut outcomes = Vec::with_capacity(settlements.len());
    let mut parts = vec![settlements];
    while let Some(part) = parts.pop() {
        let sent = send(connection, part).await;
        if part.len() > 1 && matches!(sent.first(), Some(Err(DistributedError::Server { .. }))) {
            let (first, second) = part.split_at(part.len() / 2);
            parts.extend([second, first]);
        } else {
            outcomes.extend(sent);
        }
    }
    outcomes
}

async fn send(connection: &Connection, settlements: &[Settlement]) -> Vec<Outcome> {
    let many = settlements.len();
    let (mut ids, mut fences, mut actions) = (Vec::new(), Vec::new(), Vec::new());
    let (mut delays, mut reasons, mut results) = (Vec::new(), Vec::new(), Vec::new());
    for Settlement { token, action, delay, reason, result } in settlements {
        ids.push(sendable(token.command_id()));
        fences.push(i64::try_from(token.fence()).unwrap_or(-1));
        actions.push(*action as i16);
        delays.push(micros(*delay));
        reasons.push(reason.as_deref());
        results.push(result.as_deref());
    }
    let parameters: Parameters<'_> = vec![
        Box::new(ids),
        Box::new(fences),
        Box::new(actions),
        Box::new(delays),
        Box::new(reasons),
        Box::new(results),
        Box::new(micros(ID_MEMORY)),
    ];
    let rows = match connection.call(Query::Settle, &parameters, Repeat::Yes).await {
        Ok(rows) => rows,
        Err(error) => return vec![Err(error); many],
    };
    let mut outcomes = vec![Err(connection.strange()); many];
    for row in &rows {
        if let Some(outcome) = position(row).and_then(|at| outcomes.get_mut(at)) {
            *outcome = Ok(match row.get::<_, i16>("outcome") {
                0 => AckOutcome::Applied,
                1 => AckOutcome::AlreadyApplied,
                _ => AckOutcome::LeaseLost,
            });
        }
    }
    outcomes
}
