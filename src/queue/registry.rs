//! How commands that are data are made again, by type.

use std::collections::HashMap;
use std::fmt;

use serde_json::Value;

use super::durable::guarded;
use crate::error::{LaneError, Result};

type Make<T> = Box<dyn Fn(u32, Value) -> Result<Box<T>> + Send + Sync>;

struct Constructor<T: ?Sized> {
    /// The latest version that it reads.
    version: u32,
    make: Make<T>,
}

/// Constructors of `T`.
pub(crate) struct Registry<T: ?Sized> {
    constructors: HashMap<String, Constructor<T>>,
    /// Types that were given more than once.
    doubles: Vec<String>,
}

/// Why a command can not be made again.
pub(crate) enum Unmade {
    UnknownType,
    TooNew { version: u32, known: u32 },
    Undecodable(LaneError),
}

impl fmt::Display for Unmade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownType => f.write_str("its type is not registered: add with_durable or with_constructor"),
            Self::TooNew { version, known } => {
                write!(f, "its payload is of version {version}, and this program reads up to {known}")
            }
            Self::Undecodable(error) => write!(f, "it can not be read: {error}"),
        }
    }
}

impl<T: ?Sized> Registry<T> {
    /// `make` reads payloads of versions up to this one.
    pub(crate) fn add(
        &mut self,
        command_type: String,
        version: u32,
        make: impl Fn(u32, Value) -> Result<Box<T>> + Send + Sync + 'static,
    ) {
        let before = self.constructors.insert(command_type.clone(), Constructor { version, make: Box::new(make) });
        if before.is_some() {
            self.doubles.push(command_type);
        }
    }

    pub(crate) fn doubles(&self) -> &[String] {
        &self.doubles
    }

    pub(super) fn is_empty(&self) -> bool {
        self.constructors.is_empty()
    }

    pub(super) fn knows(&self, command_type: &str) -> bool {
        self.constructors.contains_key(command_type)
    }

    /// Makes a command again. Calls others' code, which may panic.
    pub(crate) fn make(&self, command_type: &str, version: u32, payload: Value) -> Result<Box<T>, Unmade> {
        let constructor = self.constructors.get(command_type).ok_or(Unmade::UnknownType)?;
        let known = constructor.version;
        if version > known {
            return Err(Unmade::TooNew { version, known });
        }
        guarded(|| (constructor.make)(version, payload)).map_err(Unmade::Undecodable)
    }
}

impl<T: ?Sized> Default for Registry<T> {
    fn default() -> Self {
        Self { constructors: HashMap::new(), doubles: Vec::new() }
    }
}

impl<T: ?Sized> fmt::Debug for Registry<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.constructors.keys()).finish()
    }
}
