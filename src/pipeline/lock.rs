//! Locks of what workers share.

use std::sync::{Mutex, MutexGuard};

/// A panic in another worker ends the run by itself; what it left under the lock is whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}
