//! What comes from the host: programs that connect, bytes, and the supervisor's answers.

use std::io;

use super::Sockets;
use crate::connection::{Connection, Next, State};
use crate::outside::Event;
use crate::table::Ports;

impl Sockets {
    /// Asks the supervisor for the next stream that is still wanted, one at a time.
    pub(super) fn ask(&mut self) {
        while self.asked.is_none() {
            let Some(ports) = self.wanted.pop_front() else {
                return;
            };
            if !self.is_asked_for(ports) {
                continue;
            }
            if let Err(error) = self.outside.ask(ports.host) {
                self.lose(&error);
                return;
            }
            self.asked = Some(ports);
        }
    }

    pub(super) fn is_asked_for(&mut self, ports: Ports) -> bool {
        let entry = self.table.find(ports).and_then(|slot| self.table.get(slot));
        entry.is_some_and(|entry| entry.connection.state() == State::Asked)
    }

    /// The supervisor has gone: nobody is found any more.
    fn lose(&mut self, error: &io::Error) {
        log::warn!("the supervisor cannot be asked any more: {error}");
        self.is_supervised = false;
        let mut lost = std::mem::take(&mut self.wanted);
        lost.extend(self.asked.take());
        for ports in lost {
            self.refuse(ports);
        }
    }

    fn refuse(&mut self, ports: Ports) {
        if let Some(slot) = self.table.find(ports) {
            if self.is_asked_for(ports) {
                self.follow(slot, Next::Reset);
            }
        }
    }

    pub(super) fn look(&mut self) {
        let events = match self.outside.look() {
            Ok(events) => events,
            Err(error) => {
                log::error!("the host cannot be listened to: {error}");
                return;
            }
        };
        for event in events {
            match event {
                Event::Knock => self.is_knocked = true,
                Event::Answer => self.take_answers(),
                Event::Stream { slot, is_over } => {
                    if let Some(entry) = self.table.get(slot) {
                        let next = entry.connection.stirred(is_over);
                        self.follow(slot, next);
                    }
                }
            }
        }
        self.let_in();
    }

    /// Lets programs of the host in, as long as there is room.
    fn let_in(&mut self) {
        while self.is_knocked && !self.table.is_full() {
            let stream = match self.outside.accept() {
                Ok(Some(stream)) => stream,
                Ok(None) => {
                    self.is_knocked = false;
                    return;
                }
                Err(error) => {
                    log::warn!("a program of the host cannot be let in: {error}");
                    self.is_knocked = false;
                    return;
                }
            };
            let Some(slot) = self.table.add(Connection::of_host(stream), None) else {
                return;
            };
            self.listen_to(slot);
        }
    }

    fn listen_to(&mut self, slot: usize) {
        let Some(entry) = self.table.get(slot) else {
            return;
        };
        let Some(stream) = entry.connection.stream() else {
            return;
        };
        let listened = self.outside.listen_to(slot, stream);
        let next = match listened {
            // What came before has made no sign.
            Ok(()) => entry.connection.stirred(false),
            Err(error) => {
                log::warn!("a program of the host cannot be listened to: {error}");
                Next::Reset
            }
        };
        self.follow(slot, next);
    }

    fn take_answers(&mut self) {
        loop {
            let answer = match self.outside.answer() {
                Ok(Some(answer)) => answer,
                Ok(None) => return,
                Err(error) => return self.lose(&error),
            };
            // What nobody waits for any more is closed.
            if let Some(ports) = self.asked.take() {
                match (self.table.find(ports), answer) {
                    (Some(slot), Some(stream)) if self.is_asked_for(ports) => {
                        if let Some(entry) = self.table.get(slot) {
                            entry.connection.connected(stream);
                        }
                        self.listen_to(slot);
                    }
                    _ => self.refuse(ports),
                }
            }
            self.ask();
        }
    }
}
