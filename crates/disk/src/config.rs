//! What the guest is told about its disk: feature bits and the configuration space (virtio 1.2, 5.2).

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};

/// Bytes of a sector, which is what virtio counts in whatever the disk's blocks are.
pub const SECTOR: u64 = 512;

/// Data stretches of one request, at most.
pub const SEG_MAX: u32 = 254;

/// Ranges of one discard or write-zeroes request, at most.
pub const MAX_RANGES: usize = 16;

/// Sectors of one such range, at most: what zeroing by hand can take is bounded too.
pub const MAX_RANGE_SECTORS: u32 = 1 << 18;

/// Bytes of the configuration space; more than the specification has named so far reads as zero.
const SPACE: usize = 256;

/// A block as the guest should use them: a page.
const BLOCK: u32 = 4096;

/// Bit of a feature.
#[must_use]
pub const fn bit(feature: u32) -> u64 {
    1 << feature
}

/// The block device's own feature bits.
#[must_use]
pub const fn features(is_readonly: bool) -> u64 {
    let always = bit(VIRTIO_BLK_F_SEG_MAX)
        | bit(VIRTIO_BLK_F_BLK_SIZE)
        | bit(VIRTIO_BLK_F_TOPOLOGY)
        | bit(VIRTIO_BLK_F_FLUSH);
    if is_readonly {
        always | bit(VIRTIO_BLK_F_RO)
    } else {
        always | bit(VIRTIO_BLK_F_DISCARD) | bit(VIRTIO_BLK_F_WRITE_ZEROES)
    }
}

/// The configuration space of a disk.
#[derive(Debug, Clone)]
pub struct Config {
    bytes: [u8; SPACE],
}

impl Config {
    /// Describes a disk of `size_bytes`.
    #[must_use]
    pub fn new(size_bytes: u64) -> Self {
        let mut config = Config { bytes: [0; SPACE] };
        let sector = SECTOR as u32;
        config.put(0, &(size_bytes / SECTOR).to_le_bytes()); // capacity
        config.put(12, &SEG_MAX.to_le_bytes());
        config.put(20, &sector.to_le_bytes()); // blk_size: the smallest request
        config.put(24, &[(BLOCK / sector).trailing_zeros() as u8]); // physical_block_exp
        config.put(26, &1_u16.to_le_bytes()); // min_io_size, in blocks
        config.put(34, &1_u16.to_le_bytes()); // num_queues
        config.put(36, &MAX_RANGE_SECTORS.to_le_bytes()); // max_discard_sectors
        config.put(40, &(MAX_RANGES as u32).to_le_bytes()); // max_discard_seg
        config.put(44, &(BLOCK / sector).to_le_bytes()); // discard_sector_alignment
        config.put(48, &MAX_RANGE_SECTORS.to_le_bytes()); // max_write_zeroes_sectors
        config.put(52, &(MAX_RANGES as u32).to_le_bytes()); // max_write_zeroes_seg
        config.put(56, &[1]); // write_zeroes_may_unmap
        config
    }

    fn put(&mut self, offset: usize, value: &[u8]) {
        if let Some(place) = self.bytes.get_mut(offset..offset + value.len()) {
            place.copy_from_slice(value);
        }
    }

    /// The whole of it.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_capacity_is_in_sectors_and_rounded_down() {
        let config = Config::new(10 * SECTOR + 511);
        let bytes = config.bytes();
        assert_eq!(bytes[0..8], 10_u64.to_le_bytes());
        assert_eq!(bytes[12..16], SEG_MAX.to_le_bytes());
        assert_eq!(bytes[24], 3);
    }

    #[test]
    fn a_disk_that_must_not_change_offers_nothing_that_changes_it() {
        assert_eq!(features(true) & bit(VIRTIO_BLK_F_DISCARD), 0);
        assert_ne!(features(true) & bit(VIRTIO_BLK_F_RO), 0);
        assert_eq!(features(false) & bit(VIRTIO_BLK_F_RO), 0);
        assert_ne!(
            features(true) & features(false) & bit(VIRTIO_BLK_F_FLUSH),
            0
        );
    }
}
