//! How far a result is from the exact one.

/// The measures of SageAttention's papers, over all elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Accuracy {
    /// Cosine of the angle between the two, as vectors.
    pub cosine: f64,
    /// Sum of absolute differences over the sum of exact absolute values.
    pub relative_l1: f64,
    /// Root of the mean square difference.
    pub rmse: f64,
    /// Largest absolute difference.
    pub max: f64,
}

impl Accuracy {
    /// Compares `result` with what is `exact`.
    pub fn of(result: impl IntoIterator<Item = f64>, exact: &[f64]) -> Self {
        let (mut dot, mut squares, mut exact_squares) = (0.0, 0.0, 0.0);
        let (mut difference, mut magnitude, mut square_difference, mut max) = (0.0, 0.0, 0.0, 0.0f64);
        let mut count = 0;
        for (result, &exact) in result.into_iter().zip(exact) {
            dot += result * exact;
            squares += result * result;
            exact_squares += exact * exact;
            difference += (result - exact).abs();
            magnitude += exact.abs();
            square_difference += (result - exact).powi(2);
            // unlike f64::max, keeps a NaN
            max = if (result - exact).abs() <= max { max } else { (result - exact).abs() };
            count += 1;
        }
        assert_eq!(count, exact.len(), "lengths differ");
        Self {
            cosine: dot / (squares * exact_squares).sqrt(),
            relative_l1: difference / magnitude,
            rmse: (square_difference / count as f64).sqrt(),
            max,
        }
    }
}
