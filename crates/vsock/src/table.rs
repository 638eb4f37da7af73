//! Which streams there are: under a number each, and, once the guest knows of them, under their two ports.

use std::collections::BTreeMap;

use crate::connection::Connection;

/// Streams at once, those included that only begin or are being emptied. Each may keep [`crate::connection::ROOM`] bytes.
pub const MOST: usize = 256;
/// Ports of the host's that streams of its programs get: far from those that anybody listens at.
const FIRST_PORT: u32 = 1 << 30;
const LAST_PORT: u32 = (1 << 31) - 1;

/// The two ports of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ports {
    /// The host's.
    pub host: u32,
    /// The guest's.
    pub guest: u32,
}

/// One place of the table.
#[derive(Debug)]
pub struct Entry {
    /// The stream.
    pub connection: Connection,
    /// How the guest knows it, if it does.
    pub ports: Option<Ports>,
    /// It is in the row of those that have something to say.
    pub is_in_row: bool,
}

/// All streams.
#[derive(Debug)]
pub struct Table {
    entries: Vec<Option<Entry>>,
    known: BTreeMap<Ports, usize>,
    count: usize,
    next_port: u32,
}

impl Default for Table {
    fn default() -> Self {
        Table {
            entries: (0..MOST).map(|_| None).collect(),
            known: BTreeMap::new(),
            count: 0,
            next_port: FIRST_PORT,
        }
    }
}

impl Table {
    /// Whether there is no place for another one.
    pub fn is_full(&self) -> bool {
        self.count == MOST
    }

    /// Gives a stream a place, and `None` when there is none.
    pub fn add(&mut self, connection: Connection, ports: Option<Ports>) -> Option<usize> {
        let slot = self.entries.iter().position(Option::is_none)?;
        *self.entries.get_mut(slot)? = Some(Entry {
            connection,
            ports,
            is_in_row: false,
        });
        self.count += 1;
        if let Some(ports) = ports {
            self.known.insert(ports, slot);
        }
        Some(slot)
    }

    /// The stream in a place.
    pub fn get(&mut self, slot: usize) -> Option<&mut Entry> {
        self.entries.get_mut(slot)?.as_mut()
    }

    /// Where the stream with these ports is.
    pub fn find(&self, ports: Ports) -> Option<usize> {
        self.known.get(&ports).copied()
    }

    /// Makes a stream known to the guest by a port of it, and one of the host's that no other has.
    pub fn name(&mut self, slot: usize, guest: u32) -> Option<Ports> {
        // There are fewer streams than ports: one is free.
        while self.is_used(self.next_port) {
            self.turn();
        }
        let host = self.next_port;
        self.turn();
        let ports = Ports { host, guest };
        self.get(slot)?.ports = Some(ports);
        self.known.insert(ports, slot);
        Some(ports)
    }

    fn turn(&mut self) {
        self.next_port = match self.next_port {
            LAST_PORT => FIRST_PORT,
            port => port + 1,
        };
    }

    fn is_used(&self, host: u32) -> bool {
        let first = Ports { host, guest: 0 };
        let next = self.known.range(first..).next();
        next.is_some_and(|(ports, _)| ports.host == host)
    }

    /// Has the guest forget a stream; returns by which ports it knew it.
    pub fn forget(&mut self, slot: usize) -> Option<Ports> {
        let ports = self.get(slot)?.ports.take()?;
        self.known.remove(&ports);
        Some(ports)
    }

    /// Ends a stream: it is closed.
    pub fn remove(&mut self, slot: usize) {
        self.forget(slot);
        if self.entries.get_mut(slot).and_then(Option::take).is_some() {
            self.count -= 1;
        }
    }

    /// Ends those that are for the guest; what others have left is still handed on.
    pub fn reset(&mut self) {
        for slot in 0..MOST {
            self.forget(slot);
            if let Some(entry) = self.get(slot) {
                entry.is_in_row = false;
                if !entry.connection.leave() {
                    self.remove(slot);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Header;

    fn connection() -> Connection {
        Connection::of_guest(&Header::default())
    }

    #[test]
    fn there_are_so_many_and_no_more() {
        let mut table = Table::default();
        for guest in 0..256 {
            let ports = Ports { host: 1, guest };
            assert!(table.add(connection(), Some(ports)).is_some());
            assert!(table.find(ports).is_some());
        }
        assert!(table.is_full());
        assert_eq!(table.add(connection(), None), None);
        table.remove(7);
        table.remove(7);
        assert!(!table.is_full());
        assert_eq!(table.add(connection(), None), Some(7));
        table.reset();
        assert!(!table.is_full());
        assert_eq!(table.find(Ports { host: 1, guest: 0 }), None);
    }

    #[test]
    fn no_two_streams_have_the_same_port_of_the_host() {
        let mut table = Table::default();
        // The guest may connect to such a port as to any other.
        let taken = Ports {
            host: FIRST_PORT,
            guest: 9,
        };
        table.add(connection(), Some(taken)).unwrap();
        let first = table.add(connection(), None).unwrap();
        let second = table.add(connection(), None).unwrap();
        assert_eq!(table.name(first, 5).unwrap().host, FIRST_PORT + 1);
        table.next_port = LAST_PORT;
        assert_eq!(table.name(second, 5).unwrap().host, LAST_PORT);
        let third = table.add(connection(), None).unwrap();
        assert_eq!(table.name(third, 5).unwrap().host, FIRST_PORT + 2);
    }
}
