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

/// An inode that the guest knows.
#[derive(Debug)]
pub struct Known {
    /// How often it was looked up and not forgotten.
    pub lookups: u64,
    /// Where it lies.
    pub place: Place,
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
}

impl Held {
    fn open(&mut self, inode: u64, handle: u64) {
        let place = self.inodes.get(&inode).map(|known| known.place.clone());
        let place = place.unwrap_or_default();
        self.handles.insert(handle, Open { inode, place });
    }

    fn count(&self) -> u64 {
        self.inodes.len() as u64 + self.handles.len() as u64
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
            return;
        };
        known.lookups = known.lookups.saturating_sub(count);
        if known.lookups == 0 {
            held.inodes.remove(&inode);
        }
    }

    /// Whether the guest knows an inode.
    #[must_use]
    pub fn knows(&self, inode: u64) -> bool {
        self.lock().inodes.contains_key(&inode)
    }

    /// Counts an opened file or directory.
    pub fn open(&self, inode: u64, handle: Option<u64>) {
        let Some(handle) = handle else { return };
        self.lock().open(inode, handle);
    }

    /// Counts a closed one.
    pub fn close(&self, handle: u64) {
        self.lock().handles.remove(&handle);
    }

    /// Takes everything off that the guest holds of a place.
    #[must_use]
    pub fn take(&self, place: &[u8]) -> Holding {
        let mut held = self.lock();
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
        holding
    }

    /// The guest starts anew, and knows these inodes and open files (handle and inode): nothing, or what it knew when it
    /// was saved.
    pub fn restart(&self, inodes: HashMap<u64, Known>, handles: &[(u64, u64)]) {
        let mut held = Held {
            inodes,
            ..Held::default()
        };
        for (handle, inode) in handles {
            held.open(*inode, *handle);
        }
        *self.lock() = held;
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
        budget.restart(HashMap::new(), &[]);
        assert_eq!(budget.held(), 0);
    }

    #[test]
    fn what_was_restored_is_held_as_if_it_had_been_told_here() {
        let budget = Budget::new(1);
        let place: Place = b"7"[..].into();
        let known = Known { lookups: 2, place };
        budget.restart(HashMap::from([(5, known)]), &[(9, 5)]);
        assert!(budget.is_scarce() && budget.knows(5) && !budget.knows(6));
        budget.forget(5, 1);
        let taken = budget.take(b"7");
        assert_eq!((taken.inodes, taken.handles), (vec![(5, 1)], vec![(5, 9)]));
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
        let mut taken = budget.take(b"7");
        taken.inodes.sort_unstable();
        assert_eq!(taken.inodes, [(2, 1), (3, 2)]);
        assert_eq!(taken.handles, [(3, 10)]);
        assert!(!budget.knows(3) && budget.knows(5));
        assert_eq!(budget.held(), 2);
        assert_eq!(budget.take(b"7"), Holding::default());
    }

    #[test]
    fn an_open_file_belongs_to_its_place_after_its_inode_was_forgotten() {
        let budget = Budget::new(9);
        budget.remember(1, b"7", 2);
        budget.open(2, Some(10));
        budget.forget(2, 1);
        assert_eq!(budget.take(b"7").handles, [(2, 10)]);
    }
}
