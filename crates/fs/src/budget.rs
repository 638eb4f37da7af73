//! How many descriptors the guest holds, counted exactly.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Counts the inodes the guest knows (each costs a descriptor until it is forgotten) and its open files.
#[derive(Debug)]
pub struct Budget {
    threshold: u64,
    lookups: Mutex<HashMap<u64, u64>>,
    handles: AtomicU64,
}

impl Budget {
    /// Makes a budget that is scarce once more than `threshold` descriptors are held.
    #[must_use]
    pub fn new(threshold: u64) -> Self {
        Budget {
            threshold,
            lookups: Mutex::new(HashMap::new()),
            handles: AtomicU64::new(0),
        }
    }

    fn lookups(&self) -> MutexGuard<'_, HashMap<u64, u64>> {
        self.lookups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an entry that is told to the guest.
    pub fn remember(&self, inode: u64) {
        *self.lookups().entry(inode).or_insert(0) += 1;
    }

    /// Counts down what the guest forgets; an inode that it does not know is ignored.
    pub fn forget(&self, inode: u64, count: u64) {
        let mut lookups = self.lookups();
        if let Some(known) = lookups.get_mut(&inode) {
            *known = known.saturating_sub(count);
            if *known == 0 {
                lookups.remove(&inode);
            }
        }
    }

    /// Counts an opened file or directory.
    pub fn open(&self) {
        self.handles.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a closed one.
    pub fn close(&self) {
        self.handles.fetch_sub(1, Ordering::Relaxed);
    }

    /// The guest starts anew and knows nothing.
    pub fn clear(&self) {
        self.lookups().clear();
        self.handles.store(0, Ordering::Relaxed);
    }

    /// Descriptors held for the guest.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.lookups().len() as u64 + self.handles.load(Ordering::Relaxed)
    }

    /// Whether what is told to the guest from now on should not be cached by it.
    #[must_use]
    pub fn is_scarce(&self) -> bool {
        self.held() > self.threshold
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_counts_once_until_its_last_lookup_is_forgotten() {
        let budget = Budget::new(1);
        budget.remember(2);
        budget.remember(2);
        budget.remember(3);
        assert_eq!(budget.held(), 2);
        assert!(budget.is_scarce());
        budget.forget(2, 1);
        assert_eq!(budget.held(), 2);
        budget.forget(2, 1);
        assert_eq!(budget.held(), 1);
        assert!(!budget.is_scarce());
    }

    #[test]
    fn forgetting_too_much_or_the_unknown_is_harmless() {
        let budget = Budget::new(1);
        budget.remember(2);
        budget.forget(7, 1);
        budget.forget(2, u64::MAX);
        budget.forget(2, 1);
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn open_files_count_too() {
        let budget = Budget::new(1);
        budget.open();
        budget.open();
        assert!(budget.is_scarce());
        budget.close();
        assert!(!budget.is_scarce());
        budget.clear();
        assert_eq!(budget.held(), 0);
    }
}
