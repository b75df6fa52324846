//! The `sage` program, as its users run it.

use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use sageattention::Gpu;
use sageattention::testing::Accuracy;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs};
use tempfile::TempDir;

/// Runs the program.
fn sage(arguments: &[&str]) -> Output {
    let program = env::var_os("SAGE_PROGRAM").unwrap_or_else(|| env!("CARGO_BIN_EXE_sage").into());
    Command::new(&program).args(arguments).output().unwrap_or_else(|error| panic!("{program:?}: {error}"))
}

/// Runs the program, which must succeed; what it printed.
fn succeed(arguments: &[&str]) -> (String, String) {
    let output = sage(arguments);
    let [out, error] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    assert!(output.status.success(), "{arguments:?}: {error}");
    (out, error)
}

/// Runs the program, which must fail with status 1 and an error that holds these words.
fn fail(arguments: &[&str], words: &[&str]) {
    let output = sage(arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {error}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    let line = error.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
    for words in words {
        assert!(line.contains(words), "{arguments:?}: {error:?} does not say {words:?}");
    }
}

/// A folder for one test's files.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder for temporary files"))
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().expect("a path in UTF-8").to_owned()
    }

    /// Writes a file of tensors.
    fn file(&self, name: &str, tensors: &[(&str, &Numbers)]) -> String {
        let bytes: Vec<_> = tensors.iter().map(|(name, numbers)| (name, numbers.bytes())).collect();
        let views = bytes.iter().zip(tensors).map(|((name, bytes), (_, numbers))| {
            (name, TensorView::new(numbers.dtype, numbers.shape.clone(), bytes).expect("a tensor that fits its shape"))
        });
        let path = self.path(name);
        fs::write(&path, safetensors::serialize(views, None).expect("tensors that fit")).expect("a writable folder");
        path
    }
}

