//! The workspace: where in it the kernels keep what.
//!
//! It is four buffers, one after the other: one for each operand, and the call's own. So an operand can be quantized by itself into
//! memory elsewhere, and kept (`crate::quantized`).

use crate::options::{PvMode, QkMode};
use crate::plan::{Places, Resolved};
use crate::quantized::Operand;
use crate::tensor::DType;
use sage_layout::int4_tile;
use sage_layout::params::Address;
use sage_layout::scale::{KEY_SCALES_PER_TILE, QUERY_SCALES_PER_TILE};
use sage_layout::schedule::counter;
use sage_layout::sequence::Sequence;
use sage_layout::tile::{self, KEY_TILE, MMA_QUERIES, WARPGROUP_ROWS};
use std::ops::Range;

/// Alignment of the workspace and of every region in it, in bytes: what a bulk copy and the memory system like best.
pub(crate) const ALIGNMENT: u64 = 256;

/// A part of the workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Buffer {
    /// Quantized queries.
    Query,
    /// Quantized keys.
    Key,
    /// Quantized values.
    Value,
    /// What nobody needs after the call.
    Scratch,
}

/// Addresses of the buffers, in the order of [`Buffer`].
pub(crate) type BufferAddresses = [Address; 4];

/// Something in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    buffer: Buffer,
    offset: u64,
    bytes: u64,
}

impl Region {
    /// The region's device address.
    pub(crate) fn address(&self, buffers: &BufferAddresses) -> Address {
        buffers[self.buffer as usize] + self.offset
    }

    /// The region's size.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// The buffers between the kernels. [`sage_layout::params`] says what each holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Workspace {
    /// Queries, keys and values in 16 bits, those that are not quantized as they are: `[batch · heads][tokens][prepared_row]`, see
    /// [`Resolved::prepared_row`].
    pub prepared: [Option<Region>; 3],
    pub query_codes: Region,
    pub query_scales: Region,
    /// With `smooth_q`.
    pub query_mean: Option<Region>,
    pub key_codes: Region,
    pub key_scales: Region,
    pub values: Values,
    /// With `smooth_k`.
    pub key_mean: Option<Region>,
    /// With `smooth_k`, and `return_lse` or sinks.
    pub log_sum_exp_shift: Option<Region>,
    /// Of a ragged batch, the table of [`sage_layout::sequence`].
    pub sequences: Option<Region>,
    /// The order in which attention takes them.
    pub sequence_order: Option<Region>,
    /// What the boolean mask shows of key tiles, in items of 128 queries or more; see [`Resolved::mask_tiles`].
    pub mask_tiles: Option<Region>,
    /// Where the attention kernel empties outputs to, if it needs memory for that; see [`Resolved::flushing_ctas`].
    pub flushed_output: Option<Region>,
    /// See [`sage_layout::schedule::counter`].
    pub counters: Region,
    /// Sizes of the buffers, multiples of [`ALIGNMENT`].
    sizes: [u64; 4],
}

/// The values' buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Values {
    /// [`PvMode::Fp8`]
    Fp8 { codes: Region, scale: Region, inverse_scale: Region, mean: Region, mean_codes: Region },
    /// [`PvMode::F16`]
    F16 { tiles: Region, mean: Option<Region> },
}

