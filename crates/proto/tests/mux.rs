//! Both roles of the channel against each other, over a byte stream that is cut anywhere.

use std::collections::VecDeque;

use cloche_proto::frame::Key;
use cloche_proto::mux::{Event, Mux, WINDOW};

const SESSION: Key = *b"0123456789abcdef0123456789abcdef";
const UP: u32 = 3;
const DOWN: u32 = 2;

/// A small generator of repeatable random numbers (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// The byte at `offset` of every test stream.
fn pattern(offset: usize) -> u8 {
    (offset.wrapping_mul(2_654_435_761) >> 13) as u8
}

/// One side's view of a job's stream it writes and one it reads.
#[derive(Default)]
struct Side {
    written: usize,
    read: usize,
    ended: bool,
    finished: bool,
}

struct Pair {
    host: Mux,
    agent: Mux,
    to_agent: VecDeque<u8>,
    to_host: VecDeque<u8>,
    host_side: Side,
    agent_side: Side,
    total: usize,
    attaches: u64,
}

impl Pair {
    fn new(total: usize) -> Self {
        let mut pair = Self {
            host: Mux::host(),
            agent: Mux::agent(SESSION),
            to_agent: VecDeque::new(),
            to_host: VecDeque::new(),
            host_side: Side::default(),
            agent_side: Side::default(),
            total,
            attaches: 0,
        };
        pair.host.open_receiver(UP);
        pair.host.open_sender(DOWN);
        pair.agent.open_receiver(DOWN);
        pair.agent.open_sender(UP);
        pair.connect();
        pair
    }

    fn connect(&mut self) {
        self.attaches += 1;
        let nonce = format!("{:032x}", self.attaches * 0xABCD_EF01);
        self.host.connect(nonce.as_bytes().try_into().unwrap());
    }

    /// The byte stream is cut: what the host had sent is lost; what the agent had sent may reach the new one.
    fn cut(&mut self, random: &mut Random) {
        self.to_agent.clear();
        if random.below(2) == 0 {
            self.to_host.clear();
        }
        if random.below(2) == 0 {
            self.agent.disconnect();
        }
        self.connect();
    }

    fn is_done(&self) -> bool {
        [&self.host_side, &self.agent_side]
            .iter()
            .all(|side| side.ended && side.finished && side.read == self.total)
    }

    fn step(&mut self, random: &mut Random, largest: usize) {
        let amount = random.below(largest) + 1;
        match random.below(4) {
            0 => Self::carry(&mut self.host, &mut self.to_agent, amount, true),
            1 => Self::carry(&mut self.agent, &mut self.to_host, amount, true),
            2 => Self::carry(&mut self.host, &mut self.to_host, amount, false),
            _ => Self::carry(&mut self.agent, &mut self.to_agent, amount, false),
        }
        let total = self.total;
        Self::work(&mut self.host, &mut self.host_side, UP, DOWN, total, random);
        Self::work(
            &mut self.agent,
            &mut self.agent_side,
            DOWN,
            UP,
            total,
            random,
        );
    }

    fn carry(mux: &mut Mux, wire: &mut VecDeque<u8>, amount: usize, out: bool) {
        if out {
            let bytes = mux.output();
            let count = bytes.len().min(amount);
            wire.extend(&bytes[..count]);
            mux.sent(count);
        } else {
            let count = wire.len().min(amount).min(65536);
            let space = mux.input_space();
            for (place, byte) in space.iter_mut().zip(wire.drain(..count)) {
                *place = byte;
            }
            mux.received(count);
        }
    }

