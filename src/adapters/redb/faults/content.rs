//! Everything that a store contains, to be compared.

use std::collections::BTreeMap;

use crate::error::LaneError;
use crate::storage::{LOST_MAX, Recovery, Storage, StoredCommand, StoredDeadLetter, StoredResult};

/// What a store contains, without what it notes by itself: crashes and unclean ends have a time that nobody can expect.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Content {
    commands: BTreeMap<String, StoredCommand>,
    /// The oldest first.
    letters: Vec<StoredDeadLetter>,
    results: BTreeMap<String, StoredResult>,
    next_sequence: Next,
}

/// The next sequence: the same as another one, but for what is left out after unclean ends, of which a model knows nothing.
#[derive(Clone, Copy, Debug, Default)]
struct Next(u64);

impl PartialEq for Next {
    fn eq(&self, other: &Self) -> bool {
        let (low, high) = (self.0.min(other.0), self.0.max(other.0));
        // After an unclean end it is above everything that was stored before.
        low == high || high >= LOST_MAX
    }
}

impl Content {
    /// Reads all that is in a store that was just opened, in each way there is.
    pub(super) async fn recover(store: &dyn Storage) -> Result<Self, LaneError> {
        let Recovery { results, next_sequence, .. } = store.recover().await?;
        let results = results.into_iter().map(|result| (result.key.clone(), result)).collect();
        let mut content = Self { results, next_sequence: Next(next_sequence), ..Self::default() };
        content.load(store).await?;
        Ok(content)
    }

    /// Reads what can be read at any time, and takes over the rest.
    pub(super) async fn load(&mut self, store: &dyn Storage) -> Result<(), LaneError> {
        self.commands = BTreeMap::new();
        let mut pages: Vec<StoredCommand> = Vec::new();
        loop {
            let page = store.load_page(pages.last(), 3).await?;
            if page.is_empty() {
                break;
            }
            pages.extend(page);
        }
        assert!(pages.is_sorted_by_key(|command| command.sequence), "pages are out of order: {pages:?}");
        let mut at_once = store.load_commands().await?;
        at_once.sort_by_key(|command| pages.iter().position(|other| other.id == command.id));
        assert_eq!(pages, at_once, "pages and the whole differ");
        for mut command in at_once {
            command.crashes.clear();
            let twice = self.commands.insert(command.id.clone(), command);
            assert!(twice.is_none(), "{twice:?} is there twice");
        }
        self.letters = store.load_dead_letters().await?;
        Ok(())
    }

    /// What differs in another one, in a few words.
    pub(super) fn difference(&self, other: &Self) -> String {
        let ids = |content: &Self| content.commands.keys().cloned().collect::<Vec<_>>();
        let letters =
            |content: &Self| content.letters.iter().map(|letter| letter.command_id.clone()).collect::<Vec<_>>();
        let results = |content: &Self| content.results.keys().cloned().collect::<Vec<_>>();
        let parts = |content: &Self| {
            format!(
                "commands {:?}, letters {:?}, results {:?}, next {}",
                ids(content),
                letters(content),
                results(content),
                content.next_sequence.0
            )
        };
        let (own, others) = (parts(self), parts(other));
        if own == others { format!("{self:#?} and {other:#?}") } else { format!("{own} and {others}") }
    }

    /// What can be read at any time.
    pub(super) fn readable(&self) -> (&BTreeMap<String, StoredCommand>, &[StoredDeadLetter]) {
        (&self.commands, &self.letters)
    }
}
