//! Secrets: where they come from, and that nothing shows them.

use std::env;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// More is not a secret but a wrong path.
const MAX_BYTES: u64 = 64 << 10;

/// Stands for a secret wherever one would be shown.
pub(crate) const REDACTED: &str = "[redacted]";

/// A key, a token, or an address that nobody else may know: given as a value, or by where it is.
///
/// An environment variable or a file is read when a sink is built or a connection made, which fails if it is not there, and again each time it is used:
/// a file may be replaced while the process runs (rename the new one over it). Line ends at its end are not part of it.
///
/// [`Debug`](fmt::Debug), [`Display`](fmt::Display) and [`Serialize`] show where it comes from, never what it is. What is sent
/// can not be hidden from the HTTP client's own log: keep the log target `ureq` above the level `trace`.
///
/// ```
/// use corelane::Secret;
///
/// assert_eq!(Secret::from_env("SLACK_WEBHOOK_URL").to_string(), "$SLACK_WEBHOOK_URL");
/// assert_eq!(Secret::from_file("/run/secrets/slack").to_string(), "/run/secrets/slack");
/// assert_eq!(Secret::new("xoxb-1234").to_string(), "[redacted]");
/// ```
///
/// In a settings file it is `{"env": "NAME"}`, `{"file": "/path"}` or, better avoided, `{"value": "..."}`.
#[derive(Clone)]
pub struct Secret(Source);

#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Source {
    Value(String),
    Env(String),
    File(PathBuf),
}

impl Secret {
    /// The secret itself.
    #[must_use]
    pub fn new(value: impl Into<String>) -> Self {
        Self(Source::Value(value.into()))
    }

    /// The value of the environment variable `name`.
    #[must_use]
    pub fn from_env(name: impl Into<String>) -> Self {
        Self(Source::Env(name.into()))
    }

    /// The contents of the file at `path`, without line ends at its end: at most 64 KiB of UTF-8.
    #[must_use]
    pub fn from_file(path: impl Into<PathBuf>) -> Self {
        Self(Source::File(path.into()))
    }

    /// The secret, as it is now; or what keeps it from being read, which may be shown.
    pub(crate) fn read(&self) -> Result<String, String> {
        let value = match &self.0 {
            Source::Value(value) => value.clone(),
            Source::Env(name) => env::var(name).map_err(|error| match error {
                env::VarError::NotPresent => format!("the environment variable {name} is not set"),
                env::VarError::NotUnicode(_) => format!("the environment variable {name} is not UTF-8"),
            })?,
            Source::File(path) => {
                let mut text = String::new();
                let read = File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text));
                let read = read.map_err(|error| format!("{} can not be read: {error}", path.display()))?;
                if read as u64 > MAX_BYTES {
                    return Err(format!("{} has more than {MAX_BYTES} bytes", path.display()));
                }
                text.trim_end_matches(['\r', '\n']).to_owned()
            }
        };
        if value.is_empty() { Err(format!("{self} is empty")) } else { Ok(value) }
    }
}

impl From<String> for Secret {
    fn from(value: String) -> Self {
        Self::new(value)
    }
}

impl From<&str> for Secret {
    fn from(value: &str) -> Self {
        Self::new(value)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Value(_) => f.write_str(REDACTED),
            Source::Env(name) => write!(f, "${name}"),
            Source::File(path) => write!(f, "{}", path.display()),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({self})")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Source::Value(_) => Source::Value(REDACTED.to_owned()).serialize(serializer),
            source => source.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Source::deserialize(deserializer)? {
            Source::Value(value) if value == REDACTED => {
                Err(D::Error::custom("the secret was taken out of this text: give it again"))
            }
            source => Ok(Self(source)),
        }
    }
}
