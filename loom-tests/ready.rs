//! Readiness masks: an item that was announced is visible in the end, whoever cleared the masks meanwhile.
//!
//! The queue is a single slot, weaker than the real queues: a look may miss what nothing ordered before it.

use std::sync::Arc;

use loom::thread;

use super::{check, refute};
use crate::executor::ready::Ready;
use crate::sync::atomic::{AtomicU8, AtomicU64, Ordering, fence};

/// The worker whose queue is pushed to.
const OWNER: usize = 0;
const PRIORITY: u8 = 1;
const BIT: u64 = 1 << PRIORITY;

/// What the model needs of the masks.
trait Masks: Send + Sync + 'static {
    fn hot(&self) -> u64;
    fn available(&self) -> u64;
    fn announce(&self);
    fn announce_local(&self);
    fn retract(&self, occupied: impl FnOnce() -> bool);
    fn retract_hot(&self);
}

impl Masks for Ready {
    fn hot(&self) -> u64 {
        self.hot()
    }
    fn available(&self) -> u64 {
        self.available(OWNER)
    }
    fn announce(&self) {
        self.announce(OWNER, PRIORITY);
    }
    fn announce_local(&self) {
        self.announce_local(OWNER, PRIORITY);
    }
    fn retract(&self, occupied: impl FnOnce() -> bool) {
        let _missed = self.retract(OWNER, PRIORITY, occupied);
    }
    fn retract_hot(&self) {
        let _missed = self.retract_hot(PRIORITY);
    }
}

/// The step that a mutant leaves out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slip {
    /// None: shows that the copy is one.
    None,
    /// `announce` does not fence.
    AnnounceFence,
    /// `set` does not fence between the two levels.
    LevelFence,
    /// `set` sets the executor's bit first.
    LevelOrder,
    /// `retract` does not fence.
    RetractFence,
    /// `retract` does not look at the queue again.
    RetractLook,
    /// `retract` puts back the worker's bit only.
    RetractOneLevel,
    /// `retract_hot` does not fence.
    HotFence,
    /// `retract_hot` does not look at the workers' bits again.
    HotLook,
}

/// The steps of [`Ready`] for one worker, less one.
struct Mutant {
    hot: AtomicU64,
    available: AtomicU64,
    slip: Slip,
}

impl Mutant {
    fn fence_unless(&self, slip: Slip) {
        if self.slip != slip {
            fence(Ordering::SeqCst);
        }
    }

    fn set(&self) {
        if self.slip == Slip::LevelOrder {
            self.set_hot();
        }
        if self.available() & BIT == 0 {
            self.available.fetch_or(BIT, Ordering::AcqRel);
            self.fence_unless(Slip::LevelFence);
        }
        if self.slip != Slip::LevelOrder {
            self.set_hot();
        }
    }

    fn set_hot(&self) {
        if self.hot() & BIT == 0 {
            self.hot.fetch_or(BIT, Ordering::AcqRel);
        }
    }
}

impl Masks for Mutant {
    fn hot(&self) -> u64 {
        self.hot.load(Ordering::Relaxed)
    }

    fn available(&self) -> u64 {
        self.available.load(Ordering::Relaxed)
    }

    fn announce(&self) {
        self.fence_unless(Slip::AnnounceFence);
        self.set();
    }

    fn announce_local(&self) {
        self.set();
    }

    fn retract(&self, occupied: impl FnOnce() -> bool) {
        self.available.fetch_and(!BIT, Ordering::AcqRel);
        self.fence_unless(Slip::RetractFence);
        if self.slip != Slip::RetractLook && occupied() {
            if self.slip == Slip::RetractOneLevel {
                self.available.fetch_or(BIT, Ordering::AcqRel);
            } else {
                self.set();
            }
        }
    }

    fn retract_hot(&self) {
        self.hot.fetch_and(!BIT, Ordering::AcqRel);
        self.fence_unless(Slip::HotFence);
        if self.slip != Slip::HotLook && self.available() & BIT != 0 {
            self.hot.fetch_or(BIT, Ordering::AcqRel);
        }
    }
}

fn shipped() -> Ready {
    Ready::new(2)
}

fn mutant(slip: Slip) -> impl Fn() -> Mutant + Send + Sync {
    move || Mutant { hot: AtomicU64::new(0), available: AtomicU64::new(0), slip }
}

/// The masks over one worker's queue of one item.
struct World<M> {
    masks: M,
    slot: AtomicU8,
}

impl<M: Masks> World<M> {
    fn new(masks: M) -> Arc<Self> {
        Arc::new(Self { masks, slot: AtomicU8::new(0) })
    }

    /// The bits that an earlier item left behind.
    fn with_stale_bits(self: Arc<Self>) -> Arc<Self> {
        self.masks.announce_local();
        self
    }

    fn push(&self) {
        self.slot.swap(1, Ordering::Release);
    }

    fn occupied(&self) -> bool {
        self.slot.load(Ordering::Acquire) != 0
    }

    fn push_outside(&self) {
        self.push();
        self.masks.announce();
    }

