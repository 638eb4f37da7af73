//! How long the loop looks for a next request before it sleeps.
//!
//! A guest that asks anew as soon as it has its answer is served faster by a process that is awake. But where the processors are
//! wanted by others, looking takes the time that the guest would need; then the next request is not there in time, and for a
//! while nothing is looked for.

/// Requests that are waited for asleep, at most, after one that was looked for in vain.
const MOST_RESPITE: u32 = 64;

/// Looks that are left.
#[derive(Debug)]
pub(crate) struct Patience {
    looks: u32,
    /// Requests that are still waited for asleep.
    respite: u32,
    /// How many that will be the next time: twice as many after each time in vain.
    next_respite: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            looks: 0,
            respite: 0,
            next_respite: 1,
        }
    }
}

impl Patience {
    /// Whether to look once more.
    pub fn is_left(&self) -> bool {
        self.looks > 0
    }

    /// A look has found nothing.
    pub fn looked(&mut self) {
        self.looks = self.looks.saturating_sub(1);
        if self.looks == 0 {
            self.respite = self.next_respite;
            self.next_respite = (2 * self.next_respite).min(MOST_RESPITE);
        }
    }

    /// A request has come; the next one is worth so many looks.
    pub fn renew(&mut self, looks: u32) {
        if self.looks > 0 {
            // This one was found by looking.
            self.next_respite = 1;
        }
        self.looks = if self.respite == 0 { looks } else { 0 };
        self.respite = self.respite.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts the looks until it sleeps.
    fn spent(patience: &mut Patience) -> u32 {
        let mut count = 0;
        while patience.is_left() {
            patience.looked();
            count += 1;
        }
        count
    }

    #[test]
    fn who_finds_looks_again() {
        let mut patience = Patience::default();
        for _ in 0..1000 {
            patience.renew(3);
            patience.looked();
            assert!(patience.is_left());
        }
    }

    #[test]
    fn who_finds_nothing_sleeps_longer_each_time() {
        let mut patience = Patience::default();
        for respite in [1, 2, 4, 8, 16, 32, MOST_RESPITE, MOST_RESPITE] {
            patience.renew(3);
            assert_eq!(spent(&mut patience), 3);
            for _ in 0..respite {
                patience.renew(3);
                assert_eq!(spent(&mut patience), 0);
            }
        }
        // Found at last: the next time in vain counts as the first.
        patience.renew(3);
        patience.looked();
        patience.renew(3);
        assert_eq!(spent(&mut patience), 3);
        patience.renew(3);
        assert!(!patience.is_left());
        patience.renew(3);
        assert!(patience.is_left());
    }

    #[test]
    fn a_device_that_does_not_look_sleeps_at_once() {
        let mut patience = Patience::default();
        patience.renew(0);
        assert!(!patience.is_left());
    }
}
