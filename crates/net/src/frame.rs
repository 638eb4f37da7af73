//! What a frame must be like to be handed on.

use std::fmt;

/// Bytes in front of what a frame carries: two addresses and a type.
pub const ETHERNET: usize = 14;
/// Bytes that a VLAN tag adds.
const VLAN: usize = 4;
/// Bytes of one address.
const ADDRESS: usize = 6;

/// Bytes of the shortest header of IPv4, and where in it the destination stands (RFC 791).
const IPV4: usize = 20;
const IPV4_DESTINATION: usize = 16;

/// Bytes of the header of IPv6, where in it stands what follows and where the destination begins (RFC 8200).
const IPV6: usize = 40;
const IPV6_NEXT: usize = 6;
const IPV6_DESTINATION: usize = 24;
/// What follows in a message about the link (RFC 4443), and those of its types by which a guest finds its neighbours and its
/// router (RFC 4861): solicitations and advertisements of both.
const ICMPV6: u8 = 58;
const NEIGHBOURS: std::ops::RangeInclusive<u8> = 133..=136;

/// Bytes a frame carries, at most, unless another number is given.
pub const DEFAULT_MTU: u16 = 1500;
/// The largest such number that can be given.
pub const MOST_MTU: u16 = 9216;

/// Bytes of the header that virtio puts in front of every frame (`struct virtio_net_hdr_v1`).
pub const VIRTIO_HEADER: usize = 12;
/// Where in it stands how many buffers the frame takes: one, always.
const NUM_BUFFERS: usize = 10;

/// The address of a network card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mac([u8; ADDRESS]);

impl Mac {
    /// Reads `02:00:00:00:00:01`. A group's address, and the one of zeros, are nobody's own.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; ADDRESS];
        let mut words = text.split(':');
        for byte in &mut bytes {
            let word = words.next().filter(|word| word.len() == 2)?;
            // A sign would be read, too.
            let word = Some(word).filter(|word| !word.starts_with('+'))?;
            *byte = u8::from_str_radix(word, 16).ok()?;
        }
        let is_own = words.next().is_none() && bytes[0] & 1 == 0 && bytes != [0; ADDRESS];
        is_own.then_some(Mac(bytes))
    }
}

/// Why a frame was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The guest asks for help that was not offered: checksums, segments, more than one buffer.
    Offload,
    /// The guest's memory, or what it holds, is no frame.
    NoFrame,
    /// It is longer than the link carries.
    Long,
    /// The guest says that somebody else has sent it.
    Source,
    /// It is for somebody else.
    Destination,
    /// The guest's buffer has no room for it.
    Room,
    /// There is nobody to hand it on to.
    NoPeer,
    /// It is of a protocol that is not handed on to the host's own network.
    Protocol,
    /// It is for the host itself, by an address that leads nowhere else.
    Host,
}

/// All reasons.
const REASONS: [Reason; 9] = [
    Reason::Offload,
    Reason::NoFrame,
    Reason::Long,
    Reason::Source,
    Reason::Destination,
    Reason::Room,
    Reason::NoPeer,
    Reason::Protocol,
    Reason::Host,
];

impl Reason {
    fn text(self) -> &'static str {
        match self {
            Reason::Offload => "asked for what was not offered",
            Reason::NoFrame => "were no frames",
            Reason::Long => "were too long",
            Reason::Source => "had another's address as their sender",
            Reason::Destination => "were for somebody else",
            Reason::Room => "found too small a buffer",
            Reason::NoPeer => "had nobody to go to",
            Reason::Protocol => "were of a protocol that is not handed on",
            Reason::Host => "were for the host itself",
        }
    }
}

/// How many frames were dropped, and why.
#[derive(Debug, Default)]
pub struct Dropped([u64; REASONS.len()]);

