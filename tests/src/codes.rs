//! What the quantization kernels must write.

use sageattention::testing::Quantized;

/// The CPU's quantization as the bytes of the workspace's regions. Regions that a plan does not have are empty.
pub fn expected_regions(quantized: &Quantized) -> [(&'static str, Vec<u8>); 12] {
    let bytes = |scales: &[f32]| bytemuck::cast_slice(scales).to_vec();
    [
        ("query_codes", quantized.query_tiles()),
        ("query_scales", bytes(&quantized.query_scales)),
        ("query_mean", bytes(&quantized.query_means)),
        ("key_mean", bytes(&quantized.key_mean)),
        ("key_codes", quantized.key_tiles()),
        ("key_scales", bytes(&quantized.key_scales)),
        // of segments, or of all keys
        (
            "value_mean",
            bytes(if quantized.output_mean.is_empty() { &quantized.value_means } else { &quantized.output_mean }),
        ),
        ("value_scale", bytes(&quantized.value_scales)),
        ("value_mean_codes", bytes(&quantized.value_mean_codes)),
        ("value_codes", quantized.value_tiles()),
        ("value_tiles", quantized.value_element_tiles()),
        ("log_sum_exp_shift", bytes(&quantized.log_sum_exp_shift)),
    ]
}
