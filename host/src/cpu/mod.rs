//! Stand-in until the CPU engine is merged.
use crate::element::Element;
use crate::plan::Resolved;

pub(crate) fn attend<T: Element>(_: &Resolved, _: &[T], _: &[T], _: &[T], _: &mut [T], _: Option<&mut [f32]>) {
    unimplemented!("the CPU engine")
}
