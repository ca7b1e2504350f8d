//! Lists of tensors as arguments of backend extensions, which take no vectors.

use burn::backend::{Backend, ExtensionType, tensor::FloatTensor};

/// One to eight tensors of one backend.
#[derive(Debug, Clone, ExtensionType)]
pub(crate) enum TensorList<B: Backend> {
    One(FloatTensor<B>),
    Two(FloatTensor<B>, FloatTensor<B>),
    Three(FloatTensor<B>, FloatTensor<B>, FloatTensor<B>),
    Four(FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, FloatTensor<B>),
    Five(FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, FloatTensor<B>),
    Six(FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, FloatTensor<B>),
    Seven(
        FloatTensor<B>,
        FloatTensor<B>,
        FloatTensor<B>,
        FloatTensor<B>,
        FloatTensor<B>,
        FloatTensor<B>,
        FloatTensor<B>,
    ),
    Eight(
        FloatTensor<B>,
        FloatTensor<B>,
        FloatTensor<B>,
        FloatTensor<B>,
        FloatTensor<B>,
        FloatTensor<B>,
        FloatTensor<B>,
        FloatTensor<B>,
    ),
}

impl<B: Backend> TensorList<B> {
    /// The tensors of a vector.
    ///
    /// # Panics
    /// If there are none or more than eight.
    pub(crate) fn from_vec(tensors: Vec<FloatTensor<B>>) -> Self {
        let num_tensors = tensors.len();
        let mut tensors = tensors.into_iter();
        let mut next = || tensors.next().expect("counted above");
        match num_tensors {
            1 => Self::One(next()),
            2 => Self::Two(next(), next()),
            3 => Self::Three(next(), next(), next()),
            4 => Self::Four(next(), next(), next(), next()),
            5 => Self::Five(next(), next(), next(), next(), next()),
            6 => Self::Six(next(), next(), next(), next(), next(), next()),
            7 => Self::Seven(next(), next(), next(), next(), next(), next(), next()),
            8 => Self::Eight(next(), next(), next(), next(), next(), next(), next(), next()),
            _ => panic!("a list of {num_tensors} tensors"),
        }
    }

    /// The tensors in order.
    pub(crate) fn into_vec(self) -> Vec<FloatTensor<B>> {
        match self {
            Self::One(a) => vec![a],
            Self::Two(a, b) => vec![a, b],
            Self::Three(a, b, c) => vec![a, b, c],
            Self::Four(a, b, c, d) => vec![a, b, c, d],
            Self::Five(a, b, c, d, e) => vec![a, b, c, d, e],
            Self::Six(a, b, c, d, e, f) => vec![a, b, c, d, e, f],
            Self::Seven(a, b, c, d, e, f, g) => vec![a, b, c, d, e, f, g],
            Self::Eight(a, b, c, d, e, f, g, h) => vec![a, b, c, d, e, f, g, h],
        }
    }
}
