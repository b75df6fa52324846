//! Rows of a caller's tensor.

use sage_layout::params::Strides;

use crate::element::Element;

/// A `[batch, heads, tokens, head_dim]` tensor with its first three axes in any order.
#[derive(Clone, Copy)]
pub(crate) struct View<'a, T> {
    pub elements: &'a [T],
    pub strides: Strides,
    pub head_dim: usize,
}

impl<T: Element> View<'_, T> {
    /// Widens a row into the front of `destination`, and leaves what follows as it is.
    pub fn read_row(&self, [batch, head, token]: [usize; 3], destination: &mut [f32]) {
        T::widen(self.row([batch, head, token]), &mut destination[..self.head_dim]);
    }

    /// The same with what quantization starts from.
    pub fn read_rounded_row(&self, [batch, head, token]: [usize; 3], destination: &mut [f32]) {
        T::widen_rounded(self.row([batch, head, token]), &mut destination[..self.head_dim]);
    }

    /// A row's elements.
    pub fn row(&self, [batch, head, token]: [usize; 3]) -> &[T] {
        let start = offset(self.strides, [batch, head, token]);
        &self.elements[start..start + self.head_dim]
    }
}

/// Where a row starts, in elements.
pub(crate) fn offset(strides: Strides, [batch, head, token]: [usize; 3]) -> usize {
    (batch as i64 * strides.batch + head as i64 * strides.head + token as i64 * strides.token) as usize
}
