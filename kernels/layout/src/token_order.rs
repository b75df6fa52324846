//! The order of tokens (keys) inside a value tile.
//!
//! A warp holds the scores of 16 keys as the accumulator fragment: lane `t = lane % 4` has keys `2t, 2t+1` and
//! `8+2t, 8+2t+1`. Packed into one register of four e4m3 codes they stand where the P·V instruction's A operand has
//! its k-positions `4t … 4t+3`. Storing the value rows of every 16 tokens in that order makes the product right without
//! moving a single probability between lanes (SageAttention2, section 3.4; `docs/numerics.md`).
//!
//! ```text
//! position  0  1  2  3 | 4  5  6  7 | 8  9 10 11 | 12 13 14 15
//! token     0  1  8  9 | 2  3 10 11 | 4  5 12 13 |  6  7 14 15
//! ```

/// Tokens that are permuted among themselves.
pub const GROUP: u32 = 16;

/// The token stored at `position` of its tile.
pub const fn token_at(position: u32) -> u32 {
    let quad = position % GROUP / 4;
    let within = position % 4;
    position / GROUP * GROUP + 2 * quad + within % 2 + 8 * (within / 2)
}

/// The position at which `token` of a tile is stored; the inverse of [`token_at`].
pub const fn position_of(token: u32) -> u32 {
    let within = token % GROUP;
    let half = within / 8;
    token / GROUP * GROUP + within % 8 / 2 * 4 + half * 2 + within % 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fragment;

    #[test]
    fn is_a_bijection() {
        for token in 0..128 {
            assert_eq!(token_at(position_of(token)), token);
            assert_eq!(position_of(token_at(token)), token);
        }
        let first: [u32; 16] = core::array::from_fn(|position| token_at(position as u32));
        assert_eq!(first, [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15]);
    }

    /// Packing accumulator values `{c0, c1, c4, c5}` and `{c2, c3, c6, c7}` of 16 keys gives the A operand of P·V.
    #[test]
    fn accumulator_registers_are_the_operand() {
        for lane in 0..32 {
            for register in 0..4 {
                for byte in 0..4 {
                    let (row, k) = fragment::a_operand_8bit(lane, register, byte);
                    // register 0: row, first 16 keys; 1: row + 8, first 16; 2, 3: the same for the next 16
                    let element = register % 2 * 2 + byte % 2 + byte / 2 * 4 + register / 2 * 8;
                    let (score_row, key) = fragment::accumulator(lane, element);
                    assert_eq!((row, token_at(k)), (score_row, key));
                }
            }
        }
    }
}