/// A tensor of numbers, and how it is to be stored.
#[derive(Clone)]
struct Numbers {
    dtype: Dtype,
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl Numbers {
    /// Numbers in [-1, 1) without a pattern.
    fn noise(dtype: Dtype, shape: &[usize], seed: u32) -> Self {
        let mut state = seed;
        let mut noise = || {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let values = (0..shape.iter().product()).map(|_| noise()).collect();
        Self { dtype, shape: shape.to_vec(), values }
    }

    fn bytes(&self) -> Vec<u8> {
        let values = self.values.iter();
        match self.dtype {
            Dtype::F16 => values.flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
            Dtype::BF16 => values.flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect(),
            Dtype::F32 => values.flat_map(|value| value.to_le_bytes()).collect(),
            Dtype::U8 => values.map(|&value| value as u8).collect(),
            Dtype::I32 => values.flat_map(|&value| (value as i32).to_le_bytes()).collect(),
            other => panic!("no test needs {other:?}"),
        }
    }

    fn read(path: &str, name: &str) -> Self {
        let bytes = fs::read(path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let tensor = file.tensor(name).unwrap_or_else(|error| panic!("{path}: {error}"));
        let chunks = tensor.data().chunks_exact(tensor.dtype().bitsize() / 8);
        let value = |bytes: &[u8]| match tensor.dtype() {
            Dtype::F16 => bytemuck::pod_read_unaligned::<f16>(bytes).to_f32(),
            Dtype::BF16 => bytemuck::pod_read_unaligned::<bf16>(bytes).to_f32(),
            Dtype::F32 => bytemuck::pod_read_unaligned(bytes),
            other => panic!("no test reads {other:?}"),
        };
        Self { dtype: tensor.dtype(), shape: tensor.shape().to_vec(), values: chunks.map(value).collect() }
    }

    /// With the two axes before the last swapped: the other layout.
    fn swapped(&self) -> Self {
        let &[a, b, c, d] = &self.shape[..] else { panic!("four axes") };
        let index = |i: usize, third: usize, second: usize, j: usize| ((i * b + second) * c + third) * d + j;
        let mut values = Vec::new();
        for i in 0..a {
            for third in 0..c {
                for second in 0..b {
                    values.extend((0..d).map(|j| self.values[index(i, third, second, j)]));
                }
            }
        }
        Self { dtype: self.dtype, shape: vec![a, c, b, d], values }
    }

    fn accuracy(&self, exact: &Self) -> Accuracy {
        assert_eq!(self.shape, exact.shape);
        let exact: Vec<f64> = exact.values.iter().map(|&value| value.into()).collect();
        Accuracy::of(self.values.iter().map(|&value| value.into()), &exact)
    }
}

/// The real tensors.
fn whisper() -> String {
    let folder = env::var_os("SAGE_DATA_DIR").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data"));
    folder.join("whisper_tiny.safetensors").to_str().expect("a path in UTF-8").to_owned()
}

/// A file with `q`, `k` and `v` of these types and shapes.
fn operands(folder: &Folder, dtypes: [Dtype; 3], [q, k, v]: [&[usize]; 3]) -> String {
    let [q, k, v] = [(q, 0), (k, 1), (v, 2)].map(|(shape, i)| Numbers::noise(dtypes[i], shape, 1 + i as u32));
    folder.file("in.safetensors", &[("q", &q), ("k", &k), ("v", &v)])
}

const SQUARE: [&[usize]; 3] = [&[1, 2, 5, 16]; 3];

/// Least cosine and largest relative L1 on the real tensors: the bar in `tests/data/README.md`.
const CROSS_BAR: (f64, f64) = (0.999791, 0.01876);
const CAUSAL_BAR: (f64, f64) = (0.999615, 0.02567);

#[test]
fn real_data_comes_out_near_the_stored_output() {
    let folder = Folder::new();
    let (input, output) = (whisper(), folder.path("out.safetensors"));
    let layers = [("cross", None, CROSS_BAR), ("causal", Some("--causal"), CAUSAL_BAR)];
    for (layer, causal, (cosine, relative_l1)) in layers {
        let [q, k, v] = ["q", "k", "v"].map(|suffix| format!("{layer}.{suffix}"));
        let mut arguments = vec!["attend", &input, &output, "--q", &q, "--k", &k, "--v", &v, "--device", "cpu"];
        arguments.extend(causal);
        let (out, _) = succeed(&arguments);
        assert_eq!(out, "");
        let result = Numbers::read(&output, "o");
        assert_eq!(result.dtype, Dtype::F16);
        let accuracy = result.accuracy(&Numbers::read(&input, &format!("{layer}.o")));
        assert!(accuracy.relative_l1 <= relative_l1 && accuracy.cosine >= cosine, "{layer}: {accuracy:?}");
    }
    // Nothing is left of the file on its way.
    assert_eq!(fs::read_dir(folder.0.path()).expect("the folder").count(), 1);
}

#[test]
fn compare_prints_a_line_a_head() {
    let input = whisper();
    let names = ["--q", "causal.q", "--k", "causal.k", "--v", "causal.v", "--causal", "--reference", "causal.o"];
    let (out, _) = succeed(&[&["compare", &input, "--device", "cpu"], &names[..]].concat());
    let lines: Vec<_> = out.lines().collect();
    // Two tables: a heading, titles, six heads, all; and an empty line between them.
    assert_eq!(lines.len(), 19, "{out}");
    for (title, all) in [(lines[0], lines[8]), (lines[10], lines[18])] {
        assert!(title.starts_with("quantized attention on cpu against"), "{out}");
        let cells: Vec<_> = all.split_whitespace().collect();
        let &["all", "all", cosine, relative_l1, rmse, max] = &cells[..] else { panic!("{out}") };
        let [cosine, relative_l1, rmse, max] = [cosine, relative_l1, rmse, max].map(|cell| cell.parse().expect(all));
        let _: [f64; 4] = [cosine, relative_l1, rmse, max];
        assert!(cosine >= CAUSAL_BAR.0 && relative_l1 <= CAUSAL_BAR.1 && rmse < 0.006 && max > rmse, "{out}");
    }
    let heads: Vec<_> = lines[2..8].iter().map(|line| line.split_whitespace().nth(1).unwrap_or_default()).collect();
    assert_eq!(heads, ["0", "1", "2", "3", "4", "5"]);
}

/// 16-bit values are more exact, on real tensors and in the table that says so.
#[test]
fn compare_shows_what_16_bit_values_gain() {
    let relative_l1 = ["fp8", "f16"].map(|mode| {
        let names = ["--q", "causal.q", "--k", "causal.k", "--v", "causal.v", "--causal", "--pv-mode", mode];
        let (out, _) = succeed(&[&["compare", &whisper(), "--device", "cpu"], &names[..]].concat());
        let all = out.lines().last().expect("a table").to_owned();
        all.split_whitespace().nth(3).and_then(|cell| cell.parse::<f64>().ok()).expect("relative L1")
    });
    assert!(relative_l1[1] < 0.5 * relative_l1[0], "{relative_l1:?}");
}

#[test]
fn f32_is_rounded_and_comes_out_as_f32() {
    let folder = Folder::new();
    let input = operands(&folder, [Dtype::F32; 3], SQUARE);
    let (wide, narrow) = (folder.path("wide.safetensors"), folder.path("narrow.safetensors"));
    for (precision, dtype) in [(None, Dtype::F16), (Some("f16"), Dtype::F16), (Some("bf16"), Dtype::BF16)] {
        let precision = precision.map(|precision| ["--precision", precision]);
        let precision = precision.iter().flatten().copied();
        let arguments: Vec<_> = ["attend", &input, &wide, "--device", "cpu"].into_iter().chain(precision).collect();
        let (_, note) = succeed(&arguments);
        assert!(note.contains("are F32; they are rounded to"), "{note}");

        let tensors = ["q", "k", "v"].map(|name| Numbers { dtype, ..Numbers::read(&input, name) });
        let [q, k, v] = &tensors;
        let rounded = folder.file("rounded.safetensors", &[("q", q), ("k", k), ("v", v)]);
        let (_, note) = succeed(&["attend", &rounded, &narrow, "--device", "cpu"]);
        assert!(!note.contains("rounded"), "{note}");
        let (wide, narrow) = (Numbers::read(&wide, "o"), Numbers::read(&narrow, "o"));
        assert_eq!((wide.dtype, narrow.dtype), (Dtype::F32, dtype));
        if dtype == Dtype::F16 {
            // the library's own f32, whose output is not rounded
            assert_ne!(wide.values, narrow.values);
            assert_eq!(
                wide.values.iter().map(|&value| f16::from_f32(value).to_f32()).collect::<Vec<_>>(),
                narrow.values
            );
        } else {
            assert_eq!(wide.values, narrow.values);
        }
    }
}

#[test]
fn layouts_give_the_same() {
    let folder = Folder::new();
    let q = Numbers::noise(Dtype::F16, &[2, 4, 70, 32], 1);
    let [k, v] = [2, 3].map(|seed| Numbers::noise(Dtype::F16, &[2, 2, 130, 32], seed));
    let hnd = folder.file("hnd.safetensors", &[("q", &q), ("k", &k), ("v", &v)]);
    let nhd = folder.file("nhd.safetensors", &[("q", &q.swapped()), ("k", &k.swapped()), ("v", &v.swapped())]);
    let outputs = ["hnd", "nhd"].map(|layout| folder.path(&format!("{layout}-out.safetensors")));
    let options = ["--causal=bottom-right", "--device", "cpu", "--lse"];
    succeed(&[&["attend", &hnd, &outputs[0]], &options[..]].concat());
    succeed(&[&["attend", &nhd, &outputs[1], "--layout", "nhd"], &options[..]].concat());
    let [hnd, nhd] = outputs.each_ref().map(|path| Numbers::read(path, "o"));
    assert_eq!(nhd.shape, [2, 70, 4, 32]);
    assert_eq!(nhd.swapped().values, hnd.values);
    let [hnd, nhd] = outputs.each_ref().map(|path| Numbers::read(path, "lse"));
    assert_eq!((&nhd.shape[..], nhd.dtype), (&[2, 4, 70][..], Dtype::F32));
    assert_eq!(nhd.values, hnd.values);
}

#[test]
fn lse_is_the_logarithm_of_the_sum() {
    let folder = Folder::new();
    let q = Numbers::noise(Dtype::F16, &[1, 1, 3, 16], 1);
    // Equal keys: every logit of a query is the same.
    let k = Numbers { values: vec![0.5; 7 * 16], ..Numbers::noise(Dtype::F16, &[1, 1, 7, 16], 2) };
    let v = Numbers::noise(Dtype::F16, &[1, 1, 7, 16], 3);
    let input = folder.file("in.safetensors", &[("q", &q), ("k", &k), ("v", &v)]);
    let output = folder.path("out.safetensors");
    succeed(&["attend", &input, &output, "--lse", "--scale", "0.25", "--device", "cpu"]);
    let lse = Numbers::read(&output, "lse");
    assert_eq!(lse.shape, [1, 1, 3]);
    let q = Numbers::read(&input, "q");
    for (lse, query) in lse.values.iter().zip(q.values.chunks_exact(16)) {
        let expected = query.iter().sum::<f32>() * 0.5 * 0.25 + 7f32.ln();
        assert!((lse - expected).abs() < 1e-2, "{lse} {expected}");
    }
    succeed(&["attend", &input, &output, "--device", "cpu"]);
    let bytes = fs::read(&output).expect("the output");
    assert_eq!(SafeTensors::deserialize(&bytes).expect("a safetensors file").names(), ["o"]);
}

#[test]
fn rank_3_is_one_sequence() {
    let folder = Folder::new();
    let input = operands(&folder, [Dtype::BF16; 3], [&[2, 5, 16]; 3]);
    let output = folder.path("out.safetensors");
    succeed(&["attend", &input, &output, "--lse", "--device", "cpu"]);
    let result = Numbers::read(&output, "o");
    assert_eq!((&result.shape[..], result.dtype), (&[2, 5, 16][..], Dtype::BF16));
    assert_eq!(Numbers::read(&output, "lse").shape, [2, 5]);
}

#[test]
fn sinks_are_read() {
    let folder = Folder::new();
    let [q, k, v] = [1, 2, 3].map(|seed| Numbers::noise(Dtype::F16, &[1, 2, 30, 64], seed));
    let sinks = Numbers { dtype: Dtype::F32, shape: vec![2], values: vec![f32::NEG_INFINITY, 100.0] };
    let wrong = Numbers { dtype: Dtype::F32, shape: vec![3], values: vec![0.0; 3] };
    let tensors = [("q", &q), ("k", &k), ("v", &v), ("sinks", &sinks), ("wrong", &wrong)];
    let (input, output) = (folder.file("in.safetensors", &tensors), folder.path("out.safetensors"));
    let result = |options: &[&str]| {
        succeed(&[&["attend", &input, &output, "--device", "cpu"], options].concat());
        Numbers::read(&output, "o").values
    };
    let (plain, with_sinks) = (result(&[]), result(&["--sinks", "sinks"]));
    let (first, second) = with_sinks.split_at(30 * 64);
    assert_eq!(first, &plain[..30 * 64]);
    assert!(second.iter().all(|&element| element == 0.0));
    let words = ["sinks `wrong` has shape [3]; it must be [2], one for each of the query's heads"];
    fail(&["attend", &input, &output, "--sinks", "wrong"], &words);
    fail(&["compare", &input, "--sinks", "nobody"], &["has no tensor `nobody`"]);
}

#[test]
fn masks_and_biases_are_read() {
    let folder = Folder::new();
    let [q, k, v] = [1, 2, 3].map(|seed| Numbers::noise(Dtype::F16, &[2, 2, 30, 64], seed));
    let numbers = |dtype, shape: &[usize], value: fn(usize) -> f32| {
        let values = (0..shape.iter().product()).map(value).collect();
        Numbers { dtype, shape: shape.to_vec(), values }
    };
    // of each row of 30, the first ten
    let mask = numbers(Dtype::U8, &[30, 30], |index| f32::from(u8::from(index % 30 < 10)));
    let bias = numbers(Dtype::F16, &[2, 1, 1, 30], |index| if index % 30 < 10 { 0.0 } else { f32::NEG_INFINITY });
    let wrong = numbers(Dtype::F32, &[3, 30, 30], |_| 0.0);
    let tensors = [("q", &q), ("k", &k), ("v", &v), ("mask", &mask), ("bias", &bias), ("wrong", &wrong)];
    let (input, output) = (folder.file("in.safetensors", &tensors), folder.path("out.safetensors"));
    let result = |options: &[&str]| {
        succeed(&[&["attend", &input, &output, "--device", "cpu"], options].concat());
        Numbers::read(&output, "o").values
    };
    let (plain, masked) = (result(&[]), result(&["--mask", "mask"]));
    assert_ne!(plain, masked);
    assert_eq!(masked, result(&["--bias", "bias"]));
    assert_eq!(masked, result(&["--bias", "bias", "--mask", "mask"]));
    let words = ["bias `wrong` has shape [3, 30, 30]; it must be [2, 2, 30, 30], [batch, heads, queries, keys]"];
    fail(&["attend", &input, &output, "--bias", "wrong"], &words);
    fail(&["attend", &input, &output, "--mask", "bias"], &["mask `bias` holds F16; allowed are BOOL and U8"]);
    fail(&["attend", &input, &output, "--soft-cap", "-1"], &["--soft-cap is -1; it must be finite and positive"]);
    let (table, _) = succeed(&["compare", &input, "--mask", "mask", "--soft-cap", "2", "--device", "cpu"]);
    assert!(table.contains("all"), "{table}");
}

/// Sequences of different lengths: each by itself gives the same, whether the lengths are on the command line or in the file.
#[test]
fn lengths_are_read() {
    let folder = Folder::new();
    let output = folder.path("out.safetensors");
    let result = |input: &str, options: &[&str]| {
        succeed(&[&["attend", input, &output, "--device", "cpu", "--lse"], options].concat());
        ["o", "lse"].map(|name| Numbers::read(&output, name))
    };
    let integers = |values: &[f32]| Numbers { dtype: Dtype::I32, shape: vec![values.len()], values: values.to_vec() };
    let (starts, lens) = (integers(&[0.0, 5.0, 5.0, 12.0]), integers(&[7.0, 12.0]));
    let (heads, channels) = (2, 16);

    // [tokens, heads, head_dim]
    let packed = [1, 2, 3].map(|seed| Numbers::noise(Dtype::F16, &[12, heads, channels], seed));
    let [q, k, v] = &packed;
    let input = folder.file("packed.safetensors", &[("q", q), ("k", k), ("v", v), ("starts", &starts)]);
    let list = ["--cu-seqlens-q", "0,5,5,12", "--cu-seqlens-k", "0, 5, 5, 12"];
    let [whole, lse] = result(&input, &list);
    assert_eq!((&whole.shape[..], &lse.shape[..]), (&[12, heads, channels][..], &[heads, 12][..]));
    let named = ["--cu-seqlens-q", "starts", "--cu-seqlens-k", "starts"];
    let swapped =
        |numbers: &Numbers| Numbers { shape: [&[1], &numbers.shape[..]].concat(), ..numbers.clone() }.swapped();
    assert_eq!(result(&input, &named)[0].values, whole.values);
    for tokens in [0..5, 5..12] {
        let row = heads * channels;
        let [q, k, v] = packed.each_ref().map(|tensor| Numbers {
            shape: vec![1, tokens.len(), heads, channels],
            values: tensor.values[tokens.start * row..tokens.end * row].to_vec(),
            ..tensor.clone()
        });
        let input = folder.file("one.safetensors", &[("q", &q), ("k", &k), ("v", &v)]);
        let [one, one_lse] = result(&input, &["--layout", "nhd"]);
        assert_eq!(one.values, whole.values[tokens.start * row..tokens.end * row]);
        for (head, one_lse) in one_lse.values.chunks_exact(tokens.len()).enumerate() {
            assert_eq!(one_lse, &lse.values[12 * head..][tokens.clone()]);
        }
    }
    let [q, k, v] = packed.each_ref().map(|tensor| {
        let tensor = swapped(tensor);
        Numbers { shape: tensor.shape[1..].to_vec(), ..tensor }
    });
    let hnd = folder.file("hnd.safetensors", &[("q", &q), ("k", &k), ("v", &v)]);
    let [output_hnd, _] = result(&hnd, &[&list[..], &["--layout", "hnd"]].concat());
    assert_eq!(output_hnd.values, swapped(&whole).values);

    let padded = [(5, 1), (12, 2), (12, 3)];
    let [q, k, v] = padded.map(|(tokens, seed)| Numbers::noise(Dtype::F16, &[2, heads, tokens, channels], seed));
    let padded = folder.file("padded.safetensors", &[("q", &q), ("k", &k), ("v", &v), ("lens", &lens)]);
    let [output_padded, _] = result(&padded, &["--kv-lens", "7,12"]);
    assert_eq!(result(&padded, &["--kv-lens", "lens"])[0].values, output_padded.values);
    assert_ne!(result(&padded, &[])[0].values, output_padded.values);
    // the second batch has no padding
    assert_eq!(result(&padded, &[])[0].values[5 * heads * channels..], output_padded.values[5 * heads * channels..]);
    assert!(succeed(&["compare", &padded, "--kv-lens", "7,12", "--device", "cpu"]).0.contains("0.99"));
    assert!(succeed(&[&["compare", &input, "--device", "cpu"], &list[..]].concat()).0.contains("0.99"));

    let fail = |input: &str, options: &[&str], words: &str| {
        fail(&[&["attend", input, &output, "--device", "cpu"], options].concat(), &[words]);
    };
    fail(&padded, &["--kv-lens", "7,13"], "kv_lens[1] is 13; it must be from 0 to 12");
    fail(&padded, &["--kv-lens=-1,12"], "kv_lens[0] is -1; it must be from 0 to 12");
    fail(&padded, &["--kv-lens", "7"], "kv_lens has 1 elements; it must have 2");
    fail(&padded, &["--kv-lens", "7,12,1"], "kv_lens has 3 elements; it must have 2");
    fail(&padded, &["--kv-lens", "7,twelve"], "has no tensor `7,twelve`; it has k, lens, q, v");
    fail(&padded, &["--kv-lens", "q"], "kv_lens `q` holds F16; it must hold I32");
    fail(&padded, &["--kv-lens", "lens", "--causal"], "choose --causal=top-left or --causal=bottom-right");
    fail(&padded, &["--kv-lens", "lens", "--smooth-q"], "smooth_q with lengths PaddedKeys is not supported");
    let words =
        "query `q` has rank 4, shape [2, 2, 5, 16]; packed sequences must have rank 3, [tokens, heads, head_dim]";
    fail(&padded, &list, words);
    let starts = |queries, keys| ["--cu-seqlens-q", queries, "--cu-seqlens-k", keys];
    fail(&input, &starts("0,5,12", "0,5,5,12"), "cu_seqlens_k has 4 elements; it must have 3");
    fail(&input, &starts("0,5,11", "0,5,12"), "cu_seqlens_q[2] is 11; it must be from 12 to 12");
    fail(&input, &starts("12", "12"), "batch is 0; it must be at least 1");
    let output = sage(&["compare", &input, "--cu-seqlens-q", "0,12"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

/// Turned and rotated on the command line; a table that turns nothing changes nothing.
#[test]
fn rotations_are_heeded() {
    let folder = Folder::new();
    let [q, k, v] = [1, 2, 3].map(|seed| Numbers::noise(Dtype::F16, &[2, 2, 30, 24], seed));
    let table = |of: fn(f32) -> f32| Numbers {
        dtype: Dtype::F32,
        shape: vec![40, 10],
        values: (0..400).map(|place| of((place / 10) as f32 * 0.1f32.powi(place % 10))).collect(),
    };
    let (cos, sin) = (table(f32::cos), table(f32::sin));
    let (one, zero) = (table(|_| 1.0), table(|_| 0.0));
    let tensors = [("q", &q), ("k", &k), ("v", &v), ("cos", &cos), ("sin", &sin), ("one", &one), ("zero", &zero)];
    let input = folder.file("in.safetensors", &tensors);
    let output = folder.path("out.safetensors");
    let result = |options: &[&str]| {
        succeed(&[&["attend", &input, &output, "--device", "cpu"], options].concat());
        Numbers::read(&output, "o").values
    };
    let plain = result(&[]);
    assert_eq!(result(&["--rotary-cos", "one", "--rotary-sin", "zero", "--rotary-query-offset", "10"]), plain);
    let rotary = ["--rotary-cos", "cos", "--rotary-sin", "sin"];
    let turned = result(&rotary);
    assert_ne!(turned, plain);
    assert_ne!(result(&[&rotary[..], &["--rotary-pairs", "interleaved"]].concat()), turned);
    assert_ne!(result(&[&rotary[..], &["--rotary-key-offset", "10"]].concat()), turned);
    assert_ne!(result(&["--hadamard"]), plain);
    for options in [&rotary[..], &["--hadamard", "--pv-mode", "f16"]] {
        let (table, _) = succeed(&[&["compare", &input, "--device", "cpu"], options].concat());
        assert!(table.contains("0.99"), "{table}");
    }
    let fail = |options: &[&str], words: &str| fail(&[&["attend", &input, &output], options].concat(), &[words]);
    fail(&[&rotary[..], &["--rotary-query-offset", "11"]].concat(), "rotary has 40 positions; query needs 41");
    let words = "rotary-cos `q` has shape [2, 2, 30, 24]; it must be [positions, pairs]";
    fail(&["--rotary-cos", "q", "--rotary-sin", "sin"], words);
    assert_eq!(sage(&["attend", &input, &output, "--rotary-cos", "cos"]).status.code(), Some(2));
}

/// The output has the values' channels.
#[test]
fn values_have_a_head_dimension_of_their_own() {
    let folder = Folder::new();
    let [q, k] = [1, 2].map(|seed| Numbers::noise(Dtype::F16, &[2, 2, 30, 24], seed));
    let v = Numbers::noise(Dtype::F16, &[2, 2, 30, 16], 3);
    let output = folder.path("out.safetensors");
    let result = |layout, tensors: [&Numbers; 3]| {
        let [q, k, v] = tensors;
        let input = folder.file("in.safetensors", &[("q", q), ("k", k), ("v", v)]);
        succeed(&["attend", &input, &output, "--device", "cpu", "--layout", layout]);
        Numbers::read(&output, "o")
    };
    let hnd = result("hnd", [&q, &k, &v]);
    assert_eq!(hnd.shape, v.shape);
    let nhd = result("nhd", [&q.swapped(), &k.swapped(), &v.swapped()]);
    assert_eq!((nhd.shape.clone(), nhd.values), (hnd.swapped().shape, hnd.swapped().values));
    let input = folder.file("reference.safetensors", &[("q", &q), ("k", &k), ("v", &v), ("o", &hnd)]);
    let (table, _) = succeed(&["compare", &input, "--device", "cpu", "--reference", "o"]);
    assert!(table.contains("1.000000"), "{table}");
    let words = "reference `q` has shape [2, 2, 30, 24]; it must be [2, 2, 30, 16], as the output's";
    fail(&["compare", &input, "--device", "cpu", "--reference", "q"], &[words]);
}

#[test]
fn options_are_heeded() {
    let folder = Folder::new();
    let input = operands(&folder, [Dtype::F16; 3], [&[1, 1, 300, 64]; 3]);
    let output = folder.path("out.safetensors");
    let result = |options: &[&str]| {
        succeed(&[&["attend", &input, &output, "--device", "cpu"], options].concat());
        Numbers::read(&output, "o").values
    };
    let plain = result(&[]);
    assert_eq!(result(&["--granularity", "per-thread", "--scale", "0.125"]), plain);
    for options in [
        &["--granularity", "per-block"][..],
        &["--granularity", "per-warp"],
        &["--no-smooth-k"],
        &["--no-smooth-v"],
        &["--qk-mode", "int4"],
        &["--smooth-q"],
        &["--pv-mode", "f16"],
        &["--pv-accum", "f32+f32"],
        &["--pv-accum", "f32+f16"],
        &["--scale", "0.5"],
        &["--causal"],
        &["--soft-cap", "0.5"],
        &["--window-left", "20"],
        &["--window-right", "20"],
    ] {
        assert_ne!(result(options), plain, "{options:?}");
    }
    assert_eq!(result(&["--causal=top-left"]), result(&["--causal"]));
    assert_eq!(result(&["--window-right", "0", "--window-align", "top-left"]), result(&["--causal"]));
    assert_eq!(result(&["--window-left", "299", "--window-right", "299"]), plain);
    let plain = result(&["--pv-mode", "f16"]);
    for accum in ["f16", "f16+f32"] {
        assert_ne!(result(&["--pv-mode", "f16", "--pv-accum", accum]), plain, "{accum}");
    }
    let words = ["--pv-accum is f16 with --pv-mode fp8 and f16 values; allowed there: f32, f32+f32, f32+f16"];
    fail(&["attend", &input, &output, "--pv-accum", "f16"], &words);
}

/// The order of the modes, as SageAttention's papers have it, on keys and queries with offsets by channel.
#[test]
fn accuracy_shows_what_modes_cost_and_smoothing_gains() {
    let (out, _) = succeed(&["accuracy", "--inputs", "offsets,cross-shifted", "--tokens", "300"]);
    let tables: Vec<&str> = out.split("\n\n").collect();
    assert!(tables.len() == 3 && tables[0].contains("1 × 4 × 300 × 128") && tables[1].contains("× 1500 ×"), "{out}");
    for table in &tables[..2] {
        // titles and the heading, 24 modes, and what smoothing does
        assert_eq!(table.lines().count(), 2 + 24 + 4, "{table}");
        let find = |mode: &str| -> [f64; 4] {
            let words: Vec<&str> = mode.split_whitespace().collect();
            let mut rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            let row = rows.find(|row| row.starts_with(&words)).unwrap_or_else(|| panic!("{mode}: {table}"));
            let numbers = row[words.len()..].iter().map(|cell| cell.parse().expect(cell)).collect::<Vec<_>>();
            numbers.try_into().unwrap_or_else(|_| panic!("{mode}: {table}"))
        };
        let cosine = |mode: &str| find(mode)[0];
        let relative_l1 = |mode: &str| find(mode)[1];
        assert!(cosine("INT4 nothing FP8 f32") < 0.9, "INT4 collapses: {table}");
        assert!(cosine("INT4 Q K FP8 f32+f32") > 0.98, "smoothing keeps INT4: {table}");
        assert!(relative_l1("INT4 Q K FP8 f32+f32") < 0.9 * relative_l1("INT4 K FP8 f32+f32"), "{table}");
        assert!(relative_l1("INT8 K F16 f32") < 0.2 * relative_l1("INT4 K F16 f32"), "{table}");
        assert!(relative_l1("INT8 Q K F16 f32") < relative_l1("INT8 K F16 f32"), "{table}");
        assert!(relative_l1("INT8 K FP8 f32+f32") < relative_l1("INT8 nothing FP8 f32"), "{table}");
        assert!(relative_l1("INT8 K F16 f32") < 0.8 * relative_l1("INT8 K FP8 f32+f32"), "{table}");
        for (sums, plain) in [
            ("INT8 K FP8 f32+f16", "INT8 K FP8 f32+f32"),
            ("INT8 K V F16 f16", "INT8 K F16 f32"),
            ("INT8 K F16 f16+f32", "INT8 K F16 f32"),
        ] {
            let ratio = relative_l1(sums) / relative_l1(plain);
            assert!((0.9..1.1).contains(&ratio), "{sums}: {table}");
        }
        let [all, worst] = [cosine("INT8 Q K F16 f32"), find("INT8 Q K F16 f32")[3]];
        assert!(worst < all && worst > 0.999, "{table}");
    }
    fail(&["accuracy", "--inputs", "cross", "--data", "nowhere"], &["cannot read nowhere"]);
}

#[test]
fn files_that_are_no_use() {
    let folder = Folder::new();
    let (input, output) = (whisper(), folder.path("out.safetensors"));
    let missing = ["has no tensor `nobody`", "causal.k", "encoder.q", &input];
    fail(&["attend", &input, &output, "--q", "nobody", "--k", "cross.k", "--v", "cross.v"], &missing);
    fail(&["compare", &input, "--q", "cross.q", "--k", "cross.k", "--v", "nobody"], &missing);
    assert!(!Path::new(&output).exists());

    let whole = fs::read(&input).expect("the real tensors");
    let cut = folder.path("cut.safetensors");
    for length in [whole.len() - 1, whole.len() / 2, 100] {
        fs::write(&cut, &whole[..length]).expect("a writable folder");
        let got = format!("is truncated: it has {length} bytes, its header announces ");
        fail(&["compare", &cut], &[&cut, &got]);
    }
    fs::write(&cut, &whole[..5]).expect("a writable folder");
    fail(&["compare", &cut], &[&cut, "not a safetensors file: it has 5 bytes"]);
    fs::write(&cut, [&whole[..], b"more"].concat()).expect("a writable folder");
    fail(&["compare", &cut], &["not a safetensors file: it has 5888212 bytes, its header announces 5888208"]);
    fs::write(&cut, "Dear reader, this is a letter.").expect("a writable folder");
    fail(&["compare", &cut], &[&cut, "not a safetensors file: it does not start with a header's length"]);
    fs::write(&cut, b"\x04\0\0\0\0\0\0\0oops").expect("a writable folder");
    fail(&["compare", &cut], &[&cut, "not a safetensors file: its header is damaged"]);
    fail(&["compare", &folder.path("nowhere")], &["cannot read", "nowhere", "No such file"]);
    fail(&["compare", &folder.path("")], &["is not a regular file"]);

    let input = operands(&folder, [Dtype::F16; 3], SQUARE);
    fail(&["attend", &input, &folder.path("nowhere/out.safetensors")], &["cannot write", "nowhere", "No such file"]);
    fail(&["attend", &input, &folder.path("")], &["cannot write", "directory"]);
}

#[test]
fn tensors_that_are_no_use() {
    let folder = Folder::new();
    let f16 = [Dtype::F16; 3];
    let check = |dtypes, shapes, options: &[&str], words: &[&str]| {
        let input = operands(&folder, dtypes, shapes);
        fail(&[&["compare", &input, "--device", "cpu"], options].concat(), words);
    };
    check(
        f16,
        [&[5, 16], &[1, 2, 5, 16], &[1, 2, 5, 16]],
        &[],
        &["query `q` has rank 2, shape [5, 16]; it must have rank 4, [batch, heads, tokens, head_dim], or rank 3"],
    );
    check(
        [Dtype::F16, Dtype::BF16, Dtype::F16],
        SQUARE,
        &[],
        &["key `k` holds BF16, query `q` holds F16; all must be of one type"],
    );
    check([Dtype::I32; 3], SQUARE, &[], &["query `q` holds I32; allowed are F16, BF16 and F32"]);
    check(f16, SQUARE, &["--precision", "bf16"], &["--precision is for F32 tensors; query `q` holds F16"]);
    check(
        f16,
        [&[1, 6, 5, 16], &[1, 4, 5, 16], &[1, 4, 5, 16]],
        &[],
        &["query_heads is 6, key_heads is 4; query_heads must be a multiple of key_heads"],
    );
    check(
        f16,
        [&[1, 2, 5, 16], &[1, 2, 7, 16], &[1, 2, 8, 16]],
        &[],
        &["value `v` [1, 2, 8, 16]", "value's tokens is 8; it must be 7, as key's"],
    );
    check(f16, [&[1, 1, 5, 288]; 3], &[], &["head_dim is 288; allowed are 1 to 256"]);
    check(f16, [&[1, 1, 0, 16]; 3], &[], &["query_len is 0; it must be at least 1"]);
    check(
        f16,
        [&[1, 2, 5, 16], &[1, 2, 7, 16], &[1, 2, 7, 16]],
        &["--causal"],
        &["--causal with 5 queries and 7 keys", "choose --causal=top-left or --causal=bottom-right"],
    );
    check(f16, SQUARE, &["--scale", "-2"], &["--scale is -2; it must be finite and positive"]);
    check(f16, SQUARE, &["--reference", "k2"], &["has no tensor `k2`; it has k, q, v"]);

    let q = Numbers { values: vec![7e4; 160], ..Numbers::noise(Dtype::F32, SQUARE[0], 1) };
    let large = folder.file("large.safetensors", &[("q", &q), ("k", &q), ("v", &q)]);
    let words =
        ["query[0, 0, 0, 0] is 70000; f32 tensors are rounded to f16", "from -65504 to 65504; use --precision bf16"];
    fail(&["compare", &large], &words);
    let (_, note) = succeed(&["compare", &large, "--precision", "bf16", "--device", "cpu"]);
    assert!(note.contains("rounded to bf16"), "{note}");

    let other = Numbers::noise(Dtype::F16, &[1, 2, 5, 8], 1);
    let q = Numbers::noise(Dtype::F16, SQUARE[0], 1);
    let input = folder.file("shape.safetensors", &[("q", &q), ("k", &q), ("v", &q), ("o", &other)]);
    let words = "reference `o` has shape [1, 2, 5, 8]; it must be [1, 2, 5, 16], as the output's";
    fail(&["compare", &input, "--reference", "o"], &[words]);
}

#[test]
fn devices_that_are_no_use() {
    let folder = Folder::new();
    let input = operands(&folder, [Dtype::F16; 3], SQUARE);
    for device in ["tpu", "gpu:one", "gpu:"] {
        let output = sage(&["compare", &input, "--device", device]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(&format!("invalid value '{device}' for '--device <DEVICE>'")), "{error}");
        assert!(error.contains("allowed are auto, cpu, gpu, and gpu:N"), "{error}");
    }
    fail(&["compare", &input, "--device", "gpu:99"], &["no GPU 99: ", "use --device cpu, or --device auto"]);
    match Gpu::open(0) {
        Ok(_) => drop(succeed(&["compare", &input, "--device", "gpu"])),
        Err(_) => fail(&["compare", &input, "--device", "gpu"], &["GPU"]),
    }
    succeed(&["compare", &input]);
}

#[test]
fn devices_are_listed() {
    let (out, _) = succeed(&["devices"]);
    for start in ["device", "cpu", "gpu", "kernels", "auto", "8.0", "9.0", "12.0"] {
        assert!(out.lines().any(|line| line.starts_with(start)), "{start}: {out}");
    }
}

#[test]
fn the_demo_shows_real_and_random_tensors() {
    let (out, _) = succeed(&["demo"]);
    let row =
        |title: &str| out.lines().find(|line| line.starts_with(title)).unwrap_or_else(|| panic!("{title}: {out}"));
    for title in ["speech encoder", "cross-attention", "text decoder", "random normal"] {
        assert!(row(title).contains("0.99"), "{out}");
    }
    assert!(row("shape: ").contains("cosine") && row("time: ").contains("median"), "{out}");
    fail(&["demo", "--data", "nowhere"], &["cannot read nowhere"]);
}

#[test]
fn verbose_tells_what_is_done() {
    let folder = Folder::new();
    let input = operands(&folder, [Dtype::F16; 3], SQUARE);
    let (_, quiet) = succeed(&["compare", &input, "--device", "cpu"]);
    let (_, verbose) = succeed(&["compare", &input, "--device", "cpu", "-v"]);
    assert!(quiet.is_empty(), "{quiet}");
    assert!(verbose.contains("attention planned"), "{verbose}");
}
