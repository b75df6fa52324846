//! Caches in host memory: [`QuantizedKv`]. The CPU makes the GPU's codes, bit for bit.

use crate::attention::{AttentionOutput, at_least, check_range};
#[cfg(feature = "simt")]
use crate::cache::kernels;
use crate::cache::launch::{AppendBuffers, CacheAttentionBuffers};
use crate::cache::plan::CachePlan;
use crate::cpu::quantize::{amax_of, round_to_i8};
use crate::cpu::view::{self, View};
use crate::cpu::zeroed;
use crate::device::Device;
use crate::element::Element;
use crate::error::Error;
use crate::gpu::Gpu;
use crate::gpu::memory::{DeviceMemory, Stream};
use crate::plan::wanted;
use crate::tensor::extent;
use half::f16;
use rayon::prelude::*;
use sage_layout::cache::{
    BLOCK_TOKENS, block_bytes, key_scales, power_of_two, value_exponent, value_exponents, values,
};
use sage_layout::round::{e4m3_from_f32, f32_from_e4m3};
use sage_layout::scale::{INT8_MAX, int_scale};
use sage_layout::swizzle;
use sage_layout::tile::{MAX_HEAD_DIM, WARP_ROWS};
use std::f32::consts::{LN_2, LOG2_E};

const MAX_WIDTH: usize = MAX_HEAD_DIM as usize;
/// Tokens of a block.
const BLOCK: usize = BLOCK_TOKENS as usize;
/// log₂ of a row's largest probability, in units of its value's codes. The GPU's is somewhat larger at times.
const CEILING: f32 = 5.0;

/// A cache of quantized keys and values in host memory, with what belongs to it. The same bytes, copied to a GPU, are a cache
/// there.
///
/// ```
/// use half::f16;
/// use sageattention::{CacheOptions, CachePlan, CacheProblem, DType, Device, QuantizedKv, TensorLayout};
///
/// // two sequences of up to 1000 tokens, one new token each, 8 query heads, 2 key heads, 64 channels
/// let problem = CacheProblem::new(TensorLayout::Hnd, DType::F16, [2, 8, 1, 64], 2, 1000);
/// let plan = CachePlan::new(problem, CacheOptions::default())?;
/// let mut cache = QuantizedKv::new(&plan)?;
/// for step in 0..3 {
///     let (key, value) = (vec![f16::from_f32(step as f32); 2 * 2 * 64], vec![f16::ONE; 2 * 2 * 64]);
///     plan.append(Device::Cpu, &mut cache, &key, &value)?;
///     let result = plan.attend(Device::Cpu, &cache, &vec![f16::ONE; 2 * 8 * 64], None)?;
///     assert_eq!(result.output[0], f16::ONE);
/// }
/// assert_eq!(cache.lengths, [3, 3]);
/// # Ok::<(), sageattention::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedKv {
    /// The pages, [`CachePlan::cache_bytes`].
    pub pages: Vec<u8>,
    /// `[batch]`: tokens that each sequence has.
    pub lengths: Vec<i32>,
    /// `[batch, pages_per_sequence]`, with [`CacheOptions::page_table`](crate::CacheOptions::page_table).
    pub page_table: Option<Vec<i32>>,
    /// `[key_heads, head_dim]`, with [`CacheOptions::smooth_k`](crate::CacheOptions::smooth_k).
    pub key_mean: Option<Vec<f32>>,
}

impl QuantizedKv {
    /// An empty cache for a plan. What its options ask for besides, the table and the mean, is the caller's to set.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`].
    pub fn new(plan: &CachePlan) -> Result<Self, Error> {
        let pages = zeroed("cache", plan.cache_bytes() as usize)?;
        Ok(Self { pages, lengths: vec![0; plan.problem.batch], page_table: None, key_mean: None })
    }

