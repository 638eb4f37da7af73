//! How many descriptors the guest holds, counted exactly.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Counts the inodes the guest knows (each costs a descriptor until it is forgotten) and its open files.
#[derive(Debug)]
pub struct Budget {
    for_files: u64,
    for_all: u64,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    lookups: HashMap<u64, u64>,
    handles: HashSet<u64>,
    /// Descriptors of before a restore, of inodes and open files that were never seen here.
    restored: u64,
}

impl Held {
    fn count(&self) -> u64 {
        self.lookups.len() as u64 + self.handles.len() as u64 + self.restored
    }
}

impl Budget {
    /// Makes a budget that is spent once more than `threshold` descriptors are held, and scarce a quarter earlier.
    #[must_use]
    pub fn new(threshold: u64) -> Self {
        Budget {
            for_files: threshold - threshold / 4,
            for_all: threshold,
            held: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an entry that is told to the guest.
    pub fn remember(&self, inode: u64) {
        *self.lock().lookups.entry(inode).or_insert(0) += 1;
    }

    /// Counts down what the guest forgets; an inode that it does not know is ignored.
    pub fn forget(&self, inode: u64, count: u64) {
        let mut held = self.lock();
        let Some(known) = held.lookups.get_mut(&inode) else {
            held.restored = held.restored.saturating_sub(1);
            return;
        };
        *known = known.saturating_sub(count);
        if *known == 0 {
            held.lookups.remove(&inode);
        }
    }

    /// Counts an opened file or directory.
    pub fn open(&self, handle: Option<u64>) {
        self.lock().handles.extend(handle);
    }

    /// Counts a closed one.
    pub fn close(&self, handle: u64) {
        let mut held = self.lock();
        if !held.handles.remove(&handle) {
            held.restored = held.restored.saturating_sub(1);
        }
    }

    /// The guest starts anew, and what it knew before holds `restored` descriptors (0: it knows nothing).
    pub fn restart(&self, restored: u64) {
        *self.lock() = Held {
            restored,
            ..Held::default()
        };
    }

    /// Descriptors held for the guest.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.lock().count()
    }

    /// Whether the guest should keep only directories from now on.
    #[must_use]
    pub fn is_scarce(&self) -> bool {
        self.held() > self.for_files
    }

    /// Whether it should not even keep those.
    #[must_use]
    pub fn is_spent(&self) -> bool {
        self.held() > self.for_all
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
    fn the_last_quarter_is_for_directories() {
        let budget = Budget::new(4);
        (2..6).for_each(|inode| budget.remember(inode));
        assert!(budget.is_scarce() && !budget.is_spent());
        budget.remember(6);
        assert!(budget.is_spent());
    }

    #[test]
    fn forgetting_too_much_or_the_unknown_is_harmless() {
        let budget = Budget::new(1);
        budget.remember(2);
        budget.forget(7, 1);
        budget.close(7);
        budget.forget(2, u64::MAX);
        budget.forget(2, 1);
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn open_files_count_too() {
        let budget = Budget::new(1);
        budget.open(Some(0));
        budget.open(Some(1));
        assert!(budget.is_scarce());
        budget.close(0);
        assert!(!budget.is_scarce());
        budget.restart(0);
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn what_was_restored_counts_until_it_is_let_go() {
        let budget = Budget::new(1);
        budget.restart(2);
        assert!(budget.is_scarce());
        budget.forget(5, 1);
        budget.close(9);
        assert_eq!(budget.held(), 0);
    }
}
