//! CRC-32 as zlib's: the host's Python computes the same (ISO 3309, reflected, polynomial EDB88320).

const POLYNOMIAL: u32 = 0xEDB8_8320;
/// Bytes that are looked up at a time.
const STEP: usize = 8;

static TABLES: [[u32; 256]; STEP] = tables();

const fn tables() -> [[u32; 256]; STEP] {
    let mut tables = [[0; 256]; STEP];
    let mut byte = 0;
    while byte < 256 {
        let mut value = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            value = value >> 1 ^ if value & 1 == 1 { POLYNOMIAL } else { 0 };
            bit += 1;
        }
        tables[0][byte] = value;
        byte += 1;
    }
    let mut step = 1;
    while step < STEP {
        byte = 0;
        while byte < 256 {
            let before = tables[step - 1][byte];
            tables[step][byte] = before >> 8 ^ tables[0][(before & 0xFF) as usize];
            byte += 1;
        }
        step += 1;
    }
    tables
}

/// Returns the checksum of what had the checksum `before` (0 for nothing), followed by `bytes`.
#[must_use]
pub fn crc32(before: u32, bytes: &[u8]) -> u32 {
    let mut crc = !before;
    let mut rest = bytes;
    while let Some((step, behind)) = rest.split_first_chunk::<STEP>() {
        rest = behind;
        // The first four bytes meet what came before; each byte has the table of its distance from the end.
        let [a, b, c, d, e, f, g, h] = (u64::from_le_bytes(*step) ^ u64::from(crc))
            .to_le_bytes()
            .map(usize::from);
        crc = TABLES[7][a]
            ^ TABLES[6][b]
            ^ TABLES[5][c]
            ^ TABLES[4][d]
            ^ TABLES[3][e]
            ^ TABLES[2][f]
            ^ TABLES[1][g]
            ^ TABLES[0][h];
    }
    for byte in rest {
        crc = crc >> 8 ^ TABLES[0][usize::from(crc as u8 ^ byte)];
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_known_one_however_it_is_cut() {
        assert_eq!(crc32(0, b"123456789"), 0xCBF4_3926);
        assert_eq!(crc32(0, b""), 0);
        let bytes: Vec<u8> = (0..1000_u32).map(|number| (number * 7) as u8).collect();
        for cut in [0, 1, 7, 8, 9, 500, 999, 1000] {
            let (one, other) = bytes.split_at(cut);
            assert_eq!(crc32(crc32(0, one), other), crc32(0, &bytes));
        }
    }
}
