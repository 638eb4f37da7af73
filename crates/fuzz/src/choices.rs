//! An input read as a row of decisions.

/// Bytes as small numbers; zeros when they are used up. So every input means something, and a longer one means more.
#[derive(Debug)]
pub struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    pub fn new(input: &'a [u8]) -> Self {
        Choices(input)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Up to `count` bytes as they are.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        self.bytes(usize::MAX)
    }

    pub fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    pub fn u32(&mut self) -> u32 {
        u32::from(self.u16()) | u32::from(self.u16()) << 16
    }

    pub fn u64(&mut self) -> u64 {
        u64::from(self.u32()) | u64::from(self.u32()) << 32
    }

    /// A number smaller than `bound`, which is not zero and at most 256.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::from(self.byte()) % bound
    }

    /// True once in so many times, and never at the end of the input.
    pub fn once_in(&mut self, times: u8) -> bool {
        self.byte() % times == times - 1
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// A number near something that matters, or any.
    pub fn number(&mut self) -> u64 {
        const NEAR: [u64; 14] = [
            0,
            1,
            2,
            8,
            0x100,
            0x1000,
            0x1_0000,
            1 << 31,
            1 << 32,
            1 << 40,
            i64::MAX as u64 - 0x7F,
            i64::MAX as u64 + 1,
            u64::MAX - 0xFF,
            u64::MAX,
        ];
        match self.byte() {
            kind @ 0..=0xBF => {
                NEAR[usize::from(kind) % NEAR.len()].wrapping_add(self.byte().into())
            }
            0xC0..=0xDF => self.u16().into(),
            0xE0..=0xEF => self.u32().into(),
            _ => self.u64(),
        }
    }
}
