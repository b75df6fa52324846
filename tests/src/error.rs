//! How far a result is from the exact one.

pub use sageattention::testing::Accuracy;

/// Panics unless every row of `head_dim` elements is near: Σ|difference| is at most `relative` · Σ|expected| + `floor`.
pub fn assert_rows_near(
    result: &[f64],
    expected: &[f64],
    head_dim: usize,
    [relative, floor]: [f64; 2],
    what: impl std::fmt::Display,
) {
    assert_eq!(result.len(), expected.len(), "{what}");
    for (row, (result, expected)) in result.chunks(head_dim).zip(expected.chunks(head_dim)).enumerate() {
        let difference: f64 = result.iter().zip(expected).map(|(result, expected)| (result - expected).abs()).sum();
        let limit = relative * expected.iter().map(|element| element.abs()).sum::<f64>() + floor;
        assert!(difference <= limit, "{what}: row {row} differs by {difference}, allowed are {limit}");
    }
}
