//! Repeatable mutations of seeds, for runs without a guide.

/// A small generator of repeatable random numbers (SplitMix64).
#[derive(Debug)]
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
        usize::try_from(self.next() % bound.max(1) as u64).unwrap_or(0)
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }
}

/// `count` inputs made of `seeds`, each at most `longest` bytes; the same ones every time.
pub fn mutations<'s>(
    seeds: &'s [Vec<u8>],
    count: usize,
    longest: usize,
) -> impl Iterator<Item = Vec<u8>> + 's {
    let mut random = Random(0x636C_6F63_6865);
    (0..count).map(move |_| {
        let mut input = match seeds.get(random.below(seeds.len() + 1)) {
            Some(seed) => seed.clone(),
            None => (0..random.below(512)).map(|_| random.byte()).collect(),
        };
        for _ in 0..=random.below(6) {
            change(&mut input, seeds, &mut random);
        }
        input.truncate(longest);
        input
    })
}

fn change(input: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Random) {
    const WORDS: [u32; 8] = [0, 1, 0xFF, 0x100, 0x1_0000, 1 << 31, u32::MAX - 1, u32::MAX];
    let place = random.below(input.len() + 1);
    match random.below(7) {
        0 => {
            if let Some(byte) = input.get_mut(place) {
                *byte ^= 1 << random.below(8);
            }
        }
        1 => {
            if let Some(byte) = input.get_mut(place) {
                *byte = random.byte();
            }
        }
        2 => {
            let word = WORDS[random.below(WORDS.len())].to_le_bytes();
            for (byte, value) in input.iter_mut().skip(place).zip(word) {
                *byte = value;
            }
        }
        3 => input.insert(place, random.byte()),
        4 => input.truncate(place),
        5 => {
            let end = input.len().min(place + random.below(16));
            input.drain(place..end);
        }
        _ => {
            // The end of another seed behind the beginning of this one.
            if let Some(other) = seeds.get(random.below(seeds.len())) {
                input.truncate(place);
                input.extend(other.iter().skip(place));
            }
        }
    }
}
