//! Stealing: how a worker takes tasks from others, by priority.
//!
//! A worker with work of its own steals only what is strictly better, one task at a time. An idle one takes the best there
//! is, and half of what it finds of bulk work. Never: a lower task is taken while a better one is visible.

use crossbeam_deque::Steal;

use super::task::Runnable;
use super::worker::{BATCH, Local, priorities};

/// Priorities below this are latency lanes: thieves take one item at a time, since half a queue taken by one worker would
/// wait behind it.
const LATENCY_PRIORITIES: u8 = 2;

/// What came of looking at another worker's queues.
enum Theft {
    Task(Runnable),
    /// There is a task, left to its owner for now.
    Left,
    Nothing,
}

impl Local {
    /// Takes the best task of the given priorities from other workers.
    #[inline(never)]
    pub(super) fn steal_best(&self, mask: u64, idle: bool) -> Option<Runnable> {
        for priority in priorities(mask) {
            let mut left = false;
            for victim in self.victims() {
                match self.steal(victim, priority, idle) {
                    Theft::Task(task) => {
                        self.remote().counters.steals.add(1);
                        return Some(task);
                    }
                    Theft::Left => left = true,
                    Theft::Nothing => {}
                }
            }
            if left {
                // Nothing lower before it.
                return None;
            }
            // An idle thief looks all the time: were it to clear the bits, the next push would have to set them again. It asks
            // the queues themselves before it sleeps.
            if !idle && self.shared.ready.retract_hot(priority) {
                self.wake(1 << priority);
            }
        }
        None
    }

    fn steal(&self, victim: usize, priority: u8, idle: bool) -> Theft {
        let ready = &self.shared.ready;
        if ready.available(victim) & (1 << priority) == 0 {
            return Theft::Nothing;
        }
        let remote = &self.shared.workers[victim];
        // A worker with work of its own takes just the better item; an idle one takes a share of bulk work.
        let bulk = idle && priority >= LATENCY_PRIORITIES;
        let inbox = remote.inboxes[usize::from(priority)].get();
        if bulk && self.shared.has_homes() && self.leave_at_home(victim, inbox.map_or(0, |inbox| inbox.len()), priority)
        {
            return Theft::Left;
        }
        if let Some(inbox) = inbox
            && let Some(task) = inbox.pop()
        {
            if bulk {
                let share = (inbox.len() / 2).min(BATCH / 2);
                (0..share).map_while(|_| inbox.pop()).for_each(|task| _ = self.push(priority, task));
            }
            return Theft::Task(task);
        }
        if bulk && self.leave_lone(victim, priority) {
            return Theft::Left;
        }
        if let Some(stealer) = remote.stealers[usize::from(priority)].get() {
            loop {
                let steal = if bulk { stealer.steal_batch_and_pop(self.deque(priority)) } else { stealer.steal() };
                match steal {
                    Steal::Retry => std::hint::spin_loop(),
                    Steal::Empty => break,
                    Steal::Success(task) => {
                        if bulk {
                            self.nonempty.set(self.nonempty.get() | 1 << priority);
                        }
                        return Theft::Task(task);
                    }
                }
            }
        }
        if !idle && ready.retract(victim, priority, || remote.occupied(priority)) {
            self.wake(1 << priority);
        }
        Theft::Nothing
    }

    /// Whether to leave a task that is alone in its deque to its owner: most likely it runs there next, where its data is.
    fn leave_lone(&self, victim: usize, priority: u8) -> bool {
        let stealer = self.shared.workers[victim].stealers[usize::from(priority)].get();
        stealer.is_some_and(|stealer| stealer.len() == 1) && self.leave_for_now(victim)
    }

    /// Whether to leave tasks to their home: where there are few, they run there soon. Of many, an idle worker takes its share.
    fn leave_at_home(&self, victim: usize, in_inbox: usize, priority: u8) -> bool {
        const FEW: usize = 4;
        let stealer = self.shared.workers[victim].stealers[usize::from(priority)].get();
        let tasks = in_inbox + stealer.map_or(0, crossbeam_deque::Stealer::len);
        (1..=FEW).contains(&tasks) && self.leave_for_now(victim)
    }

    /// Not for long: an owner that polls the same task for `LOOKS` looks (some microseconds) loses what it has.
    fn leave_for_now(&self, victim: usize) -> bool {
        const LOOKS: u32 = 8;
        /// Pauses after each look, which takes the lines that the owner works on.
        const PAUSES: u32 = 64;
        let remote = &self.shared.workers[victim];
        let polls = remote.counters.polls.get();
        let (seen_polls, looks) = self.lone[victim].get();
        let looks = if seen_polls == polls { looks + 1 } else { 1 };
        self.lone[victim].set((polls, looks));
        if looks < LOOKS {
            (0..PAUSES).for_each(|_| std::hint::spin_loop());
        }
        looks < LOOKS
    }

    /// The other workers, from a random one on.
    fn victims(&self) -> impl Iterator<Item = usize> + use<> {
        let (workers, own) = (self.shared.workers.len(), self.index);
        let start = self.random() as usize % workers;
        (0..workers).map(move |i| (start + i) % workers).filter(move |victim| *victim != own)
    }

    pub(super) fn random(&self) -> u64 {
        // xorshift64: only spreads thieves over victims.
        let mut x = self.random.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.set(x);
        x
    }
}

