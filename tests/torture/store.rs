//! The store of a child: the embedded one, watched, and made to lie where a control asks for that.

use async_trait::async_trait;
use corelane::{
    Change, Durability, LocalStorage, Recovery, Result, StartMark, Storage, StorageCapabilities, StorageHealth,
    StoredCommand, StoredDeadLetter,
};
use futures::executor::block_on;
use serde::{Deserialize, Serialize};

use crate::process::Place;
use crate::report::{Event, report};

/// What a store has that no process has open.
pub(crate) fn stored(place: &Place) -> (Vec<StoredCommand>, Vec<StoredDeadLetter>) {
    block_on(async {
        let storage = LocalStorage::new(place.store()).await.expect("the store can be opened");
        let commands = storage.load_commands().await.expect("its commands can be read");
        let letters = storage.load_dead_letters().await.expect("its dead letters can be read");
        storage.close().await.expect("it can be closed");
        (commands, letters)
    })
}

/// What a store says that is not so. Each must be found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Lie {
    None,
    /// That a command is stored, before it is committed.
    Accepted,
    /// That the end of a command is stored, before it is committed.
    Ended,
    /// That it notes which commands run.
    Marked,
}

pub(crate) struct Watched {
    pub(crate) inner: LocalStorage,
    pub(crate) lie: Lie,
    pub(crate) ids: std::sync::Mutex<std::collections::HashMap<StartMark, String>>,
}

impl Watched {
    pub(crate) fn new(inner: LocalStorage, lie: Lie) -> Self {
        Self { inner, lie, ids: std::sync::Mutex::default() }
    }

    fn is_lie(&self, change: &Change) -> bool {
        match change {
            Change::Save(_) => self.lie == Lie::Accepted,
            Change::Remove { .. } | Change::GiveUp(_) => self.lie == Lie::Ended,
            _ => false,
        }
    }
}

#[async_trait]
impl Storage for Watched {
    async fn save_command(&self, command: StoredCommand) -> Result<()> {
        self.inner.save_command(command).await
    }

    async fn load_commands(&self) -> Result<Vec<StoredCommand>> {
        self.inner.load_commands().await
    }

    async fn remove_command(&self, id: &str) -> Result<()> {
        self.inner.remove_command(id).await
    }

    async fn save_dead_letter(&self, letter: StoredDeadLetter) -> Result<()> {
        self.inner.save_dead_letter(letter).await
    }

    async fn load_dead_letters(&self) -> Result<Vec<StoredDeadLetter>> {
        self.inner.load_dead_letters().await
    }

    async fn clear_dead_letters(&self) -> Result<()> {
        self.inner.clear_dead_letters().await
    }

    async fn clear_all(&self) -> Result<()> {
        self.inner.clear_all().await
    }

    fn capabilities(&self) -> StorageCapabilities {
        self.inner.capabilities()
    }

    async fn apply(&self, changes: Vec<Change>, durability: Durability) -> Result<()> {
        // Handed over, and not waited for.
        let lies = changes.iter().any(|change| self.is_lie(change));
        self.inner.apply(changes, if lies { Durability::Relaxed } else { durability }).await
    }

    async fn recover(&self) -> Result<Recovery> {
        self.inner.recover().await
    }

    async fn load_page(&self, after: Option<&StoredCommand>, limit: usize) -> Result<Vec<StoredCommand>> {
        self.inner.load_page(after, limit).await
    }

    fn mark_started(&self, id: &str) -> Option<StartMark> {
        report(&Event::Marking { id: id.to_owned() });
        if self.lie == Lie::Marked {
            return None;
        }
        let mark = self.inner.mark_started(id)?;
        self.ids.lock().expect("nothing panics under it").insert(mark, id.to_owned());
        Some(mark)
    }

    fn unmark(&self, mark: StartMark) {
        // Before the mark is free for another command.
        let id = self.ids.lock().expect("nothing panics under it").remove(&mark);
        self.inner.unmark(mark);
        if let Some(id) = id {
            report(&Event::Unmarked { id });
        }
    }

    fn health(&self) -> StorageHealth {
        self.inner.health()
    }

    async fn probe(&self) -> Result<()> {
        self.inner.probe().await
    }

    async fn flush(&self) -> Result<()> {
        self.inner.flush().await
    }

    async fn finish(&self) -> Result<()> {
        self.inner.finish().await
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}
