//! All of it with many workers at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{PATIENCE, Queue, World, ack, checks, envelope, fences, leases, put_with, retry_after};
use crate::distributed::{AckOutcome, Capabilities, Claim, EnqueueOptions, GlobalLimits, Leased, Support};
use crate::executor::{Executor, now, sleep};

checks! {
    many_workers_take_each_command_once if leases,
    many_submitters_and_workers_lose_nothing if leases,
    one_token_at_a_time_whatever_workers_do if fences,
    a_key_that_many_submit_at_once_has_one_command if keys,
    a_limit_holds_with_many_workers if limits_concurrency,
    all_partitions_are_emptied if leases,
}

const WORKERS: usize = 4;

fn keys(can: &Capabilities) -> bool {
    can.leases && can.idempotency == Support::Exact
}

fn limits_concurrency(can: &Capabilities) -> bool {
    can.leases && can.global_concurrency == Support::Exact
}

/// Runs one future for each worker, on workers of an executor.
async fn each<F: Future<Output = ()> + Send + 'static>(of: impl Fn(usize) -> F) {
    let executor = Executor::builder().workers(2).pin(false).build().expect("an executor");
    let tasks: Vec<_> = (0..WORKERS).map(|worker| executor.spawn(0, of(worker))).collect();
    for task in tasks {
        if let Err(error) = task.await {
            panic!("a worker has failed: {error}");
        }
    }
}

async fn handles(world: &World) -> Vec<Queue> {
    let mut handles = Vec::new();
    for _ in 0..WORKERS {
        handles.push(world.open().await);
    }
    handles
}

/// Takes until nothing has come for a while.
async fn drain(queue: Queue, partition: usize, claim: Claim, mut each: impl FnMut(&Leased)) {
    loop {
        let taken = queue.dequeue_leased(partition, claim.clone().wait(Duration::from_secs(1))).await.unwrap();
        if taken.is_empty() {
            return;
        }
        for leased in taken {
            each(&leased);
            assert_eq!(ack(&queue, &leased.token).await, AckOutcome::Applied);
        }
    }
}

async fn many_workers_take_each_command_once(world: World) {
    let handles = handles(&world).await;
    super::put_many(&handles[0], 400).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    each(|worker| {
        let (queue, claim, seen) = (Arc::clone(&handles[worker]), world.claim(7), Arc::clone(&seen));
        drain(queue, 0, claim, move |leased| seen.lock().unwrap().push(leased.envelope.id.clone()))
    })
    .await;
    let seen = seen.lock().unwrap();
    let distinct: BTreeSet<_> = seen.iter().collect();
    assert_eq!((seen.len(), distinct.len()), (400, 400));
}

async fn many_submitters_and_workers_lose_nothing(world: World) {
    let handles = handles(&world).await;
    let (sent, seen) = (Arc::new(Mutex::new(BTreeSet::new())), Arc::new(Mutex::new(BTreeSet::new())));
    each(|worker| {
        let (queue, claim) = (Arc::clone(&handles[worker]), world.claim(5));
        let (sent, seen) = (Arc::clone(&sent), Arc::clone(&seen));
        async move {
            for number in 0..60 {
                let id = put_with(&queue, number, EnqueueOptions::new()).await;
                sent.lock().unwrap().insert(id);
                if number % 3 == 0 {
                    for leased in queue.dequeue_leased(0, claim.clone()).await.unwrap() {
                        assert_eq!(ack(&queue, &leased.token).await, AckOutcome::Applied);
                        assert!(seen.lock().unwrap().insert(leased.envelope.id), "twice");
                    }
                }
            }
            drain(queue, 0, claim, |leased| {
                assert!(seen.lock().unwrap().insert(leased.envelope.id.clone()), "twice");
            })
            .await;
        }
    })
    .await;
    assert_eq!(*seen.lock().unwrap(), *sent.lock().unwrap());
}

