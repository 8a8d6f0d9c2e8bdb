//! The scripts: each changes the queue in one step that nobody sees half of.
//!
//! Called by their hash; a server that does not know them (any more) gets their text. They need Redis 7.0, or Valkey: a script
//! says there what it may do when memory is short. `enqueue` may then not begin; all others go on, since they make room.

use std::sync::LazyLock;

use redis::Cmd;

/// Begins every script.
const PRELUDE: &str = include_str!("scripts/prelude.lua");

/// A script, and the name by which a server knows it.
pub(super) struct Script {
    text: String,
    hash: String,
}

macro_rules! scripts {
    ($($name:ident = $file:literal, $flags:literal;)*) => {
        $(pub(super) static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new($flags, include_str!(concat!("scripts/", $file, ".lua"))));)*
    };
}

scripts! {
    OPEN = "open", "";
    ENQUEUE = "enqueue", "";
    CLAIM = "claim", " flags=allow-oom";
    SETTLE = "settle", " flags=allow-oom";
    EXTEND = "extend", " flags=allow-oom";
    LETTERS = "letters", " flags=allow-oom";
    REPLAY = "replay", " flags=allow-oom";
    DISCARD = "discard", " flags=allow-oom";
    RESULT = "result", " flags=no-writes";
    LIMITS = "limits", " flags=allow-oom";
    DEPTH = "depth", " flags=allow-oom";
}

impl Script {
    fn new(flags: &str, body: &str) -> Self {
        let text = format!("#!lua{flags}\n{PRELUDE}\n{body}");
        let hash = redis::Script::new(&text).get_hash().to_owned();
        Self { text, hash }
    }

    /// The call by its hash.
    pub(super) fn by_hash(&self, keys: &[String], args: &[Vec<u8>]) -> Cmd {
        call("EVALSHA", &self.hash, keys, args)
    }

    /// The call with its text: the server knows it from then on.
    pub(super) fn by_text(&self, keys: &[String], args: &[Vec<u8>]) -> Cmd {
        call("EVAL", &self.text, keys, args)
    }
}

fn call(command: &str, script: &str, keys: &[String], args: &[Vec<u8>]) -> Cmd {
    let mut call = redis::cmd(command);
    call.arg(script).arg(keys.len()).arg(keys).arg(args);
    call
}
