//! A store of what is required and nothing else.

use std::collections::HashMap;
use std::sync::Mutex;

use corelane::{Result, Storage, StoredCommand, StoredDeadLetter};

#[derive(Default)]
pub(super) struct SevenMethods {
    commands: Mutex<HashMap<String, StoredCommand>>,
    letters: Mutex<Vec<StoredDeadLetter>>,
}

#[async_trait::async_trait]
impl Storage for SevenMethods {
    async fn save_command(&self, command: StoredCommand) -> Result<()> {
        self.commands.lock().unwrap().insert(command.id.clone(), command);
        Ok(())
    }

    async fn load_commands(&self) -> Result<Vec<StoredCommand>> {
        Ok(self.commands.lock().unwrap().values().cloned().collect())
    }

    async fn remove_command(&self, id: &str) -> Result<()> {
        self.commands.lock().unwrap().remove(id);
        Ok(())
    }

    async fn save_dead_letter(&self, letter: StoredDeadLetter) -> Result<()> {
        self.letters.lock().unwrap().push(letter);
        Ok(())
    }

    async fn load_dead_letters(&self) -> Result<Vec<StoredDeadLetter>> {
        Ok(self.letters.lock().unwrap().clone())
    }

    async fn clear_dead_letters(&self) -> Result<()> {
        self.letters.lock().unwrap().clear();
        Ok(())
    }

    async fn clear_all(&self) -> Result<()> {
        self.commands.lock().unwrap().clear();
        self.clear_dead_letters().await
    }
}
