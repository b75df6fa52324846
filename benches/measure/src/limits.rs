//! What the hardware allows, from how much a multiprocessor does a clock.

/// Multiplications and additions of 8-bit numbers that Hopper's tensor cores do a clock and multiprocessor: 4096 of each.
const TENSOR_OPERATIONS: f64 = 8192.0;
/// Exponentials a clock and multiprocessor.
const EXPONENTIALS: f64 = 16.0;

/// A GPU's multiprocessors and their clock.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How many there are.
    pub multiprocessors: u32,
    /// The highest clock, in GHz. Under load a GPU runs slower, and so stays further from these limits.
    pub clock_ghz: f64,
}

impl Limits {
    /// TOPS of the tensor cores, without sparsity, for numbers of this many bits.
    pub fn tensor_cores(&self, bits: u32) -> f64 {
        self.tera(TENSOR_OPERATIONS * 8.0 / f64::from(bits))
    }

    /// TOPS of attention that waits for nothing but its exponentials: one a score, for which the two matrix products
    /// multiply and add `head_dim` times each.
    pub fn exponentials(&self, head_dim: usize) -> f64 {
        self.tera(EXPONENTIALS * 4.0 * head_dim as f64)
    }

    /// 10¹² a second of what happens so often a clock and multiprocessor.
    fn tera(&self, each_clock: f64) -> f64 {
        each_clock * f64::from(self.multiprocessors) * self.clock_ghz / 1e3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h100() {
        // The clock of NVIDIA's figures.
        let h100 = Limits { multiprocessors: 132, clock_ghz: 1.83 };
        assert_eq!([8, 16].map(|bits| h100.tensor_cores(bits).round()), [1979.0, 989.0]);
        assert_eq!(h100.exponentials(128), h100.tensor_cores(8));
        // The highest clock.
        let h100 = Limits { clock_ghz: 1.98, ..h100 };
        assert_eq!(h100.tensor_cores(8).round(), 2141.0);
        assert_eq!(h100.exponentials(64).round(), 1071.0);
    }
}