    fn work(mux: &mut Mux, side: &mut Side, from: u32, to: u32, total: usize, random: &mut Random) {
        let take = random.below(3);
        loop {
            let read = &mut side.read;
            let mut direct = |stream: u32, bytes: &[u8]| {
                assert_eq!(stream, from);
                let count = bytes.len().checked_div(take).unwrap_or(0);
                for byte in &bytes[..count] {
                    assert_eq!(*byte, pattern(*read));
                    *read += 1;
                }
                count
            };
            match mux.next_event(&mut direct).unwrap() {
                None => break,
                Some(Event::Finished { stream }) => {
                    assert_eq!(stream, to);
                    side.finished = true;
                }
                Some(Event::Lost | Event::OtherVersion { .. }) => {}
                Some(_) => {}
            }
        }
        let waiting = mux.peek(from);
        let count = random.below(waiting.len() + 1);
        for byte in &waiting[..count] {
            assert_eq!(*byte, pattern(side.read));
            side.read += 1;
        }
        mux.consume(from, count);
        side.ended |= side.read == total && mux.is_at_end(from);
        let room = mux.room(to).min(total - side.written);
        let amount = random.below(room + 1);
        let bytes: Vec<u8> = (side.written..side.written + amount).map(pattern).collect();
        assert_eq!(mux.send(to, &bytes), amount);
        side.written += amount;
        // A host says nothing on an input stream before its first credit, the end included.
        if side.written == total && total > 0 {
            mux.finish(to, false);
        }
    }
}

/// Bytes and ends of both directions arrive once and in order, whatever the pieces and however often the byte stream
/// is cut.
#[test]
fn random_cuts_lose_and_double_nothing() {
    for seed in 0..45 {
        let mut random = Random(seed);
        let largest = [64, 3000, 100_000][seed as usize % 3];
        let longest = if largest == 64 { 40_000 } else { 900_000 };
        let mut pair = Pair::new(1 + random.below(longest));
        let mut cuts = 0;
        let mut steps = 0;
        while !pair.is_done() {
            pair.step(&mut random, largest);
            if cuts < 100 && random.below(if largest == 64 { 400 } else { 40 }) == 0 {
                pair.cut(&mut random);
                cuts += 1;
            }
            steps += 1;
            assert!(steps < 2_000_000, "seed {seed} does not end");
        }
    }
}

/// A cut at every single byte, in either direction, changes nothing in what arrives.
#[test]
fn every_cut_position() {
    for to_agent in [true, false] {
        let mut position = 0;
        loop {
            let mut random = Random(position as u64);
            let mut pair = Pair::new(12);
            let mut carried = 0;
            let mut was_cut = false;
            while !pair.is_done() {
                let wire = if to_agent {
                    pair.to_agent.len()
                } else {
                    pair.to_host.len()
                };
                pair.step(&mut random, 1);
                let now = if to_agent {
                    pair.to_agent.len()
                } else {
                    pair.to_host.len()
                };
                carried += usize::from(now > wire);
                if !was_cut && carried == position {
                    was_cut = true;
                    pair.cut(&mut random);
                }
            }
            if !was_cut && position > 0 {
                break;
            }
            position += 1;
        }
        assert!(position > 100, "only {position} positions were cut");
    }
}