impl Dropped {
    /// Counts a frame. The first of each kind is told: a flood of them must not fill anybody's log.
    pub fn count(&mut self, reason: Reason) {
        let place = &mut self.0[reason as usize];
        // These are no fault of anybody's.
        let usual = [Reason::Destination, Reason::NoPeer, Reason::Protocol];
        if *place == 0 && !usual.contains(&reason) {
            log::warn!("frames are dropped that {}", reason.text());
        }
        *place = place.saturating_add(1);
    }

    /// How many were dropped for this reason.
    #[must_use]
    pub fn of(&self, reason: Reason) -> u64 {
        self.0[reason as usize]
    }
}

impl fmt::Display for Dropped {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for reason in REASONS {
            let count = self.of(reason);
            if count > 0 {
                write!(formatter, "{separator}{count} {}", reason.text())?;
                separator = ", ";
            }
        }
        formatter.write_str(if separator.is_empty() { "none" } else { "" })
    }
}

/// What is handed on.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    mac: Mac,
    mtu: u16,
    outward: bool,
}

impl Rules {
    /// The rules of a guest with this address, on a link whose frames carry up to `mtu` bytes.
    #[must_use]
    pub fn new(mac: Mac, mtu: u16) -> Self {
        Rules {
            mac,
            mtu,
            outward: false,
        }
    }

    /// The same for a peer that stands in the host's own network and connects to whatever address it is told: nothing
    /// goes out but ARP, IPv4 and IPv6, and nothing that is for the host itself or, by IPv6, for its link alone.
    #[must_use]
    pub fn outward(self) -> Self {
        Rules {
            outward: true,
            ..self
        }
    }

    /// Bytes of the longest frame.
    #[must_use]
    pub fn longest(&self) -> usize {
        ETHERNET + VLAN + usize::from(self.mtu)
    }

    /// Whether a frame of the guest's is handed on.
    ///
    /// # Errors
    /// Says why not.
    pub fn check_sent(&self, header: &[u8; VIRTIO_HEADER], frame: &[u8]) -> Result<(), Reason> {
        // Flags, kind of segmentation, number of buffers; the other fields mean nothing without them.
        if header[0] != 0 || header[1] != 0 || header[NUM_BUFFERS..] != [0; 2] {
            return Err(Reason::Offload);
        }
        self.check_length(frame)?;
        match frame.get(ADDRESS..2 * ADDRESS) {
            Some(source) if source == self.mac.0 || cfg!(feature = "mutant-any-source") => {}
            _ => return Err(Reason::Source),
        }
        if self.outward {
            check_outward(frame)
        } else {
            Ok(())
        }
    }

    /// Whether a frame is handed on to the guest.
    ///
    /// # Errors
    /// Says why not.
    pub fn check_received(&self, frame: &[u8]) -> Result<(), Reason> {
        self.check_length(frame)?;
        match frame.get(..ADDRESS) {
            Some(to) if to == self.mac.0 || to[0] & 1 == 1 => Ok(()),
            _ => Err(Reason::Destination),
        }
    }

    fn check_length(&self, frame: &[u8]) -> Result<(), Reason> {
        if frame.len() < ETHERNET {
            return Err(Reason::NoFrame);
        }
        if frame.len() > self.longest() {
            return Err(Reason::Long);
        }
        Ok(())
    }
}

/// Looks where a frame leads: by 127.0.0.0/8, and 0.0.0.0/8 which Linux takes for it, to the host that it is sent from; by IPv6
/// see [`check_ipv6`].
fn check_outward(frame: &[u8]) -> Result<(), Reason> {
    match frame.get(2 * ADDRESS..ETHERNET) {
        Some([0x08, 0x06]) => Ok(()),
        Some([0x08, 0x00]) => match frame.get(ETHERNET..ETHERNET + IPV4) {
            None => Err(Reason::NoFrame),
            Some(header) if matches!(header[IPV4_DESTINATION], 0 | 127) => Err(Reason::Host),
            Some(_) => Ok(()),
        },
        Some([0x86, 0xDD]) => check_ipv6(frame.get(ETHERNET..).unwrap_or_default()),
        _ => Err(Reason::Protocol),
    }
}