/// Leases end, are extended, given back and acknowledged, at random: of each command, one acknowledgement is applied, and fences
/// only grow.
async fn one_token_at_a_time_whatever_workers_do(world: World) {
    let world = world.short();
    let handles = handles(&world).await;
    for number in 0..40 {
        put_with(&handles[0], number, EnqueueOptions::new().max_deliveries(1000)).await;
    }
    let fences: Arc<Mutex<BTreeMap<String, u64>>> = Arc::default();
    let ended: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    each(|worker| {
        let (queue, claim, lease) = (Arc::clone(&handles[worker]), world.claim(3), world.lease);
        let (fences, ended) = (Arc::clone(&fences), Arc::clone(&ended));
        async move {
            let mut turn = worker;
            let give_up = now().plus(PATIENCE * 2);
            while ended.lock().unwrap().len() < 40 {
                assert!(now() < give_up, "not all have ended");
                for leased in queue.dequeue_leased(0, claim.clone()).await.unwrap() {
                    let (id, fence) = (leased.envelope.id.clone(), leased.token.fence());
                    let before = fences.lock().unwrap().insert(id.clone(), fence);
                    // Answers may overtake each other: but no fence comes twice.
                    assert_ne!(before, Some(fence), "two have the same lease of {id}");
                    turn += 1;
                    match turn % 5 {
                        0 => sleep(lease * 2).await,
                        1 => retry_after_if_held(&queue, &leased).await,
                        2 => _ = queue.extend(&leased.token, lease).await,
                        _ => {}
                    }
                    if ack(&queue, &leased.token).await == AckOutcome::Applied {
                        assert!(ended.lock().unwrap().insert(id), "acknowledged twice");
                    }
                }
            }
        }
    })
    .await;
    world.nothing(&handles[0], "what was acknowledged").await;
}

async fn retry_after_if_held(queue: &Queue, leased: &Leased) {
    if queue.extend(&leased.token, super::LONG).await.is_ok() {
        retry_after(queue, &leased.token, Duration::ZERO).await;
    }
}

async fn a_key_that_many_submit_at_once_has_one_command(world: World) {
    let handles = handles(&world).await;
    let firsts = Arc::new(Mutex::new(Vec::new()));
    each(|worker| {
        let (queue, firsts) = (Arc::clone(&handles[worker]), Arc::clone(&firsts));
        async move {
            for number in 0..30 {
                let options = EnqueueOptions::new().idempotency_key(format!("key-{number}"));
                let receipt = queue.enqueue_with(envelope(number), options).await.unwrap();
                if !receipt.duplicate {
                    firsts.lock().unwrap().push(number);
                }
            }
        }
    })
    .await;
    let mut firsts = firsts.lock().unwrap().clone();
    firsts.sort_unstable();
    assert_eq!(firsts, (0..30).collect::<Vec<_>>());
    assert_eq!(world.take(&handles[0], 100).await.len(), 30);
}

async fn a_limit_holds_with_many_workers(world: World) {
    let handles = handles(&world).await;
    handles[0].set_limits("query", GlobalLimits::none().max_leased(3)).await.unwrap();
    super::put_many(&handles[0], 60).await;
    let running = Arc::new(Mutex::new((0_usize, 0_usize)));
    each(|worker| {
        let (queue, claim, running) = (Arc::clone(&handles[worker]), world.claim(2), Arc::clone(&running));
        async move {
            loop {
                let taken = queue.dequeue_leased(0, claim.clone().wait(Duration::from_secs(1))).await.unwrap();
                if taken.is_empty() {
                    return;
                }
                {
                    let mut running = running.lock().unwrap();
                    running.0 += taken.len();
                    running.1 += taken.len();
                    assert!(running.0 <= 3, "{} are leased", running.0);
                }
                sleep(Duration::from_millis(3)).await;
                for leased in taken {
                    // Before: who takes the next one may be faster than this.
                    running.lock().unwrap().0 -= 1;
                    assert_eq!(ack(&queue, &leased.token).await, AckOutcome::Applied);
                }
            }
        }
    })
    .await;
    assert_eq!(running.lock().unwrap().1, 60);
}

async fn all_partitions_are_emptied(world: World) {
    let world = world.partitions(crate::queue::PartitionConfig::round_robin(WORKERS));
    let handles = handles(&world).await;
    super::put_many(&handles[0], 100).await;
    let seen = Arc::new(Mutex::new(BTreeSet::new()));
    each(|worker| {
        let (queue, claim, seen) = (Arc::clone(&handles[worker]), world.claim(9), Arc::clone(&seen));
        drain(queue, worker, claim, move |leased| _ = seen.lock().unwrap().insert(leased.envelope.id.clone()))
    })
    .await;
    assert_eq!(seen.lock().unwrap().len(), 100);
}