    /// Checks the cache; `new` are the tokens that will be appended.
    fn check(&self, plan: &CachePlan, new: usize) -> Result<(), Error> {
        let problem = &plan.problem;
        let exactly = |argument, got: usize, needed: usize| match got == needed {
            true => Ok(()),
            false => Err(Error::SliceLength { argument, got, needed }),
        };
        let within = |argument, values: &[i32], most: usize| {
            let is_bad = |value: &i32| usize::try_from(*value).is_ok_and(|value| value <= most);
            match values.iter().position(|value| !is_bad(value)) {
                Some(index) => {
                    Err(Error::LengthsValue { argument, index, got: values[index], least: 0, most: most as i32 })
                }
                None => Ok(()),
            }
        };
        exactly("pages", self.pages.len(), plan.cache_bytes() as usize)?;
        exactly("lengths", self.lengths.len(), problem.batch)?;
        within("lengths", &self.lengths, problem.capacity() - new)?;
        if let Some(table) = wanted("page_table", plan.options.page_table, self.page_table.as_ref())? {
            exactly("page_table", table.len(), problem.batch * problem.pages_per_sequence)?;
            within("page_table", table, problem.pages - 1)?;
        }
        if let Some(mean) = wanted("key_mean", plan.options.smooth_k, self.key_mean.as_ref())? {
            exactly("key_mean", mean.len(), problem.key_heads * problem.head_dim)?;
            if let Some(index) = mean.iter().position(|mean| !mean.is_finite()) {
                let (head, channel) = (index / problem.head_dim, index % problem.head_dim);
                return Err(Error::NotFinite { tensor: "key_mean", index: [0, head, 0, channel], got: mean[index] });
            }
        }
        Ok(())
    }

    /// Where a token's block is, of a sequence and key head.
    fn block(&self, plan: &CachePlan, [batch, head, token]: [usize; 3]) -> usize {
        let problem = &plan.problem;
        let entry = batch * problem.pages_per_sequence + token / problem.page_tokens;
        let page = self.page_table.as_ref().map_or(entry, |table| table[entry] as usize);
        let within = token % problem.page_tokens / BLOCK;
        let block = (page * problem.key_heads + head) * plan.blocks_per_page() + within;
        block * block_bytes(plan.padded_head_dim) as usize
    }

    /// The mean of a key head's channels.
    fn mean(&self, plan: &CachePlan, head: usize) -> [f32; MAX_WIDTH] {
        let mut mean = [0.0; MAX_WIDTH];
        if let Some(means) = &self.key_mean {
            let head_dim = plan.problem.head_dim;
            mean[..head_dim].copy_from_slice(&means[head * head_dim..][..head_dim]);
        }
        mean
    }
}

impl CachePlan {
    /// Appends new tokens of every sequence to a cache: `key` and `value` in the problem's shapes and strides.
    ///
    /// On a GPU, or in the SIMT executor, this copies the cache there and back: for trying the kernels. To keep it there, see
    /// [`PreparedCachePlan`](crate::PreparedCachePlan).
    ///
    /// # Errors
    ///
    /// Slices of another type than the problem's or too short for its strides, elements that are infinite or NaN, a cache of another
    /// problem's, or without room; for a GPU what [`Gpu::open`] and the driver say.
    pub fn append<T: Element>(
        &self,
        device: Device,
        cache: &mut QuantizedKv,
        key: &[T],
        value: &[T],
    ) -> Result<(), Error> {
        let problem = &self.problem;
        self.check_dtype::<T>()?;
        cache.check(self, problem.tokens)?;
        let elements = |shape, strides| extent(shape, strides).expect("checked by the plan") as usize;
        let key = at_least("key", key, elements(problem.key_shape(), problem.key_strides))?;
        let value = at_least("value", value, elements(problem.value_shape(), problem.value_strides))?;
        check_range("key", key, problem.key_shape(), problem.key_strides, None)?;
        check_range("value", value, problem.value_shape(), problem.value_strides, None)?;
        match device {
            Device::Cpu => self.append_on_cpu(cache, key, value),
            Device::Gpu(ordinal) => {
                let gpu = Gpu::open(ordinal)?;
                let mut memory = GpuMemory::new(gpu)?;
                let buffers = self.append_buffers(&mut memory, cache, key, value)?;
                // SAFETY: the buffers are as large as the plan says, and live until the stream's work is done.
                unsafe { self.prepare(gpu)?.enqueue_append(memory.stream.raw(), &buffers)? };
                memory.read(buffers.cache, &mut cache.pages)?;
            }
            #[cfg(feature = "simt")]
            Device::Simt => {
                let mut memory = simt::host::Memory::new();
                let buffers = self.append_buffers(&mut memory, cache, key, value)?;
                execute(self, &memory, kernels::append(self, &buffers))?;
                cache.pages = memory.read(buffers.cache, cache.pages.len());
            }
        }
        cache.lengths.iter_mut().for_each(|length| *length += problem.tokens as i32);
        Ok(())
    }

