//! A connection that is made again when it was lost, and calls that go on then.
//!
//! Many calls may be under way at the same time: their statements follow each other to the server without waiting for answers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::OnceCell;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, NoTls, Row, Socket, Statement};

use super::address::Address;
use super::failure::{Failure, connect_failure, failure, must_be_prepared_anew};
use super::found::Found;
use super::schema::in_schema;
use super::sql::Query;
use crate::adapters::remote::Backoff;
use crate::clock::Tick;
use crate::distributed::DistributedHealth;
use crate::error::DistributedError;
use crate::executor::now;

/// What a statement is given.
pub(super) type Parameters<'a> = Vec<Box<dyn ToSql + Send + Sync + 'a>>;

/// How long a statement waits for somebody's transaction at a time. Then it tries again, and those behind it on its connection go
/// first.
pub(super) const LOCK_TIMEOUT: Duration = Duration::from_millis(200);

/// The functions are written for statements that see what was committed before them. Plans are kept, and not to be those of small
/// tables: see the end of `schema_1.sql`.
const SETTINGS: &str = "set default_transaction_isolation = 'read committed'; set enable_seqscan = off; set jit = off";

/// Whether a call whose answer was lost is made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// It does the same as once.
    Yes,
    /// It does something else, or says so.
    No,
}

/// What all connections of a handle have in common.
pub(super) struct Server {
    /// Its address, without what is secret.
    pub(super) name: String,
    /// As an identifier.
    pub(super) schema: String,
    address: Address,
    call_timeout: Duration,
    health: Mutex<DistributedHealth>,
    found: Mutex<Found>,
}

impl Server {
    pub(super) fn new(name: String, schema: String, address: Address, call_timeout: Duration) -> Self {
        Self { name, schema, address, call_timeout, health: Mutex::default(), found: Mutex::default() }
    }

    pub(super) fn health(&self) -> DistributedHealth {
        lock(&self.health).clone()
    }

    /// What it was when it was last connected to.
    pub(super) fn found(&self) -> Found {
        lock(&self.found).clone()
    }

    /// What to say of an answer that makes no sense.
    pub(super) fn strange(&self) -> DistributedError {
        let cause = "it has answered something else than it was asked".to_owned();
        DistributedError::Server { server: self.name.clone(), cause }
    }

    pub(super) fn works(&self) {
        let mut health = lock(&self.health);
        if *health != DistributedHealth::Working {
            *health = DistributedHealth::Working;
        }
    }

    fn is_lost(&self, failure: &Failure) {
        let error = failure.clone().into_error(&self.name).to_string();
        *lock(&self.health) = DistributedHealth::Reconnecting { error };
    }

    pub(super) async fn connect(&self) -> Result<Session, Failure> {
        let session = match self.address.tls.clone() {
            Some(tls) => self.connect_by(tls).await?,
            None => self.connect_by(NoTls).await?,
        };
        // The server gives up before this side does: so it is known that nothing was changed.
        let limit = (self.call_timeout.as_millis() * 9 / 10).clamp(1, i32::MAX as u128);
        let settings =
            format!("set statement_timeout = {limit}; set lock_timeout = {}; {SETTINGS}", LOCK_TIMEOUT.as_millis());
        session.client.batch_execute(&settings).await.map_err(|error| failure(&self.name, &error))?;
        let found = Found::of(&session.client, &self.name).await?;
        *lock(&self.found) = found;
        Ok(session)
    }

    async fn connect_by<T>(&self, tls: T) -> Result<Session, Failure>
    where
        T: MakeTlsConnect<Socket>,
        T::Stream: Send + 'static,
    {
        let connected = self.address.config.connect(tls).await;
        let (client, connection) = connected.map_err(|error| connect_failure(&self.name, &error))?;
        let driver = tokio::spawn(async move {
            // Those whose calls this breaks are told by themselves.
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to PostgreSQL was lost");
            }
        });
        let statements = std::array::from_fn(|_| OnceCell::new());
        Ok(Session { client, driver: driver.abort_handle(), statements })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One connection of a handle.
pub(super) struct Connection {
    server: Arc<Server>,
    /// Those who want one while it is made wait for that.
    session: tokio::sync::Mutex<Option<Arc<Session>>>,
}

/// A connection that is there.
pub(super) struct Session {
    pub(super) client: Client,
    driver: AbortHandle,
    statements: [OnceCell<Statement>; Query::COUNT],
}

impl Connection {
    /// Not connected before it is used.
    pub(super) fn new(server: Arc<Server>) -> Self {
        Self { server, session: tokio::sync::Mutex::default() }
    }

    /// With a session that is there.
    pub(super) fn of(server: Arc<Server>, session: Session) -> Self {
        Self { server, session: tokio::sync::Mutex::new(Some(Arc::new(session))) }
    }

    pub(super) fn strange(&self) -> DistributedError {
        self.server.strange()
    }

