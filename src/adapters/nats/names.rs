//! What the queue's parts are called in the server: streams, buckets and subjects.
//!
//! | name | what |
//! |---|---|
//! | `KV_<queue>-state` | the register: the state of each command, the keys in use, and the list of streams |
//! | `KV_<queue>-ended` | commands that have ended, for who asks again; forgotten by age |
//! | `KV_<queue>-keys` | idempotency keys of commands that have ended; forgotten by age |
//! | `KV_<queue>-results` | results that are kept |
//! | `<queue>-dead` | dead letters |
//! | `<queue>-q<n>` | the commands of the `n`th pair of lane and priority; one subject each, one consumer for each partition |
//!
//! Lanes, ids and keys may be any text: streams have numbers, and subjects are written in [`token`]s.

use std::fmt::Write as _;

/// The names of one queue.
#[derive(Clone, Debug)]
pub(super) struct Names {
    queue: String,
}

/// A bucket: a stream that keeps the last value of each subject, by the conventions of NATS' key-value stores.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    pub(super) stream: String,
    prefix: String,
}

impl Bucket {
    fn new(bucket: &str) -> Self {
        Self { stream: format!("KV_{bucket}"), prefix: format!("$KV.{bucket}.") }
    }

    pub(super) fn all(&self) -> String {
        format!("{}>", self.prefix)
    }

    pub(super) fn subject(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }
}

impl Names {
    pub(super) fn new(namespace: &str) -> Self {
        Self { queue: namespace.to_owned() }
    }

    pub(super) fn state(&self) -> Bucket {
        Bucket::new(&format!("{}-state", self.queue))
    }

    pub(super) fn ended(&self) -> Bucket {
        Bucket::new(&format!("{}-ended", self.queue))
    }

    pub(super) fn keys(&self) -> Bucket {
        Bucket::new(&format!("{}-keys", self.queue))
    }

    pub(super) fn results(&self) -> Bucket {
        Bucket::new(&format!("{}-results", self.queue))
    }

    pub(super) fn dead(&self) -> String {
        format!("{}-dead", self.queue)
    }

    pub(super) fn letter(&self, id: &str) -> String {
        format!("corelane.{}.dead.{}", self.queue, token(id))
    }

    pub(super) fn letters(&self) -> String {
        format!("corelane.{}.dead.*", self.queue)
    }

    /// Where a message lies as it was that could not be read.
    pub(super) fn damaged(&self, what: &str) -> String {
        format!("corelane.{}.damaged.{what}", self.queue)
    }

    pub(super) fn stream(&self, number: usize) -> String {
        format!("{}-q{number}", self.queue)
    }

    /// The number of such a stream.
    pub(super) fn number(&self, stream: &str) -> Option<usize> {
        stream.strip_prefix(&self.queue)?.strip_prefix("-q")?.parse().ok()
    }

    pub(super) fn commands(&self, number: usize) -> String {
        format!("corelane.{}.q.{number}.>", self.queue)
    }

    pub(super) fn partition(&self, number: usize, partition: usize) -> String {
        format!("corelane.{}.q.{number}.{partition}.*", self.queue)
    }

    pub(super) fn command(&self, number: usize, partition: usize, id: &str) -> String {
        format!("corelane.{}.q.{number}.{partition}.{}", self.queue, token(id))
    }

    /// Where handles tell each other that there may be something to take; the last word is the partition, or `results`.
    pub(super) fn wake(&self, what: &str) -> String {
        format!("corelane.{}.wake.{what}", self.queue)
    }
}

/// Under what the register keeps a command.
pub(super) fn of_command(id: &str) -> String {
    format!("c.{}", token(id))
}

/// Under what the register keeps an idempotency key.
pub(super) fn of_key(key: &str) -> String {
    format!("k.{}", token(key))
}

/// Any text as one word of a subject: other bytes than letters, digits, `-` and `_` as `=` and two hex digits.
pub(super) fn token(text: &str) -> String {
    let mut token = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' {
            token.push(char::from(byte));
        } else {
            // Writing to a string can not fail.
            let _ = write!(token, "={byte:02X}");
        }
    }
    token
}

#[cfg(all(test, not(corelane_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_one_word_and_no_two_texts_have_the_same() {
        assert_eq!(token("order-17_x"), "order-17_x");
        assert_eq!(token("a.b *>=ü"), "a=2Eb=20=2A=3E=3D=C3=BC");
        assert_ne!(token("a.b"), token("a=2Eb"));
    }
}
