//! What may be stored, given what a store has answered.

use super::content::Content;
use super::script::{Step, contained};
use crate::error::StorageError;
use crate::storage::MemoryStorage;

/// All contents that agree with the answers.
#[derive(Clone)]
pub(super) struct Possible(Vec<World>);

#[derive(Clone)]
struct World {
    model: MemoryStorage,
    content: Content,
    /// Something that was acknowledged as relaxed is not there, nor is what was acknowledged as that later.
    lost: bool,
}

impl World {
    /// One in which the step was made, too.
    async fn with(&self, step: &Step) -> Self {
        let model = self.model.after_crash();
        step.tell(&model).await.unwrap();
        Self { content: contained(&model).await, model, lost: self.lost }
    }
}

impl Possible {
    pub(super) async fn new(model: MemoryStorage) -> Self {
        Self(vec![World { content: contained(&model).await, model, lost: false }])
    }

    /// The store has answered. On a `full` disk, what ends something overtakes what accepts something.
    pub(super) async fn learn(&mut self, step: &Step, answer: Result<(), &StorageError>, full: bool) {
        let overtakes = full && !step.accepts();
        let before = std::mem::take(&mut self.0);
        for world in before {
            match answer {
                Ok(()) if step.is_synced() => {
                    // All before it is durable, too.
                    if !world.lost || overtakes {
                        self.add(world.with(step).await);
                    }
                }
                Ok(()) => {
                    if !world.lost || overtakes {
                        self.add(world.with(step).await);
                    }
                    self.add(World { lost: true, ..world });
                }
                Err(error) => {
                    if !error.is_certain() {
                        self.add(world.with(step).await);
                    }
                    self.add(world);
                }
            }
        }
        assert!(self.0.len() <= 256, "too much is unknown: {}", self.0.len());
    }

    /// The contents while a step is made that has not been answered.
    pub(super) async fn during(&self, step: &Step) -> Self {
        let mut during = self.clone();
        for world in &self.0 {
            during.add(world.with(step).await);
        }
        during
    }

    /// The process was killed: what it had acknowledged as relaxed may be lost for good.
    pub(super) fn killed(mut self) -> Self {
        for mut world in std::mem::take(&mut self.0) {
            world.lost = false;
            self.add(world);
        }
        self
    }

    /// One of them.
    pub(super) fn any(&self) -> Option<Content> {
        self.0.first().map(|world| world.content.clone())
    }

    /// Whether one of them has what can be read of this at any time.
    pub(super) fn allows_readable(&self, content: &Content) -> bool {
        self.0.iter().any(|world| world.content.readable() == content.readable())
    }

    fn add(&mut self, world: World) {
        if !self.0.iter().any(|other| other.lost == world.lost && other.content == world.content) {
            self.0.push(world);
        }
    }

    pub(super) fn allows(&self, content: &Content, when: &str) -> Result<(), String> {
        if self.0.iter().any(|world| world.content == *content) {
            return Ok(());
        }
        let newest = &self.0[0].content;
        Err(format!("{when}, none of {} that are possible: {}", self.0.len(), content.difference(newest)))
    }
}
