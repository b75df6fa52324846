//! Matrix products, once for all vector types.

use super::ROWS;

/// Rows of elements, `stride` apart.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Matrix<E> {
    pub elements: E,
    pub stride: usize,
}

/// A register of floating-point numbers.
///
/// # Safety
///
/// [`load`](Self::load) and [`store`](Self::store) touch `LANES` elements and no more.
pub(super) unsafe trait Vector: Copy {
    type Element: Copy;
    const LANES: usize;
    /// # Safety
    ///
    /// The CPU has the vector's instructions.
    unsafe fn splat(element: Self::Element) -> Self;
    /// # Safety
    ///
    /// The CPU has the vector's instructions, and there are `LANES` elements to read.
    unsafe fn load(source: *const Self::Element) -> Self;
    /// # Safety
    ///
    /// The CPU has the vector's instructions, and there are `LANES` elements to write.
    unsafe fn store(self, destination: *mut Self::Element);
    /// `self · factor + addend`.
    ///
    /// # Safety
    ///
    /// The CPU has the vector's instructions.
    unsafe fn multiply_add(self, factor: Self, addend: Self) -> Self;
}

/// Makes a [`Vector`] of a register type, from its intrinsics.
#[cfg(target_arch = "x86_64")]
macro_rules! register_vector {
    ($register:ty, $element:ty, $lanes:literal, $set1:ident, $loadu:ident, $storeu:ident, $fmadd:ident) => {
        // SAFETY: the register holds this many lanes.
        unsafe impl $crate::cpu::simd::multiply::Vector for $register {
            type Element = $element;
            const LANES: usize = $lanes;
            #[inline(always)]
            unsafe fn splat(element: $element) -> Self {
                // SAFETY: the caller's.
                unsafe { $set1(element) }
            }
            #[inline(always)]
            unsafe fn load(source: *const $element) -> Self {
                // SAFETY: the caller's.
                unsafe { $loadu(source) }
            }
            #[inline(always)]
            unsafe fn store(self, destination: *mut $element) {
                // SAFETY: the caller's.
                unsafe { $storeu(destination, self) }
            }
            #[inline(always)]
            unsafe fn multiply_add(self, factor: Self, addend: Self) -> Self {
                // SAFETY: the caller's.
                unsafe { $fmadd(self, factor, addend) }
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
pub(super) use register_vector;

/// `c += a · b` for [`ROWS`] rows of `a` and `c`, in blocks of `R` rows and `N` vectors of columns that stay in registers.
///
/// # Safety
///
/// The CPU has `V`'s instructions.
#[inline(always)]
pub(super) unsafe fn multiply_accumulate<V: Vector, const R: usize, const N: usize>(
    a: Matrix<&[V::Element]>,
    b: Matrix<&[V::Element]>,
    c: Matrix<&mut [V::Element]>,
    [depth, columns]: [usize; 2],
) {
    if depth == 0 {
        return;
    }
    assert!(ROWS.is_multiple_of(R) && columns.is_multiple_of(N * V::LANES));
    assert!(a.elements.len() >= (ROWS - 1) * a.stride + depth);
    assert!(b.elements.len() >= (depth - 1) * b.stride + columns);
    assert!(c.elements.len() >= (ROWS - 1) * c.stride + columns);
    let (a_stride, b_stride, c_stride) = (a.stride, b.stride, c.stride);
    let (a_start, b_start, c_start) = (a.elements.as_ptr(), b.elements.as_ptr(), c.elements.as_mut_ptr());
    for row in (0..ROWS).step_by(R) {
        for column in (0..columns).step_by(N * V::LANES) {
            // SAFETY: the CPU has the instructions (caller); rows, columns and depth are within what was asserted.
            unsafe {
                let a = a_start.add(row * a_stride);
                let b = b_start.add(column);
                let c_at = |r: usize, n: usize| c_start.add((row + r) * c_stride + column + n * V::LANES);
                let mut sums = [[V::splat(*c_start); N]; R];
                for (r, sums) in sums.iter_mut().enumerate() {
                    for (n, sum) in sums.iter_mut().enumerate() {
                        *sum = V::load(c_at(r, n));
                    }
                }
                for k in 0..depth {
                    let mut factors = [V::splat(*b); N];
                    for (n, factor) in factors.iter_mut().enumerate() {
                        *factor = V::load(b.add(k * b_stride + n * V::LANES));
                    }
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let broadcast = V::splat(*a.add(r * a_stride + k));
                        for (sum, factor) in sums.iter_mut().zip(factors) {
                            *sum = broadcast.multiply_add(factor, *sum);
                        }
                    }
                }
                for (r, sums) in sums.into_iter().enumerate() {
                    for (n, sum) in sums.into_iter().enumerate() {
                        sum.store(c_at(r, n));
                    }
                }
            }
        }
    }
}
