//! [`Quantized`] as the bytes of the GPU's operand buffers.

use sage_layout::mode::QkMode;
use sage_layout::{int4_tile, swizzle, tile, token_order, value_tile};

use super::quantize::{QUERY_TILE, Quantized, TILE};

impl Quantized {
    /// The query codes as the GPU's buffer: `[query heads][query tiles][64 · width]`, each tile swizzled; in INT4 half as many
    /// bytes, as [`int4_tile`] says.
    pub fn query_tiles(&self) -> Vec<u8> {
        self.row_tiles(&self.query_codes, QUERY_TILE)
    }

    /// The key codes as the GPU's buffer: `[key heads][key tiles][128 · width]`, as the queries'.
    pub fn key_tiles(&self) -> Vec<u8> {
        self.row_tiles(&self.key_codes, TILE)
    }

    fn row_tiles(&self, codes: &[i8], rows: usize) -> Vec<u8> {
        match self.qk_mode {
            QkMode::Int8 => int8_tiles(codes, rows, self.width),
            QkMode::Int4 => int4_tiles(codes, rows, self.width),
        }
    }

    /// The value codes as the GPU's buffer: `[key heads][key tiles][width · 128]`, each tile transposed, its tokens in
    /// [`token_order`], swizzled.
    pub fn value_tiles(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.value_codes.len()];
        let tile_bytes = tile::key_tile_bytes(self.width as u32) as usize;
        for (codes, bytes) in self.value_codes.chunks_exact(tile_bytes).zip(bytes.chunks_exact_mut(tile_bytes)) {
            for (token, row) in (0..).zip(codes.chunks_exact(self.width)) {
                for (channel, &code) in (0..).zip(row) {
                    let position = token_order::position_of(token);
                    bytes[swizzle::offset(channel, position, tile::VALUE_ROW_BYTES) as usize] = code;
                }
            }
        }
        bytes
    }

    /// The 16-bit values as the GPU's buffer: `[key heads][key tiles][width · 128]`, each tile as [`value_tile`] says.
    pub fn value_element_tiles(&self) -> Vec<u8> {
        let mut bytes = vec![0; 2 * self.value_elements.len()];
        let tiles = self.value_elements.chunks_exact(TILE * self.width);
        for (elements, bytes) in tiles.zip(bytes.chunks_exact_mut(2 * TILE * self.width)) {
            for (token, row) in (0..).zip(elements.chunks_exact(self.width)) {
                for (channel, &element) in (0..).zip(row) {
                    let place = value_tile::offset(channel, token) as usize;
                    bytes[place..place + 2].copy_from_slice(&element.to_le_bytes());
                }
            }
        }
        bytes
    }
}

/// Tiles of `rows` rows of `width` codes, two a byte, swizzled.
fn int4_tiles(codes: &[i8], rows: usize, width: usize) -> Vec<u8> {
    let mut bytes = vec![0; codes.len() / 2];
    for (codes, bytes) in codes.chunks_exact(rows * width).zip(bytes.chunks_exact_mut(rows * width / 2)) {
        for (row, codes) in (0..).zip(codes.chunks_exact(width)) {
            for (pair, codes) in (0..).zip(codes.chunks_exact(2)) {
                let (byte, _) = int4_tile::place(row, 2 * pair, width as u32);
                bytes[byte as usize] = int4_tile::pack(codes[0], codes[1]);
            }
        }
    }
    bytes
}

/// Tiles of `rows` rows of `width` codes, swizzled.
fn int8_tiles(codes: &[i8], rows: usize, width: usize) -> Vec<u8> {
    let mut bytes = vec![0; codes.len()];
    for (codes, bytes) in codes.chunks_exact(rows * width).zip(bytes.chunks_exact_mut(rows * width)) {
        for (row, codes) in (0..).zip(codes.chunks_exact(width)) {
            for (column, &code) in (0..).zip(codes) {
                bytes[swizzle::offset(row, column, width as u32) as usize] = code as u8;
            }
        }
    }
    bytes
}
