//! Where a tensor of a model is.

/// The position of a tensor of a [`Model`](super::Model) in the list of all its tensors.
pub type TensorId = usize;

/// Where the bytes of a tensor come from.
#[derive(Clone, Copy, Debug)]
pub(super) enum TensorPlace {
    /// They stand in a file: its position among the files, and the tensor's position in it.
    Stored(u32, u32),
    /// They are computed: the tensor's position among the computed ones.
    Computed(u32),
}