    /// Attention of new tokens' queries to a cache: `query` in the problem's shape and strides, with sinks if the options say so.
    ///
    /// # Errors
    ///
    /// As [`append`](Self::append); [`Error::Sink`].
    pub fn attend<T: Element>(
        &self,
        device: Device,
        cache: &QuantizedKv,
        query: &[T],
        sinks: Option<&[f32]>,
    ) -> Result<AttentionOutput<T>, Error> {
        let problem = &self.problem;
        self.check_dtype::<T>()?;
        cache.check(self, 0)?;
        let elements = |shape, strides| extent(shape, strides).expect("checked by the plan") as usize;
        let query = at_least("query", query, elements(problem.query_shape(), problem.query_strides))?;
        check_range("query", query, problem.query_shape(), problem.query_strides, None)?;
        let sinks = wanted("sinks", self.options.sinks, sinks)?;
        let sinks = sinks.map(|sinks| at_least("sinks", sinks, problem.query_heads)).transpose()?;
        crate::attention::check_sinks(sinks)?;
        let mut output: Vec<T> = zeroed("output", elements(problem.output_shape(), problem.output_strides))?;
        let mut log_sum_exp = zeroed("log_sum_exp", self.log_sum_exp_len())?;
        match device {
            Device::Cpu => self.attend_on_cpu(cache, query, sinks, &mut output, &mut log_sum_exp)?,
            Device::Gpu(ordinal) => {
                let gpu = Gpu::open(ordinal)?;
                let mut memory = GpuMemory::new(gpu)?;
                let buffers = self.attention_buffers(&mut memory, cache, query, sinks, &output)?;
                // SAFETY: the buffers are as large as the plan says, apart from each other, and live until the stream's work is done.
                unsafe { self.prepare(gpu)?.enqueue_attention(memory.stream.raw(), &buffers)? };
                memory.read(buffers.output, bytemuck::cast_slice_mut(&mut output))?;
                if let Some(address) = buffers.log_sum_exp {
                    memory.read(address, bytemuck::cast_slice_mut(&mut log_sum_exp))?;
                }
            }
            #[cfg(feature = "simt")]
            Device::Simt => {
                let mut memory = simt::host::Memory::new();
                let buffers = self.attention_buffers(&mut memory, cache, query, sinks, &output)?;
                for launch in kernels::attend(self, &buffers) {
                    execute(self, &memory, launch)?;
                }
                output = bytemuck::pod_collect_to_vec(&memory.read(buffers.output, size_of_val(&output[..])));
                if let Some(address) = buffers.log_sum_exp {
                    log_sum_exp = bytemuck::pod_collect_to_vec(&memory.read(address, 4 * log_sum_exp.len()));
                }
            }
        }
        Ok(AttentionOutput { output, log_sum_exp: self.options.return_lse.then_some(log_sum_exp) })
    }

    fn check_dtype<T: Element>(&self) -> Result<(), Error> {
        let expected = self.problem.dtype;
        if T::DTYPE == expected { Ok(()) } else { Err(Error::SliceDType { got: T::DTYPE, expected }) }
    }

