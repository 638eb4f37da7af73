//! What a program of the host says first: `CONNECT port` and the end of a line, as to Firecracker.

use std::io::{self, Read};

/// The longest such line.
const LONGEST: usize = 32;
/// No port, but any (`VMADDR_PORT_ANY`).
const ANY_PORT: u32 = u32::MAX;

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Greeting {
    /// The line is not whole.
    Begun,
    /// It is, and names a port.
    Port(u32),
    /// It is none of these lines, or nobody is there any more.
    Over,
}

/// Reads on. `line` keeps what has come; once the line is whole, what came behind it.
pub fn read(line: &mut Vec<u8>, stream: &mut impl Read) -> Greeting {
    loop {
        let mut room = [0; LONGEST];
        let left = room.get_mut(line.len()..).unwrap_or_default();
        // What fills the room without an end of line is none of these lines.
        if left.is_empty() {
            return Greeting::Over;
        }
        match stream.read(left) {
            Ok(0) => return Greeting::Over,
            Ok(count) => line.extend(left.iter().take(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Greeting::Begun,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Greeting::Over,
        }
        let Some(end) = line.iter().position(|byte| *byte == b'\n') else {
            continue;
        };
        let behind = line.split_off(end + 1);
        let Some(port) = port_of(line) else {
            log::debug!("a program said something else than CONNECT and a port");
            return Greeting::Over;
        };
        *line = behind;
        return Greeting::Port(port);
    }
}

/// The port in such a line, with its end.
fn port_of(line: &[u8]) -> Option<u32> {
    let digits = line.strip_prefix(b"CONNECT ")?.strip_suffix(b"\n")?;
    let digits = digits.strip_suffix(b"\r").unwrap_or(digits);
    // A sign is no digit, and would be read.
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let port = std::str::from_utf8(digits).ok()?.parse().ok()?;
    (port != ANY_PORT).then_some(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_name_ports() {
        for (line, port) in [
            (&b"CONNECT 0\n"[..], Some(0)),
            (b"CONNECT 4294967294\n", Some(ANY_PORT - 1)),
            (b"CONNECT 80\r\n", Some(80)),
            (b"CONNECT 4294967295\n", None),
            (b"CONNECT 4294967296\n", None),
            (b"CONNECT -1\n", None),
            (b"CONNECT +1\n", None),
            (b"CONNECT \n", None),
            (b"CONNECT 1 \n", None),
            (b"connect 1\n", None),
            (b"CONNECT 1", None),
        ] {
            assert_eq!(port_of(line), port, "{line:?}");
        }
    }
}