/// STOP drops what the sender holds, is answered by an aborted EOF, and the receiver then forgets the stream with a
/// FIN, also when the byte stream is cut after each of these frames.
#[test]
fn stop_ends_both_ways() {
    for cut_after in 0..6 {
        let mut random = Random(cut_after);
        let mut pair = Pair::new(0);
        let settle = |pair: &mut Pair| {
            for _ in 0..400 {
                for (out, amount) in [(true, 100_000), (false, 60_000)] {
                    Pair::carry(
                        &mut pair.host,
                        if out {
                            &mut pair.to_agent
                        } else {
                            &mut pair.to_host
                        },
                        amount,
                        out,
                    );
                    Pair::carry(
                        &mut pair.agent,
                        if out {
                            &mut pair.to_host
                        } else {
                            &mut pair.to_agent
                        },
                        amount,
                        out,
                    );
                    while pair.host.next_event(&mut |_, _| 0).unwrap().is_some() {}
                    while pair.agent.next_event(&mut |_, _| 0).unwrap().is_some() {}
                }
            }
        };
        settle(&mut pair);
        assert_eq!(pair.agent.send(UP, &vec![7; WINDOW]), WINDOW);
        assert_eq!(pair.host.send(DOWN, &[7; 1000]), 1000);
        for step in 0..6 {
            if step == 2 {
                pair.host.stop(UP);
                pair.agent.stop(DOWN);
            }
            if step == cut_after {
                pair.cut(&mut random);
            }
            Pair::carry(&mut pair.host, &mut pair.to_agent, 90, true);
            Pair::carry(&mut pair.agent, &mut pair.to_host, 70_000, true);
            Pair::carry(&mut pair.agent, &mut pair.to_agent, 64, false);
            Pair::carry(&mut pair.host, &mut pair.to_host, 64, false);
            while pair.host.next_event(&mut |_, _| 0).unwrap().is_some() {}
            while pair.agent.next_event(&mut |_, _| 0).unwrap().is_some() {}
        }
        settle(&mut pair);
        for stream in [UP, DOWN] {
            assert!(!pair.host.knows(stream) && !pair.agent.knows(stream));
        }
    }
}

/// A stream nobody reads fills its window and no more, and does not hold up another.
#[test]
fn an_unread_stream_blocks_no_other() {
    let mut pair = Pair::new(200_000);
    pair.agent.open_sender(5);
    pair.host.open_receiver(5);
    assert_eq!(pair.agent.send(5, &vec![1; 2 * WINDOW]), WINDOW);
    assert_eq!(pair.agent.room(5), 0);
    let mut random = Random(1);
    let mut steps = 0;
    while !pair.is_done() {
        let amount = 5000;
        Pair::carry(&mut pair.host, &mut pair.to_agent, amount, true);
        Pair::carry(&mut pair.agent, &mut pair.to_host, amount, true);
        Pair::carry(&mut pair.host, &mut pair.to_host, amount, false);
        Pair::carry(&mut pair.agent, &mut pair.to_agent, amount, false);
        // Stream 5 stays in the host's receiver; only the others are worked on.
        let mut stray = |stream: u32, _: &[u8]| {
            assert!(stream == 5 || stream == UP || stream == DOWN);
            0
        };
        while pair.host.next_event(&mut stray).unwrap().is_some_and(|e| {
            pair.host_side.finished |= e == Event::Finished { stream: DOWN };
            true
        }) {}
        Pair::work(
            &mut pair.host,
            &mut pair.host_side,
            UP,
            DOWN,
            200_000,
            &mut random,
        );
        Pair::work(
            &mut pair.agent,
            &mut pair.agent_side,
            DOWN,
            UP,
            200_000,
            &mut random,
        );
        steps += 1;
        assert!(steps < 100_000);
    }
    assert_eq!(pair.agent.room(5), 0);
    assert!(pair.host.peek(5).len() <= WINDOW);
}

/// However much waits, what is put together at once is at most what a virtio port takes in one write, so that no write
/// carries only a rest.
#[test]
fn output_fits_one_write() {
    let mut pair = Pair::new(0);
    pair.agent.open_sender(5);
    for _ in 0..20 {
        Pair::carry(&mut pair.host, &mut pair.to_agent, 100_000, true);
        Pair::carry(&mut pair.agent, &mut pair.to_agent, 60_000, false);
        while pair.agent.next_event(&mut |_, _| 0).unwrap().is_some() {}
    }
    let greeting = pair.agent.output().len();
    pair.agent.sent(greeting);
    for stream in [UP, 5] {
        assert_eq!(pair.agent.send(stream, &vec![1; WINDOW]), WINDOW);
    }
    let mut total = 0;
    loop {
        let count = pair.agent.output().len();
        if count == 0 {
            break;
        }
        assert!(count <= 32_768, "{count}");
        total += count;
        pair.agent.sent(count);
    }
    assert!(total > 2 * WINDOW);
}