    fn append_on_cpu<T: Element>(&self, cache: &mut QuantizedKv, key: &[T], value: &[T]) {
        let (problem, width) = (&self.problem, self.padded_head_dim);
        let key = View { elements: key, strides: problem.key_strides, head_dim: problem.head_dim };
        let value = View { elements: value, strides: problem.value_strides, head_dim: problem.value_head_dim };
        for (batch, head) in pairs(problem.batch, problem.key_heads) {
            let mean = cache.mean(self, head);
            for token in 0..problem.tokens {
                let place = cache.lengths[batch] as usize + token;
                let start = cache.block(self, [batch, head, place]);
                let row = (place % BLOCK) as u32;
                let block = &mut cache.pages[start..start + block_bytes(width) as usize];
                let (mut keys, mut channels) = ([0.0; MAX_WIDTH], [0.0; MAX_WIDTH]);
                key.read_row([batch, head, token], &mut keys);
                value.read_row([batch, head, token], &mut channels);
                keys.iter_mut().zip(mean).for_each(|(key, mean)| *key -= mean);
                let (scale, inverse) = int_scale(amax_of(&keys), INT8_MAX);
                let exponent = value_exponent(amax_of(&channels));
                for channel in 0..width {
                    let at = swizzle::offset(row, channel, width);
                    block[at as usize] = round_to_i8(keys[channel as usize] * inverse) as u8;
                    let value = channels[channel as usize] * power_of_two(-exponent);
                    block[(values(width) + at) as usize] = e4m3_from_f32(value);
                }
                for (offset, number) in [(key_scales(width), scale), (value_exponents(width), exponent)] {
                    block[(offset + 4 * row) as usize..][..4].copy_from_slice(&number.to_le_bytes());
                }
            }
        }
    }

    /// Codes as the GPU's, probabilities rounded to f16 as there; sums in f32, in another order.
    fn attend_on_cpu<T: Element>(
        &self,
        cache: &QuantizedKv,
        query: &[T],
        sinks: Option<&[f32]>,
        output: &mut [T],
        log_sum_exps: &mut [f32],
    ) -> Result<(), Error> {
        let problem = &self.problem;
        let heads_per_key_head = self.heads_per_key_head();
        let query = View { elements: query, strides: problem.query_strides, head_dim: problem.head_dim };
        let rows: Vec<_> = (0..self.rows())
            .into_par_iter()
            .map(|index| {
                let (head_index, token) = (index / problem.tokens, index % problem.tokens);
                let (batch, head) = (head_index / problem.query_heads, head_index % problem.query_heads);
                // rows eight apart share a scale
                let key_head = head / heads_per_key_head;
                let row = head % heads_per_key_head * problem.tokens + token;
                let partner = row ^ (WARP_ROWS as usize / 2);
                let (partner_head, partner_token) = (partner / problem.tokens, partner % problem.tokens);
                let has_partner = partner_head < heads_per_key_head;
                let partner = [batch, key_head * heads_per_key_head + partner_head, partner_token];
                let place = [batch, head, token];
                let row = Row::new(self, &query, place, has_partner.then_some(partner), cache);
                row.attend(self, cache, [batch, key_head, token], sinks.map_or(f32::NEG_INFINITY, |sinks| sinks[head]))
            })
            .collect();
        for (index, (values, log_sum_exp)) in rows.iter().enumerate() {
            let (head_index, token) = (index / problem.tokens, index % problem.tokens);
            let place = [head_index / problem.query_heads, head_index % problem.query_heads, token];
            let start = view::offset(problem.output_strides, place);
            for (element, value) in output[start..start + problem.value_head_dim].iter_mut().zip(values) {
                *element = T::from_f32(*value);
            }
            if let Some(place) = log_sum_exps.get_mut(index) {
                *place = *log_sum_exp;
            }
        }
        Ok(())
    }
}

/// A quantized query.
struct Row {
    codes: [i8; MAX_WIDTH],
    /// What the codes' products are octaves of, but for the key's scale.
    scale: f32,
    /// What smoothed keys took out of the logits.
    shift: f32,
}

impl Row {
    fn new<T: Element>(
        plan: &CachePlan,
        query: &View<T>,
        place: [usize; 3],
        partner: Option<[usize; 3]>,
        cache: &QuantizedKv,
    ) -> Self {
        let mut values = [0.0; MAX_WIDTH];
        query.read_row(place, &mut values);
        let mut largest = amax_of(&values);
        if let Some(partner) = partner {
            let mut values = [0.0; MAX_WIDTH];
            query.read_row(partner, &mut values);
            largest = largest.max(amax_of(&values));
        }
        let (scale, inverse) = int_scale(largest, INT8_MAX);
        let mut shift = 0.0;
        if plan.has_log_sum_exp_shift() {
            let mean = cache.mean(plan, place[1] / plan.heads_per_key_head());
            shift = values.iter().zip(mean).map(|(value, mean)| value * mean).sum::<f32>() * plan.softmax_scale;
        }
        Self { codes: values.map(|value| round_to_i8(value * inverse)), scale: scale * plan.score_scale(), shift }
    }

