//! What went wrong, and what follows from it: whether the server may have done it, and whether to try again.

use std::error::Error as _;

use tokio_postgres::Error;
use tokio_postgres::error::SqlState;

use crate::error::DistributedError;

/// What is wrong with a standby.
pub(super) const STANDBY: &str = "it is a standby, which takes no commands: use the primary server";

/// An attempt that has failed.
#[derive(Clone, Debug)]
pub(super) enum Failure {
    /// Nothing was changed, and the next attempt may work.
    Unchanged(String),
    /// Nothing was changed, since it is a standby. While another one takes its place, a server may be one for a moment.
    Standby,
    /// The answer did not come: it may have been done.
    Unknown(String),
    /// Nothing was changed, and trying again is of no use.
    Final(DistributedError),
}

impl Failure {
    /// What to say if there is no other attempt.
    pub(super) fn into_error(self, server: &str) -> DistributedError {
        let server = server.to_owned();
        match self {
            Self::Unchanged(cause) => DistributedError::Unavailable { server, cause },
            Self::Standby => DistributedError::Unavailable { server, cause: STANDBY.to_owned() },
            Self::Unknown(cause) => DistributedError::OutcomeUnknown { server, cause },
            Self::Final(error) => error,
        }
    }
}

/// Of a connection that could not be made.
pub(super) fn connect_failure(server: &str, error: &Error) -> Failure {
    if error.as_db_error().is_some() {
        return failure(server, error);
    }
    let io = error.source().and_then(|source| source.downcast_ref::<std::io::Error>());
    match io {
        // So TLS says that it does not trust the server.
        Some(io) if io.kind() == std::io::ErrorKind::InvalidData => refused(server, format!("TLS: {io}")),
        Some(_) => Failure::Unchanged(describe(error)),
        None if error.is_closed() => Failure::Unchanged(describe(error)),
        // No password where one is wanted, no TLS there: as it will be the next time.
        None => refused(server, describe(error)),
    }
}

/// Of a statement that was sent.
pub(super) fn failure(server: &str, error: &Error) -> Failure {
    let Some(said) = error.as_db_error() else {
        return Failure::Unknown(describe(error));
    };
    let code = said.code();
    let cause = describe(error);
    let server = server.to_owned();
    match code.code().get(..2).unwrap_or_default() {
        "28" => Failure::Final(DistributedError::Refused { server, cause }),
        _ if *code == SqlState::INSUFFICIENT_PRIVILEGE => Failure::Final(DistributedError::Refused { server, cause }),
        // Two got in each other's way, and this one was undone.
        _ if *code == SqlState::T_R_DEADLOCK_DETECTED || *code == SqlState::T_R_SERIALIZATION_FAILURE => {
            Failure::Unchanged(cause)
        }
        // It took as long as all attempts may, and was undone.
        _ if *code == SqlState::QUERY_CANCELED => Failure::Final(DistributedError::Unavailable { server, cause }),
        _ if *code == SqlState::LOCK_NOT_AVAILABLE => {
            Failure::Unchanged(format!("it waits for somebody's transaction: {cause}"))
        }
        _ if *code == SqlState::READ_ONLY_SQL_TRANSACTION => Failure::Unchanged(cause),
        _ if *code == SqlState::TOO_MANY_CONNECTIONS || *code == SqlState::CANNOT_CONNECT_NOW => {
            Failure::Unchanged(cause)
        }
        "53" => Failure::Final(DistributedError::Full(cause)),
        // The server goes down, or has gone: whether before or after the commit, it does not say.
        "57" | "08" => Failure::Unknown(cause),
        _ => Failure::Final(DistributedError::Server { server, cause }),
    }
}

fn refused(server: &str, cause: String) -> Failure {
    Failure::Final(DistributedError::Refused { server: server.to_owned(), cause })
}

/// What the server says, without its details: these may have data in them.
fn describe(error: &Error) -> String {
    match (error.as_db_error(), error.source()) {
        (Some(said), _) => format!("{} ({})", said.message(), said.code().code()),
        (None, Some(source)) => format!("{error}: {source}"),
        (None, None) => error.to_string(),
    }
}

/// Whether a statement was forgotten by the server, or what it goes by has changed.
pub(super) fn must_be_prepared_anew(error: &Error) -> bool {
    error
        .code()
        .is_some_and(|code| *code == SqlState::INVALID_SQL_STATEMENT_NAME || *code == SqlState::FEATURE_NOT_SUPPORTED)
}
