//! Threads: every loop of the crate that runs on several of them is one of these, in a pool that
//! its caller has sized.
//!
//! rayon's own global pool has a thread for each processor, whatever was asked for, and ends the
//! process by a panic where the system does not give them. So no other file names rayon (a test
//! holds that), and nothing here falls back to the global pool: [`map`] and its like run in the
//! pool that [`Pool::install`] or [`each_worker`] has put them in, and elsewhere on the calling
//! thread alone.

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use rayon::prelude::*;

/// A number of threads, which are gone once it is dropped: what takes their place never runs beside
/// them.
pub struct Pool {
    /// The threads' pool; none while this value is dropped.
    pool: Option<rayon::ThreadPool>,
    threads: Vec<JoinHandle<()>>,
}

/// The system gave no threads.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("cannot start {threads} threads: {reason}; give fewer --threads")]
pub struct NoThreads {
    /// How many were asked for.
    pub threads: usize,
    /// What the system said.
    pub reason: String,
}

impl Pool {
    /// Starts as many threads; one at least.
    ///
    /// # Errors
    /// [`NoThreads`]; none is left running then.
    pub fn new(n_threads: usize) -> Result<Self, NoThreads> {
        let n_threads = n_threads.max(1);
        let mut threads = Vec::new();
        let start = |worker: rayon::ThreadBuilder| {
            let name = format!("chatvec-{}", worker.index());
            threads.push(thread::Builder::new().name(name).spawn(|| worker.run())?);
            Ok(())
        };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).spawn_handler(start).build();
        match pool {
            Ok(pool) => Ok(Pool { pool: Some(pool), threads }),
            Err(e) => {
                drop(Pool { pool: None, threads });
                Err(NoThreads { threads: n_threads, reason: e.to_string() })
            }
        }
    }

    /// How many threads there are.
    pub fn n_threads(&self) -> usize {
        self.threads.len()
    }

    /// Does `work` on one of the threads, and what [`map`] and its like do within it on all of
    /// them.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool().install(work)
    }

    fn pool(&self) -> &rayon::ThreadPool {
        self.pool.as_ref().expect("it is there until it is dropped")
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // They end once nobody has work for them.
        drop(self.pool.take());
        let own = thread::current().id();
        for thread in self.threads.drain(..).filter(|thread| thread.thread().id() != own) {
            // What a thread has to say of a panic, it has said to who waited for its work.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("n_threads", &self.n_threads()).finish()
    }
}

/// Whether this thread is one of a pool.
fn is_inside() -> bool {
    rayon::current_thread_index().is_some()
}

/// Does `work` on `n` threads at once: of the pool that this is called in, which may have fewer, or
/// else of one of its own.
///
/// # Errors
/// [`NoThreads`].
pub fn each_worker(n: usize, work: impl Fn() + Sync) -> Result<(), NoThreads> {
    let work = |worker: rayon::BroadcastContext<'_>| {
        if worker.index() < n.max(1) {
            work();
        }
    };
    if is_inside() {
        rayon::broadcast(work);
    } else {
        Pool::new(n)?.pool().broadcast(work);
    }
    Ok(())
}