    /// The row's output and log-sum-exp.
    fn attend(
        &self,
        plan: &CachePlan,
        cache: &QuantizedKv,
        [batch, key_head, token]: [usize; 3],
        sink: f32,
    ) -> (Vec<f32>, f32) {
        let (problem, width) = (&plan.problem, plan.padded_head_dim);
        let keys = cache.lengths[batch];
        let shift = if plan.counts_from_last_key() { keys - problem.tokens as i32 } else { 0 };
        let visible = plan.visible.shifted(shift, keys as u32).visible_keys(token as u32, keys as u32);
        // scores in octaves, each with its value's exponent, and that
        let scores: Vec<[f32; 2]> = visible
            .clone()
            .map(|key| {
                let block = &cache.pages[cache.block(plan, [batch, key_head, key as usize])..];
                let row = key % BLOCK_TOKENS;
                let number = |offset: u32| {
                    let bytes = &block[(offset + 4 * row) as usize..][..4];
                    f32::from_le_bytes(bytes.try_into().expect("four bytes"))
                };
                let product: i32 = (0..width)
                    .map(|channel| {
                        let code = block[swizzle::offset(row, channel, width) as usize] as i8;
                        i32::from(self.codes[channel as usize]) * i32::from(code)
                    })
                    .sum();
                let exponent = number(value_exponents(width));
                let (scale, product) = (number(key_scales(width)) * self.scale, product as f32);
                let score = match plan.options.soft_cap {
                    None => product.mul_add(scale, exponent),
                    Some(cap) => cap * ((product * scale * LN_2 + self.shift) / cap).tanh() * LOG2_E + exponent,
                };
                [score, exponent]
            })
            .collect();
        let largest = scores.iter().fold(f32::NEG_INFINITY, |largest, [score, _]| largest.max(*score));
        let mut sums = [0.0f32; MAX_WIDTH];
        let mut denominator = 0.0f32;
        for (key, [score, exponent]) in visible.zip(scores) {
            let probability = (score - largest + CEILING).exp2();
            denominator = probability.mul_add(power_of_two(-exponent), denominator);
            let probability = f16::from_f32(probability).to_f32();
            let block = &cache.pages[cache.block(plan, [batch, key_head, key as usize])..];
            for channel in 0..width {
                let at = values(width) + swizzle::offset(key % BLOCK_TOKENS, channel, width);
                let value = f32_from_e4m3(block[at as usize]);
                sums[channel as usize] = probability.mul_add(value, sums[channel as usize]);
            }
        }
        if denominator == 0.0 {
            return (vec![0.0; problem.value_head_dim], sink);
        }
        // capped scores are not smoothed any more
        let shift = if plan.options.soft_cap.is_some() { 0.0 } else { self.shift };
        let log_sum_exp = (denominator.log2() + largest - CEILING) * LN_2 + shift;
        // what the sink adds to the denominator, in units of the keys' sum
        let with_sink = 1.0 + ((sink - log_sum_exp) * LOG2_E).exp2();
        let output = sums[..problem.value_head_dim].iter().map(|sum| sum / denominator / with_sink).collect();
        (output, log_sum_exp + with_sink.ln())
    }
}

fn pairs(outer: usize, inner: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..outer).flat_map(move |first| (0..inner).map(move |second| (first, second)))
}

/// Memory that kernels access.
trait Memory {
    /// A copy of some bytes there.
    fn upload(&mut self, argument: &'static str, bytes: &[u8]) -> Result<u64, Error>;
}

#[cfg(feature = "simt")]
impl Memory for simt::host::Memory {
    fn upload(&mut self, argument: &'static str, bytes: &[u8]) -> Result<u64, Error> {
        Ok(simt::host::Memory::upload(self, argument, bytes))
    }
}

/// A GPU's memory, and a stream of its own.
struct GpuMemory {
    gpu: &'static Gpu,
    stream: Stream,
    buffers: Vec<DeviceMemory>,
}

impl GpuMemory {
    fn new(gpu: &'static Gpu) -> Result<Self, Error> {
        Ok(Self { gpu, stream: Stream::new(gpu)?, buffers: Vec::new() })
    }