    /// Makes attempts until one works, one fails for good, or the time is over.
    pub(super) async fn call(
        &self,
        query: Query,
        parameters: &Parameters<'_>,
        repeat: Repeat,
    ) -> Result<Vec<Row>, DistributedError> {
        self.call_until(now().plus(self.server.call_timeout), query, parameters, repeat).await
    }

    /// As [`Self::call`], after what is going to be called on another connection was made ready there: so that it is fast when its
    /// time comes.
    pub(super) async fn call_after(
        &self,
        (other, queries): (&Self, &[Query]),
        query: Query,
        parameters: &Parameters<'_>,
        repeat: Repeat,
    ) -> Result<Vec<Row>, DistributedError> {
        let limit = self.server.call_timeout;
        let end = now().plus(limit);
        let ready = async {
            let session = other.session().await?;
            for query in queries {
                let prepared = session.statement(*query, &self.server.schema).await;
                prepared.map_err(|error| failure(&self.server.name, &error))?;
            }
            Ok::<_, Failure>(())
        };
        // If not, this call is likely to say why, or the other one is.
        drop(timeout(limit / 2, ready).await);
        self.call_until(end, query, parameters, repeat).await
    }

    async fn call_until(
        &self,
        end: Tick,
        query: Query,
        parameters: &Parameters<'_>,
        repeat: Repeat,
    ) -> Result<Vec<Row>, DistributedError> {
        let mut backoff = Backoff::new();
        let mut unknown = None;
        loop {
            let failure = match self.attempt(query, parameters, end).await {
                Ok(rows) => {
                    self.server.works();
                    return Ok(rows);
                }
                Err(failure) => failure,
            };
            let lost = matches!(failure, Failure::Unknown(_));
            if lost {
                unknown = Some(failure.clone());
            }
            let wait = backoff.wait();
            if matches!(failure, Failure::Final(_)) || (lost && repeat == Repeat::No) || end.since(now()) <= wait {
                // What may have been done is not undone by attempts that were not.
                return Err(unknown.unwrap_or(failure).into_error(&self.server.name));
            }
            tokio::time::sleep(wait).await;
        }
    }

    async fn attempt(&self, query: Query, parameters: &Parameters<'_>, end: Tick) -> Result<Vec<Row>, Failure> {
        let late = || format!("no answer within {:?}", self.server.call_timeout);
        // Nothing was sent that changes anything, whatever became of it.
        let unchanged = |failure: Failure| match failure {
            Failure::Unknown(cause) => Failure::Unchanged(cause),
            failure => failure,
        };
        let session = match timeout(end.since(now()), self.session()).await {
            Ok(session) => session.map_err(unchanged),
            Err(_) => Err(Failure::Unchanged(late())),
        };
        let session = session.inspect_err(|failure| self.server.is_lost(failure))?;
        let prepared = timeout(end.since(now()), session.statement(query, &self.server.schema));
        let statement = match prepared.await {
            Ok(Ok(statement)) => statement,
            Ok(Err(error)) => return Err(unchanged(self.failed(&session, &error).await)),
            Err(_) => {
                self.forget(&session).await;
                return Err(Failure::Unchanged(late()));
            }
        };
        let parameters: Vec<_> = parameters.iter().map(|one| &**one as &(dyn ToSql + Sync)).collect();
        match timeout(end.since(now()), session.client.query(statement, &parameters)).await {
            Ok(Ok(rows)) => Ok(rows),
            Ok(Err(error)) => Err(self.failed(&session, &error).await),
            Err(_) => {
                // What comes on it later is nobody's; and it may be one that has died without a word.
                self.forget(&session).await;
                let failure = Failure::Unknown(late());
                self.server.is_lost(&failure);
                Err(failure)
            }
        }
    }

    async fn failed(&self, session: &Arc<Session>, error: &Error) -> Failure {
        let failure = failure(&self.server.name, error);
        if matches!(failure, Failure::Unknown(_)) {
            self.server.is_lost(&failure);
            self.forget(session).await;
        } else if must_be_prepared_anew(error) {
            self.forget(session).await;
            return Failure::Unchanged(error.to_string());
        }
        failure
    }

    async fn session(&self) -> Result<Arc<Session>, Failure> {
        let mut session = self.session.lock().await;
        if let Some(session) = session.as_ref().filter(|session| !session.client.is_closed()) {
            return Ok(Arc::clone(session));
        }
        let new = Arc::new(self.server.connect().await?);
        *session = Some(Arc::clone(&new));
        Ok(new)
    }

    /// The next call makes a new one.
    async fn forget(&self, session: &Arc<Session>) {
        let mut current = self.session.lock().await;
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, session)) {
            *current = None;
        }
    }
}

impl Session {
    async fn statement(&self, query: Query, schema: &str) -> Result<&Statement, Error> {
        let prepare = || async { self.client.prepare(&in_schema(query.sql(), schema)).await };
        self.statements[query as usize].get_or_try_init(prepare).await
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // By itself it would wait for all answers, and a server that has died without a word gives none.
        self.driver.abort();
    }
}