    fn push_local(&self) {
        self.push();
        self.masks.announce_local();
    }

    /// A dispatch of the owner, which found nothing.
    fn owner_looks(&self) {
        if !self.occupied() {
            self.masks.retract(|| self.occupied());
        }
    }

    /// A thief that looks for this priority and finds nothing.
    fn thief_looks(&self) {
        if self.masks.hot() & BIT == 0 {
            return;
        }
        if self.masks.available() & BIT != 0 {
            if self.occupied() {
                return;
            }
            self.masks.retract(|| self.occupied());
        }
        self.masks.retract_hot();
    }

    /// What the owner does at its next dispatch for what it pushed.
    fn show_hidden(&self) {
        if self.masks.available() & BIT == 0 && self.occupied() {
            self.masks.announce_local();
        }
    }

    fn assert_visible(&self) {
        if self.occupied() {
            assert_ne!(self.masks.available() & BIT, 0, "hidden: the worker's bit is clear");
            assert_ne!(self.masks.hot() & BIT, 0, "hidden: the executor's bit is clear");
        }
    }
}

fn spawn<M: Masks>(world: &Arc<World<M>>, f: impl Fn(&World<M>) + 'static) -> thread::JoinHandle<()> {
    let world = Arc::clone(world);
    thread::spawn(move || f(&world))
}

/// Two pushes from outside, the owner and a thief.
fn outside<M: Masks>(masks: impl Fn() -> M + Send + Sync + 'static) -> impl Fn() + Send + Sync {
    move || {
        let world = World::new(masks()).with_stale_bits();
        let owner = spawn(&world, World::owner_looks);
        let thief = spawn(&world, World::thief_looks);
        let pusher = spawn(&world, World::push_outside);
        world.push_outside();
        pusher.join().expect("no panic");
        owner.join().expect("no panic");
        thief.join().expect("no panic");
        world.assert_visible();
    }
}

/// A local push against two thieves; then the owner's next dispatch.
fn local<M: Masks>(masks: impl Fn() -> M + Send + Sync + 'static) -> impl Fn() + Send + Sync {
    move || {
        let world = World::new(masks()).with_stale_bits();
        let thieves = [spawn(&world, World::thief_looks), spawn(&world, World::thief_looks)];
        world.push_local();
        for thief in thieves {
            thief.join().expect("no panic");
        }
        world.show_hidden();
        world.assert_visible();
    }
}

#[test]
fn an_announced_item_is_visible_in_the_end() {
    // Rules out: the pusher sees a bit still set, its clearer sees the queue still empty.
    check(outside(shipped));
}

#[test]
fn a_local_push_is_visible_after_its_owners_next_dispatch() {
    // Rules out: a thief clears the masks without seeing a push that went without a fence, and nobody repairs it.
    check(local(shipped));
}

#[test]
fn the_copy_that_mutants_are_made_of_keeps_the_promises() {
    // The runs that the mutants fail are due to what they leave out.
    check(outside(mutant(Slip::None)));
    check(local(mutant(Slip::None)));
}

#[test]
fn mutant_that_announces_without_a_fence_hides_an_item() {
    // The run: the pusher reads the worker's bit as still set, the clearer the queue as still empty.
    refute("hidden: the worker's bit", outside(mutant(Slip::AnnounceFence)));
}

#[test]
fn mutant_that_retracts_without_a_fence_hides_an_item() {
    // The run: as without the fence of `announce`; one side alone orders nothing.
    refute("hidden: the worker's bit", outside(mutant(Slip::RetractFence)));
    refute("hidden: the executor's bit", outside(mutant(Slip::HotFence)));
    refute("hidden: the executor's bit", local(mutant(Slip::HotFence)));
}

#[test]
fn mutant_that_retracts_without_a_second_look_hides_an_item() {
    // The run: the item is pushed between the look that found nothing and the clearing.
    refute("hidden: the worker's bit", outside(mutant(Slip::RetractLook)));
    refute("hidden: the executor's bit", outside(mutant(Slip::HotLook)));
    refute("hidden: the executor's bit", local(mutant(Slip::HotLook)));
}

#[test]
fn mutant_without_a_fence_between_the_levels_hides_an_item() {
    // The run: the pusher reads the executor's bit as still set, the thief the worker's as still clear.
    refute("hidden: the executor's bit", outside(mutant(Slip::LevelFence)));
    refute("hidden: the executor's bit", local(mutant(Slip::LevelFence)));
}

#[test]
fn mutant_that_sets_the_executors_bit_first_hides_an_item() {
    // The run: the thief clears the executor's bit again before the worker's is set.
    refute("hidden: the executor's bit", outside(mutant(Slip::LevelOrder)));
    refute("hidden: the executor's bit", local(mutant(Slip::LevelOrder)));
}

#[test]
fn mutant_that_puts_back_one_level_hides_an_item() {
    // The run: a thief clears the executor's bit while the worker's is down.
    refute("hidden: the executor's bit", outside(mutant(Slip::RetractOneLevel)));
}