    /// Copies what begins at one of its addresses.
    fn read(&self, address: u64, destination: &mut [u8]) -> Result<(), Error> {
        let buffer = self.buffers.iter().find(|buffer| buffer.address() == address).expect("one of its addresses");
        buffer.read(0, destination, &self.stream)
    }
}

impl Memory for GpuMemory {
    fn upload(&mut self, argument: &'static str, bytes: &[u8]) -> Result<u64, Error> {
        let mut memory = DeviceMemory::new(self.gpu, argument, bytes.len())?;
        memory.write(0, bytes, &self.stream)?;
        self.buffers.push(memory);
        Ok(self.buffers.last().map_or(0, DeviceMemory::address))
    }
}

impl CachePlan {
    fn append_buffers<T: Element>(
        &self,
        memory: &mut impl Memory,
        cache: &QuantizedKv,
        key: &[T],
        value: &[T],
    ) -> Result<AppendBuffers, Error> {
        let (page_table, key_mean) = upload_shared(memory, cache)?;
        Ok(AppendBuffers {
            key: memory.upload("key", bytemuck::cast_slice(key))?,
            value: memory.upload("value", bytemuck::cast_slice(value))?,
            cache: memory.upload("cache", &cache.pages)?,
            lengths: memory.upload("lengths", bytemuck::cast_slice(&cache.lengths))?,
            page_table,
            key_mean,
        })
    }

    fn attention_buffers<T: Element>(
        &self,
        memory: &mut impl Memory,
        cache: &QuantizedKv,
        query: &[T],
        sinks: Option<&[f32]>,
        output: &[T],
    ) -> Result<CacheAttentionBuffers, Error> {
        let (page_table, key_mean) = upload_shared(memory, cache)?;
        let workspace_bytes = self.workspace_bytes();
        let log_sum_exp = vec![0u8; 4 * self.log_sum_exp_len()];
        Ok(CacheAttentionBuffers {
            query: memory.upload("query", bytemuck::cast_slice(query))?,
            output: memory.upload("output", bytemuck::cast_slice(output))?,
            log_sum_exp: match self.options.return_lse {
                true => Some(memory.upload("log_sum_exp", &log_sum_exp)?),
                false => None,
            },
            sinks: sinks.map(|sinks| memory.upload("sinks", bytemuck::cast_slice(sinks))).transpose()?,
            cache: memory.upload("cache", &cache.pages)?,
            lengths: memory.upload("lengths", bytemuck::cast_slice(&cache.lengths))?,
            page_table,
            key_mean,
            workspace: memory.upload("workspace", &vec![0xff; workspace_bytes as usize])?,
            workspace_bytes,
        })
    }
}

fn upload_shared(memory: &mut impl Memory, cache: &QuantizedKv) -> Result<(Option<u64>, Option<u64>), Error> {
    let table = cache.page_table.as_ref();
    let table = table.map(|table| memory.upload("page_table", bytemuck::cast_slice(table))).transpose()?;
    let mean = cache.key_mean.as_ref();
    Ok((table, mean.map(|mean| memory.upload("key_mean", bytemuck::cast_slice(mean))).transpose()?))
}

/// Runs a kernel in the SIMT executor.
#[cfg(feature = "simt")]
fn execute(
    plan: &CachePlan,
    memory: &simt::host::Memory,
    (family, grid, params): kernels::Launch,
) -> Result<(), Error> {
    use sage_layout::kernel::Kernel;

    let kernel =
        Kernel::find(family, plan.padded_head_dim, plan.problem.dtype.into()).expect("a row of the kernel table");
    match sage_kernels::entry::launch(kernel, grid, &params, memory, &crate::simt::replayed()) {
        Ok(_) => Ok(()),
        Err(report) => Err(Error::Simt { kernel: kernel.symbol(), report: report.to_string() }),
    }
}
