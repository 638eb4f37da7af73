use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use super::*;

fn pair() -> (UnixStream, Stream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    (ours, Stream::from(OwnedFd::from(theirs)))
}

fn said(op: u16, room: u32, taken: u32) -> Header {
    Header {
        op,
        room,
        taken,
        ..Header::default()
    }
}

/// A stream of a guest's that keeps so many bytes.
fn open(room: u32) -> (UnixStream, Connection) {
    let (ours, theirs) = pair();
    let mut connection = Connection::of_guest(&said(op::REQUEST, room, 0));
    connection.connected(theirs);
    assert_eq!(connection.speak(&mut []), Word::Control(op::RESPONSE, 0));
    (ours, connection)
}

#[test]
fn a_line_may_come_in_pieces() {
    let (mut ours, theirs) = pair();
    let mut connection = Connection::of_host(theirs);
    for byte in b"CONNECT 123" {
        ours.write_all(&[*byte]).unwrap();
        assert_eq!(connection.stirred(false), Next::On);
    }
    ours.write_all(b"\nrest").unwrap();
    assert_eq!(connection.stirred(false), Next::Offer(123));
    assert_eq!(connection.state(), State::Offered);
    assert!(connection.has_words());
    assert_eq!(connection.speak(&mut []), Word::Control(op::REQUEST, 0));
    assert!(!connection.has_words());
    assert_eq!(connection.hear(&said(op::RESPONSE, 100, 0), &[]), Next::On);
    assert_eq!(connection.accepted(9), Next::On);
    let mut room = [0; 100];
    assert_eq!(connection.speak(&mut room), Word::Data(4));
    assert_eq!(room[..4], *b"rest");
}

#[test]
fn windows_go_round() {
    // The counters have 32 bits, and a stream has more bytes than that.
    let (mut ours, mut connection) = open(10);
    connection.sent = u32::MAX - 4;
    connection.guest_taken = u32::MAX - 4;
    ours.write_all(&[7; 20]).unwrap();
    let mut room = [0; 64];
    assert_eq!(connection.stirred(false), Next::On);
    assert_eq!(connection.speak(&mut room), Word::Data(10));
    assert_eq!(
        connection.speak(&mut room),
        Word::Control(op::CREDIT_REQUEST, 0)
    );
    assert_eq!(connection.speak(&mut room), Word::Silence);
    assert!(!connection.has_words());
    connection.hear(&said(op::CREDIT_UPDATE, 10, 2), &[]);
    assert_eq!(connection.speak(&mut room), Word::Data(7));
    connection.taken = u32::MAX;
    connection.told = u32::MAX;
    connection.hear(&said(op::RW, 10, 12), b"four");
    assert_eq!(connection.credit(), (ROOM, 3));
}

#[test]
fn what_makes_no_sense_gives_no_room() {
    let (mut ours, mut connection) = open(10);
    ours.write_all(&[7; 20]).unwrap();
    for (room, taken) in [(0, 0), (10, 1), (10, u32::MAX / 2), (u32::MAX, 1)] {
        connection.hear(&said(op::CREDIT_UPDATE, room, taken), &[]);
        assert_eq!(connection.free(), 0, "{room} {taken}");
    }
}

#[test]
fn the_room_is_what_was_promised() {
    let (ours, mut connection) = open(10);
    let piece = [1; 4096];
    let mut sent = 0;
    while connection.waiting() == 0 {
        assert_eq!(connection.hear(&said(op::RW, 10, 0), &piece), Next::On);
        sent += piece.len();
    }
    // From here on everything is kept.
    let left = ROOM as usize - connection.waiting();
    let most = vec![2; left];
    assert_eq!(connection.hear(&said(op::RW, 10, 0), &most), Next::On);
    assert!(connection.kept.capacity() <= ROOM as usize);
    assert_eq!(connection.hear(&said(op::RW, 10, 0), &[3]), Next::Reset);
    sent += left;
    // Read in between, it fits again; the guest is told.
    let mut reader = ours;
    let mut got = vec![0; sent];
    let mut count = 0;
    while count < sent {
        count += reader.read(&mut got[count..]).unwrap();
        assert_eq!(connection.stirred(false), Next::On);
    }
    assert_eq!(connection.kept.capacity(), 0);
    assert_eq!(connection.credit().1 as usize, sent);
    assert_eq!(got[sent - left..], most);
}

#[test]
fn the_rest_is_handed_on_after_the_guests_end() {
    let (mut ours, mut connection) = open(10);
    let piece = [1; 4096];
    let mut sent = 0;
    while connection.waiting() < 5000 {
        connection.hear(&said(op::RW, 10, 0), &piece);
        sent += piece.len();
    }
    let both = Header {
        flags: NO_MORE_SENT | NO_MORE_RECEIVED,
        ..said(op::SHUTDOWN, 10, 0)
    };
    assert_eq!(
        connection.hear(&both, &[]),
        Next::Left { is_answered: true }
    );
    assert!(connection.leave());
    assert!(!connection.has_words());
    let mut next = Next::On;
    let mut got = 0;
    while next == Next::On {
        let count = ours.read(&mut [0; 4096]).unwrap();
        got += count;
        next = connection.stirred(false);
    }
    assert_eq!(next, Next::Gone);
    drop(connection);
    let mut rest = Vec::new();
    ours.read_to_end(&mut rest).unwrap();
    assert_eq!(got + rest.len(), sent);
}

#[test]
fn a_program_that_has_gone_is_noticed() {
    let (ours, mut connection) = open(10);
    drop(ours);
    assert_eq!(connection.stirred(true), Next::On);
    let both = NO_MORE_SENT | NO_MORE_RECEIVED;
    assert_eq!(
        connection.speak(&mut [0; 8]),
        Word::Control(op::SHUTDOWN, both)
    );
    assert_eq!(connection.hear(&said(op::RW, 10, 0), b"x"), Next::Reset);
}