/// What `f` makes of each item, in their order, on `n` threads as [`each_worker`] has them. No
/// thread begins another item once one has failed.
///
/// # Errors
/// [`NoThreads`], and of those of `f` the first in the order of the items among those met.
pub fn try_map_on<T: Send, R: Send, E: Send + From<NoThreads>>(
    n: usize,
    items: Vec<T>,
    f: impl Fn(T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    let n_items = items.len();
    if n_items == 0 {
        return Ok(Vec::new());
    }
    let queue = Mutex::new(items.into_iter().enumerate());
    let done: Mutex<Vec<Option<R>>> = Mutex::new((0..n_items).map(|_| None).collect());
    let failed: Mutex<Option<(usize, E)>> = Mutex::new(None);
    let stopped = AtomicBool::new(false);
    each_worker(n.min(n_items), || {
        while !stopped.load(Ordering::Relaxed) {
            let Some((i, item)) = lock(&queue).next() else { return };
            match f(item) {
                Ok(result) => lock(&done)[i] = Some(result),
                Err(error) => {
                    stopped.store(true, Ordering::Relaxed);
                    let mut failed = lock(&failed);
                    if failed.as_ref().is_none_or(|(earlier, _)| i < *earlier) {
                        *failed = Some((i, error));
                    }
                }
            }
        }
    })?;
    match failed.into_inner().unwrap_or_else(|e| e.into_inner()) {
        Some((_, error)) => Err(error),
        None => Ok(done.into_inner().unwrap_or_else(|e| e.into_inner()).into_iter().flatten().collect()),
    }
}

/// A panic elsewhere ends the work by itself; what it left under the lock is whole.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// What `f` makes of each item, in their order.
pub fn map<T: Send, R: Send>(items: Vec<T>, f: impl Fn(T) -> R + Sync + Send) -> Vec<R> {
    if is_inside() { items.into_par_iter().map(f).collect() } else { items.into_iter().map(f).collect() }
}

/// What `f` makes of each item, in their order, unless it fails for one.
///
/// # Errors
/// One of the errors of `f`.
pub fn try_map<T: Send, R: Send, E: Send>(
    items: Vec<T>,
    f: impl Fn(T) -> Result<R, E> + Sync + Send,
) -> Result<Vec<R>, E> {
    if is_inside() { items.into_par_iter().map(f).collect() } else { items.into_iter().map(f).collect() }
}

/// What `f` makes of each item, in their order, unless it fails for one. Each thread makes
/// something for itself by `init`, now and then, and uses it for many items.
///
/// # Errors
/// One of the errors of `f`.
pub fn try_map_init<T: Send, S, R: Send, E: Send>(
    items: Vec<T>,
    init: impl Fn() -> S + Sync + Send,
    f: impl Fn(&mut S, T) -> Result<R, E> + Sync + Send,
) -> Result<Vec<R>, E> {
    if is_inside() {
        return items.into_par_iter().map_init(init, f).collect();
    }
    let mut own = init();
    items.into_iter().map(|item| f(&mut own, item)).collect()
}

/// Does something with each item.
pub fn for_each<T: Send>(items: Vec<T>, f: impl Fn(T) + Sync + Send) {
    if is_inside() && items.len() > 1 { items.into_par_iter().for_each(f) } else { items.into_iter().for_each(f) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(PartialEq, Debug)]
    enum Failed {
        Item(usize),
        Threads,
    }

    impl From<NoThreads> for Failed {
        fn from(_: NoThreads) -> Self {
            Failed::Threads
        }
    }

    #[test]
    fn loops_outside_of_a_pool_run_on_the_thread_that_calls() {
        let own = thread::current().id();
        let ids: HashSet<_> = map((0..1000).collect(), |_: u32| thread::current().id()).into_iter().collect();
        assert_eq!(ids, HashSet::from([own]));
        for_each(vec![(); 100], |()| assert_eq!(thread::current().id(), own));
    }

    #[test]
    fn work_is_done_on_no_more_threads_than_asked_for() {
        let pool = Pool::new(3).unwrap();
        for n in [1, 2, 3, 8] {
            for inside in [false, true] {
                let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
                let count = |i: usize| {
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    thread::sleep(std::time::Duration::from_millis(1));
                    now.fetch_sub(1, Ordering::SeqCst);
                    Ok::<_, Failed>(2 * i)
                };
                let run = || try_map_on(n, (0..50).collect(), count).unwrap();
                let found = if inside { pool.install(run) } else { run() };
                assert_eq!(found, (0..50).map(|i| 2 * i).collect::<Vec<_>>());
                let bound = if inside { n.min(3) } else { n };
                assert!(most.into_inner() <= bound, "{n} {inside}");
            }
        }
    }

    #[test]
    fn the_first_error_met_stops_the_others() {
        let begun = AtomicUsize::new(0);
        let fail = |i: usize| {
            begun.fetch_add(1, Ordering::SeqCst);
            if i >= 10 { Err(Failed::Item(i)) } else { Ok(i) }
        };
        assert_eq!(try_map_on(1, (0..1000).collect(), fail), Err(Failed::Item(10)));
        assert_eq!(begun.into_inner(), 11);
    }

    #[test]
    fn threads_are_gone_when_their_pool_is() {
        struct Gone<'a>(&'a AtomicUsize);
        impl Drop for Gone<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        static ALIVE: AtomicUsize = AtomicUsize::new(0);
        thread_local!(static MARK: Gone<'static> = {
            ALIVE.fetch_add(1, Ordering::SeqCst);
            Gone(&ALIVE)
        });
        for _ in 0..20 {
            each_worker(4, || MARK.with(|_| ())).unwrap();
            assert_eq!(ALIVE.load(Ordering::SeqCst), 0);
        }
    }
}