/// The same for a packet of IPv6: to the host itself leads ::/64, in which are ::1 and, by ::ffff:0:0/96, every address of IPv4. By
/// an address of the link alone (fe80::/10) the host's own services would be reached, too; there and to groups (ff00::/8) go the
/// messages without which there is no IPv6, which the peer answers itself.
fn check_ipv6(packet: &[u8]) -> Result<(), Reason> {
    let Some((header, rest)) = packet.split_at_checked(IPV6) else {
        return Err(Reason::NoFrame);
    };
    let is_of_link =
        header[IPV6_NEXT] == ICMPV6 && rest.first().is_some_and(|kind| NEIGHBOURS.contains(kind));
    match &header[IPV6_DESTINATION..] {
        [0, 0, 0, 0, 0, 0, 0, 0, ..] => Err(Reason::Host),
        [0xFE, second, ..] if second & 0xC0 == 0x80 && !is_of_link => Err(Reason::Host),
        [0xFF, ..] if !is_of_link => Err(Reason::Protocol),
        _ => Ok(()),
    }
}

/// The header of a frame for the guest.
#[must_use]
pub fn received_header() -> [u8; VIRTIO_HEADER] {
    let mut header = [0; VIRTIO_HEADER];
    header[NUM_BUFFERS] = 1;
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn rules() -> Rules {
        Rules::new(Mac(OWN), DEFAULT_MTU)
    }

    fn frame(to: [u8; 6], from: [u8; 6], length: usize) -> Vec<u8> {
        let mut frame = [to, from].concat();
        frame.resize(length, 0);
        frame
    }

    #[test]
    fn an_address_is_six_numbers_and_somebodys_own() {
        assert_eq!(Mac::parse("02:00:00:00:00:01"), Some(Mac(OWN)));
        for wrong in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "2:00:00:00:00:01",
            "02:00:00:00:00:+1",
            "02-00-00-00-00-01",
            "03:00:00:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
            "02:00:00:00:00:0é",
        ] {
            assert_eq!(Mac::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_guest_sends_frames_of_its_own_and_of_the_right_length() {
        let header = [0; VIRTIO_HEADER];
        let check = |frame: &[u8]| rules().check_sent(&header, frame);
        for length in [14, 60, 1514, 1518] {
            assert_eq!(check(&frame([3; 6], OWN, length)), Ok(()));
        }
        assert_eq!(check(&frame([3; 6], OWN, 1519)), Err(Reason::Long));
        assert_eq!(check(&frame([3; 6], OWN, 13)), Err(Reason::NoFrame));
        assert_eq!(check(&[]), Err(Reason::NoFrame));
        assert_eq!(check(&frame(OWN, [4; 6], 60)), Err(Reason::Source));
    }

    #[test]
    fn nothing_goes_outward_that_leads_to_the_host() {
        let outward = rules().outward();
        let check = |kind: [u8; 2], to: [u8; 4], length| {
            let mut one = frame([3; 6], OWN, 60);
            one[12..14].copy_from_slice(&kind);
            one[30..34].copy_from_slice(&to);
            one.truncate(length);
            outward.check_sent(&[0; VIRTIO_HEADER], &one)
        };
        assert_eq!(check([8, 0], [10, 0, 2, 2], 60), Ok(()));
        assert_eq!(check([8, 0], [255; 4], 34), Ok(()));
        assert_eq!(check([8, 6], [127, 0, 0, 1], 60), Ok(()));
        for host in [[127, 0, 0, 1], [127, 255, 255, 255], [0; 4], [0, 1, 2, 3]] {
            assert_eq!(check([8, 0], host, 60), Err(Reason::Host));
        }
        assert_eq!(check([8, 0], [10, 0, 2, 2], 33), Err(Reason::NoFrame));
        // A VLAN tag with IPv4 behind it, anything else.
        for kind in [[0x81, 0], [0, 0]] {
            assert_eq!(check(kind, [10, 0, 2, 2], 60), Err(Reason::Protocol));
        }
        let mut inward = frame([3; 6], OWN, 60);
        inward[12] = 8;
        assert_eq!(rules().check_sent(&[0; VIRTIO_HEADER], &inward), Ok(()));
    }

    #[test]
    fn nothing_of_ipv6_goes_outward_that_leads_to_the_host() {
        let outward = rules().outward();
        let check = |to: &str, next: u8, kind: u8, length| {
            let mut one = frame([3; 6], OWN, 70);
            one[12..14].copy_from_slice(&[0x86, 0xDD]);
            let to: std::net::Ipv6Addr = to.parse().unwrap();
            one[38..54].copy_from_slice(&to.octets());
            (one[20], one[54]) = (next, kind);
            one.truncate(length);
            outward.check_sent(&[0; VIRTIO_HEADER], &one)
        };
        for to in [
            "2001:db8::1",
            "fd77::1",
            "64:ff9b::7f00:1",
            "fec0::1",
            "fe7f::1",
        ] {
            assert_eq!(check(to, 6, 0, 60), Ok(()), "{to}");
        }
        let of_host = [
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:0:7f00:1",
        ];
        for to in of_host {
            assert_eq!(check(to, 6, 0, 60), Err(Reason::Host), "{to}");
            assert_eq!(check(to, 58, 135, 60), Err(Reason::Host), "{to}");
        }
        for to in ["fe80::1", "febf:ffff::1"] {
            assert_eq!(check(to, 17, 135, 60), Err(Reason::Host), "{to}");
            assert_eq!(check(to, 58, 128, 60), Err(Reason::Host), "{to}");
            assert_eq!(check(to, 58, 135, 60), Ok(()), "{to}");
            assert_eq!(check(to, 58, 135, 54), Err(Reason::Host), "{to}");
        }
        assert_eq!(check("ff02::2", 58, 133, 60), Ok(()));
        assert_eq!(check("ff02::16", 58, 143, 60), Err(Reason::Protocol));
        assert_eq!(check("ff02::fb", 17, 0, 60), Err(Reason::Protocol));
        assert_eq!(check("2001:db8::1", 6, 0, 53), Err(Reason::NoFrame));
    }

    #[test]
    fn what_was_not_offered_is_not_taken() {
        let good = frame([3; 6], OWN, 60);
        for (place, value) in [(0, 1), (0, 2), (1, 1), (1, 0x80), (10, 1), (11, 1)] {
            let mut header = [0; VIRTIO_HEADER];
            header[place] = value;
            assert_eq!(rules().check_sent(&header, &good), Err(Reason::Offload));
        }
        // Hints that mean nothing without a flag.
        let mut header = [0; VIRTIO_HEADER];
        header[2..10].fill(0xFF);
        assert_eq!(rules().check_sent(&header, &good), Ok(()));
    }

    #[test]
    fn a_guest_receives_what_is_for_it_or_for_all() {
        let check = |to| rules().check_received(&frame(to, [4; 6], 60));
        assert_eq!(check(OWN), Ok(()));
        assert_eq!(check([0xFF; 6]), Ok(()));
        assert_eq!(check([0x33, 0x33, 0, 0, 0, 1]), Ok(()));
        assert_eq!(check([2, 0, 0, 0, 0, 2]), Err(Reason::Destination));
    }

    #[test]
    fn what_was_dropped_is_counted() {
        let mut dropped = Dropped::default();
        assert_eq!(dropped.to_string(), "none");
        for reason in REASONS {
            dropped.count(reason);
            dropped.count(reason);
            assert_eq!(dropped.of(reason), 2);
        }
        assert!(dropped.to_string().starts_with("2 asked for "));
    }
}