#[cfg(all(test, not(corelane_loom)))]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::executor::{Executor, Making, Shape, Traits};

    fn workers(executor: &Executor) -> Vec<Local> {
        (0..executor.workers()).map(|index| Local::new(executor.shared(), index, index as u64 + 1)).collect()
    }

    fn spawn_on(worker: &Local, executor: &Executor, priority: u8) {
        let _entered = worker.enter();
        executor.spawn(priority, async {}).detach();
    }

    fn drop_all(executor: &Executor, workers: &[Local]) {
        executor.close();
        for worker in workers {
            let _entered = worker.enter();
            worker.drop_queued();
        }
    }

    #[test]
    fn lone_tasks_of_several_stuck_owners_are_all_taken_after_some_looks() {
        let executor = Executor::without_threads(Shape::plain(3), Clock::virtual_time());
        let workers = workers(&executor);
        spawn_on(&workers[0], &executor, 5);
        spawn_on(&workers[1], &executor, 5);
        let thief = &workers[2];
        let taken =
            (0..100).filter_map(|_| thief.next_task()).inspect(|task| assert_eq!(task.metadata().priority(), 5));
        assert_eq!(taken.count(), 2);
        drop_all(&executor, &workers);
    }

    #[test]
    fn nothing_lower_is_taken_before_a_lone_task_that_is_left() {
        let executor = Executor::without_threads(Shape::plain(3), Clock::virtual_time());
        let workers = workers(&executor);
        spawn_on(&workers[0], &executor, 5);
        (0..4).for_each(|_| spawn_on(&workers[1], &executor, 9));
        let thief = &workers[2];
        let order: Vec<_> = (0..200).filter_map(|_| thief.next_task()).map(|task| task.metadata().priority()).collect();
        assert_eq!(order.first(), Some(&5));
        assert_eq!(order.len(), 5);
        drop_all(&executor, &workers);
    }

    /// A task that was made for a partition, on its way from where the caller is.
    fn make_at(executor: &Executor, partition: usize) -> (Runnable, crate::executor::Task<()>) {
        let home = Some(executor.shared().home_of(partition));
        executor.prepare(Making { traits: Traits::new(false, home), ..Making::plain(5) }, |_| async {})
    }

    #[test]
    fn a_task_with_a_home_is_put_there_from_wherever_it_comes() {
        let executor = Executor::without_threads(Shape::plain(3), Clock::virtual_time());
        let workers = workers(&executor);
        let queued = |worker: usize| executor.shared().queued_with(worker) != 0;
        for partition in 0..6 {
            let home = partition % 3;
            let schedules: [fn(&Executor, Runnable); 2] =
                [Executor::schedule_new, |_, runnable| crate::executor::schedule_admitted(runnable)];
            for (from, schedule) in
                [None, Some(0), Some(1), Some(2)].into_iter().flat_map(|from| schedules.map(|to| (from, to)))
            {
                let (runnable, task) = make_at(&executor, partition);
                {
                    let _entered = from.map(|from: usize| workers[from].enter());
                    schedule(&executor, runnable);
                }
                assert_eq!(
                    [0, 1, 2].map(queued),
                    [0, 1, 2].map(|worker| worker == home),
                    "partition {partition} from {from:?}"
                );
                assert!(workers[home].next_task().is_some());
                drop(task);
            }
        }
        drop_all(&executor, &workers);
    }

    #[test]
    fn what_is_admitted_at_home_stays_there() {
        let executor = Executor::without_threads(Shape::plain(2), Clock::virtual_time());
        let workers = workers(&executor);
        let _entered = workers[0].enter();
        for _ in 0..100 {
            let (runnable, _task) = make_at(&executor, 0);
            crate::executor::schedule_admitted(runnable);
        }
        assert_eq!(executor.shared().queued_with(1), 0, "it was spread");
        drop_all(&executor, &workers);
    }

    #[test]
    fn who_has_nothing_to_do_takes_a_task_from_its_home() {
        let executor = Executor::without_threads(Shape::plain(2), Clock::virtual_time());
        let workers = workers(&executor);
        let (runnable, _task) = make_at(&executor, 0);
        executor.schedule_new(runnable);
        spawn_on(&workers[1], &executor, 5);
        assert_eq!(workers[1].next_task().map(|task| task.metadata().home()), Some(None), "its own goes first");
        // Its owner does nothing: it is not left for long.
        let taken = (0..100).find_map(|_| workers[1].next_task());
        assert!(taken.is_some_and(|task| task.metadata().home().is_some()));
        drop_all(&executor, &workers);
    }

    #[test]
    fn a_few_tasks_are_left_to_a_home_that_gets_on_and_of_many_an_idle_worker_takes_its_share() {
        let executor = Executor::without_threads(Shape::plain(2), Clock::virtual_time());
        let workers = workers(&executor);
        let put = |many: usize| (0..many).for_each(|_| executor.schedule_new(make_at(&executor, 0).0));
        put(4);
        while let Some(task) = workers[0].next_task() {
            assert!((0..4).all(|_| workers[1].next_task().is_none()), "its home gets on");
            let _entered = workers[0].enter();
            workers[0].run(task);
        }
        put(20);
        assert!(workers[1].next_task().is_some(), "there are many");
        drop_all(&executor, &workers);
    }

    #[test]
    fn no_reserved_worker_is_a_home() {
        let shape = Shape { reserved: 1, ..Shape::plain(3) };
        let executor = Executor::without_threads(shape, Clock::virtual_time());
        let workers = workers(&executor);
        for partition in 0..4 {
            let (runnable, _task) = make_at(&executor, partition);
            executor.schedule_new(runnable);
            assert!(workers[partition % 2].next_task().is_some(), "partition {partition}");
        }
        drop_all(&executor, &workers);
    }

    #[test]
    fn a_latency_lane_is_never_left() {
        let executor = Executor::without_threads(Shape::plain(2), Clock::virtual_time());
        let workers = workers(&executor);
        spawn_on(&workers[0], &executor, 0);
        assert!(workers[1].next_task().is_some());
        drop_all(&executor, &workers);
    }
}
