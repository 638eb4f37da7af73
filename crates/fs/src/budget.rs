//! How many descriptors the guest holds, counted exactly, and for which share.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The directory of the root that something lies in; none for the root itself.
pub type Place = Box<[u8]>;

/// Counts the inodes the guest knows (each costs a descriptor until it is forgotten) and its open files.
#[derive(Debug)]
pub struct Budget {
    for_files: u64,
    for_all: u64,
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Known {
    lookups: u64,
    place: Place,
}

#[derive(Debug)]
struct Open {
    inode: u64,
    place: Place,
}

#[derive(Debug, Default)]
struct Held {
    inodes: HashMap<u64, Known>,
    handles: HashMap<u64, Open>,
    /// Descriptors of before a restore, of inodes and open files that were never seen here.
    restored: u64,
    /// There was a restore: of some of it nobody knows where it lies, nor of what is found through it.
    is_restored: bool,
}

impl Held {
    fn count(&self) -> u64 {
        self.inodes.len() as u64 + self.handles.len() as u64 + self.restored
    }
}

/// What the guest holds of one place.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// Inodes, and how often each was looked up.
    pub inodes: Vec<(u64, u64)>,
    /// Open files: inode and handle.
    pub handles: Vec<(u64, u64)>,
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

    /// Counts an entry that is told to the guest: `name`, found in `parent`.
    pub fn remember(&self, parent: u64, name: &[u8], inode: u64) {
        let mut held = self.lock();
        if let Some(known) = held.inodes.get_mut(&inode) {
            known.lookups += 1;
            return;
        }
        // What lies in the root is a place of its own, everything below belongs to it.
        let place = match held.inodes.get(&parent) {
            Some(parent) => parent.place.clone(),
            None => name.into(),
        };
        held.inodes.insert(inode, Known { lookups: 1, place });
    }

    /// Counts down what the guest forgets; an inode that it does not know is ignored.
    pub fn forget(&self, inode: u64, count: u64) {
        let mut held = self.lock();
        let Some(known) = held.inodes.get_mut(&inode) else {
            held.restored = held.restored.saturating_sub(1);
            return;
        };
        known.lookups = known.lookups.saturating_sub(count);
        if known.lookups == 0 {
            held.inodes.remove(&inode);
        }
    }

    /// Whether the guest knows an inode. After a restore nobody can tell, and every one counts as known.
    #[must_use]
    pub fn knows(&self, inode: u64) -> bool {
        let held = self.lock();
        held.is_restored || held.inodes.contains_key(&inode)
    }

    /// Counts an opened file or directory.
    pub fn open(&self, inode: u64, handle: Option<u64>) {
        let Some(handle) = handle else { return };
        let mut held = self.lock();
        let place = held.inodes.get(&inode).map(|known| known.place.clone());
        let place = place.unwrap_or_default();
        held.handles.insert(handle, Open { inode, place });
    }

    /// Counts a closed one.
    pub fn close(&self, handle: u64) {
        let mut held = self.lock();
        if held.handles.remove(&handle).is_none() {
            held.restored = held.restored.saturating_sub(1);
        }
    }

    /// Takes everything off that the guest holds of a place; `None` when what it holds cannot be told apart, because it
    /// comes from before a restore.
    #[must_use]
    pub fn take(&self, place: &[u8]) -> Option<Holding> {
        let mut held = self.lock();
        if held.is_restored {
            return None;
        }
        let mut holding = Holding::default();
        held.inodes.retain(|inode, known| {
            let is_elsewhere = *known.place != *place;
            if !is_elsewhere {
                holding.inodes.push((*inode, known.lookups));
            }
            is_elsewhere
        });
        held.handles.retain(|handle, open| {
            let is_elsewhere = *open.place != *place;
            if !is_elsewhere {
                holding.handles.push((open.inode, *handle));
            }
            is_elsewhere
        });
        Some(holding)
    }

    /// The guest starts anew, and what it knew before holds `restored` descriptors (0: it knows nothing).
    pub fn restart(&self, restored: u64) {
        *self.lock() = Held {
            restored,
            is_restored: restored > 0,
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
        budget.remember(1, b"a", 2);
        budget.remember(1, b"a", 2);
        budget.remember(1, b"b", 3);
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
        (2..6).for_each(|inode| budget.remember(1, b"a", inode));
        assert!(budget.is_scarce() && !budget.is_spent());
        budget.remember(1, b"a", 6);
        assert!(budget.is_spent());
    }

    #[test]
    fn forgetting_too_much_or_the_unknown_is_harmless() {
        let budget = Budget::new(1);
        budget.remember(1, b"a", 2);
        budget.forget(7, 1);
        budget.close(7);
        budget.forget(2, u64::MAX);
        budget.forget(2, 1);
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn open_files_count_too() {
        let budget = Budget::new(1);
        budget.open(1, Some(0));
        budget.open(1, Some(1));
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

    #[test]
    fn what_is_held_of_one_place_is_taken_and_nothing_else() {
        let budget = Budget::new(9);
        budget.remember(1, b"7", 2);
        budget.remember(2, b"file", 3);
        budget.remember(3, b"deeper", 4);
        budget.remember(2, b"file", 3);
        budget.remember(1, b"8", 5);
        budget.open(3, Some(10));
        budget.open(5, Some(11));
        budget.forget(4, 1);
        let mut taken = budget.take(b"7").unwrap();
        taken.inodes.sort_unstable();
        assert_eq!(taken.inodes, [(2, 1), (3, 2)]);
        assert_eq!(taken.handles, [(3, 10)]);
        assert!(!budget.knows(3) && budget.knows(5));
        assert_eq!(budget.held(), 2);
        assert_eq!(budget.take(b"7"), Some(Holding::default()));
    }

    #[test]
    fn an_open_file_belongs_to_its_place_after_its_inode_was_forgotten() {
        let budget = Budget::new(9);
        budget.remember(1, b"7", 2);
        budget.open(2, Some(10));
        budget.forget(2, 1);
        assert_eq!(budget.take(b"7").unwrap().handles, [(2, 10)]);
    }

    #[test]
    fn what_was_restored_cannot_be_told_apart() {
        let budget = Budget::new(9);
        budget.restart(1);
        assert!(budget.take(b"7").is_none() && budget.knows(77));
    }
}