impl Workspace {
    /// Lays each buffer's regions out one after the other.
    ///
    /// A plan has under 2³⁰ tiles of queries and under 2²⁸ of keys, so that all of it is under 2⁵⁰ bytes.
    pub(crate) fn new(resolved: &Resolved) -> Self {
        use Buffer::{Key, Query, Scratch, Value};
        let options = &resolved.options;
        let head_dim = resolved.padded_head_dim;
        let Places { query_heads, key_heads, sequences, query_tiles, key_tiles, segments } = resolved.places();
        // in a ragged batch each sequence counts its segments
        let counters = counter::count(key_heads, segments + sequences - 1);
        let query_blocks = tile::query_blocks(resolved.problem.query_len as u32) as u64;
        let [query_heads, key_heads, sequences] = [query_heads, key_heads, sequences].map(u64::from);
        let [query_tiles, key_tiles, segments] = [query_tiles, key_tiles, segments].map(u64::from);

        let channels = [key_heads, sequences, head_dim as u64 * 4];
        let segment_channels = [key_heads, segments, head_dim as u64 * 4];
        let [query_tile, key_tile] = match options.qk_mode {
            QkMode::Int8 => [tile::query_tile_bytes(head_dim), tile::key_tile_bytes(head_dim)],
            QkMode::Int4 => [WARPGROUP_ROWS, KEY_TILE].map(|rows| int4_tile::tile_bytes(rows, head_dim)),
        };

        let mut sizes = [0; 4];
        let mut region = |buffer: Buffer, [heads, tiles, size]: [u64; 3]| {
            let bytes = heads * tiles * size;
            let end = &mut sizes[buffer as usize];
            let region = Region { buffer, offset: *end, bytes };
            *end = (*end + bytes).next_multiple_of(ALIGNMENT);
            region
        };
        let prepared = Operand::ALL.map(|operand| {
            let row = resolved.prepared_row(operand)? * DType::F16.bytes();
            let ([batch, heads, tokens, _], _) = resolved.problem.operand(operand);
            Some(region(Scratch, [(batch * heads) as u64, tokens as u64, row as u64]))
        });
        let workspace = Self {
            prepared,
            query_codes: region(Query, [query_heads, query_tiles, query_tile as u64]),
            query_scales: region(Query, [query_heads, query_tiles, QUERY_SCALES_PER_TILE as u64 * 4]),
            query_mean: options.smooth_q.then(|| region(Query, [query_heads, query_blocks, head_dim as u64 * 4])),
            key_codes: region(Key, [key_heads, key_tiles, key_tile as u64]),
            key_scales: region(Key, [key_heads, key_tiles, KEY_SCALES_PER_TILE as u64 * 4]),
            values: match options.pv_mode {
                PvMode::Fp8 => Values::Fp8 {
                    codes: region(Value, [key_heads, key_tiles, tile::key_tile_bytes(head_dim) as u64]),
                    scale: region(Value, channels),
                    inverse_scale: region(Value, channels),
                    mean: region(Value, segment_channels),
                    mean_codes: region(Value, segment_channels),
                },
                PvMode::F16 => Values::F16 {
                    tiles: region(Value, [key_heads, key_tiles, tile::value_tile_bytes(head_dim) as u64]),
                    mean: resolved.smooth_v.then(|| region(Value, channels)),
                },
            },
            key_mean: options.smooth_k.then(|| region(Key, channels)),
            log_sum_exp_shift: resolved
                .has_log_sum_exp_shift()
                .then(|| region(Query, [query_heads, query_tiles * u64::from(WARPGROUP_ROWS), 4])),
            sequences: resolved.is_ragged().then(|| region(Scratch, [1, sequences, Sequence::BYTES as u64])),
            sequence_order: resolved.is_ragged().then(|| region(Scratch, [1, sequences, 8])),
            // of the smallest items of any kernel
            mask_tiles: resolved.mask_tiles(MMA_QUERIES).map(|shape| {
                let [batches, heads, items, tiles] = shape.map(u64::from);
                region(Scratch, [batches * heads, items * tiles, 4])
            }),
            flushed_output: resolved
                .flushing_ctas()
                .map(|ctas| region(Scratch, [1, ctas as u64, tile::output_bytes(head_dim) as u64])),
            counters: region(Scratch, [1, counters, 4]),
            sizes: [0; 4],
        };
        Self { sizes, ..workspace }
    }

    /// All of it, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.sizes.iter().sum()
    }

    /// A buffer's size in bytes.
    pub(crate) fn buffer_bytes(&self, buffer: Buffer) -> u64 {
        self.sizes[buffer as usize]
    }

    /// The buffers of a workspace at `workspace`.
    pub(crate) fn buffers(&self, workspace: Address) -> BufferAddresses {
        let mut end = workspace;
        self.sizes.map(|bytes| {
            end += bytes;
            end - bytes
        })
    }

    /// Name and place in the workspace of every region that there is, in their order.
    pub(crate) fn regions(&self) -> Vec<(&'static str, Range<u64>)> {
        let starts = self.buffers(0);
        let mut regions: Vec<_> = self
            .named_regions()
            .map(|(name, region)| (name, region.address(&starts)..region.address(&starts) + region.bytes))
            .collect();
        regions.sort_by_key(|(_, range)| range.start);
        regions
    }

    /// Name, start and length of a buffer's regions.
    pub(crate) fn regions_of(&self, buffer: Buffer) -> impl Iterator<Item = (&'static str, u64, u64)> {
        let regions = self.named_regions().filter(move |(_, region)| region.buffer == buffer);
        regions.map(|(name, Region { offset, bytes, .. })| (name, offset, bytes))
    }

    fn named_regions(&self) -> impl Iterator<Item = (&'static str, Region)> {
        let values = match self.values {
            Values::Fp8 { codes, scale, inverse_scale, mean, mean_codes } => vec![
                ("value_codes", Some(codes)),
                ("value_scale", Some(scale)),
                ("value_inverse_scale", Some(inverse_scale)),
                ("value_mean", Some(mean)),
                ("value_mean_codes", Some(mean_codes)),
            ],
            Values::F16 { tiles, mean } => vec![("value_tiles", Some(tiles)), ("value_mean", mean)],
        };
        let prepared = ["prepared_query", "prepared_key", "prepared_value"].into_iter().zip(self.prepared);
        let queries_and_keys = [
            ("query_codes", Some(self.query_codes)),
            ("query_scales", Some(self.query_scales)),
            ("query_mean", self.query_mean),
            ("key_codes", Some(self.key_codes)),
            ("key_scales", Some(self.key_scales)),
        ];
        let rest = [
            ("key_mean", self.key_mean),
            ("log_sum_exp_shift", self.log_sum_exp_shift),
            ("sequences", self.sequences),
            ("sequence_order", self.sequence_order),
            ("mask_tiles", self.mask_tiles),
            ("flushed_output", self.flushed_output),
            ("counters", Some(self.counters)),
        ];
        prepared.chain(queries_and_keys).chain(values).chain(rest).filter_map(|(name, region)| Some((name, region?)))
    }
}
