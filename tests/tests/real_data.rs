//! Accuracy on activations of a trained model; `data/README.md` has the bar.

use half::f16;
use sage_tests::data::{BARS, Layer, whisper};
use sage_tests::error::Accuracy;
use sage_tests::tensor::{attend, query_shape};
use sageattention::{AttentionOptions, Mask, PvMode, QuantGranularity, testing};

fn options(layer: &str) -> AttentionOptions {
    let mask = if layer == "causal" { Mask::Causal } else { Mask::None };
    AttentionOptions { mask, ..Default::default() }
}

fn accuracy(layer: &Layer, options: &AttentionOptions) -> Accuracy {
    let exact = testing::exact(&layer.problem, options, layer.inputs.slices());
    Accuracy::of(attend(&layer.problem, options, &layer.inputs).output, &exact.output)
}

#[test]
fn the_exact_reference_gives_the_stored_outputs() {
    for name in ["encoder", "cross", "causal"] {
        let layer = whisper(name);
        let [_, _, query_len, head_dim] = query_shape(&layer.problem);
        let exact = testing::exact(&layer.problem, &options(name), layer.inputs.slices()).output;
        let rows = exact.chunks_exact(head_dim).enumerate();
        let every = rows.filter(|(row, _)| row % query_len % layer.output_step == 0).flat_map(|(_, row)| row);
        let mut compared = 0;
        for (&exact, stored) in every.zip(&layer.output) {
            // rounded to f32 and then to f16 when stored: half a step, and a little
            let step = exact.abs().max(6.2e-5) * 2f64.powi(-10);
            assert!((exact - stored.to_f64()).abs() <= 0.51 * step, "{name}: {exact} {stored}");
            compared += 1;
        }
        assert_eq!(compared, layer.output.len());
    }
}

#[test]
fn quantized_attention_meets_the_bar() {
    for (name, cosine, relative_l1) in BARS {
        let layer = whisper(name);
        for granularity in QuantGranularity::ALL {
            for smooth_v in [false, true] {
                let accuracy = accuracy(&layer, &AttentionOptions { granularity, smooth_v, ..options(name) });
                println!("{name} {granularity:?}, smooth_v {smooth_v}: {accuracy:?}");
                assert!(accuracy.relative_l1 <= relative_l1, "{name} {granularity:?}: {accuracy:?}");
                assert!(accuracy.cosine >= cosine, "{name} {granularity:?}: {accuracy:?}");
            }
        }
    }
}

/// With 16-bit values, what is left is the rounding of queries and keys: about half of the bar.
#[test]
fn values_of_16_bits_are_well_below_the_bar() {
    for (name, _, relative_l1) in BARS {
        let layer = whisper(name);
        for granularity in QuantGranularity::ALL {
            let options = AttentionOptions { pv_mode: PvMode::F16, granularity, ..options(name) };
            let accuracy = accuracy(&layer, &options);
            println!("{name} {granularity:?}: {accuracy:?}");
            assert!(accuracy.relative_l1 <= 0.55 * relative_l1, "{name} {granularity:?}: {accuracy:?}");
        }
    }
}

/// A constant added to every key leaves softmax as it is. Smoothing takes it out; without smoothing it costs accuracy.
#[test]
fn smoothing_takes_out_what_keys_have_in_common() {
    for (name, _, relative_l1) in BARS {
        let mut layer = whisper(name);
        for row in layer.inputs.key.chunks_exact_mut(layer.problem.head_dim) {
            for (channel, shift) in [(5, 16.0), (21, -16.0), (37, 16.0), (53, -16.0)] {
                row[channel] = f16::from_f32(row[channel].to_f32() + shift);
            }
        }
        let granularity = QuantGranularity::PerWarp;
        let smoothed = accuracy(&layer, &AttentionOptions { granularity, ..options(name) });
        let plain = accuracy(&layer, &AttentionOptions { granularity, smooth_k: false, ..options(name) });
        println!("{name}: {smoothed:?} / {plain:?}");
        assert!(smoothed.relative_l1 <= relative_l1 + 3e-4, "{name}: {smoothed:?}");
        assert!(plain.relative_l1 >= smoothed.relative_l1 * 1.2, "{name}: {smoothed:?} {plain:?}");
    }
}
